"""Moments of recordings: the rules say what the kernel did, the twin's allocator says what the rules say, and the numbers are the kernel's."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from mmtwin.diagnose.explain.at import Place, event_of, explain_at, explain_many, failures, hypothetical, mem_info, place_of
from mmtwin.diagnose.explain.model import VERDICTS
from mmtwin.errors import RecordingError, RequestError
from mmtwin.gfp import ALLOC_NO_WATERMARKS, ALLOC_OOM, GFP_ATOMIC, GFP_DMA, GFP_HIGHUSER_MOVABLE, GFP_KERNEL, GFP_NOWAIT
from mmtwin.mm.tables import PG_BUDDY, PG_LRU, PG_MOVABLE, PG_PCP
from mmtwin.recording import store
from mmtwin.recording.model import Recording
from mmtwin.replay.moments import moments
from tests.conftest import RECORDINGS


@pytest.fixture(scope="module")
def fails() -> dict[int, Recording]:
    """The recordings in which requests fail, by CPUs."""
    return {cpus: store.load(RECORDINGS / f"pressure/fails-128m-{cpus}cpu.mmrec") for cpus in (1, 2)}


def served(recording: Recording, every: int) -> list[Place]:
    """Some requests that succeeded, and all whose task had privileges."""
    rows = recording.events.with_row_index("row").filter((pl.col("kind") == "mm_page_alloc") & (pl.col("pfn") >= 0))["row"].to_list()
    walks = recording.events["arg"].to_numpy()
    privileged = (recording.events["kind"] == "walk").to_numpy() & (walks & (ALLOC_NO_WATERMARKS | ALLOC_OOM) != 0)
    near = np.flatnonzero(privileged)
    special = {row for row in rows if (near < row).any() and row - near[near < row].max() < 12}
    return [place_of(recording, row) for row in sorted(set(rows[::every]) | special)]


@pytest.mark.parametrize("cpus", [1, 2])
def test_the_rules_say_what_the_kernel_did(fails: dict[int, Recording], cpus: int) -> None:
    """On every request that failed they refuse, on those that succeeded they do not; the twin's allocator says the same."""
    recording = fails[cpus]
    refused = [place_of(recording, row) for row in failures(recording)["row"].to_list()]
    assert len(refused) == {1: 380, 2: 321}[cpus]
    assert all(place.flags is not None and place.recorded == "refused" for place in refused)
    counts = Counter((x.place.recorded, x.passes, x.twin.pfn >= 0) for x in explain_many(recording, refused + served(recording, 97), look=False))
    assert set(counts) == {("refused", False, False), ("served", True, True)}
    assert counts["refused", False, False] == len(refused)


def test_privileges_count(fails: dict[int, Recording]) -> None:
    """Requests that succeed below the watermark do so because of what their walk's flags say, and are refused without it."""
    recording = fails[1]
    special = [place for place in served(recording, 10**6) if place.flags is not None and place.flags & (ALLOC_NO_WATERMARKS | ALLOC_OOM)]
    assert special
    plain = [place._replace(flags=place.flags & ~(ALLOC_NO_WATERMARKS | ALLOC_OOM)) for place in special if place.flags is not None]
    assert all(x.passes for x in explain_many(recording, special, look=False))
    without = list(explain_many(recording, plain, look=False))
    assert any(not x.passes for x in without) and all(x.agrees for x in without)


def test_requests_that_were_never_made(fails: dict[int, Recording]) -> None:
    """Rules and allocator agree for every order and kind of request, with plenty and with little memory."""
    recording = fails[2]
    places = [
        hypothetical(recording, event, order, gfp)
        for event in (1000, 53995, 60429, 61000, len(recording.events))
        for order in (0, 1, 3, 4, 7, 9, 10)
        for gfp in (GFP_KERNEL, GFP_ATOMIC, GFP_NOWAIT, GFP_HIGHUSER_MOVABLE, GFP_KERNEL | GFP_DMA, GFP_ATOMIC | 0x80000, GFP_KERNEL | 0x20000)
    ]
    found = list(explain_many(recording, places, look=False))
    assert not [(x.place, x.verdict.headline) for x in found if not x.agrees]
    verdicts = Counter(x.verdict.code for x in found)
    assert set(verdicts) <= set(VERDICTS) and {"served", "watermark", "no_block"} <= set(verdicts)
    assert all(x.verdict.headline.startswith("A request for ") for x in found)


def test_the_zones_are_the_dumps(fails: dict[int, Recording]) -> None:
    """The numbers that the rules get are those of the kernel's own structs, at the end as the second dump has them."""
    for recording in fails.values():
        (moment,) = moments(recording, [len(recording.events)])
        after = recording.after
        assert after is not None
        zones = {zone.name: zone for zone in mem_info(moment.state, after.zones["name"].to_list()).zones}
        for row in after.zones.filter(pl.col("present_pages") > 0).iter_rows(named=True):
            zone = zones[row["name"]]
            assert zone.fields["free"] == row["nr_free_pages"] * 4
            assert zone.fields["min"] == (row["wmark_min"] + row["watermark_boost"]) * 4
            assert zone.fields["reserved_highatomic"] == row["nr_reserved_highatomic"] * 4
            assert zone.reserve == tuple(row[f"lowmem_reserve_{j}"] for j in range(5))
            free = after.free.filter(pl.col("zone") == row["index"])
            assert zone.blocks is not None
            for order, block in enumerate(zone.blocks):
                mine = free.filter(pl.col("order") == order)
                assert (block.kb, block.count) == (4 << order, len(mine))
                assert set(block.types) == {"UMEHI"[kind] for kind in mine["migratetype"].to_list()}


def test_where_it_could_have_been(fails: dict[int, Recording]) -> None:
    """An order-9 request with no block: places and pins, counted again one frame at a time."""
    recording = fails[2]
    x = explain_at(recording, place_of(recording, 60430))
    assert (x.verdict.code, x.verdict.certainty, x.place.judged, x.time) == ("no_block", "decided", 60429, recording.events["time"][60430])
    dma, dma32 = x.rooms
    assert (dma.zone, dma.blocks, dma.emptiable, dma32.zone, dma32.emptiable, dma32.cheapest) == ("DMA", 7, 0, "DMA32", 13, 351)
    (moment,) = moments(recording, [60429])
    page = moment.state.page
    free = np.zeros(int(moment.state.config[0]["nr_frames"]), dtype=bool)
    for pfn in np.flatnonzero(page["flags"][: len(free)] & (PG_BUDDY | PG_PCP)).tolist():
        free[pfn : pfn + (1 << int(page[pfn]["order"]))] = True
    movable = (page["flags"][: len(free)] & (PG_LRU | PG_MOVABLE) != 0) & ~free
    for pfn, _, n_free, n_movable, n_pinned, who in (*dma.best, *dma32.best):
        part = slice(pfn, pfn + 512)
        assert (n_free, n_movable, n_pinned) == (int(free[part].sum()), int(movable[part].sum()), int((~free[part] & ~movable[part]).sum()))
        assert sum(pin.frames for pin in who) == n_pinned
        for pin in who:
            assert pin.oldest is None or 0 < pin.oldest <= 60429
    assert any("Compaction could not have made room" in text and "DMA" in text for text in x.verdict.why)
    assert any("13 of 55 pageblocks of DMA32" in text for text in x.verdict.why)
    assert recording.after is not None
    assert {zone: sum(counts.values()) for zone, counts in x.holders.items()} == dict(
        recording.after.zones.filter(pl.col("present_pages") > 0).select("name", "present_pages").iter_rows()
    )
    assert sum(pin.frames for pin in x.owners) == sum(
        n for zone in x.holders.values() for what, n in zone.items() if what not in ("free", "per-CPU list", "movable")
    )
    document = x.to_dict()
    assert document["schema"] == 1 and document["twin"]["agrees"] and document["rooms"][0]["best"][0]["pins"][0]["frames"] > 0


def test_events_in_words(fails: dict[int, Recording]) -> None:
    recording = fails[1]
    rows = failures(recording)["row"].to_list()
    assert event_of(recording, "first-failure") == event_of(recording, "failure:1") == rows[0] == 52208
    assert (event_of(recording, "failure:380"), event_of(recording, "last"), event_of(recording, "end")) == (rows[-1], rows[-1], len(recording.events))
    assert event_of(recording, "52,208") == 52208
    for text, message in (
        ("failure:381", "failure:1 to failure:380"), ("failure:0", "failure:1 to"), ("nonsense", "expected an event number"), ("-1", "expected an event number"),
        ("159352", "from 0 to 159351"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=message):
            event_of(recording, text)
    calm = store.load(RECORDINGS / "mmap-1g-1cpu.mmrec")
    with pytest.raises(RequestError, match="none of the recording's page requests failed"):
        event_of(calm, "first-failure")


def test_requests_that_make_no_sense(fails: dict[int, Recording]) -> None:
    recording = fails[1]
    with pytest.raises(RequestError, match="is walk, not a request for pages: give --order N --gfp FLAGS"):
        place_of(recording, 52193)
    with pytest.raises(RequestError, match="is the end"):
        place_of(recording, len(recording.events))
    with pytest.raises(RequestError, match="order 11: the largest block is of order 10"):
        hypothetical(recording, 5, 11, GFP_KERNEL)
    with pytest.raises(RequestError, match="CPU 1: the machine has CPUs 0 to 0"):
        hypothetical(recording, 5, 0, GFP_KERNEL, cpu=1)
    with pytest.raises(RequestError, match="no kernel accepts"):
        explain_at(recording, hypothetical(recording, 5, 0, 0x3))
    with pytest.raises(RecordingError, match="no snapshot"):
        explain_at(replace(recording, before=None), place_of(recording, 52208))


def test_a_recording_without_the_recorders_probes_is_judged_at_the_event(fails: dict[int, Recording]) -> None:
    recording = fails[1]
    bare = replace(recording, events=recording.events.filter(pl.col("kind") != "walk"))
    row = failures(bare)["row"][0]
    place = place_of(bare, row)
    assert (place.judged, place.flags) == (row, None)


def test_a_release_that_is_no_version(fails: dict[int, Recording]) -> None:
    recording = fails[1]
    for release in ("", "custom", "<6>"):
        odd = replace(recording, provenance=replace(recording.provenance, kernel_release=release))
        x = next(iter(explain_many(odd, [place_of(odd, 52208)], look=False)))
        assert x.kernel.release == release and not x.passes


def test_a_machine_with_high_memory() -> None:
    old = store.load(RECORDINGS / "areas-2g-4cpu-686.mmrec")
    x = explain_at(old, hypothetical(old, len(old.events), 0, GFP_HIGHUSER_MOVABLE))
    assert [zone.zone.name for zone in x.verdict.zones] == ["DMA", "Normal", "HighMem"] and x.passes and x.agrees
    x = explain_at(old, hypothetical(old, len(old.events), 0, GFP_KERNEL))
    assert [zone.rule for zone in x.verdict.zones] == ["passes", "passes", "not_eligible"]
