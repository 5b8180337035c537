"""perf.data of a real 6.18 kernel: sums beside those of an independent query, beside perf kmem's own where it is right, and where it is wrong.

The four silent errors of perf kmem: migrate types by a table of before Linux 4.4, call sites of pages that are all the same function, options behind
``stat`` ignored, and a net sum that hides what was not recorded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import mmtwin
from mmtwin.cli.main import main
from mmtwin.diagnose.blame import blame
from mmtwin.diagnose.page_stat import page_stat
from mmtwin.diagnose.stat import stat
from mmtwin.errors import RequestError
from mmtwin.recording.model import Recording
from mmtwin.recording.readers import ftrace_text, perf_data, read
from mmtwin.recording.symbols import Symbols, read_symbols

DATA = Path(__file__).parents[1] / "data" / "perf"
Make = Callable[..., Recording]
NAMES = ("task", "chains", "machine")


@pytest.fixture(autouse=True)
def no_running_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names come from the fixture's symbols alone, also on the very machine that recorded it."""
    monkeypatch.setattr(perf_data, "running_kernel", lambda release, text: None)


@pytest.fixture(scope="session")
def symbols() -> Symbols:
    return read_symbols(DATA / "kallsyms.txt")


@pytest.fixture(scope="session")
def recordings(symbols: Symbols) -> dict[str, Recording]:
    return {name: read(DATA / f"{name}.data.gz", symbols=symbols) for name in NAMES}


def perf_kmem(name: str) -> str:
    """What perf 6.1's ``perf kmem --slab --caller --raw-ip stat`` and ``--page`` printed."""
    return (DATA / f"{name}.perf-kmem.txt").read_text()


def number(text: str, label: str) -> int:
    found = re.search(rf"^{label}\s*:\s*([\d,]+)", text, re.MULTILINE)
    assert found, label
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("name", NAMES)
def test_slabs_are_what_an_independent_query_says(recordings: dict[str, Recording], name: str) -> None:
    events = recordings[name].events
    allocations = events.filter(pl.col("kind").is_in(["kmalloc", "kmem_cache_alloc"]) & ~pl.col("ptr").is_in([0, 16]))
    by_site = allocations.group_by("call_site").agg(pl.len().alias("hits"), pl.col("bytes_alloc", "bytes_req").sum())
    result = stat(recordings[name])
    rows = result.rows.select(pl.col("key").alias("call_site"), pl.col("hits").cast(pl.UInt32), "bytes_alloc", "bytes_req")
    assert rows.sort("call_site").equals(by_site.sort("call_site"))
    assert result.summary.bytes_requested == allocations["bytes_req"].sum()
    # live: the last event that names the address is an allocation
    last = events.filter(pl.col("kind").is_in(["kmalloc", "kmem_cache_alloc", "kfree", "kmem_cache_free"]) & ~pl.col("ptr").is_in([0, 16]))
    last = last.group_by("ptr", maintain_order=True).last().filter(pl.col("kind").is_in(["kmalloc", "kmem_cache_alloc"]))
    assert (result.summary.live, result.summary.live_bytes) == (len(last), last["bytes_alloc"].sum())
    assert result.summary.net_bytes is None


@pytest.mark.parametrize("name", NAMES)
def test_pages_are_what_an_independent_query_says(recordings: dict[str, Recording], name: str) -> None:
    events = recordings[name].events.filter(pl.col("kind").is_in(["mm_page_alloc", "mm_page_free"]))
    got = events.filter((pl.col("kind") == "mm_page_alloc") & (pl.col("pfn") >= 0))
    result = page_stat(recordings[name])
    kinds = got.group_by("order", "migratetype", "gfp").agg(pl.len().alias("hits"), (4096 * 2 ** pl.col("order").cast(pl.Int64)).sum().alias("bytes"))
    assert sorted(result.rows.select("order", "hits", "bytes").iter_rows()) == sorted(kinds.select("order", "hits", "bytes").iter_rows())
    assert result.summary.requests == len(got)
    assert result.summary.free_requests == len(events.filter(pl.col("kind") == "mm_page_free"))
    frames = (
        events.with_columns(pl.int_ranges(0, 2 ** pl.col("order").cast(pl.Int64)).alias("page")).explode("page").with_columns(pl.col("pfn") + pl.col("page"))
    )
    live = frames.group_by("pfn", maintain_order=True).last().filter(pl.col("kind") == "mm_page_alloc")
    assert result.summary.pages_live == len(live)


@pytest.mark.parametrize("name", NAMES)
def test_where_perf_kmem_is_right_the_figures_are_its_own(recordings: dict[str, Recording], name: str) -> None:
    text = perf_kmem(name)
    summary = stat(recordings[name]).summary
    assert (summary.bytes_requested, summary.bytes_allocated) == (number(text, "Total bytes requested"), number(text, "Total bytes allocated"))
    theirs = {
        int(site, 16) - (1 << 64): tuple(map(int, numbers))
        for site, *numbers in re.findall(r"^ 0x([0-9a-f]{16}) +\| +(\d+)/\d+ +\| +(\d+)/\d+ +\| +(\d+) \|", text, re.MULTILINE)
    }
    assert len(theirs) >= 5
    mine = {site: (alloc, req, hits) for site, alloc, req, hits in stat(recordings[name]).rows.select("key", "bytes_alloc", "bytes_req", "hits").iter_rows()}
    assert mine == theirs
    pages = page_stat(recordings[name]).summary
    assert (pages.requests, pages.free_requests) == (number(text, "Total allocation requests"), number(text, "Total free requests"))


@pytest.mark.parametrize("name", NAMES)
def test_blame_says_the_same_of_who_grows(recordings: dict[str, Recording], name: str) -> None:
    """Live bytes of objects and pages at the end: blame, stat and a query of its own."""
    objects, pages = blame(recordings[name], "callsite").grows
    assert objects.rows["live_end"].sum() == stat(recordings[name]).summary.live_bytes
    events = recordings[name].events.filter(pl.col("kind").is_in(["mm_page_alloc", "mm_page_free"]))
    frames = (
        events.with_columns(pl.int_ranges(0, 2 ** pl.col("order").cast(pl.Int64)).alias("page")).explode("page").with_columns(pl.col("pfn") + pl.col("page"))
    )
    live = frames.group_by("pfn", maintain_order=True).last().filter(pl.col("kind") == "mm_page_alloc")
    assert pages.rows["live_end"].sum() == 4096 * len(live)


def test_the_bundled_recording_too() -> None:
    """Objects of bulk calls, which only the recorder sees, have no call site; all others are in the query."""
    recording = read(Path(mmtwin.__file__).parent / "data" / "demo.mmrec")
    allocations = recording.events.filter(pl.col("kind").is_in(["kmalloc", "kmem_cache_alloc"]) & ~pl.col("ptr").is_in([0, 16]))
    by_site = allocations.group_by("call_site").agg(pl.len().cast(pl.Int64).alias("hits"), pl.col("bytes_alloc", "bytes_req").sum())
    rows = stat(recording).rows.filter(pl.col("key") != 0).select(pl.col("key").alias("call_site"), "hits", "bytes_alloc", "bytes_req")
    assert rows.sort("call_site").equals(by_site.sort("call_site"))
    pages = recording.events.filter((pl.col("kind") == "mm_page_alloc") & (pl.col("pfn") >= 0))
    by_type = pages.group_by("migratetype").agg(
        pl.len().cast(pl.Int64).alias("hits"), (2 ** pl.col("order").cast(pl.Int64)).sum().cast(pl.Int64).alias("pages")
    )
    mine = page_stat(recording, "migtype").rows.select(pl.col("key").cast(pl.Int8).alias("migratetype"), "hits", "pages")
    assert mine.sort("migratetype").equals(by_type.sort("migratetype"))


def test_error_1_migrate_types(recordings: dict[str, Recording], recording: Make) -> None:
    """Every page of GFP_HIGHUSER_MOVABLE is "RECLAIM" for perf, whose table is that of kernels before 4.4."""
    rows = {row["gfp"]: row["migtype"] for row in page_stat(recordings["task"]).rows.to_dicts()}
    assert {kind for gfp, kind in rows.items() if "GFP_HIGHUSER_MOVABLE" in gfp} == {"Movable"}
    assert "HUM|Z|C: GFP_HIGHUSER_MOVABLE|__GFP_ZERO|__GFP_COMP" in perf_kmem("task")
    assert re.search(r"RECLAIM \| HUM\|Z\|C", perf_kmem("task"))
    # the release decides where it is known, also if no request says that it is movable
    page = {"kind": "mm_page_alloc", "pfn": 1, "order": 0, "migratetype": 1, "gfp": 0xCD0}
    for release, name in (("3.16.7", "Reclaimable"), ("4.3.0", "Reclaimable"), ("4.4.0-rc1", "Movable"), ("6.18.44", "Movable"), ("unknown", "Movable")):
        assert page_stat(recording(page, kernel_release=release), "migtype").rows["label"].to_list() == [name], release


def test_error_2_call_sites_of_pages(recordings: dict[str, Recording]) -> None:
    """perf: one call site, ``__alloc_frozen_pages_noprof``; with -g one address, from which it has even lost the kernel's base."""
    result = page_stat(recordings["chains"], "callsite")
    sites = dict(result.rows.select("label", "hits").iter_rows())
    theirs = re.findall(r"^ +\d+ \| +(\d+) \| +\d+ \| +\w+ \| \S+ +\| (\S+)$", perf_kmem("chains"), re.MULTILINE)
    assert len({site for _, site in theirs}) == 1
    assert sum(int(hits) for hits, _ in theirs) == sum(sites.values()) == result.summary.requests
    assert len(sites) >= 8
    assert {"pte_alloc_one", "__pmd_alloc", "do_anonymous_page"} <= {site.partition("+")[0] for site in sites}
    functions = dict(page_stat(recordings["chains"], "function").rows.select("label", "hits").iter_rows())
    assert functions["do_wp_page"] == sum(hits for site, hits in sites.items() if site.startswith("do_wp_page+"))
    # the first frame of perf script's text that is not of the allocator
    text = page_stat(ftrace_text.read(DATA / "chains.script.txt.gz"), "callsite")
    assert dict(text.rows.select("label", "hits").iter_rows()) == sites


def test_error_2_where_nothing_says_who_called(recordings: dict[str, Recording]) -> None:
    with pytest.raises(RequestError, match="mm_page_alloc names no caller; record call chains"):
        page_stat(recordings["task"], "callsite")
    with pytest.raises(RequestError, match="give the recorded kernel's /proc/kallsyms"):
        page_stat(read(DATA / "chains.data.gz"), "function")


def test_error_3_options_after_the_verb(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """``perf kmem stat --slab --caller -l 3`` ignores all three; here each changes the answer or is refused."""
    file, kallsyms = str(DATA / "chains.data.gz"), str(DATA / "kallsyms.txt")

    def run(*words: str) -> str:
        capsys.readouterr()
        assert main(["stat", file, *words]) == 0
        return capsys.readouterr().out

    assert len(json.loads(run("--page", "--by", "callsite", "--symbols", kallsyms, "--json", "--lines", "3"))["rows"]) == 3
    assert "page allocator" in run("--page")
    assert "slab allocator" in run()
    assert re.search(r"^0xffffffff8", run("--raw-ip"), re.MULTILINE)
    assert "perf_event_mmap+0x155" in run("--symbols", kallsyms)
    capsys.readouterr()
    assert main(["stat", file, "--caller"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_error_4_net_of_some_tasks(recordings: dict[str, Recording], recording: Make) -> None:
    """perf prints a net sum of whatever it saw; much of it is freed later by RCU, or by other tasks."""
    text = perf_kmem("task")
    assert number(text, "Net total bytes allocated") == number(text, "Total bytes allocated") - number(text, "Total bytes freed")
    result = stat(recordings["task"])
    assert result.summary.tasks_only
    assert result.summary.net_bytes is None
    assert any(note.startswith("only some tasks were recorded") for note in result.notes)
    assert any(note.startswith("only some tasks were recorded") for note in page_stat(recordings["task"]).notes)
    assert not any("only some tasks" in note for note in stat(recordings["machine"]).notes)
    # the same events without unmatched frees: the machine's net is known, that of some tasks only if nothing is left
    alloc = {"kind": "kmalloc", "ptr": 64, "bytes_req": 10, "bytes_alloc": 16}
    free = {"kind": "kfree", "ptr": 64}
    assert stat(recording(alloc, scope="machine")).summary.net_bytes == 16
    assert stat(recording(alloc, scope="tasks")).summary.net_bytes is None
    assert stat(recording(alloc, free, scope="tasks")).summary.net_bytes == 0
    page = {"kind": "mm_page_alloc", "pfn": 1, "order": 0, "migratetype": 1}
    assert page_stat(recording(page, scope="machine")).summary.net_bytes == 4096
    assert page_stat(recording(page, scope="tasks")).summary.net_bytes is None


def test_raw_addresses(recordings: dict[str, Recording]) -> None:
    assert all(label.startswith(("0xffff", "(")) for label in stat(recordings["task"], raw_ip=True).rows["label"])
    assert "getname_flags.part.0+0x24" in stat(recordings["task"]).rows["label"].to_list()
