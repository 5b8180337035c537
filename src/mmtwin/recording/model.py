"""The data of a recording: provenance, two snapshots of the allocators' state, and the events between them.

Everything here is plain data; nothing computes. `store` keeps it in one file, `replay` works on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin import __version__
from mmtwin.notebook import Card, InNotebook, Table, readable_size

KINDS = (
    # the kernel's tracepoints, by their own names (include/trace/events/kmem.h, pagemap.h)
    "mm_page_alloc", "mm_page_free", "mm_page_free_batched", "mm_page_alloc_zone_locked", "mm_page_pcpu_drain", "mm_page_alloc_extfrag",
    "mm_lru_insertion", "kmalloc", "kfree", "kmem_cache_alloc", "kmem_cache_free", "kmalloc_node", "kmem_cache_alloc_node",
    # the recorder's probes (recording/capture/probes.py)
    "pcp_alloc", "pcp_free", "buddy_free", "bulk", "bulk_end", "bulk_ret", "drain_zone", "isolate", "isolate_ret", "move_block", "fold", "wmarks",
    "balance", "reclaim_set", "reclaim_clear", "unboost", "thresholds", "rotate", "pageset", "stat_thresholds", "cpu_fold", "walk", "steal",
    # the recorder's probes in SLUB (recording/capture/slab_probes.py), and the rows that are made of their arrays
    "slab_take", "slab_give", "slab_slow", "slab_refill", "slab_cpu_partial", "slab_deactivate", "slab_load", "slab_node_partial", "slab_new",
    "slab_cmpxchg", "slab_put_partial", "slab_unfreeze", "slab_bulk_alloc", "slab_bulk_pop", "slab_bulk_got", "slab_bulk_free", "slab_bulk_object",
    "slab_flush", "slab_flush_slab", "slab_flush_partial", "slab_shrink", "slab_shrink_lock", "slab_create", "slab_random", "slab_alias", "slab_destroy",
    "slab_shutdown_lock", "slab_dead_cpu",
    # in the classic SLAB (recording/capture/slab_probes_classic.py)
    "cslab_alloc", "cslab_bulk_alloc", "cslab_free", "cslab_grow_end", "cslab_node_alloc", "cslab_untouch", "cslab_drain", "cslab_node_reap",
    "cslab_free_untouch", "cslab_drain_free", "cslab_do_drain", "cslab_tune", "cslab_create",
    # virtual areas: the kernel's tracepoints (since 6.3), and the recorder's probes (recording/capture/vmap_probes.py)
    "alloc_vmap_area", "free_vmap_area_noflush", "purge_vmap_area_lazy", "vmap_request", "vmap_offer", "vmap_search", "vmap_pool_take", "vmap_busy",
    "vmap_result", "vmap_unlink", "vmap_lazy", "vmap_detach", "vmap_merge", "vmap_decay", "vmap_pool_out", "vmap_pool_back", "vmap_purge_node", "vmap_pool_add",
    "vmap_lazy_sub", "vmap_reclaim", "vmap_percpu", "vmap_percpu_search", "vmap_ram", "vmap_ram_result", "vmap_unram", "vmap_block_take", "vmap_block_free",
    "vmap_block_purge", "vmap_block_flush",
    # calls of a process to the C library's malloc (recording/readers/malloc_trace.py)
    "malloc", "free", "calloc", "realloc", "memalign", "posix_memalign", "valloc", "pvalloc", "mallopt", "malloc_trim", "thread_exit", "user_maps",
    "user_brk", "thread_create",
    # memory pressure: the kernel's tracepoints (include/trace/events/vmscan.h, compaction.h, oom.h), and two of the recorder's probes
    "mm_vmscan_wakeup_kswapd", "mm_vmscan_kswapd_wake", "mm_vmscan_kswapd_sleep", "mm_vmscan_direct_reclaim_begin", "mm_vmscan_direct_reclaim_end",
    "mm_compaction_begin", "mm_compaction_end", "mm_compaction_try_to_compact_pages", "mark_victim", "reclaim_retry_zone", "compact_retry",
    "mm_vmscan_write_folio", "wakeup_kswapd", "swap_in",
    # the recorder's probe that tells who asks for a page (recording/capture/page_sites.py); it becomes call_site of mm_page_alloc and is in no file
    "page_site",
)  # fmt: skip
"""Kinds of events; the order is part of the file format (a file stores the names, so it may grow at the end)."""

KIND = {name: number for number, name in enumerate(KINDS)}

EVENTS_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "time": pl.Int64,  # the trace clock: with clock "counter" one number per event over all CPUs, else nanoseconds
    "cpu": pl.Int16,
    "pid": pl.Int32,
    "context": pl.Int8,  # 0 task, 1 soft interrupt, 2 hard interrupt, 3 hard interrupt in a soft one
    "kind": pl.Enum(KINDS),
    "pfn": pl.Int64,  # page frame number; -1 where there is none (a failed mm_page_alloc)
    "order": pl.Int8,
    "migratetype": pl.Int8,
    "gfp": pl.Int64,
    "arg": pl.Int64,  # what else the event says; see recording/convert.py, `COLUMNS`
    "call_site": pl.Int64,  # address of the caller, 64 bits kept in a signed integer; 0 where the event has none
    "ptr": pl.Int64,
    "bytes_req": pl.Int64,
    "bytes_alloc": pl.Int64,
    "node": pl.Int32,
    "name": pl.String,  # slab cache, where the event names it
}
"""Columns of the events table and their types. Absent values are -1 in pfn, order and migratetype, 0 in the other numbers, null in name."""

SLAB_PLACES = ("none", "cpu", "cpu_partial", "node_partial", "discarded")
"""Where a slab is, by the number in `Snapshot.slabs` (where): on no list (it is full), a CPU's slab, on a CPU's partial list, on the node's partial
list, or discarded and waiting for RCU (its pages are not yet free)."""


@dataclass(frozen=True)
class Provenance:
    """Where a recording comes from: enough to make it again.

    :param kernel_version: as ``uname -v`` prints it, with the distribution's version of the source.
    :param how: "vm" (mmtwin record --vm), "ftrace" (imported text), "perf" (perf.data), "trace-cmd" (trace.dat), "malloc" (a process's calls of malloc)
        or "synthetic".
    :param initrd_bytes: size of the initial RAM disk; its memory was not yet free when the kernel derived its watermarks.
    :param swap_bytes: size of the guest's swap disk, which is in use from before the first snapshot; 0 without one.
    :param lost_events: events the trace buffer lost; figures after the first loss cannot be trusted.
    :param missed_probes: times a probe could not fire because another one was being handled; the order of those events is unknown.
    :param workload: text of the workload script.
    :param modules: kernel modules that were not the kernel's own but given with --module: name and SHA-256 of the file.
    :param procfs: texts of /proc files that the guest printed after the second snapshot, by name; recordings with slab events also have
        ``sys_kernel_slab``: a line "cache file value" for each file of /sys/kernel/slab, and "alias link cache" for each symbolic link. Imported events
        have names of call sites there: ``call_sites``, lines "number symbol" of numbers that stand for symbols, and ``symbols``, lines "address symbol"
        (hexadecimal); of trace.dat also ``trace_clock``.
    :param scope: "machine", or "tasks" if only some tasks were recorded, so that what others did to their objects is not in it; "" if that is unknown.
    """

    kernel_release: str = "unknown"
    kernel_version: str = ""
    kernel_config: Mapping[str, str] = field(default_factory=dict)
    cmdline: str = ""
    ram_bytes: int = 0
    initrd_bytes: int = 0
    swap_bytes: int = 0
    cpus: int = 1
    how: str = "vm"
    workload: str = ""
    workload_name: str = ""
    workload_seconds: float = 0.0
    lost_events: int = 0
    missed_probes: int = 0
    probes: list[str] = field(default_factory=list)
    modules: dict[str, str] = field(default_factory=dict)
    procfs: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    scope: str = ""
    tool: str = f"mmtwin {__version__}"


@dataclass(frozen=True)
class Snapshot:
    """The page allocator's state in one memory dump, in tables named after the kernel's structs.

    Where only virtual areas were read (kernels whose page allocator mmtwin does not have), the tables and arrays of the page allocator are empty.

    :param zones: one row per zone (also unpopulated ones), columns of ``struct zone``: index, name, start_pfn, spanned_pages,
        present_pages, managed_pages, reserved_pages, wmark_min/low/high/promo, watermark_boost, nr_reserved_highatomic, flags,
        percpu_drift_mark, nr_free_pages (the global counter), lowmem_reserve_<j>.
    :param free: free blocks: zone, order, migratetype, position in its list (0 = head), pfn.
    :param pcp: ``struct per_cpu_pages`` per zone and CPU: count, high, batch, free_factor, stat_threshold, nr_free_pages_diff.
    :param pcp_pages: pages on per-CPU lists: zone, cpu, list (index), position, pfn, migratetype (the cached one).
    :param pageblocks: migrate type of each pageblock (scalar pageblock_order), from page frame 0; where two zones share one (scalar pageblock_split), one for each.
    :param pages: one byte per page frame: 1 = PG_lru (of the page or its compound head), 2 = __PageMovable.
    :param memory_map: the firmware's memory map (e820): start, size, type.
    :param scalars: single values: min_free_kbytes, pageblock_order, trace_entries_<cpu> and others.

    SLUB's tables; all five are None where they were not read (recordings of older mmtwin, kernels with another slab allocator):

    :param caches: one row per ``struct kmem_cache`` in the order of ``slab_caches``, newest first: id (0 = the oldest), address, cpu_slab (the per-CPU
        pointer), name, flags, size, object_size, inuse, offset, align, red_left_pad, order and objects (of ``oo``), min_order and min_objects (of ``min``),
        allocflags, min_partial, cpu_partial, cpu_partial_slabs, refcount, usersize, useroffset, ctor (0 or 1), nr_partial, nr_slabs, total_objects.
    :param cache_cpus: ``struct kmem_cache_cpu``: cache (an id), cpu, slab (its pfn, -1 if there is none), freelist (number of the first object, -1 if empty).
    :param slabs: every slab of the machine: pfn, cache (an id; -1 if its cache is destroyed), order, objects, inuse, frozen, where (`SLAB_PLACES`), cpu (of
        a CPU slab or CPU partial list, else -1), position (0 = head of its partial list; -1 on no list), slabs (on a CPU partial list: ``slab->slabs``, else 0).
    :param free_objects: free objects in the order of their lists: slab (its pfn), list (0 = ``slab->freelist``, 1 = the CPU's freelist of its CPU slab),
        position, object (its number in the slab).
    :param random_seq: the caches' permutations for fresh slabs: cache, position, object.
    :param classic: of a kernel with the classic SLAB instead: the tables of `mmtwin.recording.slab_classic.CLASSIC_TABLES` by name, else None.
    :param vmaps: the virtual-area allocator: the tables of `mmtwin.recording.vmaps.VMAP_TABLES` by name; None where they were not read.
    """

    zones: pl.DataFrame
    free: pl.DataFrame
    pcp: pl.DataFrame
    pcp_pages: pl.DataFrame
    pageblocks: npt.NDArray[np.uint8]
    pages: npt.NDArray[np.uint8]
    memory_map: pl.DataFrame
    scalars: dict[str, int]
    caches: pl.DataFrame | None = None
    cache_cpus: pl.DataFrame | None = None
    slabs: pl.DataFrame | None = None
    free_objects: pl.DataFrame | None = None
    random_seq: pl.DataFrame | None = None
    classic: Mapping[str, pl.DataFrame] | None = None
    vmaps: Mapping[str, pl.DataFrame] | None = None

    @property
    def has_pages(self) -> bool:
        """Whether the page allocator's state is there."""
        return len(self.zones) > 0


@dataclass(frozen=True)
class Recording(InNotebook):
    """A whole recording. Imported trace text has no snapshots, so it cannot be checked, only counted and analysed."""

    provenance: Provenance
    before: Snapshot | None
    after: Snapshot | None
    events: pl.DataFrame

    def _card(self) -> Card:
        p = self.provenance
        snapshots = [name for name, snapshot in (("before", self.before), ("after", self.after)) if snapshot is not None]
        rows = [
            ("kernel", p.kernel_release),
            ("RAM", readable_size(p.ram_bytes) if p.ram_bytes else "unknown"),
            ("CPUs", str(p.cpus)),
            ("workload", p.workload_name or "unknown"),
            ("snapshots", " and ".join(snapshots) or "none"),
            ("events", f"{len(self.events):,}"),
            ("lost events", f"{p.lost_events:,}"),
        ]
        kinds = [(str(kind), f"{count:,}") for kind, count in self.events["kind"].value_counts(sort=True).iter_rows()]
        return Card("Recording", rows, [Table(("event", "number"), kinds)], p.notes)
