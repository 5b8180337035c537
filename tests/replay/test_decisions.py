"""Following requests through the slow path: real recordings under pressure, and small ones made by hand in which something must differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mmtwin.machine import Machine
from mmtwin.recording import store
from mmtwin.recording.model import Recording
from mmtwin.replay import check
from mmtwin.replay.decisions import DECISIONS, Decisions, decisions, frames_before, reclaim_begins
from mmtwin.replay.placement import ALLOC, OP, WALK, place

NAMES = ("fails-128m-1cpu", "fails-128m-2cpu", "swap-128m-1cpu", "swap-128m-2cpu", "tmpfs-128m-2cpu")
KERNEL, ATOMIC, NORETRY = 0xCC0, 0xA20, 0x10CC0
LOW, MIN = 0x801, 0x840
"""Flags of a first walk and of the slow path's."""


@pytest.fixture(scope="module")
def pressure() -> dict[str, Recording]:
    directory = Path(__file__).parent.parent / "recordings" / "pressure"
    return {path.stem: store.load(path) for path in sorted(directory.glob("*.mmrec"))}


@pytest.mark.parametrize("name", NAMES)
def test_decisions_of_real_guests(pressure: dict[str, Recording], name: str) -> None:
    result, _ = check.replay(pressure[name])
    found = result.decisions
    assert result.equal and result.final_state_equal
    assert result.page_allocs == result.page_allocs_equal and result.failed_allocs == result.failed_allocs_equal
    assert found["frames_before_reclaim"] == found["frames_before_reclaim_equal"] > 2000
    assert 0 <= found["first_reclaim_event"] < result.events
    assert not found["unexplained"] and not found["unfollowed"]
    assert found["requests"] == result.page_allocs + result.failed_allocs
    assert found["wakeups"] and found["slow_paths"] > 100
    if result.cpus == 1:
        assert all(found[what] == found[f"{what}_equal"] == found[f"{what}_twin"] for what in DECISIONS)
    assert result.inferred["decisions_learnt"] == found["raced"] < found["requests"] / 1000


def test_there_is_something_to_decide(pressure: dict[str, Recording]) -> None:
    """Of each decision the bundled recordings hold some, and swap is used where there is a disk."""
    kinds = {name: r.events["kind"].cast(pl.String).value_counts() for name, r in pressure.items()}
    count = {name: dict(zip(table["kind"].to_list(), table["count"].to_list(), strict=True)) for name, table in kinds.items()}
    assert set(count) == set(NAMES)
    for name, r in pressure.items():
        assert (r.provenance.swap_bytes > 0) == name.startswith("swap")
        assert (count[name].get("mm_vmscan_write_folio", 0) > 100) == name.startswith("swap")
    for kind in ("mm_vmscan_direct_reclaim_begin", "mm_compaction_try_to_compact_pages", "mark_victim", "reclaim_retry_zone", "swap_in", "move_block"):
        assert sum(c.get(kind, 0) for c in count.values()) > 0, kind


def test_a_wrong_watermark_is_noticed(pressure: dict[str, Recording]) -> None:
    """The same recording with a low watermark 40 pages higher: tests and wake-ups differ, and nothing explains it."""
    recording = pressure["fails-128m-1cpu"]
    assert recording.before is not None
    zones = recording.before.zones.with_columns(pl.when(pl.col("index") == 1).then(pl.col("wmark_low") + 40).otherwise(pl.col("wmark_low")).alias("wmark_low"))
    before = type(recording.before)(**{**recording.before.__dict__, "zones": zones})
    result, _ = check.replay(Recording(recording.provenance, before, recording.after, recording.events))
    assert result.decisions["unexplained"] and not result.equal
    assert {d["cause"] for d in result.decision_differences} & {"not known", "as its first watermark test"}


def test_old_recordings_have_no_decisions(real: dict[str, Recording]) -> None:
    result, _ = check.replay(real["settings-256m-2cpu"])
    assert result.decisions == {} and result.decision_differences == []


Row = tuple[str, dict[str, Any]]


def follow(
    events: Callable[..., pl.DataFrame], bare: Callable[..., Machine], *rows: Row, zones: tuple[int, ...] = (), needed: tuple[int, ...] = ()
) -> Decisions:
    """Decisions of hand-made events; `zones` is what the twin found at each walk (-1: none), `needed` at each call of wakeup_kswapd."""
    table = events(*rows)
    placement = place(table)
    for kind, answers in ((WALK, zones), ("wakeup_kswapd", needed)):
        at = np.flatnonzero(placement.ops["op"] == WALK if kind == WALK else table["kind"].to_numpy()[placement.ops["event"]] == kind)
        placement.ops["pfn"][at[: len(answers)]] = answers
    return decisions(table, placement, bare().state)


def call(gfp: int, sleeps: bool = True, failures: int = 0) -> Row:
    return "wakeup_kswapd", {"gfp": gfp, "order": 0, "arg": 1, "ptr": 1, "call_site": 2 if sleeps else 1, "bytes_alloc": failures}


def walk(gfp: int, flags: int, order: int = 0) -> Row:
    return "walk", {"gfp": gfp, "order": order, "arg": flags}


def page(gfp: int, pfn: int, order: int = 0) -> Row:
    return "mm_page_alloc", {"gfp": gfp, "order": order, "pfn": pfn, "migratetype": 0}


WOKEN: Row = ("mm_vmscan_wakeup_kswapd", {"order": 0, "arg": 1})
BEGIN: Row = ("mm_vmscan_direct_reclaim_begin", {"order": 0})


def end(reclaimed: int) -> Row:
    return "mm_vmscan_direct_reclaim_end", {"arg": reclaimed}


def tallies(found: Decisions) -> dict[str, tuple[int, int, int]]:
    return {name: (t.kernel, t.twin, t.both) for name, t in found.tallies.items() if t.kernel or t.twin}


def test_an_atomic_request_that_fails(events: Callable[..., pl.DataFrame], bare: Callable[..., Machine]) -> None:
    rows = (walk(ATOMIC, LOW), call(ATOMIC), WOKEN, walk(ATOMIC, MIN), call(ATOMIC, sleeps=False), walk(ATOMIC, MIN), page(ATOMIC, -1))
    found = follow(events, bare, *rows, zones=(-1, -1, -1), needed=(1, 1))
    assert tallies(found) == {"slow_paths": (1, 1, 1), "wakeups": (1, 1, 1), "failures": (1, 1, 1)} and not found.unfollowed and not found.differences


@pytest.mark.parametrize(
    ("sleeps", "failures", "needed", "twin"), [(True, 0, 1, True), (False, 0, 1, False), (True, 16, 1, False), (True, 15, 2, True), (True, 0, 0, False)]
)
def test_when_kswapd_is_woken(events: Callable[..., pl.DataFrame], bare: Callable[..., Machine], sleeps: bool, failures: int, needed: int, twin: bool) -> None:
    found = follow(events, bare, walk(KERNEL, LOW), call(KERNEL, sleeps, failures), walk(KERNEL, MIN), page(KERNEL, 8), zones=(-1, 1), needed=(needed,))
    assert found.tallies["wakeups"].twin == twin
    assert [d.what for d in found.differing] == (["wakeups"] if twin else [])


def test_requests_inside_reclaim_are_their_own(events: Callable[..., pl.DataFrame], bare: Callable[..., Machine]) -> None:
    """The page that reclaim asks for in the middle ends neither the request nor its round; a task that reclaims does not reclaim again."""
    inner = (walk(0x92C00, LOW), call(0x92C00, False), walk(0x92C00, MIN), call(0x92C00, False), walk(0x92C00, MIN), page(0x92C00, -1))
    head = (walk(KERNEL, LOW), call(KERNEL, False), walk(KERNEL, MIN), call(KERNEL, False), walk(KERNEL, MIN), BEGIN)
    found = follow(events, bare, *head, *inner, end(32), walk(KERNEL, MIN), page(KERNEL, 8), zones=(-1,) * 6 + (1,))
    assert found.requests == 2 and not found.unfollowed and not found.differences
    assert tallies(found) == {"walks": (1, 1, 1), "slow_paths": (2, 2, 2), "direct_reclaims": (1, 1, 1), "failures": (1, 1, 1)}


def test_noretry_gives_up_after_one_round(events: Callable[..., pl.DataFrame], bare: Callable[..., Machine]) -> None:
    head = (walk(NORETRY, LOW), call(NORETRY, False), walk(NORETRY, MIN), call(NORETRY, False), walk(NORETRY, MIN), BEGIN, end(0))
    found = follow(events, bare, *head, page(NORETRY, -1), zones=(-1, -1, -1))
    assert found.tallies["failures"].both == 1 and not found.differences
    again = follow(events, bare, *head, call(NORETRY, False), walk(NORETRY, MIN), page(NORETRY, 8), zones=(-1, -1, -1, 1))
    assert (again.tallies["failures"].kernel, again.tallies["failures"].twin, again.unfollowed) == (0, 1, 1)


def test_events_in_an_impossible_order(events: Callable[..., pl.DataFrame], bare: Callable[..., Machine]) -> None:
    found = follow(events, bare, walk(KERNEL, LOW), BEGIN, end(1), page(KERNEL, 8), zones=(-1,))
    assert found.unfollowed == 1


def test_where_reclaim_begins(events: Callable[..., pl.DataFrame]) -> None:
    table = events(walk(KERNEL, LOW), page(KERNEL, 8), ("mm_vmscan_kswapd_wake", {}), BEGIN)
    assert reclaim_begins(table) == 2 and reclaim_begins(table[:2]) == -1
    ops = np.zeros(3, dtype=OP)
    ops["op"], ops["event"] = ALLOC, (1, 5, 9)
    different = np.zeros(1, dtype=[("what", "i8"), ("event", "i8")])
    different["what"], different["event"] = ALLOC, 5
    assert frames_before(ops, different, 9) == (2, 1) and frames_before(ops, different, -1) == (3, 2) and frames_before(ops, different, 5) == (1, 1)
