from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtwin.diagnose.advise import areas, page_kinds, rules, sites, trial
from mmtwin.diagnose.advise.advise import AdviceResult, SiteAdvice, advise
from mmtwin.diagnose.advise.rules import RULES, THRESHOLDS, Case, Suggestion, Thresholds, Way
from mmtwin.diagnose.stat import stat
from mmtwin.errors import RequestError
from mmtwin.gfp import GFP, GFP_ATOMIC, GFP_KERNEL
from mmtwin.machine import Machine, boot
from mmtwin.mm.slab_common import SLAB_ACCOUNT
from mmtwin.recording import store
from mmtwin.recording.model import EVENTS_SCHEMA, Provenance, Recording
from mmtwin.recording.readers import ftrace_text

Make = Callable[..., Recording]
TESTS = Path(__file__).parent.parent
DATA = TESTS / "data"
RECORDINGS = Path(os.environ.get("MMTWIN_TEST_RECORDINGS") or TESTS / "recordings")
FILES = (
    RECORDINGS / "slabs-512m-4cpu-slab.mmrec",
    RECORDINGS / "pipes-512m-1cpu-slab.mmrec",
    RECORDINGS / "areas-256m-2cpu-slab.mmrec",
    DATA / "linux-3.x-i386-slub-boot.ftrace.txt.gz",
    DATA / "linux-6.1.ftrace.txt",
    DATA / "advise-6.18.perf.txt.gz",
    DATA / "advise-6.1.ftrace.txt.gz",
    DATA / "advise-atomic-6.1.ftrace.txt.gz",
)
KMALLOC = ("kmalloc", "kmalloc_node")


def read(path: Path) -> Recording:
    return store.load(path) if path.suffix == ".mmrec" else ftrace_text.read(path)


def traffic_of(site: dict[str, Any], count: int, *, freed: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Events of one site: `count` objects, the first `freed` of them freed in the end."""
    event = {"kind": "kmalloc", "gfp": GFP_KERNEL, "call_site": 0x1000, "bytes_req": 100, "bytes_alloc": 128, **site, **more}
    rows = [event | {"ptr": 0x10000 + 0x10000 * i} for i in range(count)]
    return rows + [{"kind": "kfree", "ptr": 0x10000 + 0x10000 * i, "call_site": 0x2000} for i in range(freed)]


def only(recording: Recording, **options: Any) -> SiteAdvice:
    result = advise(recording, **{"tries": False, **options})
    assert len(result.sites) == 1
    return result.sites[0]


def rules_of(one: SiteAdvice) -> list[str]:
    return [a.suggestion.rule for a in one.advice]


# --- sums ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_sums_by_an_independent_query(path: Path) -> None:
    """Requests, bytes, waste, live, sizes and peaks of each site, by a polars query that shares nothing with the code but the events.

    Bulk objects, whose cache no event names, are left to the tests of stat.
    """
    recording = read(path)
    kind = pl.col("kind").cast(pl.String)
    allocs, frees = ("kmalloc", "kmalloc_node", "kmem_cache_alloc", "kmem_cache_alloc_node"), ("kfree", "kmem_cache_free")
    has_bulk = bool((recording.events["kind"] == "slab_bulk_object").any())
    if has_bulk:  # without them, so that the query can stay simple
        recording = replace(recording, events=recording.events.filter(~kind.str.starts_with("slab_bulk")))
    got = sites.traffic(recording)
    events = recording.events.with_row_index("at").filter(kind.is_in([*allocs, *frees]) & ~pl.col("ptr").is_in([0, 16]))
    events = events.with_columns(
        kind.is_in(list(allocs)).alias("alloc"),
        pl.col("kind").shift(-1).over("ptr").cast(pl.String).is_in(list(frees)).alias("then_free"),
        pl.col("at").shift(-1).over("ptr").cast(pl.Int64).alias("end"),
    )
    objects = events.filter("alloc").with_columns(kind.is_in(list(KMALLOC)).alias("kmalloc"))
    by = ["call_site", "kmalloc"]
    sums = objects.group_by(by).agg(
        pl.len().alias("hits"),
        pl.col("bytes_req").sum(),
        pl.col("bytes_alloc").sum(),
        (pl.col("bytes_alloc") - pl.col("bytes_req")).sum().alias("waste"),
        pl.col("end").is_null().sum().alias("live"),
        pl.col("bytes_alloc").filter(pl.col("end").is_null()).sum().alias("live_bytes"),
        (pl.col("end").is_not_null() & pl.col("then_free")).sum().alias("freed"),
        pl.col("bytes_req").n_unique().alias("sizes"),
    )
    moves = pl.concat(
        [
            objects.select(pl.col("at").cast(pl.Int64), *by, pl.lit(1).alias("n")),
            objects.filter(pl.col("end") >= 0).select(pl.col("end").alias("at"), *by, pl.lit(-1).alias("n")),
        ]
    ).sort("at", "n")
    peaks = moves.with_columns(pl.col("n").cum_sum().over(by).alias("held")).group_by(by).agg(pl.col("held").max())
    expected = {
        (row["call_site"], row["kmalloc"]): tuple(row[c] for c in ("hits", "bytes_req", "bytes_alloc", "waste", "live", "live_bytes", "freed", "sizes", "held"))
        for row in sums.join(peaks, on=by).iter_rows(named=True)
    }
    found = {
        (s.key, s.kmalloc): (s.hits, s.bytes_req, s.bytes_alloc, s.waste_bytes, s.live, s.live_bytes, s.freed, len(s.sizes), s.peak)
        for s in got.sites
        if s.hits
    }
    assert found == expected
    assert len(found) >= (2 if path.name == "linux-6.1.ftrace.txt" else 20)
    total = stat(recording).summary
    assert (total.allocations, total.bytes_requested, total.live_bytes) == tuple(sum(v[i] for v in found.values()) for i in (0, 1, 5))


def test_held_at_the_peak() -> None:
    """The sizes that kmalloc held when it held most, against a walk through the events one by one."""
    recording = read(RECORDINGS / "slabs-512m-4cpu-slab.mmrec")
    held: dict[int, tuple[int, int]] = {}
    most, at_most = 0, {}
    now = 0
    for event in recording.events.iter_rows(named=True):
        ptr = event["ptr"]
        if event["kind"] in ("kmalloc", "kfree") and ptr not in (0, 16):
            if ptr in held:
                now -= held.pop(ptr)[1]
            if event["kind"] == "kmalloc" and event["bytes_req"] <= 8192:
                held[ptr] = event["bytes_req"], event["bytes_alloc"]
                now += event["bytes_alloc"]
                if now > most:
                    most, at_most = now, dict(held)
    counts: dict[int, int] = {}
    for size, _ in at_most.values():
        counts[size] = counts.get(size, 0) + 1
    total: dict[int, int] = {}
    traffic = sites.traffic(recording)
    small = recording.events.filter((pl.col("kind") == "kmalloc") & pl.col("bytes_req").is_between(1, 8192) & ~pl.col("ptr").is_in([0, 16]))
    assert (traffic.requests_kmalloc.number, traffic.requests_kmalloc.bytes_requested) == (len(small), small["bytes_req"].sum())
    for sizes in traffic.peak_kmalloc.counts.values():
        for size, number in sizes.items():
            total[size] = total.get(size, 0) + number
    assert total == counts


# --- rules -----------------------------------------------------------------------------------------------------------------------


def test_own_cache(recording: Make) -> None:
    """The example of a real trace: alloc_pipe_info asks for 640 bytes and gets 1,024."""
    one = only(recording(*traffic_of({"bytes_req": 640, "bytes_alloc": 1024, "gfp": GFP_KERNEL | int(GFP.ACCOUNT)}, 200)))
    assert rules_of(one) == ["own-cache"]
    s = one.advice[0].suggestion
    assert (s.kind, s.then) == ("memory", Way("cache", size=640, flags=SLAB_ACCOUNT))
    assert "640 bytes and get 1024; 200 are held" in s.why
    assert "kmem_cache_create" in s.suggested and "SLAB_ACCOUNT" in s.suggested
    assert s.saves_bytes == rules.own_cache_saving(640, 200, 8) >= 4096


@pytest.mark.parametrize(
    ("event", "count", "says"),
    [
        ({"bytes_req": 640, "bytes_alloc": 1024}, 5, "less than a page"),  # 1,920 bytes
        ({"bytes_req": 640, "bytes_alloc": 1024}, 20, "a cache of its own is for 32 objects or more"),
        ({"bytes_req": 120, "bytes_alloc": 128}, 400, "less than a page"),  # 3,200 bytes
        ({"bytes_req": 1000, "bytes_alloc": 1024}, 200, "would not save a page"),  # 16 of both fit into a slab
        ({"kind": "kmem_cache_alloc", "bytes_req": 184, "bytes_alloc": 192, "name": "filp"}, 1000, "it has a cache of its own"),
    ],
)
def test_no_suggestion_is_an_answer(recording: Make, event: dict[str, Any], count: int, says: str) -> None:
    one = only(recording(*traffic_of(event, count)))
    assert not one.advice
    assert says in one.verdict
    assert one.verdict.startswith("right: ")


def test_several_sizes_get_no_cache(recording: Make) -> None:
    rows = traffic_of({"bytes_req": 640, "bytes_alloc": 1024}, 200)
    rows[7] |= {"bytes_req": 648}
    one = only(recording(*rows))
    assert not one.advice
    assert "2 sizes (640 to 648), so no single cache fits; see the size classes" in one.verdict


def test_thresholds_are_data(recording: Make) -> None:
    events = recording(*traffic_of({"bytes_req": 640, "bytes_alloc": 1024}, 20))
    assert rules_of(only(events, thresholds=Thresholds(cache_objects=8, saving_bytes=1))) == []  # own slabs would cost more than they save
    events = recording(*traffic_of({"bytes_req": 640, "bytes_alloc": 1024}, 100))
    assert rules_of(only(events)) == ["own-cache"]
    assert rules_of(only(events, thresholds=Thresholds(cache_objects=101))) == []
    assert rules_of(only(events, thresholds=Thresholds(saving_bytes=1 << 20))) == []


LARGE = {"bytes_req": 200_000, "bytes_alloc": 262_144}


def test_kvmalloc_where_it_may_be(recording: Make) -> None:
    one = only(recording(*traffic_of(LARGE, 3, freed=3)))
    assert rules_of(one) == ["whole-pages", "kvmalloc"]
    assert "blocks up to order 6" in one.advice[1].suggestion.present
    unknown = only(recording(*traffic_of(LARGE, 3, freed=1))).advice[1].suggestion.unknown
    assert any("how 2 objects are freed" in text for text in unknown)


@pytest.mark.parametrize(
    ("change", "frees"),
    [
        ({"gfp": GFP_ATOMIC}, {}),  # may not sleep
        ({"gfp": GFP_KERNEL, "context": 1}, {}),
        ({"gfp": GFP_KERNEL | int(GFP.DMA)}, {}),  # a device would not see the pages behind it as one
        ({}, {"kind": "kmem_cache_free"}),  # kvfree does not fit
        ({}, {"context": 2}),  # freed in a hard interrupt
        ({"bytes_req": 30_000, "bytes_alloc": 32_768}, {}),  # order 3
    ],
)
def test_kvmalloc_and_vmalloc_never_elsewhere(recording: Make, change: dict[str, Any], frees: dict[str, Any]) -> None:
    rows = traffic_of(LARGE | change, 3, freed=3)
    one = only(recording(*(row | frees if row["kind"] == "kfree" else row for row in rows)))
    for advice in one.advice:
        assert advice.suggestion.rule != "kvmalloc"
        if change.get("bytes_req") is None:
            assert "vmalloc" not in advice.suggestion.suggested


def test_kvmallocs_own_attempts_are_known(recording: Make) -> None:
    """kvmalloc's kmalloc has a fallback already; that it rounds up to 2^n pages is still told."""
    one = only(recording(*traffic_of(LARGE | {"gfp": GFP_KERNEL | int(GFP.NOWARN | GFP.NORETRY)}, 3, freed=3)))
    assert rules_of(one) == ["whole-pages"]
    assert one.advice[0].suggestion.then == Way("vmalloc", drop=int(GFP.NOWARN | GFP.NORETRY))
    assert one.advice[0].suggestion.saves_bytes == 3 * (262_144 - 200_704)


@pytest.mark.parametrize(
    ("event", "rule", "kind"),
    [
        ({"context": 1}, "sleep-in-atomic", "bug"),
        ({"context": 2, "gfp": GFP_KERNEL}, "sleep-in-atomic", "bug"),
        ({"gfp": GFP_KERNEL | 0x2}, "wrong-zone", "bug"),
        ({"gfp": GFP_KERNEL | int(GFP.DMA)}, "gfp-dma", "check"),
        ({"gfp": GFP_KERNEL | int(GFP.NOFAIL), "bytes_req": 16_384, "bytes_alloc": 16_384}, "nofail-order", "bug"),
        ({"gfp": GFP_ATOMIC}, "atomic-in-task", "check"),
        ({"gfp": GFP_ATOMIC, "bytes_req": 8192, "bytes_alloc": 8192, "context": 1}, "high-order-atomic", "order"),
        ({"bytes_req": 8192, "bytes_alloc": 8192, "times": 8}, "account", "check"),
    ],
)
def test_flags(recording: Make, event: dict[str, Any], rule: str, kind: str) -> None:
    event = dict(event)
    one = only(recording(*traffic_of(event, 20 * event.pop("times", 1))))
    assert [(a.suggestion.rule, a.suggestion.kind) for a in one.advice] == [(rule, kind)]
    assert one.advice[0].suggestion.why and one.advice[0].suggestion.threshold


@pytest.mark.parametrize(
    "event",
    [{"gfp": GFP_ATOMIC, "context": 1}, {"gfp": GFP_ATOMIC, "context": 2}, {"gfp": 0x800}, {"gfp": GFP_ATOMIC | int(GFP.MEMALLOC)}, {"gfp": GFP_KERNEL}],
)
def test_flags_that_are_right(recording: Make, event: dict[str, Any]) -> None:
    assert not only(recording(*traffic_of(event, 20))).advice


def flagged(tmp_path: Path, flags: str, gfp: str, others: str = ".....") -> SiteAdvice:
    """The site f of a trace text with these flags, beside one site that holds a lock now and then."""
    line = "     a-1  [000] {flags} {at}.000001: kmalloc: call_site={site}+0x1/0x9 ptr=ffff8880{ptr:08x} bytes_req=64 bytes_alloc=64 gfp_flags={gfp}\n"
    lines = [line.format(flags=flags, at=i, site="f", ptr=0x1000 * i + 0x1000, gfp=gfp) for i in range(20)]
    lines += [line.format(flags=f, at=30 + i, site="g", ptr=0x1000 * i + 0x90000, gfp="GFP_NOWAIT") for i, f in enumerate((others, "...1."))]
    (tmp_path / "trace").write_text("".join(lines))
    result = advise(ftrace_text.read(tmp_path / "trace"), tries=False)
    return next(s for s in result.sites if s.site.name.startswith("f+"))


def test_flags_of_trace_text_tell_locks(tmp_path: Path) -> None:
    may = flagged(tmp_path, ".....", "GFP_ATOMIC")
    assert rules_of(may) == ["atomic-in-task"]
    assert may.site.in_task == (20, 0, 0)
    assert may.advice[0].suggestion.suggested == "GFP_KERNEL"
    for off in ("...1.", "d....", "b....", "D..2."):
        assert not flagged(tmp_path, off, "GFP_ATOMIC").advice
        bug = flagged(tmp_path, off, "GFP_KERNEL")
        assert rules_of(bug) == ["sleep-in-atomic"]
        assert bug.site.in_task == (20, 20, 20)
    assert not flagged(tmp_path, ".N...", "GFP_KERNEL").advice
    uncounted = flagged(tmp_path, "...1.", "GFP_KERNEL", "...1.")  # never 0: the depth is the tracer's own
    assert uncounted.site.in_task is None
    assert not uncounted.advice


def test_too_few_to_ask(recording: Make) -> None:
    assert not only(recording(*traffic_of({"gfp": GFP_ATOMIC}, THRESHOLDS.atomic_requests - 1))).advice
    mixed = traffic_of({"gfp": GFP_ATOMIC}, 20)
    mixed[3] |= {"gfp": GFP_KERNEL}  # the caller says what it may
    assert not only(recording(*mixed)).advice


def test_mempool_after_failures(recording: Make) -> None:
    rows = traffic_of({"gfp": GFP_ATOMIC, "context": 1}, 10)
    rows += [row | {"ptr": 0} for row in traffic_of({"gfp": GFP_ATOMIC, "context": 1}, 4)]
    one = only(recording(*rows))
    assert rules_of(one) == ["mempool"]
    s = one.advice[0].suggestion
    assert s.then == Way("mempool", size=100, reserve=10)
    assert "4 of 14 requests failed (atomic)" in s.why
    silent = [row | {"gfp": GFP_ATOMIC | int(GFP.NOWARN | GFP.NORETRY)} for row in rows]  # whoever asks so has a fallback
    assert not only(recording(*silent)).advice
    writeback = [row | {"gfp": 0xC00, "context": 0} for row in rows]
    assert "writeback path" in only(recording(*writeback)).advice[0].suggestion.why
    sleeping = [row | {"gfp": GFP_KERNEL, "context": 0} for row in rows]
    assert not only(recording(*sleeping)).advice


def test_nowarn_with_fallback(recording: Make) -> None:
    failed = {"kind": "kmalloc", "gfp": GFP_KERNEL, "call_site": 0x1000, "bytes_req": 6000, "ptr": 0, "pid": 7}
    other = {"kind": "kmalloc", "gfp": GFP_KERNEL, "call_site": 0x5000, "bytes_req": 6000, "bytes_alloc": 8192, "pid": 7}
    rows = [row for i in range(4) for row in (failed, other | {"ptr": 0x9000 + i})]
    result = advise(recording(*rows), tries=False)
    one = next(s for s in result.sites if s.site.key == 0x1000)
    assert rules_of(one) == ["nowarn"]
    assert "after 4 of 4 failures" in one.advice[0].suggestion.why
    quiet = [row | {"gfp": row["gfp"] | int(GFP.NOWARN)} for row in rows]
    assert not next(s for s in advise(recording(*quiet), tries=False).sites if s.site.key == 0x1000).advice
    another = [row | ({"pid": 8} if row["call_site"] == 0x5000 else {}) for row in rows]
    assert not next(s for s in advise(recording(*another), tries=False).sites if s.site.key == 0x1000).advice


def test_too_large(recording: Make) -> None:
    one = only(recording(*(row | {"ptr": 0} for row in traffic_of({"bytes_req": 5 << 20}, 3))))
    assert rules_of(one) == ["too-large"]
    assert one.advice[0].suggestion.suggested == "kvmalloc and kvfree"


def test_padding_of_a_cache(recording: Make) -> None:
    one = only(recording(*traffic_of({"kind": "kmem_cache_alloc", "bytes_req": 72, "bytes_alloc": 96, "name": "lsm"}, 400)))
    assert rules_of(one) == ["cache-padding"]
    assert one.advice[0].suggestion.saves_bytes == 400 * 24


def test_every_rule_has_a_test() -> None:
    text = Path(__file__).read_text()
    assert all(f'"{rule}"' in text for rule in RULES)


def test_pages_without_callers(recording: Make) -> None:
    atomic = {"kind": "mm_page_alloc", "order": 2, "gfp": GFP_ATOMIC, "pfn": 100}
    slab = {"kind": "mm_page_alloc", "order": 3, "gfp": 0x800 | int(GFP.NORETRY | GFP.NOWARN), "pfn": 200}
    large = {"kind": "mm_page_alloc", "order": 5, "gfp": GFP_KERNEL, "pfn": -1}
    found = list(page_kinds.suggestions(recording(atomic, atomic | {"pfn": -1}, slab, large, large | {"order": 3})))
    assert [(s.rule, s.kind) for s in found] == [("high-order-atomic", "failure"), ("kvmalloc", "failure")]
    assert "2 requests" in found[0].why and "1 failed" in found[0].why


def test_small_areas(recording: Make) -> None:
    text = (
        "0xffa0000000000000-0xffa0000000002000    8192 gen_pool_add_owner+0x3a/0xc0 pages=1 vmalloc N0=1\n"
        "0xffa0000000003000-0xffa0000000005000    8192 probe+0x3a/0xc0 [mod] pages=1 vmalloc N0=1\n"
        "0xffa0000000006000-0xffa0000000008000    8192 probe+0x3b/0xc0 [mod] pages=1 vmalloc N0=1\n"
        "0xffa0000000009000-0xffa000000000b000    8192 alloc_insn_page+0x10/0x40 pages=1 vmalloc N0=1\n"
        "0xffa000000000c000-0xffa0000000011000   20480 kernel_clone+0xbf/0x430 pages=4 vmalloc N0=4\n"
        "0xffa0000000012000-0xffa0000000014000    8192 hpet_enable+0xef/0x46d phys=0x00000000fed00000 ioremap\n"
    )
    events = recording({"kind": "kfree", "ptr": 1}, procfs={"vmallocinfo": text})
    assert not list(areas.suggestions(events))
    found = list(areas.suggestions(events, Thresholds(small_areas=1)))
    assert [(s.present, s.weight, s.kind) for s in found] == [("probe: vmalloc of a page", 2, "cost"), ("gen_pool_add_owner: vmalloc of a page", 1, "cost")]


# --- trials ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine() -> Machine:
    return boot("linux-6.1", "64MiB", 2)


def requests(count: int, size: int, *, freed: bool = False, gfp: int = GFP_KERNEL, context: int = 0) -> pl.DataFrame:
    then = [count + i for i in range(count)] if freed else [-1] * count
    return pl.DataFrame(
        {"row": range(count), "then": then, "bytes_req": size, "gfp": gfp, "cpu": [i % 2 for i in range(count)], "context": context, "then_cpu": 0}
    )


def test_own_cache_on_the_twin(machine: Machine) -> None:
    """1,000 objects of 640 bytes: 16 to a slab of 16 KiB, or 12 to one of 8 KiB."""
    now = trial.run(machine.copy(), requests(1000, 640), Way("kmalloc"))
    then = trial.run(machine.copy(), requests(1000, 640), Way("cache", size=640))
    assert now.pages_peak == now.slab_pages_peak == now.pages_end == 4 * 64
    assert then.pages_peak == 2 * 84
    assert (now.failed, then.failed, now.highest_order) == (0, 0, 2)


def measured() -> list[tuple[int, list[str]]]:
    """What oracle/advise.sh measured in real kernels: CPUs, and the words of a line."""
    found, cpus = [], 0
    for line in (DATA / "advise-slabs-6.1.txt").read_text().splitlines():
        words = line.split()
        if words[0] == "cpus":
            cpus = int(words[1])
        elif words[0] == "size":
            found.append((cpus, words))
    return found


def test_slabs_of_a_real_kernel() -> None:
    """Objects held by a module, of kmalloc and then of a cache of their own: what /sys/kernel/slab counted, and what the twin says beforehand.

    A cache of its own is equal to the slab (with 4 CPUs the module may move to another one, and begin a slab more there). kmalloc's caches of the running kernel have free
    objects already, which a freshly booted twin has not: up to 19 slabs. In merged caches the counts are of all users.
    """
    rows = measured()
    assert {cpus for cpus, _ in rows} == {1, 4} and len(rows) == 60
    machines = {cpus: boot("linux-6.1", "512MiB", cpus) for cpus in (1, 4)}
    equal = moved = 0
    for cpus, words in rows:
        row = dict(zip(words[::2], words[1::2], strict=True))
        size, count, kmalloc_order, own_order = int(row["size"]), int(row["count"]), int(words[9]), int(words[13])
        if count == 5000 and size not in (1104, 288):
            continue  # seconds
        some = requests(count, size).with_columns(pl.lit(0).alias("cpu"))
        now, then = (trial.run(machines[cpus].copy(), some, way) for way in (Way("kmalloc"), Way("cache", size=size)))
        assert 0 <= (now.slab_pages_peak >> kmalloc_order) - int(row["kmalloc_slabs"]) <= 19, words
        if row["aliases"] == "0":
            more = int(row["own_slabs"]) - (then.slab_pages_peak >> own_order)
            equal, moved = equal + (more == 0), moved + (cpus > 1 and more == 1)
    assert equal + moved == 36
    assert moved <= 1


def test_frees_are_followed(machine: Machine) -> None:
    got = trial.run(machine.copy(), requests(300, 16_384, freed=True), Way("kmalloc"))
    assert (got.pages_peak, got.pages_end, got.highest_order) == (1200, 0, 2)
    exact = trial.run(machine.copy(), requests(100, 9000, freed=True), Way("alloc_pages"))
    assert (exact.pages_peak, exact.pages_end) == (300, 0)


def test_page_tables_are_counted(machine: Machine) -> None:
    got = trial.run(machine.copy(), requests(5, 20_000), Way("vmalloc"))
    assert got.page_table_writes >= 25
    assert got.steps > 0
    assert trial.run(machine.copy(), requests(5, 20_000), Way("kmalloc")).page_table_writes == 0


def test_contexts_are_entered(machine: Machine) -> None:
    got = trial.run(machine.copy(), requests(4, 100, context=1), Way("kmalloc"))
    assert (got.refused, got.failed) == (4, 0)
    assert got.report.startswith("BUG: sleeping function called from invalid context")
    fixed = Way("kmalloc", add=GFP_ATOMIC, drop=int(GFP.DIRECT_RECLAIM | GFP.IO | GFP.FS))
    assert trial.run(machine.copy(), requests(4, 100, context=2), fixed).refused == 0


def test_fragmented(machine: Machine) -> None:
    broken = machine.copy()
    trial.fragment(broken)
    broken.validate()
    now, then = (trial.run(broken.copy(), requests(5, 50_000), Way(way)) for way in ("kmalloc", "kvmalloc"))
    assert (now.failed, then.failed) == (5, 0)
    pieces = trial.run(broken.copy(), requests(5, 50_000, gfp=GFP_ATOMIC, freed=True), Way("pieces"))
    assert (pieces.failed, pieces.pages_end) == (0, 0)


def test_mempool_keeps_going_without_memory(machine: Machine) -> None:
    some = requests(30, 4096, gfp=GFP_ATOMIC & ~int(GFP.HIGH | GFP.ATOMIC) | int(GFP.NOMEMALLOC))
    now = trial.run(machine.copy(), some, Way("kmalloc"), exhausted=True)
    then = trial.run(machine.copy(), some, Way("mempool", size=4096, reserve=30), exhausted=True)
    assert (now.failed, now.pages_peak) == (30, 0)
    assert (then.failed, then.pages_peak, then.pages_end) == (0, 32, 32)  # four slabs of eight
    returned = trial.run(machine.copy(), requests(30, 4096, freed=True), Way("mempool", size=4096, reserve=2))
    assert returned.failed == 0


def test_the_twin_may_say_no(recording: Make, machine: Machine) -> None:
    """A suggestion that saves nothing on the twin is dropped, and the site says so."""
    rows = traffic_of({"bytes_req": 640, "bytes_alloc": 1024}, 200, freed=200)
    result = advise(recording(*rows), site="0x1000")
    assert rules_of(result.sites[0]) == ["own-cache"]
    advice = result.sites[0].advice[0]
    assert advice.trial is not None and advice.saved_bytes == (advice.trial.now.pages_peak - advice.trial.then.pages_peak) * 4096 >= 4096
    stubborn = advise(recording(*rows), site="0x1000", thresholds=Thresholds(saving_bytes=advice.saved_bytes + 1, cache_objects=1))
    assert not stubborn.sites[0].advice


def test_dropped(recording: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the twin does not bear out, and what it cannot try."""
    events = recording(*traffic_of({"bytes_req": 640, "bytes_alloc": 1024}, 200))
    outcome = trial.Outcome(200, 0, 0, 0, 52, 52, 52, 52, 2, 0, 0, 0)
    monkeypatch.setattr(trial.Bench, "compare", lambda *_: trial.Trial("a machine", 1, outcome, outcome))
    one = only(events, tries=True)
    assert (one.advice, [a.suggestion.rule for a in one.dropped]) == ((), ["own-cache"])
    assert one.verdict.endswith("; own-cache was tried on the twin and does not help")
    monkeypatch.setattr(trial.Bench, "compare", lambda *_: trial.Trial("a machine", 1, outcome, replace(outcome, pages_peak=1, failed=1)))
    assert only(events, tries=True).dropped

    def no(*_: object) -> None:
        raise RequestError("this cannot be tried")

    monkeypatch.setattr(trial.Bench, "compare", no)
    assert only(events, tries=True).advice[0].not_tried == "this cannot be tried"


def test_sampling(recording: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "MOST", 50)
    monkeypatch.setattr(trial, "BOOTED_RAM", 64 << 20)
    advice = advise(recording(*traffic_of({"bytes_req": 640, "bytes_alloc": 1024}, 400)), site="0x1000").sites[0].advice[0]
    assert advice.trial is not None
    assert (advice.trial.every, advice.trial.now.requests) == (8, 50)
    assert advice.saved_bytes == advice.trial.pages_saved * 8 * 4096


# --- the whole -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def perf() -> AdviceResult:
    return advise(read(DATA / "advise-6.18.perf.txt.gz"), tries=False)


def named(result: AdviceResult, function: str) -> SiteAdvice:
    return next(s for s in result.sites if s.site.name.startswith(function + "+") and s.site.kmalloc)


def test_findings_in_a_real_trace(perf: AdviceResult) -> None:
    """perf script of a 6.18 kernel while a program opened 150 pipes and read two directories twice."""
    pipes = next(s for s in perf.sites if s.site.name.startswith("alloc_pipe_info+") and s.site.size == 640)
    assert rules_of(pipes) == ["own-cache"]
    assert pipes.site.waste_bytes == pipes.site.hits * (1024 - 640)
    dirents = named(perf, "ext4_htree_store_dirent")
    assert not dirents.advice
    assert dirents.site.size is None
    assert 10 < 100 * dirents.site.waste_bytes / dirents.site.bytes_alloc < 25
    assert perf.classes is not None
    assert perf.classes.best[-1].slab_bytes <= perf.classes.added[-1].slab_bytes < perf.classes.kernel.slab_bytes


def test_a_kernel_without_faults() -> None:
    """ftrace of a real 6.1, in which a module held 200 objects of 640 bytes: that is found, and nothing else; GFP_ATOMIC under locks is right."""
    result = advise(read(DATA / "advise-6.1.ftrace.txt.gz"), tries=False)
    assert [(s.site.size, s.site.peak, rules_of(s)) for s in result.sites if s.advice] == [(640, 200, ["own-cache"])]
    assert not result.others
    locked = [s.site for s in result.sites if s.site.in_task and s.site.in_task[1]]
    assert locked
    assert all(site.in_task is not None and site.in_task[2] == 0 for site in locked)


def test_atomic_in_a_real_kernel() -> None:
    """ftrace of a real 6.1 in which a module asked with GFP_KERNEL with preemption off, in a softirq and in a hard interrupt: that site and no other."""
    result = advise(read(DATA / "advise-atomic-6.1.ftrace.txt.gz"))
    wrong = [s for s in result.sites if any(a.suggestion.kind == "bug" for a in s.advice)]
    assert [s.site.name for s in wrong] == ["do_kmalloc+0x1c/0x50"]
    assert wrong[0].site.in_task == (1, 1, 1)
    advice = wrong[0].advice[0]
    assert "2 of 3 requests came from an interrupt and 1 request of this call site came from tasks with preemption" in advice.suggestion.why
    assert advice.trial is not None
    assert (advice.trial.now.refused, advice.trial.then.refused, advice.trial.then.failed) == (2, 0, 0)
    assert advice.trial.now.report.startswith("BUG: sleeping function called from invalid context at include/linux/sched/mm.h:")


def test_exact_from_a_recorded_machine() -> None:
    """A module held 1,000 objects of 640 bytes: the twin's slabs now are those of the second memory dump.

    When the module made a cache instead (in a recording that is not bundled), it became an alias of task_group, with 84 slabs of two pages: what the twin says beforehand.
    """
    recording = read(DATA / "advise-640-256m-1cpu-slab.mmrec")
    one = next(s for s in advise(recording).sites if s.advice)
    assert (rules_of(one), one.site.peak) == (["own-cache"], 1000)
    tried = one.advice[0].trial
    assert tried is not None and recording.before is not None and recording.after is not None
    assert recording.before.caches is not None and recording.after.caches is not None
    slabs = [snapshot.filter(pl.col("name") == "kmalloc-1k")["nr_slabs"].item() for snapshot in (recording.before.caches, recording.after.caches)]
    order = recording.after.caches.filter(pl.col("name") == "kmalloc-1k")["order"].item()
    assert tried.now.slab_pages_peak == (slabs[1] - slabs[0]) << order == 250
    assert (tried.then.merged_with, tried.then.slab_pages_peak) == ("task_group", 84 << 1)


def test_size_classes_on_the_twin(perf: AdviceResult) -> None:
    """The arithmetic's bytes of slabs are the twin's."""
    tried = advise(read(DATA / "advise-6.18.perf.txt.gz")).classes
    assert tried is not None and perf.classes is not None
    assert (tried.twin_kernel, tried.twin_best) == (tried.kernel.slab_bytes, tried.best[-1].slab_bytes)
    assert perf.classes.twin_best is None


def test_ranked(perf: AdviceResult) -> None:
    kinds = [rules.KINDS.index(s.advice[0].suggestion.kind) for s in perf.sites if s.advice]
    assert kinds == sorted(kinds)
    rest = [s.site.bytes_alloc for s in perf.sites if not s.advice]
    assert rest == sorted(rest, reverse=True)
    memory = [s.advice[0].saved_bytes for s in perf.sites if s.advice and s.advice[0].suggestion.kind == "memory"]
    assert memory == sorted(memory, reverse=True)


def test_one_site(perf: AdviceResult) -> None:
    recording = read(DATA / "advise-6.18.perf.txt.gz")
    got = advise(recording, tries=False, site="alloc_pipe_info")
    assert {s.site.name.partition("+")[0] for s in got.sites} == {"alloc_pipe_info"}
    with pytest.raises(RequestError, match="no site 'pipe_info'; there are: alloc_pipe_info"):
        advise(recording, tries=False, site="pipe_info")


def test_refused(recording: Make) -> None:
    with pytest.raises(RequestError, match="no slab events"):
        advise(recording({"kind": "mm_page_alloc", "pfn": 1, "order": 0}))
    with pytest.raises(RequestError, match="calls of malloc"):
        advise(recording({"kind": "malloc", "ptr": 1}, how="malloc"))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "kind": st.sampled_from(["kmalloc", "kmem_cache_alloc", "kfree", "kmem_cache_free"]),
                "ptr": st.sampled_from([0, 16, 0x1000, 0x2000, 0x3000]),
                "bytes_req": st.sampled_from([1, 100, 5000, 9000, 1 << 23]),
                "bytes_alloc": st.sampled_from([8, 128, 16384]),
                "gfp": st.sampled_from([0, GFP_KERNEL, GFP_ATOMIC, 0x2801, 0x8CC2]),
                "call_site": st.sampled_from([0, 1, -5]),
                "context": st.integers(0, 3),
            }
        ),
        min_size=1,
        max_size=30,
    )
)
def test_any_events(rows: list[dict[str, Any]]) -> None:
    """Nothing breaks it, and every suggestion has its reasons."""
    absent: dict[str, Any] = dict.fromkeys(EVENTS_SCHEMA, 0) | {"pfn": -1, "order": -1, "migratetype": -1, "name": None}
    events = pl.DataFrame([absent | {"time": at} | row for at, row in enumerate(rows, 1)], schema=EVENTS_SCHEMA)
    result = advise(Recording(Provenance(cpus=2), None, None, events), tries=False)
    for one in result.sites:
        assert one.verdict
        assert one.site.peak <= one.site.hits
        for advice in one.advice:
            s: Suggestion = advice.suggestion
            assert s.why and s.threshold and s.present and s.suggested and s.kind in rules.KINDS
    result.to_dict()


def test_case_is_all_a_rule_needs() -> None:
    site = sites.Site(1, "f+0x1", True, {}, 0, 0, 0, 0, 0, {}, (), 0, 0, 0, 0, 0, 0, {}, {}, 0, 0, None)
    assert list(rules.suggestions(Case(site, (), 1, True))) == []
    assert rules.verdict(Case(site, (), 1, True)) == "no successful request"
