"""The slab allocator's part of real recordings: every object predicted; a mark that is missing or in another place is noticed, and survived."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from mmtwin.recording.model import Recording
from mmtwin.replay.check import Result, replay
from mmtwin.replay.placement import NOP, SLAB_EXCHANGE, SLAB_GIVE, SLAB_SLOW, SLAB_TAKE, Names, SlabNames, place

Make = Callable[..., pl.DataFrame]
Row = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def marked(real: dict[str, Recording]) -> dict[str, Recording]:
    """The recordings with SLUB's marks."""
    found = {name: r for name, r in real.items() if "slab_take0" in r.provenance.probes}
    assert found, "no recording has SLUB's marks; oracle/ makes them"
    return found


@pytest.fixture(scope="module")
def varied(marked: dict[str, Recording]) -> Recording:
    """The one with the most kinds of events among the shorter ones."""
    return max(
        (r for r in marked.values() if len(r.events) < 400_000 and not r.provenance.modules),
        key=lambda r: (r.events["kind"].n_unique(), r.provenance.workload_name),
    )


def test_every_object_and_the_final_state(marked: dict[str, Recording]) -> None:
    for name, recording in marked.items():
        result, _ = replay(recording)
        slab = result.slab
        assert result.slab_allocs_equal == result.slab_allocs > 2000, name
        assert result.differences == [], name
        assert result.final_state_equal, (name, [p for p in result.parts if p.equal != p.total])
        for count in ("slab_bulk", "slab_page_requests", "slab_page_frees"):
            total = slab["slab_bulk_objects"] if count == "slab_bulk" else slab[count]
            assert slab[f"{count}_equal"] == total and (total or count == "slab_page_frees"), (name, count)
        assert (slab["slab_paths"], slab["slab_unknown_frees"]) == (0, 0), name
        assert slab["slab_sizes_equal"] == slab["slab_kmallocs"] > 0, name
        assert slab["slab_learnt"] < result.slab_allocs / 20, (name, "an answer is learnt only once for each new slab")


def test_one_and_more_cpus(marked: dict[str, Recording]) -> None:
    assert {r.provenance.cpus > 1 for r in marked.values()} == {False, True}


def changed(recording: Recording, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Result:
    return replay(replace(recording, events=change(recording.events)))[0]


def rows_of(recording: Recording, kind: str) -> list[int]:
    return [int(row) for row in (recording.events["kind"].cast(pl.String) == kind).arg_true().to_list()]


@pytest.mark.parametrize("kind", ["slab_take", "slab_give", "slab_slow", "slab_refill", "slab_cmpxchg", "slab_load", "slab_new", "slab_node_partial", "kfree"])
def test_a_missing_mark_is_noticed_and_survived(varied: Recording, kind: str) -> None:
    rows = [row for row in rows_of(varied, kind) if kind != "kfree" or varied.events["ptr"][row]]  # kfree(NULL) does nothing
    at = rows[len(rows) // 2]
    result = changed(varied, lambda events: events.filter(pl.int_range(pl.len()) != at))
    assert not result.equal
    assert result.slab_allocs_equal > 0.8 * result.slab_allocs


def test_two_marks_in_each_others_place_are_noticed(varied: Recording) -> None:
    """Two tasks take from the same CPU's list, in the other order: each expects the other's object."""
    takes = np.array(rows_of(varied, "slab_take"))
    ptr, pid = (varied.events[c].to_numpy()[takes] for c in ("ptr", "pid"))
    pairs = np.flatnonzero((ptr[1:] == ptr[:-1]) & (pid[1:] != pid[:-1]))
    assert len(pairs)
    k = int(pairs[len(pairs) // 2])
    order = np.arange(len(varied.events))
    order[[takes[k], takes[k + 1]]] = order[[takes[k + 1], takes[k]]]
    result = changed(varied, lambda events: events[order])
    assert not result.equal
    assert {d["what"] for d in result.differences} & {"slab object", "slab path"}
    assert result.slab_allocs_equal > 0.8 * result.slab_allocs


# Which exchanges failed

A, B = 0x1000, 0x2000
KNOWN = Names(np.array([A, B]), np.array([0, 0]), np.array([0, 1]))


def take(ptr: int = A, **more: Any) -> Row:
    return "slab_take", {"ptr": ptr, **more}


def slow(ptr: int = A, **more: Any) -> Row:
    return "slab_slow", {"ptr": ptr, **more}


def give(head: int, **more: Any) -> Row:
    return "slab_give", {"ptr": A, "arg": head, **more}


def exchange(head: int, **more: Any) -> Row:
    return "slab_cmpxchg", {"arg": head, **more}


ALLOC: Row = ("kmem_cache_alloc", {"ptr": 64})
FREE: Row = ("kfree", {"ptr": 64})


EXCHANGES = ("slab_take", "slab_slow", "slab_give", "slab_cmpxchg")


def operations(events: Make, rows: list[Row]) -> tuple[list[int], int]:
    """What became of the marks of exchanges, and how many the placement counts as failed."""
    placement = place(events(*rows), None, 5, SlabNames(KNOWN, KNOWN))
    return [int(op["op"]) for op in placement.ops if rows[int(op["event"])][0] in EXCHANGES], placement.retried


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([take(), take(), ALLOC], [NOP, SLAB_TAKE]),
        ([take(), take(), take(), ALLOC], [NOP, NOP, SLAB_TAKE]),
        ([take(), slow(), ALLOC], [NOP, SLAB_SLOW]),
        ([take(), take(pid=8), take(), ALLOC], [NOP, SLAB_TAKE, SLAB_TAKE]),  # another task in between
        ([take(), take(cpu=1), ALLOC], [NOP, SLAB_TAKE]),  # and went on on another CPU
        ([FREE, give(5), give(5)], [NOP, SLAB_GIVE]),
        ([FREE, exchange(5), exchange(5)], [NOP, SLAB_EXCHANGE]),
        ([FREE, give(5), exchange(5)], [NOP, SLAB_EXCHANGE]),
    ],
)
def test_an_exchange_that_failed_does_not_count(events: Make, rows: list[Row], expected: list[int]) -> None:
    assert operations(events, rows) == (expected, expected.count(NOP))


@pytest.mark.parametrize(
    "rows",
    [
        [take(), ALLOC, take(), ALLOC],
        [take(), ALLOC, slow(), ALLOC],
        [take(A), take(B), ALLOC, ALLOC],  # of another cache
        [take(), slow(B), ALLOC],
        [take(), take(pid=8), ALLOC],  # of another task
        [take(pid=0), take(pid=0, cpu=1)],  # each CPU has its own idle task
        [take(), take(context=1), ALLOC],  # of a soft interrupt
        [take(), FREE, give(5), take(), ALLOC],
        [slow(), take(), ALLOC],
        [FREE, give(5), FREE, give(5)],  # freed, and freed once more
        [FREE, give(5), give(6)],
        [FREE, exchange(5), exchange(6)],
        [FREE, give(5), give(5, pid=8)],
        [FREE, give(5), take(), ALLOC, give(5)],
    ],
)
def test_an_exchange_that_succeeded_counts(events: Make, rows: list[Row]) -> None:
    found, retried = operations(events, rows)
    assert len(found) == sum(row[0] in EXCHANGES for row in rows)
    assert NOP not in found and retried == 0
