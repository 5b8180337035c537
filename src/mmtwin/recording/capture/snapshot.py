"""Reads the allocators' state out of a memory dump with drgn: struct names, fields and offsets come from the kernel's own DWARF."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.errors import CaptureError
from mmtwin.recording.capture import core_i386
from mmtwin.recording.capture.probes import ZoneLayout
from mmtwin.recording.capture.slab_snapshot import is_slub, slab_scalars, slab_tables
from mmtwin.recording.capture.slab_snapshot_classic import classic_scalars, classic_tables, is_classic
from mmtwin.recording.capture.vmap_snapshot import has_vmaps, vmap_scalars, vmap_tables
from mmtwin.recording.model import Snapshot
from mmtwin.recording.validate import TABLES

logging.getLogger("drgn").setLevel(logging.CRITICAL)  # what goes wrong is said in one line, by the exceptions below
try:
    import drgn
    from drgn.helpers.linux.cpumask import for_each_online_cpu, for_each_possible_cpu
    from drgn.helpers.linux.percpu import per_cpu_ptr
except ImportError as error:  # an extra: pip install mmtwin[record]
    raise CaptureError("reading memory dumps needs drgn; install it with: pip install -e '.[record]' (in mmtwin's directory)") from error

CONFIG = [
    "NUMA",
    "CMA",
    "MEMORY_ISOLATION",
    "ZONE_DMA",
    "ZONE_DMA32",
    "ZONE_DEVICE",
    "HIGHMEM",
    "X86_PAE",
    "FLATMEM",
    "HUGETLB_PAGE",
    "TRANSPARENT_HUGEPAGE",
    "SHUFFLE_PAGE_ALLOCATOR",
    "PCP_BATCH_SCALE_MAX",
    "SMP",
    "NR_CPUS",
    "PREEMPT_DYNAMIC",
    "PREEMPT_VOLUNTARY",
    "PREEMPT_NONE",
    "PREEMPT",
    "PREEMPTION",
    "DEFERRED_STRUCT_PAGE_INIT",
    "MEMCG_KMEM",
    "SLUB",
    "SLAB",
    "SLAB_FREELIST_RANDOM",
    "SLAB_FREELIST_HARDENED",
    "SLUB_CPU_PARTIAL",
    "SLAB_MERGE_DEFAULT",
    "INIT_ON_ALLOC_DEFAULT_ON",
    "PAGE_REPORTING",
    "COMPACTION",
]
"""Configuration options that change what the allocators do; the recording keeps their values."""
LRU, MAPPED_MOVABLE = 1, 2
"""Bits of `Snapshot.pages`: PG_lru of the page or of its compound head; ``__PageMovable``."""


def zone_layout(vmlinux: Path) -> ZoneLayout:
    """Offsets in this kernel's ``struct zone``.

    :raises CaptureError: the file has no DWARF.
    """
    prog = drgn.Program()
    try:
        prog.extra_module("vmlinux", 0, create=True).try_file(str(vmlinux), force=True)
        zone, area = prog.type("struct zone"), prog.type("struct free_area")
        node, queue = prog.type("struct pglist_data"), prog.type("struct wait_queue_head")
    except Exception as error:
        raise CaptureError(f"{vmlinux}: no debug information for struct zone ({str(error).splitlines()[0]}); take the vmlinux of linux-image-*-dbg") from None
    word = int(drgn.sizeof(prog.type("unsigned long")))
    return ZoneLayout(
        lock=int(drgn.offsetof(zone, "lock")),
        flags=int(drgn.offsetof(zone, "flags")),
        free_area=int(drgn.offsetof(zone, "free_area")),
        free_area_size=int(area.size),
        list_head_size=2 * word,
        pgdat=int(drgn.offsetof(zone, "zone_pgdat")),
        kswapd_wait=int(drgn.offsetof(node, "kswapd_wait")) + int(drgn.offsetof(queue, "head")),
        kswapd_failures=int(drgn.offsetof(node, "kswapd_failures")),
    )


@dataclass(frozen=True)
class RingBufferLayout:
    """Where the trace ring buffer of each CPU is, and the offsets of the fields needed to follow it."""

    cpus: list[int]
    offsets: dict[str, int]


class Dump:
    """A memory dump (ELF core with VMCOREINFO, as QEMU's dump-guest-memory writes) opened with a kernel's symbols.

    :raises CaptureError: no dump, no VMCOREINFO, no symbols, or symbols of another kernel.
    """

    def __init__(self, core: Path, vmlinux: Path) -> None:
        if core.is_file() and core_i386.is_i386(core):
            self.prog, _ = core_i386.open_i386(core, vmlinux)
            self.page_offset = core_i386.PAGE_OFFSET
            return
        self.prog = drgn.Program()
        try:
            self.prog.set_core_dump(str(core))
        except FileNotFoundError:
            raise CaptureError(f"{core}: no such memory dump") from None
        except Exception as error:  # drgn raises several kinds; its text names the cause
            raise CaptureError(f"{core}: not a memory dump that drgn can open ({error})") from None
        if not self.prog.flags & drgn.ProgramFlags.IS_LINUX_KERNEL:
            raise CaptureError(
                f"{core}: has no VMCOREINFO, so its kernel cannot be known; start QEMU with -device vmcoreinfo and load qemu_fw_cfg in the guest"
            )
        try:
            self.prog.load_debug_info([str(vmlinux)])
            self.page_offset = int(self.prog["page_offset_base"])
        except Exception as error:
            raise CaptureError(f"{vmlinux}: not the symbols of the kernel in {core} ({str(error).splitlines()[0]})") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        del self.prog

    def release(self) -> str:
        """The kernel's release, as ``uname -r`` prints it."""
        return str(self.prog["init_uts_ns"].name.release.string_().decode())

    def cmdline(self) -> str:
        """The kernel's command line."""
        return str(self.prog["saved_command_line"].string_().decode()).strip()

    def ring_buffer(self) -> RingBufferLayout:
        """The buffers of the top trace instance."""
        buffers = self.prog["global_trace"].array_buffer.buffer.buffers
        wanted = {
            "ring_buffer_per_cpu": ("entries", "overrun", "head_page", "commit_page"),
            "buffer_page": ("page", "list.next"),
            "buffer_data_page": ("data",),
        }
        offsets = {f"{s}.{m}": int(drgn.offsetof(self.prog.type(f"struct {s}"), m)) for s, ms in wanted.items() for m in ms}
        return RingBufferLayout([int(buffers[c]) for c in for_each_online_cpu(self.prog)], offsets)

    def trace_entries(self, cpus: list[int]) -> dict[str, int]:
        """Events so far in the trace buffer of each CPU; 0 if there is none."""
        buffers = self.prog["global_trace"].array_buffer.buffer.buffers
        try:
            return {f"trace_entries_{c}": int(buffers[c].entries.a.counter) for c in cpus}
        except drgn.FaultError:
            return dict.fromkeys((f"trace_entries_{c}" for c in cpus), 0)

    def vmap_snapshot(self) -> Snapshot:
        """The state of the virtual-area allocator alone, of any kernel whose areas can be read.

        :raises CaptureError: they cannot, or a broken tree or list.
        """
        prog = self.prog
        if not has_vmaps(prog):
            raise CaptureError("the kernel in the dump has no tree of free virtual areas; mmtwin reads those of Linux 6.1 and 6.12 on x86-64")
        scalars = {"max_pfn": int(prog["max_pfn"]), "possible_cpus": len(list(for_each_possible_cpu(prog))), "page_offset_base": self.page_offset}
        scalars |= {"vmemmap_base": int(prog["vmemmap_base"]), "page_size_bytes": int(prog.type("struct page").size)}
        return Snapshot(
            zones=pl.DataFrame(schema=TABLES["zones"]),
            free=pl.DataFrame(schema=TABLES["free"]),
            pcp=pl.DataFrame(schema=TABLES["pcp"]),
            pcp_pages=pl.DataFrame(schema=TABLES["pcp_pages"]),
            memory_map=pl.DataFrame(memory_map(prog), schema=TABLES["memory_map"], orient="row"),
            pageblocks=np.zeros(0, dtype=np.uint8),
            pages=np.zeros(0, dtype=np.uint8),
            scalars=scalars | vmap_scalars(prog) | self.trace_entries([int(c) for c in for_each_online_cpu(prog)]),
            vmaps=vmap_tables(prog, self.page_offset),
        )

    def snapshot(self, slabs: bool = True, vmaps: bool = True) -> Snapshot:
        """The whole state of the page allocator (zones, free lists, per-CPU lists, pageblock types, counters) and, if it is SLUB, of the slab allocator.

        :param slabs: False leaves the slab allocator out.
        :param vmaps: False leaves virtual areas out.
        :raises CaptureError: more than one memory node, or a broken list.
        """
        prog = self.prog
        node = only_node(prog)
        cpus = [int(c) for c in for_each_online_cpu(prog)]
        pages = Pages(self)
        zones, free, pcps, listed, blocks = [], [], [], [], []
        fields = {"start_pfn": "zone_start_pfn", "spanned_pages": "spanned_pages", "present_pages": "present_pages"}
        for index in range(int(prog.constant("__MAX_NR_ZONES"))):
            zone = node.node_zones[index]
            name = zone.name.string_().decode()
            row: dict[str, Any] = {"index": index, "name": name} | {k: int(zone.member_(m)) for k, m in fields.items()}
            row |= {"managed_pages": int(zone.managed_pages.counter), "reserved_pages": pages.reserved(row["start_pfn"], row["spanned_pages"])}
            row |= {f"wmark_{n}": int(zone._watermark[i]) for i, n in enumerate(("min", "low", "high", "promo"))}
            row |= {k: int(zone.member_(k)) for k in ("watermark_boost", "nr_reserved_highatomic", "flags", "percpu_drift_mark")}
            row |= {"nr_free_pages": int(zone.vm_stat[prog.constant("NR_FREE_PAGES")].counter)}
            row |= {f"lowmem_reserve_{j}": int(zone.lowmem_reserve[j]) for j in range(len(zone.lowmem_reserve))}
            zones.append(row)
            if not row["present_pages"]:
                continue
            for order in range(len(zone.free_area)):
                area = zone.free_area[order]
                for migratetype in range(len(area.free_list)):
                    for position, pfn in enumerate(pages.walk(area.free_list[migratetype])):
                        free.append((index, order, migratetype, position, pfn))
            for cpu in cpus:
                pcp, stat = per_cpu_ptr(zone.per_cpu_pageset, cpu), per_cpu_ptr(zone.per_cpu_zonestats, cpu)
                pcps.append(
                    {"zone": index, "cpu": cpu} | {k: int(pcp.member_(k)) for k in ("count", "high", "batch", "free_factor")}
                    | {"stat_threshold": int(stat.stat_threshold), "nr_free_pages_diff": int(stat.vm_stat_diff[prog.constant("NR_FREE_PAGES")])}
                )  # fmt: skip
                for i in range(len(pcp.lists)):
                    for position, pfn in enumerate(pages.walk(pcp.lists[i])):
                        listed.append((index, cpu, i, position, pfn, pages.index(pfn)))
        frames = int(prog["max_pfn"])
        order, split = pageblock_order(prog), pageblock_split(prog)
        rows = -(-frames >> order) + bool(split)
        blocks = [pageblock_migratetype(prog, max((row - 1) << order, split) if split and row > split >> order else row << order, order) for row in range(rows)]
        scalars = {
            k: int(prog[k])
            for k in ("min_free_kbytes", "watermark_scale_factor", "watermark_boost_factor", "percpu_pagelist_high_fraction", "page_group_by_mobility_disabled")
        }
        scalars |= {
            "totalreserve_pages": int(prog["totalreserve_pages"]),
            "pageblock_order": order,
            "pageblock_split": split,
            "max_pfn": frames,
            "possible_cpus": len(list(for_each_possible_cpu(prog))),
        }
        scalars |= {f"lowmem_reserve_ratio_{i}": int(r) for i, r in enumerate(prog["sysctl_lowmem_reserve_ratio"])}
        scalars |= {"hugepage_flags": int(prog["transparent_hugepage_flags"]), "user_min_free_kbytes": int(prog["user_min_free_kbytes"])}
        scalars |= {
            "pressure_threshold_function": prog.symbol("calculate_pressure_threshold").address,
            "vmemmap_base": pages.base,
            "page_size_bytes": pages.size,
            "page_offset_base": self.page_offset,
            "page_list_offset": int(drgn.offsetof(prog.type("struct page"), "lru")),
        }
        scalars |= {"late_freed_image_pages": late_freed_image_pages(prog), "smp_locks_pages": 0}
        scalars |= {"zone_lock_offset": int(drgn.offsetof(prog.type("struct zone"), "lock"))}
        slub = slabs and is_slub(prog)
        if slub:
            scalars |= slab_scalars(prog)
        classic = is_classic(prog)
        if classic:
            scalars |= classic_scalars(prog)
        areas = vmaps and has_vmaps(prog)
        if areas:
            scalars |= vmap_scalars(prog)
        return Snapshot(
            zones=pl.DataFrame(zones),
            free=pl.DataFrame(free, schema={"zone": pl.Int8, "order": pl.Int8, "migratetype": pl.Int8, "position": pl.Int32, "pfn": pl.Int64}, orient="row"),
            pcp=pl.DataFrame(pcps),
            pcp_pages=pl.DataFrame(
                listed, schema={"zone": pl.Int8, "cpu": pl.Int16, "list": pl.Int8, "position": pl.Int32, "pfn": pl.Int64, "migratetype": pl.Int8}, orient="row"
            ),
            pageblocks=np.array(blocks, dtype=np.uint8),
            pages=pages.bits(),
            memory_map=pl.DataFrame(memory_map(prog), schema={"start": pl.Int64, "size": pl.Int64, "type": pl.Int32}, orient="row"),
            scalars=scalars | self.trace_entries(cpus) | {f"zone_address_{i}": int(node.node_zones[i].address_of_()) for i in range(len(zones))},
            **(slab_tables(prog, cpus, pages, self.page_offset) if slub else {}),
            classic=classic_tables(prog, cpus, pages, self.page_offset) if classic else None,
            vmaps=vmap_tables(prog, self.page_offset) if areas else None,
        )


def late_freed_image_pages(prog: Any) -> int:
    """Pages of the kernel's image that it frees when it has booted: init code, the gaps around read-only data, and the spare part of
    the data shared with an encrypting hypervisor (arch/x86/mm/init_64.c, mem_encrypt_amd.c)."""
    ranges = IMAGE_RANGES[: 1 if is_32_bit(prog) else None]
    address = {name: int(prog.symbol(name).address) for pair in ranges for name in pair}
    return sum((address[end] >> 12) - ((address[start] + 4095) >> 12) for start, end in ranges)


IMAGE_RANGES = (
    ("__init_begin", "__init_end"),
    ("_etext", "__start_rodata"),
    ("__end_rodata", "_sdata"),
    ("__start_bss_decrypted_unused", "__end_bss_decrypted"),
)
"""Symbols at the ends of those ranges; 32-bit kernels free only the first."""


def only_node(prog: Any) -> Any:
    """``pg_data_t`` of a machine with one memory node. :raises CaptureError: it has more."""
    try:
        table = prog["node_data"]
    except KeyError:  # without CONFIG_NUMA there is just one
        return prog["contig_page_data"].address_of_()
    nodes = [i for i in range(64) if table[i]]
    if nodes != [0]:
        raise CaptureError(f"the machine has {len(nodes)} memory nodes; mmtwin models machines with one (no numa= on the command line)")
    return table[0]


def is_32_bit(prog: Any) -> bool:
    """Whether a word of the kernel has 32 bits."""
    return int(drgn.sizeof(prog.type("unsigned long"))) == 4


class Pages:
    """All of ``struct page``, read in one go (following list pointers through drgn costs 20 times as long)."""

    def __init__(self, dump: Dump) -> None:
        prog = dump.prog
        page = prog.type("struct page")
        self.word = int(drgn.sizeof(prog.type("unsigned long")))
        self.base, self.size = int(prog["mem_map"] if self.word == 4 else prog["vmemmap_base"]), int(page.size)
        self.count = int(prog["max_pfn"])
        self.present = np.zeros(self.count, dtype=bool)
        raw = np.zeros((self.count, self.size), dtype=np.uint8)
        step = 1 << 15  # pages of a memory section (128 MiB): holes between sections have no struct pages
        for first in range(0, self.count, step):
            last = min(first + step, self.count)
            try:
                data = prog.read(self.base + first * self.size, (last - first) * self.size)
            except drgn.FaultError:
                continue
            raw[first:last] = np.frombuffer(data, dtype=np.uint8).reshape(-1, self.size)
            self.present[first:last] = True
        self.usable = np.zeros(self.count, dtype=bool)
        for start, size, kind in memory_map(prog):
            if kind == 1:
                self.usable[(start + 4095) >> 12 : (start + size) >> 12] = True
        self.raw, self._prog = raw, prog
        self._list = int(drgn.offsetof(page, "lru"))
        self._flags = self.words(int(drgn.offsetof(page, "flags")))
        self._next = self.words(self._list)
        self._index = self.words(int(drgn.offsetof(page, "index")))

    def words(self, offset: int) -> npt.NDArray[np.uint64]:
        """An ``unsigned long`` or pointer at this offset of every ``struct page``."""
        found: npt.NDArray[np.uint64] = (
            np.ascontiguousarray(self.raw[:, offset : offset + self.word]).view(f"<u{self.word}").ravel().astype(np.uint64, copy=False)
        )
        return found

    def walk(self, head: Any) -> list[int]:
        """Page frame numbers on a ``struct list_head`` of pages, in order."""
        end, at = int(head.address_of_()), int(head.next)
        found: list[int] = []
        while at != end:
            pfn = (at - self._list - self.base) // self.size
            if not 0 <= pfn < self.count or len(found) > self.count:
                raise CaptureError(f"the dump has a broken page list at {at:#x}; was it taken while the machine ran?")
            found.append(pfn)
            at = int(self._next[pfn])
        return found

    def index(self, pfn: int) -> int:
        """``page->index``: on a per-CPU list, the migrate type it was freed with."""
        return int(self._index[pfn])

    def reserved(self, start: int, spanned: int) -> int:
        """Pages of a zone that are memory and have PG_reserved: present, but not managed by the buddy allocator."""
        flag = np.uint64(1 << int(self._prog.constant("PG_reserved")))
        span = slice(start, start + spanned)
        return int(np.count_nonzero((self._flags[span] & flag).astype(bool) & self.usable[span]))

    def bits(self) -> npt.NDArray[np.uint8]:
        """`LRU` and `MAPPED_MOVABLE` of every page frame."""
        page = self._prog.type("struct page")
        head = self.words(int(drgn.offsetof(page, "compound_head")))
        owner = np.arange(self.count, dtype=np.int64)
        tail = (head & np.uint64(1)).astype(bool) & (head > np.uint64(self.base))
        owner[tail] = (head[tail] - np.uint64(1 + self.base)).astype(np.int64) // self.size
        lru = (self._flags[owner] & np.uint64(1 << int(self._prog.constant("PG_lru")))).astype(bool)
        mapping = self.words(int(drgn.offsetof(page, "mapping")))
        movable = (mapping & np.uint64(3)) == np.uint64(2)
        return np.where(lru, LRU, 0).astype(np.uint8) | np.where(movable & ~tail, MAPPED_MOVABLE, 0).astype(np.uint8)


def pageblock_order(prog: Any) -> int:
    """``pageblock_order``: that of a huge page, 2 MiB, or without PAE 4 MiB."""
    return 10 if is_32_bit(prog) and drgn.sizeof(prog.type("pte_t")) == 4 else 9


def pageblock_split(prog: Any) -> int:
    """First frame of a zone that begins inside a pageblock, which without sparse memory then has a type in each zone; 0 if there is none."""
    if not is_32_bit(prog):
        return 0
    zones, inside = only_node(prog).node_zones, (1 << pageblock_order(prog)) - 1
    starts = [int(z.zone_start_pfn) for z in zones if z.present_pages]
    return next((pfn for pfn in starts[1:] if pfn & inside), 0)


def pageblock_migratetype(prog: Any, pfn: int, order: int = 9) -> int:
    """``get_pfnblock_migratetype``: 4 bits a pageblock in ``mem_section->usage->pageblock_flags``; MOVABLE where there is no memory.

    Without sparse memory they are in ``zone->pageblock_flags``, counted from the pageblock that the zone begins in.
    """
    if is_32_bit(prog):
        for zone in only_node(prog).node_zones:
            start, last = int(zone.zone_start_pfn), int(zone.zone_start_pfn) + int(zone.spanned_pages)
            if max(start, pfn) < min(last, pfn + (1 << order)) and (start <= pfn or start >> order == pfn >> order):
                bit = ((pfn >> order) - (start >> order)) * 4
                return (int(zone.pageblock_flags[bit // 32]) >> (bit % 32)) & 7
        return 1
    root = prog["mem_section"][(pfn >> 15) // 128]
    if not root:
        return 1
    section = root[(pfn >> 15) % 128]
    if not section.usage:
        return 1
    bit = ((pfn & 0x7FFF) >> 9) * 4
    return (int(section.usage.pageblock_flags[bit // 64]) >> (bit % 64)) & 7


def memory_map(prog: Any) -> list[tuple[int, int, int]]:
    """The firmware's memory map (e820): start, size, type (1 = usable RAM)."""
    table = prog["e820_table"]
    return [(int(e.addr), int(e.size), int(e.type)) for e in (table.entries[i] for i in range(int(table.nr_entries)))]
