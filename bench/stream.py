"""Replay of one long stream that never repeats, so that neither caches nor branch predictors know it by heart.

The twin makes the recording itself: random requests on a freshly booted 4 GiB machine with four CPUs. Orders follow the histogram of an in-memory
key-value server (LLFree, memtier: mostly orders 2 and 3 for network buffers); between them a file cache grows and shrinks in bursts of single pages.
About four fifths of the memory is in use. The events are those of the recorder (walk, mm_page_alloc, mm_lru_insertion, mm_page_free, pcp_free), made,
ordered and replayed chunk by chunk. Of the tracepoints counted as page events it has only mm_page_alloc and mm_page_free: here events are requests.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from bench.measure import Figures, one_core, rates
from mmtwin._jit import inner, kernel
from mmtwin.gfp import ALLOC_KSWAPD, ALLOC_NOFRAGMENT, ALLOC_WMARK_LOW, HIGHATOMIC
from mmtwin.machine import boot
from mmtwin.mm.page_alloc import free_pages_prepare, free_the_page, get_page_from_zones, highest_zone, next_zone, preferred_zone
from mmtwin.mm.tables import PG_LRU, Pgdat, copy_pgdat
from mmtwin.recording.model import KIND, KINDS
from mmtwin.replay import check, engine
from mmtwin.replay.placement import place

Column = npt.NDArray[np.int64]
ALLOC, FREE, LRU, WALK, PCP_FREE = (KIND[k] for k in ("mm_page_alloc", "mm_page_free", "mm_lru_insertion", "walk", "pcp_free"))
CPUS = 4
BURST = 256
"""Pages of the file cache that come or go together, at most."""

CLASSES = np.array(
    [  # weight, live at most in a 4 GiB machine, order, gfp, interrupt level
        (22_285, 100_000, 0, 0xCC0, 0),  # kernel, single pages
        (73_558, 400_000, 0, 0x100CCA, 0),  # processes
        (1_397, 4_000, 1, 0x40CC0, 0),
        (343_637, 64_000, 2, 0x52CC0, 0),  # network buffers
        (221_577, 32_000, 3, 0x52A20, 1),  # and those filled in interrupts
        (23, 64, 9, 0x1C20CA, 0),
        (2_500, 500_000, 0, 0x1100CCA, 0),  # file cache, in bursts; last
    ],
    dtype=np.int64,
)
ABOUT = {
    "stream_page_events": "page events of the twin's own long stream; here each is an allocation or a free",
    "stream_page_events_per_second": "one core, compiled replay with every answer compared, never the same twice, median chunk",
    "stream_page_events_per_second_slowest": "slowest chunk",
    "stream_page_events_per_second_fastest": "fastest chunk",
    "stream_page_events_with_placement_per_second": "with ordering the requests, over all chunks",
    "stream_allocs_unequal": "allocations answered otherwise than when the stream was made",
}


class Columns(NamedTuple):
    """The columns of an events table that `place` reads."""

    kind: Column
    cpu: Column
    pid: Column
    context: Column
    pfn: Column
    order: Column
    migratetype: Column
    gfp: Column
    arg: Column


class Live(NamedTuple):
    """What is allocated: a slot for each block that may live at a time, class after class. Ring of the file cache: `ring` is (tail, pages)."""

    classes: npt.NDArray[np.int64]
    pfn: Column
    ring: Column


@inner
def emit(e: Any, n: int, kind: int, cpu: int, pid: int, context: int, pfn: int, order: int, migratetype: int, gfp: int, arg: int) -> None:
    """One event."""
    e.kind[n] = kind
    e.cpu[n] = cpu
    e.pid[n] = pid
    e.context[n] = context
    e.pfn[n] = pfn
    e.order[n] = order
    e.migratetype[n] = migratetype
    e.gfp[n] = gfp
    e.arg[n] = arg


@kernel
def generate(b: Pgdat, live: Live, e: Columns, draws: Column) -> tuple[int, int, int]:
    """Makes requests on `b` until the draws or the room for events end; returns the numbers of events, of requests and of draws used."""
    n = 0
    requests = 0
    at = 0
    last = len(live.classes) - 1
    while at + 1 < len(draws) and n + 3 * BURST <= len(e.kind):
        draw, second = draws[at], draws[at + 1]
        at += 2
        c = 0
        start = 0
        while draw % (1 << 20) >= live.classes[c, 0]:
            start += live.classes[c, 1]
            c += 1
        slots, order, gfp, context = live.classes[c, 1], live.classes[c, 2], live.classes[c, 3], live.classes[c, 4]
        pid = 100 + (draw >> 20) % 16
        cpu = pid % CPUS if (draw >> 30) % 64 else (draw >> 40) % CPUS  # now and then a task is moved
        burst = 1
        freeing = False
        if c == last:
            burst = 16 + second % (BURST - 16)
            freeing = live.ring[1] >= burst and (live.ring[1] + burst > slots or (second >> 20) % 100 < 45)
            if not freeing and live.ring[1] + burst > slots:
                continue
        for _ in range(burst):
            slot = start + second % slots
            if c == last:
                slot = start + (live.ring[0] if freeing else live.ring[0] + live.ring[1]) % slots
            pfn = live.pfn[slot]
            if pfn >= 0:
                free_pages_prepare(b, pfn, order)
                migratetype = int(b.page[pfn]["migratetype"])
                emit(e, n, FREE, cpu, pid, context, pfn, order, -1, 0, 0)
                emit(e, n + 1, PCP_FREE, cpu, pid, context, pfn, order, migratetype if migratetype < HIGHATOMIC else 1, 0, 0)
                free_the_page(b, cpu, pfn, order)
                live.pfn[slot] = -1
                if c == last:
                    live.ring[0] = (live.ring[0] + 1) % slots
                    live.ring[1] -= 1
                n += 2
            else:
                top = highest_zone(b, gfp)
                flags = ALLOC_WMARK_LOW | gfp & ALLOC_KSWAPD
                if preferred_zone(b, top) == int(b.config[0]["nofragment_zone"]):
                    flags |= ALLOC_NOFRAGMENT
                z = next_zone(b, preferred_zone(b, top), order, gfp, top, flags)
                if z < 0:
                    break
                pfn = get_page_from_zones(b, z, cpu, order, gfp, top, flags, False)
                if pfn < 0:
                    break
                emit(e, n, WALK, cpu, pid, context, -1, order, -1, gfp, flags)
                emit(e, n + 1, ALLOC, cpu, pid, context, pfn, order, (gfp & 0x18) >> 3, gfp, 0)
                n += 2
                live.pfn[slot] = pfn
                if c == last:
                    live.ring[1] += 1
                    emit(e, n, LRU, cpu, pid, context, pfn, -1, -1, 0, 0)
                    n += 1
                    b.page[pfn]["flags"] = int(b.page[pfn]["flags"]) | PG_LRU
            requests += 1
    return n, requests, at


def new_live(frames: int) -> Live:
    """Nothing allocated yet; the numbers of slots scaled to the machine, the weights summed up to 2^20."""
    classes = CLASSES.copy()
    classes[:, 0] = np.cumsum(CLASSES[:, 0]) * (1 << 20) // CLASSES[:, 0].sum()
    classes[:, 1] = np.maximum(CLASSES[:, 1] * frames >> 20, 2)
    classes[-1, 1] = max(int(classes[-1, 1]), 2 * BURST)
    return Live(classes, np.full(int(classes[:, 1].sum()), -1, dtype=np.int64), np.zeros(2, dtype=np.int64))


def make_chunk(state: Pgdat, live: Live, rng: np.random.Generator, requests: int) -> tuple[pl.DataFrame, int]:
    """About `requests` further requests on `state`, as an events table, and how many they are."""
    room = requests * 5 // 2 + 3 * BURST
    columns = Columns(*(np.zeros(room, dtype=np.int64) for _ in Columns._fields))
    done, n = 0, 0
    while done < requests and n + 3 * BURST <= room:
        draws = rng.integers(0, 1 << 62, size=max(2 * (requests - done) // 2, 2), dtype=np.int64)
        rest = Columns(*(c[n:] for c in columns))
        made, got, _ = generate(state, live, rest, draws)
        n, done = n + made, done + got
    zeros = np.zeros(n, dtype=np.int64)
    table = {"bytes_req": zeros, "bytes_alloc": zeros, **{name: c[:n] for name, c in columns._asdict().items()}}
    return pl.DataFrame(table | {"kind": pl.Series(KINDS, dtype=pl.Enum(KINDS)).gather(columns.kind[:n])}), done


def measure(wanted: int = 50_000_000, chunk: int = 1_000_000, ram: str = "4GiB") -> Figures:
    """Makes and replays at least `wanted` requests; only the compiled replay is timed."""
    machine = boot(ram=ram, cpus=CPUS)
    rng, live = np.random.default_rng(1), new_live(int(machine.state.config[0]["nr_frames"]))
    twin = copy_pgdat(machine.state)
    check.warm_up()
    work: list[float] = []
    seconds, placing = [], []
    unequal = 0
    with one_core():
        while sum(work) < wanted:
            events, requests = make_chunk(machine.state, live, rng, chunk)
            start = time.perf_counter()
            placement = place(events)
            between = time.perf_counter()
            outcome = engine.run(twin, placement)
            seconds.append(time.perf_counter() - between)
            placing.append(between - start)
            work.append(requests)
            unequal += outcome.counters["differences"]
            if requests == 0:
                raise RuntimeError("the stream has come to a halt: the machine is full")
    if not unequal and any(not np.array_equal(getattr(twin, name), getattr(machine.state, name)) for name in Pgdat._fields):
        raise RuntimeError("the replay of the stream ended in another state than the machine that made it")
    return {
        "stream_page_events": int(sum(work)),
        **rates("stream_page_events_per_second", work, seconds),
        "stream_page_events_with_placement_per_second": round(sum(work) / (sum(seconds) + sum(placing))),
        "stream_allocs_unequal": unequal,
    }
