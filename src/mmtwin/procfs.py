"""/proc/buddyinfo, pagetypeinfo, zoneinfo, slabinfo and vmallocinfo in the kernel's exact text (mm/vmstat.c, slab_common.c, vmalloc.c), as pure functions over
the tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mmtwin.gfp import MIGRATE_TYPES
from mmtwin.mm.slab_tables import Slub
from mmtwin.mm.tables import NR_ORDERS, Pgdat, pageblock_rows
from mmtwin.mm.validate import free_blocks
from mmtwin.mm.vmap_tables import TREE_BUSY, VM_ALLOC, VM_DMA_COHERENT, VM_IOREMAP, VM_MAP, VM_SPARSE, VM_UNINITIALIZED, VM_USERMAP, Vmalloc, bias, unbias
from mmtwin.profiles.profile import Profile

LIST_CAP = 100000
"""/proc/pagetypeinfo stops counting a list there."""


def populated_zones(state: Pgdat) -> list[int]:
    """Indices of the zones that have memory."""
    return [z for z in range(len(state.zone)) if int(state.zone[z]["present_pages"])]


def buddyinfo(state: Pgdat, profile: Profile) -> str:
    """/proc/buddyinfo: free blocks by zone and order. Pages on per-CPU lists do not count."""
    lines = []
    for z in populated_zones(state):
        counts = state.free_area["nr_free"][z * NR_ORDERS : (z + 1) * NR_ORDERS]
        lines.append(f"Node 0, zone {profile.zone_names[z]:>8} " + "".join(f"{count:6d} " for count in counts.tolist()) + "\n")
    return "".join(lines)


def pagetypeinfo(state: Pgdat, profile: Profile, sections: Iterable[tuple[int, int]] | None = None) -> str:
    """/proc/pagetypeinfo: free blocks by zone, migrate type and order, then pageblocks by zone and type.

    :param sections: page frames that have a ``struct page`` (`physical.sections`); the kernel does not count pageblocks in holes.
        None counts all that the zones span.
    """
    free = free_blocks(state)
    shape = (len(state.zone), MIGRATE_TYPES, NR_ORDERS)
    counts = np.bincount((free.zone * MIGRATE_TYPES + free.migratetype) * NR_ORDERS + free.order, minlength=shape[0] * shape[1] * shape[2]).reshape(shape)
    text = [f"Page block order: {profile.pageblock_order}\nPages per block:  {profile.pageblock_nr_pages}\n\n"]
    text.append(f"{'Free pages count per migrate type at order':<43} " + "".join(f"{order:6d} " for order in range(NR_ORDERS)) + "\n")
    zones = populated_zones(state)
    for z in zones:
        for migratetype, name in enumerate(profile.migratetypes):
            cells = "".join(f">{LIST_CAP:6d} " if n >= LIST_CAP else f"{n:6d} " for n in counts[z, migratetype].tolist())
            text.append(f"Node {0:4d}, zone {profile.zone_names[z]:>8}, type {name:>12} {cells}\n")
    text.append(f"\n{'Number of blocks type ':<23}" + "".join(f"{name:>12} " for name in profile.migratetypes) + "\n")
    for z in zones:
        blocks = np.bincount(state.pageblock[_pageblocks(state, z, sections)], minlength=MIGRATE_TYPES)
        text.append(f"Node 0, zone {profile.zone_names[z]:>8} " + "".join(f"{n:12d} " for n in blocks.tolist()) + "\n")
    return "".join(text)


def _pageblocks(state: Pgdat, z: int, sections: Iterable[tuple[int, int]] | None) -> np.ndarray:
    """Pageblocks that the kernel visits: one a pageblock's frames from the zone's first frame on, if it has a ``struct page``."""
    step = 1 << int(state.config[0]["pageblock_order"])
    pfns = np.arange(int(state.zone[z]["start_pfn"]), int(state.zone[z]["end_pfn"]), step)
    if sections is not None:
        online = np.zeros(len(pfns), dtype=bool)
        for start, end in sections:
            online |= (pfns >= start) & (pfns < end)
        pfns = pfns[online]
    return pageblock_rows(state, pfns)


def zoneinfo(state: Pgdat, profile: Profile) -> str:
    """/proc/zoneinfo, all lines in the kernel's order.

    The twin keeps of the counters only NR_FREE_PAGES (printed, as in Linux, without what the CPUs hold back); of the other node, zone and NUMA
    counters it keeps none and prints 0, as it does for node_unreclaimable and cma.
    """
    text = []
    populated = populated_zones(state)
    cpus, online = int(state.config[0]["nr_cpus"]), int(state.config[0]["online_cpus"])
    for z, zone in enumerate(state.zone[: len(profile.zone_names)]):
        boost, free = int(zone["watermark_boost"]), max(0, int(zone["nr_free_pages"]))
        text.append(f"Node 0, zone {profile.zone_names[z]:>8}")
        if populated and z == populated[0]:
            text.append("\n  per-node stats" + "".join(f"\n      {name:<12} 0" for name in profile.node_stat_items))
        text.append(f"\n  pages free     {free}\n        boost    {boost}")
        text += [f"\n        {name:<8} {int(zone[f'wmark_{name}']) + boost}" for name in ("min", "low", "high")]
        text.append(
            f"\n        spanned  {int(zone['end_pfn']) - int(zone['start_pfn'])}\n        present  {zone['present_pages']}\n        managed  {zone['managed_pages']}\n        cma      0"
        )
        text.append(f"\n        protection: ({', '.join(str(pages) for pages in state.lowmem_reserve[z, : len(profile.zone_names)].tolist())})")
        if z in populated:
            text += [f"\n      {name:<12} {free if name == 'nr_free_pages' else 0}" for name in profile.zone_stat_items]
            text += [f"\n      {name:<12} 0" for name in profile.numa_stat_items]
            text.append("\n  pagesets")
            for cpu in range(online):
                pcp = state.pcp[z * cpus + cpu]
                text.append(f"\n    cpu: {cpu}\n              count: {pcp['count']}\n              high:  {pcp['high']}\n              batch: {pcp['batch']}")
                text.append(f"\n  vm stats threshold: {pcp['stat_threshold']}")
            text.append(f"\n  node_unreclaimable:  0\n  start_pfn:           {zone['start_pfn']}")
        text.append("\n")
    return "".join(text)


def slabinfo(state: Slub, names: Sequence[str]) -> str:
    """/proc/slabinfo, newest cache first (mm/slab_common.c, slab_show; mm/slub.c, get_slabinfo).

    Active are all objects but those free on the node's partial list: what is free in CPU slabs and on CPU partial lists counts as active.
    """
    lines = [
        "slabinfo - version: 2.1",
        "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> "
        ": slabdata <active_slabs> <num_slabs> <sharedavail>",
    ]
    listed = state.slab["on_list"] == 1
    free = np.bincount(state.slab["cache"][listed], (state.slab["objects"] - state.slab["inuse"])[listed], minlength=len(state.cache)).astype(np.int64)
    for i in range(int(state.config[0]["caches"]) - 1, -1, -1):
        cache = state.cache[i]
        if int(cache["live"]):
            total, slabs = int(cache["total_objects"]), int(cache["nr_slabs"])
            lines.append(
                f"{names[i]:<17} {total - free[i]:6} {total:6} {int(cache['size']):6} {int(cache['objects']):4} {1 << int(cache['order']):4}"
                f" : tunables {0:4} {0:4} {0:4} : slabdata {slabs:6} {slabs:6} {0:6}"
            )
    return "\n".join(lines) + "\n"


VM_KINDS = ((VM_IOREMAP, "ioremap"), (VM_ALLOC, "vmalloc"), (VM_MAP, "vmap"), (VM_USERMAP, "user"), (VM_DMA_COHERENT, "dma-coherent"), (VM_SPARSE, "sparse"))


def vmallocinfo(state: Vmalloc, callers: Mapping[int, str], numa: bool = True) -> str:
    """/proc/vmallocinfo as a reader with CAP_SYSLOG sees it (mm/vmalloc.c, s_show and show_purge_info; vmalloc_info_show since 6.9).

    The busy areas by address (since 6.9: of one node after the other), then those that are freed and wait to be purged.

    :param callers: names of callers by the number in ``vm_struct.caller``; others are shown as numbers.
    :param numa: CONFIG_NUMA: pages are counted by node.
    """
    config = state.config[0]
    digits = int(config["bits_per_long"]) // 4
    start, end = int(config["vmalloc_start"]), int(config["vmalloc_end"])
    lines = []
    for node in range(int(config["nr_nodes"])):
        for row in tree_rows(state, TREE_BUSY + node):
            area = state.area[row]
            first, last = unbias(int(area["va_start"])), unbias(int(area["va_end"]))
            if int(area["vm"]) <= 0:
                lines.append(f"0x{first:0{digits}x}-0x{last:0{digits}x} {last - first:7} vm_map_ram")
                continue
            vm = state.vm[int(area["vm"])]
            first, size, flags, caller, pages = unbias(int(vm["addr"])), int(vm["size"]), int(vm["flags"]), int(vm["caller"]), int(vm["nr_pages"])
            parts = [f"0x{first:0{digits}x}-0x{first + size:0{digits}x} {size:7}"]
            parts += [callers.get(caller, f"0x{caller & (1 << digits * 4) - 1:x}")] if caller else []
            parts += [f"pages={pages}"] if pages else []
            parts += [f"phys=0x{int(vm['phys_addr']):0{digits}x}"] if int(vm["phys_addr"]) else []
            parts += [name for flag, name in VM_KINDS if flags & flag]
            parts += ["vpages"] if start <= bias(int(vm["pages"])) < end and int(vm["pages"]) else []
            parts += [f"N0={pages}"] if numa and pages and not flags & VM_UNINITIALIZED else []
            lines.append(" ".join(parts))
    for node in range(int(config["nr_nodes"])):
        for row in tree_rows(state, int(config["lazy_tree"]) + node):
            first, last = unbias(int(state.area[row]["va_start"])), unbias(int(state.area[row]["va_end"]))
            lines.append(f"0x{first:0{digits}x}-0x{last:0{digits}x} {last - first:7} unpurged vm_area")
    return "".join(f"{line}\n" for line in lines)


def tree_rows(state: Vmalloc, tree: int) -> list[int]:
    """Rows of a tree's areas in the order of its list."""
    found, row = [], int(state.area[tree]["next"])
    while row != tree:
        found.append(row)
        row = int(state.area[row]["next"])
    return found
