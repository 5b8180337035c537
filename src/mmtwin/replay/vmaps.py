"""The twin's virtual-area allocator answers a recording's requests, section by section.

A mark in the recording says that the kernel ran one section of mm/vmalloc.c (searched the free tree, took a pool's area, merged a purged one, ...) at this moment, for this
context; each mark is raised inside the lock, so the order of the recording is the order of the changes. What the section finds and does is the twin's own. The
address waits in its context until the kernel puts its area into a busy tree, and is compared then. After a difference the twin is moved to what the kernel did.

Virtual areas depend on nothing else that is replayed, so this loop is apart from the page allocator's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin._jit import inner, kernel, slow
from mmtwin.mm.vmalloc import (
    NO_SPARE,
    OVERFLOW,
    adjust_va_to_fit_type,
    alloc_vmap_area_locked,
    detach_lazy,
    encode_vn_id,
    find_vmap_area,
    free_vmap_area_noflush,
    insert_busy,
    lazy_node,
    purge_one,
    unlink_busy,
)
from mmtwin.mm.vmap_block import block_at, cut_piece, find_block, forget_block, mend_block, new_vmap_block, purge_fragmented_block, soil_piece
from mmtwin.mm.vmap_node import node_pool_add_va, node_pool_del_va, reclaim_list_global, size_to_va_pool
from mmtwin.mm.vmap_percpu import enclosing_free, pcpu_get_vm_areas
from mmtwin.mm.vmap_tables import AREA_BUSY, AREA_HELD, MAX_VA_SIZE_PAGES, NIL, VMAP_FLAGS_MASK, Vmalloc, reserve_areas
from mmtwin.mm.vmap_tree import list_del_area, merge_or_add, merge_or_add_augment, new_area, preload
from mmtwin.recording.vmaps import VMAP_KINDS
from mmtwin.units import PAGE_SHIFT

(
    K_TRACE_ALLOC, K_TRACE_FREE, K_TRACE_PURGE, K_REQUEST, K_OFFER, K_SEARCH, K_POOL_TAKE, K_BUSY, K_RESULT, K_UNLINK, K_LAZY, K_DETACH, K_MERGE, K_DECAY,
    K_POOL_OUT, K_POOL_BACK, K_PURGE_NODE, K_POOL_ADD, K_LAZY_SUB, K_RECLAIM, K_PERCPU, K_PERCPU_SEARCH, K_RAM, K_RAM_RESULT, K_UNRAM, K_BLOCK_TAKE, K_BLOCK_FREE,
    K_BLOCK_PURGE, K_BLOCK_FLUSH,
) = range(29)  # fmt: skip
"""Operations: the events' kinds, numbered as in `mmtwin.recording.vmaps.VMAP_KINDS`."""

VMAP_OP = np.dtype(
    [
        ("event", "i8"),  # row of the recording
        ("ptr", "i8"),  # biased where it is an address
        ("end", "i8"),  # biased
        ("size", "i8"), ("align", "i8"), ("arg", "i8"),
        ("context", "i4"), ("node", "i4"),
        ("kind", "i2"), ("cpu", "i2"),
    ],
    align=True,
)  # fmt: skip
VMAP_CONTEXT = np.dtype(
    [
        ("size", "i8"), ("align", "i8"), ("vstart", "i8"), ("vend", "i8"), ("flags", "i8"),  # what alloc_vmap_area was asked for
        ("asking", "i8"),  # 1: in alloc_vmap_area, 2: in pcpu_get_vm_areas
        ("address", "i8"),  # what the twin found, or OVERFLOW
        ("row", "i8"),  # the area from a pool, or per-CPU area, that the twin found
        ("mark", "i8"),  # whose node asked
        ("pooled", "i8"),  # 1: the twin expects the kernel to look into a pool
        ("freed", "i8"),  # area on its way from the busy to the lazy tree
        ("purging", "i8"),  # node whose areas are being purged, -1 for none
        ("order", "i8"),  # of vm_map_ram's piece, -1: not in it
        ("piece", "i8"), ("cut", "i8"),  # its address, and whether there is one
        ("block_area", "i8"),  # area of a new block that is not on its queue yet
        ("returned", "i8"), ("returned_order", "i8"),  # piece that vm_unmap_ram is given, order -1: not in it
        ("cleared", "i8"),  # 1: its lock is taken once more before, for the bitmap (6.12)
    ]
)  # fmt: skip
"""What is going on in one task."""

VMAP_COUNTERS = (
    "vmap_allocs", "vmap_allocs_equal", "vmap_failed", "vmap_failed_equal", "vmap_frees", "vmap_unknown_frees", "vmap_pieces", "vmap_pieces_equal",
    "vmap_merges", "vmap_merges_equal", "vmap_purges", "vmap_purged", "vmap_purged_equal", "vmap_blocks", "vmap_blocks_equal", "vmap_percpu_areas", "vmap_migrated",
    "vmap_pool_paths", "vmap_unplaced", "vmap_spares_missing",
)  # fmt: skip
(
    V_ALLOCS, V_EQUAL, V_FAILED, V_FAILED_EQUAL, V_FREES, V_UNKNOWN, V_PIECES, V_PIECES_EQUAL, V_MERGES, V_MERGES_EQUAL, V_PURGES, V_PURGED, V_PURGED_EQUAL,
    V_BLOCKS, V_BLOCKS_EQUAL, V_PERCPU, V_MIGRATED, V_PATHS, V_UNPLACED, V_SPARES,
) = range(len(VMAP_COUNTERS))  # fmt: skip

VMAP_DIFFERENCE = np.dtype([("event", "i8"), ("expected", "i8"), ("predicted", "i8"), ("size", "i8"), ("align", "i8"), ("cpu", "i8"), ("what", "i8")])
D_AREA, D_FREE, D_PIECE, D_MERGE, D_BLOCK, D_FAILED = range(6)
WHATS = ("virtual area", "freed area", "vm_map_ram piece", "purged area", "vm_map_ram block", "refused area")
KEPT = 100
NOTHING = -(1 << 62)
"""No address."""
NODES = 609
"""Vmap nodes and pools came with Linux 6.9."""
ERRORS = 4095
"""Pointers of the last page are error numbers (MAX_ERRNO)."""
SIGN = -(1 << 63)


class Vmaps(NamedTuple):
    """What the loop carries.

    :param local: for each node the chain of areas that a purge gives back to the free tree, last first (linked by `next`).
    :param hidden: for each node the row of the pool that a purge has taken away for the moment, `NIL` for none.
    :param percpu: for calls of pcpu_get_vm_areas: offset, size, row, and its two numbers of progress, in arrays of their own.
    :param purged: areas that the purge at hand has taken away.
    """

    counters: npt.NDArray[np.int64]
    differences: npt.NDArray[np.void]
    context: npt.NDArray[np.void]
    local: npt.NDArray[np.int64]
    hidden: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    progress: npt.NDArray[np.int64]
    purged: npt.NDArray[np.int64]


@dataclass(frozen=True)
class VmapOutcome:
    """What a replay of virtual areas counted, by `VMAP_COUNTERS`, the state at the end and the first differences."""

    state: Vmalloc
    counters: dict[str, int]
    differences: npt.NDArray[np.void] = field(default_factory=lambda: np.zeros(0, dtype=VMAP_DIFFERENCE))


@slow
def differ_area(q: Any, op: Any, what: int, expected: int, predicted: int) -> None:
    """Keeps a difference while there is room."""
    k = 0
    while k < len(q.differences) and int(q.differences[k]["event"]):
        k += 1
    if k < len(q.differences):
        d = q.differences[k]
        x = q.context[int(op["context"])]
        d["event"] = int(op["event"]) + 1
        d["expected"] = expected
        d["predicted"] = predicted
        d["size"] = int(x["size"])
        d["align"] = int(x["align"])
        d["cpu"] = int(op["cpu"])
        d["what"] = what


@slow
def give_back(v: Any, address: int, size: int) -> None:
    """A range that the twin took and the kernel did not."""
    row = new_area(v, 0)
    v.area[row]["va_start"] = address
    v.area[row]["va_end"] = address + size
    merge_or_add_augment(v, row)


@slow
def take_range(v: Any, cpu: int, start: int, end: int) -> bool:
    """Takes what the kernel took out of the free tree; false if it is not free in the twin."""
    free = enclosing_free(v, start)
    if end <= start or free == NIL or int(v.area[free]["va_end"]) < end:
        return False
    result = adjust_va_to_fit_type(v, cpu, free, start, end - start)
    if result == NO_SPARE:
        preload(v, cpu, new_area(v, 0))
        result = adjust_va_to_fit_type(v, cpu, free, start, end - start)
    return result == 0


@slow
def drop_answer(v: Any, x: Any) -> None:
    """Gives back what the twin found for a request that the kernel went on with in another way."""
    row = int(x["row"])
    if row != NIL:
        if int(x["asking"]) == 2 and int(v.area[row]["state"]) == AREA_BUSY:
            unlink_busy(v, row)
        if int(v.area[row]["state"]) == AREA_HELD:
            merge_or_add_augment(v, row)
    elif int(x["address"]) != OVERFLOW and int(x["address"]) != NOTHING:
        give_back(v, int(x["address"]), int(x["size"]))
    x["row"] = NIL
    x["address"] = NOTHING


# Allocation


@inner
def request(v: Any, q: Any, op: Any) -> None:
    """alloc_vmap_area begins. (6.12) Whether it will look into a pool is known by the CPU and the size."""
    x = q.context[int(op["context"])]
    x["asking"] = 1
    x["size"] = int(op["size"])
    x["align"] = int(op["align"])
    x["vstart"] = int(op["ptr"])
    x["vend"] = int(op["end"])
    x["flags"] = int(op["arg"]) & VMAP_FLAGS_MASK
    x["address"] = NOTHING
    x["row"] = NIL
    x["mark"] = encode_vn_id(v, int(op["cpu"]), int(x["vstart"]), int(x["vend"]))
    x["pooled"] = 0
    if int(x["mark"]):
        node = (int(x["mark"]) >> 8) - 1
        pool = size_to_va_pool(v, node, int(x["size"]))
        if pool != NIL and pool != q.hidden[node] and int(v.tree[pool]["nr"]):
            x["pooled"] = 1


@inner
def pool_take(v: Any, q: Any, op: Any) -> None:
    """``node_pool_del_va`` in alloc_vmap_area: the pool is looked at. The node is the kernel's, should the task have moved to another CPU meanwhile."""
    x = q.context[int(op["context"])]
    if int(v.config[0]["version"]) < NODES:
        return
    node = int(op["node"])
    mark = (node + 1) << 8
    if int(x["mark"]) != mark:
        q.counters[V_MIGRATED] += 1
        x["mark"] = mark
    elif not int(x["pooled"]):
        q.counters[V_PATHS] += 1
    x["pooled"] = 0
    if size_to_va_pool(v, node, int(x["size"])) == q.hidden[node]:
        return
    row = node_pool_del_va(v, node, int(x["size"]), int(x["align"]), int(x["vstart"]), int(x["vend"]))
    if row != NIL:
        x["row"] = row
        x["address"] = int(v.area[row]["va_start"])


@inner
def search(v: Any, q: Any, op: Any) -> None:
    """The section under free_vmap_area_lock."""
    x = q.context[int(op["context"])]
    if int(x["asking"]) != 1:
        return
    if int(x["pooled"]):  # the kernel found that pool empty
        q.counters[V_PATHS] += 1
        x["pooled"] = 0
    if int(x["address"]) != NOTHING and int(x["address"]) != OVERFLOW:
        q.counters[V_FAILED] += 1
        differ_area(q, op, D_FAILED, NOTHING, int(x["address"]))
        drop_answer(v, x)
    cpu = int(op["cpu"])
    address = alloc_vmap_area_locked(v, cpu, int(x["size"]), int(x["align"]), int(x["vstart"]), int(x["vend"]))
    if address == NO_SPARE:  # the task was preloaded on another CPU: the kernel allocates an object inside the lock
        q.counters[V_SPARES] += 1
        preload(v, cpu, new_area(v, 0))
        address = alloc_vmap_area_locked(v, cpu, int(x["size"]), int(x["align"]), int(x["vstart"]), int(x["vend"]))
    x["address"] = address


@inner
def busy(v: Any, q: Any, op: Any) -> None:
    """The kernel's answer: an area on its way into the busy tree."""
    x = q.context[int(op["context"])]
    start, end, cpu = int(op["ptr"]), int(op["end"]), int(op["cpu"])
    q.counters[V_ALLOCS] += 1
    equal = int(x["address"]) == start and int(x["size"]) == end - start
    if equal:
        q.counters[V_EQUAL] += 1
    else:
        differ_area(q, op, D_AREA, start, int(x["address"]))
        drop_answer(v, x)
    row = int(x["row"])
    if int(x["asking"]) == 2 and equal:
        q.counters[V_PERCPU] += 1
    elif equal or take_range(v, cpu, start, end):
        if row == NIL:
            row = new_area(v, 0)
        entry = v.area[row]
        entry["va_start"] = start
        entry["va_end"] = end
        entry["vm"] = NIL
        entry["flags"] = int(x["flags"]) | int(x["mark"])
        if int(x["mark"]) and int(entry["flags"]) != int(op["arg"]):
            q.counters[V_MIGRATED] += 1
            entry["flags"] = int(op["arg"]) & 0xFFFF
        insert_busy(v, row)
    else:
        q.counters[V_UNPLACED] += 1
    if int(x["order"]) >= 0:
        if (
            int(x["asking"]) == 1
            and int(x["size"]) == int(v.config[0]["block_pages"]) << PAGE_SHIFT
            and 1 << int(x["order"]) <= int(v.config[0]["bits_per_long"])
        ):
            x["block_area"] = row
        if not int(x["cut"]):
            x["piece"] = start if equal else NOTHING
    x["asking"] = 0
    x["row"] = NIL
    x["address"] = NOTHING


@inner
def result(v: Any, q: Any, op: Any) -> None:
    """alloc_vmap_area returns: an error says that there was no room (or no memory for its object, then nothing was searched)."""
    x = q.context[int(op["context"])]
    if -ERRORS <= int(op["arg"]) < 0 and int(x["asking"]) == 1 and int(x["address"]) != NOTHING:
        q.counters[V_FAILED] += 1
        if int(x["address"]) == OVERFLOW:
            q.counters[V_FAILED_EQUAL] += 1
        else:
            differ_area(q, op, D_FAILED, NOTHING, int(x["address"]))
            drop_answer(v, x)
    x["asking"] = 0


@slow
def percpu_search(v: Any, q: Any, op: Any) -> None:
    """The section of pcpu_get_vm_areas under free_vmap_area_lock, for the one area that a machine with one memory node asks for."""
    x = q.context[int(op["context"])]
    if int(x["asking"]) != 2:
        return
    if int(x["row"]) != NIL:
        drop_answer(v, x)
    q.offsets[0] = 0
    q.sizes[0] = int(x["size"])
    q.progress[:] = 0
    q.rows[0] = new_area(v, 0)
    cpu = int(op["cpu"])
    base = pcpu_get_vm_areas(v, cpu, q.offsets, q.sizes, int(x["align"]), q.rows, q.progress, False)
    if base == NO_SPARE:
        preload(v, cpu, new_area(v, 0))
        base = pcpu_get_vm_areas(v, cpu, q.offsets, q.sizes, int(x["align"]), q.rows, q.progress, False)
    x["address"] = base
    x["row"] = q.rows[0] if base != OVERFLOW else NIL


# Freeing and purging


@inner
def unlink(v: Any, q: Any, op: Any) -> None:
    """An area leaves the busy tree."""
    x = q.context[int(op["context"])]
    q.counters[V_FREES] += 1
    row = find_vmap_area(v, int(op["ptr"]))
    x["freed"] = NIL
    if row == NIL or int(v.area[row]["va_start"]) != int(op["ptr"]) or int(v.area[row]["va_end"]) != int(op["end"]):
        q.counters[V_UNKNOWN] += 1
        differ_area(q, op, D_FREE, int(op["ptr"]), NOTHING)
        return
    if int(v.area[row]["vm"]) < 0:
        forget_block(v, -int(v.area[row]["vm"]))
    unlink_busy(v, row)
    x["freed"] = row


@inner
def lazy(v: Any, q: Any, op: Any) -> None:
    """It goes to the lazy tree (of the node that asked for it)."""
    x = q.context[int(op["context"])]
    row = int(x["freed"])
    if row == NIL:
        return
    if lazy_node(v, row) != int(op["node"]):
        q.counters[V_MIGRATED] += 1
        v.area[row]["flags"] = (int(v.area[row]["flags"]) & VMAP_FLAGS_MASK) | (int(op["node"]) + 1) << 8
    free_vmap_area_noflush(v, row)
    x["freed"] = NIL


@inner
def detach(v: Any, q: Any, op: Any) -> None:
    """All lazy areas of a node are taken away."""
    node = int(op["node"])
    v.config[0]["drain"] = 0
    q.counters[V_PURGES] += 1
    q.purged[0] += int(v.tree[int(v.config[0]["lazy_tree"]) + node]["nr"])
    detach_lazy(v, node)


@inner
def merge(v: Any, q: Any, op: Any) -> None:
    """6.1: the next of them has been merged into the free tree."""
    q.counters[V_MERGES] += 1
    before = int(v.config[0]["lazy_nr"])
    purge_one(v, 0)
    pages = before - int(v.config[0]["lazy_nr"])
    if pages == int(op["arg"]):
        q.counters[V_MERGES_EQUAL] += 1
    else:
        differ_area(q, op, D_MERGE, int(op["arg"]), pages)


@slow
def decay_pool(v: Any, q: Any, op: Any) -> None:
    """6.12: a pool is taken away, a quarter of it (all of it, if that is less than one or a full decay) goes to the list that is given back to the free tree."""
    node = int(op["node"])
    pool = int(v.config[0]["pool_base"]) + node * MAX_VA_SIZE_PAGES + int(op["arg"])
    local = int(v.config[0]["local_tree"])
    length = int(v.tree[pool]["nr"])
    count = length >> 2
    if int(v.config[0]["skip_populate"]) or count == 0:
        count = length
    for _ in range(count):
        row = int(v.area[pool]["next"])
        list_del_area(v, pool, row)
        v.area[row]["state"] = AREA_HELD
        merge_or_add(v, local, row, AREA_HELD, False)
    q.hidden[node] = pool


@slow
def sort_out(v: Any, q: Any, node: int, one: bool) -> int:
    """6.12's purge_vmap_node: the node's areas to be purged go to its pools, others to the list that is given back; with `one` until one is in a pool. Returns the pages."""
    config = v.config[0]
    head = int(config["purge_tree"]) + node
    row = int(v.area[head]["next"])
    pages = 0
    while row != head:
        after = int(v.area[row]["next"])
        list_del_area(v, head, row)
        pages += (int(v.area[row]["va_end"]) - int(v.area[row]["va_start"])) >> PAGE_SHIFT
        asked = (int(v.area[row]["flags"]) >> 8) - 1
        if 0 <= asked < int(config["nr_nodes"]) and not int(config["skip_populate"]) and node_pool_add_va(v, node, row):
            if one:
                break
        else:
            v.area[row]["state"] = AREA_HELD
            v.area[row]["next"] = q.local[node]
            q.local[node] = row
        row = after
    return pages


@slow
def purge_node_op(v: Any, q: Any, op: Any, kind: int) -> None:
    """The marks of purge_vmap_node."""
    x = q.context[int(op["context"])]
    if kind == K_PURGE_NODE:
        x["purging"] = int(op["node"])
        return
    if kind == K_POOL_ADD:
        v.config[0]["lazy_nr"] -= sort_out(v, q, int(op["node"]), True)
        return
    node = int(x["purging"])
    if kind == K_LAZY_SUB and node >= 0:
        v.config[0]["lazy_nr"] -= sort_out(v, q, node, False)
        if q.local[node] == NIL:
            x["purging"] = -1
        return
    if node < 0:  # the end of a decay
        if kind == K_RECLAIM:
            reclaim_list_global(v)
        return
    row = q.local[node]
    while row != NIL:
        after = int(v.area[row]["next"])
        merge_or_add_augment(v, row)
        row = after
    q.local[node] = NIL
    x["purging"] = -1


# vm_map_ram


@slow
def block_op(v: Any, q: Any, op: Any, kind: int) -> None:
    """A section under a block's lock or that of a queue of blocks; what is left free and dirty is the kernel's answer."""
    x = q.context[int(op["context"])]
    if int(op["node"]) >= 0:
        if kind == K_BLOCK_TAKE and int(x["block_area"]) != NIL:
            address = new_vmap_block(v, int(op["node"]), int(x["block_area"]), int(x["order"]), 0)
            x["piece"] = address
            x["cut"] = 1
            x["block_area"] = NIL
        return
    block = block_at(v, int(op["ptr"]))
    if block == NIL:
        q.counters[V_BLOCKS] += 1
        differ_area(q, op, D_FREE, int(op["ptr"]), NOTHING)
        return
    entry = v.block[block]
    pages = int(v.config[0]["block_pages"])
    if kind == K_BLOCK_TAKE:
        order = int(x["order"])
        if order < 0 or int(x["cut"]) or int(entry["free"]) < 1 << order:
            return
        expected = find_block(v, int(op["cpu"]), order)
        piece = cut_piece(v, block, order)
        x["piece"] = piece if expected == block else NOTHING
        x["cut"] = 1
    elif kind == K_BLOCK_FREE:
        order = int(x["returned_order"])
        if order < 0 or int(x["cleared"]):
            x["cleared"] = 0
            return
        soil_piece(v, block, int(x["returned"]), order)
        x["returned_order"] = -1
    elif not purge_fragmented_block(v, block, kind == K_BLOCK_PURGE) and kind == K_BLOCK_FLUSH and int(entry["dirty_max"]) and int(entry["dirty"]) != pages:
        entry["dirty_min"] = pages
        entry["dirty_max"] = 0
    q.counters[V_BLOCKS] += 1
    if int(entry["free"]) == int(op["arg"]) and int(entry["dirty"]) == int(op["size"]):
        q.counters[V_BLOCKS_EQUAL] += 1
    else:
        differ_area(q, op, D_BLOCK, int(op["arg"]) << 16 | int(op["size"]), int(entry["free"]) << 16 | int(entry["dirty"]))
        if int(op["arg"]) >= 0 and int(op["size"]) >= 0 and int(op["arg"]) + int(op["size"]) <= pages:
            mend_block(v, block, int(op["arg"]), int(op["size"]))


@slow
def ram_op(v: Any, q: Any, op: Any, kind: int) -> None:
    """vm_map_ram and vm_unmap_ram begin and end."""
    x = q.context[int(op["context"])]
    order = 0
    while kind != K_RAM_RESULT and 1 << order < int(op["arg"]):  # get_order
        order += 1
    if kind == K_RAM:
        x["order"] = order
        x["piece"] = NOTHING
        x["cut"] = 0
        x["block_area"] = NIL
    elif kind == K_UNRAM:
        x["returned"] = int(op["ptr"])
        x["returned_order"] = order
        x["cleared"] = int(v.config[0]["version"]) >= NODES
    elif int(x["order"]) >= 0:
        x["order"] = -1
        if int(op["arg"]) == 0:  # it had no room; alloc_vmap_area said so
            return
        q.counters[V_PIECES] += 1
        if int(x["piece"]) == int(op["ptr"]):
            q.counters[V_PIECES_EQUAL] += 1
        else:
            differ_area(q, op, D_PIECE, int(op["ptr"]), int(x["piece"]))


@slow
def rare(v: Any, q: Any, op: Any, kind: int) -> None:
    """Whatever does not happen at every vmalloc and vfree."""
    x = q.context[int(op["context"])]
    if kind == K_PERCPU:
        x["asking"] = 2 if int(op["arg"]) == 1 else 0
        x["size"] = int(op["size"])
        x["align"] = int(op["align"])
        x["flags"] = 0
        x["mark"] = 0
        x["address"] = NOTHING
        x["row"] = NIL
    elif kind == K_PERCPU_SEARCH:
        percpu_search(v, q, op)
    elif K_DECAY <= kind <= K_RECLAIM and int(v.config[0]["version"]) < NODES:
        return
    elif kind == K_DECAY:
        v.config[0]["skip_populate"] = int(op["arg"])
        q.hidden[int(op["node"])] = NIL
    elif kind == K_POOL_OUT:
        decay_pool(v, q, op)
    elif kind == K_POOL_BACK:
        q.hidden[int(op["node"])] = NIL
    elif K_PURGE_NODE <= kind <= K_RECLAIM:
        if kind == K_RECLAIM and int(x["purging"]) < 0:
            q.hidden[:] = NIL
        purge_node_op(v, q, op, kind)
    elif kind == K_TRACE_PURGE:
        q.counters[V_PURGED] += 1
        if q.purged[0] == int(op["arg"]):
            q.counters[V_PURGED_EQUAL] += 1
        else:
            differ_area(q, op, D_MERGE, int(op["arg"]), q.purged[0])
        q.purged[0] = 0
    elif K_RAM <= kind <= K_UNRAM:
        ram_op(v, q, op, kind)
    elif kind >= K_BLOCK_TAKE:
        block_op(v, q, op, kind)


@kernel
def replay_vmap_ops(v: Vmalloc, q: Vmaps, ops: npt.NDArray[np.void]) -> None:
    """Executes operations in order."""
    for i in range(len(ops)):
        op = ops[i]
        kind = int(op["kind"])
        if kind == K_REQUEST:
            request(v, q, op)
        elif kind == K_OFFER:
            preload(v, int(op["cpu"]), new_area(v, 0))
        elif kind == K_SEARCH:
            search(v, q, op)
        elif kind == K_POOL_TAKE:
            pool_take(v, q, op)
        elif kind == K_BUSY:
            busy(v, q, op)
        elif kind == K_RESULT:
            result(v, q, op)
        elif kind == K_UNLINK:
            unlink(v, q, op)
        elif kind == K_LAZY:
            lazy(v, q, op)
        elif kind == K_DETACH:
            detach(v, q, op)
        elif kind == K_MERGE:
            merge(v, q, op)
        elif kind > K_MERGE or kind == K_TRACE_PURGE:
            rare(v, q, op, kind)
        v.config[0]["freed"] = 0  # the objects are the slab allocator's business


CHUNK = 1 << 18
ADDRESSES = tuple(VMAP_KINDS.index(kind) for kind in ("vmap_request", "vmap_busy", "vmap_unlink", "vmap_ram_result", "vmap_unram")) + tuple(
    i for i, kind in enumerate(VMAP_KINDS) if kind.startswith("vmap_block_")
)
"""Kinds whose ptr is an address; vmap_result's is an object or an error, which is put into arg (as is vm_map_ram's answer, to tell whether it is one)."""


def vmap_ops(events: pl.DataFrame) -> tuple[npt.NDArray[np.void], int]:
    """The operations of a recording in their order, and the number of contexts."""
    wanted = events.with_row_index("event").filter(pl.col("kind").cast(pl.String).is_in(VMAP_KINDS))
    number = {kind: i for i, kind in enumerate(VMAP_KINDS)}
    ops = np.zeros(len(wanted), dtype=VMAP_OP)
    kind = np.array([number[k] for k in wanted["kind"].to_list()], dtype=np.int64)
    for name, source in (
        ("event", "event"),
        ("ptr", "ptr"),
        ("end", "call_site"),
        ("size", "bytes_req"),
        ("align", "bytes_alloc"),
        ("arg", "arg"),
        ("node", "node"),
        ("cpu", "cpu"),
    ):
        ops[name] = wanted[source].to_numpy()
    answers = np.isin(kind, (K_RESULT, K_RAM_RESULT))
    ops["arg"][answers] = ops["ptr"][answers]
    addresses = np.isin(kind, ADDRESSES)
    ops["ptr"][addresses] ^= SIGN
    ops["end"] ^= SIGN
    ops["kind"] = kind
    tasks, context = np.unique(wanted["pid"].to_numpy(), return_inverse=True)
    ops["context"] = context
    return ops, len(tasks)


def new_vmaps(state: Vmalloc, contexts: int) -> Vmaps:
    """The loop's state before the first operation."""
    context = np.zeros(max(contexts, 1), dtype=VMAP_CONTEXT)
    context["purging"], context["order"], context["returned_order"], context["address"] = -1, -1, -1, NOTHING
    nodes = int(state.config[0]["nr_nodes"])
    one = [np.zeros(1, np.int64) for _ in range(3)]
    return Vmaps(
        np.zeros(len(VMAP_COUNTERS), np.int64),
        np.zeros(KEPT, VMAP_DIFFERENCE),
        context,
        np.full(nodes, NIL, np.int64),
        np.full(nodes, NIL, np.int64),
        *one,
        np.zeros(2, np.int64),
        np.zeros(1, np.int64),
    )


def run_vmaps(state: Vmalloc, ops: npt.NDArray[np.void], contexts: int, progress: Callable[[int], None] = lambda done: None) -> VmapOutcome:
    """Replays operations on `state`, which is changed (the outcome holds the tables, which may have grown).

    :param progress: called with the number of operations done after each chunk.
    """
    q = new_vmaps(state, contexts)
    for start in range(0, len(ops), CHUNK):
        chunk = ops[start : start + CHUNK]
        kinds = np.bincount(chunk["kind"], minlength=len(VMAP_KINDS))
        rows = 3 * int(kinds[[K_SEARCH, K_OFFER, K_BUSY, K_RESULT, K_PERCPU_SEARCH]].sum()) + 16  # what an operation may use, after a difference too
        state = reserve_areas(state, areas=rows, blocks=int(kinds[K_BLOCK_TAKE]) + 4)
        replay_vmap_ops(state, q, chunk)
        progress(min(start + CHUNK, len(ops)))
    counters = {name: int(q.counters[i]) for i, name in enumerate(VMAP_COUNTERS)}
    return VmapOutcome(state, counters, q.differences[q.differences["event"] > 0])
