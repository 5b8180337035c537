"""The page frames behind a vmalloc area: how they are asked for, and given back (mm/vmalloc.c, ``vm_area_alloc_pages`` and ``__vunmap``).

An area's frames are chained through ``next`` of the page table in the order of the kernel's page array, so that no array of their numbers has to be kept.
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, kernel
from mmtwin.mm.page_alloc import alloc_pages_bulk, alloc_pages_cold, check_free, free_pages_prepare, free_the_page, split_page
from mmtwin.mm.slub import GFP_NOFAIL

BULK_PAGES = 100
"""Pages of one bulk request: more would keep preemption off for too long."""
END = -1


@inner
def vm_area_alloc_pages(b: Any, cpu: int, gfp: int, order: int, out: Any) -> int:
    """``vm_area_alloc_pages``: fills `out` with the numbers of page frames; returns how many could be had.

    Single pages come from bulk requests of at most 100; after a short one the rest is asked for page by page. Larger blocks are split into pages.
    """
    done = 0
    if order == 0:
        while done < len(out):
            wanted = min(BULK_PAGES, len(out) - done)
            got = alloc_pages_bulk(b, cpu, gfp & ~GFP_NOFAIL, out[done : done + wanted])
            done += max(got, 0)
            if got != wanted:
                break
    while done < len(out):
        pfn = alloc_pages_cold(b, cpu, order, gfp & ~GFP_NOFAIL if order else gfp, False)
        if pfn < 0:
            break
        split_page(b, pfn, order)
        for i in range(1 << order):
            out[done + i] = pfn + i
        done += 1 << order
    return done


@kernel
def vm_area_alloc_pages_kernel(b: Any, cpu: int, gfp: int, order: int, out: Any) -> int:
    """`vm_area_alloc_pages` for callers outside compiled code; the frames it got are chained."""
    done = vm_area_alloc_pages(b, cpu, gfp, order, out)
    for i in range(done):
        b.page[out[i]]["next"] = out[i + 1] if i + 1 < done else END
    return done


@kernel
def chain_pages_kernel(b: Any, pfns: Any) -> None:
    """Chains frames that the caller hands over (VM_MAP_PUT_PAGES)."""
    for i in range(len(pfns)):
        b.page[pfns[i]]["next"] = pfns[i + 1] if i + 1 < len(pfns) else END


@kernel
def area_pages_kernel(b: Any, first: int, out: Any) -> int:
    """The numbers of an area's page frames from its first one on; returns how many there are, at most ``len(out)``."""
    pfn = first
    i = 0
    while pfn != END and i < len(out):
        out[i] = pfn
        pfn = int(b.page[pfn]["next"])
        i += 1
    return i


@kernel
def free_area_pages_kernel(b: Any, cpu: int, first: int, count: int) -> int:
    """Frees an area's `count` pages one by one, in the order of the array; returns how many (fewer: one of them was freed by somebody else)."""
    pfn = first
    for i in range(count):
        if pfn == END or check_free(b, pfn, 0):
            return i
        following = int(b.page[pfn]["next"])
        free_pages_prepare(b, pfn, 0)
        free_the_page(b, cpu, pfn, 0)
        pfn = following
    return count
