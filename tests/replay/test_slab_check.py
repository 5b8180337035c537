"""The slab part of the final comparison: equal to itself, and each kind of difference is found, counted and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import polars as pl
import pytest

from mmtwin.mm.slab_tables import ALLOCATED, END, Slub, copy_slub
from mmtwin.recording import slab_state
from mmtwin.recording.model import Recording, Snapshot
from mmtwin.recording.state import restore
from mmtwin.replay.part import Part
from mmtwin.replay.slab_check import compare_slabs

PARTS = ("slab caches and their counts", "CPU slabs and free lists", "slabs, in order", "free objects, in order")


@pytest.fixture(scope="module")
def made(real: dict[str, Recording]) -> tuple[Snapshot, Slub, list[str]]:
    """A snapshot, and the state made of it."""
    found = [r.after for r in real.values() if r.after is not None and slab_state.has_slabs(r.after)]
    assert found, "no recording has SLUB's tables; oracle/ makes them"
    snapshot = min(found, key=lambda s: len(s.slabs) if s.slabs is not None else 0)
    pages = restore(snapshot)
    return snapshot, *slab_state.restore(snapshot, pages, int(pages.config[0]["nr_cpus"]))


def compared(made: tuple[Snapshot, Slub, list[str]], state: Slub | None = None, snapshot: Snapshot | None = None) -> dict[str, Part]:
    ids = {i: i for i in range(len(made[2]))}
    return {part.name: part for part in compare_slabs(made[1] if state is None else state, made[2], ids, snapshot or made[0])}


def test_equal_to_itself(made: tuple[Snapshot, Slub, list[str]]) -> None:
    parts = compared(made)
    assert tuple(parts) == PARTS
    assert all(p.equal == p.total > 100 and p.first == "" for p in parts.values())


def partial_slab(state: Slub) -> int:
    """A row on some node's partial list with two free objects."""
    for row in range(1024, int(state.config[0]["slabs"])):
        slab = state.slab[row]
        if slab["on_list"] and int(state.slot[int(slab["slots"]) + int(slab["freelist"])]) >= 0:
            return row
    raise AssertionError("no slab with two free objects")


def count(state: Slub) -> None:
    state.cache[3]["nr_slabs"] += 1


def cpu_list(state: Slub) -> None:
    k = state.cpu[int((state.cpu["freelist"] != END).argmax())]
    slab = state.slab[int(k["slab"])]
    at = int(slab["slots"]) + int(k["freelist"])
    k["freelist"], state.slot[at] = int(state.slot[at]), ALLOCATED


def swapped(state: Slub) -> None:
    """Two free objects in the other order."""
    slab = state.slab[partial_slab(state)]
    first = int(slab["slots"])
    a = int(slab["freelist"])
    b = int(state.slot[first + a])
    slab["freelist"], state.slot[first + a], state.slot[first + b] = b, int(state.slot[first + b]), a


def inuse(state: Slub) -> None:
    state.slab[partial_slab(state)]["inuse"] += 1


def turned(state: Slub) -> None:
    """A node's partial list with the head's two neighbours in the other order."""
    c = next(c for c in range(int(state.config[0]["caches"])) if int(state.cache[c]["nr_partial"]) >= 2)
    a = int(state.slab[c]["next"])
    b = int(state.slab[a]["next"])
    after = int(state.slab[b]["next"])
    state.slab[c]["next"], state.slab[b]["prev"], state.slab[b]["next"] = b, c, a
    state.slab[a]["prev"], state.slab[a]["next"], state.slab[after]["prev"] = b, after, a


@pytest.mark.parametrize(
    ("damage", "differing", "text"),
    [
        (count, {PARTS[0]}, "nr_slabs"),
        (cpu_list, {PARTS[1], PARTS[3]}, "freelist"),
        (swapped, {PARTS[3]}, "object"),
        (inuse, {PARTS[2]}, "inuse"),
        (turned, {PARTS[2]}, "position"),
    ],
)
def test_each_difference_is_named(made: tuple[Snapshot, Slub, list[str]], damage: Callable[[Slub], None], differing: set[str], text: str) -> None:
    state = copy_slub(made[1])
    damage(state)
    parts = compared(made, state)
    assert {name for name, p in parts.items() if p.equal != p.total} == differing
    first = next(p for p in parts.values() if p.equal != p.total).first
    assert text in first and "the kernel's is" in first
    assert first.split()[0] in made[2], "the cache is named"
    assert all(0 <= p.total - p.equal <= 60 for p in parts.values())


def test_a_slab_that_only_one_side_has(made: tuple[Snapshot, Slub, list[str]]) -> None:
    snapshot = made[0]
    assert snapshot.slabs is not None
    one = snapshot.slabs.filter(pl.col("where") == 0, pl.col("cache") >= 0).head(1)
    kernel_lacks = replace(snapshot, slabs=snapshot.slabs.filter(pl.col("pfn") != one["pfn"][0]))
    part = compared(made, snapshot=kernel_lacks)[PARTS[2]]
    assert (part.total - part.equal, part.first.endswith("only in the twin")) == (1, True)
    more = pl.concat([kernel_lacks.slabs, one.with_columns(pfn=pl.lit(one["pfn"][0] ^ 1, dtype=pl.Int64)), one]) if kernel_lacks.slabs is not None else None
    part = compared(made, snapshot=replace(snapshot, slabs=more))[PARTS[2]]
    assert (part.total - part.equal, part.first.endswith("only in the kernel")) == (1, True)
