"""Replay of real recordings, again and again from their first snapshots, every answer compared with the kernel's.

A *page event* is an event of a kernel tracepoint whose name begins with ``mm_page_``: alloc, free, free_batched, alloc_zone_locked, pcpu_drain and
alloc_extfrag. The recorder's own probes and mm_lru_insertion are replayed too but not counted. A *page request* is one mm_page_alloc or
mm_page_free, so the rate of requests is what perf kmem's rate compares with.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from bench.measure import ROOT, Figures, one_core, rates, say
from mmtwin.errors import RecordingError
from mmtwin.mm.tables import Pgdat, copy_pgdat
from mmtwin.recording import store
from mmtwin.recording.model import KINDS, Recording
from mmtwin.recording.state import restore
from mmtwin.replay import check, engine
from mmtwin.replay.placement import Placement, place

PAGE_EVENTS = tuple(kind for kind in KINDS if kind.startswith("mm_page_"))
REQUESTS = ("mm_page_alloc", "mm_page_free")
ROUNDS = 10

ABOUT = {
    "recordings": "real recordings replayed",
    "page_events_replayed": "page events (mm_page_*) replayed in all",
    "page_allocs": "allocations of one pass over all recordings",
    "page_allocs_unequal": "of them answered otherwise than the kernel did",
    "final_states_unequal": "recordings whose final state differs from the second dump",
    "page_events_per_second": "page events, one core, compiled replay with every answer compared, median round",
    "page_events_per_second_slowest": "slowest round",
    "page_events_per_second_fastest": "fastest round",
    "page_requests_per_second": "mm_page_alloc and mm_page_free only, median round",
    "page_events_with_placement_per_second": "with ordering the requests and copying the first state each time, best of 3",
    "page_events_from_file_per_second": "whole: read and check the file, order, restore, replay, compare the final state, best of 3",
}


@dataclass(frozen=True)
class Ready:
    """A recording made ready to be replayed many times."""

    path: Path
    recording: Recording
    placement: Placement
    state: Pgdat
    page_events: int
    requests: int


def paths() -> list[Path]:
    """The recordings kept for the tests (``MMTWIN_TEST_RECORDINGS`` or tests/recordings) and the demo's."""
    kept = Path(os.environ.get("MMTWIN_TEST_RECORDINGS") or ROOT / "tests" / "recordings")
    return sorted(kept.glob("*.mmrec")) + [p for p in [ROOT / "src" / "mmtwin" / "data" / "demo.mmrec"] if p.exists()]


def prepare(files: Sequence[Path]) -> list[Ready]:
    """Reads and orders those recordings that hold a first snapshot."""
    found = []
    for path in files:
        try:
            recording = store.load(path)
        except RecordingError as error:
            say(f"left out: {error}")
            continue
        if recording.before is None or recording.provenance.how != "vm":
            continue
        config = recording.provenance.kernel_config
        scale = int(config.get("PCP_BATCH_SCALE_MAX", 5))
        state = restore(recording.before, scale, config.get("TRANSPARENT_HUGEPAGE", "y") == "y")
        kinds = recording.events["kind"].cast(pl.String)
        counts = [int(kinds.is_in(names).sum()) for names in (PAGE_EVENTS, REQUESTS)]
        if counts[0]:
            found.append(Ready(path, recording, place(recording.events, recording.before, scale), state, *counts))
    return found


def measure(wanted: int = 50_000_000, files: Sequence[Path] | None = None, rounds: int = ROUNDS, times: int = 3) -> Figures:
    """Replays until `wanted` page events are reached, in `rounds` rounds; only the compiled replay is timed.

    Before, each recording is replayed once with the whole check, which says how many answers and final states are equal.
    """
    figures: Figures = dict.fromkeys(ABOUT)
    ready = prepare(paths() if files is None else files)
    figures["recordings"] = len(ready)
    if not ready:
        return figures
    results = [check.replay(r.recording)[0] for r in ready]
    figures["page_allocs"] = sum(r.page_allocs for r in results)
    figures["page_allocs_unequal"] = sum(r.page_allocs - r.page_allocs_equal for r in results)
    figures["final_states_unequal"] = sum(r.final_state_equal is False for r in results)
    per_pass, requests = sum(r.page_events for r in ready), sum(r.requests for r in ready)
    passes = max(1, -(-wanted // (per_pass * rounds)))
    with one_core():
        seconds = [sum(_timed(r) for _ in range(passes) for r in ready) for _ in range(rounds)]
        figures["page_events_with_placement_per_second"] = round(per_pass / min(sum(_with_placement(r) for r in ready) for _ in range(times)))
        figures["page_events_from_file_per_second"] = round(per_pass / min(sum(_from_file(r) for r in ready) for _ in range(times)))
    figures["page_events_replayed"] = per_pass * passes * rounds
    figures |= rates("page_events_per_second", [per_pass * passes] * rounds, seconds)
    figures["page_requests_per_second"] = rates("", [requests * passes] * rounds, seconds)[""]
    return figures


def _timed(ready: Ready) -> float:
    state = copy_pgdat(ready.state)
    start = time.perf_counter()
    engine.run(state, ready.placement)
    return time.perf_counter() - start


def _with_placement(ready: Ready) -> float:
    start = time.perf_counter()
    placement = place(ready.recording.events, ready.recording.before, int(ready.state.config[0]["pcp_batch_scale_max"]))
    engine.run(copy_pgdat(ready.state), placement)
    return time.perf_counter() - start


def _from_file(ready: Ready) -> float:
    start = time.perf_counter()
    check.replay(store.load(ready.path))
    return time.perf_counter() - start
