"""Memory pressure on a machine: kswapd, the slow path's waiting, swap devices, and where the bytes of swapped pages are (mm/page_alloc.c, mm/swapfile.c of Linux 6.1).

Compiled rules never wait. Where a request would enter direct reclaim they answer -EAGAIN, and the machine goes through `Reclaim.slow_path`: it reclaims, compacts, kills,
and the request is made again after each step, as the kernel walks the zones again. kswapd runs as soon as the request that woke it has been answered.

A machine on which no process was ever made has nothing that could be reclaimed and nobody to kill: there the request fails with status "needs reclaim".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtwin.errors import AllocationFailure, RequestError, SegmentationFault, SyscallError
from mmtwin.gfp import MOVABLE, UNMOVABLE, gfp_migratetype, gfp_to_alloc_flags
from mmtwin.mm.kswapd import MAX_RECLAIM_RETRIES
from mmtwin.mm.page_alloc import EAGAIN, ENOMEM, drain_pages_kernel
from mmtwin.mm.pgtable_tables import PAGE_SHIFT
from mmtwin.mm.tables import PAGE_ALLOC_COSTLY_ORDER
from mmtwin.units import PAGE_SIZE
from mmtwin.user.compact_rules import COMPACT_DEFERRED, COMPACT_SKIPPED, COMPACT_SUCCESS
from mmtwin.user.compaction import ASYNC, SYNC, SYNC_LIGHT
from mmtwin.user.mm_tables import (
    FILE_SHMEM,
    IO_COPY,
    IO_FILE_IN,
    IO_FILE_OUT,
    IO_ROWS,
    IO_SWAP_IN,
    IO_SWAP_OUT,
    LRU_ACTIVE_ANON,
    LRU_ACTIVE_FILE,
    LRU_INACTIVE_ANON,
    LRU_INACTIVE_FILE,
    LRU_UNEVICTABLE,
    NR_LRU_LISTS,
    SWAP_CLUSTER,
    SWAP_CPU,
    SWAP_INFO,
    VM_EVENTS,
    Users,
)
from mmtwin.user.pressure_entry import (
    COMPACT,
    COMPACT_RETRY,
    COMPACT_ZONE,
    DIRECT_RECLAIM,
    DRAIN_SLOTS,
    DROP_SWAP_CACHE,
    KSWAPD,
    RECLAIM_RETRY,
    UNRESERVE_HIGHATOMIC,
    pressure,
    shmem_swapin_entry,
)

if TYPE_CHECKING:
    from mmtwin.memory import Memory
    from mmtwin.mm.tables import Pgdat
    from mmtwin.process import Process
    from mmtwin.profiles import Profile
    from mmtwin.slub_debug import Watch
    from mmtwin.swap_area import SwapArea

GFP_IO, GFP_NORETRY, GFP_RETRY_MAYFAIL, GFP_THISNODE, GFP_FS = 0x40, 0x10000, 0x4000, 0x200000, 0x80
MAX_COMPACT_RETRIES = 16
LRU_NAMES = {
    "nr_inactive_anon": LRU_INACTIVE_ANON, "nr_active_anon": LRU_ACTIVE_ANON, "nr_inactive_file": LRU_INACTIVE_FILE, "nr_active_file": LRU_ACTIVE_FILE,
    "nr_unevictable": LRU_UNEVICTABLE,
}  # fmt: skip


class Reclaim:
    """kswapd, direct reclaim, compaction and swapping; mixed into `Machine`."""

    state: Pgdat
    profile: Profile
    cpus: int
    _contexts: int
    _users: Users | None
    _watch: Watch | None

    if TYPE_CHECKING:  # of the machine's other parts
        swap_pages: int

        @property
        def users(self) -> Users:
            """The tables of processes."""

        user_handle: Callable[[], int]
        processes: Callable[[], Any]
        _take_users: Callable[[Users], None]
        _no_reclaim: Callable[..., int]
        _cpu: Callable[[int], int]

    _calling: Process | None = None
    """The process whose system call or fault is under way."""
    _swapping_off = False
    _swapped: dict[int, bytes] | None = None
    _on_disk: dict[int, bytes] | None = None
    _swap_rows: dict[int, int] | None = None

    # Waiting for memory

    def wait_for_memory(self, error: int, cpu: int, attempt: Callable[[], int]) -> int:
        """What becomes of a request that was refused: the rest of the slow path, with `attempt` wherever the kernel would walk the zones again.

        :param error: what the request said; anything but -EAGAIN is its last word, unless kswapd was woken and has not run yet.
        :returns: what the last attempt said.
        """
        if self._users is None or error not in (-EAGAIN, -ENOMEM):
            return error
        if error == -ENOMEM:
            return attempt() if self.run_kswapd(cpu) else error
        if self._contexts:
            error = self._no_reclaim(cpu, "a request")
            if error != -EAGAIN:
                return error
        config = self.state.config[0]
        for _ in self.slow_path(int(config["waiting_order"]), int(config["waiting_gfp"]), cpu):
            error = attempt()
            if error != -EAGAIN:
                break
        self.run_kswapd(cpu)
        return error

    def next_wait(self, waits: Iterator[None] | None, cpu: int) -> Iterator[None] | None:
        """As `wait_for_memory` for a request that is a fault: does the next step; None: there is none, the request fails. `waits`: None for a request's first step."""
        if self._contexts and waits is None and self._no_reclaim(cpu, "a page fault") != -EAGAIN:
            return None
        config = self.state.config[0]
        if waits is None:
            waits = self.slow_path(int(config["waiting_order"]), int(config["waiting_gfp"]), cpu)
        for _ in waits:
            return waits
        return None

    def slow_path(self, order: int, gfp: int, cpu: int) -> Iterator[None]:
        """``__alloc_pages_slowpath`` from where a request has to wait: each step is work done, after which it is to be tried again; it fails when there are no more."""
        top, costly = self._highest_zone(gfp), order > PAGE_ALLOC_COSTLY_ORDER
        movable = (UNMOVABLE if int(self.state.config[0]["page_group_by_mobility_disabled"]) else gfp_migratetype(gfp)) == MOVABLE
        mode, may_compact = SYNC_LIGHT, bool(gfp & GFP_IO)
        if may_compact and (costly or (order and not movable)):
            result = self._compact(order, gfp, top, ASYNC, cpu)
            yield
            if costly and gfp & GFP_NORETRY:
                if result in (COMPACT_SKIPPED, COMPACT_DEFERRED) or gfp & GFP_THISNODE:
                    return
                mode = ASYNC
        no_progress = retries = 0
        while True:
            self.run_kswapd(cpu)
            yield
            progress = self.direct_reclaim(order, gfp, top, cpu)
            if progress:
                yield
                self._unreserve_highatomic(gfp, False)
                drain_pages_kernel(self.state, 0, self.cpus - 1, cpu)
                yield
            result = COMPACT_SKIPPED
            if order and may_compact:
                result = self._compact(order, gfp, top, mode, cpu)
                yield
            if gfp & GFP_NORETRY or (costly and not (gfp & GFP_RETRY_MAYFAIL and may_compact)):
                return
            no_progress = 0 if progress and not costly else no_progress + 1
            if no_progress <= MAX_RECLAIM_RETRIES and self._should_reclaim_retry(order, gfp, top):
                continue
            if self._unreserve_highatomic(gfp, True):
                continue
            if progress and order:
                again, mode, retries = self._should_compact_retry(order, gfp, top, result, mode, retries)
                if again:
                    continue
            if not self._may_oom(order, gfp, top, cpu):
                return
            no_progress = 0

    def _highest_zone(self, gfp: int) -> int:
        return int(self.state.gfp_zone[gfp & 0xF])

    def _pressure(self, what: int, cpu: int, x: int = 0, y: int = 0, top: int = 0, mode: int = 0) -> int:
        """Runs compiled reclaim (`user.pressure_entry`), and keeps the bytes of what it wrote."""
        done = int(pressure(self.user_handle(), what, cpu, x, y, top, mode))
        self.settle_io()
        return done

    def direct_reclaim(self, order: int, gfp: int, highest_zoneidx: int, cpu: int) -> int:
        """``try_to_free_pages``: how many pages were freed; 0: no progress."""
        return self._pressure(DIRECT_RECLAIM, cpu, order, gfp, highest_zoneidx)

    def _compact(self, order: int, gfp: int, top: int, mode: int, cpu: int) -> int:
        return self._pressure(COMPACT, cpu, order, gfp, gfp_to_alloc_flags(gfp, order) << 16 | top, mode)

    def compact_memory(self, cpu: int = 0) -> int:
        """``echo 1 > /proc/sys/vm/compact_memory``: moves whatever can move; returns how many pages it moved."""
        _ = self.users
        before = int(self.users.lruvec[0]["pgmigrate_success"])
        for z in range(len(self.state.zone)):
            if int(self.state.zone[z]["present_pages"]):
                self._pressure(COMPACT_ZONE, self._cpu(cpu), z)
        return int(self.users.lruvec[0]["pgmigrate_success"]) - before

    def _unreserve_highatomic(self, gfp: int, force: bool) -> bool:
        return bool(self._pressure(UNRESERVE_HIGHATOMIC, 0, 0, gfp_migratetype(gfp), self._highest_zone(gfp), int(force)))

    def _should_reclaim_retry(self, order: int, gfp: int, top: int) -> bool:
        """``should_reclaim_retry`` behind its counter: whether, with all that could be reclaimed, a zone would pass."""
        return bool(self._pressure(RECLAIM_RETRY, 0, order, gfp_to_alloc_flags(gfp, order), top))

    def _should_compact_retry(self, order: int, gfp: int, top: int, result: int, mode: int, retries: int) -> tuple[bool, int, int]:
        """``should_compact_retry``: whether, and the next attempt's mode and number."""
        most = MAX_COMPACT_RETRIES // (4 if order > PAGE_ALLOC_COSTLY_ORDER else 1)
        retries += result == COMPACT_SUCCESS
        if result == COMPACT_SKIPPED:
            return bool(self._pressure(COMPACT_RETRY, 0, order, gfp_to_alloc_flags(gfp, order), top)), mode, retries
        if result == COMPACT_SUCCESS and retries <= most:
            return True, mode, retries
        if mode < (SYNC_LIGHT if order > PAGE_ALLOC_COSTLY_ORDER else SYNC):
            return True, mode + 1, 0
        return False, mode, retries

    def _may_oom(self, order: int, gfp: int, top: int, cpu: int) -> bool:
        """``__alloc_pages_may_oom``: whether somebody was killed, or the request may hope for others."""
        if order > PAGE_ALLOC_COSTLY_ORDER or gfp & (GFP_RETRY_MAYFAIL | GFP_THISNODE) or top < self.profile.zone_names.index("Normal"):
            return False
        return self._out_of_memory(order, gfp, cpu)

    def _out_of_memory(self, order: int, gfp: int, cpu: int) -> bool:
        """The OOM killer strikes, if there is a process that it could kill and the request is one that it does so for (a request without __GFP_FS would go around for ever:
        nobody else runs here who could help it)."""
        from mmtwin.oom import out_of_memory

        if self._users is None or not self.processes() or not gfp & GFP_FS or self._swapping_off:  # swapoff would be the first to die (oom_task_origin)
            return False
        self._users.lruvec[0]["oom_kill"] += 1
        out_of_memory(self, order, gfp, cpu, self._calling)  # type: ignore[arg-type]
        return True

    # kswapd

    def run_kswapd(self, cpu: int) -> bool:
        """kswapd runs, if it was woken, until the node is balanced or it gives up; whether it ran."""
        config = self.state.config[0]
        if not int(config["kswapd_pending"]) or self._users is None:
            return False
        while int(config["kswapd_pending"]):
            self._pressure(KSWAPD, cpu)
        return True

    # Contents of pages that are on a disk

    def settle_io(self) -> None:
        """Moves the bytes of pages that went out, came back or were migrated, in order."""
        if self._users is None:
            return
        lruvec = self._users.lruvec[0]
        n = int(lruvec["io"])
        if not n:
            return
        lruvec["io"] = 0
        if self._watch is None:
            return
        if n > IO_ROWS:
            raise RuntimeError(f"{n} pages were written at once; there is room for {IO_ROWS}")
        if self._swapped is None or self._on_disk is None:
            self._swapped, self._on_disk = {}, {}
        memory, swapped, disk = self._watch.memory, self._swapped, self._on_disk
        for kind, place, pfn in self._users.io[: 3 * n].reshape(-1, 3).tolist():
            if kind == IO_SWAP_OUT:
                _keep(memory, pfn, swapped, place)
            elif kind == IO_FILE_OUT:
                _keep(memory, pfn, disk, place)
            elif kind == IO_SWAP_IN:
                _bring(memory, pfn, swapped.get(place))
            elif kind == IO_FILE_IN:
                _bring(memory, pfn, disk.get(place))
            elif kind == IO_COPY:
                _bring(memory, pfn, bytes(memory.frames[place]) if place in memory.frames else None)

    # Swap devices

    def _enable_swap(self, area: SwapArea, rotational: bool, synchronous: bool, priority: int | None) -> None:
        """``enable_swap_info``: the device's slots are free from now on."""
        users = self.users
        free = np.flatnonzero(users.swap["used"] == 0)
        d = int(free[0]) if len(free) else len(users.swap)
        clusters = 512 if self.profile.word_bits == 64 else 256
        info = np.zeros(1, dtype=SWAP_INFO)
        info["used"], info["first"], info["max"], info["pages"] = 1, len(users.swap_map), area.slots, area.slots - 1
        info["lowest_bit"], info["highest_bit"], info["cluster_next"], info["cluster_nr"] = 1, area.slots - 1, 1, 0
        info["prio"] = min([-1, *users.swap["prio"][users.swap["used"] > 0].tolist()]) - 1 if priority is None else priority
        info["solidstate"], info["synchronous"], info["writeok"], info["clusters"] = not rotational, synchronous, 1, clusters
        info["first_cluster"], info["free_head"], info["free_tail"] = len(users.swap_cluster), -1, -1
        table = np.zeros(0, dtype=SWAP_CLUSTER)
        if not rotational:
            n = -(-area.slots // clusters)
            table = np.zeros(n, dtype=SWAP_CLUSTER)
            table["next"] = np.append(np.arange(1, n), -1)
            table["count"][0] = 1  # the header
            if area.slots % clusters:
                table["count"][-1] += clusters - area.slots % clusters
            whole = np.flatnonzero(table["count"] == 0)
            if len(whole):
                info["free_head"], info["free_tail"] = whole[0], whole[-1]
                table["next"][whole] = np.append(whole[1:], -1)
        cpus = np.zeros(self.cpus, dtype=SWAP_CPU)
        cpus["index"] = -1
        swap_map = np.zeros(area.slots, dtype=np.int16)
        swap_map[0] = 0x3FFF  # SWAP_MAP_BAD: the header
        devices, per_cpu = users.swap, users.swap_cpu
        if d == len(devices):
            devices, per_cpu = np.concatenate([devices, info]), np.concatenate([per_cpu, cpus])
        else:
            devices[d : d + 1], per_cpu[d * self.cpus : (d + 1) * self.cpus] = info, cpus
        self._take_users(
            users._replace(
                swap=devices, swap_cpu=per_cpu, swap_cluster=np.concatenate([users.swap_cluster, table]), swap_map=np.concatenate([users.swap_map, swap_map]),
                swap_cache=np.concatenate([users.swap_cache, np.full(area.slots, -1, dtype=np.int64)]),
            )
        )  # fmt: skip
        self._swap_devices[area.info] = d
        self._count_device(d, 1)

    @property
    def _swap_devices(self) -> dict[int, int]:
        """Row of each device in use, by the address of its swap_info_struct."""
        if self._swap_rows is None:
            self._swap_rows = {}
        return self._swap_rows

    def _count_device(self, d: int, sign: int) -> None:
        """A device's slots count from now on, or no more."""
        device, lruvec = self.users.swap[d], self.users.lruvec[0]
        pages = int(device["pages"])
        device["writeok"] = sign > 0
        lruvec["nr_swap_pages"] += sign * pages
        lruvec["total_swap_pages"] += sign * pages
        lruvec["nr_rotate_swap"] += sign * (not int(device["solidstate"]))
        self.swap_pages += sign * pages

    def _disable_swap(self, area: SwapArea, cpu: int) -> None:
        """``try_to_unuse``: brings back every page of a device. :raises SyscallError: ENOMEM, and the device stays in use."""
        d = self._swap_devices[area.info]
        self._count_device(d, -1)
        self._pressure(DRAIN_SLOTS, cpu)
        self._swapping_off = True
        try:
            for process in list(self.processes().values()):
                for address in self._swapped_out(process.mm, d):
                    process.touch(address, 1, write=False, cpu=cpu)
            self._bring_back_files(d, cpu)
        except (
            AllocationFailure,
            SegmentationFault,
        ) as why:  # nobody may read a page of a PROT_NONE area, so that it cannot be brought back by reading it: not modelled
            self._count_device(d, 1)
            left = int(self.users.swap[d]["inuse_pages"])
            cause = "do not fit into memory" if isinstance(why, AllocationFailure) else "cannot all be brought back: an area allows no access (PROT_NONE)"
            raise SyscallError(f"swapoff: ENOMEM: {left} pages of the device {cause}", ENOMEM) from None
        finally:
            self._swapping_off = False
        users = self.users
        self._pressure(DROP_SWAP_CACHE, cpu, d)
        if int(users.swap[d]["inuse_pages"]):
            self._count_device(d, 1)
            raise SyscallError(f"swapoff: ENOMEM: {int(users.swap[d]['inuse_pages'])} pages of the device could not be brought back", ENOMEM)
        users.swap[d]["used"] = 0
        del self._swap_devices[area.info]

    def _swapped_out(self, mm: int, device: int) -> list[int]:
        """Addresses of a process's pages that are on a device."""
        from mmtwin.process_text import swap_entries

        first = int(self.users.swap[device]["first"])
        slots = range(first, first + int(self.users.swap[device]["max"]))
        return [address for address, slot in swap_entries(self.mmu, self.users, mm).items() if slot in slots]  # type: ignore[attr-defined]

    def _bring_back_files(self, device: int, cpu: int) -> None:
        """``shmem_unuse``."""
        users = self.users
        first = int(users.swap[device]["first"])
        for row in np.flatnonzero(users.file["kind"] == FILE_SHMEM).tolist():
            start, pages = int(users.file[row]["first"]), int(users.file[row]["pages"])
            slots = -2 - users.cache[start : start + pages]
            for pgoff in np.flatnonzero((slots >= first) & (slots < first + int(users.swap[device]["max"]))).tolist():
                error = self.wait_for_memory(-EAGAIN, cpu, lambda row=row, pgoff=pgoff: int(shmem_swapin_entry(self.user_handle(), cpu, row, pgoff)))  # type: ignore[misc]
                if error < 0:
                    raise AllocationFailure("swapoff: no page for shared memory that is swapped out", error, 0, 0, "failed")
        self.settle_io()

    def _copy_reclaim(self, source: Reclaim) -> None:
        """The bytes that another machine has on its disks, and which devices those are."""
        self._swapped = None if source._swapped is None else dict(source._swapped)
        self._on_disk = None if source._on_disk is None else dict(source._on_disk)
        self._swap_rows = None if source._swap_rows is None else dict(source._swap_rows)

    # What there is

    def lru_sizes(self, zone: int | None = None) -> dict[str, int]:
        """Pages on the LRU lists, of a zone or of all: nr_inactive_anon, nr_active_anon, nr_inactive_file, nr_active_file, nr_unevictable."""
        if self._users is None:
            return dict.fromkeys(LRU_NAMES, 0)
        table = self._users.lru_size.reshape(-1, NR_LRU_LISTS)
        sizes = table.sum(axis=0) if zone is None else table[zone]
        return {name: int(sizes[lru]) for name, lru in LRU_NAMES.items()}

    def vm_events(self) -> dict[str, int]:
        """Counters of /proc/vmstat about reclaim, swapping, compaction and the OOM killer."""
        if self._users is None:
            return dict.fromkeys(VM_EVENTS, 0)
        return {name: int(self._users.lruvec[0][name]) for name in VM_EVENTS}

    def swaps(self) -> list[dict[str, int]]:
        """/proc/swaps: size and use in KiB, and priority, of each device."""
        if self._users is None:
            return []
        devices = self._users.swap[self._users.swap["used"] > 0]
        return [{"size": 4 * int(d["pages"]), "used": 4 * int(d["inuse_pages"]), "priority": int(d["prio"])} for d in devices]

    def swap_usage(self) -> tuple[int, int, int]:
        """Pages in the swap cache, free slots, all slots."""
        if self._users is None:
            return 0, 0, 0
        lruvec = self._users.lruvec[0]
        return int((self._users.swap_cache >= 0).sum()), int(lruvec["nr_swap_pages"]), int(lruvec["total_swap_pages"])

    @property
    def all_unreclaimable(self) -> bool:
        """kswapd has given up: 16 rounds without a page."""
        return int(self.state.config[0]["kswapd_failures"]) >= MAX_RECLAIM_RETRIES

    @property
    def swappiness(self) -> int:
        """vm.swappiness, 0 to 200: how readily anonymous pages go rather than files."""
        return int(self.users.lruvec[0]["swappiness"])

    @swappiness.setter
    def swappiness(self, value: int) -> None:
        if not 0 <= value <= 200:
            raise RequestError(f"swappiness {value}: expected 0 to 200")
        self.users.lruvec[0]["swappiness"] = value


def _keep(memory: Memory, pfn: int, disk: dict[int, bytes], place: int) -> None:
    """A page is written; zeros take no space."""
    frame = memory.frames.get(pfn)
    if frame is None:
        disk.pop(place, None)
    else:
        disk[place] = bytes(frame)


def _bring(memory: Memory, pfn: int, data: bytes | None) -> None:
    """A page is read."""
    memory.fill(pfn << PAGE_SHIFT, PAGE_SIZE)
    if data is not None:
        memory.write(pfn << PAGE_SHIFT, data)
