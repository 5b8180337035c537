"""Linux 6.1.y on x86-64 as Debian 12 builds its cloud kernel (6.1.0-*-cloud-amd64): SLUB, one NUMA node, no CMA, THP.

The places of the kernel image are those of 6.1.0-56-cloud-amd64 (6.1.192) booted without address randomisation, read off memory dumps.
"""

from __future__ import annotations

from mmtwin.profiles.profile import KernelImage, Profile

IMAGE = KernelImage(
    kept=((4096, 7682), (8192, 10279), (10752, 12314), (12976, 13827)),
    freed=((7682, 8192), (10279, 10752), (12314, 12967), (13827, 14336)),
    near=17,
    top=370,
    top_per_cpu=61,
)

LINUX_6_1 = Profile(
    name="linux-6.1",
    release="6.1",
    aliases=("6.1", "v6.1", "6.1.y", "linux-6.1.y", "linux-6.1-x86_64", "linux-6.1-cloud-amd64"),
    max_order=10,
    pageblock_order=9,
    struct_page_size=64,
    section_order=15,
    zone_names=("DMA", "DMA32", "Normal", "Movable", "Device"),
    zone_limits=(1 << 12, 1 << 20, None),
    gfp_zones=(2, 0, 2, -1, 1, -1, -1, -1, 2, 0, 3, -1, 1, -1, -1, -1),
    migratetypes=("Unmovable", "Movable", "Reclaimable", "HighAtomic", "Isolate"),
    lowmem_reserve_ratio=(256, 256, 32, 0, 0),
    watermark_boost_factor=15000,
    watermark_scale_factor=10,
    percpu_pagelist_high_fraction=0,
    pcp_batch_scale_max=5,
    thp=True,
    thp_min_pages=1 << 17,  # 512 MiB
    nofragment_zone=2,
    deferred_init=True,
    swiotlb_pages=1 << 14,  # 64 MiB
    swiotlb_table_pages=194,
    image=IMAGE,
    page_offset=0xFFFF_8880_0000_0000,
    node_stat_items=(
        "nr_inactive_anon", "nr_active_anon", "nr_inactive_file", "nr_active_file", "nr_unevictable", "nr_slab_reclaimable", "nr_slab_unreclaimable",
        "nr_isolated_anon", "nr_isolated_file", "workingset_nodes", "workingset_refault_anon", "workingset_refault_file", "workingset_activate_anon",
        "workingset_activate_file", "workingset_restore_anon", "workingset_restore_file", "workingset_nodereclaim", "nr_anon_pages", "nr_mapped",
        "nr_file_pages", "nr_dirty", "nr_writeback", "nr_writeback_temp", "nr_shmem", "nr_shmem_hugepages", "nr_shmem_pmdmapped", "nr_file_hugepages",
        "nr_file_pmdmapped", "nr_anon_transparent_hugepages", "nr_vmscan_write", "nr_vmscan_immediate_reclaim", "nr_dirtied", "nr_written",
        "nr_throttled_written", "nr_kernel_misc_reclaimable", "nr_foll_pin_acquired", "nr_foll_pin_released", "nr_kernel_stack", "nr_page_table_pages",
        "nr_sec_page_table_pages", "nr_swapcached", "pgpromote_success", "pgpromote_candidate",
    ),
    zone_stat_items=(
        "nr_free_pages", "nr_zone_inactive_anon", "nr_zone_active_anon", "nr_zone_inactive_file", "nr_zone_active_file", "nr_zone_unevictable",
        "nr_zone_write_pending", "nr_mlock", "nr_bounce", "nr_zspages", "nr_free_cma",
    ),
    numa_stat_items=("numa_hit", "numa_miss", "numa_foreign", "numa_interleave", "numa_local", "numa_other"),
)  # fmt: skip
"""The profile."""
