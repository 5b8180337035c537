"""What a kernel profile holds. Only data: whatever differs between kernels is a field here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class SlabArch(NamedTuple):
    """Sizes of SLUB's own structs, on which the geometry of caches depends.

    :param word: ``sizeof(void *)``.
    :param track_size: ``sizeof(struct track)``: with SLAB_STORE_USER each object has two, of its allocation and of its last free.
    :param kmem_cache: ``offsetof(struct kmem_cache, node)``: its size without the pointer for each NUMA node.
    :param kmem_cache_node: ``sizeof(struct kmem_cache_node)``.
    """

    word: int = 8
    track_size: int = 32
    kmem_cache: int = 216
    kmem_cache_node: int = 64


SLAB_64_BIT = SlabArch()
SLAB_32_BIT = SlabArch(word=4, track_size=20, kmem_cache=136, kmem_cache_node=32)


@dataclass(frozen=True)
class KernelImage:
    """Where the kernel lies in memory, in page frames.

    :param kept: frames of text, read-only data, data and bss that stay in use, as (start, end) pairs in ascending order.
    :param freed: frames of the image that the kernel frees late in boot (init code, gaps between sections).
    :param near: frames taken right behind the image while booting.
    :param top: frames taken at the top of memory while booting, with one CPU: per-CPU areas, node data, page tables, early tables.
    :param top_per_cpu: frames at the top for each further CPU.
    """

    kept: tuple[tuple[int, int], ...]
    freed: tuple[tuple[int, int], ...]
    near: int
    top: int
    top_per_cpu: int


@dataclass(frozen=True)
class Profile:
    """One kernel: its constants, and the defaults of its sysctls.

    :param name: as in ``mmtwin.boot(name)``.
    :param release: major and minor number, as ``uname -r`` begins.
    :param aliases: other names it is found under.
    :param max_order: highest block order, inclusive.
    :param pageblock_order: order of the blocks that have a migrate type.
    :param struct_page_size: bytes of ``struct page``.
    :param section_order: order of a sparse-memory section (128 MiB on x86-64), the unit of the memory map.
    :param zone_names: all zones by index, also those that are never populated.
    :param zone_limits: page frame at which each zone ends, for the zones made from the memory map; None for the last (up to the end of memory).
    :param gfp_zones: highest zone by the low four bits of the GFP flags, -1 for impossible ones.
    :param migratetypes: names by number, as /proc/pagetypeinfo prints them.
    :param lowmem_reserve_ratio: sysctl vm.lowmem_reserve_ratio, per zone.
    :param watermark_boost_factor: sysctl vm.watermark_boost_factor, in 1/10000.
    :param watermark_scale_factor: sysctl vm.watermark_scale_factor, in 1/10000.
    :param percpu_pagelist_high_fraction: sysctl vm.percpu_pagelist_high_fraction.
    :param pcp_batch_scale_max: how often the drain of a per-CPU list may double.
    :param thp: CONFIG_TRANSPARENT_HUGEPAGE: pageblock-order pages have per-CPU lists.
    :param thp_min_pages: THP starts switched on when at least this many pages are managed.
    :param nofragment_zone: zone for which ALLOC_NOFRAGMENT applies when it is the preferred one; -1 for none.
    :param deferred_init: CONFIG_DEFERRED_STRUCT_PAGE_INIT: most of the last zone is handed over only after the CPUs are up.
    :param swiotlb_pages: bounce buffer taken below 4 GiB when there is memory above.
    :param swiotlb_table_pages: bookkeeping of that buffer and of the memory above 4 GiB.
    :param image: the kernel image.
    :param page_offset: address of page frame 0 in the direct map.
    :param node_stat_items: counters of a node in the order of /proc/zoneinfo.
    :param zone_stat_items: counters of a zone, likewise.
    :param numa_stat_items: NUMA counters of a zone, likewise; empty without CONFIG_NUMA.
    :param flavour: how the releases of this kernel end, such as ``-686``; "" for those that no other profile of the series claims.
    :param highmem_zone: index of ZONE_HIGHMEM, memory outside the direct map; -1 for none.
    :param max_frames: page frames beyond are not used, whatever the firmware's map says (MAX_ARCH_PFN).
    :param flatmem: one memory map for all of memory (CONFIG_FLATMEM) instead of one per section.
    :param slab: sizes of SLUB's structs.
    :param page_allocator: whether the page allocator of this kernel is modelled; without, only its virtual areas can be recorded and replayed.
    """

    name: str
    release: str
    aliases: tuple[str, ...]
    max_order: int
    pageblock_order: int
    struct_page_size: int
    section_order: int
    zone_names: tuple[str, ...]
    zone_limits: tuple[int | None, ...]
    gfp_zones: tuple[int, ...]
    migratetypes: tuple[str, ...]
    lowmem_reserve_ratio: tuple[int, ...]
    watermark_boost_factor: int
    watermark_scale_factor: int
    percpu_pagelist_high_fraction: int
    pcp_batch_scale_max: int
    thp: bool
    thp_min_pages: int
    nofragment_zone: int
    deferred_init: bool
    swiotlb_pages: int
    swiotlb_table_pages: int
    image: KernelImage
    page_offset: int
    node_stat_items: tuple[str, ...]
    zone_stat_items: tuple[str, ...]
    numa_stat_items: tuple[str, ...]
    flavour: str = ""
    highmem_zone: int = -1
    max_frames: int = 1 << 40
    flatmem: bool = False
    slab: SlabArch = SLAB_64_BIT
    page_allocator: bool = True

    @property
    def pageblock_nr_pages(self) -> int:
        """Page frames of a pageblock."""
        return 1 << self.pageblock_order

    @property
    def word_bits(self) -> int:
        """32 or 64."""
        return 8 * self.slab.word

    def pageblock_split(self, start: int) -> int:
        """Where the types of a shared pageblock part (`mm.buddy.pageblock_row`): HighMem's first frame `start` if it lies inside one, else 0."""
        return start if self.flatmem and start & (self.pageblock_nr_pages - 1) else 0
