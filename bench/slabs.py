"""Replay of real recordings with slab marks, again and again from their first snapshots, every object compared with the kernel's.

A *slab event* is one kmalloc, kfree, kmem_cache_alloc or kmem_cache_free. The recorder's marks (which path of SLUB the kernel took) are operations of the
replay too; a second rate counts them. The page requests of the same recordings run in between, as they must: their time is included, they are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from bench.measure import Figures, one_core, rates, say
from bench.recorded import paths
from mmtwin.errors import RecordingError
from mmtwin.mm.slab_tables import Slub, copy_slub
from mmtwin.mm.tables import Pgdat, copy_pgdat
from mmtwin.recording import slab_state, store
from mmtwin.recording.model import Recording
from mmtwin.recording.state import restore
from mmtwin.replay import check, engine
from mmtwin.replay.placement import SLAB_TAKE, Placement, place
from mmtwin.replay.slab_names import slab_names

EVENTS = ("kmalloc", "kfree", "kmem_cache_alloc", "kmem_cache_free")
ROUNDS = 10
ABOUT = {
    "slab_recordings": "real recordings with slab marks replayed",
    "slab_events_replayed": "slab events (kmalloc, kfree, kmem_cache_alloc, kmem_cache_free) replayed in all",
    "slab_allocs": "allocations of one pass over all recordings",
    "slab_allocs_unequal": "of them answered with another object than the kernel did",
    "slab_events_per_second": "slab events, one core, compiled replay with every object compared, page requests in the time, median round",
    "slab_events_per_second_slowest": "slowest round",
    "slab_events_per_second_fastest": "fastest round",
    "slab_ops_per_second": "the same with the recorder's marks counted, median round",
    "slab_and_page_ops_per_second": "and with the page operations counted, median round",
}


@dataclass(frozen=True)
class Ready:
    """A recording made ready to be replayed many times."""

    recording: Recording
    placement: Placement
    pages: Pgdat
    slabs: Slub
    events: int
    ops: int


def has_marks(recording: Recording) -> bool:
    """Whether SLUB's marks and its first state are recorded."""
    return slab_state.has_slabs(recording.before) and any(p.startswith("slab_take") for p in recording.provenance.probes)


def prepare(files: Sequence[Path]) -> list[Ready]:
    """Reads and orders those recordings that have slab marks."""
    found = []
    for path in files:
        try:
            recording = store.load(path)
        except RecordingError as error:
            say(f"left out: {error}")
            continue
        before = recording.before
        if before is None or not has_marks(recording):
            continue
        config = recording.provenance.kernel_config
        scale = int(config.get("PCP_BATCH_SCALE_MAX", 5))
        pages = restore(before, scale, config.get("TRANSPARENT_HUGEPAGE", "y") == "y", recording.provenance.cpus)
        slabs, names = slab_state.restore(before, pages, int(pages.config[0]["nr_cpus"]))
        meanings, slabs = slab_names(recording.events, before, recording.after, slabs, names)
        placement = place(recording.events, before, scale, meanings)
        events = int(recording.events["kind"].cast(pl.String).is_in(EVENTS).sum())
        found.append(Ready(recording, placement, pages, slabs, events, int(np.count_nonzero(placement.ops["op"] >= SLAB_TAKE))))
    return found


def measure(wanted: int = 20_000_000, files: Sequence[Path] | None = None, rounds: int = ROUNDS) -> Figures:
    """Replays until `wanted` slab events are reached, in `rounds` rounds. Only the replay is timed, not the copying of the first state before each."""
    figures: Figures = dict.fromkeys(ABOUT)
    ready = [r for r in prepare(paths() if files is None else files) if r.events]
    figures["slab_recordings"] = len(ready)
    if not ready:
        return figures
    results = [check.replay(r.recording)[0] for r in ready]
    figures["slab_allocs"] = sum(r.slab_allocs for r in results)
    figures["slab_allocs_unequal"] = sum(r.slab_allocs - r.slab_allocs_equal for r in results)
    events, ops, all_ops = sum(r.events for r in ready), sum(r.ops for r in ready), sum(len(r.placement.ops) for r in ready)
    passes = max(1, -(-wanted // (events * rounds)))
    with one_core():
        seconds = [sum(timed(r) for _ in range(passes) for r in ready) for _ in range(rounds)]
    figures["slab_events_replayed"] = events * passes * rounds
    figures |= rates("slab_events_per_second", [events * passes] * rounds, seconds)
    figures["slab_ops_per_second"] = rates("", [ops * passes] * rounds, seconds)[""]
    figures["slab_and_page_ops_per_second"] = rates("", [all_ops * passes] * rounds, seconds)[""]
    return figures


def timed(ready: Ready) -> float:
    """Seconds of one replay from a copy of the first state."""
    pages, slabs = copy_pgdat(ready.pages), copy_slub(ready.slabs)
    start = time.perf_counter()
    engine.run(pages, ready.placement, slub=slabs)
    return time.perf_counter() - start
