"""vm_map_ram for up to `BITS_PER_LONG` pages: blocks of address space, kept in a queue per CPU, from which pieces are cut and never given again (mm/vmalloc.c).

A piece is 2^order pages. A freed piece only counts as dirty; the block's area is freed when all of it is dirty, or at a purge when nothing in it is in use.
The kernel finds a block by its address in an xarray; here the busy area leads to it (`VMAP_AREA.vm` is minus the block's row), and a list of all blocks by address
stands for walks over the xarray. 6.12's bitmap of pages in use serves reads only and is not kept.
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, slow
from mmtwin.mm.vmalloc import find_vmap_area, free_vmap_area_noflush, unlink_busy
from mmtwin.mm.vmap_node import purge
from mmtwin.mm.vmap_tables import FREED_BLOCK, NIL, ZERO_BYTES
from mmtwin.mm.vmap_tree import NO_ROOM, log_freed
from mmtwin.units import PAGE_SHIFT

NO_BLOCK = -3
"""No block of this CPU's has room (the caller makes one), or no block is at the address."""
ON_QUEUE, OFF_QUEUE = 1, 2
"""`VMAP_BLOCK.state`; 0 is a row that is not in use."""


@inner
def block_bytes(v: Any) -> int:
    """``VMAP_BLOCK_SIZE``: size and alignment of a block's area."""
    return int(v.config[0]["block_pages"]) << PAGE_SHIFT


@inner
def _queue_del(v: Any, block: int) -> None:
    after, before = int(v.block[block]["next"]), int(v.block[block]["prev"])
    v.block[before]["next"] = after
    v.block[after]["prev"] = before
    v.block[block]["state"] = OFF_QUEUE
    v.config[0]["list_steps"] += 1


@slow
def _new_row(v: Any) -> int:
    config = v.config[0]
    block = int(config["free_block"])
    if block != NIL:
        config["free_block"] = int(v.block[block]["next"])
    else:
        block = int(config["blocks"])
        if block >= len(v.block):
            return NO_ROOM
        config["blocks"] = block + 1
    config["blocks_in_use"] += 1
    return block


@slow
def new_vmap_block(v: Any, cpu: int, row: int, order: int, kernel_object: int) -> int:
    """``new_vmap_block`` after its area was allocated (`block_bytes` of it): its first piece's address; the block goes to the end of the CPU's queue."""
    config = v.config[0]
    block = _new_row(v)
    if block == NO_ROOM:
        return NO_ROOM
    pages = int(config["block_pages"])
    address = int(v.area[row]["va_start"])
    entry = v.block[block]
    entry["object"] = kernel_object
    entry["area"] = row
    entry["free"] = pages - (1 << order)
    entry["dirty"] = 0
    entry["dirty_min"] = pages
    entry["dirty_max"] = 0
    entry["cpu"] = cpu
    entry["state"] = ON_QUEUE
    v.area[row]["vm"] = -block
    everyone = int(config["block_heads"]) - 1
    before = int(v.block[everyone]["xa_prev"])
    while before != everyone and int(v.area[int(v.block[before]["area"])]["va_start"]) > address:
        before = int(v.block[before]["xa_prev"])
    after = int(v.block[before]["xa_next"])
    entry["xa_prev"] = before
    entry["xa_next"] = after
    v.block[before]["xa_next"] = block
    v.block[after]["xa_prev"] = block
    last = int(v.block[cpu]["prev"])
    entry["next"] = cpu
    entry["prev"] = last
    v.block[last]["next"] = block
    v.block[cpu]["prev"] = block
    config["list_steps"] += 2
    return address


@inner
def find_block(v: Any, cpu: int, order: int) -> int:
    """The first block of the CPU's queue that has 2^order pages, NIL if none has."""
    block = int(v.block[cpu]["next"])
    steps = 0
    while block != cpu:
        steps += 1
        if int(v.block[block]["free"]) >= 1 << order:
            break
        block = int(v.block[block]["next"])
    v.config[0]["list_steps"] += steps
    return NIL if block == cpu else block


@inner
def cut_piece(v: Any, block: int, order: int) -> int:
    """2^order pages from a block that has them: their address. A block without free pages is on no queue."""
    free = int(v.block[block]["free"])
    address = int(v.area[int(v.block[block]["area"])]["va_start"]) + ((int(v.config[0]["block_pages"]) - free) << PAGE_SHIFT)
    v.block[block]["free"] = free - (1 << order)
    if free == 1 << order:
        _queue_del(v, block)
    return address


@inner
def vb_alloc(v: Any, cpu: int, order: int) -> int:
    """``vb_alloc``: 2^order pages from the first block of the CPU's queue that has as many; their address, or `NO_BLOCK`: the caller makes a block."""
    block = find_block(v, cpu, order)
    return NO_BLOCK if block == NIL else cut_piece(v, block, order)


@slow
def forget_block(v: Any, block: int) -> None:
    """A block is no longer one (``xa_erase``, ``kfree_rcu``); its area stays."""
    config = v.config[0]
    entry = v.block[block]
    after, before = int(entry["xa_next"]), int(entry["xa_prev"])
    v.block[before]["xa_next"] = after
    v.block[after]["xa_prev"] = before
    v.area[int(entry["area"])]["vm"] = NIL
    log_freed(v, int(entry["object"]), FREED_BLOCK)
    entry["state"] = 0
    entry["area"] = NIL
    entry["next"] = int(config["free_block"])
    config["free_block"] = block
    config["blocks_in_use"] -= 1


@slow
def free_vmap_block(v: Any, block: int) -> int:
    """``free_vmap_block``: its area is freed lazily, the block itself after a grace period. Returns 1 if the drain work was scheduled."""
    row = int(v.block[block]["area"])
    unlink_busy(v, row)
    scheduled = free_vmap_area_noflush(v, row)
    forget_block(v, block)
    return scheduled


@inner
def block_at(v: Any, address: int) -> int:
    """The block that an address is in, NIL if it is in none."""
    row = find_vmap_area(v, address)
    return -int(v.area[row]["vm"]) if row != NIL and int(v.area[row]["vm"]) < 0 else NIL


@inner
def soil_piece(v: Any, block: int, address: int, order: int) -> bool:
    """A piece of a block becomes dirty; true if all of the block is now."""
    entry = v.block[block]
    offset = (address & (block_bytes(v) - 1)) >> PAGE_SHIFT
    pages = 1 << order
    if offset < int(entry["dirty_min"]):
        entry["dirty_min"] = offset
    if offset + pages > int(entry["dirty_max"]):
        entry["dirty_max"] = offset + pages
    dirty = int(entry["dirty"]) + pages
    entry["dirty"] = dirty
    return dirty == int(v.config[0]["block_pages"])


@inner
def vb_free(v: Any, address: int, order: int) -> int:
    """``vb_free``: a piece becomes dirty; with its last piece the block is freed. 1 if the drain work was scheduled, else 0; `NO_BLOCK` if there is no block."""
    block = block_at(v, address)
    if block == NIL:
        return NO_BLOCK
    return free_vmap_block(v, block) if soil_piece(v, block, address, order) else 0


@inner
def purge_fragmented_block(v: Any, block: int, force: bool) -> bool:
    """``purge_fragmented_block``: takes a block of which nothing is in use off its queue. 6.12 leaves it alone while a quarter is free, unless forced to."""
    pages = int(v.config[0]["block_pages"])
    entry = v.block[block]
    free, dirty = int(entry["free"]), int(entry["dirty"])
    if free + dirty != pages or dirty == pages or not (force or free < pages // 4):
        return False
    entry["free"] = 0
    entry["dirty"] = pages
    entry["dirty_min"] = 0
    entry["dirty_max"] = pages
    _queue_del(v, block)
    return True


@slow
def mend_block(v: Any, block: int, free: int, dirty: int) -> None:
    """What a block has free and dirty is what somebody else says (a replay, after a difference)."""
    entry = v.block[block]
    entry["free"] = free
    entry["dirty"] = dirty
    if free == 0 and int(entry["state"]) == ON_QUEUE:
        _queue_del(v, block)


@slow
def _free_purged_blocks(v: Any, first: int) -> None:
    """``free_purged_blocks``: all of the chain."""
    while first != NIL:
        after = int(v.block[first]["purge"])
        free_vmap_block(v, first)
        first = after


@slow
def purge_fragmented_blocks(v: Any, cpu: int) -> None:
    """``purge_fragmented_blocks``: frees the blocks of a CPU's queue of which nothing is in use."""
    first, last = NIL, NIL
    block = int(v.block[cpu]["next"])
    while block != cpu:
        after = int(v.block[block]["next"])
        if purge_fragmented_block(v, block, True):
            v.block[block]["purge"] = NIL
            if last == NIL:
                first = block
            else:
                v.block[last]["purge"] = block
            last = block
        block = after
    _free_purged_blocks(v, first)


@slow
def purge_vmap_areas(v: Any) -> bool:
    """``purge_vmap_area_lazy()`` and 6.12's ``reclaim_and_purge_vmap_areas()``: what an allocation that finds no room does before it tries again."""
    for cpu in range(int(v.config[0]["nr_cpus"])):
        purge_fragmented_blocks(v, cpu)
    return purge(v, int(v.config[0]["ulong_max"]), ZERO_BYTES, True)


@slow
def vm_unmap_aliases(v: Any, start: int, end: int, flush: bool) -> int:
    """``_vm_unmap_aliases``: purges, and flushes [start, end) and dirty pieces with it; `vm_unmap_aliases()` itself passes ULONG_MAX, 0 and False.

    Returns 1 if areas were purged, 2 if only the range in `config.flush_start` and `flush_end` was flushed, 0 if nothing was.
    """
    config = v.config[0]
    pages, size = int(config["block_pages"]), block_bytes(v)
    cpus, old = int(config["nr_cpus"]), int(config["version"]) < 609
    everyone = int(config["block_heads"]) - 1
    first, last = NIL, NIL
    for cpu in range(cpus):
        block = int(v.block[cpu]["next"]) if old else int(v.block[everyone]["xa_next"])
        while block != (cpu if old else everyone):
            entry = v.block[block]
            address = int(v.area[int(entry["area"])]["va_start"])
            after = int(entry["next"]) if old else int(entry["xa_next"])
            if old or (address // size - ZERO_BYTES // size) % cpus == cpu:
                if not old and purge_fragmented_block(v, block, False):
                    entry["purge"] = NIL
                    if last == NIL:
                        first = block
                    else:
                        v.block[last]["purge"] = block
                    last = block
                elif int(entry["dirty"]) != pages and (int(entry["dirty"]) if old else int(entry["dirty_max"])):
                    low = address + (int(entry["dirty_min"]) << PAGE_SHIFT)
                    high = address + (int(entry["dirty_max"]) << PAGE_SHIFT)
                    start = low if low < start else start
                    end = high if high > end else end
                    flush = True
                    if not old:
                        entry["dirty_min"] = pages
                        entry["dirty_max"] = 0
            block = after
    if old:
        for cpu in range(cpus):
            purge_fragmented_blocks(v, cpu)
    else:
        _free_purged_blocks(v, first)
    if purge(v, start, end, False):
        return 1
    if flush:
        config["flush_start"] = start
        config["flush_end"] = end
        config["flushes"] += 1
        return 2
    return 0
