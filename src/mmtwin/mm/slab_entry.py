"""What Python calls: the slab allocator behind a handle. Addresses are physical here; errors are negative."""

from __future__ import annotations

from typing import Any

from mmtwin._jit import kernel
from mmtwin.mm.handle import tables_at
from mmtwin.mm.kmalloc import cache_free, kfree, kmalloc, large_order
from mmtwin.mm.page_alloc import EINVAL
from mmtwin.mm.slab_tables import END
from mmtwin.mm.slub import SLOT_BITS, SLOT_MASK, flush_cpu, free_bulk, is_allocated, object_address, object_at, shrink, shutdown_cache, slab_alloc

EBUSY = 16


@kernel
def kmalloc_entry(handle: int, size: int, gfp: int, cpu: int) -> int:
    """`kmalloc`."""
    b, s = tables_at(handle)
    return kmalloc(b, s, size, gfp, cpu)


@kernel
def kfree_entry(handle: int, physical: int, cpu: int) -> int:
    """`kfree`."""
    b, s = tables_at(handle)
    return kfree(b, s, physical, cpu)


@kernel
def cache_alloc_entry(handle: int, cache: int, gfp: int, cpu: int) -> int:
    """``kmem_cache_alloc``."""
    b, s = tables_at(handle)
    packed = slab_alloc(b, s, cache, cpu, gfp)
    return packed if packed < 0 else object_address(s, packed) - int(s.config[0]["page_offset"])


@kernel
def cache_free_entry(handle: int, cache: int, physical: int, cpu: int) -> int:
    """``kmem_cache_free``."""
    b, s = tables_at(handle)
    return cache_free(b, s, cache, physical, cpu)


@kernel
def alloc_bulk_entry(handle: int, cache: int, gfp: int, cpu: int, out: Any) -> int:
    """``kmem_cache_alloc_bulk``: fills `out`; returns how many, fewer with the error that stopped it in the next place."""
    b, s = tables_at(handle)
    for i in range(len(out)):
        packed = slab_alloc(b, s, cache, cpu, gfp)
        if packed < 0:
            out[i] = packed
            return i
        out[i] = object_address(s, packed) - int(s.config[0]["page_offset"])
    return len(out)


@kernel
def free_bulk_entry(handle: int, cache: int, cpu: int, physical: Any) -> int:
    """``kmem_cache_free_bulk`` (any cache: -1, and large ones: ``kfree_bulk``). `physical` is used up. 0, or an error and nothing was freed."""
    b, s = tables_at(handle)
    for i in range(len(physical)):
        packed = object_at(b, s, physical[i] + int(s.config[0]["page_offset"]))
        if packed == END and (cache >= 0 or large_order(b, physical[i]) < 0):
            return -EINVAL
        if packed >= 0:
            if not is_allocated(s, packed):
                return -EBUSY
            if cache >= 0 and int(s.slab[packed >> SLOT_BITS]["cache"]) != cache:
                return -EINVAL
            physical[i] = packed
        elif packed == END:
            physical[i] = -physical[i]
        else:
            return -EINVAL
    free_bulk(b, s, cpu, physical)
    return 0


@kernel
def shrink_entry(handle: int, cache: int, cpu: int) -> int:
    """``kmem_cache_shrink``: how many slabs are left."""
    b, s = tables_at(handle)
    shrink(b, s, cache, cpu)
    return int(s.cache[cache]["nr_slabs"])


@kernel
def flush_entry(handle: int, cache: int, cpu: int) -> None:
    """``flush_cpu_slab``."""
    b, s = tables_at(handle)
    flush_cpu(b, s, cache, cpu)


@kernel
def destroy_entry(handle: int, cache: int, cpu: int) -> int:
    """``__kmem_cache_shutdown``: all empty slabs go; returns how many with objects are left."""
    b, s = tables_at(handle)
    return shutdown_cache(b, s, cache, cpu)


@kernel
def object_entry(handle: int, physical: int) -> tuple[int, int, int, int]:
    """What is at an address: cache (-1: none), slab row, slot, and 1 if the object is handed out; slot -1 if no object begins here."""
    b, s = tables_at(handle)
    packed = object_at(b, s, physical + int(s.config[0]["page_offset"]))
    if packed == END:
        return -1, -1, -1, 0
    if packed < 0:
        return -1, -1, -1, -1
    row = packed >> SLOT_BITS
    return int(s.slab[row]["cache"]), row, packed & SLOT_MASK, 1 if is_allocated(s, packed) else 0
