from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmtwin.diagnose.whatif import Settings, load_policy, parse_settings, whatif
from mmtwin.diagnose.whatif.machine import _inside_free, with_cpus, with_ram
from mmtwin.diagnose.whatif.pageblocks import with_pageblocks
from mmtwin.diagnose.whatif.slab import check, live_rows, start_with_slab
from mmtwin.diagnose.whatif.start import start_under
from mmtwin.diagnose.whatif.whatif import WhatIf, _kvmalloc
from mmtwin.errors import RequestError
from mmtwin.machine import boot
from mmtwin.mm.buddy import boost_watermark
from mmtwin.mm.slab_tables import ALLOCATED, SLAB_LIVE, new_slub
from mmtwin.mm.tables import PG_LRU
from mmtwin.mm.validate import validate
from mmtwin.mm.validate_slub import validate_slub
from mmtwin.profiles import get
from mmtwin.recording import store
from mmtwin.recording.model import Recording
from mmtwin.recording.state import restore
from mmtwin.replay.free_run import Start, run, start_of
from mmtwin.replay.free_run_pages import GONE
from mmtwin.replay.free_run_slab import CACHE_REAP
from mmtwin.replay.requests import PAGES_ALLOC, PAGES_BULK, PAGES_FREE, REQUEST, Requests, requests
from mmtwin.report.whatif_svg import render

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="whole recordings take minutes in the interpreter")


@pytest.fixture(scope="module")
def pipes() -> Recording:
    return store.load(ROOT / "tests/recordings/pipes-512m-1cpu-slab.mmrec")


@pytest.fixture(scope="module")
def asked(pipes: Recording) -> Requests:
    return requests(pipes)


@pytest.fixture(scope="module")
def result(pipes: Recording, asked: Requests) -> WhatIf:
    return whatif(pipes, [parse_settings(["slub_max_order=0"]), parse_settings(["min_free_kbytes=65536", "cpus=2"])], asked=asked)


def test_the_twin_agrees_with_the_kernel(result: WhatIf) -> None:
    kernel, twin = result.cases[:2]
    assert (kernel.name, twin.name) == ("kernel", "twin")
    for name in ("failures", "slab_pages", "slabs_made", "free_pages", "listed_pages", "free_blocks", "extfrag", "caches", "used_pages"):
        assert getattr(kernel, name) == getattr(twin, name), name


def test_smaller_slabs(result: WhatIf) -> None:
    twin, small = result.cases[1:3]
    assert small.name == "slub_max_order=0" and small.slabs_made > twin.slabs_made and not small.broken
    assert small.slab_pages != twin.slab_pages


def test_result_as_data(result: WhatIf) -> None:
    document = json.loads(json.dumps(result.to_dict()))
    assert document["schema"] == 1 and [c["name"] for c in document["cases"]][2] == "slub_max_order=0"
    frame = result.frame()
    assert len(frame) == 4 and frame["free_order_10"].to_list()[0] == result.cases[0].free_blocks[10]
    drawing = render(result)
    assert drawing.startswith("<svg") and drawing.count("<polyline") == 4 * 3


@pytest.mark.parametrize(
    "words",
    [
        "slub_max_order=0", "slub_min_order=1", "cpus=2", "cpus=4", "ram=256M", "ram=1G", "merge=on", "merge=off", "size_classes=112,160", "cpu_partial=0",
        "min_free_kbytes=8192 watermark_scale_factor=200", "cpus=2 slub_max_order=1 ram=384M", "watermark_boost_factor=0", "percpu_pagelist_high_fraction=8", "slub_min_objects=64", "pageblock_order=10", "pageblock_order=4 cpus=2", "profile=i386", "profile=i386 cpus=4 pageblock_order=9 ram=1G",
    ],
)  # fmt: skip
def test_starts_are_sound(pipes: Recording, asked: Requests, words: str) -> None:
    start, names, _ = start_under(pipes, asked, parse_settings([words]))
    validate(start.pages, True)
    validate_slub(start.slub, start.pages)
    assert len(names) == int(start.slub.config[0]["caches"])
    live = [packed for _, packed in start.objects.tolist()]
    assert len(set(live)) == len(live) and min(live) >= 0


def test_empty_slabs_stay_where_the_kernel_keeps_them(pipes: Recording, asked: Requests) -> None:
    """Cut into smaller slabs, free objects come out as empty ones: at most as many stay as the lists would keep."""
    old, new = (start_under(pipes, asked, parse_settings([words]))[0].slub for words in ("merge=off", "slub_max_order=0"))
    seen = 0
    for on_list, most in ((1, "min_partial"), (2, "cpu_partial_slabs")):
        empty = (new.slab["state"] == SLAB_LIVE) & (new.slab["inuse"] == 0) & (new.slab["on_list"] == on_list)
        caches, count = np.unique(new.slab["cache"][empty], return_counts=True)
        changed = old.cache["order"][caches] != new.cache["order"][caches]
        assert (count <= new.cache[most][caches])[changed].all()
        seen += int(count[changed].sum())
    assert seen


def test_ram_is_what_the_kernel_would_manage(pipes: Recording, asked: Requests) -> None:
    """Managed pages of a guest of 256 MiB, as the bundled recordings have them (less what this kernel's initial RAM disk changes)."""
    start, _, _ = start_under(pipes, asked, Settings(ram=256 << 20))
    real = store.load(ROOT / "tests/recordings/slabs-256m-1cpu-slab.mmrec").before
    assert real is not None
    assert abs(int(start.pages.zone["managed_pages"].sum()) - int(real.zones["managed_pages"].sum())) < 64
    assert int(start.pages.config[0]["min_free_kbytes"]) == real.scalars["min_free_kbytes"]


def test_settings_are_read() -> None:
    assert parse_settings(["cpus=2", "ram=128M merge=off"]) == Settings(cpus=2, ram=128 << 20, merge=False)
    assert str(parse_settings(["size_classes=160,112", "kvmalloc=all"])) == "size_classes=112,160 kvmalloc=all"
    assert str(Settings()) == "as recorded"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("slub_maxorder=0", "did you mean slub_max_order"), ("cpus=0", "from 1 to 64"), ("cpus", "expected key=value"), ("merge=maybe", "on or off"), ("ram=1", "64 MiB"),
        ("pageblock_order=3", "from 4 to 10"), ("allocator=slob", "slab or slub"), ("profile=linux-6.12", "only its virtual areas"), ("profile=vms", "no profile"), ("kvmalloc=nowhere", "kvmalloc"), ("x=1", "expected one of"),
    ],
)  # fmt: skip
def test_settings_are_refused(word: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        parse_settings([word])
    assert "\n" not in str(caught.value)


def test_settings_of_lists_and_slabs_work_in_their_direction(pipes: Recording, asked: Requests) -> None:
    """percpu_pagelist_high_fraction: a list may hold that share of its zone. slub_min_objects: slabs large enough for so many objects."""
    plain = start_under(pipes, asked, Settings())[0]
    large = start_under(pipes, asked, Settings(percpu_pagelist_high_fraction=8))[0]
    zone = int(np.argmax(plain.pages.zone["managed_pages"]))
    managed, cpus = int(plain.pages.zone[zone]["managed_pages"]), int(plain.pages.config[0]["nr_cpus"])
    assert int(large.pages.pcp[zone * cpus]["high"]) == managed // 8 // cpus > int(plain.pages.pcp[zone * cpus]["high"])
    few, many = (start_under(pipes, asked, Settings(slub_min_objects=n))[0].slub.cache for n in (1, 64))
    assert (many["order"] >= few["order"]).all() and (many["order"] > few["order"]).any() and int(many["order"].max()) <= 3


def test_watermark_boost_factor(pipes: Recording, asked: Requests) -> None:
    """What a stolen pageblock boosts the watermarks by at most; 0 ends a boost that is there."""
    boosted = replace(asked, pages=asked.pages._replace(zone=asked.pages.zone.copy()))
    boosted.pages.zone["watermark_boost"][:2] = 512
    for factor, expected in ((0, 0), (15000, 512)):
        start, _, _ = start_under(pipes, boosted, Settings(watermark_boost_factor=factor))
        assert int(start.pages.config[0]["watermark_boost_factor"]) == factor and start.pages.zone["watermark_boost"][:2].tolist() == [expected] * 2
        zone = int(np.argmax(start.pages.zone["managed_pages"]))
        start.pages.zone["watermark_boost"] = 0
        assert boost_watermark(start.pages, zone) == (factor > 0) and (int(start.pages.zone[zone]["watermark_boost"]) > 0) == (factor > 0)


@pytest.mark.parametrize("order", [4, 7, 10])
def test_pageblocks_of_another_order(pipes: Recording, asked: Requests, order: int) -> None:
    """Smaller ones have their old one's type; a larger one that of most of its pages, and what is free in it is on that type's lists."""
    pages = start_under(pipes, asked, Settings(pageblock_order=order))[0].pages
    validate(pages)
    had, frames = asked.pages.pageblock, int(pages.config[0]["nr_frames"])
    assert int(pages.config[0]["pageblock_order"]) == order and len(pages.pageblock) == -(-frames >> order)
    if order < 9:
        starts = np.arange(len(pages.pageblock)) << order
        inside = (starts >= int(pages.zone[0]["start_pfn"])) & (starts < frames)
        assert (pages.pageblock[inside] == had[starts >> 9][inside]).all()
    else:
        pairs = had[: len(had) // 2 * 2].reshape(-1, 2)
        same = pairs[:, 0] == pairs[:, 1]
        assert same.any() and (~same[1:-1]).any() and (pages.pageblock[: len(pairs)][same] == pairs[same][:, 0]).all()
        same[[0, -1]] = True  # memory does not begin and end with them: there one half is larger
        assert (pages.pageblock[: len(pairs)][~same] == np.where((pairs == 0).any(axis=1), 0, 2)[~same]).all()  # a tie: what moves least readily
    assert int(pages.zone["nr_free_pages"].sum()) == int(asked.pages.zone["nr_free_pages"].sum())


def test_pageblocks_that_zones_share() -> None:
    """i386: HighMem begins inside a pageblock of order 10, and of order 7 too; khugepaged's min_free_kbytes follows the order."""
    booted = boot("linux-6.1-i386", "2GiB", 1).state
    recording: Any = SimpleNamespace(before=None)
    high = int(booted.zone[2]["start_pfn"])
    assert int(booted.config[0]["pageblock_split"]) == high and high & 1023
    nothing = np.zeros((0, 2), dtype=np.int64)
    bare = Start(booted, new_slub(1, 0, slabs=0, slots=0), np.zeros(0, dtype=REQUEST), nothing, nothing)
    start = with_pageblocks(bare, recording, 7, get("linux-6.1-i386"))
    pages = with_cpus(start, 2).pages
    validate(pages)
    assert high & 127 and int(pages.config[0]["pageblock_split"]) == high and len(pages.pageblock) == -(-int(pages.config[0]["nr_frames"]) >> 7) + 1
    assert int(pages.config[0]["min_free_kbytes"]) < int(booted.config[0]["min_free_kbytes"])


def test_a_32_bit_machine(pipes: Recording, asked: Requests) -> None:
    """Zones of a guest of 2 GiB without PAE, to the page; nothing that is in use is lost."""
    pages = start_under(pipes, asked, parse_settings(["profile=i386 ram=2G"]))[0].pages
    validate(pages)
    real = store.load(ROOT / "tests/recordings/areas-2g-1cpu-slab-686.mmrec").before
    assert real is not None
    for name in ("start_pfn", "present_pages", "managed_pages"):
        assert pages.zone[name][:3].tolist() == real.zones[name].to_list()[:3], name
    assert int(pages.config[0]["pageblock_order"]) == 10 and bool(pages.zone[2]["is_highmem"]) and pages.gfp_zone[2] == 2
    assert abs(int(pages.config[0]["min_free_kbytes"]) - real.scalars["min_free_kbytes"]) < 64
    used = [int(p.zone["managed_pages"].sum() - p.zone["nr_free_pages"].sum() - p.pcp["count"].sum()) for p in (pages, asked.pages)]
    assert 0 <= used[0] - used[1] < 400
    case = whatif(pipes, [parse_settings(["profile=i386-pae cpus=2"])], asked=asked).cases[-1]
    assert case.broken == "" and case.failures == 0 and case.name == "cpus=2 profile=linux-6.1-i386-pae"


def test_what_the_kernel_has_in_high_memory_moves() -> None:
    """A recorded 64-bit machine of 1 GiB: beyond i386's direct map nothing stays that is not on an LRU list."""
    recording = store.load(ROOT / "tests/recordings/mmap-1g-1cpu.mmrec")
    assert recording.before is not None
    pages = restore(recording.before)
    nothing = np.zeros((0, 2), dtype=np.int64)
    start = Start(pages, new_slub(1, 0, slabs=0, slots=0), np.zeros(0, dtype=REQUEST), nothing, nothing)
    moved = with_ram(start, recording, np.zeros((0, 3), dtype=np.int64), 1 << 30, 1, False, get("i386")).pages
    validate(moved)
    high, end = int(moved.zone[2]["start_pfn"]), int(moved.zone[2]["end_pfn"])
    kept = [~_inside_free(p, int(p.config[0]["nr_frames"]))[high:end] & (p.page["flags"][high:end] & PG_LRU == 0) for p in (pages, moved)]
    assert kept[0].sum() > 1000 and not kept[1].any()


def test_slab_answers(pipes: Recording, asked: Requests) -> None:
    """The same requests: as many objects live at the end, and small kmallocs are those of SLAB, whose least has 32 bytes."""
    result = whatif(pipes, [Settings(allocator="slab")], asked=asked)
    twin, slab = result.cases[1:]
    assert slab.broken == "" and slab.failures == slab.slab_failures == 0 and slab.page_requests == twin.page_requests
    assert "kmalloc-8" in twin.caches and not {"kmalloc-8", "kmalloc-16"} & slab.caches.keys()
    assert slab.slab_object_bytes is not None and twin.slab_object_bytes is not None
    assert twin.slab_object_bytes < slab.slab_object_bytes < 4096 * slab.slab_pages  # those of 32 bytes
    assert slab.used_pages - twin.used_pages == slab.slab_pages - twin.slab_pages == sum(slab.caches.values()) - sum(twin.caches.values())
    assert any(note.startswith("SLAB: of the ") for note in slab.notes)


def test_slab_at_the_start(pipes: Recording, asked: Requests) -> None:
    """Each live object of SLUB has one place in SLAB's slabs; those freed in the recording are found there."""
    start, names, notes = start_under(pipes, asked, Settings())
    rows = [slab for slab in start.slub.slab[1024 : int(start.slub.config[0]["slabs"])] if int(slab["state"]) == SLAB_LIVE]
    live = sum(int((start.slub.slot[int(r["slots"]) : int(r["slots"]) + int(r["objects"])] == ALLOCATED).sum()) for r in rows)
    begin = start_with_slab(start, pipes, names, notes)
    check(begin.slab, begin.start.pages)
    validate(begin.start.pages, True)
    management = int((begin.slab.slab["management"][live_rows(begin.slab)] >= 0).sum())
    assert int(begin.slab.used.sum()) == live + management and management > 0
    addresses = begin.start.objects[:, 1].tolist()
    assert len(set(addresses)) == len(addresses) > 0 and min(addresses) > 0
    reaps = begin.start.table[begin.start.table["op"] == CACHE_REAP]
    assert len(reaps) == 1 and begin.slab.config[0]["numa"] == 1  # the workload took three seconds


def test_card(result: WhatIf) -> None:
    html = result._repr_html_()
    assert "slub_max_order=0" in html and "blocks stolen" in html and f"{result.cases[2].slab_pages:,}" in html and "<script" not in html


def test_kvmalloc_takes_single_pages(asked: Requests) -> None:
    """A large kmalloc that is refused becomes as many single pages, and its free that many frees."""
    table = asked.table.copy()
    freed = set(table["id"][table["op"] == PAGES_FREE].tolist())
    at = next(i for i, row in enumerate(table) if int(row["op"]) == PAGES_ALLOC and int(row["order"]) and int(row["id"]) in freed)
    number, count = int(table["id"][at]), 1 << int(table["order"][at])
    table["site"][at] = 0x1234
    blocks = np.zeros(asked.blocks, dtype=np.int64)
    blocks[number] = GONE
    outcome: Any = SimpleNamespace(blocks=blocks)
    again, moved = _kvmalloc(replace(asked, table=table), outcome, (0x1234,))
    assert moved == 1 and again.blocks == asked.blocks + count and len(again) == len(asked) + count - 1
    assert int(again.table["op"][at]) == PAGES_BULK and int(again.table["arg"][at]) == count > 1
    singles = again.table[(again.table["op"] == PAGES_FREE) & (again.table["id"] >= asked.blocks)]
    assert singles["id"].tolist() == [asked.blocks + i for i in range(count)] and not singles["order"].any()
    outcome = run(replace(start_of(again), table=again.table), again)
    assert outcome.counters["bulk_pages"] == 60 + count and outcome.counters["page_failures"] == 0


def test_kvmalloc_needs_a_site(pipes: Recording, asked: Requests) -> None:
    with pytest.raises(RequestError, match="no large kmalloc"):
        whatif(pipes, [parse_settings(["kvmalloc=ffffffff00000000"])], asked=asked)


@pytest.mark.parametrize("name", ["lowest_address", "no_stealing"])
def test_page_policies_of_the_examples(pipes: Recording, asked: Requests, name: str) -> None:
    case = whatif(pipes, policy=load_policy(ROOT / f"examples/policies/{name}.py"), asked=asked).cases[-1]
    assert case.name == name and case.broken == "" and case.failures == 0 and case.extfrag == 0
    assert case.listed_pages == 0  # neither has per-CPU lists


def test_size_classes_of_the_example(pipes: Recording, asked: Requests) -> None:
    policy = load_policy(ROOT / "examples/policies/size_classes.py")
    assert policy.pages is None and policy.size_class is not None and policy.size_class(65, 0, 0) == 80
    case = whatif(pipes, policy=policy, asked=asked).cases[-1]
    assert case.broken == "" and any(
        n.startswith("kmalloc") and n[-1].isdigit() and n.split("-")[-1] not in ("8", "16", "32", "64", "96", "128", "192", "256", "512") for n in case.caches
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def alloc(:\n", "1: invalid syntax"),
        ("x = 1\n", "defines none of alloc, free and size_class"),
        ("def alloc(a, b, c, d, e):\n    return -1\n", "come together"),
        ("def size_class(a):\n    return a\n", "1 arguments; expected 3"),
        ("import nowhere\n", "ModuleNotFoundError"),
        ("def alloc(p, cpu, order, gfp, kind):\n    return p.nothing\n\ndef free(p, cpu, pfn, order):\n    pass\n", "cannot be compiled"),
    ],
)
def test_policies_are_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(RequestError, match=said) as caught:
        load_policy(path)
    assert "\n" not in str(caught.value) and "mine.py" in str(caught.value)


def test_a_size_that_holds_nothing(pipes: Recording, asked: Requests, tmp_path: Path) -> None:
    path = tmp_path / "small.py"
    path.write_text("def size_class(size, gfp, site):\n    return 1\n")
    with pytest.raises(RequestError, match="expected at least"):
        whatif(pipes, policy=load_policy(path), asked=asked)


def test_a_policy_that_loses_pages_is_told_on(pipes: Recording, asked: Requests, tmp_path: Path) -> None:
    path = tmp_path / "leaks.py"
    good = (ROOT / "examples/policies/no_stealing.py").read_text()
    path.write_text(good.replace("    give_block(pages, cpu, pfn, order)\n", "    pages.page[pfn]['flags'] = 1\n"))
    assert whatif(pipes, policy=load_policy(path), asked=asked).cases[-1].broken


def test_the_document_says_what_was_measured() -> None:
    spec = importlib.util.spec_from_file_location("whatif_table", ROOT / "docs/whatif_table.py")
    assert spec is not None and spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    text = (ROOT / "docs/whatif.md").read_text()
    assert table.filled(text) == text and text.count("<!-- table ") == text.count("<!-- end -->") == 10
    unseen, before = json.loads(table.UNSEEN.read_text()), json.loads(table.PREDICTED.read_text())
    for pair in unseen["pairs"].values():  # what was written down before the recordings were made
        assert pair["predicted"] == before[pair["settings"] or "twin"] and not pair["broken"]
        assert abs(pair["predicted"]["slab pages"] - pair["real"]["slab pages"]) <= 5
    squeeze, before = json.loads(table.SQUEEZE.read_text()), json.loads(table.SQUEEZE_PREDICTED.read_text())
    assert len(squeeze["pairs"]) == 7
    for pair in squeeze["pairs"].values():
        assert pair["predicted"] == before[pair["settings"] or "twin"] and not pair["broken"]
    repaired = json.loads(table.SQUEEZE_AFTER.read_text())
    assert not any(pair["broken"] for pair in repaired["pairs"].values())
    for name in ("base-b", "order0", "min8m", "wsf200"):  # one CPU, the same memory
        predicted, real = repaired["pairs"][name]["predicted"], repaired["pairs"][name]["real"]
        assert abs(predicted["refused"] - real["refused"]) <= 0.05 * real["refused"]
        assert abs(predicted["slab pages"] - real["slab pages"]) <= 0.002 * real["slab pages"]
    slab, before = json.loads(table.SLAB.read_text()), json.loads(table.SLAB_PREDICTED.read_text())
    assert slab["predicted"] == before["predicted"] and slab["real"]["replay equal"] and slab["real, again"]["replay equal"]
    assert abs(slab["predicted"]["slabs made"] - slab["real"]["slabs made"]) <= 0.02 * slab["real"]["slabs made"]
    pairs = table.truth()["pairs"]
    assert len(pairs) == 11 and not any(pair["broken"] for pair in pairs.values())
    for name in ("order0", "minorder1", "partial0", "nomerge", "min16m", "wsf200"):  # one CPU, the same memory
        predicted, real = pairs[name]["predicted"], pairs[name]["real"]
        assert abs(predicted["slab pages"] - real["slab pages"]) <= 0.02 * real["slab pages"]
        assert abs(predicted["free pages"] - real["free pages"]) <= 0.002 * real["free pages"]
        assert abs(predicted["refused"] - real["refused"]) <= 0.1 * real["refused"]
