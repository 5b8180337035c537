from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtwin.diagnose import cache_names
from mmtwin.diagnose.stat import GROUPS, SORT, SlabSummary, StatResult, clock, leaks, stat
from mmtwin.errors import RequestError
from mmtwin.recording.model import EVENTS_SCHEMA, Provenance, Recording
from mmtwin.recording.readers import ftrace_text
from mmtwin.recording.symbols import read_symbols

Make = Callable[..., Recording]
DATA = Path(__file__).parent.parent / "data"
ALLOCS = ("kmalloc", "kmalloc_node", "kmem_cache_alloc", "kmem_cache_alloc_node")
FREES = ("kfree", "kmem_cache_free")
SLAB_RECORDINGS = ("processes-128m-1cpu-slab", "pipes-512m-1cpu-slab")


def alloc(ptr: int, req: int = 100, size: int = 128, site: int = 0x1000, kind: str = "kmalloc", **more: Any) -> dict[str, Any]:
    return {"kind": kind, "ptr": ptr, "bytes_req": req, "bytes_alloc": size, "call_site": site, "gfp": 0xCC0, **more}


def free(ptr: int, kind: str = "kfree", **more: Any) -> dict[str, Any]:
    return {"kind": kind, "ptr": ptr, "call_site": 0x9999, **more}


def naive(recording: Recording, key: str = "call_site") -> tuple[dict[str, int], dict[int, dict[str, int]]]:
    """The same sums, one event at a time, with a dictionary of what is allocated."""
    total: dict[str, int] = defaultdict(int)
    groups: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    held: dict[int, dict[str, Any]] = {}
    freed_before = set()
    for event in recording.events.iter_rows(named=True):
        kind, ptr = event["kind"], event["ptr"]
        if kind in ALLOCS:
            group = groups[event[key]]
            if ptr in (0, 16):
                total["failed" if ptr == 0 else "zero_size"] += 1
                group["failed"] += ptr == 0
                continue
            if ptr in held:
                total["reused"] += 1
                groups[held[ptr][key]]["reused"] += 1
            held[ptr] = event
            for name, add in (("hits", 1), ("bytes_req", event["bytes_req"]), ("bytes_alloc", event["bytes_alloc"])):
                total[name] += add
                group[name] += add
        elif kind in FREES:
            if ptr == 0:
                total["frees_of_null"] += 1
            elif ptr == 16:
                total["frees_of_zero_size"] += 1
            elif ptr in held:
                before = held.pop(ptr)
                total["matched"] += 1
                total["freed_bytes"] += before["bytes_alloc"]
                total["cross"] += before["cpu"] != event["cpu"]
                groups[before[key]]["freed"] += 1
                groups[before[key]]["pingpong"] += before["cpu"] != event["cpu"]
                freed_before.add(ptr)
            else:
                total["unmatched"] += 1
                total["again"] += ptr in freed_before
                freed_before.add(ptr)
    last = recording.events.filter(pl.col("kind").cast(pl.String).is_in([*ALLOCS, *FREES]))["time"].max()
    for ptr, event in held.items():
        del ptr
        total["live"] += 1
        total["live_bytes"] += event["bytes_alloc"]
        group = groups[event[key]]
        group["live"] += 1
        group["live_bytes"] += event["bytes_alloc"]
        group["oldest"] = max(group["oldest"], last - event["time"])
    return total, groups


def without_bulk(recording: Recording) -> Recording:
    """Only what tracepoints tell; the silent bulk calls have a test of their own."""
    return replace(recording, events=recording.events.filter(~pl.col("kind").cast(pl.String).str.starts_with("slab_")))


def assert_naive(recording: Recording, by: str = "callsite", key: str = "call_site") -> StatResult:
    """Compares everything with the naive sums."""
    result, (total, groups) = stat(recording, by), naive(recording, key)
    s: SlabSummary = result.summary
    assert (s.allocations, s.bytes_requested, s.bytes_allocated) == (total["hits"], total["bytes_req"], total["bytes_alloc"])
    assert (s.failed, s.zero_size, s.frees_of_null, s.frees_of_zero_size) == tuple(
        total[name] for name in ("failed", "zero_size", "frees_of_null", "frees_of_zero_size")
    )
    assert (s.frees, s.frees_matched, s.bytes_freed) == (total["matched"] + total["unmatched"], total["matched"], total["freed_bytes"])
    assert (s.frees_unmatched, s.frees_unmatched_again, s.reused) == (total["unmatched"], total["again"], total["reused"])
    assert (s.live, s.live_bytes, s.cross_cpu_frees) == (total["live"], total["live_bytes"], total["cross"])
    assert s.allocations == s.frees_matched + s.reused + s.live
    assert s.bytes_allocated == s.bytes_freed + s.reused_bytes + s.live_bytes
    rows = {row["key"]: row for row in result.rows.iter_rows(named=True)}
    assert rows.keys() == groups.keys()
    for group, expected in groups.items():
        row = rows[group]
        for name in ("hits", "bytes_req", "bytes_alloc", "pingpong", "freed", "reused", "failed", "live", "live_bytes"):
            assert row[name] == expected[name], (group, name)
        assert row["waste_bytes"] == row["bytes_alloc"] - row["bytes_req"]
        assert row["age_oldest"] == (expected["oldest"] if row["live"] else None)
    return result


@pytest.mark.parametrize("name", SLAB_RECORDINGS)
def test_real_recordings_add_up(recordings: dict[str, Recording], name: str) -> None:
    recording = without_bulk(recordings[name])
    result = assert_naive(recording)
    assert result.clock == "events"
    assert result.rows["bytes_alloc"].is_sorted(descending=True)
    assert_naive(recording, "pid", "pid")
    assert_naive(recording, "ptr", "ptr")
    for by in GROUPS:
        rows = stat(recording, by).rows
        for column in ("hits", "bytes_alloc", "bytes_req", "waste_bytes", "live", "live_bytes", "freed", "reused", "pingpong"):
            assert rows[column].sum() == (result.rows[column].sum()), (by, column)


def test_real_cache_names(recordings: dict[str, Recording]) -> None:
    """The names are those of /proc/slabinfo, and the sizes fit it."""
    for name in SLAB_RECORDINGS:
        recording = recordings[name]
        sizes = {line.split()[0]: int(line.split()[3]) for line in recording.provenance.procfs["slabinfo"].splitlines()[2:]}
        rows = stat(recording, "cache").rows
        named = [row for row in rows.iter_rows(named=True) if not row["label"].startswith("(")]
        assert len(named) > 15
        for row in named:
            assert row["bytes_alloc"] == row["hits"] * sizes[row["label"]], row["label"]


def test_the_old_i386_trace() -> None:
    """Numbers of the trace's first lines, taken with grep and awk."""
    recording = ftrace_text.read(DATA / "linux-3.x-i386.ftrace.txt")
    result = assert_naive(recording)
    text = (DATA / "linux-3.x-i386.ftrace.txt").read_text()
    requested = [int(word.split("=")[1]) for word in text.split() if word.startswith("bytes_req=")]
    nothing = sum("bytes_req=" in line and "ptr=(null)" in line.replace("ptr=  ", "ptr=") for line in text.splitlines())
    assert result.summary.allocations == len(requested) - nothing
    assert result.summary.bytes_requested == sum(requested)
    assert result.clock == "ns"


def test_known_sums_of_a_whole_boot() -> None:
    """Another program's figures for a boot of Linux 3.x on i386 (8,643 allocations and 2,623 frees of objects; live 673,929 of 703,264 bytes)."""
    s = assert_naive(ftrace_text.read(DATA / "linux-3.x-i386-slub-boot.ftrace.txt.gz")).summary
    assert (s.allocations, s.frees, s.live_bytes_requested, s.live_bytes) == (8643, 2623, 673_929, 703_264)


def test_each_fate(recording: Make) -> None:
    made = recording(
        alloc(0x100, 100, 128, cpu=1),
        free(0x100, cpu=2),  # ping-pong
        alloc(0x100, 60, 64, site=0x2000),  # the address again, now live
        alloc(0x200),
        alloc(0x200),  # the first of the two was freed silently
        free(0x200),
        free(0x200),  # allocated silently in between, or freed twice
        free(0x300),  # older than the recording
        free(0),
        free(16),
        alloc(0, 500, 512, site=0x3000),  # failed
        alloc(16, 0, 0),
    )
    s = assert_naive(made).summary
    assert (s.allocations, s.failed, s.zero_size, s.reused, s.live) == (4, 1, 1, 1, 1)
    assert (s.frees, s.frees_matched, s.frees_unmatched, s.frees_unmatched_again) == (4, 2, 2, 1)
    assert (s.frees_of_null, s.frees_of_zero_size, s.cross_cpu_frees) == (1, 1, 1)
    assert s.net_bytes is None
    rows = {row["key"]: row for row in stat(made).rows.iter_rows(named=True)}
    assert rows[0x3000]["failed"] == 1
    assert rows[0x3000]["bytes_alloc"] == rows[0x3000]["frag_percent"] == 0
    assert rows[0x1000]["frag_percent"] == pytest.approx(100 * 28 / 128)
    assert rows[0x1000]["lifetime_mean"] == 1
    assert rows[0x2000]["age_oldest"] == rows[0x2000]["age_youngest"] == 9


def test_net_is_known_only_if_everything_is_paired(recording: Make) -> None:
    assert stat(recording(alloc(0x100), alloc(0x200), free(0x100), free(0))).summary.net_bytes == 128
    assert stat(recording(alloc(0x100), free(0x200))).summary.net_bytes is None
    assert stat(recording(alloc(0x100), alloc(0x100))).summary.net_bytes is None


def test_older_kernels_events_and_frees_across_kinds(recording: Make) -> None:
    made = recording(
        alloc(0x100, kind="kmalloc_node"), alloc(0x200, kind="kmem_cache_alloc_node"), free(0x100, "kmem_cache_free", name="kmalloc-128"), free(0x200)
    )
    assert assert_naive(made).summary.net_bytes == 0


event = st.one_of(
    st.builds(
        lambda p, cpu, size, site, kind: alloc(p, size, size + 8, site, kind, cpu=cpu),
        st.sampled_from([0, 16, 64, 128, -192, 256]), st.integers(0, 2), st.integers(1, 99), st.integers(1, 3), st.sampled_from(ALLOCS),
    ),
    st.builds(lambda p, cpu, kind: free(p, kind, cpu=cpu), st.sampled_from([0, 16, 64, 128, -192, 256]), st.integers(0, 2), st.sampled_from(FREES)),
)  # fmt: skip


@given(st.lists(event, min_size=1, max_size=30))
def test_any_order_of_events(events: list[dict[str, Any]]) -> None:
    absent: dict[str, Any] = dict.fromkeys(EVENTS_SCHEMA, 0) | {"pfn": -1, "order": -1, "migratetype": -1, "name": None}
    table = pl.DataFrame([absent | {"time": at} | row for at, row in enumerate(events)], schema=EVENTS_SCHEMA)
    assert_naive(Recording(Provenance(how="synthetic", cpus=3), None, None, table))


def test_kmalloc_caches(recording: Make) -> None:
    def cache(req: int, size: int, gfp: int, config: dict[str, str] | None = None, **provenance: Any) -> str:
        made = recording(alloc(0x100, req, size, gfp=gfp), kernel_config=config or {}, **provenance)
        return str(stat(made, "cache").rows["label"][0])

    assert cache(100, 128, 0xCC0) == "kmalloc-128"
    assert cache(96, 96, 0xCC0) == "kmalloc-96"
    assert cache(1500, 2048, 0xCC0) == "kmalloc-2k"
    assert cache(100, 128, 0x400CC0) == "kmalloc-cg-128"
    assert cache(100, 128, 0x400CC0, {"MEMCG_KMEM": "n"}) == "kmalloc-128"
    assert cache(100, 128, 0x400CC0, cmdline="quiet cgroup.memory=nokmem") == "kmalloc-128"
    assert cache(100, 128, 0x400CD0) == "kmalloc-rcl-128"
    assert cache(100, 128, 0x400CD1) == "dma-kmalloc-128"
    assert cache(9000, 12288, 0xCC0) == cache_names.KMALLOC_LARGE
    assert cache(9000, 16384, 0x400CC0) == cache_names.KMALLOC_LARGE
    assert cache(9000, 16384, 0xCC0, {"SLAB": "y"}) == "kmalloc-16k"
    assert cache(1 << 20, 1 << 20, 0xCC0, {"SLAB": "y"}) == "kmalloc-1M"
    assert cache(60, 448, 0xCC0) == "kmalloc-64"  # slub_debug: the object is larger than its class
    failed = stat(recording(alloc(0, 2000, 2048)), "cache").rows
    assert failed.select("label", "failed", "hits").rows() == [("kmalloc-2k", 1, 0)]


def test_names_of_caches_never_freed_are_learnt_or_left_out(recording: Make) -> None:
    made = recording(
        alloc(0x100, kind="kmem_cache_alloc", site=1), free(0x100, "kmem_cache_free", name="dentry"),
        alloc(0x200, kind="kmem_cache_alloc", site=1),  # never freed: as the other one of this call site and size
        alloc(0x300, kind="kmem_cache_alloc", site=2), free(0x300, "kmem_cache_free", name="a"),
        alloc(0x400, kind="kmem_cache_alloc", site=2), free(0x400, "kmem_cache_free", name="b"),
        alloc(0x500, kind="kmem_cache_alloc", site=2),  # a or b
        alloc(0x600, kind="kmem_cache_alloc", site=3, name="named_by_itself"),
        alloc(0x700, kind="kmem_cache_alloc", site=4), free(0x700),  # freed by kfree, which prints no name
    )  # fmt: skip
    result = stat(made, "cache")
    hits = dict(result.rows.select("label", "hits").iter_rows())
    assert hits == {"dentry": 2, "a": 1, "b": 1, "named_by_itself": 1, "(unnamed, 128 bytes)": 2}
    assert any(note.startswith("1 objects were not freed") for note in result.notes)


def test_bulk_objects_count_apart(recording: Make) -> None:
    made = recording(
        {"kind": "slab_create", "ptr": 0xCAFE, "bytes_req": 200, "bytes_alloc": 256, "name": "skb"},
        {"kind": "slab_bulk_alloc", "ptr": 0xCAFE, "pid": 7},
        {"kind": "slab_bulk_got", "pid": 7, "arg": 2},
        {"kind": "slab_bulk_object", "pid": 7, "ptr": 0x100},
        {"kind": "slab_bulk_object", "pid": 7, "ptr": 0x200},
        {"kind": "slab_bulk_free", "cpu": 1, "arg": 1},
        free(0x100, "kmem_cache_free", name="skb"),
        {"kind": "slab_bulk_object", "cpu": 1, "ptr": 0x200},
        alloc(0x300),
        {"kind": "slab_bulk_free", "cpu": 1, "arg": 1},
        {"kind": "slab_bulk_object", "cpu": 1, "ptr": 0x300},
    )
    result = stat(made, "cache")
    s = result.summary
    assert (s.allocations, s.bulk_allocations, s.frees, s.bulk_frees, s.frees_unmatched, s.live) == (3, 2, 3, 2, 0, 0)
    assert (s.bytes_requested, s.bytes_allocated, s.net_bytes, s.cross_cpu_frees) == (500, 640, 0, 2)
    assert dict(result.rows.select("label", "hits").iter_rows()) == {"skb": 2, "kmalloc-128": 1}
    assert not result.notes
    unknown = stat(recording({"kind": "slab_bulk_got"}, {"kind": "slab_bulk_object", "ptr": 0x100}))
    assert (unknown.summary.bulk_allocations, unknown.summary.bytes_allocated) == (1, 0)
    assert "is unknown; they count as 0 bytes" in unknown.notes[0]
    assert unknown.rows["label"].to_list() == ["(kmem_cache_alloc_bulk)"]


def test_names_of_live_objects_from_the_second_dump(recordings: dict[str, Recording]) -> None:
    old = recordings["pipes-512m-1cpu-slab"]
    assert old.after is not None
    base = old.after.scalars["page_offset_base"]
    inside, outside = (base + (pfn << 12) + 64 - (1 << 64) for pfn in (5, 7))
    rows = alloc(inside, kind="kmem_cache_alloc", site=1, time=1), alloc(outside, kind="kmem_cache_alloc", site=2, time=2)
    events = pl.DataFrame([dict.fromkeys(EVENTS_SCHEMA, 0) | {"name": None} | row for row in rows], schema=EVENTS_SCHEMA)
    caches = pl.DataFrame({"id": [3], "name": ["dentry"], "address": [0], "object_size": [1], "size": [1]})
    slabs = pl.DataFrame({"pfn": [4], "order": [1], "cache": [3]})
    made = Recording(old.provenance, None, replace(old.after, caches=caches, slabs=slabs), events)
    assert set(stat(made, "cache").rows["label"]) == {"dentry", "(unnamed, 128 bytes)"}
    assert set(stat(made, "cache", window=(None, 2)).rows["label"]) == {"(unnamed, 128 bytes)"}


def test_live_only_and_leaks(recording: Make) -> None:
    made = recording(
        alloc(0x100, site=1), free(0x100), alloc(0x200, site=2), alloc(0x300, 50, 64, site=3), alloc(0x400, 50, 64, site=3), alloc(0x500, 50, 64, site=3)
    )
    result = leaks(made)
    assert result.live
    assert result.rows["key"].to_list() == [3, 2]
    assert result.rows["live_bytes"].to_list() == [192, 128]
    assert result.rows["age_oldest"].to_list() == [2, 3]
    assert result.rows["age_youngest"].to_list() == [0, 3]
    assert result.rows["live_bytes_requested"].to_list() == [150, 100]


def test_windows(recording: Make) -> None:
    made = recording(alloc(0x100), alloc(0x200), free(0x100), alloc(0x300), free(0x200), free(0x300), free(0x400))
    middle = stat(made, window=(2, 4)).summary
    assert (middle.allocations, middle.frees, middle.frees_matched, middle.frees_of_earlier, middle.live) == (2, 1, 0, 1, 2)
    assert stat(made, window=(3, None)).summary.frees_of_earlier == 2
    assert stat(made, window=(None, 2)).summary.live == 2
    assert stat(made, window=(None, 2)).summary.net_bytes == 256
    everything = stat(made, window=(1, 7))
    assert everything.summary == stat(made).summary
    with pytest.raises(RequestError, match="no events between 8 and 9: the recording's times are 1 to 7"):
        stat(made, window=(8, 9))


def test_perf_kmem_counts_a_free_twice(recording: Make) -> None:
    """perf kmem forgets that an object was freed: its next free without an allocation adds the last size to "freed" and counts as ping-pong."""
    made = recording(alloc(0x100, cpu=1), free(0x100, cpu=1), free(0x100, cpu=1))
    s = stat(made).summary
    assert (s.bytes_freed, s.cross_cpu_frees, s.frees_unmatched_again) == (128, 0, 1)


def test_perf_kmem_counts_failed_requests_as_allocated(recording: Make) -> None:
    s = stat(recording(alloc(0), alloc(0), free(0))).summary
    assert (s.bytes_allocated, s.failed, s.frees, s.frees_of_null, s.net_bytes) == (0, 2, 0, 1, 0)


def test_withheld_pointers_are_no_failures(recording: Make) -> None:
    made = recording(alloc(0), alloc(0x100), free(0), free(0x100), notes=["1 pointers were withheld, (____ptrval____): allocations cannot be paired"])
    s = stat(made).summary
    assert (s.allocations, s.failed, s.withheld, s.live, s.frees, s.frees_of_null, s.net_bytes) == (2, 0, 2, 0, 2, 0, None)
    assert len(stat(made, "ptr").rows) == 1


def test_call_sites_and_functions(recording: Make, tmp_path: Path) -> None:
    printed = recording(
        alloc(0x100, site=1), alloc(0x200, site=2), alloc(0x300, site=3), procfs={"call_sites": "1 f+0x1/0x20\n2 f+0x9/0x20\n3 g+0x1/0x2 [mod]\n"}
    )
    assert set(stat(printed).rows["label"]) == {"f+0x1/0x20", "f+0x9/0x20", "g+0x1/0x2 [mod]"}
    assert dict(stat(printed, "function").rows.select("label", "hits").iter_rows()) == {"f": 2, "g [mod]": 1}
    with pytest.raises(RequestError, match="no raw call sites"):
        stat(printed, raw_ip=True)
    (tmp_path / "map").write_text("ffffffff81000000 T start\nffffffff81000100 t kmalloc_user\nffffffffc0000000 t in_module [mod]\n")
    symbols = read_symbols(tmp_path / "map")
    sites = [0xFFFFFFFF81000110 - (1 << 64), 0xFFFFFFFFC0000008 - (1 << 64), 0x5]
    numbers = recording(*(alloc(0x100 * i, site=site) for i, site in enumerate(sites, 1)))
    assert set(stat(numbers, symbols=symbols).rows["label"]) == {"kmalloc_user+0x10", "in_module+0x8 [mod]", "0x5"}
    assert stat(numbers, "ptr", symbols=symbols).rows["last_call_site"].to_list()[0] in {"kmalloc_user+0x10", "in_module+0x8 [mod]", "0x5"}


def test_sorting(recording: Make) -> None:
    made = recording(alloc(0x100, 10, 16, site=3), alloc(0x200, 10, 16, site=1), alloc(0x300, 64, 64, site=2))
    assert stat(made).rows["key"].to_list() == [2, 1, 3]
    assert stat(made, sort=["callsite"]).rows["key"].to_list() == [1, 2, 3]
    assert stat(made, sort=["frag", "callsite"]).rows["key"].to_list() == [1, 3, 2]
    for key in SORT:
        assert len(stat(made, sort=[key]).rows) == 3


def test_what_makes_no_sense(recording: Make) -> None:
    made = recording(alloc(0x100))
    with pytest.raises(RequestError, match="unknown group 'caller'; expected one of: callsite, "):
        stat(made, "caller")
    with pytest.raises(RequestError, match="unknown sort key 'size'; expected one of: bytes, "):
        stat(made, sort=["size"])
    with pytest.raises(RequestError, match="no slab events"):
        stat(recording({"kind": "mm_page_alloc", "pfn": 1, "order": 0}))
    with pytest.raises(RequestError, match="no slab events"):
        stat(recording())


def test_losses_and_clock(recording: Make) -> None:
    lossy = recording(alloc(0x100), lost_events=5, notes=["the trace buffer lost 5 events: x", "call sites are 2 symbols", "pointers are hashed: y"])
    assert stat(lossy).notes == [
        "the trace buffer lost 5 events: sums are too low, and some objects that seem live or unmatched are not",
        "pointers are hashed: y",
    ]
    assert clock(recording(alloc(1), how="vm")) == "events"
    assert clock(recording(alloc(1, time=170_000_000), how="ftrace")) == "ns"
    assert clock(recording(alloc(1, time=11846472757123), how="ftrace")) == "ns"
    assert clock(recording(alloc(1), how="ftrace")) == "events"


def test_plain_data(recording: Make) -> None:
    result = stat(recording(alloc(0x100, site=1), alloc(0x200, site=2)))
    document = result.to_dict(1)
    assert document["rows_total"] == 2
    assert len(document["rows"]) == 1
    assert document["summary"]["allocations"] == 2
    assert (document["what"], document["by"], document["sort"], document["from"], document["to"]) == ("slab", "callsite", ["bytes"], 1, 2)


def test_what_is_live_is_allocated_in_the_second_dump(recordings: dict[str, Recording]) -> None:
    """The kernel as judge, in all recordings that know SLUB's state and the objects of bulk calls."""
    for name, recording in recordings.items():
        after = recording.after
        if after is None or after.slabs is None or after.caches is None or after.free_objects is None or recording.provenance.lost_events:
            continue
        if not (recording.events["kind"] == "kmalloc").any():
            continue
        size = dict(after.caches.select("id", "size").iter_rows())
        slab_of = {
            pfn + page: (pfn, size[cache])
            for pfn, order, cache in after.slabs.select("pfn", "order", "cache").iter_rows()
            if cache >= 0
            for page in range(1 << order)
        }
        free_objects = set(after.free_objects.select("slab", "object").iter_rows())
        base = after.scalars["page_offset_base"] - (1 << 64)
        live = stat(recording, "ptr", live=True).rows["key"].to_list()
        assert live, name
        for ptr in live:
            if (found := slab_of.get((ptr - base) >> 12)) is not None:  # kmalloc of whole pages is in no slab
                pfn, each = found
                assert (pfn, (ptr - base - (pfn << 12)) // each) not in free_objects, (name, hex(ptr))
