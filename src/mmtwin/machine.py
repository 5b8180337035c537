"""A whole computer: `boot` makes a freshly booted one, `Machine` takes requests and shows its state."""

from __future__ import annotations

import hashlib
import operator
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mmtwin import procfs, profiles
from mmtwin.address_space import AddressSpaces
from mmtwin.contexts import Contexts
from mmtwin.dma import Devices
from mmtwin.errors import AllocationFailure, BadFree, DoubleFree, ProfileError, RequestError
from mmtwin.gfp import MIGRATE_TYPES, MIGRATETYPE_NAMES, MOVABLE, gfp_names
from mmtwin.mm.page_alloc import (
    EAGAIN,
    EBUSY,
    EINVAL,
    ENOENT,
    ENOMEM,
    alloc_pages_bulk_kernel,
    alloc_pages_exact_kernel,
    alloc_pages_kernel,
    drain_pages_kernel,
    free_pages_kernel,
    free_pages_list_kernel,
)
from mmtwin.mm.slab_common import SlubConfig, slub_cpus
from mmtwin.mm.slab_tables import Slub, copy_slub
from mmtwin.mm.tables import MAX_ORDER, NR_ORDERS, PG_ALLOCATED, PG_BUDDY, PG_PCP, Pgdat, copy_pgdat, new_pgdat, pageblock_starts
from mmtwin.mm.validate import free_blocks, pcp_blocks, validate
from mmtwin.mm.vmap_tables import Vmalloc, copy_vmalloc
from mmtwin.mm.vmstat import refresh_zone_stat_thresholds, set_pgdat_percpu_threshold
from mmtwin.mm.watermark import calculate_min_free_kbytes, set_recommended_min_free_kbytes, setup_per_zone_lowmem_reserve, setup_per_zone_wmarks
from mmtwin.notebook import Card, InNotebook, Table, readable_size
from mmtwin.oom import OutOfMemory
from mmtwin.processes import Processes
from mmtwin.profiles import Profile, physical
from mmtwin.profiles.layout import AddressSpace, address_space
from mmtwin.profiles.physical import Frames, MemoryRange
from mmtwin.reclaim import Reclaim
from mmtwin.show_mem import warn_alloc
from mmtwin.slab_api import SlabAllocator, boot_caches, new_allocator
from mmtwin.swap_area import SwapAreas
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE, format_size, parse_size
from mmtwin.vmalloc_api import VmallocAllocator
from mmtwin.vmalloc_steps import free_space

if TYPE_CHECKING:
    import polars as pl

    from mmtwin.mm.highmem import HighMem
    from mmtwin.mm.pgtable_tables import Mmu
    from mmtwin.slub_debug import Watch
    from mmtwin.tracing import Event

MAX_FRAMES = 1 << 30
"""4 TiB: row numbers are 32 bits wide."""
MAX_CPUS = 8192
"""CONFIG_NR_CPUS of the recorded kernels."""
GFP_BITS = 0xFFFFFF
SLAB_FRAMES = ("caches", "slabs", "objects")
FRAMES_OF = ("zones", "free", "buddyinfo", "pcp", "pcp_pages", "pageblocks", *SLAB_FRAMES)


class Machine(InNotebook, OutOfMemory, Processes, Reclaim, Contexts, Devices, SwapAreas, VmallocAllocator, AddressSpaces, SlabAllocator):
    """One computer with one node of memory.

    Page frame numbers (pfn) are physical addresses shifted right by 12. Requests go to the lists of CPU `cpu`, as in Linux the CPU that the
    caller runs on. Every method leaves the machine consistent; `validate` checks that.

    :ivar cpus: CPUs, all online.
    :ivar state: the page allocator's tables (`mm.tables.Pgdat`), open to inspection and to compiled loops.
    :ivar profile: the kernel.
    :ivar ram: page frames that are memory, as (start, end) pairs.
    :ivar reserved: frames of `ram` that the kernel took before the page allocator had them; empty when not known.
    """

    def __init__(
        self,
        state: Pgdat,
        profile: Profile,
        ram: Sequence[Frames] = (),
        reserved: Sequence[Frames] = (),
        *,
        slub: Slub | None = None,
        cache_names: Sequence[str] = (),
        slab_config: SlubConfig | None = None,
        kasan: bool = False,
        space: AddressSpace | None = None,
        mmu: Mmu | None = None,
        highmem: HighMem | None = None,
        areas: Vmalloc | None = None,
        callers: Mapping[int, str] | None = None,
    ) -> None:
        """Wraps existing tables; `boot` and `mmtwin.load` make machines.

        :param ram: page frames that are memory; empty: all that the zones span.
        :param slub: the slab allocator's tables, with the caches' names by row; None: as it starts, with kmalloc's caches, all empty.
        :param slab_config: boot options that concern slabs; None: none.
        :param kasan: every access of an object's bytes is checked.
        :param space: the kernel's address space; None: the profile's, for this memory.
        :param mmu: page tables; None: as they are after boot. `highmem`: mappings of high memory, likewise.
        :param areas: virtual areas; None: none yet, all addresses free. `callers`: who asked for them, by ``vm_struct.caller``.
        """
        self._watch: Watch | None = None
        self.state, self.profile, self.cpus = state, profile, int(state.config[0]["nr_cpus"])
        zones = [(int(zone["start_pfn"]), int(zone["end_pfn"])) for zone in state.zone if int(zone["present_pages"])]
        self.ram: tuple[Frames, ...] = tuple(physical.join(ram or zones))
        self.reserved: tuple[Frames, ...] = tuple(physical.join(reserved))
        usable = physical.subtract(self.ram, self.reserved)
        self._starts, self._ends = [start for start, _ in usable], [end for _, end in usable]
        space = address_space(profile, self.ram) if space is None else space
        config = SlubConfig(cpus=slub_cpus(self.cpus, self.cpus), arch=profile.slab) if slab_config is None else slab_config
        if slub is None:
            slub, names, geometries = new_allocator(self.cpus, space.page_offset, config)
            self._set_slub(slub, [], config)
            for cache, name, geometry in zip(boot_caches(config), names, geometries, strict=True):
                self._add_cache(name, geometry, cache.usersize, cache.refcount)
        else:
            self._set_slub(slub, list(cache_names), config)
        self._set_address_space(space, mmu, highmem)
        self._set_vmalloc(free_space(self.space, self.cpus, profile) if areas is None else areas, callers)
        if kasan:
            self._watched(True)

    def __repr__(self) -> str:
        return (
            f"<Machine {self.profile.name}: {format_size(physical.count(self.ram) << PAGE_SHIFT)}, {self.cpus} CPUs, {self.free} of {self.managed} pages free>"
        )

    def _card(self) -> Card:
        names = {z: self.profile.zone_names[z] for z in procfs.populated_zones(self.state)}
        free = [
            (name, *(f"{count:,}" if count else "·" for count in self.state.free_area["nr_free"][z * NR_ORDERS : (z + 1) * NR_ORDERS].tolist()))
            for z, name in names.items()
        ]
        rows = [
            ("RAM", readable_size(physical.count(self.ram) << PAGE_SHIFT)),
            ("CPUs", str(self.cpus)),
            ("free", f"{readable_size(self.free << PAGE_SHIFT)} of {readable_size(self.managed << PAGE_SHIFT)}"),
            ("slabs", readable_size(int(self.slub.config[0]["pages"]) << PAGE_SHIFT)),
        ]
        return Card(f"Machine: {self.profile.name}", rows, [Table(("free blocks by order", *map(str, range(NR_ORDERS))), free)])

    @property
    def managed(self) -> int:
        """Pages that belong to the page allocator."""
        return int(self.state.zone["managed_pages"].sum())

    @property
    def free(self) -> int:
        """Pages on the buddy lists, exactly (counters and CPUs' differences)."""
        return int(self.state.zone["nr_free_pages"].sum()) + int(self.state.pcp["nr_free_pages_diff"].sum())

    @property
    def bytes_per_frame(self) -> float:
        """Memory of all tables per simulated page frame; what is written of it, and so resident, is less."""
        return sum(table.nbytes for table in self.state) / int(self.state.config[0]["nr_frames"])

    # Requests

    def alloc_pages(self, order: int, gfp: int, cpu: int = 0) -> int:
        """``alloc_pages``: 2^order adjacent page frames.

        :returns: the first page frame.
        :raises AllocationFailure: Linux would return NULL, after reclaim and compaction if the request may wait for them; or it would wait, and no process has memory that could be reclaimed (``.status``).
        :raises RequestError: no such order, flags or CPU.
        """
        order, gfp, cpu = self._order(order), self._gfp(gfp), self._cpu(cpu)
        if self._contexts and order <= MAX_ORDER:
            gfp = self._may_allocate(gfp, cpu, f"alloc_pages of order {order}")
        pfn = int(alloc_pages_kernel(self.state, cpu, order, gfp))
        if pfn < 0 and order <= MAX_ORDER:
            pfn = self.wait_for_memory(pfn, cpu, lambda: int(alloc_pages_kernel(self.state, cpu, order, gfp)))
        if pfn < 0:
            raise self._failure(pfn, order, gfp, cpu)
        return pfn

    def free_pages(self, pfn: int, order: int, cpu: int = 0) -> None:
        """``__free_pages``: gives a block back.

        :raises DoubleFree: it is free already.
        :raises BadFree: it is not memory, reserved, or was allocated with another order.
        :raises RequestError: no such order or CPU.
        """
        pfn, order, cpu = operator.index(pfn), self._order(order), self._cpu(cpu)
        if order > MAX_ORDER:
            raise RequestError(f"order {order}: the largest block has order {MAX_ORDER}")
        self._check_memory(pfn, order)
        error = int(free_pages_kernel(self.state, cpu, pfn, order))
        if error:
            raise self._bad_free(error, pfn, order)

    def alloc_pages_bulk(self, n: int, gfp: int, cpu: int = 0) -> list[int]:
        """``alloc_pages_bulk_array``: up to `n` single pages; fewer when the zone's lists give no more, as in Linux.

        :raises AllocationFailure: not even one.
        :raises RequestError: as for `alloc_pages`, or `n` below 0.
        """
        n, gfp, cpu = operator.index(n), self._gfp(gfp), self._cpu(cpu)
        most = int(self.state.zone["managed_pages"].sum())
        if not 0 <= n <= most:
            raise RequestError(f"{n} pages: expected 0 to {most}, the pages this machine has")
        if self._contexts:
            gfp = self._may_allocate(gfp, cpu, f"alloc_pages_bulk of {n} pages")
        out = np.zeros(n, dtype=np.int64)
        got = int(alloc_pages_bulk_kernel(self.state, cpu, gfp, out)) if n else 0
        if got < 0:
            got = self.wait_for_memory(got, cpu, lambda: int(alloc_pages_bulk_kernel(self.state, cpu, gfp, out)))
        if got < 0:
            raise self._failure(got, 0, gfp, cpu)
        pages: list[int] = out[:got].tolist()
        return pages

    def alloc_pages_exact(self, size_bytes: int, gfp: int, cpu: int = 0) -> int:
        """``alloc_pages_exact``: adjacent page frames for `size_bytes`; what a power of two would waste is given back. Free with `free_pages_exact`.

        :returns: the first page frame.
        :raises AllocationFailure: as for `alloc_pages`.
        :raises RequestError: as for `alloc_pages`, or a size below 1.
        """
        pages, gfp, cpu = self._pages(size_bytes), self._gfp(gfp), self._cpu(cpu)
        gfp &= ~0x40002  # Linux warns about __GFP_COMP and __GFP_HIGHMEM and drops them: the pages must be separate and mapped
        order = (pages - 1).bit_length()
        if order > MAX_ORDER:
            raise self._failure(-ENOMEM, order, gfp, cpu)
        if self._contexts:
            gfp = self._may_allocate(gfp, cpu, f"alloc_pages_exact of {size_bytes} bytes")
        pfn = int(alloc_pages_exact_kernel(self.state, cpu, pages, gfp))
        if pfn < 0:
            pfn = self.wait_for_memory(pfn, cpu, lambda: int(alloc_pages_exact_kernel(self.state, cpu, pages, gfp)))
        if pfn < 0:
            raise self._failure(pfn, order, gfp, cpu)
        return pfn

    def free_pages_exact(self, pfn: int, size_bytes: int, cpu: int = 0) -> None:
        """``free_pages_exact``: gives what `alloc_pages_exact` returned for this size back, page by page.

        :raises DoubleFree: a page is free already; those before it are freed.
        :raises BadFree: as for `free_pages`.
        """
        for at in range(operator.index(pfn), operator.index(pfn) + self._pages(size_bytes)):
            self.free_pages(at, 0, cpu)

    def free_pages_list(self, pfns: Sequence[int] | npt.NDArray[np.int64], cpu: int = 0) -> None:
        """``free_unref_page_list``: single pages freed together, in this order, as munmap and reclaim do.

        :raises DoubleFree: a page is free already, or twice in the list; the pages before it are freed.
        :raises BadFree: as for `free_pages`; if a page is not memory nothing is freed.
        """
        cpu, listed = self._cpu(cpu), [operator.index(pfn) for pfn in pfns]
        for pfn in listed:
            self._check_memory(pfn, 0)
        array = np.array(listed, dtype=np.int64)
        good = int(free_pages_list_kernel(self.state, cpu, array))
        if good < len(array):
            at = int(array[good])
            error = -EBUSY if at in array[:good] else int(free_pages_kernel(self.state, cpu, at, 0))
            raise self._bad_free(error, at, 0)

    def drain(self, cpu: int | None = None, here: int = 0) -> None:
        """``drain_all_pages``: empties the per-CPU lists of all CPUs, or of one, into the buddy lists. CPU `here` does the work."""
        here = self._cpu(here)
        first, last = (0, self.cpus - 1) if cpu is None else (self._cpu(cpu), self._cpu(cpu))
        drain_pages_kernel(self.state, first, last, here)

    # State

    def buddyinfo(self) -> str:
        """/proc/buddyinfo."""
        return procfs.buddyinfo(self.state, self.profile)

    def pagetypeinfo(self) -> str:
        """/proc/pagetypeinfo."""
        return procfs.pagetypeinfo(self.state, self.profile, physical.sections(self.ram, self.profile.section_order))

    def zoneinfo(self) -> str:
        """/proc/zoneinfo; counters that mmtwin does not keep are 0 (see `procfs.zoneinfo`)."""
        return procfs.zoneinfo(self.state, self.profile)

    def frame(self, what: str) -> pl.DataFrame:
        """State as a data frame.

        :param what: "zones" (one row per populated zone), "free" (blocks on the buddy lists with their positions), "buddyinfo" (their numbers by zone, type
            and order), "pcp" (per-CPU lists' counts and sizes), "pcp_pages" (what is on them), "pageblocks" (migrate types), "caches", "slabs", or "objects"
            (all that is handed out, with its address).
        :raises RequestError: another word.
        """
        import polars as pl

        names = np.array(self.profile.zone_names)
        present = np.flatnonzero(self.state.zone["present_pages"])
        if what == "zones":
            zones = {"zone": names[present], **{name: self.state.zone[name][present] for name in self.state.zone.dtype.names or ()}}
            return pl.DataFrame(zones).with_columns(*(pl.Series(f"lowmem_reserve_{j}", self.state.lowmem_reserve[present, j]) for j in range(len(names))))
        if what in ("free", "buddyinfo"):
            blocks = free_blocks(self.state)
            free = pl.DataFrame(
                {
                    "zone": names[blocks.zone],
                    "order": blocks.order,
                    "migratetype": np.array(MIGRATETYPE_NAMES)[blocks.migratetype],
                    "position": blocks.position,
                    "pfn": blocks.pfn,
                }
            )
            return free if what == "free" else free.group_by("zone", "migratetype", "order", maintain_order=True).len("blocks")
        if what == "pcp":
            rows = np.flatnonzero(np.repeat(self.state.zone["present_pages"] > 0, self.cpus))
            table = {"zone": names[rows // self.cpus], "cpu": rows % self.cpus}
            return pl.DataFrame(table | {name: self.state.pcp[name][rows] for name in self.state.pcp.dtype.names or ()})
        if what == "pcp_pages":
            listed = pcp_blocks(self.state)
            return pl.DataFrame(
                {
                    "zone": names[listed.zone],
                    "cpu": listed.cpu,
                    "list": listed.list_index,
                    "position": listed.position,
                    "pfn": listed.pfn,
                    "order": listed.order,
                }
            )
        if what == "pageblocks":
            return pl.DataFrame({"pfn": pageblock_starts(self.state), "migratetype": np.array(MIGRATETYPE_NAMES)[self.state.pageblock]})
        if what in SLAB_FRAMES:
            return self.slab_frame(what)
        raise RequestError(f"no frame {what!r}; there are: {', '.join(FRAMES_OF)}")

    # Contents of memory, and what debugging finds (slub_debug.py)

    def _watched(self, kasan: bool = False) -> Watch:
        if self._watch is None:
            from mmtwin.slub_debug import Watch

            self._watch = Watch(self, kasan)
            self._watch.install()
            if self._users is not None:
                self._users.lruvec[0]["contents"] = 1
        self._watch.kasan |= kasan
        return self._watch

    def leaks(self, by: str = "callsite") -> pl.DataFrame:
        """Objects that are handed out, by who allocated them, as ``alloc_traces`` of /sys/kernel/debug/slab.

        :param by: "callsite" (the caller's Python file and line, and cache), "cache", or "object" (each of them with its address).
        :raises RequestError: no owners are recorded: boot with ``slub_debug=U`` or ``kasan=on``; or another word.
        """
        if by not in ("callsite", "cache", "object"):
            raise RequestError(f"no leaks by {by!r}; there are: callsite, cache, object")
        if self._watch is None or not (self._watch.kasan or self._watch.stores_users()):
            raise RequestError('owners are not recorded; boot with cmdline="slub_debug=U" (or FZPU), or "kasan=on"')
        return self._watch.leaks(by)

    def copy(self) -> Machine:
        """An independent copy, for a what-if."""
        other = self._copy_tables()
        other._copy_processes(self)
        other._copy_reclaim(self)
        other._copy_oom(self)
        if self._watch is not None:
            other._watch = self._watch.copy(other)
            other._watch.install()
            if other._users is not None:
                other._users.lruvec[0]["contents"] = 1
        return other

    def _copy_tables(self) -> Machine:
        mmu, highmem = self._mmu_state()
        return Machine(
            copy_pgdat(self.state),
            self.profile,
            self.ram,
            self.reserved,
            slub=copy_slub(self.slub),
            cache_names=self._cache_names,
            slab_config=self.slab_config,
            space=self.space,
            mmu=mmu,
            highmem=highmem,
            areas=copy_vmalloc(self.areas),
            callers=self._callers,
        )

    def validate(self) -> None:
        """Checks all invariants. :raises InvariantError: naming the first broken one."""
        validate(self.state)
        from mmtwin.mm.validate_pgtable import validate_pgtable
        from mmtwin.mm.validate_slub import validate_slub

        validate_slub(self.slub, self.state)
        from mmtwin.mm.validate_vmalloc import validate_vmalloc

        validate_vmalloc(self.areas)
        validate_pgtable(self.mmu, self.state)
        if self._users is not None:
            from mmtwin.user.validate import validate_users

            validate_users(self._users, self.mmu, self.state)

    def digest(self) -> str:
        """SHA-256 of all tables: equal for machines that went through the same requests, compiled or interpreted."""
        total = hashlib.sha256()
        for table in (*self.state, *self.slub, *self.areas, self.mmu.entry, self.mmu.table, self.mmu.config, *self._process_tables()):
            total.update(np.ascontiguousarray(table).view(np.uint8).data)
        return total.hexdigest()

    def events(self) -> AbstractContextManager[list[Event]]:
        """What the allocators do inside a block, step by step, as the kernel's tracepoints would show it::

        with m.events() as log:
            m.vmalloc(20480)
        print(*log, sep="\\n")
        """
        from mmtwin.tracing import trace

        return trace(self)

    def steps(self) -> dict[str, int]:
        """What the allocators have done so far, counted: the difference around a call is what it cost.

        Pages taken and given back; nodes visited in the trees of virtual areas, rotations and list operations there; page-table entries written and
        page-table pages made; flushes of the TLBs (of a range, or of everything).
        """
        areas, mmu = self.areas.config[0], self.mmu_counters()
        return {
            "pages_taken": int(self.state.zone["pgalloc"].sum()),
            "pages_given": int(self.state.zone["pgfree"].sum()),
            **{name: int(areas[name]) for name in ("tree_steps", "rotations", "list_steps", "merges", "splits")},
            "page_table_writes": mmu["pte_writes"] + mmu["table_writes"],
            "page_table_pages": mmu["table_pages"],
            "tlb_flushes": mmu["tlb_flushes"] + mmu["tlb_range_flushes"],
        }

    # What a caller got wrong

    def _order(self, order: int) -> int:
        order = operator.index(order)
        if order < 0:
            raise RequestError(f"order {order}: expected 0 to {MAX_ORDER}")
        return min(order, 63)  # all above MAX_ORDER are refused alike

    def _pages(self, size_bytes: int) -> int:
        size = operator.index(size_bytes)
        if size < 1:
            raise RequestError(f"size {size}: expected at least 1 byte")
        return -(-size // PAGE_SIZE)

    def _cpu(self, cpu: int) -> int:
        cpu = operator.index(cpu)
        if not 0 <= cpu < self.cpus:
            raise RequestError(f"CPU {cpu}: this machine has CPUs 0 to {self.cpus - 1}")
        return cpu

    def _gfp(self, gfp: int) -> int:
        gfp = operator.index(gfp)
        if gfp < 0 or gfp & ~GFP_BITS:
            raise RequestError(f"gfp 0x{gfp:x}: bits 0x{gfp & ~GFP_BITS:x} are no GFP flags of {self.profile.name}")
        if int(self.state.gfp_zone[gfp & 0xF]) < 0:
            raise RequestError(f"gfp 0x{gfp:x} ({gfp_names(gfp)}): {gfp_names(gfp & 0xF)} together select no zone")
        if gfp & 0x18 == 0x18:
            raise RequestError(f"gfp 0x{gfp:x} ({gfp_names(gfp)}): __GFP_MOVABLE and __GFP_RECLAIMABLE exclude each other")
        return gfp

    def _check_memory(self, pfn: int, order: int) -> None:
        at = bisect_right(self._starts, pfn) - 1
        if at >= 0 and pfn + (1 << order) <= self._ends[at]:
            return
        kind = (
            "reserved by the kernel at boot" if any(start < pfn + (1 << order) and pfn < end for start, end in self.reserved) else "not memory of this machine"
        )
        raise BadFree(f"BUG: Bad page state: pfn:{pfn:05x} (order {order}) is {kind}; free only what was allocated")

    def _failure(self, error: int, order: int, gfp: int, cpu: int) -> AllocationFailure:
        words = f"page allocation failure: order:{order}, mode:0x{gfp:x}({gfp_names(gfp)}), CPU {cpu}"
        if order > MAX_ORDER:
            return AllocationFailure(
                f"{words}: the largest block has order {MAX_ORDER} ({format_size(PAGE_SIZE << MAX_ORDER)})", -ENOMEM, order, gfp, "order too large"
            )
        if error == -EAGAIN and self._contexts:
            error = self._no_reclaim(cpu, words)
        if error == -EAGAIN:
            text = f"{words}: no zone may give it at once; no process has memory that could be reclaimed"
            return AllocationFailure(text, error, order, gfp, "needs reclaim")
        if error == -EINVAL:
            raise RequestError(f"gfp 0x{gfp:x} ({gfp_names(gfp)}) selects no zone")
        text = f"{words}: no zone is above the watermark this request must respect, and it may not wait"
        comm = self.context(cpu).task.comm
        return AllocationFailure(text, error, order, gfp, "failed", lambda: warn_alloc(self, comm, order, gfp, cpu))

    def _bad_free(self, error: int, pfn: int, order: int) -> DoubleFree | BadFree:
        if error == -EBUSY:
            where, head = self._where_free(pfn)
            inside = "" if head == pfn else f", inside the block at pfn:{head:05x}"
            return DoubleFree(f"page dumped because: VM_BUG_ON_PAGE(page_ref_count(page) == 0): pfn:{pfn:05x} (order {order}) is free already, {where}{inside}")
        if error == -ENOENT:
            head = self._owner(pfn)
            have = int(self.state.page[head]["order"])
            which = f"it was allocated with order {have}" if head == pfn else f"it is inside the block at pfn:{head:05x} of order {have}"
            return BadFree(f"BUG: Bad page state: pfn:{pfn:05x} cannot be freed with order {order}: {which}")
        return BadFree(
            f"BUG: Bad page state: pfn:{pfn:05x} cannot be freed with order {order}: a block of this order begins at a multiple of {1 << order} page frames"
        )

    def _owner(self, pfn: int) -> int:
        """Head of the free, listed or allocated block that holds `pfn`."""
        for order in range(NR_ORDERS):
            head = pfn & -(1 << order)
            entry = self.state.page[head]
            if int(entry["flags"]) & (PG_BUDDY | PG_PCP | PG_ALLOCATED) and int(entry["order"]) >= order:
                return head
        return pfn

    def _where_free(self, pfn: int) -> tuple[str, int]:
        head = self._owner(pfn)
        entry = self.state.page[head]
        kind = "on a per-CPU list" if int(entry["flags"]) & PG_PCP else "on a free list" if int(entry["flags"]) & PG_BUDDY else "earlier in the same list"
        return f"{kind} (order {int(entry['order'])})", head


def boot(
    profile: str | Profile = "linux-6.1",
    ram: str | int = "256MiB",
    cpus: int = 2,
    *,
    memory_map: Iterable[MemoryRange] | None = None,
    reserved: Iterable[Frames] | None = None,
    initrd: str | int = 0,
    thp: bool | None = None,
    cmdline: str = "",
    kasan: bool = False,
    la57: bool = False,
) -> Machine:
    """A freshly booted machine, before anything was allocated from the page allocator.

    Firmware map, zones, present pages, free memory handed to the buddy lists in ascending order, then the constants in the kernel's order: the CPUs come
    online, min_free_kbytes, watermarks, thresholds, reserves, list sizes, khugepaged's raise, and last the memory that is freed late (init code and initrd).

    What the kernel keeps for itself is a model, `physical.boot_reserve`: managed pages of each zone equal those of all recorded Debian 6.1 cloud
    guests, to the page (difference 0 at 128, 256, 512, 1024 and 4096 MiB with 1, 2 or 4 CPUs); where inside memory it lies is simplified. A real
    machine has also allocated some ten thousand pages by the time a shell runs.

    :param profile: a kernel by name, or a profile.
    :param ram: memory size: bytes, or text such as "256MiB"; a whole number of pages.
    :param cpus: CPUs, all online.
    :param memory_map: the firmware's map instead of that of a QEMU pc machine with `ram`.
    :param reserved: page frames kept from the allocator, instead of the model; () for a machine without a kernel image.
    :param initrd: size of an initial RAM disk: its memory is free in the end, but did not yet count when the watermarks were set.
    :param cmdline: the kernel's command line; what concerns slabs is read (slub_min_objects, slub_max_order, slub_debug, slab_nomerge, kasan ...) and
        what concerns addresses (vmalloc, highmem and reservetop on i386, no5lvl on x86-64).
    :param la57: the processor can walk five levels of page tables (x86-64).
    :param kasan: as ``kasan=on`` on the command line: every `Machine.read` and `Machine.write` of an object's bytes is checked.
    :param thp: transparent huge pages on or off; None as the kernel decides: on from 512 MiB of managed memory.
    :raises ProfileError: unknown kernel, or too little memory for its image.
    :raises RequestError: impossible sizes.
    """
    kernel = profiles.get(profile) if isinstance(profile, str) else profile
    kasan = kasan or "kasan=on" in cmdline.split()
    if kasan and kernel.word_bits == 32:
        raise RequestError(f'{kernel.name}: there is no KASAN for 32-bit x86 (HAVE_ARCH_KASAN); use cmdline="slub_debug=FZPU"')
    cpus = operator.index(cpus)
    if not 1 <= cpus <= MAX_CPUS:
        raise RequestError(f"{cpus} CPUs: expected 1 to {MAX_CPUS}")
    ram_bytes, initrd_bytes = _size("ram", ram), _size("initrd", initrd)
    if memory_map is None and not 1 << 21 <= ram_bytes <= (MAX_FRAMES - (1 << 19)) << PAGE_SHIFT:
        raise RequestError(f"ram {ram!r}: expected 2 MiB to just below {format_size(MAX_FRAMES << PAGE_SHIFT)}")
    frames = physical.ram_frames(physical.qemu_pc_memory_map(ram_bytes) if memory_map is None else memory_map)
    frames = physical.clip(frames, 0, kernel.max_frames)
    space = address_space(kernel, frames, cmdline, la57)
    if not frames or frames[-1][1] > MAX_FRAMES:
        raise RequestError(f"memory map: expected memory, all of it below {format_size(MAX_FRAMES << PAGE_SHIFT)}")
    limits = (*kernel.zone_limits[:1], space.max_low_pfn, None) if space.bits == 32 else kernel.zone_limits  # vmalloc= and highmem= move the end of Normal
    spans = physical.zone_spans(frames, limits, len(kernel.zone_names))
    initrd_pages = -(-initrd_bytes // PAGE_SIZE)
    if reserved is None:
        reserve = physical.boot_reserve(kernel, frames, spans, cpus, initrd_pages)
        least = kernel.image.kept[-1][1] + kernel.image.near
        missing = physical.subtract([(kernel.image.kept[0][0], least)], frames)
        if missing or physical.count(reserve.freed) < initrd_pages:
            size = format_size(ram_bytes if memory_map is None else frames[-1][1] << PAGE_SHIFT)
            raise ProfileError(
                f"{size} of memory: {kernel.name} itself reaches to {-(-least // 256)} MiB; give more, or reserved=() for a machine without a kernel"
            )
    else:
        mine = list(reserved)
        reserve = physical.BootReserve(mine, physical.take_top(physical.subtract(frames, mine), initrd_pages))
    state = new_pgdat(frames[-1][1], cpus, kernel.gfp_zones, kernel.pageblock_order, kernel.pageblock_split(spans[kernel.highmem_zone].start))
    for z, (span, high) in enumerate(zip(spans, physical.is_highmem(kernel, spans), strict=True)):
        zone = state.zone[z]
        zone["start_pfn"], zone["end_pfn"], zone["present_pages"] = span
        zone["is_highmem"] = high
    free = physical.subtract(frames, reserve.kept)
    free_memory(state, free)
    _derive_constants(state, kernel, frames, free, reserve.freed, thp)
    config = SlubConfig.from_cmdline(cmdline, slub_cpus(cpus, cpus), kernel.slab)
    return Machine(state, kernel, frames, reserve.kept, slab_config=config, kasan=kasan, space=space)


def _size(name: str, value: str | int) -> int:
    try:
        size = parse_size(value)
    except ValueError as error:
        raise RequestError(f"{name}: {error}") from None
    if size < 0 or size % PAGE_SIZE:
        raise RequestError(f"{name} {value!r}: expected a multiple of {PAGE_SIZE} bytes")
    return size


def free_memory(state: Pgdat, free: Sequence[Frames]) -> None:
    """Hands free memory to the buddy lists of a machine that has none yet, all of it movable.

    The kernel frees it in ascending order in aligned chunks of up to 2^10 pages, each to the tail of its list with merging
    (memblock_free_all). What comes out is, for each zone and run of free frames, its largest aligned blocks, on every list in ascending
    order; that is built here at once.
    """
    config = state.config[0]
    for z, zone in enumerate(state.zone):
        runs = physical.clip(physical.join(free), int(zone["start_pfn"]), int(zone["end_pfn"]))
        blocks: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(NR_ORDERS)]
        for start, end in runs:
            _split(start, end, blocks)
        for order, parts in enumerate(blocks):
            if not parts:
                continue
            pfns = np.concatenate(parts)
            head = int(config["free_list_base"]) + (z * NR_ORDERS + order) * MIGRATE_TYPES + MOVABLE
            page = np.zeros(len(pfns), dtype=state.page.dtype)
            page["next"], page["prev"] = np.append(pfns[1:], head), np.append(head, pfns[:-1])
            page["order"], page["flags"] = order, PG_BUDDY
            state.page[pfns] = page
            state.page[head]["next"], state.page[head]["prev"] = pfns[0], pfns[-1]
            state.free_area[z * NR_ORDERS + order]["nr_free"] = len(pfns)
        zone["managed_pages"] = zone["nr_free_pages"] = physical.count(runs)


def _split(start: int, end: int, blocks: list[list[npt.NDArray[np.int64]]]) -> None:
    """Cuts a run of frames into its largest aligned blocks, appending to `blocks` by order."""
    while start < end:
        order = min(MAX_ORDER, (start & -start).bit_length() - 1 if start else MAX_ORDER, (end - start).bit_length() - 1)
        last = end & -(1 << MAX_ORDER) if order == MAX_ORDER else start + (1 << order)
        blocks[order].append(np.arange(start, last, 1 << order, dtype=np.int64))
        start = last


def _derive_constants(state: Pgdat, kernel: Profile, ram: Sequence[Frames], free: Sequence[Frames], late: Sequence[Frames], thp: bool | None) -> None:
    """Everything that Linux computes from the number of managed pages, at the points of its boot where it does."""
    config, zones = state.config[0], [(int(zone["start_pfn"]), int(zone["end_pfn"])) for zone in state.zone]
    config["watermark_boost_factor"], config["watermark_scale_factor"] = kernel.watermark_boost_factor, kernel.watermark_scale_factor
    config["percpu_pagelist_high_fraction"], config["pcp_batch_scale_max"] = kernel.percpu_pagelist_high_fraction, kernel.pcp_batch_scale_max
    config["thp"], config["nofragment_zone"] = kernel.thp, kernel.nofragment_zone
    spans = [physical.ZoneSpan(start, end, int(zone["present_pages"])) for (start, end), zone in zip(zones, state.zone, strict=True)]
    config["page_group_by_mobility_disabled"] = physical.estimated_kernel_pages(spans, kernel, True) < kernel.pageblock_nr_pages * MIGRATE_TYPES
    final = state.zone["managed_pages"].copy()
    late_pages = np.array([physical.count(physical.clip(late, *zone)) for zone in zones])
    if int(config["online_cpus"]) > 1:
        # each CPU that comes online sets the thresholds; the watermarks are still 0, so every zone gets a drift mark, and keeps it
        early = physical.subtract(free, late)
        deferred = physical.first_deferred(ram, max(start for start, _ in zones), kernel.section_order) if kernel.deferred_init else None
        if deferred is not None:
            early = physical.clip(early, 0, deferred)
        state.zone["managed_pages"] = [physical.count(physical.clip(early, *zone)) for zone in zones]
        refresh_zone_stat_thresholds(state)
    state.zone["managed_pages"] = np.maximum(final - late_pages, 0)
    derive_constants(state, kernel, thp)
    image = np.array([physical.count(physical.clip(kernel.image.freed, *zone)) for zone in zones]) if late else 0
    state.zone["managed_pages"] = np.maximum(final - image, 0)
    set_pgdat_percpu_threshold(state, False)  # kswapd's first sleep: the initial RAM disk has been freed, the image's spare pages not yet
    state.zone["managed_pages"] = final


def derive_constants(state: Pgdat, kernel: Profile, thp: bool | None = None) -> None:
    """min_free_kbytes, watermarks, thresholds, lowmem_reserve and list sizes from the zones' managed pages (init_per_zone_wmark_min, then khugepaged's start).

    :param thp: transparent huge pages are on; None: if enough memory is managed.
    """
    calculate_min_free_kbytes(state)
    setup_per_zone_wmarks(state)
    refresh_zone_stat_thresholds(state)
    setup_per_zone_lowmem_reserve(state, np.array(kernel.lowmem_reserve_ratio, dtype=np.int64))
    if thp is None:
        thp = int(state.zone["managed_pages"].sum()) >= kernel.thp_min_pages
    if thp and kernel.thp:
        set_recommended_min_free_kbytes(state, kernel.pageblock_nr_pages)
