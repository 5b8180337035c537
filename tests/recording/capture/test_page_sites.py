"""Who asks for pages in recordings: the probes, what is made of their events, and a recording of a real kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from mmtwin.diagnose.page_stat import page_stat
from mmtwin.recording import store
from mmtwin.recording.capture.page_sites import DOORS, site_probes, with_sites
from mmtwin.recording.capture.probes import ENDBR64, NOP5, Symbols
from mmtwin.recording.model import EVENTS_SCHEMA
from mmtwin.replay.check import replay

RECORDING = Path(__file__).parents[2] / "data" / "sites-128m-2cpu.mmrec"
BASE = 0xFFFFFFFF81000000


class Kernel(Symbols):
    """Functions of 256 bytes each, one after the other."""

    def __init__(self, *names: str) -> None:
        self._functions = {name: (BASE + 0x100 * at, 0x100) for at, name in enumerate(names)}
        self._start, self._text = BASE, b"".join((ENDBR64 + NOP5).ljust(0x100, b"\x90") for _ in names)


def test_probes_tell_the_outermost_caller_only() -> None:
    found = site_probes(Kernel("alloc_pages", "__alloc_pages", "somebody", "get_zeroed_page", "get_page_from_freelist.constprop.0"))
    assert [probe.definition for probe in found] == [
        "p:mmtwin/page_site0 __alloc_pages+9 ra=+0($stack):x64",
        "p:mmtwin/page_site1 alloc_pages+9 ra=+0($stack):x64",
        "p:mmtwin/page_site2 get_zeroed_page+9 ra=+0($stack):x64",
    ]
    for probe in found:
        assert probe.filter == f"(ra < {BASE:#x} || ra >= {BASE + 0x200:#x}) && (ra < {BASE + 0x300:#x} || ra >= {BASE + 0x500:#x})"
    assert len(set(DOORS)) == len(DOORS)


def events(*rows: tuple[str, int, int] | tuple[str, int, int, int, int]) -> pl.DataFrame:
    """Rows of kind, pid and call site; also CPU and context."""
    absent: dict[str, Any] = dict.fromkeys(EVENTS_SCHEMA, 0) | {"pfn": -1, "order": -1, "migratetype": -1, "name": None}
    names = ("kind", "pid", "call_site", "cpu", "context")
    return pl.DataFrame([absent | {"time": at} | dict(zip(names, row, strict=False)) for at, row in enumerate(rows)], schema=EVENTS_SCHEMA)


def test_requests_and_their_sites() -> None:
    site, page = "page_site", "mm_page_alloc"
    table = with_sites(
        events(
            (site, 1, 100), (site, 2, 200), (page, 2, 0), (page, 1, 0),  # two tasks
            (site, 1, 101), (site, 1, 102, 0, 1), (page, 1, 0, 0, 1), (page, 1, 0),  # a soft interrupt in between
            (site, 1, 103), (site, 1, 104), (page, 1, 0), (page, 1, 0),  # a request that reclaims, and reclaim's own
            (page, 1, 0),  # a second attempt
            (site, 0, 105, 0, 0), (site, 0, 106, 1, 0), (page, 0, 0, 0, 0), (page, 0, 0, 1, 0),  # idle tasks of two CPUs
            ("kfree", 1, 77), (page, 9, 0),
        )
    )  # fmt: skip
    assert "page_site" not in table["kind"].to_list()
    assert table["call_site"].to_list() == [200, 100, 102, 101, 104, 103, 103, 105, 106, 77, 0]
    assert table.schema == pl.DataFrame(schema=EVENTS_SCHEMA).schema


def test_a_real_recording() -> None:
    recording = store.load(RECORDING)
    assert "page_site0" in recording.provenance.probes
    assert (recording.provenance.lost_events, recording.provenance.missed_probes) == (0, 0)
    pages = recording.events.filter(pl.col("kind") == "mm_page_alloc")
    assert len(pages.filter(pl.col("call_site") == 0)) == 0
    assert len(recording.events.filter((pl.col("kind") != "mm_page_alloc") & (pl.col("call_site") != 0))) == 0
    rows = {row["label"].partition("+")[0]: row for row in page_stat(recording, "callsite").rows.to_dicts()}
    assert {"__handle_mm_fault", "allocate_slab", "shmem_alloc_folio", "pte_alloc_one", "pgd_alloc"} <= set(rows)
    # what the kernel's source says of each caller's requests
    kinds = recording.events.filter(pl.col("kind") == "mm_page_alloc").with_columns(
        pl.col("call_site")
        .replace_strict(page_stat(recording, "callsite").rows["key"], page_stat(recording, "callsite").rows["label"], default="")
        .alias("site")
    )
    sites = {site.partition("+")[0]: part for (site,), part in kinds.group_by("site")}
    assert set(sites["pgd_alloc"]["order"]) == {1}, "PGD_ALLOCATION_ORDER with page table isolation"
    assert set(sites["pte_alloc_one"]["migratetype"]) == {0}
    assert set(sites["shmem_alloc_folio"]["migratetype"]) == {1}


def test_its_replay_is_equal() -> None:
    """The probes take no page and change no order: what a recording without them can be checked for, one with them can."""
    result, _ = replay(store.load(RECORDING))
    assert result.page_allocs_equal == result.page_allocs == 3509
    assert result.final_state_equal
    assert result.differences == []
    assert [result.inferred[kind] for kind in ("unplaced_allocations", "zones_learnt", "limits_learnt", "ownership_learnt", "reserves_learnt")] == [0] * 5
