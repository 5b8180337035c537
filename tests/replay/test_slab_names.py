"""Addresses of caches: what each meant at each event, caches that are made on the way, addresses that are used again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from mmtwin.mm.slab_tables import MAX_CACHES, Slub
from mmtwin.recording import slab_state
from mmtwin.recording.model import Recording, Snapshot
from mmtwin.recording.state import restore
from mmtwin.replay.placement import Names, SlabNames
from mmtwin.replay.slab_names import slab_names

Events = Callable[..., pl.DataFrame]
FIRST = 0x5000


@pytest.fixture(scope="module")
def known(real: dict[str, Recording]) -> Recording:
    """The shortest recording with SLUB's tables in both snapshots."""
    found = [r for r in real.values() if slab_state.has_slabs(r.before) and slab_state.has_slabs(r.after)]
    assert found, "no recording has SLUB's tables; oracle/ makes them"
    return min(found, key=lambda r: len(r.events))


def start(recording: Recording) -> tuple[Snapshot, Slub, list[str]]:
    assert recording.before is not None
    pages = restore(recording.before)
    state, names = slab_state.restore(recording.before, pages, int(pages.config[0]["nr_cpus"]))
    return recording.before, state, names


def signed(address: int) -> int:
    return address - (1 << 64) if address >= 1 << 63 else address


def create(**more: Any) -> tuple[str, dict[str, Any]]:
    """A cache of 16 objects of 256 bytes."""
    values = {
        "ptr": FIRST,
        "call_site": 0x900,
        "name": "new",
        "bytes_req": 250,
        "bytes_alloc": 256,
        "arg": 0 << 16 | 16,
        "gfp": 0x40000000,
        "node": 8,
        "pfn": 5,
    }
    return "slab_create", values | more


def look(names: Names, address: int, at: int) -> int:
    return int(names.look_up(np.array([address]), np.array([at]))[0])


def test_look_up_knows_from_when_on_an_address_meant_a_cache() -> None:
    names = Names(np.array([10, 20, 20, 30]), np.array([0, 0, 50, 70]), np.array([1, 2, 3, 4]))
    asked = [(10, 0, 1), (10, 99, 1), (20, 0, 2), (20, 49, 2), (20, 50, 3), (20, 99, 3), (30, 69, -1), (30, 70, 4), (15, 5, -1), (40, 5, -1), (-1, 5, -1)]
    for address, at, cache in asked:
        assert look(names, address, at) == cache, (address, at)
    together = names.look_up(np.array([a for a, _, _ in asked]), np.array([at for _, at, _ in asked]))
    assert together.tolist() == [cache for _, _, cache in asked]


def test_nothing_known() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    assert Names(nothing, nothing, nothing).look_up(np.array([1]), np.array([1])).tolist() == [-1]
    assert Names(np.array([1]), np.array([0]), np.array([0])).look_up(nothing, nothing).tolist() == []


def test_caches_of_the_first_snapshot(known: Recording, events: Events) -> None:
    before, state, names = start(known)
    count = len(names)
    found, same = slab_names(events(), before, known.after, state, names)
    assert before.caches is not None
    assert isinstance(found, SlabNames) and len(names) == count
    for row in before.caches.iter_rows(named=True):
        assert look(found.caches, signed(row["address"]), 0) == row["id"]
        assert look(found.cpu_slabs, signed(row["cpu_slab"]), 0) == row["id"]
    assert np.array_equal(same.random, state.random)


def test_a_new_cache(known: Recording, events: Events) -> None:
    """Its row has what its creation says, its permutation is read from the rows behind, and it is not in use before its time."""
    before, state, names = start(known)
    turn = list(range(15, -1, -1))
    rows = [("slab_random", {"ptr": 256 * slot, "arg": i}) for i, slot in enumerate(turn)]
    table = events(("kfree", {}), create(), *rows, ("kfree", {}))
    number = len(names)
    found, grown = slab_names(table, before, None, state, names)
    assert names[number] == "new"
    row = grown.cache[number]
    assert (int(row["size"]), int(row["object_size"]), int(row["order"]), int(row["objects"]), int(row["min_partial"]), int(row["live"])) == (
        256,
        250,
        0,
        16,
        5,
        0,
    )
    assert int(row["cpu_partial_slabs"]) == 7
    at = int(row["random_seq"])
    assert grown.random[at : at + 16].tolist() == turn and len(grown.random) == at + 16
    assert [look(found.caches, FIRST, at) for at in (0, 1, 9)] == [-1, number, number]
    assert look(found.cpu_slabs, 0x900, 1) == number


def test_an_address_that_is_used_again(known: Recording, events: Events) -> None:
    before, state, names = start(known)
    number = len(names)
    table = events(create(), ("kfree", {}), ("slab_destroy", {"ptr": FIRST}), create(name="later"))
    found, grown = slab_names(table, before, None, state, names)
    assert names[number:] == ["new", "later"]
    assert [look(found.caches, FIRST, at) for at in range(4)] == [number, number, number, number + 1]
    assert int(grown.config[0]["caches"]) == number + 2
    assert (grown.cache["random_seq"][number : number + 2] == -1).all(), "no permutation follows"


def test_there_is_an_end_of_rows(known: Recording, events: Events) -> None:
    before, state, names = start(known)
    state.config["caches"] = MAX_CACHES - 1
    slab_names(events(create(), create(ptr=FIRST + 8, call_site=0x908)), before, None, state, names)
    assert int(state.config[0]["caches"]) == MAX_CACHES


def test_the_second_snapshot_knows_more(real: dict[str, Recording]) -> None:
    """Caches made on the way that live to the end: the creation's own figures agree with the second dump."""
    seen = 0
    for name, recording in real.items():
        if (
            not slab_state.has_slabs(recording.before)
            or recording.after is None
            or recording.after.caches is None
            or "slab_take0" not in recording.provenance.probes
        ):
            continue
        _, state, names = start(recording)
        count = len(names)
        assert recording.before is not None
        _, told = slab_names(recording.events, recording.before, recording.after, state, names)
        before, state, again = start(recording)
        _, alone = slab_names(recording.events, before, None, state, again)
        assert again == names
        for number in range(count, len(names)):
            seen += 1
            for column in (
                "size",
                "object_size",
                "align",
                "order",
                "objects",
                "min_partial",
                "min_order",
                "min_objects",
                "cpu_partial_slabs",
                "allocflags",
                "red_left_pad",
            ):
                assert int(told.cache[number][column]) == int(alone.cache[number][column]), (name, names[number], column)
    assert seen, "no recording makes a cache"
