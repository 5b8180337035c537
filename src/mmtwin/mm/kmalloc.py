"""kmalloc: a size becomes a cache, or pages when it is above the largest (mm/slab_common.c)."""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, slow
from mmtwin.mm.page_alloc import EINVAL, ENOENT, ENOMEM, alloc_pages_cold, free_pages_prepare, free_the_page_cold
from mmtwin.mm.slab_tables import END, KMALLOC_INDEXES
from mmtwin.mm.slub import GFP_SLAB_BUG, SLOT_BITS, SLOT_MASK, is_allocated, object_address, object_at, slab_alloc, slab_free
from mmtwin.mm.tables import MAX_ORDER, PG_ALLOCATED

PAGE_SHIFT = 12
KMALLOC_MAX_CACHE_SIZE = 8192
ZERO_SIZE_PTR = 16
EBUSY = 16
GFP_COMP = 0x40000
GFP_DMA, GFP_RECLAIMABLE, GFP_ACCOUNT = 0x1, 0x10, 0x400000
KMALLOC_NORMAL, KMALLOC_CGROUP, KMALLOC_RECLAIM, KMALLOC_DMA = range(4)


@inner
def kmalloc_index(size: int) -> int:
    """The row of ``kmalloc_info``: 1 is 96 bytes, 2 is 192, i from 3 on is 2^i."""
    if size <= 8:
        return 3
    if size <= 192:
        if size <= 64:
            return 4 if size <= 16 else 5 if size <= 32 else 6
        return 1 if size <= 96 else 7 if size <= 128 else 2
    if size <= 1024:
        return 8 if size <= 256 else 9 if size <= 512 else 10
    return 11 if size <= 2048 else 12 if size <= 4096 else 13


@inner
def kmalloc_type(gfp: int) -> int:
    """``kmalloc_type``: ordinary, charged to a cgroup, reclaimable, or for DMA."""
    if not gfp & (GFP_DMA | GFP_RECLAIMABLE | GFP_ACCOUNT):
        return KMALLOC_NORMAL
    if gfp & GFP_DMA:
        return KMALLOC_DMA
    return KMALLOC_RECLAIM if gfp & GFP_RECLAIMABLE else KMALLOC_CGROUP


@inner
def kmalloc_slab(s: Any, size: int, gfp: int) -> int:
    """``kmalloc_slab``: the cache for a size from 1 to KMALLOC_MAX_CACHE_SIZE."""
    return int(s.kmalloc[kmalloc_type(gfp) * KMALLOC_INDEXES + kmalloc_index(size)])


@inner
def get_order(size: int) -> int:
    """``get_order``: the order of the smallest block that holds `size` bytes; anything above MAX_ORDER is MAX_ORDER + 1."""
    order = 0
    while order <= MAX_ORDER and 1 << (PAGE_SHIFT + order) < size:
        order += 1
    return order


@slow
def kmalloc_large(b: Any, s: Any, size: int, gfp: int, cpu: int) -> int:
    """``__kmalloc_large_node``: the address, or a negative error."""
    order = get_order(size)
    if order > MAX_ORDER:
        return -ENOMEM
    pfn = alloc_pages_cold(b, cpu, order, gfp & ~GFP_SLAB_BUG | GFP_COMP, False)
    return pfn if pfn < 0 else pfn << PAGE_SHIFT


@inner
def kmalloc(b: Any, s: Any, size: int, gfp: int, cpu: int) -> int:
    """``kmalloc`` of 1 byte or more: the physical address, or a negative error."""
    if size > KMALLOC_MAX_CACHE_SIZE:
        return kmalloc_large(b, s, size, gfp, cpu)
    packed = slab_alloc(b, s, kmalloc_slab(s, size, gfp), cpu, gfp)
    return packed if packed < 0 else object_address(s, packed) - int(s.config[0]["page_offset"])


@inner
def large_order(b: Any, physical: int) -> int:
    """The order of the page block that begins at an address and is allocated; -1 if there is none."""
    pfn = physical >> PAGE_SHIFT
    if physical & ((1 << PAGE_SHIFT) - 1) or pfn < 0 or pfn >= int(b.config[0]["nr_frames"]):
        return -1
    entry = b.page[pfn]
    return int(entry["order"]) if int(entry["flags"]) & PG_ALLOCATED else -1


@slow
def free_large(b: Any, physical: int, cpu: int) -> int:
    """``free_large_kmalloc``: 0, -EINVAL if no large allocation begins here."""
    order = large_order(b, physical)
    if order < 0:
        return -EINVAL
    pfn = physical >> PAGE_SHIFT
    free_pages_prepare(b, pfn, order)
    free_the_page_cold(b, cpu, pfn, order)
    return 0


@inner
def kfree(b: Any, s: Any, physical: int, cpu: int) -> int:
    """``kfree`` of an address that is neither 0 nor ZERO_SIZE_PTR: 0, -EINVAL (nothing begins here), -EBUSY (free already)."""
    packed = object_at(b, s, physical + int(s.config[0]["page_offset"]))
    if packed == END:
        return free_large(b, physical, cpu)
    if packed < 0:
        return -EINVAL
    if not is_allocated(s, packed):
        return -EBUSY
    slot = packed & SLOT_MASK
    slab_free(b, s, cpu, packed >> SLOT_BITS, slot, slot, 1)
    return 0


@inner
def cache_free(b: Any, s: Any, c: int, physical: int, cpu: int) -> int:
    """``kmem_cache_free``: as `kfree`; -ENOENT if the object belongs to another cache."""
    packed = object_at(b, s, physical + int(s.config[0]["page_offset"]))
    if packed < 0:
        return -EINVAL
    if int(s.slab[packed >> SLOT_BITS]["cache"]) != c:
        return -ENOENT
    if not is_allocated(s, packed):
        return -EBUSY
    slot = packed & SLOT_MASK
    slab_free(b, s, cpu, packed >> SLOT_BITS, slot, slot, 1)
    return 0
