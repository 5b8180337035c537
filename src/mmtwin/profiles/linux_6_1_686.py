"""Linux 6.1.y on 32-bit x86 as Debian 12 builds it (6.1.0-*-686 and -686-pae): the kernel at 0xC0000000, memory beyond some 875 MiB in HighMem.

Both are SMP kernels with SLUB, THP, FLATMEM and no NUMA. Without PAE a huge page has 4 MiB, so pageblocks have order 10, and nothing above 4 GiB is used.
The places of the images are those of 6.1.0-50 (6.1.176) booted without address randomisation, read off memory dumps.
"""

from __future__ import annotations

from dataclasses import replace

from mmtwin.profiles.linux_6_1 import LINUX_6_1
from mmtwin.profiles.profile import SLAB_32_BIT, KernelImage

IMAGE = KernelImage(kept=((4096, 7558), (7794, 7910)), freed=((7558, 7786),), near=16, top=35, top_per_cpu=33)
IMAGE_PAE = KernelImage(kept=((4096, 7588), (7828, 7947)), freed=((7588, 7820),), near=25, top=37, top_per_cpu=33)

LOW_END, LOW_END_PAE = 224254, 225278
"""``max_low_pfn`` of a machine with that much memory: the direct map ends where the 128 MiB for vmalloc, the kmap window and the fixed mappings begin
(``MAXMEM_PFN``, arch/x86/include/asm/pgtable_32_areas.h)."""

LINUX_6_1_686 = replace(
    LINUX_6_1,
    name="linux-6.1-i386",
    aliases=("linux-6.1-686", "6.1-i386", "6.1-686", "i386"),
    flavour="-686",
    pageblock_order=10,
    struct_page_size=40,
    zone_names=("DMA", "Normal", "HighMem", "Movable"),
    zone_limits=(1 << 12, LOW_END, None),
    gfp_zones=(1, 0, 2, -1, 1, -1, -1, -1, 1, 0, 3, -1, 1, -1, -1, -1),
    lowmem_reserve_ratio=(256, 32, 0, 0, 0),
    nofragment_zone=-1,  # ALLOC_NOFRAGMENT is for kernels with ZONE_DMA32
    deferred_init=False,
    swiotlb_pages=0,
    swiotlb_table_pages=0,
    image=IMAGE,
    page_offset=0xC0000000,
    node_stat_items=LINUX_6_1.node_stat_items[:-2],  # without NUMA there is no promotion
    numa_stat_items=(),
    highmem_zone=2,
    max_frames=1 << 20,
    flatmem=True,
    slab=SLAB_32_BIT,
)
"""The profile without PAE."""

LINUX_6_1_686_PAE = replace(
    LINUX_6_1_686,
    name="linux-6.1-i386-pae",
    aliases=("linux-6.1-686-pae", "6.1-i386-pae", "6.1-686-pae", "i386-pae"),
    flavour="-686-pae",
    pageblock_order=9,
    zone_limits=(1 << 12, LOW_END_PAE, None),
    swiotlb_pages=LINUX_6_1.swiotlb_pages,
    swiotlb_table_pages=128,
    image=IMAGE_PAE,
    max_frames=1 << 24,
)
"""The profile with PAE: 64 GiB of physical addresses."""
