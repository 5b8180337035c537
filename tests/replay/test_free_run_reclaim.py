from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmtwin.mm.validate import validate
from mmtwin.mm.validate_slub import validate_slub
from mmtwin.recording import store
from mmtwin.replay.free_run import Outcome, Start, run, start_of
from mmtwin.replay.requests import (
    BALANCE,
    BY_KSWAPD,
    BY_TASK,
    FLAG_SOFT,
    GRACE_EVENTS,
    KSWAPD_WOKEN,
    OBJECT_ALLOC,
    OBJECT_FREE,
    OBJECT_RECLAIM,
    PAGES_ALLOC,
    PAGES_FREE,
    PAGES_RECLAIM,
    RECLAIM_CLEAR,
    REQUEST,
    TASK_RECLAIMS,
    Requests,
    _with_reclaim,
    requests,
)  # fmt: skip

PATH = Path(__file__).parents[1] / "recordings/pipes-512m-1cpu-slab.mmrec"
MOVABLE, KERNEL, MAYFAIL = 0x100CCA, 0xCC0, 0x4CC0
BLOCKS = 40
compiled = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="a whole recording takes a minute in the interpreter")


@pytest.fixture(scope="module")
def asked() -> Requests:
    recording = store.load(PATH)
    return requests(replace(recording, events=recording.events.head(2000)))


def rows(*wanted: dict[str, int]) -> np.ndarray:
    table = np.zeros(len(wanted), dtype=REQUEST)
    for row, fields in zip(table, wanted, strict=True):
        for name, value in fields.items():
            row[name] = value
    return table


def allocs(gfp: int = MOVABLE) -> list[dict[str, int]]:
    return [{"op": PAGES_ALLOC, "id": i, "gfp": gfp} for i in range(BLOCKS)]


def reclaims(by: int = BY_KSWAPD) -> list[dict[str, int]]:
    return [{"op": PAGES_RECLAIM, "id": i, "arg": i, "migratetype": by} for i in range(BLOCKS)]


def answer(asked: Requests, table: np.ndarray, objects: int = 0, **marks: int) -> Outcome:
    """Runs these requests from the recording's start, with other watermarks."""
    nothing = np.zeros((0, 2), np.int64)
    mine = replace(asked, table=table, ids=nothing[:, 0], objects=objects, blocks=BLOCKS + 1, old_objects=nothing, old_blocks=np.zeros((0, 3), np.int64))
    start: Start = start_of(mine)
    for name, value in marks.items():
        start.pages.zone[name] = value
    if "watermark_boost" in marks:
        start.pages.config[0]["kswapd_pending"], start.pages.config[0]["kswapd_highest_zoneidx"] = 1, 2
    outcome = run(start, mine)
    validate_slub(outcome.slub, outcome.pages)
    for name in set(marks) - {"watermark_boost"}:
        outcome.pages.zone[name] = asked.pages.zone[name]
    validate(outcome.pages, True)
    return outcome


def test_kswapd_runs_as_recorded_only_if_it_is_needed(asked: Requests) -> None:
    table = rows(*allocs(), {"op": BALANCE, "arg": 2}, *reclaims(), {"op": RECLAIM_CLEAR, "migratetype": 1})
    assert answer(asked, table).counters["page_frees"] == 0
    assert answer(asked, table, wmark_high=1 << 30).counters["page_frees"] == BLOCKS


def test_a_task_reclaims_as_recorded_only_if_it_has_to(asked: Requests) -> None:
    table = rows(*allocs(), {"op": TASK_RECLAIMS, "gfp": KERNEL}, *reclaims(BY_TASK))
    assert answer(asked, table).counters["page_frees"] == 0
    assert answer(asked, table, wmark_low=1 << 30).counters["page_frees"] == BLOCKS


def test_kswapd_takes_first_what_is_reclaimed_first(asked: Requests) -> None:
    """Memory is short here, but was not in the recording: the block goes at once, the next request gets it again, and the recorded free is passed over."""
    table = rows(*allocs(), *reclaims())
    outcome = answer(asked, table, wmark_low=1 << 30, wmark_high=1 << 30)
    assert outcome.blocks[1] == outcome.blocks[0] and outcome.counters["page_frees"] == BLOCKS
    assert answer(asked, table).counters["page_frees"] == BLOCKS and answer(asked, table).blocks[1] != outcome.blocks[0]


def test_kswapd_is_waited_for_where_the_recorded_one_comes(asked: Requests) -> None:
    table = rows(allocs()[0], {"op": KSWAPD_WOKEN, "id": -1}, *allocs()[1:], {"op": BALANCE, "arg": 2}, *reclaims(), {"op": RECLAIM_CLEAR, "migratetype": 1})
    late = answer(asked, table, wmark_low=1 << 30, wmark_high=1 << 30)
    assert len(set(late.blocks[1:BLOCKS].tolist())) == BLOCKS - 1 and late.counters["page_frees"] == BLOCKS


def test_a_boost_ends_with_kswapds_round(asked: Requests) -> None:
    outcome = answer(asked, rows(*allocs()), watermark_boost=512)
    assert not outcome.pages.zone["watermark_boost"][:3].any() and int(outcome.pages.config[0]["kswapd_failures"]) == 1


def test_direct_reclaim(asked: Requests) -> None:
    """A task that waits gets what reclaim frees; beyond that one that goes on trying gets a page of the reserves, and one that may fail nothing."""
    last = {"op": PAGES_ALLOC, "id": BLOCKS}
    for gfp, refused in ((KERNEL, 0), (MAYFAIL, 1)):
        outcome = answer(asked, rows(last | {"gfp": gfp}), wmark_min=1 << 30, wmark_low=1 << 30)
        assert (outcome.counters["reclaim_waits"], outcome.counters["page_failures"]) == (1, refused)


def test_objects_of_shrinkers(asked: Requests) -> None:
    cache = asked.names.index("dentry")
    table = rows({"op": OBJECT_ALLOC, "arg": cache, "gfp": KERNEL}, {"op": BALANCE, "arg": 2}, {"op": OBJECT_RECLAIM}, {"op": RECLAIM_CLEAR})
    assert answer(asked, table, objects=1).counters["slab_frees"] == 0
    assert answer(asked, table, objects=1, wmark_high=1 << 30).counters["slab_frees"] == 1
    early = rows({"op": OBJECT_ALLOC, "arg": cache, "gfp": KERNEL}, *allocs(), {"op": OBJECT_RECLAIM})
    assert answer(asked, early, objects=1, wmark_low=1 << 30, wmark_high=1 << 30).counters["skipped_frees"] == 1


def test_what_is_reclaims() -> None:
    """kswapd's frees; those of a task between its direct reclaim's marks; and reclaimable objects that interrupts free soon after."""
    kinds = [
        "mm_vmscan_wakeup_kswapd",
        "balance",
        "pcp_free",
        "reclaim_clear",
        "pcp_free",
        "mm_vmscan_direct_reclaim_begin",
        "pcp_free",
        "mm_vmscan_direct_reclaim_end",
        "pcp_free",
    ]
    events = pl.DataFrame(
        {"kind": kinds, "pid": [1, 9, 9, 9, 1, 1, 1, 1, 1], "cpu": [0] * 9, "order": [0] * 5 + [3] + [0] * 3, "gfp": [0] * 5 + [KERNEL] + [0] * 3}
    )
    frees = [{"op": PAGES_FREE, "event": at, "pid": 9 if at == 2 else 1} for at in (2, 4, 6, 8)]
    objects = [
        {"op": OBJECT_FREE, "id": n, "event": 8 + wait, "flag": flag}
        for n, wait, flag in ((0, 0, FLAG_SOFT), (1, 0, FLAG_SOFT), (0, 0, 0), (0, GRACE_EVENTS, FLAG_SOFT))
    ]
    found = _with_reclaim(rows(*frees, *objects), events, np.array([True, False]))
    assert found["op"].tolist() == [
        KSWAPD_WOKEN, PAGES_RECLAIM, PAGES_FREE, TASK_RECLAIMS, PAGES_RECLAIM, PAGES_FREE, OBJECT_RECLAIM, OBJECT_FREE, OBJECT_FREE, OBJECT_FREE
    ]  # fmt: skip
    assert found["migratetype"].tolist()[:5] == [0, BY_KSWAPD, 0, 0, BY_TASK] and found["arg"].tolist()[:5] == [0, 0, 0, 0, 1]
    assert (int(found["order"][3]), int(found["gfp"][3])) == (3, KERNEL)


@compiled
def test_as_many_pages_as_the_kernel_counted() -> None:
    """A direct reclaim's end says how many pages it has freed."""
    recording = store.load(PATH.parent / "pressure/tmpfs-128m-2cpu.mmrec")
    table = requests(recording).table
    mine = table[(table["op"] == PAGES_RECLAIM) & (table["migratetype"] == BY_TASK)]
    counted = recording.events.filter(pl.col("kind") == "mm_vmscan_direct_reclaim_end")["arg"].sum()
    assert int((1 << mine["order"].astype(np.int64)).sum()) == counted == 467
