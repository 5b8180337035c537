"""A site's own requests and frees on the twin, under two allocators, on equal machines.

The requests come in the order of the recording, with their sizes, flags, CPUs and contexts; nothing else runs on the machine. So the difference between two trials is the
allocator's alone, but a cache that the site shares with others in reality is all its own here, save for the free objects that the recorded machine already has in it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from mmtwin import profiles
from mmtwin.diagnose.advise.rules import Way, cache_flags
from mmtwin.diagnose.advise.size_classes import Objects
from mmtwin.errors import AllocationFailure, KernelBug, MmtwinError, ProfileError, SchedulingWhileAtomic, SleepingInAtomic
from mmtwin.gfp import GFP
from mmtwin.machine import GFP_BITS, Machine, boot
from mmtwin.recording import load
from mmtwin.recording.model import Recording
from mmtwin.slab_api import KmemCache
from mmtwin.units import PAGE_SIZE, format_size, get_order

MOST = 20_000
"""Objects tried at most; of more, every n-th is taken, with its own free."""
MOST_MAPPED = 1_000
"""The same where page tables are written, which takes the twin longer."""
MOST_FRAMES = 1 << 18
"""Frames (1 GiB) of a machine that is fragmented for a trial at most; a larger one is stood in for by a booted one of 256 MiB."""
MEMPOOL_DROPS = int(GFP.DIRECT_RECLAIM | GFP.IO)
MEMPOOL_ADDS = int(GFP.NOMEMALLOC | GFP.NORETRY | GFP.NOWARN)
BOOTED_RAM, BOOTED_CPUS = 512 << 20, 8


@dataclass(frozen=True)
class Outcome:
    """What one way of allocating did. Pages are 4 KiB, above what the machine held before.

    :ivar requests: tried. `failed`: got no memory at once; `waits`: of them, those for which Linux would reclaim memory first. `refused`: the kernel forbids them
        in their context.
    :ivar pages_peak, pages_end: taken from the page allocator, at most and at the end of the recording; a mempool's reserve included.
    :ivar slab_pages_peak, slab_pages_end: of them in slabs.
    :ivar highest_order: of a request for pages.
    :ivar page_table_writes: entries written. `tlb_flushes`: of a range or all. `steps`: in the trees and lists of virtual areas.
    :ivar report: the kernel's words at the first refusal.
    :ivar merged_with: the cache that the suggested one became an alias of, "" if none.
    """

    requests: int
    failed: int
    waits: int
    refused: int
    pages_peak: int
    pages_end: int
    slab_pages_peak: int
    slab_pages_end: int
    highest_order: int
    page_table_writes: int
    tlb_flushes: int
    steps: int
    report: str = ""
    merged_with: str = ""


@dataclass(frozen=True)
class Trial:
    """Two ways, side by side.

    :ivar machine: which one it was tried on, in words. `every`: every n-th object was taken.
    :ivar now, then: on that machine; `now_fragmented`, `then_fragmented`: on one whose free memory is single pages only; None where no block above order 0 is asked for.
    :ivar now_short, then_short: on one that has no free memory above the minimum watermark of any zone; None where flags and reserves do not differ.
    """

    machine: str
    every: int
    now: Outcome
    then: Outcome
    now_fragmented: Outcome | None = None
    then_fragmented: Outcome | None = None
    now_short: Outcome | None = None
    then_short: Outcome | None = None

    @property
    def pages_saved(self) -> int:
        """At the peak, by the objects tried."""
        return self.now.pages_peak - self.then.pages_peak

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class Bench:
    """A machine to try things on, copied for each trial.

    :ivar text: what machine it is.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._machine: Machine | None = None
        self._fragmented: Machine | None = None
        self.text = ""

    def machine(self) -> Machine:
        """A fresh copy of the recorded machine, as it was before the events; without snapshots, of a booted one."""
        if self._machine is None:
            self._machine, self.text = _machine(self._recording)
        return self._machine.copy()

    def fragmented(self) -> Machine:
        """The same after every free page was taken and every second one given back: half of the memory is free, in single pages."""
        if self._fragmented is None:
            machine = self._small()
            fragment(machine)
            self._fragmented = machine
        return self._fragmented.copy()

    def _small(self) -> Machine:
        machine = self.machine()
        if int(machine.state.config[0]["nr_frames"]) > MOST_FRAMES:
            machine = boot(machine.profile, "256MiB", machine.cpus)
        return machine

    def compare(self, requests: pl.DataFrame, now: Way, then: Way, progress: Callable[[], None] = lambda: None) -> Trial:
        """Tries both ways.

        :param requests: the site's allocations (`sites.requests_of`).
        """
        mapped = {now.allocator, then.allocator} & {"vmalloc", "kvmalloc"}
        every = max(1, -(-len(requests) // (MOST_MAPPED if mapped else MOST)))
        sample = requests[::every]
        outcomes = []
        for way in (now, then):
            outcomes.append(run(self.machine(), sample, way))
            progress()
        order = max(outcome.highest_order for outcome in outcomes)
        fragments: list[Outcome | None] = [None, None]
        if order and any(outcome.requests for outcome in outcomes):
            fragments = [run(self.fragmented(), sample, way) for way in (now, then)]
            progress()
        short: list[Outcome | None] = [None, None]
        if (now.add, now.drop, now.reserve) != (then.add, then.drop, then.reserve):
            short = [run(self._small(), sample, way, exhausted=True) for way in (now, then)]
            progress()
        return Trial(self.text, every, *outcomes, *fragments, *short)


def _machine(recording: Recording) -> tuple[Machine, str]:
    cpus = max(1, min(recording.provenance.cpus, BOOTED_CPUS))
    if recording.before is not None and recording.before.has_pages:
        try:
            return load.machine(recording), f"the recorded machine before the events ({recording.provenance.kernel_release})"
        except ProfileError:
            pass
    try:
        profile = profiles.for_release(recording.provenance.kernel_release)
    except ProfileError:
        profile = profiles.get("linux-6.1")
    if not profile.page_allocator:
        profile = profiles.get("linux-6.1")
    ram = recording.provenance.ram_bytes or BOOTED_RAM
    return boot(profile, ram, cpus), f"a freshly booted {profile.name} with {format_size(ram)} and {cpus} CPUs, as the file has no snapshot of the machine"


def fragment(machine: Machine) -> None:
    """Takes every page, reserves too, and gives every second page frame back: no two free ones are buddies."""
    for pfn in exhaust(machine, int(GFP.MEMALLOC)):
        if pfn & 1:
            machine.free_pages(pfn, 0)
    machine.drain()


def hold(objects: Objects, classes: Iterable[int], cpus: int) -> int:
    """Bytes of slabs that these objects take on a freshly booted machine with a cache for each class and type, all on one CPU."""
    machine = boot("linux-6.1", BOOTED_RAM, cpus, cmdline="slab_nomerge")
    sizes = sorted(classes)
    before = _slab_pages(machine)
    for kind, counts in sorted(objects.counts.items()):
        caches: dict[int, KmemCache] = {}
        for size, number in counts.items():
            c = sizes[bisect_left(sizes, size)]
            if c not in caches:
                caches[c] = machine.kmem_cache_create(f"advise-{kind}-{c}", c, 0, cache_flags(kind))
            for _ in range(number):
                machine.kmem_cache_alloc(caches[c])
    return (_slab_pages(machine) - before) * PAGE_SIZE


def exhaust(machine: Machine, gfp: int = 0) -> list[int]:
    """Takes the free pages of all zones, down to the minimum watermark, and returns the page frames.

    :param gfp: __GFP_MEMALLOC: all of them.
    """
    taken = []
    for zone in (int(GFP.HIGHMEM), 0, int(GFP.DMA32), int(GFP.DMA)):
        try:
            while True:
                taken.append(machine.alloc_pages(0, gfp | zone))
        except AllocationFailure:
            pass
    return taken


def run(machine: Machine, requests: pl.DataFrame, way: Way, *, exhausted: bool = False) -> Outcome:
    """Replays requests and their frees in one way.

    :param exhausted: memory is taken down to the minimum watermark before, but after a mempool has its reserve.

    :param requests: columns row, then, bytes_req, gfp, cpu, context and then_cpu, one row per allocation.
    """
    before, slabs = machine.steps(), _slab_pages(machine)
    allocator = ALLOCATORS[way.allocator](machine, way)
    reserved = _pages(machine, before)
    if exhausted:
        exhaust(machine)
    count = len(requests)
    size, gfp = requests["bytes_req"].to_list(), [(value & GFP_BITS & ~way.drop) | way.add for value in requests["gfp"].to_list()]
    cpu, free_cpu = (requests["cpu"].to_numpy() % machine.cpus).tolist(), (requests["then_cpu"].to_numpy() % machine.cpus).tolist()
    context = requests["context"].to_list()
    begins, ends = requests["row"].to_numpy(), requests["then"].to_numpy()
    freed = np.flatnonzero(ends >= 0)
    at = np.concatenate([ends[freed], begins])
    which = np.concatenate([-1 - freed, np.arange(count)])  # negative: the free of that object; at one event it comes first
    which = which[np.argsort(at, kind="stable")]
    start = machine.steps()
    held: dict[int, int] = {}
    failed = waits = refused = 0
    peak, slab_peak = reserved, _slab_pages(machine) - slabs
    report = ""
    with machine.events() as log:
        for step in which.tolist():
            if step < 0:
                address = held.pop(-1 - step, None)
                if address is not None:
                    allocator.free(address, size[-1 - step], free_cpu[-1 - step])
                continue
            try:
                with _context(machine, context[step], cpu[step]):
                    held[step] = allocator.alloc(size[step], gfp[step], cpu[step])
            except AllocationFailure as error:
                failed += 1
                waits += error.status == "needs reclaim"
            except (SleepingInAtomic, SchedulingWhileAtomic, KernelBug) as error:
                refused += 1
                report = report or str(error)
            peak = max(peak, reserved + _pages(machine, start))
            slab_peak = max(slab_peak, _slab_pages(machine) - slabs)
    orders = [event.order for event in log if event.kind == "mm_page_alloc"]
    after = machine.steps()
    return Outcome(
        requests=count, failed=failed, waits=waits, refused=refused, pages_peak=peak, pages_end=reserved + _pages(machine, start), slab_pages_peak=slab_peak,
        slab_pages_end=_slab_pages(machine) - slabs, highest_order=max([*orders, allocator.order, 0]),
        page_table_writes=after["page_table_writes"] - start["page_table_writes"], tlb_flushes=after["tlb_flushes"] - start["tlb_flushes"],
        steps=sum(after[name] - start[name] for name in ("tree_steps", "rotations", "list_steps")), report=report, merged_with=allocator.merged_with,
    )  # fmt: skip


def _pages(machine: Machine, start: dict[str, int]) -> int:
    zone = machine.state.zone
    return int(zone["pgalloc"].sum() - zone["pgfree"].sum()) - start["pages_taken"] + start["pages_given"]


def _slab_pages(machine: Machine) -> int:
    cache = machine.slub.cache
    return int((cache["nr_slabs"] << cache["order"]).sum())


def _context(machine: Machine, context: int, cpu: int) -> AbstractContextManager[None]:
    if not context:
        return nullcontext()
    return machine.softirq(cpu) if context == 1 else machine.hardirq(cpu)


class Allocator:
    """How a site gets its memory and gives it back.

    :ivar order: the highest one asked for that the machine's events do not tell.
    """

    order = 0
    merged_with = ""

    def __init__(self, machine: Machine, way: Way) -> None:
        self.machine, self.way = machine, way

    def alloc(self, size: int, gfp: int, cpu: int) -> int:
        """An address (or page frame). :raises AllocationFailure: no memory."""
        raise NotImplementedError

    def free(self, address: int, size: int, cpu: int) -> None:
        """Gives it back."""
        raise NotImplementedError


class Kmalloc(Allocator):
    """kmalloc and kfree."""

    def alloc(self, size: int, gfp: int, cpu: int) -> int:
        self.order = max(self.order, get_order(size) if size > 2 * PAGE_SIZE else 0)
        return self.machine.kmalloc(size, gfp, cpu)

    def free(self, address: int, size: int, cpu: int) -> None:
        self.machine.kfree(address, cpu)


class Cache(Allocator):
    """A cache of its own: kmem_cache_create, which merges it where Linux would."""

    def __init__(self, machine: Machine, way: Way) -> None:
        super().__init__(machine, way)
        self.cache: KmemCache = machine.kmem_cache_create("advise_trial", way.size, 0, way.flags)
        self.merged_with = self.cache.merged_with

    def alloc(self, size: int, gfp: int, cpu: int) -> int:
        return self.machine.kmem_cache_alloc(self.cache, gfp, cpu)

    def free(self, address: int, size: int, cpu: int) -> None:
        self.machine.kmem_cache_free(self.cache, address, cpu)


class Kvmalloc(Allocator):
    """kvmalloc and kvfree."""

    def alloc(self, size: int, gfp: int, cpu: int) -> int:
        address = self.machine.kvmalloc(size, gfp, cpu, caller="advise")
        if size > 2 * PAGE_SIZE and not self.machine.is_vmalloc_addr(address):
            self.order = max(self.order, get_order(size))
        return address

    def free(self, address: int, size: int, cpu: int) -> None:
        self.machine.kvfree(address, cpu)


class Vmalloc(Allocator):
    """vmalloc and vfree."""

    def alloc(self, size: int, gfp: int, cpu: int) -> int:
        return self.machine.vmalloc(size, gfp, cpu, caller="advise")

    def free(self, address: int, size: int, cpu: int) -> None:
        self.machine.vfree(address, cpu)


class Pages(Allocator):
    """alloc_pages_exact and free_pages_exact; addresses are page frames."""

    def alloc(self, size: int, gfp: int, cpu: int) -> int:
        self.order = max(self.order, get_order(size))
        return self.machine.alloc_pages_exact(size, gfp, cpu)

    def free(self, address: int, size: int, cpu: int) -> None:
        self.machine.free_pages_exact(address, size, cpu)


class Pieces(Allocator):
    """Single pages instead of one block; an address is that of a list of page frames."""

    def __init__(self, machine: Machine, way: Way) -> None:
        super().__init__(machine, way)
        self.pages: dict[int, list[int]] = {}

    def alloc(self, size: int, gfp: int, cpu: int) -> int:
        pages: list[int] = []
        try:
            while len(pages) * PAGE_SIZE < size:
                pages.append(self.machine.alloc_pages(0, gfp, cpu))
        except AllocationFailure:
            for pfn in pages:
                self.machine.free_pages(pfn, 0, cpu)
            raise
        self.pages[pages[0]] = pages
        return pages[0]

    def free(self, address: int, size: int, cpu: int) -> None:
        for pfn in self.pages.pop(address):
            self.machine.free_pages(pfn, 0, cpu)


class Mempool(Allocator):
    """mempool_alloc and mempool_free over kmalloc (mm/mempool.c): the allocator first, without waiting, then the reserve; what is freed fills the reserve first.

    Where mempool_alloc would wait for an element to be freed, the request counts as failed.
    """

    def __init__(self, machine: Machine, way: Way) -> None:
        super().__init__(machine, way)
        self.reserve = [machine.kmalloc(way.size, int(GFP.DIRECT_RECLAIM | GFP.KSWAPD_RECLAIM | GFP.IO | GFP.FS)) for _ in range(way.reserve)]

    def alloc(self, size: int, gfp: int, cpu: int) -> int:
        try:
            return self.machine.kmalloc(self.way.size, (gfp | MEMPOOL_ADDS) & ~MEMPOOL_DROPS, cpu)
        except AllocationFailure:
            if not self.reserve:
                raise
            return self.reserve.pop()

    def free(self, address: int, size: int, cpu: int) -> None:
        if len(self.reserve) < self.way.reserve:
            self.reserve.append(address)
        else:
            self.machine.kfree(address, cpu)


ALLOCATORS: dict[str, Callable[[Machine, Way], Allocator]] = {
    "kmalloc": Kmalloc, "cache": Cache, "kvmalloc": Kvmalloc, "vmalloc": Vmalloc, "alloc_pages": Pages, "pieces": Pieces, "mempool": Mempool,
}  # fmt: skip
"""By `Way.allocator`."""


def impossible(error: MmtwinError) -> str:
    """Why a way could not be tried, in a few words."""
    return str(error).splitlines()[0]
