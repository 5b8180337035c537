"""The classic SLAB's part of a real recording: every object predicted, the final state equal; what is changed is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from mmtwin.errors import RecordingError
from mmtwin.recording import store
from mmtwin.recording.model import Recording, Snapshot
from mmtwin.recording.slab_classic import check_classic
from mmtwin.recording.slab_classic_state import classic_tables_of, restore_classic
from mmtwin.replay.slab_classic import compare_classic, replay_classic


@pytest.fixture(scope="module")
def recording() -> Recording:
    """oracle/slab-kernel-workload.sh on a kernel of oracle/slab-kernel.sh: 64 MiB, one CPU."""
    return store.load(Path(__file__).parents[1] / "data" / "slab-classic-1cpu.mmrec")


def changed(snapshot: Snapshot, table: str, column: str, row: int, value: int) -> dict[str, pl.DataFrame]:
    assert snapshot.classic is not None
    tables = dict(snapshot.classic)
    frame = tables[table].with_row_index("at")
    new = pl.when(pl.col("at") == row).then(pl.lit(value)).otherwise(pl.col(column)).cast(frame.schema[column]).alias(column)
    tables[table] = frame.with_columns(new).drop("at")
    return tables


def test_every_object_and_the_final_state(recording: Recording) -> None:
    result, _ = replay_classic(recording)
    assert result.equal and result.slab_allocs == result.slab_allocs_equal > 6000
    assert result.bulk_objects > 100 and result.frees > 5000 and result.slabs_made > 100 and result.slabs_freed > 0
    assert not (result.unknown or result.unmatched or result.wrong_pages or result.wrong_frees or result.differences)
    assert [p.name for p in result.parts if p.total < 80] == []


def test_snapshot_there_and_back(recording: Recording) -> None:
    for snapshot in (recording.before, recording.after):
        assert snapshot is not None
        state, names, pointers = restore_classic(snapshot, 1)
        assert len(names) == len(pointers.cache) == len(pointers.node) == len(pointers.array) and "dentry" in names
        assert all(part.equal == part.total > 0 for part in compare_classic(state, snapshot))
        assert int(state.used.sum()) == sum(classic_tables_of(state)["classic_slabs"]["active"]) - int(state.array["avail"].sum())


def test_a_missing_event_is_found(recording: Recording) -> None:
    for kind in ("cslab_alloc", "cslab_free", "cslab_drain", "cslab_untouch", "mm_page_alloc"):
        events = recording.events.with_row_index("at")
        gone = events.filter(pl.col("kind") == kind)["at"].to_list()
        cut = events.filter(~pl.col("at").is_in(gone[: max(1, len(gone) // 3)])).drop("at")
        result, _ = replay_classic(replace(recording, events=cut))
        assert not result.equal, kind


def test_what_cannot_be_replayed(recording: Recording) -> None:
    assert recording.before is not None
    with pytest.raises(RecordingError, match="no SLAB events"):
        replay_classic(replace(recording, before=replace(recording.before, classic=None)))
    tuned = recording.events.head(1).with_columns(pl.lit("cslab_tune").cast(recording.events.schema["kind"]).alias("kind"))
    with pytest.raises(RecordingError, match="other arrays"):
        replay_classic(replace(recording, events=pl.concat([recording.events, tuned])))


@pytest.mark.parametrize(
    ("table", "column", "value", "what"),
    [
        ("classic_caches", "id", 5, "numbered from the oldest"), ("classic_caches", "num", 300, "num"), ("classic_caches", "size", 0, "size"),
        ("classic_caches", "limit", 1 << 20, "limit"), ("classic_arrays", "cache", 600, "no such cache"), ("classic_arrays", "cpu", 1, "cpu"),
        ("classic_arrays", "avail", 1000, "avail"), ("classic_arrays", "batchcount", 0, "batchcount"), ("classic_entries", "position", 500, "position"),
        ("classic_entries", "object", 77, "object"), ("classic_entries", "object", 1 << 40, "object"), ("classic_slabs", "pfn", 1 << 30, "pfn"),
        ("classic_slabs", "pfn", -1, "pfn"), ("classic_slabs", "list", 2, "list"), ("classic_slabs", "active", 300, "active"), ("classic_slabs", "first", 5000, "first"),
        ("classic_indices", "slab", 1, "slab"), ("classic_indices", "object", 255, "object"), ("classic_indices", "position", -1, "position"),
    ],
)  # fmt: skip
def test_impossible_tables(recording: Recording, table: str, column: str, value: int, what: str) -> None:
    assert recording.before is not None
    tables = changed(recording.before, table, column, 0, value)
    with pytest.raises(RecordingError, match=what):
        check_classic(tables, 1, recording.before.scalars["max_pfn"], "before")


def test_store_and_back(recording: Recording, tmp_path: Path) -> None:
    store.save(recording, tmp_path / "again.mmrec")
    again = store.load(tmp_path / "again.mmrec")
    assert again.before is not None and recording.before is not None and again.before.classic is not None and recording.before.classic is not None
    assert all(again.before.classic[name].equals(table) for name, table in recording.before.classic.items())
