"""Who asked for a page: the first frame of a call chain that is not the page allocator's own.

mm_page_alloc is raised deep inside the allocator, below wrappers whose names change with nearly every release. perf kmem looks for the *last* frame that
matches ``^_?_?(alloc|get_free|get_zeroed)_pages?`` (tools/perf/builtin-kmem.c), which since 6.16 matches none, so that all callers become one.
Here the functions are data: every name of the allocator and its wrappers that mmtwin knows, of all versions, without the endings that compilers and
memory allocation profiling (``_noprof``, since 6.10) add.
"""

from __future__ import annotations

import re

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
