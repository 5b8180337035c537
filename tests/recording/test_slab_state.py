"""SLUB's tables of real snapshots: there and back without a difference, and consistent."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from mmtwin.mm.validate import validate
from mmtwin.mm.validate_slub import validate_slub
from mmtwin.recording import slab_state
from mmtwin.recording.model import Recording, Snapshot
from mmtwin.recording.state import restore


@pytest.fixture(scope="module")
def snapshots(real: dict[str, Recording]) -> dict[str, Snapshot]:
    """Both snapshots of each recording that has SLUB's tables."""
    pairs = [(f"{name} {which}", s) for name, r in real.items() for which, s in (("before", r.before), ("after", r.after)) if s is not None]
    found = {name: s for name, s in pairs if slab_state.has_slabs(s)}
    assert found, "no recording has SLUB's tables; oracle/ makes them"
    return found


def same(mine: pl.DataFrame, theirs: pl.DataFrame, key: list[str]) -> bool:
    columns = mine.columns
    a, b = (t.select(pl.col(columns).cast(pl.Int64)).sort(key) for t in (mine, theirs))
    return a.equals(b)


def test_there_and_back(snapshots: dict[str, Snapshot]) -> None:
    for name, snapshot in snapshots.items():
        assert snapshot.caches is not None and snapshot.cache_cpus is not None and snapshot.slabs is not None and snapshot.free_objects is not None
        pages = restore(snapshot)
        state, names = slab_state.restore(snapshot, pages, int(pages.config[0]["nr_cpus"]))
        validate_slub(state, pages)
        validate(pages)
        assert names == snapshot.caches.sort("id")["name"].to_list(), name
        tables = slab_state.Frames.of(state)
        online = snapshot.cache_cpus["cpu"].unique().implode()
        known = snapshot.slabs.filter(pl.col("cache") >= 0)
        free = snapshot.free_objects.filter(pl.col("slab").is_in(known["pfn"].implode()))
        assert same(tables.caches, snapshot.caches, ["id"]), name
        assert same(tables.cache_cpus.filter(pl.col("cpu").is_in(online)), snapshot.cache_cpus, ["cache", "cpu"]), name
        assert same(tables.slabs, known, ["pfn"]), name
        assert same(tables.free_objects, free, ["slab", "list", "position"]), name


def test_kmalloc_caches_by_name(snapshots: dict[str, Snapshot]) -> None:
    for name, snapshot in snapshots.items():
        pages = restore(snapshot)
        state, names = slab_state.restore(snapshot, pages, int(pages.config[0]["nr_cpus"]))
        classes = state.kmalloc.reshape(4, -1)
        assert [names[c] for c in classes[0, [1, 2, 3, 13]]] == ["kmalloc-96", "kmalloc-192", "kmalloc-8", "kmalloc-8k"], name
        assert names[classes[2, 7]] == "kmalloc-rcl-128", name
        assert (classes[:, 0] == -1).all(), name


def test_a_snapshot_without_slabs(snapshots: dict[str, Snapshot]) -> None:
    assert not slab_state.has_slabs(None)
    assert not slab_state.has_slabs(replace(next(iter(snapshots.values())), caches=None))
