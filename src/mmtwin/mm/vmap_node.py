"""Vmap nodes (mm/vmalloc.c of Linux 6.9 and later, after 6.12): busy and lazily freed areas in one tree per node, and pools of areas that can be used again as they are.

There is a node for each possible CPU (64 bits, two CPUs or more). A freed area belongs to the node of the CPU that allocated it, and a purge puts it into that node's pool of its
size, from where the next request of the CPU's takes it. Each purge lets a quarter of what the pools hold go back to the free tree.
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, slow
from mmtwin.mm.vmalloc import detach_lazy, encode_vn_id, insert_busy, lazy_max_pages, purge_vmap_area_lazy
from mmtwin.mm.vmap_tables import AREA_HELD, AREA_POOL, MAX_VA_SIZE_PAGES, NIL, VMAP_FLAGS_MASK, ZERO_BYTES
from mmtwin.mm.vmap_tree import list_add_area, list_add_tail_area, list_del_area, merge_or_add, merge_or_add_augment
from mmtwin.units import PAGE_SHIFT


@inner
def size_to_va_pool(v: Any, node: int, size: int) -> int:
    """``size_to_va_pool``: the row of the pool's head, NIL for areas above 1 MiB."""
    index = (size - 1) >> PAGE_SHIFT
    if index >= MAX_VA_SIZE_PAGES:
        return NIL
    return int(v.config[0]["pool_base"]) + node * MAX_VA_SIZE_PAGES + index


@inner
def node_pool_add_va(v: Any, node: int, row: int) -> bool:
    """``node_pool_add_va``: at the front of the pool of its size; false if there is none."""
    pool = size_to_va_pool(v, node, int(v.area[row]["va_end"]) - int(v.area[row]["va_start"]))
    if pool == NIL:
        return False
    list_add_area(v, pool, row)
    v.area[row]["state"] = AREA_POOL
    return True


@inner
def node_pool_del_va(v: Any, node: int, size: int, align: int, vstart: int, vend: int) -> int:
    """``node_pool_del_va``: the first area of the pool, NIL if there is none or it is not aligned as wanted: it then goes to the end."""
    pool = size_to_va_pool(v, node, size)
    if pool == NIL:
        return NIL
    row = int(v.area[pool]["next"])
    if row == pool:
        return NIL
    va_start, va_end = int(v.area[row]["va_start"]), int(v.area[row]["va_end"])
    if va_start & (align - 1):
        list_del_area(v, pool, row)
        list_add_tail_area(v, pool, row)
        return NIL
    if va_end - va_start != size or va_start < vstart or va_end > vend:
        return NIL
    list_del_area(v, pool, row)
    v.area[row]["state"] = AREA_HELD
    return row


@inner
def take_from_pool(v: Any, cpu: int, size: int, align: int, vstart: int, vend: int, va_flags: int) -> int:
    """``node_alloc``: an area of this size that was purged before, now busy, NIL if this CPU's pool has none or the request is not for the vmalloc range.

    The kernel asks here before it allocates an object: an area from a pool brings its own.
    """
    mark = encode_vn_id(v, cpu, vstart, vend)
    if mark == 0:
        return NIL
    row = node_pool_del_va(v, (mark >> 8) - 1, size, align, vstart, vend)
    if row == NIL:
        return NIL
    v.area[row]["vm"] = NIL
    v.area[row]["flags"] = (va_flags & VMAP_FLAGS_MASK) | mark
    insert_busy(v, row)
    v.config[0]["allocs"] += 1
    return row


@slow
def reclaim_list_global(v: Any) -> None:
    """``reclaim_list_global``: all areas of the local list go back to the free tree, in the list's order."""
    head = int(v.config[0]["local_tree"])
    row = int(v.area[head]["next"])
    while row != head:
        after = int(v.area[row]["next"])
        v.area[row]["state"] = AREA_HELD
        merge_or_add_augment(v, row)
        row = after
    v.area[head]["next"] = head
    v.area[head]["prev"] = head
    v.tree[head]["nr"] = 0
    v.tree[head]["rb_root"] = NIL


@slow
def decay_va_pool_node(v: Any, node: int, full_decay: bool) -> None:
    """``decay_va_pool_node``: a quarter of each pool, or all of it, goes back to the free tree; neighbours are joined on the way.

    Fewer than four areas are a quarter of 0, and the kernel's count goes below it: such a pool is emptied.
    """
    local = int(v.config[0]["local_tree"])
    first_pool = int(v.config[0]["pool_base"]) + node * MAX_VA_SIZE_PAGES
    for pool in range(first_pool, first_pool + MAX_VA_SIZE_PAGES):
        length = int(v.tree[pool]["nr"])
        if length == 0:
            continue
        decay = length >> 2
        if full_decay or decay == 0:
            decay = length
        for _ in range(decay):
            row = int(v.area[pool]["next"])
            list_del_area(v, pool, row)
            v.area[row]["state"] = AREA_HELD
            merge_or_add(v, local, row, AREA_HELD, False)
    reclaim_list_global(v)


@slow
def purge_vmap_node(v: Any, node: int) -> int:
    """``purge_vmap_node``: the node's areas to be purged go to its pools, those too large for one (or all, if pools are not to be filled) back to the free tree, last first.

    Returns how many they were.
    """
    config = v.config[0]
    head, local = int(config["purge_tree"]) + node, int(config["local_tree"])
    nodes, populate = int(config["nr_nodes"]), int(config["skip_populate"]) == 0
    pages, areas = 0, 0
    row = int(v.area[head]["next"])
    while row != head:
        after = int(v.area[row]["next"])
        list_del_area(v, head, row)
        pages += (int(v.area[row]["va_end"]) - int(v.area[row]["va_start"])) >> PAGE_SHIFT
        areas += 1
        asked = (int(v.area[row]["flags"]) >> 8) - 1
        pooled = False
        if populate and 0 <= asked < nodes:
            pooled = node_pool_add_va(v, node, row)
        if not pooled:
            list_add_area(v, local, row)
        row = after
    config["lazy_nr"] -= pages
    config["purged_areas"] += areas
    reclaim_list_global(v)
    return areas


@slow
def begin_purge(v: Any, start: int, end: int, full_pool_decay: bool) -> int:
    """The first half of ``__purge_vmap_area_lazy``: pools decay, and every node's lazily freed areas are detached; returns how many nodes had some.

    Their range and [start, end) are flushed from the TLB then.
    """
    config = v.config[0]
    config["flush_start"] = start
    config["flush_end"] = end
    config["skip_populate"] = 1 if full_pool_decay else 0
    nodes = 0
    for node in range(int(config["nr_nodes"])):
        decay_va_pool_node(v, node, full_pool_decay)
        if detach_lazy(v, node):
            nodes += 1
    if nodes:
        config["flushes"] += 1
        config["purges"] += 1
    return nodes


@slow
def purge_vmap_nodes(v: Any, start: int, end: int, full_pool_decay: bool) -> bool:
    """``__purge_vmap_area_lazy`` of 6.12; false if there was nothing to purge.

    With much to purge the kernel has the first nodes purged by work items on other CPUs, at the same time. Here they come after the others, as they do where the work item
    waits for the CPU.
    """
    detached = begin_purge(v, start, end, full_pool_decay)
    if detached == 0:
        return False
    config = v.config[0]
    helpers = int(config["lazy_nr"]) // lazy_max_pages(v)
    if helpers < 1:
        helpers = 1
    if helpers > detached:
        helpers = detached
    helpers -= 1
    base, nodes = int(config["purge_tree"]), int(config["nr_nodes"])
    skipped, areas = 0, 0
    for node in range(nodes):
        if int(v.tree[base + node]["nr"]):
            if skipped < helpers:
                skipped += 1
            else:
                areas += purge_vmap_node(v, node)
    for node in range(nodes):
        if int(v.tree[base + node]["nr"]):
            areas += purge_vmap_node(v, node)
    return areas > 0


@slow
def purge(v: Any, start: int, end: int, full_pool_decay: bool) -> bool:
    """``__purge_vmap_area_lazy`` of this machine's kernel."""
    if int(v.config[0]["version"]) < 609:
        return purge_vmap_area_lazy(v, start, end)
    return purge_vmap_nodes(v, start, end, full_pool_decay)


@slow
def drain_vmap_area_work(v: Any) -> int:
    """``drain_vmap_area_work``: what `config.drain` announced; 6.1 goes on until few areas are left, 6.12 makes one round. Returns the number of purges."""
    config = v.config[0]
    config["drain"] = 0
    before = int(config["purges"])
    purge(v, int(config["ulong_max"]), ZERO_BYTES, False)
    while int(config["version"]) < 609 and int(config["lazy_nr"]) > lazy_max_pages(v) and int(v.tree[int(config["lazy_tree"])]["nr"]):
        purge(v, int(config["ulong_max"]), ZERO_BYTES, False)
    return int(config["purges"]) - before


@slow
def shrink_pools(v: Any) -> int:
    """``vmap_node_shrink_scan``: under memory pressure all pools are emptied. Returns how many areas they held."""
    config = v.config[0]
    held = 0
    first = int(config["pool_base"])
    for pool in range(first, int(config["heads"])):
        held += int(v.tree[pool]["nr"])
    if held:
        for node in range(int(config["nr_nodes"])):
            decay_va_pool_node(v, node, True)
    return held
