"""Who asked for a page: the first frame of a call chain that is not the page allocator's own.

mm_page_alloc is raised deep inside the allocator, below wrappers whose names change with nearly every release. perf kmem looks for the *last* frame that
matches ``^_?_?(alloc|get_free|get_zeroed)_pages?`` (tools/perf/builtin-kmem.c), which since 6.16 matches none, so that all callers become one.
Here the functions are data: every name of the allocator and its wrappers that mmtwin knows, of all versions, without the endings that compilers and
memory allocation profiling (``_noprof``, since 6.10) add.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.recording.readers.binary import Bytes
from mmtwin.recording.symbols import Symbols

Int = npt.NDArray[np.int64]
CONTEXT_MAX = -4095  # enum perf_callchain_context (include/uapi/linux/perf_event.h): numbers above are marks, not addresses
CONTEXT_USER = -512
DEEPEST = 127
"""Frames of a call chain looked at (the kernel's own default limit, kernel.perf_event_max_stack)."""
ALLOCATOR = frozenset({
    # mm/page_alloc.c
    "__alloc_pages", "__alloc_pages_nodemask", "__alloc_frozen_pages", "alloc_frozen_pages_nolock", "alloc_pages_nolock", "try_alloc_pages",
    "__alloc_pages_slowpath", "__alloc_pages_direct_compact", "__alloc_pages_direct_reclaim", "__alloc_pages_may_oom", "__alloc_pages_cpuset_fallback",
    "__alloc_pages_high_priority", "__alloc_pages_internal", "__alloc_pages_bulk", "alloc_pages_bulk", "get_page_from_freelist", "prep_new_page",
    "__folio_alloc", "__get_free_pages", "__get_free_page", "get_zeroed_page", "alloc_pages_exact", "alloc_pages_exact_nid", "make_alloc_exact",
    "__get_dma_pages",
    # include/linux/gfp.h: inline, but compilers keep copies
    "alloc_pages", "alloc_page", "alloc_pages_node", "__alloc_pages_node", "alloc_frozen_pages", "alloc_page_vma", "folio_alloc", "__folio_alloc_node",
    "alloc_pages_bulk_list", "alloc_pages_bulk_array", "alloc_pages_bulk_array_node", "alloc_pages_bulk_node", "get_free_pages",
    # mm/mempolicy.c
    "alloc_pages_current", "alloc_pages_mpol", "alloc_pages_policy", "alloc_pages_vma", "alloc_pages_preferred_many", "alloc_page_interleave",
    "alloc_pages_bulk_array_mempolicy", "alloc_pages_bulk_array_interleave", "alloc_pages_bulk_array_preferred_many", "alloc_pages_bulk_mempolicy",
    "alloc_pages_bulk_interleave", "alloc_pages_bulk_weighted_interleave", "alloc_pages_bulk_preferred_many", "folio_alloc_mpol", "vma_alloc_folio",
    # include/linux/highmem.h: a page for a process
    "alloc_zeroed_user_highpage", "alloc_zeroed_user_highpage_movable", "__alloc_zeroed_user_highpage", "vma_alloc_zeroed_movable_folio",
    # what may stand above the allocator in a chain: the tracepoint itself
    "__traceiter_mm_page_alloc", "perf_trace_mm_page_alloc", "trace_event_raw_event_mm_page_alloc", "perf_trace_run_bpf_submit", "__bpf_trace_mm_page_alloc",
})  # fmt: skip
"""Functions whose caller is asked for instead. Slabs (``allocate_slab``), the page cache (``filemap_alloc_folio``) and vmalloc are callers, not allocators of pages."""
ENDING = re.compile(r"(?:\.(?:isra|constprop|part|cold|llvm|lto_priv)(?:\.\d+)*|_noprof)+$")


def is_allocator(symbol: str) -> bool:
    """Whether `symbol`, as in ``alloc_pages_noprof+0x4c``, is one of the page allocator's functions."""
    name = symbol.partition("+")[0].partition(" ")[0]
    return ENDING.sub("", name) in ALLOCATOR


def page_sites(data: Bytes, chain: Int, frames: Int, symbols: Symbols) -> Int:
    """For each call chain the first address that is not in the page allocator; 0 where there is none.

    :param chain: offset of the first frame of each in `data`; `frames` is how many there are.
    """
    site = np.zeros(len(chain), dtype=np.int64)
    left = np.arange(len(chain))
    known: dict[int, bool] = {}
    for depth in range(DEEPEST):
        left = left[frames[left] > depth]
        if not len(left):
            break
        address = data.ints(chain[left] + 8 * depth, 8)
        mark = (address >= CONTEXT_MAX) & (address < 0)
        for value in pl.Series(address[~mark]).unique().to_list():
            if value not in known:
                known[value] = is_allocator(symbols.resolve(value) or "")
        inside = np.array([value for value, own in known.items() if own], dtype=np.int64)
        chosen = ~mark & ~np.isin(address, inside)
        site[left[chosen]] = address[chosen]
        user = mark & (address <= CONTEXT_USER) & (address > CONTEXT_USER - 128)
        left = left[~chosen & ~user]
    return site
