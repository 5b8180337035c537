"""Rows, lists and trees of virtual areas: taking and giving back rows, linking, merging with neighbours (mm/vmalloc.c).

Objects (struct vmap_area) come from the caller, who allocates them from the kernel's cache first, as the kernel does, and go back through the log `Vmalloc.freed`,
in the order in which the kernel frees them.
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner
from mmtwin.mm.rbtree import propagate, rb_erase, rb_insert, rb_link_node
from mmtwin.mm.vmap_tables import AREA_FREE, AREA_HELD, AREA_PRELOAD, AREA_UNUSED, FREED_AREA, NIL, TREE_FREE, ZERO_BYTES

NO_ROOM = -1000
"""The machine's tables are full: the caller enlarges them (`reserve_areas`) and asks again."""


# Rows: objects of struct vmap_area


@inner
def new_area(v: Any, kernel_object: int) -> int:
    """A row for an object that the kernel allocated; `NO_ROOM` if the table is full."""
    config = v.config[0]
    row = int(config["free_area"])
    if row != NIL:
        config["free_area"] = int(v.area[row]["next"])
    else:
        row = int(config["areas"])
        if row >= len(v.area):
            return NO_ROOM
        config["areas"] = row + 1
    config["areas_in_use"] += 1
    entry = v.area[row]
    entry["object"] = kernel_object
    entry["state"] = AREA_HELD
    entry["vm"] = NIL
    entry["flags"] = 0
    return row


@inner
def free_area_row(v: Any, row: int) -> None:
    """Gives a row up without a word in the log: the caller frees the object."""
    config = v.config[0]
    entry = v.area[row]
    entry["state"] = AREA_UNUSED
    entry["next"] = int(config["free_area"])
    config["free_area"] = row
    config["areas_in_use"] -= 1


@inner
def log_freed(v: Any, kernel_object: int, kind: int) -> None:
    """Notes that the kernel frees an object here."""
    config = v.config[0]
    at = int(config["freed"])
    config["freed"] = at + 1
    if at < len(v.freed):
        v.freed[at]["object"] = kernel_object
        v.freed[at]["kind"] = kind


@inner
def free_object(v: Any, row: int) -> None:
    """``kmem_cache_free(vmap_area_cachep, va)``."""
    log_freed(v, int(v.area[row]["object"]), FREED_AREA)
    free_area_row(v, row)


@inner
def preload(v: Any, cpu: int, row: int) -> None:
    """``preload_this_cpu_lock``, its second half: a row becomes the CPU's spare; if it has one, the object is freed again."""
    if int(v.cpu[cpu]["ne_fit_preload_node"]) != NIL:
        free_object(v, row)
    else:
        v.cpu[cpu]["ne_fit_preload_node"] = row
        v.area[row]["state"] = AREA_PRELOAD


# Nodes (6.9 and later; one before)


@inner
def addr_to_node_id(v: Any, address: int) -> int:
    """The node whose trees hold an area that begins at `address`."""
    config = v.config[0]
    nodes = int(config["nr_nodes"])
    if nodes == 1:
        return 0
    shift = int(config["zone_shift"])
    return ((address >> shift) + (1 << (63 - shift))) % nodes


# Trees and lists


@inner
def find_va_links(v: Any, t: int, row: int, start: int) -> tuple[int, int]:
    """``find_va_links``: where an area belongs: its parent (NIL: the tree is empty) and 1 if on its right, 0 if on its left, -1 if it overlaps with the parent."""
    va_start, va_end = int(v.area[row]["va_start"]), int(v.area[row]["va_end"])
    node = start if start != NIL else int(v.tree[t]["rb_root"])
    parent, side, steps = NIL, 0, 0
    while node != NIL:
        parent = node
        entry = v.area[node]
        steps += 1
        if va_end <= int(entry["va_start"]):
            side = 0
            node = int(entry["rb_left"])
        elif va_start >= int(entry["va_end"]):
            side = 1
            node = int(entry["rb_right"])
        else:
            side = -1
            node = NIL
    v.config[0]["tree_steps"] += steps
    return parent, side


@inner
def link_va(v: Any, t: int, row: int, parent: int, right: bool, augment: bool) -> None:
    """``_link_va``: into the tree and, beside its parent, into the list. The head of the list is the row of the tree's number."""
    area = v.area
    before = t
    if parent != NIL:
        before = parent if right else int(area[parent]["prev"])
    rb_link_node(area, v.tree, t, row, parent, right)
    rotations = rb_insert(area, v.tree, t, row, augment)
    if augment:
        area[row]["subtree_max_size"] = ZERO_BYTES  # `propagate` must not find it right already
    after = int(area[before]["next"])
    area[row]["next"] = after
    area[row]["prev"] = before
    area[after]["prev"] = row
    area[before]["next"] = row
    v.tree[t]["nr"] += 1
    config = v.config[0]
    config["rotations"] += rotations
    config["list_steps"] += 1


@inner
def unlink_va(v: Any, t: int, row: int, augment: bool) -> None:
    """``_unlink_va``: out of the tree and the list."""
    rotations = rb_erase(v.area, v.tree, t, row, augment)
    list_del_area(v, t, row)
    v.config[0]["rotations"] += rotations


@inner
def list_del_area(v: Any, t: int, row: int) -> None:
    """Off the list whose head is row `t`."""
    after, before = int(v.area[row]["next"]), int(v.area[row]["prev"])
    v.area[after]["prev"] = before
    v.area[before]["next"] = after
    v.tree[t]["nr"] -= 1
    v.config[0]["list_steps"] += 1


@inner
def list_add_area(v: Any, t: int, row: int) -> None:
    """At the front of the list whose head is row `t`."""
    after = int(v.area[t]["next"])
    v.area[row]["next"] = after
    v.area[row]["prev"] = t
    v.area[after]["prev"] = row
    v.area[t]["next"] = row
    v.tree[t]["nr"] += 1
    v.config[0]["list_steps"] += 1


@inner
def list_add_tail_area(v: Any, t: int, row: int) -> None:
    """At the end of the list whose head is row `t`."""
    before = int(v.area[t]["prev"])
    v.area[row]["next"] = t
    v.area[row]["prev"] = before
    v.area[before]["next"] = row
    v.area[t]["prev"] = row
    v.tree[t]["nr"] += 1
    v.config[0]["list_steps"] += 1


@inner
def insert_vmap_area(v: Any, t: int, row: int, state: int) -> int:
    """``insert_vmap_area``: into a plain tree; 0, or -1 if it overlaps with what is there: it is then in no tree, as in the kernel, which warns."""
    parent, side = find_va_links(v, t, row, NIL)
    if side < 0:
        return -1
    link_va(v, t, row, parent, side == 1, False)
    v.area[row]["state"] = state
    return 0


@inner
def insert_vmap_area_augment(v: Any, row: int, start: int) -> int:
    """``insert_vmap_area_augment``: into the free tree, searching from `start` downwards."""
    parent, side = find_va_links(v, TREE_FREE, row, start)
    if side < 0:
        return -1
    link_va(v, TREE_FREE, row, parent, side == 1, True)
    v.area[row]["state"] = AREA_FREE
    v.config[0]["tree_steps"] += propagate(v.area, row, NIL)
    return 0


@inner
def merge_or_add(v: Any, t: int, row: int, state: int, augment: bool) -> int:
    """``__merge_or_add_vmap_area``: joins an area with its neighbours in the tree, the right one first, or adds it; returns the row it is in now, NIL if it overlaps.

    Each join frees an object: the area's own, and with both neighbours the right one's as well.
    """
    area = v.area
    parent, side = find_va_links(v, t, row, NIL)
    if side < 0:
        return NIL
    if parent == NIL:
        link_va(v, t, row, parent, False, augment)
        area[row]["state"] = state
        return row
    after = int(area[parent]["next"]) if side == 1 else parent
    before = int(area[after]["prev"])
    merged = False
    if after != t and int(area[after]["va_start"]) == int(area[row]["va_end"]):
        area[after]["va_start"] = area[row]["va_start"]
        free_object(v, row)
        row = after
        merged = True
        v.config[0]["merges"] += 1
    if before != t and int(area[before]["va_end"]) == int(area[row]["va_start"]):
        if merged:
            unlink_va(v, t, row, augment)
        area[before]["va_end"] = area[row]["va_end"]
        free_object(v, row)
        row = before
        merged = True
        v.config[0]["merges"] += 1
    if not merged:
        link_va(v, t, row, parent, side == 1, augment)
        area[row]["state"] = state
    return row


@inner
def merge_or_add_augment(v: Any, row: int) -> int:
    """``merge_or_add_vmap_area_augment``: back into the free tree."""
    row = merge_or_add(v, TREE_FREE, row, AREA_FREE, True)
    if row != NIL:
        v.config[0]["tree_steps"] += propagate(v.area, row, NIL)
    return row
