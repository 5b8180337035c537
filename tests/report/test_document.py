"""The report's numbers are those of info, stat and replay."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mmtwin.cli import info
from mmtwin.diagnose.page_stat import page_stat
from mmtwin.diagnose.stat import stat
from mmtwin.recording import store
from mmtwin.recording.readers import ftrace_text
from mmtwin.replay.check import replay
from mmtwin.report.document import document
from mmtwin.report.sections import SECTIONS, SITES, Section

from .conftest import Made

DATA = Path(__file__).parent.parent / "data"


def test_info(demo: Made) -> None:
    with store.open_recording(demo.path) as opened:
        described = info.describe(opened.manifest, demo.path)
    for key in (
        "kernel_release",
        "how",
        "ram_bytes",
        "cpus",
        "cmdline",
        "workload_name",
        "workload_seconds",
        "events",
        "events_by_kind",
        "lost_events",
        "missed_probes",
    ):
        assert demo.data[key] == described[key], key


def test_stat(demo: Made) -> None:
    result = stat(demo.recording)
    assert demo.data["objects"]["summary"] == asdict(result.summary)
    assert demo.data["objects"]["rows"] == result.to_dict(SITES)["rows"]
    assert demo.data["objects"]["rows_total"] == len(result.rows)
    by_cache = stat(demo.recording, "cache").rows
    tree = demo.data["objects"]["tree"]
    assert totals(tree, "bytes") == result.summary.bytes_allocated and totals(tree, "live_bytes") == result.summary.live_bytes
    assert totals(tree, "hits") == result.summary.allocations and totals(tree, "waste_bytes") == result.summary.waste_bytes
    for node in tree[:10]:
        row = by_cache.row(by_predicate=pl.col("label") == node["name"], named=True)
        assert (node["bytes"], node["hits"], node["live_bytes"]) == (row["bytes_alloc"], row["hits"], row["live_bytes"])


def totals(nodes: list[dict[str, Any]], key: str) -> int:
    """The sum over a tree's first level; each node's children must add up to it."""
    for node in nodes:
        if "children" in node:
            assert totals(node["children"], key) == node[key], node["name"]
    return sum(node[key] for node in nodes)


@pytest.mark.parametrize("name", ["demo", "refusing"])
def test_page_stat(name: str, request: pytest.FixtureRequest) -> None:
    made: Made = request.getfixturevalue(name)
    result = page_stat(made.recording)
    assert made.data["pages"]["summary"] == asdict(result.summary)
    assert made.data["pages"]["rows"] == result.to_dict(SITES)["rows"]
    assert totals(made.data["pages"]["tree"], "bytes") == result.summary.bytes
    assert made.data["failures"]["total"] == result.summary.failed
    activity = {series["key"]: sum(series["counts"]) for series in made.data["activity"]["series"]}
    assert (activity["page_allocs"], activity["page_frees"]) == (result.summary.requests, result.summary.free_requests)
    assert (
        sum(made.data["activity"]["pages"])
        == result.summary.pages - result.summary.pages_freed - result.summary.pages_freed_earlier - result.summary.pages_freed_unmatched
    )


@pytest.mark.parametrize("name", ["demo", "refusing"])
def test_replay(name: str, request: pytest.FixtureRequest) -> None:
    made: Made = request.getfixturevalue(name)
    result = asdict(replay(made.recording, check=False)[0])
    counted = {key: result[key] for key in made.data["replay"]}
    assert made.data["replay"] == counted and counted["page_allocs"] == counted["page_allocs_equal"] > 0


def test_spans_add_up(refusing: Made) -> None:
    kinds = refusing.data["events_by_kind"]
    activity = {series["key"]: series["counts"] for series in refusing.data["activity"]["series"]}
    assert sum(activity["direct_reclaims"]) == kinds["mm_vmscan_direct_reclaim_begin"]
    assert sum(activity["oom_kills"]) == kinds["mark_victim"] == 2
    events = refusing.data["steps"]["events"]
    first = refusing.recording.events[: events[8]]
    assert sum(activity["failed"][:8]) == first.filter((pl.col("kind") == "mm_page_alloc") & (pl.col("pfn") < 0)).height > 0
    assert all(len(counts) == len(events) - 1 for counts in activity.values())


def test_it_is_json(demo: Made, refusing: Made) -> None:
    for made in (demo, refusing):
        text = json.dumps(made.data, allow_nan=False)
        assert json.dumps(json.loads(text)) == text
        assert made.data["schema"] == 1
        assert len(made.data["findings"]["tiles"]) >= 5 and made.data["findings"]["sentences"]


def test_what_a_reader_is_told(refusing: Made, demo: Made) -> None:
    text = " ".join(refusing.data["findings"]["sentences"])
    assert "380 requests of orders 0 to 9 were refused" in text and "awk (PID 139)" in text and "DMA32 came below the low watermark" in text
    assert not refusing.data["caches"] and any("--slab" in missing for missing in refusing.data["missing"])
    assert not demo.data["missing"] and any("inode_cache" in sentence for sentence in demo.data["findings"]["sentences"])


def test_trace_text() -> None:
    """Without snapshots: what the events say, and what is missing."""
    path = DATA / "linux-6.1.ftrace.txt"
    recording = ftrace_text.read(path)
    data = document(recording, path, steps=5)
    assert data["memory"] is data["map"] is data["free"] is data["caches"] is data["replay"] is None
    assert "no snapshot" in data["missing"][0]
    assert data["failures"]["total"] == 1 and data["failures"]["requests"][0]["explained"] is None
    assert data["objects"]["summary"]["allocations"] == 3 and data["lost_events"] == 7
    assert any("7 events were lost" in sentence for sentence in data["findings"]["sentences"])


def test_calls_of_malloc() -> None:
    path = DATA / "malloc-shell.mmrec"
    data = document(store.load(path), path, steps=5)
    assert data["objects"]["summary"]["allocations"] > 0 and data["map"] is None and data["pages"] is None
    assert data["blame"] is None and data["advice"] is None and sum("malloc" in text for text in data["missing"]) >= 2
    assert {series["key"] for series in data["activity"]["series"]} == {"calls", "calls_free"}


def test_virtual_areas_alone() -> None:
    path = DATA.parent / "recordings" / "virtual" / "areas-6.12-1cpu.mmrec"
    data = document(store.load(path), path, steps=5)
    assert data["memory"] is None and "no snapshot of the page allocator" in data["missing"][0]


def test_without_slab_allocator_of_this_kind() -> None:
    path = DATA / "slab-classic-1cpu.mmrec"
    data = document(store.load(path), path, steps=3)
    assert data["memory"] is not None and data["caches"] is None


def test_another_section(refusing: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other kinds of results are added to the registry."""
    monkeypatch.setattr("mmtwin.report.document.SECTIONS", [*SECTIONS, Section("blame", "Blame", lambda context: {"steps": len(context.steps)})])
    assert document(refusing.recording, refusing.path, steps=3)["blame"] == {"steps": 3}
