"""Real recordings replay to the page frame; a twin with a wrong rule does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from mmtwin.errors import RecordingError
from mmtwin.mm.validate import validate
from mmtwin.recording.model import Recording
from mmtwin.recording.state import restore
from mmtwin.replay.check import compare, replay


def test_every_bundled_recording_is_equal(real: dict[str, Recording]) -> None:
    """All page frames, and at the end every list in order, every pageblock type, every counter."""
    for name, recording in real.items():
        result, state = replay(recording)
        assert result.page_allocs_equal == result.page_allocs > 3000, name
        assert result.failed_allocs_equal == result.failed_allocs, name
        assert result.final_state_equal, (name, [p for p in result.parts if p.equal != p.total])
        assert result.differences == [], name
        learnt = ("unplaced_allocations", "zones_learnt", "limits_learnt", "ownership_learnt", "reserves_learnt")
        assert [result.inferred[kind] for kind in learnt] == [0] * len(learnt), (name, "nothing here needs the kernel's answer")
        assert (result.lost_events, result.missed_probes) == (0, 0), name
        validate(state)


def test_the_recordings_are_varied(real: dict[str, Recording]) -> None:
    """At least six with one CPU, among them a Normal zone, slab events, both preemption modes; two and four CPUs; memory pressure."""
    provenances = [r.provenance for r in real.values()]
    single = [p for p in provenances if p.cpus == 1]
    assert len(single) >= 6
    assert {p.cpus for p in provenances} >= {1, 2, 4}
    assert min(p.ram_bytes for p in provenances) <= 128 << 20
    assert max(p.ram_bytes for p in provenances) >= 4 << 30
    assert {"preempt=none" in p.cmdline for p in single} == {True, False}
    assert len({p.workload_name for p in provenances}) >= 6
    assert any((r.events["kind"] == "kmalloc").any() for r in real.values())
    assert any((r.events["kind"] == "isolate").any() for r in real.values()), "compaction"
    assert any((r.events["kind"] == "balance").any() for r in real.values()), "kswapd"


def _altered(recording: Recording, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Recording:
    return replace(recording, events=change(recording.events))


@pytest.fixture
def small(real: dict[str, Recording]) -> Recording:
    return min(real.values(), key=lambda r: len(r.events))


def test_a_wrong_answer_in_the_recording_is_found(small: Recording) -> None:
    """The twin must not look at the answers: one altered answer is one difference, and it is named."""
    at = int(np.flatnonzero((small.events["kind"].cast(pl.String) == "mm_page_alloc").to_numpy())[100])
    pfn = int(small.events["pfn"][at])

    def change(events: pl.DataFrame) -> pl.DataFrame:
        row = pl.int_range(pl.len()) == at
        return events.with_columns(pl.when(row).then(pl.lit(pfn ^ 1, dtype=pl.Int64)).otherwise("pfn").alias("pfn"))

    result, _ = replay(_altered(small, change))
    assert not result.equal
    assert result.differences[0]["event"] == at
    assert result.differences[0]["predicted"] == pfn
    assert result.differences[0]["expected"] == pfn ^ 1


def test_a_missing_free_is_survived(small: Recording) -> None:
    """Resync: one event lost in the middle costs some answers, not the rest of the recording, and never a broken machine."""
    at = int(np.flatnonzero((small.events["kind"].cast(pl.String) == "pcp_free").to_numpy())[50])
    result, _ = replay(_altered(small, lambda events: events.filter(pl.int_range(pl.len()) != at)))
    assert not result.equal
    assert 0 < result.page_allocs_equal < result.page_allocs


@pytest.mark.parametrize(("name", "part"), [("mmap-4g-4cpu", 0.34), ("settings-256m-2cpu", 0.5), ("modules-512m-1cpu", 0.75), ("files-256m-2cpu", 0.75)])
def test_a_recording_that_lacks_its_beginning_is_survived(real: dict[str, Recording], name: str, part: float) -> None:
    """Very many differences, but the replay ends, and the twin is a consistent machine all the time."""
    result, state = replay(_altered(real[name], lambda events: events.slice(int(len(events) * part))))
    assert not result.equal
    validate(state, allow_unmerged_pageblocks=True)


@pytest.mark.parametrize(
    ("part", "spoil"),
    [
        ("free lists, in order", lambda s: replace(s, free=s.free.with_columns(pl.col("position").reverse().over("zone", "order", "migratetype")))),
        ("per-CPU lists, in order", lambda s: replace(s, pcp_pages=s.pcp_pages.head(-1))),
        ("pageblock types", lambda s: replace(s, pageblocks=np.where(np.arange(len(s.pageblocks)) == 9, 4, s.pageblocks).astype(np.uint8))),
        ("zone counters and watermarks", lambda s: replace(s, zones=s.zones.with_columns(pl.col("nr_free_pages") + 1))),
        ("per-CPU counters", lambda s: replace(s, pcp=s.pcp.with_columns(pl.col("free_factor") + 1))),
        ("sysctls", lambda s: replace(s, scalars=s.scalars | {"totalreserve_pages": 1})),
    ],
)
def test_each_part_of_the_comparison_can_fail(small: Recording, part: str, spoil: Callable[..., object]) -> None:
    assert small.after is not None
    state = restore(small.after)
    assert all(p.equal == p.total for p in compare(state, small.after))
    failed = [p for p in compare(state, spoil(small.after)) if p.equal != p.total]  # type: ignore[arg-type]
    assert [p.name for p in failed] == [part]
    assert failed[0].first


def test_without_snapshots_there_is_nothing_to_start_from(small: Recording) -> None:
    with pytest.raises(RecordingError, match="no snapshots"):
        replay(replace(small, before=None, after=None))


def test_the_json_contract(small: Recording) -> None:
    result, _ = replay(small)
    keys = set(result.to_dict())
    wanted = {"cpus", "events", "page_allocs", "page_allocs_equal", "slab_allocs", "slab_allocs_equal", "vmap_allocs", "vmap_allocs_equal", "final_state_equal"}
    assert wanted | {"differences", "inferred_events", "seconds", "events_per_second", "schema"} <= keys
