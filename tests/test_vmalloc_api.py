"""vmalloc and its family on a machine: the kernel's steps in its order, its answers to misuse, and what stays true whatever is asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

import mmtwin
from mmtwin import GFP_ATOMIC, GFP_KERNEL
from mmtwin.errors import AllocationFailure, BadIoremap, BadVfree, KernelBug, KernelSilent, PageFault, RequestError, VmallocFailure
from mmtwin.machine import Machine
from mmtwin.mm.vmap_tables import VM_MAP, VM_MAP_PUT_PAGES, VM_NO_GUARD
from mmtwin.recording import store
from mmtwin.tracing import Event

PAGE = 4096
RECORDINGS = Path(__file__).parent / "recordings"
EVENTS = Path(__file__).parent / "data" / "vmalloc-events-6.1.json"
REPORTS = Path(__file__).parent / "data" / "vmalloc-misuse-6.1.txt"


@pytest.fixture
def m() -> Machine:
    return mmtwin.boot("linux-6.1", ram="256MiB", cpus=1)


def kinds(log: list[Event]) -> list[tuple[str, int, int]]:
    """Steps without addresses: kind, bytes asked for (or how many), flags."""
    return [(e.kind, e.bytes_req or e.order, e.gfp) for e in log if e.kind not in ("set_pte", "clear_pte", "alloc_vmap_area")]


def warm(m: Machine) -> None:
    """Slabs with free objects, a spare area, and page tables: so that only what a call itself does is seen."""
    kept = [m.vmalloc(PAGE) for _ in range(3)]
    m.vfree(kept[1])
    m.kfree(m.kmalloc(8))
    m.kfree(m.kmalloc(16))
    m.kfree(m.kmalloc(2000))
    m.kfree(m.kmalloc(1000))


# The kernel's order of steps (linux-mm-spec, G.4)


def test_steps_of_five_pages(m: Machine) -> None:
    warm(m)
    with m.events() as log:
        address = m.vmalloc(20480)
    found = kinds(log)
    assert found[0] == ("kmalloc", 64, 0xDC0)
    assert found[1:-2] in ([("kmem_cache_alloc", 64, 0xCC0)], [("kmem_cache_alloc", 64, 0xCC0)] * 2)  # the second is the CPU's spare
    assert found[-2:] == [("kmalloc", 40, 0xDC0), ("alloc_pages_bulk", 5, 0x2CC2)]
    with m.events() as log:
        m.vfree(address)
    assert [e.kind for e in log if e.kind != "kmem_cache_free"] == ["clear_pte", "mm_page_free", "kfree", "kfree"]


@pytest.mark.parametrize(
    ("pages", "requests"),
    [
        (1, [("mm_page_alloc", 0)]),
        (2, [("alloc_pages_bulk", 2)]),
        (100, [("alloc_pages_bulk", 100)]),
        (101, [("alloc_pages_bulk", 100), ("mm_page_alloc", 0)]),
        (200, [("alloc_pages_bulk", 100)] * 2),
        (201, [("alloc_pages_bulk", 100)] * 2 + [("mm_page_alloc", 0)]),
    ],
)
def test_which_pages_have_an_event(m: Machine, pages: int, requests: list[tuple[str, int]]) -> None:
    warm(m)
    with m.events() as log:
        m.vmalloc(pages * PAGE)
    assert [(e.kind, e.order) for e in log if e.gfp == 0x2CC2] == requests


def test_page_array_above_a_page_is_an_area_of_its_own(m: Machine) -> None:
    warm(m)
    with m.events() as log:
        address = m.vmalloc(513 * PAGE)
    found = [e for e in log if e.kind == "alloc_vmap_area"]
    assert [e.bytes_req for e in found] == [514 * PAGE, 3 * PAGE]
    assert ("alloc_pages_bulk", 2, 0x2DC2) in kinds(log)
    line = next(line for line in m.vmallocinfo().splitlines() if line.startswith(f"0x{address:016x}"))
    assert " pages=513 vmalloc vpages N0=513" in line
    assert m.vmalloc(512 * PAGE) and m.vmallocinfo().count("vpages") == 1


def test_vmalloc_sets_page_tables_and_kmalloc_none(m: Machine) -> None:
    warm(m)
    before = m.mmu_counters()
    objects = [m.kmalloc(1 << k) for k in range(23)]
    for address in objects:
        m.kfree(address)
    assert m.mmu_counters() == before
    for pages in (1, 2, 7, 100, 511, 700):
        before = m.mmu_counters()
        address = m.vmalloc(pages * PAGE)
        now = m.mmu_counters()
        tables = -(-(address + pages * PAGE) >> 21 << 21) - (address >> 21 << 21) >> 21
        array = 2 if pages > 512 else 0
        assert now["pte_writes"] - before["pte_writes"] == pages + array
        assert now["table_pages"] - before["table_pages"] <= tables + 2
        assert now["table_writes"] - before["table_writes"] == now["table_pages"] - before["table_pages"]
        before = now
        m.vfree(address)
        now = m.mmu_counters()
        assert now["pte_writes"] - before["pte_writes"] == pages + 1 + (array + 1 if array else 0)  # each clears its guard page's entry too
        assert now["table_frees"] == 0


def test_a_freed_area_faults_and_a_real_tlb_may_hide_it(m: Machine) -> None:
    for stale in (False, True):
        m.stale_tlb = stale
        address = m.vmalloc(PAGE)
        m.write(address, bytes((7,)))
        flushes = m.mmu_counters()["tlb_range_flushes"] + m.mmu_counters()["tlb_flushes"]
        m.vfree(address)
        if stale:
            assert m.read(address, 1) == bytes((7,)) and said("read_freed_touched") == ["vmisuse: read 7"]
            m.vm_unmap_aliases()
        else:
            assert m.mmu_counters()["tlb_range_flushes"] + m.mmu_counters()["tlb_flushes"] == flushes
        with pytest.raises(PageFault, match="unable to handle page fault"):
            m.read(address, 1)


# Addresses


def test_addresses_follow_each_other_and_are_not_used_again_before_a_purge(m: Machine) -> None:
    first = m.vmalloc(PAGE)
    second = m.vmalloc(3 * PAGE)
    assert second == first + 2 * PAGE
    m.vfree(first)
    assert m.vmalloc(PAGE) == second + 4 * PAGE
    assert f"0x{first:016x}-0x{second:016x}    8192 unpurged vm_area" in m.vmallocinfo()
    m.vm_unmap_aliases()
    assert "unpurged" not in m.vmallocinfo()
    assert m.vmalloc(PAGE) == first


def test_lazy_addresses_are_purged_at_the_threshold(m: Machine) -> None:
    low = m.vmalloc(PAGE)
    m.vfree(low)
    pages = 2
    while pages <= 8192:  # fls(1 CPU) * 32 MiB
        assert int(m.areas.config[0]["purges"]) == 0
        m.vfree(m.vmalloc(511 * PAGE))
        pages += 512
    assert int(m.areas.config[0]["purges"]) == 1
    assert m.vmalloc(PAGE) == low
    m.validate()


def test_contiguity(m: Machine) -> None:
    held = [m.alloc_pages(0, GFP_KERNEL) for _ in range(64)]
    for pfn in held[::2]:
        m.free_pages(pfn, 0)
    address = m.vmalloc(16 * PAGE)
    pages = m.phys_pages(address)
    assert len(set(pages)) == 16 and any(b != a + 1 for a, b in pairwise(pages))
    for i, pfn in enumerate(pages):
        assert m.vmalloc_to_pfn(address + i * PAGE + 5) == pfn
    text = bytes(range(256)) * 256
    m.write(address, text)
    assert m.read(address, len(text)) == text
    assert m.read(m.page_address(pages[3]), PAGE) == text[3 * PAGE : 4 * PAGE]
    assert m.read(m.kmalloc(64), 8) == bytes(8)


def test_zeroed_memory(m: Machine) -> None:
    address = m.vmalloc(PAGE)
    pfn = m.vmalloc_to_pfn(address)
    m.write(address, b"\xff" * PAGE)
    m.vfree(address)
    again = m.vzalloc(PAGE)
    assert m.vmalloc_to_pfn(again) == pfn
    assert m.read(again, PAGE) == bytes(PAGE)


def test_huge_pages(m: Machine) -> None:
    address = m.vmalloc_huge(4 << 20)
    assert address % (1 << 21) == 0
    pages = m.phys_pages(address)
    assert pages == [*range(pages[0], pages[0] + 512), *range(pages[512], pages[512] + 512)]
    m.drain()
    free = m.free
    m.vfree(address)
    m.drain()
    assert m.free >= free + 1024
    m.validate()


def test_huge_pages_fall_back(m: Machine) -> None:
    while True:
        try:
            m.alloc_pages(9, 0x12CC0)
        except AllocationFailure:
            break
    before = m.free
    with pytest.raises(VmallocFailure) if before < 512 else warnings.catch_warnings():
        address = m.vmalloc_huge(2 << 20)
        assert len(m.phys_pages(address)) == 512


# kvmalloc


def test_kvmalloc_takes_kmalloc_first(m: Machine) -> None:
    assert not m.is_vmalloc_addr(m.kvmalloc(100))
    big = m.kvmalloc(1 << 20)
    assert not m.is_vmalloc_addr(big) and m.ksize(big) == 1 << 20
    above = m.kvmalloc((4 << 20) + 1)
    assert m.is_vmalloc_addr(above)
    for address in (big, above):
        m.kvfree(address)
    with pytest.raises(AllocationFailure):
        m.kvmalloc((4 << 20) + 1, GFP_ATOMIC)
    with pytest.raises(VmallocFailure, match="INT_MAX"):
        m.kvmalloc(1 << 31)


def test_kvrealloc_copies(m: Machine) -> None:
    small = m.kvmalloc(100)
    m.write(small, b"contents")
    assert m.kvrealloc(small, 100, 50) == small
    large = m.kvrealloc(small, 100, 5 << 20)
    assert m.is_vmalloc_addr(large) and m.read(large, 8) == b"contents"
    with pytest.raises(mmtwin.DoubleFree):
        m.kfree(small)


# The rest of the family


def test_vmap_shows_frames_twice(m: Machine) -> None:
    frames = [m.alloc_pages(0, GFP_KERNEL) for _ in range(5)][::-1]
    address = m.vmap(frames)
    m.write(address + PAGE, b"second")
    assert m.read(m.page_address(frames[1]), 6) == b"second"
    m.vunmap(address)
    for pfn in frames:
        m.free_pages(pfn, 0)
    with pytest.raises(PageFault):
        m.read(address + 2 * PAGE, 1)


def test_vmap_may_hand_over_its_pages(m: Machine) -> None:
    frames = [m.alloc_pages(0, GFP_KERNEL) for _ in range(3)]
    address = m.vmap(frames, VM_MAP | VM_MAP_PUT_PAGES)
    m.vfree(address)
    with pytest.raises(mmtwin.DoubleFree):
        m.free_pages(frames[0], 0)


def test_module_space_and_ioremap(m: Machine) -> None:
    module = m.module_alloc(3 * PAGE)
    assert m.space.modules_vaddr <= module < m.space.modules_end and not m.is_vmalloc_addr(module)
    m.vfree(module)
    assert "unpurged" not in m.vmallocinfo()  # its aliases are flushed at once
    registers = m.ioremap(0xFED00010, 100)
    assert registers % PAGE == 0x10 and m.vmalloc_to_pfn(registers) == 0xFED00
    assert "phys=0x00000000fed00000 ioremap" in m.vmallocinfo()
    m.iounmap(registers)
    reserved = m.get_vm_area(2 * PAGE)
    with pytest.raises(PageFault):
        m.read(reserved, 1)
    m.free_vm_area(reserved)


def test_vm_map_ram_cuts_blocks(m: Machine) -> None:
    frames = [m.alloc_pages(0, GFP_KERNEL) for _ in range(70)]
    first, second = m.vm_map_ram(frames[:3]), m.vm_map_ram(frames[:1])
    assert second == first + 4 * PAGE and first % (256 * PAGE) == 0
    assert "vm_map_ram" in m.vmallocinfo()
    m.vm_unmap_ram(first, 3)
    m.vm_unmap_ram(second, 1)
    alone = m.vm_map_ram(frames)
    assert m.vmalloc_to_pfn(alone + 69 * PAGE) == frames[69]
    m.vm_unmap_ram(alone, 70)
    m.vm_unmap_aliases()
    assert m.vmallocinfo() == ""
    m.validate()


# Continued from a real machine


@pytest.fixture
def loaded() -> Machine:
    return mmtwin.load(RECORDINGS / "areas-256m-1cpu.mmrec", "after")


def test_vmallocinfo_of_a_real_machine(loaded: Machine) -> None:
    text = store.load(RECORDINGS / "areas-256m-1cpu.mmrec").provenance.procfs["vmallocinfo"]
    assert loaded.vmallocinfo() == text and text.count("unpurged") > 10
    loaded.validate()


def test_a_real_machine_goes_on(loaded: Machine) -> None:
    address = loaded.vmalloc(20480)
    loaded.write(address, b"after the dump")
    assert loaded.read(address, 14) == b"after the dump"
    before = loaded.mmu_counters()["table_pages"]
    assert loaded.vmalloc(4096) and loaded.mmu_counters()["table_pages"] == before  # the dump's page tables are there
    loaded.vfree(address)
    with pytest.raises(RequestError, match="does not hold its page frames"):
        loaded.vfree(loaded.space.vmalloc_start + 0xD000)
    loaded.validate()


def kernel_steps(call: dict[str, Any]) -> list[tuple[Any, ...]]:
    """A recorded vmalloc's own steps; what a slab or the free tree needed on the way depends on what the machine did before."""
    found: list[tuple[Any, ...]] = []
    for event in call["events"]:
        kind, gfp = event["kind"], event.get("gfp", 0)
        if kind == "kmalloc" or (kind == "kmem_cache_alloc" and found and found[-1][0] != "kmem_cache_alloc"):
            found.append((kind, event["bytes_req"], event["bytes_alloc"], gfp))
        elif kind == "bulk" and event["nr"] > 1:
            found.append(("alloc_pages_bulk", event["nr"], gfp))
        elif kind == "mm_page_alloc" and gfp & 0x2 and not event.get("order"):
            found.append(("mm_page_alloc", 0, gfp))
    return found


def twin_steps(log: list[Event]) -> list[tuple[Any, ...]]:
    """The same of the twin."""
    found: list[tuple[Any, ...]] = []
    for e in log:
        if e.kind == "kmalloc" or (e.kind == "kmem_cache_alloc" and found and found[-1][0] != "kmem_cache_alloc"):
            found.append((e.kind, e.bytes_req, e.bytes_alloc, e.gfp))
        elif e.kind == "alloc_pages_bulk" or (e.kind == "mm_page_alloc" and e.gfp & 0x2 and not e.order):
            found.append((e.kind, e.order, e.gfp))
    return found


CALLS: list[dict[str, Any]] = json.loads(EVENTS.read_text())["calls"]


@pytest.mark.parametrize("call", [c for c in CALLS if c["call"] == "vmalloc"], ids=lambda call: str(call["pages"]))
def test_steps_are_a_real_kernels(call: dict[str, Any]) -> None:
    m = mmtwin.boot("linux-6.1", ram="512MiB", cpus=1)
    with m.events() as log:
        m.vmalloc(call["pages"] * PAGE)
    assert twin_steps(log) == kernel_steps(call)
    tables = [i for i, e in enumerate(log) if e.kind == "mm_page_alloc" and e.gfp == 0xDC0]
    pages = [i for i, e in enumerate(log) if e.gfp == 0x2CC2]
    assert all(i > max(pages) or i < min(pages) for i in tables)  # behind the pages; before them those of a nested page array


@pytest.mark.parametrize("call", [c for c in CALLS if c["call"] == "vfree"], ids=lambda call: str(call["pages"]))
def test_steps_of_vfree_are_a_real_kernels(call: dict[str, Any]) -> None:
    m = mmtwin.boot("linux-6.1", ram="512MiB", cpus=1)
    address = m.vmalloc(call["pages"] * PAGE)
    with m.events() as log:
        m.vfree(address)
    names = {"clear_pte": "vmap_unlink", "mm_page_free": "mm_page_free", "kfree": "kfree"}
    kernel = [kind for kind, _ in groupby(e["kind"] for e in call["events"] if e["kind"] in names.values())]  # the fixture tells equal ones once
    assert [kind for kind, _ in groupby(names[e.kind] for e in log if e.kind in names)] == kernel


# Misuse: what a real 6.1 said (tests/data/vmalloc-misuse-6.1.txt, made by oracle/module/vmalloc_misuse.c)


def said(case: str) -> list[str]:
    """The kernel's lines in a case, without pointers (which are hashed), stacks and registers."""
    text = REPORTS.read_text()
    found = re.search(rf"^vmisuse: case {case}\n(.*?)^(?:vmisuse: case |Kernel panic)", text, re.M | re.S)
    assert found, case
    return [re.sub(r"\b[0-9a-f]{16}\b", "ADDR", line) for line in found[1].splitlines() if "cut here" not in line]


def one_line(error: BaseException) -> str:
    report = getattr(error, "report", "") or str(error)
    return re.sub(r"\b[0-9a-f]{16}\b", "ADDR", report.splitlines()[0])


def test_vfree_of_what_is_no_area(m: Machine) -> None:
    area, page = m.vmalloc(2 * PAGE), m.kmalloc(2 * PAGE)
    cases = {"vfree_unaligned": area + 8, "vfree_kmalloc": page, "vfree_small_kmalloc": m.kmalloc(64) | 64, "vfree_user": 0x400000}
    for case, address in cases.items():
        with pytest.raises(BadVfree) as error:
            m.vfree(address)
        assert one_line(error.value) == said(case)[0]
    m.vfree(area)
    with pytest.raises(BadVfree, match="freed twice") as error:
        m.vfree(area)
    assert one_line(error.value) == said("vfree_twice")[0]
    m.vfree(0)
    assert said("vfree_null") == []


@pytest.mark.parametrize(("case", "offset"), [("vfree_middle", PAGE), ("vfree_guard", 3 * PAGE)])
def test_vfree_inside_an_area_frees_all_of_it(m: Machine, case: str, offset: int) -> None:
    address = m.vmalloc(3 * PAGE)
    with pytest.warns(KernelSilent, match="frees the whole area"):
        m.vfree(address + offset)
    assert said(case) == ["vmisuse: first page 1"]  # the kernel said nothing, and nothing is mapped any more
    assert m.find_vm_area(address) is None


def test_impossible_sizes(m: Machine) -> None:
    with pytest.raises(VmallocFailure) as error:
        m.vmalloc(0)
    assert error.value.report.split(" PID")[0] == said("vmalloc_zero")[0].split(" PID")[0]
    assert said("vmalloc_zero")[0].split(" at ")[1].split("+")[0] == error.value.report.split(" at ")[1]
    with m.task("vmisuse", 91), pytest.raises(VmallocFailure) as error:
        m.vmalloc(1 << 63)
    assert error.value.report == said("vmalloc_too_large")[0]
    with pytest.raises(VmallocFailure, match="exceeds total pages"):
        m.vmalloc((m.managed + 1) * PAGE)
    with pytest.raises(RequestError, match="0 or more"):
        m.vmalloc(-1)
    with pytest.raises(RequestError, match="power of two"):
        m.vmalloc_node_range(PAGE, 3)
    with pytest.raises(RequestError, match="whole number"):
        m.vmalloc("4096")  # type: ignore[arg-type]


def test_ioremap_of_memory(m: Machine) -> None:
    with pytest.raises(BadIoremap) as error:
        m.ioremap(0x5350000, PAGE)
    assert error.value.report == "ioremap on RAM at 0x0000000005350000 - 0x0000000005350fff"
    assert said("ioremap_ram")[0].startswith("ioremap on RAM at ")
    with pytest.raises(VmallocFailure, match="0 bytes"):
        m.ioremap(0xFED00000, 0)


def test_vmap_without_guard_and_vunmap_of_vmalloc(m: Machine) -> None:
    page = m.alloc_pages(0, GFP_KERNEL)
    with pytest.warns(KernelSilent, match="VM_NO_GUARD"):
        address = m.vmap([page], VM_MAP | VM_NO_GUARD)
    assert m.find_vm_area(address)["size"] == 2 * PAGE  # type: ignore[index]
    lost = m.vmalloc(PAGE)
    with pytest.warns(KernelSilent, match="loses its 1 pages"):
        m.vunmap(lost)


def test_interrupts(m: Machine) -> None:
    address = m.vmalloc(2 * PAGE)
    with m.bh_disabled():
        with pytest.raises(KernelBug) as error:
            m.vmalloc(PAGE)
        assert said("vmalloc_bh_disabled")[0] in error.value.report
        m.vfree(address)
        assert m.find_vm_area(address) is not None  # left to a worker
    assert said("vfree_bh_disabled") == ["vmisuse: area 2", "vmisuse: area 1"]
    assert m.run_work() == 1
    assert m.find_vm_area(address) is None
    with m.nmi(), pytest.raises(KernelBug):
        m.vfree(address)


def test_sleeping_is_why_vmalloc_cannot_be_atomic(m: Machine) -> None:
    with m.atomic():
        assert m.kmalloc(28, GFP_ATOMIC)
        with pytest.raises(mmtwin.SleepingInAtomic, match="BUG: sleeping function called from invalid context"):
            m.vmalloc(PAGE)


def test_kfree_of_a_vmalloc_address(m: Machine) -> None:
    address = m.vmalloc(2 * PAGE)
    with pytest.raises(PageFault) as error:
        m.kfree(address)
    report = error.value.report.splitlines()
    assert report[1:3] == said("kfree_vmalloc")[2:4]
    page = m.space.vmemmap_start + (address - m.PAGE_OFFSET >> 12) * 64
    assert f"address: {page + 8:016x}" in report[0]
    with pytest.raises(PageFault):
        m.ksize(address)


# A machine without addresses


def test_no_addresses() -> None:
    m = mmtwin.boot("linux-6.1", ram="256MiB", cpus=1)
    start = m.space.modules_vaddr
    held = [m.module_alloc(31 << 20) for _ in range(2)]
    taken = []
    with pytest.raises(VmallocFailure) as error:
        for _ in range(1000):
            taken.append(m.vmalloc_node_range(1 << 20, start=start, end=start + (64 << 20)))
    assert error.value.report.splitlines()[0] == f"vmap allocation for size {(1 << 20) + PAGE} failed: use vmalloc=<size> to increase size"
    assert "vm_struct allocation failed, mode:0xcc0(GFP_KERNEL), nodemask=(null),cpuset=/,mems_allowed=0" in error.value.report
    for address in held:
        m.vfree(address)
    assert m.vmalloc_node_range(1 << 20, start=start, end=start + (64 << 20)) == start
    m.validate()


def test_no_memory_for_the_page_array_is_the_areas_failure() -> None:
    """A small area's array is a kmalloc; Linux gives the addresses back and returns NULL."""
    m = mmtwin.boot("linux-6.1", ram="64MiB", cpus=2)
    m.vfree(m.vmalloc(PAGE))
    m.vm_unmap_aliases()
    before = m.vmallocinfo()
    with pytest.raises(AllocationFailure):
        while True:
            m.alloc_pages(0, GFP_KERNEL)
    with pytest.raises(VmallocFailure, match="vmalloc error: size 12288, failed to allocated page array size 24: SLUB"):
        m.vmalloc(3 * PAGE)
    m.vm_unmap_aliases()
    assert m.vmallocinfo() == before
    m.validate()


# Whatever is asked


class Vmallocs(RuleBasedStateMachine):
    """Random calls of the family; all invariants of all tables hold after each, and nothing is handed out twice."""

    live = Bundle("live")

    def __init__(self) -> None:
        super().__init__()
        self.m = mmtwin.boot("linux-6.1", ram="64MiB", cpus=2)
        self.pages = 0

    @rule(target=live, pages=st.integers(1, 600), cpu=st.integers(0, 1), align=st.sampled_from([1, 1 << 13, 1 << 14, 1 << 16]))
    def vmalloc(self, pages: int, cpu: int, align: int) -> tuple[str, int, int]:
        try:
            address = self.m.vmalloc_node_range(pages * PAGE, align, cpu=cpu)
        except VmallocFailure:
            return ("nothing", 0, 0)
        assert address % max(align, PAGE) == 0
        self.pages += pages
        return ("vmalloc", address, pages)

    @rule(target=live, pages=st.integers(1, 80), cpu=st.integers(0, 1))
    def map_ram(self, pages: int, cpu: int) -> tuple[str, int, int]:
        frames = list(range(0x2000, 0x2000 + pages))
        return ("ram", self.m.vm_map_ram(frames, cpu), pages)

    @rule(target=live, size=st.integers(1, 6 << 20), cpu=st.integers(0, 1))
    def kvmalloc(self, size: int, cpu: int) -> tuple[str, int, int]:
        try:
            return ("kvmalloc", self.m.kvmalloc(size, cpu=cpu), size)
        except AllocationFailure:
            return ("nothing", 0, 0)

    @rule(what=consumes(live), cpu=st.integers(0, 1))
    def free(self, what: tuple[str, int, int], cpu: int) -> None:
        kind, address, size = what
        if kind == "vmalloc":
            self.m.vfree(address, cpu)
        elif kind == "ram":
            self.m.vm_unmap_ram(address, size, cpu)
        elif kind == "kvmalloc":
            self.m.kvfree(address, cpu)

    @rule(cpu=st.integers(0, 1))
    def unmap_aliases(self, cpu: int) -> None:
        self.m.vm_unmap_aliases(cpu)

    @invariant()
    def valid(self) -> None:
        self.m.validate()


TestVmallocs = Vmallocs.TestCase
TestVmallocs.settings = settings(max_examples=8, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))


def test_all_pages_come_back(m: Machine) -> None:
    warm(m)
    tables = m.mmu_counters()["table_pages"]
    m.drain()
    free = m.free + slab_pages(m)
    held = [m.vmalloc(size) for size in (1, PAGE + 1, 100 * PAGE, 700 * PAGE)]
    for address in held:
        m.vfree(address)
    m.vm_unmap_aliases()
    m.drain()
    assert m.free + slab_pages(m) == free - (m.mmu_counters()["table_pages"] - tables)


def slab_pages(m: Machine) -> int:
    return int(m.slub.config[0]["pages"])


def test_copies_are_independent(m: Machine) -> None:
    address = m.vmalloc(PAGE)
    other = m.copy()
    assert other.vmalloc(PAGE) == m.vmalloc(PAGE)
    other.vfree(address)
    assert m.find_vm_area(address) is not None
    assert other.digest() != m.digest()


def run_program(m: Machine) -> Iterator[int]:
    state = 1
    live: list[int] = []
    for _ in range(400):
        state = state * 48271 % 2147483647
        if live and state % 3 == 0:
            m.vfree(live.pop(state % len(live)), state % 2)
        else:
            live.append(m.vmalloc_node_range(1 + state % 300000, 1 << state % 17, cpu=state % 2))
            yield live[-1]


DIGEST = """
import mmtwin
from tests.test_vmalloc_api import run_program
m = mmtwin.boot("linux-6.1", ram="128MiB", cpus=2)
print(list(run_program(m))[-1], m.digest())
"""


def test_same_state_compiled_checked_and_interpreted() -> None:
    """The compiled code, the compiled code with bounds checks and plain Python do the same."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join([str(Path(mmtwin.__file__).parents[1]), root])
    found = {}
    for mode in ({}, {"NUMBA_BOUNDSCHECK": "1"}, {"NUMBA_DISABLE_JIT": "1"}):
        clean = {name: value for name, value in os.environ.items() if name not in ("NUMBA_BOUNDSCHECK", "NUMBA_DISABLE_JIT")}
        run = subprocess.run([sys.executable, "-c", DIGEST], env=clean | {"PYTHONPATH": path} | mode, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        found[next(iter(mode), "compiled")] = run.stdout.strip()
    assert len(set(found.values())) == 1, found


def test_boot_options_move_the_vmalloc_space() -> None:
    usual = mmtwin.boot("linux-6.1-i386", ram="2GiB", cpus=1)
    larger = mmtwin.boot("linux-6.1-i386", ram="2GiB", cpus=1, cmdline="vmalloc=256M")
    assert usual.space.vmalloc_start - larger.space.vmalloc_start == (256 + 8 - 128) << 20  # vmalloc= adds the hole of 8 MiB
    assert usual.state.zone[1]["end_pfn"] - larger.state.zone[1]["end_pfn"] == (256 + 8 - 128) << 8
    assert larger.vmalloc(28) == larger.space.vmalloc_start
    five = mmtwin.boot("linux-6.1", ram="256MiB", cpus=1, la57=True)
    assert five.vmalloc(28) == 0xFFA0000000000000 and five.virt_to_phys(five.kmalloc(28)) < 256 << 20
