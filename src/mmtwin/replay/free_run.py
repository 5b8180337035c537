"""A free run: requests are answered by the twin alone, under whatever settings its state has, and whatever follows from the answers is followed.

Addresses of the recording do not occur: an object or block is known by its number in `requests.Requests`, and two tables say where the twin has put it. What
the kernel was refused and the twin grants is held for as long as such blocks usually were; what the twin refuses, its later free passes over. Both are counted.

What reclaim finds is not in the state: it is what the recording's own reclaim found, freed when the twin needs it (`free_run_reclaim`). A request that would have to reclaim
more takes from the reserves, if it is one that the kernel would go on trying for; `reclaim_waits` counts them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mmtwin.mm.slab_tables import Slub, copy_slub, reserve
from mmtwin.mm.slub import (
    object_at,
    slot_class,
)  # fmt: skip
from mmtwin.mm.tables import (
    NR_ORDERS,
    Pgdat,
    copy_pgdat,
)  # fmt: skip
from mmtwin.replay.free_run_pages import (
    C_FAILED,
    COUNTERS,
    GONE,
    P_HANDLE,
    P_SLOTS,
    P_USER,
    SCRATCH,
    W_BLOCKS,
    W_FAILED,
    W_FIXED,
    W_IDS,
    W_OBJECTS,
    W_QUEUE,
    W_SCRATCH,
    W_STOP,
    address_of,
    own_callbacks,
)
from mmtwin.replay.free_run_reclaim import Queue, stopped
from mmtwin.replay.free_run_slub import run_requests
from mmtwin.replay.requests import PAGES_RECLAIM, Requests

SAMPLES = 64
"""Moments at which the machine is looked at."""


@dataclass(frozen=True)
class Start:
    """Where a free run begins.

    :param objects: where each object is that is older than the recording: number, and slab and slot in one (`mmtwin.mm.slub`), END if it has no place.
    :param blocks: number and first page frame of each such block.
    :param table: the requests, perhaps on other CPUs and from other caches than recorded.
    :param fixed: settings that the recording's own changes leave alone (see W_FIXED).
    """

    pages: Pgdat
    slub: Slub
    table: npt.NDArray[np.void]
    objects: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.int64]
    fixed: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Policy:
    """Functions of the user's in place of the page allocator's: what `mmtwin.replay.policy` makes of them."""

    name: str
    alloc: Any
    free: Any


@dataclass(frozen=True)
class Look:
    """The machine at one moment.

    :param request: how many requests have been answered.
    :param free_blocks: by order, all zones together; `nr_free` of the free areas.
    :param free_pages: on the buddy lists; `listed_pages` on per-CPU lists; `slab_pages` in slabs.
    :param extfrag: pageblocks taken from another migrate type since the start (mm_page_alloc_extfrag).
    """

    request: int
    free_blocks: tuple[int, ...]
    free_pages: int
    listed_pages: int
    slab_pages: int
    extfrag: int
    page_failures: int

    def unusable(self, order: int) -> float:
        """The share of free memory that is in blocks too small for a request of this order (the kernel's unusable free space index)."""
        usable = sum(n << o for o, n in enumerate(self.free_blocks) if o >= order)
        return 1 - usable / self.free_pages if self.free_pages else 0.0


@dataclass(frozen=True)
class Outcome:
    """How a free run ended.

    :param counters: by the names in `COUNTERS`.
    :param failed: page requests refused, by order.
    :param looks: the machine at the start, at `SAMPLES` moments, and at the end.
    :param seconds: of the loop alone.
    :param blocks: first page frame of each block, by its number; GONE where the request was refused.
    """

    pages: Pgdat
    slub: Slub
    counters: dict[str, int]
    failed: tuple[int, ...]
    looks: list[Look]
    seconds: float
    blocks: npt.NDArray[np.int64] = field(repr=False)


def look(pages: Pgdat, slub: Slub, request: int, failures: int) -> Look:
    """The machine as it is now."""
    blocks = pages.free_area["nr_free"].reshape(-1, NR_ORDERS).sum(axis=0)
    return Look(
        request, tuple(int(n) for n in blocks), int((blocks << np.arange(NR_ORDERS)).sum()), int(pages.pcp["count"].sum()), int(slub.config[0]["pages"]),
        int(pages.config[0]["extfrag"]), failures,
    )  # fmt: skip


def start_of(requests: Requests) -> Start:
    """The recording's own start, with its own settings."""
    pages, slub = copy_pgdat(requests.pages), copy_slub(requests.slub)
    objects = np.array([(n, object_at(pages, slub, a)) for n, a in requests.old_objects.tolist()], dtype=np.int64).reshape(-1, 2)
    return Start(pages, slub, requests.table, objects, requests.old_blocks[:, :2].copy())


def words_of(start: Start, requests: Requests, policy: Policy | None, slots: int) -> npt.NDArray[np.int64]:
    """The words that a loop begins with.

    :param slots: of the largest slab.
    """
    blocks = W_OBJECTS + requests.objects
    ids = blocks + requests.blocks
    queue = ids + len(requests.ids) + SCRATCH
    marks = int(np.count_nonzero(start.table["op"] == PAGES_RECLAIM))
    w = np.full(queue + marks, GONE, dtype=np.int64)
    w[:W_OBJECTS] = w[queue:] = 0
    w[W_QUEUE] = queue
    w[W_BLOCKS], w[W_IDS], w[W_SCRATCH] = blocks, ids, ids + len(requests.ids)
    w[ids : ids + len(requests.ids)] = requests.ids
    w[W_OBJECTS + start.objects[:, 0]], w[blocks + start.blocks[:, 0]] = start.objects[:, 1], start.blocks[:, 1]
    w[P_USER], w[P_SLOTS], w[W_FIXED : W_FIXED + 3] = policy is not None, slots, start.fixed
    return w


def run(start: Start, requests: Requests, policy: Policy | None = None, progress: Callable[[int, int], None] = lambda done, total: None) -> Outcome:
    """Answers all requests, beginning at `start`, whose tables are changed.

    :param policy: the user's page allocator; None for the kernel's.
    :param progress: called with the requests answered and their number.
    """
    pages, slub, table = start.pages, start.slub, start.table
    assert (start.blocks[:, 1] < int(pages.config[0]["nr_frames"])).all()
    most = 1 << slot_class(int(slub.cache["objects"].max(initial=1)))
    w = words_of(start, requests, policy, most)
    own, own_free = own_callbacks()
    alloc, free = (own, own_free) if policy is None else (policy.alloc, policy.free)
    pages.config[0]["extfrag"] = 0
    queue = Queue(table, w, lambda rows: run_requests(w[P_HANDLE], rows, alloc, own, free, 0))
    looks, total, seconds = [look(pages, slub, 0, 0)], len(table), 0.0
    for end in np.unique(np.linspace(0, total, SAMPLES + 1, dtype=np.int64)[1:]).tolist():
        at = looks[-1].request
        while at < end:
            slub = reserve(slub, 1 << 10, (1 << 10) * most)
            addresses = address_of(pages, slub, w)
            handle = w[P_HANDLE] = addresses.ctypes.data
            began = time.perf_counter()
            at = run_requests(handle, table[:end], alloc, own, free, at)
            if w[W_STOP]:
                at += stopped(pages, w, queue, table[at], alloc, own, free)
            seconds += time.perf_counter() - began
        looks.append(look(pages, slub, end, int(w[C_FAILED])))
        progress(end, total)
    counters = {name: int(w[i]) for i, name in enumerate(COUNTERS)}
    return Outcome(pages, slub, counters, tuple(int(n) for n in w[W_FAILED : W_FAILED + NR_ORDERS]), looks, seconds, w[w[W_BLOCKS] : w[W_IDS]])
