"""What the report says of the first and the last moment is what the memory dumps say."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from mmtwin.recording.model import Snapshot
from mmtwin.report.holders import CLASS, CLASSES
from mmtwin.report.page_map import decode
from mmtwin.report.timeline import spread

from .conftest import Made


@pytest.fixture(params=["demo", "refusing"])
def made(request: pytest.FixtureRequest) -> Made:
    found: Made = request.getfixturevalue(request.param)
    return found


def ends(made: Made) -> list[tuple[int, Snapshot]]:
    assert made.recording.before is not None and made.recording.after is not None
    return [(0, made.recording.before), (-1, made.recording.after)]


def test_steps() -> None:
    assert spread(100, 5) == [0, 25, 50, 75, 100]
    assert spread(2, 50) == [0, 1, 2]
    assert spread(0, 9) == [0]


def test_free_blocks(made: Made) -> None:
    free = made.data["free"]
    for step, snapshot in ends(made):
        counted = {key: count for *key, count in snapshot.free.group_by("zone", "migratetype", "order").len().iter_rows() for key in [tuple(key)]}
        zones = [zone["index"] for zone in made.data["memory"]["zones"]]
        shown = {
            (zones[z], t, order): count
            for z, types in enumerate(free["blocks"][step])
            for t, orders in enumerate(types)
            for order, count in enumerate(orders)
            if count
        }
        assert shown == counted


def test_free_pages_of_zones(made: Made) -> None:
    for step, snapshot in ends(made):
        for zone in made.data["memory"]["zones"]:
            counter = snapshot.zones.filter(pl.col("index") == zone["index"])["nr_free_pages"].item()
            held_back = snapshot.pcp.filter(pl.col("zone") == zone["index"])["nr_free_pages_diff"].sum()
            assert zone["free_pages"][step] == counter + held_back


def test_caches(demo: Made) -> None:
    caches = {cache["name"]: cache for cache in demo.data["caches"]}
    for step, snapshot in ends(demo):
        assert snapshot.caches is not None and snapshot.slabs is not None and snapshot.free_objects is not None
        slabs = snapshot.slabs.join(snapshot.free_objects.group_by("slab").len("free"), left_on="pfn", right_on="slab", how="left").with_columns(
            pl.col("free").fill_null(0)
        )
        sums = slabs.group_by("cache").agg(pl.col("objects", "free").sum(), pl.len().alias("slabs"), (2 ** pl.col("order").cast(pl.Int64)).sum().alias("pages"))
        names = dict(snapshot.caches.select("id", "name").iter_rows())
        expected = {names[row["cache"]]: row for row in sums.iter_rows(named=True) if row["cache"] >= 0}
        shown = {name: cache for name, cache in caches.items() if cache["slabs"][step]}
        assert shown.keys() == expected.keys()
        for name, row in expected.items():
            cache = shown[name]
            assert (cache["slabs"][step], cache["pages"][step], cache["objects"][step]) == (row["slabs"], row["pages"], row["objects"])
            assert cache["live"][step] == row["objects"] - row["free"], name


def test_the_map_adds_up(made: Made) -> None:
    """The map's classes are those of the chart; free frames and slabs are those of the other sections."""
    data = made.data
    classes = np.array(data["map"]["holders"]["class"])
    for step, (holder, event) in enumerate(decode(data["map"])):
        counts = np.bincount(classes[holder], minlength=len(CLASSES))
        counts[CLASS["no_ram"]] = 0
        assert counts.tolist() == data["memory"]["pages"][step]
        in_lists = sum(count << order for types in data["free"]["blocks"][step] for orders in types for order, count in enumerate(orders))
        assert counts[CLASS["free_large"]] + counts[CLASS["free_small"]] == in_lists
        if data["caches"]:
            assert counts[CLASS["slab"]] == sum(cache["pages"][step] for cache in data["caches"])
        assert event.max() < data["steps"]["events"][step]
        assert not np.any(event[classes[holder] == CLASS["free_large"]] >= 0)
    assert len(data["memory"]["pages"]) == len(data["steps"]["events"]) == len(data["map"]["runs"])


def test_memory_that_there_is(made: Made) -> None:
    """All of RAM is in some class, at every step."""
    assert made.recording.before is not None
    ram = sum(
        (start + size) // 4096 - -(-start // 4096)
        for start, size, kind in made.recording.before.memory_map.select("start", "size", "type").iter_rows()
        if kind == 1
    )
    assert {sum(pages) for pages in made.data["memory"]["pages"]} == {ram}


def test_who_holds_a_frame(made: Made) -> None:
    """The event that the map names for a frame is the last that handed it out, and the holder says what it asked for."""
    data, events = made.data, made.recording.events
    holder, event = decode(data["map"])[-1]
    frames = np.concatenate([np.arange(first, first + count) for first, count in data["map"]["ranges"]])
    holders: dict[str, Any] = data["map"]["holders"]
    known = np.flatnonzero((event >= 0) & (np.array(holders["pid"])[holder] >= 0))
    assert len(known)
    for cell in known[:: max(1, len(known) // 50)]:
        row = events.row(int(event[cell]), named=True)
        assert row["kind"] == "mm_page_alloc" and row["pfn"] <= frames[cell] < row["pfn"] + (1 << row["order"])
        assert (holders["pid"][holder[cell]], holders["order"][holder[cell]]) == (row["pid"], row["order"])
        later = events[int(event[cell]) + 1 :].filter((pl.col("kind") == "mm_page_alloc") & (pl.col("pfn") == row["pfn"]))
        assert not len(later)


def test_pageblocks(made: Made) -> None:
    for step, snapshot in ends(made):
        types = list(made.data["map"]["pageblock_types"][0])
        for changes in made.data["map"]["pageblock_types"][1:] if step else []:
            for at, now in changes:
                types[at] = now
        shown = [pfn for first, count in made.data["map"]["ranges"] for pfn in range(first, first + count, made.data["map"]["pageblock"])]
        assert types == [int(snapshot.pageblocks[pfn // made.data["map"]["pageblock"]]) for pfn in shown]
