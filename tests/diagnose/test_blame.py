"""Who fragments, grows, leaks and wastes: beside sums that are computed another way, and beside the second memory dump."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mmtwin.diagnose.blame import Blame, blame
from mmtwin.diagnose.blame.headlines import headlines
from mmtwin.diagnose.blame.leaks import NEVER_FREED, OVERDUE, YOUNG
from mmtwin.diagnose.blame.steps import cut
from mmtwin.diagnose.blame.wastes import slabs_of_snapshot
from mmtwin.diagnose.page_stat import page_stat
from mmtwin.diagnose.stat import stat
from mmtwin.errors import RequestError
from mmtwin.recording import readers
from mmtwin.recording.model import Recording
from tests.conftest import RECORDINGS

Make = Callable[..., Recording]
DATA = Path(__file__).parents[1] / "data"
ALLOCS = ["kmalloc", "kmalloc_node", "kmem_cache_alloc", "kmem_cache_alloc_node"]
FREES = ["kfree", "kmem_cache_free"]


def read(name: str) -> Recording:
    """A recording of the tests, trace text, or perf.data."""
    return readers.read((RECORDINGS if name.endswith(".mmrec") else DATA) / name)


# The same sums by other means: polars windows over addresses and page frames


def objects(recording: Recording) -> pl.DataFrame:
    """Allocations of objects with call_site, time, bytes and the time and kind of their end."""
    role = pl.when(pl.col("kind") != "slab_bulk_object").then(pl.col("kind").cast(pl.String)).forward_fill().over("cpu")
    kind = pl.col("kind").cast(pl.String)
    events = recording.events.filter(kind.is_in([*ALLOCS, *FREES]) | kind.str.starts_with("slab_bulk")).with_columns(role.alias("role"))
    is_object = pl.col("kind") == "slab_bulk_object"
    alloc = kind.is_in(ALLOCS) | (is_object & (pl.col("role") == "slab_bulk_got"))
    free = kind.is_in(FREES) | (is_object & (pl.col("role") == "slab_bulk_free"))
    events = events.with_columns(alloc=alloc, free=free).filter((pl.col("alloc") | pl.col("free")) & ~pl.col("ptr").is_in([0, 16]))
    events = events.with_columns(end=pl.col("time").shift(-1).over("ptr"), freed=pl.col("free").shift(-1).over("ptr"))
    return events.filter("alloc").select("time", "call_site", "pid", "ptr", "bytes_req", "bytes_alloc", "end", "freed")


def pages(recording: Recording) -> pl.DataFrame:
    """Allocations of page frames, one row each, with their end."""
    events = recording.events.filter(pl.col("kind").is_in(["mm_page_alloc", "mm_page_free"]) & (pl.col("pfn") >= 0))
    frames = pl.int_ranges("pfn", pl.col("pfn") + pl.lit(2, dtype=pl.Int64).pow(pl.col("order").clip(0).cast(pl.Int64)))
    events = events.with_columns(frame=frames).explode("frame").with_columns(end=pl.col("time").shift(-1).over("frame"))
    return events.filter(pl.col("kind") == "mm_page_alloc").select("time", "pid", "frame", "end", "gfp", "order")


def live_at(table: pl.DataFrame, key: str, time: int, bytes_of: pl.Expr) -> dict[Any, int]:
    now = table.filter((pl.col("time") <= time) & (pl.col("end").is_null() | (pl.col("end") > time)))
    return dict(now.group_by(key).agg(bytes_of).iter_rows())


SOURCES = ["slabs-256m-1cpu-slab.mmrec", "slabs-512m-4cpu-slab.mmrec", "linux-3.x-i386-slub-boot.ftrace.txt.gz", "perf/machine.data.gz", "perf/task.data.gz"]


@pytest.fixture(scope="module")
def source() -> Callable[[str], tuple[Recording, Blame]]:
    found: dict[str, tuple[Recording, Blame]] = {}

    def get(name: str) -> tuple[Recording, Blame]:
        if name not in found:
            recording = read(name)
            found[name] = recording, blame(recording, sections=("grows", "leaks"))
        return found[name]

    return get


def by_site(recording: Recording, table: pl.DataFrame) -> pl.DataFrame:
    """Adds a label as blame gives it."""
    from mmtwin.diagnose.pins import site_names

    name = site_names(recording)
    sites = table["call_site"].unique()
    return table.with_columns(label=pl.col("call_site").replace_strict(sites, [name(site) for site in sites], return_dtype=pl.String))


@pytest.mark.parametrize("name", SOURCES)
def test_objects_that_grow(source: Callable[[str], tuple[Recording, Blame]], name: str) -> None:
    """Live bytes of each caller at each moment, peaks, counts and slopes, by a window query over addresses."""
    recording, result = source(name)
    table = by_site(recording, objects(recording)).filter(pl.col("call_site") != 0)
    rows = {row["label"]: row for row in result.grows[0].rows.to_dicts()}
    assert len(table) > 100
    hits = dict(table.group_by("label").len().iter_rows())
    series: dict[str, list[int]] = {label: [] for label in hits}
    for time in result.steps.times.tolist():
        now = live_at(table, "label", time, pl.col("bytes_alloc").sum())
        for label, values in series.items():
            values.append(now.get(label, 0))
    x = result.steps.times[10:].astype(float)
    for label, values in series.items():
        row = rows[label]
        assert (row["series"], row["allocations"], row["live_end"], row["peak"]) == (values, hits[label], values[-1], max(values))
        expected = np.polyfit(x - x[0], np.array(values[10:], dtype=float), 1)[0] * (1e9 if result.steps.clock == "ns" else 1e6)
        assert row["slope"] == pytest.approx(expected, rel=1e-6, abs=max(1e-3, 1e-9 * max(values)))


@pytest.mark.parametrize("name", SOURCES)
def test_objects_that_leak(source: Callable[[str], tuple[Recording, Blame]], name: str) -> None:
    """Counts, ages and lifetimes of each caller, and which objects are older than any that it freed."""
    recording, result = source(name)
    table = by_site(recording, objects(recording)).filter(pl.col("call_site") != 0)
    end = int(recording.events["time"].max())  # type: ignore[arg-type]
    freed = table.filter(pl.col("freed") & pl.col("end").is_not_null()).with_columns(life=pl.col("end") - pl.col("time"))
    lives = {
        row[0]: row[1:]
        for row in freed.group_by("label").agg(pl.len(), pl.col("life").max().alias("longest"), pl.col("life").median().alias("median")).iter_rows()
    }
    rows = {row["label"]: row for row in result.leaks[0].rows.to_dicts()}
    live = table.filter(pl.col("end").is_null())
    assert len(live)
    for (label,), mine in live.group_by("label"):
        row = rows[label]
        count, longest, median = lives.get(label, (0, None, None))
        ages = (end - mine["time"]).to_list()
        late = [age for age in ages if longest is None or age > longest]
        sizes = mine["bytes_alloc"].to_list()
        assert (row["live"], row["live_bytes"], row["freed"], row["age_oldest"]) == (len(mine), sum(sizes), count, max(ages))
        assert (row["lifetime_longest"], row["lifetime_median"]) == (longest, median)
        assert row["overdue"] == len(late)
        assert row["overdue_bytes"] == sum(size for size, age in zip(sizes, ages, strict=True) if longest is None or age > longest)
        assert row["verdict"] == (NEVER_FREED if not count else OVERDUE if late else YOUNG)
        assert sum(row["born"]) == row["live_bytes"]


@pytest.mark.parametrize("name", [*SOURCES[:2], "pressure/fails-128m-1cpu.mmrec", *SOURCES[3:]])
def test_pages_that_grow(name: str) -> None:
    """Live pages of each task at each moment, by a window query over page frames."""
    recording = read(name)
    result = blame(recording, "pid", sections=("grows", "leaks"))
    table = pages(recording)
    (grown,) = [one for one in result.grows if one.what == "pages"]
    rows = {row["label"]: row for row in grown.rows.to_dicts()}
    for at, time in enumerate(result.steps.times.tolist()):
        for pid, count in live_at(table, "pid", time, pl.len() * 4096).items():
            assert rows[f"pid {pid}" if pid else "idle task or interrupt"]["series"][at] == count
    assert sum(row["live_end"] for row in rows.values()) == table["end"].is_null().sum() * 4096


@pytest.mark.parametrize("name", [*SOURCES[:2], *SOURCES[3:]])
def test_stat_says_the_same(source: Callable[[str], tuple[Recording, Blame]], name: str) -> None:
    recording, result = source(name)
    objects_live, pages_live = stat(recording, live=True).summary, page_stat(recording).summary
    leaking = {one.what: one.rows for one in result.leaks}
    assert (leaking["objects"]["live"].sum(), leaking["objects"]["live_bytes"].sum()) == (objects_live.live, objects_live.live_bytes)
    assert leaking["pages"]["live_bytes"].sum() == pages_live.live_bytes


# Beside the second dump


@pytest.mark.parametrize(
    "name", ["slabs-512m-4cpu-slab", "mmap-4g-4cpu", "pressure-128m-4cpu", "areas-2g-1cpu-slab-686", "pressure/fails-128m-2cpu", "pressure/swap-128m-2cpu"]
)
def test_unmovable_pages_in_movable_blocks_are_those_of_the_dump(name: str) -> None:
    """The number at the end, by the dump's pageblocks, page bits and free lists alone."""
    recording = read(f"{name}.mmrec")
    after = recording.after
    assert after is not None
    result = blame(recording, sections=("fragments",), steps=2)
    order, split = after.scalars["pageblock_order"], after.scalars.get("pageblock_split", 0)
    frames = np.arange(after.scalars["max_pfn"])
    block = (frames >> order) + ((frames >= split) if split else 0)
    stays = (after.pages == 0) & (after.pageblocks[block] == 1)
    listed = after.pcp_pages.with_columns(order=pl.when(pl.col("list") >= 12).then(order).otherwise(pl.col("list") // 3)).select("order", "pfn")
    for size, pfn in [*after.free.select("order", "pfn").iter_rows(), *listed.iter_rows()]:
        stays[pfn : pfn + (1 << size)] = False
    usable, inside = np.zeros(len(frames), dtype=bool), np.zeros(len(frames), dtype=bool)
    for start, length, kind in after.memory_map.iter_rows():
        if kind == 1:
            usable[-(-start // 4096) : (start + length) // 4096] = True
    for start, length in after.zones.select("start_pfn", "spanned_pages").iter_rows():
        inside[start : start + length] = True
    stays &= usable & inside
    assert result.fragments is not None
    last = result.fragments.samples[-1]
    assert last.pinned == stays.sum() > 0
    per_block = np.bincount(block[stays], minlength=len(after.pageblocks))
    assert last.mixed == (per_block > 0).sum()
    assert last.few == tuple(((per_block > 0) & (per_block <= limit)).sum() for limit in (1, 8, 64))
    assert result.fragments.rows["pages"].sum() == last.pinned
    assert last.free == int((2 ** after.free["order"].cast(pl.Int64)).sum()) + int((2 ** listed["order"].cast(pl.Int64)).sum())


def test_slabs_and_caches_are_the_dumps() -> None:
    """SLUB's tables give the same waste as the dumps, and the caches' growth goes from the first to the second."""
    recording = read("slabs-512m-4cpu-slab.mmrec")
    result = blame(recording, sections=("grows", "wastes"))
    assert result.wastes is not None and result.wastes.slabs is not None
    before, after = recording.before, recording.after
    assert before is not None and after is not None
    expected = slabs_of_snapshot(after)
    assert expected is not None
    assert result.wastes.slabs.sort("cache").equals(expected.sort("cache"))
    caches = {row["label"]: row for row in result.grows[1].rows.to_dicts()}
    for snapshot, column in ((before, "live_start"), (after, "live_end")):
        assert snapshot.slabs is not None and snapshot.caches is not None and snapshot.free_objects is not None
        room = dict(snapshot.slabs.filter(pl.col("where") != 4).group_by("cache").agg(pl.col("objects").cast(pl.Int64).sum()).iter_rows())
        cache_of = dict(snapshot.slabs.select("pfn", "cache").iter_rows())
        free: dict[int, int] = {}
        for pfn in snapshot.free_objects["slab"].to_list():
            free[cache_of[pfn]] = free.get(cache_of[pfn], 0) + 1
        for number, name, size in snapshot.caches.select("id", "name", "size").iter_rows():
            if number in room and name in caches:
                assert caches[name][column] == (room[number] - free.get(number, 0)) * size, name


def test_half_empty_slabs() -> None:
    recording = read("slabs-256m-1cpu-slab.mmrec")
    after = recording.after
    assert after is not None and after.slabs is not None and after.caches is not None and after.free_objects is not None
    result = slabs_of_snapshot(after)
    assert result is not None
    free = dict(after.free_objects.group_by("slab").len().iter_rows())
    number = dict(after.caches.select("name", "id").iter_rows())["dentry"]
    mine = [row for row in after.slabs.iter_rows(named=True) if row["cache"] == number]
    (row,) = result.filter(pl.col("cache") == "dentry").to_dicts()
    assert row["slabs"] == len(mine)
    assert row["half_empty"] == sum(2 * (slab["objects"] - free.get(slab["pfn"], 0)) <= slab["objects"] for slab in mine)


def test_guard_pages() -> None:
    recording = read("areas-256m-1cpu.mmrec")
    result = blame(recording, sections=("wastes",))
    assert recording.after is not None and recording.after.vmaps is not None and result.wastes is not None and result.wastes.guards is not None
    areas, vms = recording.after.vmaps["areas"], recording.after.vmaps["vms"]
    flags, sizes = vms["flags"].to_list(), vms["size"].to_list()
    mine = [vm for tree, vm in areas.select("tree", "vm").iter_rows() if tree == "busy" and vm >= 0 and not flags[vm] & 0x40]
    assert result.wastes.guards["areas"] == len(mine) > 0
    assert result.wastes.guards["guard_bytes"] == 4096 * len(mine)
    assert result.wastes.guards["area_bytes"] == sum(sizes[vm] for vm in mine)


def test_page_tables_and_size_classes() -> None:
    recording = read("slabs-256m-1cpu-slab.mmrec")
    w = blame(recording, sections=("wastes",)).wastes
    assert w is not None and w.classes is not None and w.page_tables is not None
    live = pages(recording).filter(pl.col("end").is_null() & (pl.col("gfp") == 0x400DC0) & (pl.col("order") <= 1))
    assert w.page_tables["pages"] == len(live) > 0
    kmallocs = objects(recording).filter((pl.col("bytes_alloc") == 96) & (pl.col("bytes_req") < 96))
    (row,) = w.classes.filter(pl.col("label") == "kmalloc-96").to_dicts()
    assert row["waste_bytes"] >= (96 - kmallocs["bytes_req"]).sum() * 0.5
    kinds = recording.events.filter(
        (pl.col("kind") == "kmalloc") & (pl.col("bytes_alloc") == 96) & (pl.col("gfp") & 0x400000 == 0) & (pl.col("gfp") & 0x11 == 0)
    )
    assert row["waste_bytes"] == (kinds["bytes_alloc"] - kinds["bytes_req"]).sum()


def test_fallback_events() -> None:
    recording = read("pressure/fails-128m-1cpu.mmrec")
    result = blame(recording, "pid", sections=("fragments",), steps=5)
    assert result.fragments is not None
    table = result.fragments.fallbacks
    events = recording.events.filter(pl.col("kind") == "mm_page_alloc_extfrag")
    assert result.fragments.events == len(events) == 38 and table["taken_over"].sum() == events["bytes_alloc"].sum()
    names = ("Unmovable", "Movable", "Reclaimable")
    for (pid, wanted, got, order), mine in events.group_by("pid", "migratetype", "bytes_req", "order"):
        (row,) = table.filter(
            (pl.col("label") == f"pid {pid}") & (pl.col("wanted") == names[wanted]) & (pl.col("got") == names[got]) & (pl.col("order") == order)
        ).to_dicts()
        assert row["events"] == len(mine) == sum(row["series"])


def test_old_kernels_numbered_migrate_types_otherwise(recording: Make) -> None:
    fallback = {"kind": "mm_page_alloc_extfrag", "pfn": 0, "order": 0, "migratetype": 0, "bytes_req": 2, "arg": 3, "pid": 4}
    for movable, name in ((1, "Reclaimable"), (2, "Movable")):
        request = {"kind": "mm_page_alloc", "pfn": 0, "order": 0, "migratetype": movable, "gfp": 0x100CCA, "pid": 4}
        found = blame(recording(fallback, request), sections=("fragments",)).fragments
        assert found is not None and found.fallbacks["got"].to_list() == [name]
        assert found.fallbacks["label"].to_list() == ["order 0 GFP_HIGHUSER_MOVABLE"]


# By hand


def take(ptr: int, site: int = 1, **more: Any) -> dict[str, Any]:
    return {"kind": "kmalloc", "ptr": 4096 + 64 * ptr, "call_site": site, "bytes_req": 40, "bytes_alloc": 64, "gfp": 0xCC0, **more}


def give(ptr: int, **more: Any) -> dict[str, Any]:
    return {"kind": "kfree", "ptr": 4096 + 64 * ptr, "call_site": 9, **more}


def test_verdicts(recording: Make) -> None:
    """A site that never frees, one with an object that outlived all others, one whose objects are young, and one whose object was freed silently."""
    made = recording(
        take(1, 0xA), take(2, 0xB), take(3, 0xB), give(3), take(4, 0xC), give(2, time=9), take(5, 0xC, time=10), give(4, time=15), take(6, 0xB, time=11), take(7, 0xD, time=12),
        take(7, 0xD, time=16), {"kind": "kfree", "ptr": 0, "time": 20},
    )  # fmt: skip
    made = Recording(made.provenance, None, None, made.events.sort("time"))
    rows = {row["label"]: row for row in blame(made, sections=("leaks",)).leaks[0].rows.to_dicts()}
    assert {label: (row["verdict"], row["live"], row["overdue"], row["freed"]) for label, row in rows.items()} == {
        "0xa": (NEVER_FREED, 1, 1, 0), "0xb": (OVERDUE, 1, 1, 2), "0xc": (YOUNG, 1, 0, 1), "0xd": (NEVER_FREED, 1, 1, 0),
    }  # fmt: skip
    grown = {row["label"]: row for row in blame(made, sections=("grows",)).grows[0].rows.to_dicts()}
    assert grown["0xd"]["live_end"] == 64 and grown["0xd"]["peak"] == 64 and grown["0xb"]["peak"] == 128


def test_windows(recording: Make) -> None:
    made = recording(take(1), take(2), give(1), take(3), give(2), give(3))
    result = blame(made, sections=("grows", "leaks"), window=(2, 4), steps=2)
    (row,) = result.grows[0].rows.to_dicts()
    assert (row["series"], row["allocations"]) == ([128, 64, 128], 2)
    (row,) = result.leaks[0].rows.to_dicts()
    assert (row["live"], row["freed"], row["age_oldest"]) == (2, 1, 2)
    with pytest.raises(RequestError, match="no events between"):
        blame(made, window=(50, 60))


def test_a_trace_without_a_dump_says_what_it_cannot_tell() -> None:
    result = blame(readers.read(DATA / "linux-6.1.ftrace.txt"))
    assert result.fragments is not None and result.fragments.samples == () and result.fragments.events == 1
    assert any("no memory dump" in reason for reason in result.untold)
    assert json.loads(json.dumps(result.to_dict()))["fragments"]["unmovable_in_movable"] is None
    assert dict(headlines(result))["fragments"].startswith("1 fallback event")


def test_recordings_of_pages_only_say_so() -> None:
    result = blame(read("pressure/tmpfs-128m-2cpu.mmrec"), sections=("grows", "leaks", "wastes"), steps=3)
    assert any("no slab events" in reason for reason in result.untold)
    assert [one.what for one in result.grows] == [one.what for one in result.leaks] == ["pages"]
    assert result.wastes is not None and result.wastes.when == "in the second memory dump"
    said = dict(headlines(blame(read("pressure/swap-128m-1cpu.mmrec"), sections=("fragments", "leaks"))))
    assert "most by hugetlb: order 9" in said["fragments"] and "7,168 in 14 blocks" in said["fragments"]


def test_nonsense(recording: Make) -> None:
    made = recording(take(1), take(2))
    for arguments, message in (
        ({"by": "colour"}, "unknown group 'colour'"), ({"sections": ("fragments", "sleeps")}, "unknown section 'sleeps'"), ({"steps": 0}, "0 steps"), ({"steps": 1001}, "1001 steps"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=message):
            blame(made, **arguments)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="has no events"):
        blame(recording())
    damaged = recording({"kind": "mm_page_alloc", "pfn": 0, "order": 30})
    with pytest.raises(RequestError, match="order 30 of a page event"):
        blame(damaged)


def test_steps(recording: Make) -> None:
    made = recording(*(take(n, time=at) for n, at in enumerate((5, 7, 7, 9, 15))))
    steps = cut(made, 5)
    assert (steps.times.tolist(), steps.rows.tolist()) == ([5, 7, 9, 11, 13, 15], [0, 3, 4, 4, 4, 5])
    assert (steps.start, steps.end) == (5, 15)
    assert cut(recording(take(1)), 3).rows.tolist() == [0, 1, 1, 1]
