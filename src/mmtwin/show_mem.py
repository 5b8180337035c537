"""``show_mem``: what the kernel prints of all memory when it runs short (lib/show_mem.c, mm/page_alloc.c of Linux 6.1), and the report of a failed allocation.

`mem_info` takes the counts from a machine, `format_mem_info` prints any counts: the ones of a real kernel's log give that log's text again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mmtwin.gfp import GFP, MIGRATE_TYPES, gfp_names
from mmtwin.mm.slab_common import SLAB_RECLAIM_ACCOUNT
from mmtwin.mm.slab_tables import SLAB_LIVE
from mmtwin.mm.tables import NR_ORDERS
from mmtwin.mm.validate import free_blocks
from mmtwin.process_text import user_entries
from mmtwin.procfs import populated_zones
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE
from mmtwin.user.mm_tables import ANON, FILE_CACHED, FILE_SHMEM, SHMEM, VM_LOCKED, areas_of

if TYPE_CHECKING:
    from mmtwin.machine import Machine

K = PAGE_SHIFT - 10
"""Shifts pages to kB."""
MIGRATETYPE_LETTERS = "UMEHI"
"""``show_migration_types`` of a kernel without CONFIG_CMA."""
LRU_LISTS = ("inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable")
THREAD_KB = {64: 16, 32: 8}
"""Kernel stack of a task."""
HUGE_KB = {64: (1048576, 2048), 32: (4096,)}
"""Huge page sizes in the kernel's order (hugetlb_show_meminfo_node), with 1 GiB pages on x86-64."""
GLOBAL_ITEMS = (
    ("active_anon", "inactive_anon", "isolated_anon"),
    ("active_file", "inactive_file", "isolated_file"),
    ("unevictable", "dirty", "writeback"),
    ("slab_reclaimable", "slab_unreclaimable"),
    ("mapped", "shmem", "pagetables"),
    ("sec_pagetables", "bounce"),
    ("kernel_misc_reclaimable",),
    ("free", "free_pcp", "free_cma"),
)
"""The first record, line by line, in pages."""
NODE_ITEMS = (
    ("active_anon", "active_anon:"), ("inactive_anon", "inactive_anon:"), ("active_file", "active_file:"), ("inactive_file", "inactive_file:"), ("unevictable", "unevictable:"),
    ("isolated_anon", "isolated(anon):"), ("isolated_file", "isolated(file):"), ("mapped", "mapped:"), ("dirty", "dirty:"), ("writeback", "writeback:"), ("shmem", "shmem:"),
    ("shmem_thp", "shmem_thp: "), ("shmem_pmdmapped", "shmem_pmdmapped: "), ("anon_thp", "anon_thp: "), ("writeback_tmp", "writeback_tmp:"), ("kernel_stack_kb", "kernel_stack:"),
    ("pagetables", "pagetables:"), ("sec_pagetables", "sec_pagetables:"),
)  # fmt: skip
THP_ITEMS = ("shmem_thp", "shmem_pmdmapped", "anon_thp")
ZONE_ITEMS = (
    "free", "boost", "min", "low", "high", "reserved_highatomic", "active_anon", "inactive_anon", "active_file", "inactive_file", "unevictable", "writepending", "present", "managed",
    "mlocked", "bounce", "free_pcp", "local_pcp", "free_cma",
)  # fmt: skip


@dataclass
class ZoneInfo:
    """A zone's lines.

    :ivar pages: `ZONE_ITEMS`, in pages.
    :ivar lowmem_reserve: pages, by the highest zone of a request.
    :ivar blocks: by order, the number of free blocks and the letters of the types that have some.
    """

    name: str
    pages: dict[str, int]
    lowmem_reserve: list[int]
    blocks: list[tuple[int, str]]


@dataclass
class MemInfo:
    """All that `format_mem_info` prints.

    :ivar node: counters of the node, in pages (`kernel_stack_kb` in kB).
    :ivar total: the first record, likewise; it differs from `node` in the few counters that zones keep.
    :ivar huge: of every huge page size: pages, free ones, surplus ones, and the size in kB.
    :ivar swap_kb: free and all swap space.
    :ivar ram: present pages, those of HighMem, and those that the page allocator does not manage.
    :ivar numa: CONFIG_NUMA: zones are printed with their node. `thp`: CONFIG_TRANSPARENT_HUGEPAGE.
    """

    node: dict[str, int]
    total: dict[str, int]
    zones: list[ZoneInfo]
    huge: list[tuple[int, int, int, int]]
    pagecache: int
    swapcache: int
    swap_kb: tuple[int, int]
    ram: tuple[int, int, int]
    all_unreclaimable: bool = False
    numa: bool = True
    thp: bool = True
    unreclaimable_slab: list[tuple[str, int, int]] = field(default_factory=list)


def format_mem_info(info: MemInfo) -> str:
    """``__show_mem``'s text: its lines as /dev/kmsg has them, without time stamps."""
    lines = ["Mem-Info:"]
    lines += [("" if i == 0 else " ") + " ".join(f"{name}:{info.total[name]}" for name in names) for i, names in enumerate(GLOBAL_ITEMS)]
    node = [f"{label}{info.node[name] << (0 if name.endswith('_kb') else K)}kB" for name, label in NODE_ITEMS if info.thp or name not in THP_ITEMS]
    lines.append(f"Node 0 {' '.join(node)} all_unreclaimable? {'yes' if info.all_unreclaimable else 'no'}")
    prefix = "Node 0 " if info.numa else ""
    for zone in info.zones:
        items = (f"{name}:{zone.pages[name] << K}{'KB' if name == 'reserved_highatomic' else 'kB'}" for name in ZONE_ITEMS)
        lines.append(f"{prefix}{zone.name} {' '.join(items)}")
        lines.append("lowmem_reserve[]:" + "".join(f" {pages}" for pages in zone.lowmem_reserve))
    for zone in info.zones:
        cells = (f"{n}*{PAGE_SIZE << order >> 10}kB " + (f"({letters}) " if n else "") for order, (n, letters) in enumerate(zone.blocks))
        total = sum(n << order for order, (n, _) in enumerate(zone.blocks))
        lines.append(f"{prefix}{zone.name}: {''.join(cells)}= {total << K}kB")
    for total, free, surplus, size in info.huge:
        lines.append(f"Node 0 hugepages_total={total} hugepages_free={free} hugepages_surp={surplus} hugepages_size={size}kB")
    lines += [f"{info.pagecache} total pagecache pages", f"{info.swapcache} pages in swap cache"]
    lines += [f"Free swap  = {info.swap_kb[0]}kB", f"Total swap = {info.swap_kb[1]}kB"]
    lines += [f"{info.ram[0]} pages RAM", f"{info.ram[1]} pages HighMem/MovableOnly", f"{info.ram[2]} pages reserved"]
    return "".join(f"{line}\n" for line in lines)


def format_unreclaimable_slab(rows: list[tuple[str, int, int]]) -> str:
    """``dump_unreclaimable_slab``: name, kB in use, kB in all."""
    lines = ["Unreclaimable slab info:", "Name                      Used          Total"]
    return "".join(f"{line}\n" for line in lines + [f"{name:<17} {used:>10}KB {total:>10}KB" for name, used, total in rows])


def excessive_slab(info: MemInfo) -> bool:
    """``should_dump_unreclaim_slab``: slabs that cannot be reclaimed have more pages than the LRU lists."""
    lists = (*LRU_LISTS, "isolated_anon", "isolated_file")
    return info.total["slab_unreclaimable"] > sum(info.total[name] for name in lists)


# Counts of a machine


def lru_sizes(machine: Machine) -> dict[int, dict[str, int]]:
    """Pages on the LRU lists, by zone and list (`LRU_LISTS`)."""
    return {z: dict(zip(LRU_LISTS, machine.lru_sizes(z).values(), strict=True)) for z in range(len(machine.state.zone))}


def _frames(machine: Machine) -> tuple[set[int], set[int], set[int]]:
    """Frames of processes and of the page cache; those of them that would be swapped; those of locked areas."""
    users, word = machine.users, machine.users.frame
    cached = set(users.cache[users.cache >= 0].tolist())
    mapped, locked = _mapped(machine)
    special = {int(users.config[0]["zero_pfn"])}
    if int(users.config[0]["huge_zero_pfn"]) >= 0:
        special.update(range(int(users.config[0]["huge_zero_pfn"]), int(users.config[0]["huge_zero_pfn"]) + 512))
    ours = (cached | {pfn for pfn in mapped if int(word[pfn])}) - special
    anon = {pfn for pfn in ours if int(word[pfn]) & (ANON | SHMEM)}
    return ours, anon, locked


def _mapped(machine: Machine) -> tuple[dict[int, int], set[int]]:
    """Level of the entry that maps it, of every frame that a process maps; and those of locked areas."""
    users, mapped, locked = machine.users, dict[int, int](), set[int]()
    for mm in np.flatnonzero(users.mm["used"]).tolist():
        areas = [(int(v["vm_start"]), int(v["vm_end"])) for v in (users.vma[row] for row in areas_of(users, mm)) if int(v["vm_flags"]) & VM_LOCKED]
        for address, (entry, level) in user_entries(machine.mmu, int(users.mm[mm]["pgd"])).items():
            pfn = (entry & (1 << 52) - 1) >> PAGE_SHIFT
            frames = range(pfn & ~1, (pfn & ~1) + 512) if level > 1 else range(pfn, pfn + 1)
            mapped.update(dict.fromkeys(frames, level))
            if any(start <= address < end for start, end in areas):
                locked.update(frames)
    return mapped, locked


def _slab_pages(machine: Machine) -> tuple[int, int]:
    """NR_SLAB_RECLAIMABLE_B and NR_SLAB_UNRECLAIMABLE_B in pages, of slabs. (What kmalloc takes from the page allocator directly counts as well in Linux; here it is not told from other pages.)"""
    slub = machine.slub
    live = slub.slab["state"][: int(slub.config[0]["slabs"])] == SLAB_LIVE
    slabs = slub.slab[: int(slub.config[0]["slabs"])][live]
    pages = np.int64(1) << slabs["order"].astype(np.int64)
    reclaimable = (slub.cache["flags"][slabs["cache"]] & SLAB_RECLAIM_ACCOUNT) != 0
    return int(pages[reclaimable].sum()), int(pages[~reclaimable].sum())


def node_page_state(machine: Machine) -> dict[str, int]:
    """``node_page_state``: the node's counters in pages, by the names that show_mem prints; `kernel_stack_kb` is in kB.

    Derived from the machine's tables: slab pages, page tables, mapped, shared and file pages, huge anonymous pages, the tasks' stacks. Dirty pages and those under writeback are 0: nothing
    is written back.
    """
    node = dict.fromkeys((name for name, _ in NODE_ITEMS), 0)
    node |= dict.fromkeys(("slab_reclaimable", "slab_unreclaimable", "kernel_misc_reclaimable", "file_pages"), 0)
    for sizes in lru_sizes(machine).values():
        for name in LRU_LISTS:
            node[name] += sizes.get(name, 0)
    node["slab_reclaimable"], node["slab_unreclaimable"] = _slab_pages(machine)
    users = machine._users
    if users is None:
        return node
    mapped, _ = _mapped(machine)
    word, zeros = users.frame, {int(users.config[0]["zero_pfn"])}
    held = dict.fromkeys((FILE_CACHED, FILE_SHMEM), 0)
    for row in range(len(users.file)):
        kind, first = int(users.file[row]["kind"]), int(users.file[row]["first"])
        if kind in held:
            held[kind] += int((users.cache[first : first + int(users.file[row]["pages"])] >= 0).sum())
    cached = set(users.cache[users.cache >= 0].tolist())
    node["mapped"] = sum(1 for pfn in mapped if pfn in cached and not int(word[pfn]) & ANON)
    node["shmem"], node["file_pages"] = held[FILE_SHMEM], held[FILE_CACHED] + held[FILE_SHMEM] + _swap(machine)[0]
    node["anon_thp"] = sum(1 for pfn, level in mapped.items() if level > 1 and pfn not in zeros and int(word[pfn]) & ANON)
    node["kernel_stack_kb"] = THREAD_KB[machine.space.bits] * len(machine._processes)
    # mm->pgtables_bytes counts PUDs too; the node's counter has what went through pgtable_pte_page_ctor and pgtable_pmd_page_ctor
    table, used = machine.mmu.table, int(machine.mmu.config[0]["tables"])
    rows = user_tables(machine)
    node["pagetables"] = sum(1 for row in rows if row < used and int(table[row]["level"]) <= 2)
    return node


def user_tables(machine: Machine) -> list[int]:
    """Rows of the page tables below the processes' PGDs."""
    mmu, users, found = machine.mmu, machine.users, list[int]()
    top, kernel = int(mmu.config[0]["levels"]), int(mmu.config[0]["kernel_index"])
    for mm in np.flatnonzero(users.mm["used"]).tolist():
        todo = [(int(users.mm[mm]["pgd"]), top)]
        while todo:
            row, level = todo.pop()
            if level > 1:
                entries = mmu.entry[row][:kernel] if level == top else mmu.entry[row]
                below = [int(mmu.child[row, i]) for i in np.flatnonzero((entries & 0x81) == 1).tolist()]
                todo += [(child, level - 1) for child in below]
                found += below
    return found


def _swap(machine: Machine) -> tuple[int, int, int]:
    """Pages in the swap cache, free and all pages of swap space, where the machine has some (`Machine.swap_usage`)."""
    return machine.swap_usage()


def zone_page_state(machine: Machine, z: int, cpu: int = 0, lru: Mapping[str, int] | None = None) -> dict[str, int]:
    """A zone's counters (`ZONE_ITEMS`), in pages. :param lru: its LRU lists' sizes; None: they are counted."""
    zone, cpus = machine.state.zone[z], int(machine.state.config[0]["nr_cpus"])
    sizes = lru_sizes(machine)[z] if lru is None else lru
    boost = int(zone["watermark_boost"])
    counts = machine.state.pcp["count"][z * cpus : z * cpus + int(machine.state.config[0]["online_cpus"])]
    pages = dict.fromkeys(ZONE_ITEMS, 0)
    pages |= {"free": max(int(zone["nr_free_pages"]), 0), "boost": boost, "reserved_highatomic": int(zone["nr_reserved_highatomic"])}
    pages |= {name: int(zone[f"wmark_{name}"]) + boost for name in ("min", "low", "high")}
    pages |= {name: int(sizes.get(name, 0)) for name in LRU_LISTS}
    pages |= {"present": int(zone["present_pages"]), "managed": int(zone["managed_pages"]), "mlocked": int(sizes.get("unevictable", 0))}
    pages |= {"free_pcp": int(counts.sum()), "local_pcp": int(counts[cpu])}
    return pages


def mem_info(machine: Machine, cpu: int = 0, gfp: int | None = None) -> MemInfo:
    """A machine's counts as ``show_mem`` takes them.

    :param cpu: who prints (`local_pcp`).
    :param gfp: flags of the request that led here: zones above its highest one are left out. None: all zones.
    """
    state, profile = machine.state, machine.profile
    highest = len(profile.zone_names) - 1 if gfp is None else int(state.gfp_zone[gfp & 0xF])
    node, lru = node_page_state(machine), lru_sizes(machine)
    free = free_blocks(state)
    shape = (len(state.zone), NR_ORDERS, MIGRATE_TYPES)
    kinds = np.bincount((free.zone * NR_ORDERS + free.order) * MIGRATE_TYPES + free.migratetype, minlength=shape[0] * shape[1] * shape[2]).reshape(shape)
    zones, present, managed, high, all_free = list[ZoneInfo](), 0, 0, 0, 0
    for z in populated_zones(state):
        zone = state.zone[z]
        present, managed = present + int(zone["present_pages"]), managed + int(zone["managed_pages"])
        high += int(zone["present_pages"]) if int(zone["is_highmem"]) else 0
        all_free += max(int(zone["nr_free_pages"]), 0)
        if z <= highest:
            letters = ["".join(MIGRATETYPE_LETTERS[t] for t in np.flatnonzero(kinds[z, order]).tolist()) for order in range(NR_ORDERS)]
            blocks = [(int(state.free_area[z * NR_ORDERS + order]["nr_free"]), letters[order]) for order in range(NR_ORDERS)]
            reserve = state.lowmem_reserve[z, : len(profile.zone_names)].tolist()
            zones.append(ZoneInfo(profile.zone_names[z], zone_page_state(machine, z, cpu, lru[z]), reserve, blocks))
    total = node | {"bounce": 0, "free_cma": 0, "free": all_free, "free_pcp": sum(zone.pages["free_pcp"] for zone in zones)}
    cache, free_swap, all_swap = _swap(machine)
    return MemInfo(
        node=node, total=total, zones=zones, huge=[(0, 0, 0, size) for size in HUGE_KB[machine.space.bits]], pagecache=node["file_pages"], swapcache=cache,
        swap_kb=(free_swap << K, all_swap << K), ram=(present, high, present - managed), all_unreclaimable=machine.all_unreclaimable,
        numa=bool(profile.numa_stat_items), thp=profile.thp, unreclaimable_slab=unreclaimable_slab(machine),
    )  # fmt: skip


def unreclaimable_slab(machine: Machine) -> list[tuple[str, int, int]]:
    """``dump_unreclaimable_slab``'s rows, newest cache first: name, kB of active objects, kB of all."""
    rows = []
    for line in machine.slabinfo().splitlines()[2:]:
        name, active, total, size = line.split()[:4]
        cache = machine.slub.cache[machine._cache_names.index(name)]
        if not int(cache["flags"]) & SLAB_RECLAIM_ACCOUNT and int(total) > 0:
            rows.append((name, int(active) * int(size) // 1024, int(total) * int(size) // 1024))
    return rows


def show_mem(machine: Machine, cpu: int = 0, gfp: int | None = None) -> str:
    """``show_mem``: as ``echo m > /proc/sysrq-trigger`` prints it. :param gfp: as for `mem_info`."""
    return format_mem_info(mem_info(machine, cpu, gfp))


def hex_flags(gfp: int) -> str:
    """``%#x(%pGg)``."""
    return f"{gfp:#x}({gfp_names(gfp)})" if gfp else "0(none)"


def warn_alloc(machine: Machine, comm: str, order: int, gfp: int, cpu: int = 0) -> str:
    """``warn_alloc``: the report of a request that fails, without the stack trace; "" where Linux says nothing (__GFP_NOWARN; __GFP_DMA on a machine without such memory).

    That the kernel prints one such report in ten seconds at most is not kept.
    """
    if gfp & GFP.NOWARN or (gfp & GFP.DMA and not int(machine.state.zone[0]["managed_pages"])):
        return ""
    head = f"{comm}: page allocation failure: order:{order}, mode:{hex_flags(gfp)}, nodemask=(null),cpuset=/,mems_allowed=0\n"
    return head + show_mem(machine, cpu, gfp)


__all__: tuple[str, ...] = ("MemInfo", "ZoneInfo", "format_mem_info", "mem_info", "node_page_state", "show_mem", "warn_alloc", "zone_page_state")
