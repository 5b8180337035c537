"""The virtual-area allocator: the tree of free areas, busy areas, and areas freed lazily (mm/vmalloc.c of Linux 6.1; what 6.12 does otherwise is in `vmap_node`).

Each function is one section that the kernel runs under one of its locks; names are the kernel's. Addresses are biased (`vmap_tables`). A request ends in a row of
`Vmalloc.area`, which is always positive, or in one of the negative numbers below.
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, slow
from mmtwin.mm.rbtree import propagate
from mmtwin.mm.vmap_tables import AREA_BUSY, AREA_HELD, AREA_LAZY, NIL, TREE_BUSY, TREE_FREE, VMAP_FLAGS_MASK, ZERO_BYTES
from mmtwin.mm.vmap_tree import (
    NO_ROOM,
    addr_to_node_id,
    free_object,
    insert_vmap_area,
    insert_vmap_area_augment,
    list_del_area,
    merge_or_add,
    merge_or_add_augment,
    new_area,
    unlink_va,
)
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE

OVERFLOW = -1
"""No free area fits: the caller purges and asks again, as the kernel does (it returns `vend`)."""
NO_SPARE = -2
"""An area has to be split in the middle and this CPU has no spare area: nothing was changed; the caller preloads one (GFP_NOWAIT) and asks again."""
LARGEST = (1 << 63) - 1
"""The highest biased address."""
LAZY_PAGES = (32 << 20) >> PAGE_SHIFT


# Allocation


@inner
def aligned(address: int, align: int) -> int:
    """``ALIGN``; biased addresses are aligned as the true ones are. An address too high for it becomes `LARGEST`, where nothing fits (the kernel's wraps to 0)."""
    if address > LARGEST - (align - 1):
        return LARGEST
    return (address + align - 1) & -align


@inner
def _is_within_this_va(entry: Any, size: int, align: int, vstart: int) -> bool:
    """``is_within_this_va``."""
    start = int(entry["va_start"])
    start = aligned(start if start > vstart else vstart, align)
    return start <= LARGEST - size and start + size <= int(entry["va_end"])


@inner
def find_vmap_lowest_match(v: Any, size: int, align: int, vstart: int, length: int) -> int:
    """``find_vmap_lowest_match``: the lowest free area that fits, NIL if none is found.

    `length` is searched for; with an alignment above a page it is larger than `size`, and an area that fits only by being aligned already is found or missed
    depending on whether the way through the tree happens to pass it.
    """
    area = v.area
    wanted = length + ZERO_BYTES
    node = int(v.tree[TREE_FREE]["rb_root"])
    steps = 0
    found = NIL
    while node != NIL:
        steps += 1
        entry = area[node]
        left, right = int(entry["rb_left"]), int(entry["rb_right"])
        if int(area[left]["subtree_max_size"]) >= wanted and vstart < int(entry["va_start"]):
            node = left
            continue
        if _is_within_this_va(entry, size, align, vstart):
            found = node
            break
        if int(area[right]["subtree_max_size"]) >= wanted:
            node = right
            continue
        node = int(entry["rb_parent"])
        while node != NIL:
            steps += 1
            entry = area[node]
            if _is_within_this_va(entry, size, align, vstart):
                found = node
                break
            right = int(entry["rb_right"])
            if int(area[right]["subtree_max_size"]) >= wanted and vstart <= int(entry["va_start"]):
                vstart = int(entry["va_start"]) + 1  # not into the same subtree again
                node = right
                break
            node = int(entry["rb_parent"])
        if found != NIL:
            break
    v.config[0]["tree_steps"] += steps
    return found


@inner
def adjust_va_to_fit_type(v: Any, cpu: int, row: int, start: int, size: int) -> int:
    """``adjust_va_to_fit_type`` (6.12: ``va_clip``): takes [start, start + size) out of a free area. 0, `NO_SPARE`, or `OVERFLOW` if it is not inside it."""
    area = v.area
    entry = area[row]
    va_start, va_end = int(entry["va_start"]), int(entry["va_end"])
    end = start + size
    if start < va_start or end > va_end:
        return OVERFLOW
    if va_start == start:
        if va_end == end:
            unlink_va(v, TREE_FREE, row, True)
            free_object(v, row)
            return 0
        entry["va_start"] = end
        v.config[0]["tree_steps"] += propagate(area, row, NIL)
        return 0
    if va_end == end:
        entry["va_end"] = start
        v.config[0]["tree_steps"] += propagate(area, row, NIL)
        return 0
    rest = int(v.cpu[cpu]["ne_fit_preload_node"])
    if rest == NIL:
        return NO_SPARE
    v.cpu[cpu]["ne_fit_preload_node"] = NIL
    area[rest]["va_start"] = va_start
    area[rest]["va_end"] = start
    entry["va_start"] = end
    v.config[0]["splits"] += 1
    v.config[0]["tree_steps"] += propagate(area, row, NIL)
    insert_vmap_area_augment(v, rest, row)
    return 0


@inner
def alloc_vmap_area_locked(v: Any, cpu: int, size: int, align: int, vstart: int, vend: int) -> int:
    """``__alloc_vmap_area``: takes `size` bytes out of the free tree; returns the address, or `OVERFLOW` or `NO_SPARE` (no address: these are not aligned)."""
    length = size
    if align > PAGE_SIZE and vstart + size != vend:
        length = size + align - 1
    row = find_vmap_lowest_match(v, size, align, vstart, length)
    if row == NIL:
        v.config[0]["overflows"] += 1
        return OVERFLOW
    start = int(v.area[row]["va_start"])
    start = aligned(start if start > vstart else vstart, align)
    if start + size > vend:
        v.config[0]["overflows"] += 1
        return OVERFLOW
    result = adjust_va_to_fit_type(v, cpu, row, start, size)
    return start if result == 0 else result


@inner
def encode_vn_id(v: Any, cpu: int, vstart: int, vend: int) -> int:
    """``node_alloc``'s mark of who asked for an area: the CPU's node plus one, in bits 8 and up; 0 with one node, or outside the vmalloc range."""
    config = v.config[0]
    nodes = int(config["nr_nodes"])
    if nodes == 1 or vstart != int(config["vmalloc_start"]) or vend != int(config["vmalloc_end"]):
        return 0
    return (cpu % nodes + 1) << 8


@inner
def insert_busy(v: Any, row: int) -> int:
    """Into the busy tree of the area's node; -1 if it overlaps with a busy area (of a broken table)."""
    return insert_vmap_area(v, TREE_BUSY + addr_to_node_id(v, int(v.area[row]["va_start"])), row, AREA_BUSY)


@inner
def take_area(v: Any, cpu: int, row: int, size: int, align: int, vstart: int, vend: int, va_flags: int) -> int:
    """``alloc_vmap_area`` from its locked section on, with the object in `row`: the row, now busy, or a negative number and the row is still the caller's."""
    address = alloc_vmap_area_locked(v, cpu, size, align, vstart, vend)
    if address == OVERFLOW or address == NO_SPARE:
        return address
    entry = v.area[row]
    entry["va_start"] = address
    entry["va_end"] = address + size
    entry["vm"] = NIL
    entry["flags"] = (va_flags & VMAP_FLAGS_MASK) | encode_vn_id(v, cpu, vstart, vend)
    insert_busy(v, row)
    v.config[0]["allocs"] += 1
    return row


# Finding


@inner
def _find_in(v: Any, t: int, address: int) -> int:
    """``__find_vmap_area``."""
    node = int(v.tree[t]["rb_root"])
    steps = 0
    while node != NIL:
        steps += 1
        entry = v.area[node]
        if address < int(entry["va_start"]):
            node = int(entry["rb_left"])
        elif address >= int(entry["va_end"]):
            node = int(entry["rb_right"])
        else:
            break
    v.config[0]["tree_steps"] += steps
    return node


@inner
def find_vmap_area(v: Any, address: int) -> int:
    """``find_vmap_area``: the busy area that holds an address, NIL if there is none. An area is in the node where it begins; others are asked after that one."""
    nodes = int(v.config[0]["nr_nodes"])
    first = addr_to_node_id(v, address)
    row = _find_in(v, TREE_BUSY + first, address)
    node = first + 1
    while row == NIL and nodes > 1:
        if node >= nodes:
            node = 0
        if node == first:
            break
        row = _find_in(v, TREE_BUSY + node, address)
        node += 1
    return row


@slow
def find_vmap_area_exceed_addr(v: Any, address: int) -> int:
    """The first busy area that ends above `address` (what a read of many areas goes on with), NIL if there is none."""
    best = NIL
    for node in range(int(v.config[0]["nr_nodes"])):
        at = int(v.tree[TREE_BUSY + node]["rb_root"])
        found = NIL
        while at != NIL:
            entry = v.area[at]
            if int(entry["va_end"]) > address:
                found = at
                if int(entry["va_start"]) <= address:
                    break
                at = int(entry["rb_left"])
            else:
                at = int(entry["rb_right"])
        if found != NIL and (best == NIL or int(v.area[found]["va_start"]) < int(v.area[best]["va_start"])):
            best = found
    return best


# Freeing


@inner
def lazy_max_pages(v: Any) -> int:
    """``lazy_max_pages``: 32 MiB for each binary digit of the number of CPUs."""
    cpus = int(v.config[0]["online_cpus"])
    log = 0
    while cpus:
        log += 1
        cpus >>= 1
    return log * LAZY_PAGES


@inner
def unlink_busy(v: Any, row: int) -> None:
    """Out of the busy tree: the first thing that happens to an area that is freed."""
    unlink_va(v, TREE_BUSY + addr_to_node_id(v, int(v.area[row]["va_start"])), row, False)
    v.area[row]["state"] = AREA_HELD


@inner
def lazy_node(v: Any, row: int) -> int:
    """The node that keeps a freed area until it is purged: the one that asked for it, else the one where it begins."""
    asked = (int(v.area[row]["flags"]) >> 8) - 1
    if 0 <= asked < int(v.config[0]["nr_nodes"]):
        return asked
    return addr_to_node_id(v, int(v.area[row]["va_start"]))


@inner
def free_vmap_area_noflush(v: Any, row: int) -> int:
    """``free_vmap_area_noflush`` after `unlink_busy`: counts the area's pages and puts it with the lazily freed ones, in 6.1 joined with its neighbours there.

    Returns 1 if the drain work is scheduled (`config.drain` is then 1).
    """
    config = v.config[0]
    pages = (int(v.area[row]["va_end"]) - int(v.area[row]["va_start"])) >> PAGE_SHIFT
    lazy = int(config["lazy_nr"]) + pages
    config["lazy_nr"] = lazy
    config["frees"] += 1
    if int(config["version"]) < 609:
        merge_or_add(v, int(config["lazy_tree"]), row, AREA_LAZY, False)
    else:
        insert_vmap_area(v, int(config["lazy_tree"]) + lazy_node(v, row), row, AREA_LAZY)
    if lazy > lazy_max_pages(v):
        config["drain"] = 1
        return 1
    return 0


@slow
def free_vmap_area(v: Any, row: int) -> None:
    """``free_vmap_area``: from the busy tree back to the free tree at once (an allocation that could not be completed)."""
    unlink_busy(v, row)
    merge_or_add_augment(v, row)


# Purging


@inner
def detach_lazy(v: Any, node: int) -> bool:
    """Moves all lazily freed areas of a node to its list of areas to be purged, widening the range to be flushed; false if there are none."""
    config = v.config[0]
    t = int(config["lazy_tree"]) + node
    head = int(config["purge_tree"]) + node
    first, last = int(v.area[t]["next"]), int(v.area[t]["prev"])
    if first == t:
        return False
    if int(v.area[first]["va_start"]) < int(config["flush_start"]):
        config["flush_start"] = v.area[first]["va_start"]
    if int(v.area[last]["va_end"]) > int(config["flush_end"]):
        config["flush_end"] = v.area[last]["va_end"]
    tail = int(v.area[head]["prev"])
    v.area[tail]["next"] = first
    v.area[first]["prev"] = tail
    v.area[last]["next"] = head
    v.area[head]["prev"] = last
    v.area[t]["next"] = t
    v.area[t]["prev"] = t
    v.tree[head]["nr"] += v.tree[t]["nr"]
    v.tree[t]["nr"] = 0
    v.tree[t]["rb_root"] = NIL
    config["list_steps"] += 1
    return True


@inner
def purge_one(v: Any, node: int) -> int:
    """One round of 6.1's loop: the first area to be purged goes back to the free tree. The kernel may let others allocate between two of them. NIL if none is left."""
    config = v.config[0]
    head = int(config["purge_tree"]) + node
    row = int(v.area[head]["next"])
    if row == head:
        return NIL
    pages = (int(v.area[row]["va_end"]) - int(v.area[row]["va_start"])) >> PAGE_SHIFT
    list_del_area(v, head, row)
    v.area[row]["state"] = AREA_HELD
    row = merge_or_add_augment(v, row)
    if row != NIL:
        config["lazy_nr"] -= pages
    config["purged_areas"] += 1
    return row


@slow
def purge_vmap_area_lazy(v: Any, start: int, end: int) -> bool:
    """``__purge_vmap_area_lazy`` of 6.1: flushes [start, end) widened to all lazily freed areas, which go back to the free tree; false if there are none."""
    config = v.config[0]
    config["flush_start"] = start
    config["flush_end"] = end
    if not detach_lazy(v, 0):
        return False
    config["flushes"] += 1
    config["purges"] += 1
    while purge_one(v, 0) != NIL:
        pass
    return True


# Boot


def vm_area_register_early(v: Any, size: int, align: int, early: list[tuple[int, int]]) -> int:
    """``vm_area_register_early``: where an area of the early boot goes, below or between those in `early` (biased address, size), which it is added to."""
    address = aligned(int(v.config[0]["vmalloc_start"]), align)
    at = 0
    for at_address, at_size in early:
        if (at_address - address) % (1 << int(v.config[0]["bits_per_long"])) >= size:
            break
        address = aligned(at_address + at_size, align)
        at += 1
    early.insert(at, (address, size))
    return address


@slow
def _init_free(v: Any, start: int, end: int) -> int:
    row = new_area(v, 0)
    if row == NO_ROOM:
        return NO_ROOM
    v.area[row]["va_start"] = start
    v.area[row]["va_end"] = end
    return insert_vmap_area_augment(v, row, NIL)


@slow
def vmalloc_init(v: Any, early: Any) -> int:
    """``vmalloc_init``: early areas (rows of biased address and size, by address) become busy, everything between 1 and ULONG_MAX beside them is free.

    0, or `NO_ROOM`. The busy areas' objects are allocated first, then the free ones', lowest first: both in the order of their row numbers.
    """
    config = v.config[0]
    ulong_max = int(config["ulong_max"])
    for i in range(len(early)):
        row = new_area(v, 0)
        if row == NO_ROOM:
            return NO_ROOM
        v.area[row]["va_start"] = early[i, 0]
        v.area[row]["va_end"] = early[i, 0] + early[i, 1]
        insert_busy(v, row)
    start = ZERO_BYTES + 1
    for i in range(len(early)):
        if int(early[i, 0]) > start:
            if _init_free(v, start, int(early[i, 0])) == NO_ROOM:
                return NO_ROOM
        start = int(early[i, 0] + early[i, 1])
    if ulong_max > start:
        return _init_free(v, start, ulong_max)
    return 0
