"""Areas of the per-CPU allocator's chunks: several at fixed distances, searched from the top of the range (pcpu_get_vm_areas of mm/vmalloc.c)."""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, slow
from mmtwin.mm.rbtree import rb_prev
from mmtwin.mm.vmalloc import NO_SPARE, OVERFLOW, adjust_va_to_fit_type, aligned, insert_busy
from mmtwin.mm.vmap_tables import NIL, TREE_FREE, ZERO_BYTES
from mmtwin.mm.vmap_tree import merge_or_add_augment


@inner
def enclosing_free(v: Any, address: int) -> int:
    """``pvm_find_va_enclose_addr``: the free area that holds an address, else the next one below it."""
    node = int(v.tree[TREE_FREE]["rb_root"])
    found = NIL
    while node != NIL:
        entry = v.area[node]
        if int(entry["va_start"]) <= address:
            found = node
            if int(entry["va_end"]) >= address:
                break
            node = int(entry["rb_right"])
        else:
            node = int(entry["rb_left"])
    return found


@inner
def _end_from_reverse(v: Any, row: int, align: int) -> tuple[int, int]:
    """``pvm_determine_end_from_reverse``: from `row` downwards, the first free area with an aligned end below VMALLOC_END, and that end; NIL if there is none."""
    limit = int(v.config[0]["vmalloc_end"]) & -align
    while row != NIL:
        end = int(v.area[row]["va_end"]) & -align
        if end > limit:
            end = limit
        if int(v.area[row]["va_start"]) < end:
            return row, end
        row = int(v.area[row]["prev"])
        if row == TREE_FREE:
            row = NIL
    return NIL, ZERO_BYTES


@slow
def pcpu_find_base(v: Any, offsets: Any, sizes: Any, align: int) -> int:
    """The search of ``pcpu_get_vm_areas``: the highest base for which an area fits at each offset; `OVERFLOW` if there is none."""
    config = v.config[0]
    lowest = aligned(int(config["vmalloc_start"]), align)
    last = 0
    for i in range(len(offsets)):
        if offsets[i] > offsets[last]:
            last = i
    at = last
    term = last
    row = enclosing_free(v, int(config["vmalloc_end"]) & -align)
    row, top = _end_from_reverse(v, row, align)
    while True:
        start, end = int(offsets[at]), int(offsets[at] + sizes[at])
        if row == NIL or top < lowest + end:
            return OVERFLOW
        base = top - end
        while True:
            if base + end > int(v.area[row]["va_end"]):
                row, top = _end_from_reverse(v, row, align)
                term = at
                break
            if base + start < int(v.area[row]["va_start"]):
                row, top = _end_from_reverse(v, rb_prev(v.area, row), align)
                term = at
                break
            at = (at + len(offsets) - 1) % len(offsets)
            if at == term:
                return base
            start, end = int(offsets[at]), int(offsets[at] + sizes[at])
            row = enclosing_free(v, base + end)
            if row == NIL:
                return OVERFLOW


@slow
def pcpu_get_vm_areas(v: Any, cpu: int, offsets: Any, sizes: Any, align: int, rows: Any, progress: Any, give_up: bool) -> int:
    """``pcpu_get_vm_areas`` with the objects in `rows`, which are busy areas in the end; returns the base.

    `NO_SPARE`: the caller preloads a spare and calls again, or gives up. `OVERFLOW`: what was taken is free again, and the rows of that are NIL.

    :param progress: two numbers, 0 at the first call: how many areas are taken, and the base.
    """
    if progress[0] == 0:
        base = pcpu_find_base(v, offsets, sizes, align)
        if base == OVERFLOW:
            v.config[0]["overflows"] += 1
            return OVERFLOW
        progress[1] = base
    base = int(progress[1])
    for i in range(int(progress[0]), len(offsets)):
        start, size = base + int(offsets[i]), int(sizes[i])
        free = enclosing_free(v, start)
        result = OVERFLOW if free == NIL else adjust_va_to_fit_type(v, cpu, free, start, size)
        if result == NO_SPARE and not give_up:
            return NO_SPARE
        if result != 0:
            for k in range(i - 1, -1, -1):
                merge_or_add_augment(v, int(rows[k]))
                rows[k] = NIL
            progress[0] = 0
            return OVERFLOW
        v.area[int(rows[i])]["va_start"] = start
        v.area[int(rows[i])]["va_end"] = start + size
        progress[0] = i + 1
    for i in range(len(offsets)):
        insert_busy(v, int(rows[i]))
        v.config[0]["allocs"] += 1
    return base
