"""What Python calls: the virtual-area allocator behind a handle (see `handle`). Addresses are biased (`vmap_tables.bias`); rows are positive, errors negative.

An allocation is, as in the kernel: `pool_area_entry` (it answers 0 but in 6.12), else an object for the area and, if the CPU has no spare, one for that, both from the cache
``vmap_area``; then `alloc_area_entry`. If that says `OVERFLOW`, `overflow_purge_entry` and once more. After each call the objects in `Vmalloc.freed` are to be freed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mmtwin._jit import carray, kernel, maker, pointer
from mmtwin.mm.handle import INT64
from mmtwin.mm.vmalloc import OVERFLOW, find_vmap_area, find_vmap_area_exceed_addr, free_vmap_area, free_vmap_area_noflush, take_area, unlink_busy
from mmtwin.mm.vmap_block import new_vmap_block, purge_vmap_areas, vb_alloc, vb_free, vm_unmap_aliases
from mmtwin.mm.vmap_node import drain_vmap_area_work, purge, shrink_pools, take_from_pool
from mmtwin.mm.vmap_percpu import pcpu_get_vm_areas
from mmtwin.mm.vmap_tables import NIL, VM_STRUCT, VMAP_AREA, VMAP_BLOCK, VMAP_CONFIG, VMAP_CPU, VMAP_FREED, VMAP_TREE, Vmalloc
from mmtwin.mm.vmap_tree import NO_ROOM, free_area_row, new_area, preload

NR_TABLES = len(Vmalloc._fields)
NO_OBJECT = -1
"""In place of an object's address: none was allocated. (0 is an object whose address is not known.)"""
GIVE_UP = -2
"""In place of a spare that could not be had: `percpu_areas_entry` undoes what it did."""


def address_table(state: Vmalloc) -> npt.NDArray[np.int64]:
    """Address and length (rows) of each table. Keep it, and the tables, as long as its own address (`.ctypes.data`), the handle, is in use."""
    assert all(table.flags.c_contiguous and table.flags.writeable for table in state)
    return np.array([(table.ctypes.data, len(table)) for table in state], dtype=np.int64)


@maker
def vmalloc_at(handle: int) -> Any:
    """The tables behind an address table's address."""
    t = carray(pointer(handle), (NR_TABLES, 2), INT64)
    return Vmalloc(
        carray(pointer(t[0, 0]), t[0, 1], VMAP_AREA),
        carray(pointer(t[1, 0]), t[1, 1], VM_STRUCT),
        carray(pointer(t[2, 0]), t[2, 1], VMAP_TREE),
        carray(pointer(t[3, 0]), t[3, 1], VMAP_CPU),
        carray(pointer(t[4, 0]), t[4, 1], VMAP_BLOCK),
        carray(pointer(t[5, 0]), t[5, 1], VMAP_FREED),
        carray(pointer(t[6, 0]), t[6, 1], VMAP_CONFIG),
    )


@kernel
def pool_area_entry(handle: int, cpu: int, size: int, align: int, vstart: int, vend: int, va_flags: int) -> int:
    """``node_alloc``: a busy area from the CPU's pool, 0 if there is none: then objects are needed."""
    return take_from_pool(vmalloc_at(handle), cpu, size, align, vstart, vend, va_flags)


@kernel
def alloc_area_entry(handle: int, cpu: int, size: int, align: int, vstart: int, vend: int, va_flags: int, kernel_object: int, spare: int) -> int:
    """``alloc_vmap_area`` with the objects that the caller allocated: the busy area's row.

    :param kernel_object: for the area. With any error it is still the caller's.
    :param spare: for the CPU's spare, `NO_OBJECT` if it has one (`v.cpu`) or none could be had. It is the allocator's then, but with `NO_ROOM`.
    """
    v = vmalloc_at(handle)
    config = v.config[0]
    if len(v.area) - int(config["areas_in_use"]) - int(config["heads"]) < 2:
        return NO_ROOM
    if spare != NO_OBJECT:
        preload(v, cpu, new_area(v, spare))
    row = new_area(v, kernel_object)
    result = take_area(v, cpu, row, size, align, vstart, vend, va_flags)
    if result < 0:
        free_area_row(v, row)
    return result


@kernel
def find_area_entry(handle: int, address: int) -> int:
    """``find_vmap_area``: the busy area that holds an address, 0 if there is none."""
    return find_vmap_area(vmalloc_at(handle), address)


@kernel
def next_area_entry(handle: int, address: int) -> int:
    """``find_vmap_area_exceed_addr``: the first busy area that ends above an address, 0 if there is none."""
    return find_vmap_area_exceed_addr(vmalloc_at(handle), address)


@kernel
def free_area_entry(handle: int, row: int) -> int:
    """``free_vmap_area_noflush`` of a busy area: 1 if the drain work is to run (`drain_entry`), else 0."""
    v = vmalloc_at(handle)
    unlink_busy(v, row)
    return free_vmap_area_noflush(v, row)


@kernel
def give_back_entry(handle: int, row: int) -> None:
    """``free_vmap_area``: a busy area goes back to the free tree at once."""
    free_vmap_area(vmalloc_at(handle), row)


@kernel
def drain_entry(handle: int) -> int:
    """``drain_vmap_area_work``: the number of purges."""
    return drain_vmap_area_work(vmalloc_at(handle))


@kernel
def purge_entry(handle: int, start: int, end: int, full_pool_decay: bool) -> int:
    """``__purge_vmap_area_lazy``: 1 if there was something to purge."""
    return 1 if purge(vmalloc_at(handle), start, end, full_pool_decay) else 0


@kernel
def overflow_purge_entry(handle: int) -> int:
    """``purge_vmap_area_lazy()``, 6.12's ``reclaim_and_purge_vmap_areas()``: 1 if there was something to purge."""
    return 1 if purge_vmap_areas(vmalloc_at(handle)) else 0


@kernel
def unmap_aliases_entry(handle: int, start: int, end: int, flush: bool) -> int:
    """``_vm_unmap_aliases``: 1 purged, 2 only flushed, 0 nothing."""
    return vm_unmap_aliases(vmalloc_at(handle), start, end, flush)


@kernel
def shrink_pools_entry(handle: int) -> int:
    """``vmap_node_shrink_scan``: how many areas left the pools."""
    return shrink_pools(vmalloc_at(handle))


@kernel
def block_alloc_entry(handle: int, cpu: int, order: int) -> int:
    """``vb_alloc`` without making a block: an address, or `NO_BLOCK`."""
    return vb_alloc(vmalloc_at(handle), cpu, order)


@kernel
def new_block_entry(handle: int, cpu: int, row: int, order: int, kernel_object: int) -> int:
    """``new_vmap_block`` in an area of `block_bytes`: the first piece's address."""
    return new_vmap_block(vmalloc_at(handle), cpu, row, order, kernel_object)


@kernel
def block_free_entry(handle: int, address: int, order: int) -> int:
    """``vb_free``: 1 if the drain work is to run, else 0; `NO_BLOCK`."""
    return vb_free(vmalloc_at(handle), address, order)


@kernel
def percpu_areas_entry(handle: int, cpu: int, offsets: Any, sizes: Any, align: int, rows: Any, spare: int, progress: Any) -> int:
    """``pcpu_get_vm_areas``: the base. After `NO_SPARE` call again with the same arrays and a spare, or with `GIVE_UP`.

    :param rows: in: the areas' objects; out: their rows; with `OVERFLOW` the objects again, `NO_OBJECT` for those that are the allocator's now.
    :param spare: `NO_OBJECT` at first.
    :param progress: two numbers, 0 before the first call.
    """
    v = vmalloc_at(handle)
    config = v.config[0]
    if len(v.area) - int(config["areas_in_use"]) - int(config["heads"]) < len(rows) + 1:
        return NO_ROOM
    if spare == NO_OBJECT:
        for i in range(len(rows)):
            rows[i] = new_area(v, rows[i])
    elif spare != GIVE_UP:
        preload(v, cpu, new_area(v, spare))
    result = pcpu_get_vm_areas(v, cpu, offsets, sizes, align, rows, progress, spare == GIVE_UP)
    if result == OVERFLOW:
        for i in range(len(rows)):
            row = int(rows[i])
            rows[i] = int(v.area[row]["object"]) if row != NIL else NO_OBJECT
            if row != NIL:
                free_area_row(v, row)
    return result


@kernel
def bind_vm_entry(handle: int, row: int, kernel_object: int, flags: int, caller: int) -> int:
    """``setup_vmalloc_vm``: a row of `VM_STRUCT` for a busy area, or `NO_ROOM`."""
    v = vmalloc_at(handle)
    config = v.config[0]
    vm = int(config["free_vm"])
    if vm != NIL:
        config["free_vm"] = int(v.vm[vm]["deferred"])
    else:
        vm = int(config["vms"])
        if vm >= len(v.vm):
            return NO_ROOM
        config["vms"] = vm + 1
    config["vms_in_use"] += 1
    size = int(v.area[row]["va_end"]) - int(v.area[row]["va_start"])
    entry = v.vm[vm]
    entry["addr"] = v.area[row]["va_start"]
    entry["size"] = size
    entry["requested_size"] = size
    entry["flags"] = flags
    entry["caller"] = caller
    entry["object"] = kernel_object
    entry["pages"] = 0
    entry["nr_pages"] = 0
    entry["phys_addr"] = 0
    entry["first_pfn"] = 0
    entry["page_order"] = 0
    entry["deferred"] = NIL
    entry["area"] = row
    entry["live"] = 1
    v.area[row]["vm"] = vm
    return vm


@kernel
def free_vm_entry(handle: int, vm: int) -> None:
    """Gives a row of `VM_STRUCT` up (``kfree(vm)``); its area, if it still has one, no longer points to it."""
    v = vmalloc_at(handle)
    entry = v.vm[vm]
    row = int(entry["area"])
    if row != NIL and int(v.area[row]["vm"]) == vm:
        v.area[row]["vm"] = NIL
    entry["area"] = NIL
    entry["live"] = 0
    entry["deferred"] = int(v.config[0]["free_vm"])
    v.config[0]["free_vm"] = vm
    v.config[0]["vms_in_use"] -= 1
