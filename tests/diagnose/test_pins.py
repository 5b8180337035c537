"""What holds each frame, beside what the second memory dump says of the same moment."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from mmtwin.diagnose import pins
from mmtwin.diagnose.pins import (
    FREE_LIST,
    HUGETLB,
    MOVABLE,
    MOVABLE_OFF_LRU,
    NO_RAM,
    PAGE_TABLE,
    PAGES,
    PCP_LIST,
    SLAB,
    VMALLOC,
    Frames,
    frames_at,
    held_by_flags,
    rooms,
)
from mmtwin.mm.slab_tables import ALLOCATED
from mmtwin.recording import store
from mmtwin.recording.model import Recording
from mmtwin.replay.moments import Moment, moments
from tests.conftest import RECORDINGS

NAMES = ("slabs-512m-4cpu-slab", "pressure/swap-128m-1cpu", "pressure/tmpfs-128m-2cpu", "areas-2g-4cpu-686")


@pytest.fixture(scope="module")
def ends() -> dict[str, tuple[Recording, Moment, Frames]]:
    """The last moment of some recordings."""
    found = {}
    for name in NAMES:
        recording = store.load(RECORDINGS / f"{name}.mmrec")
        (moment,) = moments(recording, [len(recording.events)])
        found[name] = recording, moment, frames_at(moment, recording, None, pins.slab_frames(recording))
    return found


def dumped(recording: Recording) -> dict[str, set[int]]:
    """Frames by what the second dump says: free, on per-CPU lists, movable, of slabs."""
    after = recording.after
    assert after is not None and after.slabs is not None
    listed = after.pcp_pages.with_columns(order=pl.when(pl.col("list") >= 12).then(after.scalars["pageblock_order"]).otherwise(pl.col("list") // 3))

    def frames(table: pl.DataFrame) -> set[int]:
        return {frame for order, pfn in table.select("order", "pfn").iter_rows() for frame in range(pfn, pfn + (1 << order))}

    return {
        "free": frames(after.free), "pcp": frames(listed), "movable": set(np.flatnonzero(after.pages).tolist()), "slab": frames(after.slabs.filter(pl.col("cache") >= 0)),
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_what_the_dump_says(ends: dict[str, tuple[Recording, Moment, Frames]], name: str) -> None:
    recording, _, frames = ends[name]
    expected = dumped(recording)
    for what, where in ((FREE_LIST, "free"), (PCP_LIST, "pcp"), (SLAB, "slab")):
        assert set(np.flatnonzero(frames.what == what).tolist()) == expected[where], where
    assert set(np.flatnonzero(frames.what == MOVABLE).tolist()) == expected["movable"] - expected["free"] - expected["pcp"]


def test_slabs_have_their_cache(ends: dict[str, tuple[Recording, Moment, Frames]]) -> None:
    for recording, _, frames in ends.values():
        assert recording.after is not None and recording.after.slabs is not None and recording.after.caches is not None
        name = dict(recording.after.caches.select("id", "name").iter_rows())
        for pfn, cache in recording.after.slabs.filter(pl.col("cache") >= 0).select("pfn", "cache").iter_rows():
            assert frames.caches[frames.cache[pfn]] == name[cache]


def test_huge_pages_of_the_pool_are_found_by_their_flags(ends: dict[str, tuple[Recording, Moment, Frames]]) -> None:
    """The workloads begin with nr_hugepages = 14 and 8: asked for as movable, and yet no LRU list has them."""
    for name, pages in (("pressure/swap-128m-1cpu", 14), ("pressure/tmpfs-128m-2cpu", 8)):
        recording, _, frames = ends[name]
        assert f"echo {pages} > /proc/sys/vm/nr_hugepages" in recording.provenance.workload
        assert (frames.what == HUGETLB).sum() == pages * 512


def test_live_objects_are_allocated_in_the_twin(ends: dict[str, tuple[Recording, Moment, Frames]]) -> None:
    recording, moment, frames = ends["slabs-512m-4cpu-slab"]
    slub = moment.slub
    assert slub is not None and recording.before is not None
    some = np.flatnonzero(frames.what == SLAB)
    live = pins.live_objects(recording, moment.event, some.tolist())
    assert len(live) > 1000
    base = recording.before.scalars["page_offset_base"] - (1 << 64)
    for ptr, pfn in live.select("ptr", "pfn").sample(500, seed=1).iter_rows():
        row = int(moment.state.page[pfn]["next"])
        slab, cache = slub.slab[row], slub.cache[int(slub.slab[row]["cache"])]
        slot = (ptr - base - (int(slab["pfn"]) << 12)) // int(cache["size"])
        assert slub.slot[int(slab["slots"]) + slot] == ALLOCATED
    assert len(pins.live_objects(recording, 0, some.tolist())) == 0


def test_slabs_name_the_callers_of_their_objects(ends: dict[str, tuple[Recording, Moment, Frames]]) -> None:
    recording, moment, frames = ends["slabs-512m-4cpu-slab"]
    some = np.flatnonzero(frames.what == SLAB)
    live = pins.live_objects(recording, moment.event, some.tolist())
    counts = dict(live.group_by("call_site").len().iter_rows())
    (top,) = [pin for pin in pins.pins_in(frames, some, moment, recording, pins.owners(recording), None, live) if pin.who == "slab vmap_area"]
    assert len(top.sites) >= 2
    for site, count in top.sites:
        assert counts[int(site, 16) - (1 << 64)] == count
    none = pins.pins_in(frames, some, moment, recording, pins.owners(recording))
    assert all(pin.sites == () for pin in none)


def test_owners_of_pinned_frames_add_up(ends: dict[str, tuple[Recording, Moment, Frames]]) -> None:
    recording, moment, frames = ends["slabs-512m-4cpu-slab"]
    some = np.flatnonzero(frames.pinned)
    for by in pins.BY:
        found = pins.pins_in(frames, some, moment, recording, pins.owners(recording, by))
        assert sum(pin.frames for pin in found) == len(some)
        assert [pin.frames for pin in found] == sorted((pin.frames for pin in found), reverse=True)
    by_pid = {pin.who: pin.frames for pin in found if pin.pids}
    assert by_pid
    events = recording.events
    for pin in pins.pins_in(frames, some, moment, recording, pins.owners(recording, "pid")):
        if pin.pids and pin.pids[0]:
            owner = moment.owner[some]
            mine = owner[owner >= 0]
            assert pin.frames == int((events["pid"].to_numpy()[mine] == pin.pids[0]).sum())
            assert pin.oldest == moment.event - int(mine[events["pid"].to_numpy()[mine] == pin.pids[0]].min())


def test_callers_go_before_flags(recording: Callable[..., Recording]) -> None:
    """Where the event names a caller, requests with different flags are one group; else flags and order are the name."""
    request = {"kind": "mm_page_alloc", "pfn": 0, "order": 0, "gfp": 0xCC0}
    made = recording(
        request | {"call_site": 77},
        request | {"call_site": 77, "gfp": 0xDC0, "order": 2},
        request,
        request | {"order": 3},
        {"kind": "mm_page_free", "pfn": 0, "order": 0},
    )
    found = pins.owners(made)
    assert [found.names[group] if group >= 0 else None for group in found.of_row.tolist()] == ["0x4d", "0x4d", "order 0 GFP_KERNEL", "order 3 GFP_KERNEL", None]


def test_what_flags_say() -> None:
    told = {
        (0xCC0, 0): PAGES, (0x100CCA, 0): MOVABLE_OFF_LRU, (0x1C24CA, 9): MOVABLE_OFF_LRU, (0x400DC0, 0): PAGE_TABLE, (0x440DC0, 0): PAGE_TABLE, (0x400DC0, 1): PAGE_TABLE, (0x400DC0, 2): PAGES, (0xCC2, 0): VMALLOC,
        (0x400DC2, 0): VMALLOC, (0x100CC2, 0): PAGES, (0x346CCA, 9): HUGETLB, (0x346CCA, 0): MOVABLE_OFF_LRU, (0xCD0, 0): PAGES,
    }  # fmt: skip
    gfp, order = (np.array(column) for column in zip(*told, strict=True))
    assert held_by_flags(gfp, order).tolist() == list(told.values())


def test_rooms() -> None:
    """One range without pins in the first block, pins everywhere in the second, a hole in the third."""
    what = np.full(48, PAGES, dtype=np.int8)
    what[4:8] = [FREE_LIST, MOVABLE, PCP_LIST, MOVABLE]
    what[16:20] = [PAGES, PAGES, MOVABLE, FREE_LIST]
    what[24:28] = [PAGES, FREE_LIST, FREE_LIST, FREE_LIST]
    what[32:48] = NO_RAM
    none = np.full(48, -1)
    frames = Frames(what, none, none.astype(np.int32), [], np.arange(48) // 16, np.ones(3, dtype=np.int8))
    found = rooms(frames, 2, 0, 48)
    assert [(room.pfn, room.block, room.pinned, room.movable, room.free) for room in found] == [(4, 0, 0, 2, 2), (24, 1, 1, 0, 3)]
    assert [room.pfn for room in rooms(frames, 2, 8, 30)] == [24, 8]
    assert [(room.pfn, room.pinned) for room in rooms(frames, 5, 0, 48)] == [(0, 23)]
    assert rooms(frames, 6, 0, 48) == []
