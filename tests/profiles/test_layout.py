"""Address spaces, computed and as booted kernels had them (`tests/data/layouts.json.gz`, made by oracle/layout.sh)."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtwin.errors import ProfileError
from mmtwin.profiles import get, layout, physical
from mmtwin.profiles.layout import AddressSpace, Bases, address_space, end_of_ram, memparse, words
from mmtwin.profiles.physical import Frames
from mmtwin.units import PAGE_SIZE, parse_size

MIB, GIB = 1 << 20, 1 << 30
BOOTED: list[dict[str, Any]] = json.loads(gzip.decompress((Path(__file__).parents[1] / "data" / "layouts.json.gz").read_bytes()))["runs"]
MEANING = {
    "PAGE_OFFSET": "page_offset", "high_memory": "high_memory", "VMALLOC_START": "vmalloc_start", "VMALLOC_END": "vmalloc_end",
    "VMALLOC_TOTAL": "vmalloc_total", "MODULES_VADDR": "modules_vaddr", "MODULES_END": "modules_end", "FIXADDR_START": "fixaddr_start",
    "FIXADDR_TOP": "fixaddr_top", "CPU_ENTRY_AREA_BASE": "cpu_entry_area", "LDT_BASE_ADDR": "ldt_base", "TASK_SIZE_MAX": "user_end",
    "__START_KERNEL_map": "kernel_map", "VMEMMAP_START": "vmemmap_start", "PKMAP_BASE": "pkmap_base", "LAST_PKMAP": "last_pkmap",
    "MAX_PHYSMEM_BITS": "phys_bits",
}  # fmt: skip


def kernel(run: dict[str, Any]) -> str:
    release = run["release"]
    return next(
        name
        for mark, name in (("-686-pae", "linux-6.1-i386-pae"), ("-686", "linux-6.1-i386"), ("6.12.", "linux-6.12"), ("6.1.", "linux-6.1"))
        if mark in release
    )


def ram(run: dict[str, Any]) -> list[Frames]:
    return physical.ram_frames(physical.qemu_pc_memory_map(parse_size(run["ram"])))


def predicted(run: dict[str, Any]) -> AddressSpace:
    """From what is known before the boot; of a kernel that randomises, the three random numbers are taken from it."""
    random = "nokaslr" not in words(run["cmdline"]) and "VMEMMAP_START" in run["probe"]
    bases = Bases(*(run["probe"][name] for name in ("PAGE_OFFSET", "VMALLOC_START", "VMEMMAP_START"))) if random else None
    return address_space(kernel(run), ram(run), run["cmdline"], "la57=off" not in run["cpu"], bases)


@pytest.fixture(
    scope="module", params=[run for run in BOOTED if run["probe"]], ids=lambda run: " ".join((run["release"], run["ram"], run["cpu"], run["cmdline"]))
)
def booted(request: pytest.FixtureRequest) -> tuple[dict[str, Any], AddressSpace]:
    return request.param, predicted(request.param)


def meminfo(run: dict[str, Any]) -> dict[str, int]:
    return {name: int(value.split()[0]) for name, value in (line.split(":") for line in run["files"]["meminfo"].split("\n"))}


def test_there_are_enough() -> None:
    assert len(BOOTED) >= 50
    assert {(kernel(run), run["ram"]) for run in BOOTED} >= {("linux-6.1-i386", size) for size in ("512M", "1G", "2G", "4G")}
    assert {"la57=off" in run["cpu"] for run in BOOTED if kernel(run) == "linux-6.1"} == {True, False}


def test_macros(booted: tuple[dict[str, Any], AddressSpace]) -> None:
    run, space = booted
    found = {name: getattr(space, MEANING[name]) for name in run["probe"] if name in MEANING}
    assert found == {name: value for name, value in run["probe"].items() if name in MEANING}
    assert len(found) >= 14
    rules = layout.rules_for(space.name)
    probe = run["probe"]
    assert (rules.permanent_slots, rules.all_slots) == (probe["__end_of_permanent_fixed_addresses"], probe["__end_of_fixed_addresses"])
    assert (rules.nr_cpus, rules.ptrs_per_pte, rules.pmd_size) == (probe["NR_CPUS"], probe["PTRS_PER_PTE"], probe["PMD_SIZE"])
    assert rules.image_size == probe["KERNEL_IMAGE_SIZE"]
    if space.bits == 32:
        assert rules.entry_area_pages * PAGE_SIZE == probe["sizeof(struct cpu_entry_area)"]
        assert space.fixaddr_start - (rules.all_slots - rules.permanent_slots) * PAGE_SIZE == probe["FIXADDR_TOT_START"]
    else:
        assert (space.levels == 5) == bool(probe["pgtable_l5_enabled()"])
        assert rules.struct_page_size == probe["sizeof(struct page)"]
        at = {region.name: region for region in space.regions}
        assert (at["efi"].end, at["efi"].start, at["espfix"].start) == (probe["EFI_VA_START"], probe["EFI_VA_END"], probe["ESPFIX_BASE_ADDR"])
        assert (at["guard"].start, at["guard"].end, at["vsyscall"].start) == (
            probe["GUARD_HOLE_BASE_ADDR"],
            probe["GUARD_HOLE_END_ADDR"],
            probe["VSYSCALL_ADDR"],
        )


def test_proc_meminfo(booted: tuple[dict[str, Any], AddressSpace]) -> None:
    run, space = booted
    told = meminfo(run)
    assert space.vmalloc_total >> 10 == told["VmallocTotal"]
    if space.bits == 32:
        high = physical.count(physical.clip(ram(run), space.max_low_pfn, space.max_pfn))
        assert high * 4 == told["HighTotal"]
        assert told["MemTotal"] == told["HighTotal"] + told["LowTotal"]
        assert told["LowTotal"] < physical.count(physical.clip(ram(run), 0, space.max_low_pfn)) * 4


def test_boot_log(booted: tuple[dict[str, Any], AddressSpace]) -> None:
    run, space = booted
    log = run["dmesg"]
    if space.bits == 32:
        said = [line for line in log if re.search(r"HIGHMEM|LOWMEM|low ram|highmem size|Reserving virtual", line)]
        assert list(space.messages) == said
        if space.max_pfn > space.max_low_pfn:
            assert f"Initializing HighMem for node 0 ({space.max_low_pfn:08x}:{space.max_pfn:08x})" in log
    bits = 36 if space.levels == 3 else 32 if space.levels == 2 else space.phys_bits
    assert f"last_pfn = {end_of_ram(ram(run), bits):#x} max_arch_pfn = {1 << bits - 12:#x}" in log
    present = physical.count(physical.clip(ram(run), 0, space.max_pfn)) * 4
    assert any(re.match(rf"Memory: \d+K/{present}K available", line) for line in log)


def test_zones(booted: tuple[dict[str, Any], AddressSpace]) -> None:
    run, space = booted
    names = ("DMA", "Normal", "HighMem") if space.bits == 32 else ("DMA", "DMA32", "Normal")
    spans = physical.zone_spans(physical.clip(ram(run), 0, space.max_pfn), space.zone_limits, len(names))
    found = {}
    for part in run["files"]["zoneinfo"].split("Node 0, zone")[1:]:
        spanned, present = (int(re.search(rf"^ +{word} +(\d+)$", part, re.M)[1]) for word in ("spanned", "present"))  # type: ignore[index]
        if spanned:
            found[part.split()[0]] = (int(re.search(r"start_pfn: +(\d+)", part)[1]), spanned, present)  # type: ignore[index]
    assert found == {name: (span.start, span.end - span.start, span.present) for name, span in zip(names, spans, strict=True) if span.end}


def test_proc_kcore(booted: tuple[dict[str, Any], AddressSpace]) -> None:
    """Its program headers are the kernel's own list of what it has mapped."""
    run, space = booted
    ranges = [(start, start + size) for start, size, _ in run["kcore"]]
    assert (space.vmalloc_start, space.vmalloc_end) in ranges
    direct = [pair for pair in ranges if space.page_offset <= pair[0] < space.high_memory]
    if space.bits == 32:
        assert direct == [(space.page_offset, space.high_memory)]
    else:
        whole = [(space.page_offset + start * PAGE_SIZE, space.page_offset + end * PAGE_SIZE) for start, end in ram(run)]
        assert direct == whole
        assert any(start == space.vmemmap_start for start, _ in ranges)
        assert (space.modules_vaddr, space.modules_end) in ranges


def test_proc_vmallocinfo(booted: tuple[dict[str, Any], AddressSpace]) -> None:
    run, space = booted
    areas = [(int(start, 16), int(end, 16)) for start, end in re.findall(r"^0x([0-9a-f]+)-0x([0-9a-f]+) ", run["files"]["vmallocinfo"], re.M)]
    assert areas[0][0] == space.vmalloc_start
    for start, end in areas:
        names = {space.region(start).name, space.region(end - 1).name}
        assert names in ({"vmalloc"}, {"modules"}), f"{start:#x}"


def test_proc_iomem(booted: tuple[dict[str, Any], AddressSpace]) -> None:
    run, space = booted
    told = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) : System RAM$", run["files"]["iomem"], re.M)
    usable = [frames for frames in ram(run) if frames[0] < 1 << (space.phys_bits - 12)]
    assert [((int(start, 16) + PAGE_SIZE - 1) // PAGE_SIZE, (int(end, 16) + 1) // PAGE_SIZE) for start, end in told] == usable


def test_regions_have_no_gaps(booted: tuple[dict[str, Any], AddressSpace]) -> None:
    _, space = booted
    assert space.regions[0].start == 0
    assert space.regions[-1].end == space.top
    assert all(a.end == b.start for a, b in pairwise(space.regions))
    assert space.region(space.vmalloc_start).name == "vmalloc"
    assert space.region(space.vmalloc_limit - 1).name == "vmalloc"
    assert space.region(space.page_offset).name == "direct"
    assert space.region(space.fixaddr_start).name == "fixmap"
    with pytest.raises(ProfileError, match="is no address of"):
        space.region(space.top)


@pytest.mark.parametrize(
    ("name", "end_pfn", "fixmap", "pkmap", "vmalloc", "lowmem"),
    [  # boot logs of Ubuntu: 2.6.24-19 with 2 GiB and 512 MiB, 2.6.24 server with 480 MiB, 3.0.0-12 with 2 GiB, 2.6.35-22 with 960 and 256 MiB, 3.5.0-43 with 2 GiB
        ("linux-2.6.24-i386", 0x7F66D, 0xFFF4B000, (0xFF800000, 0xFFC00000), (0xF8800000, 0xFF7FE000), 0xF8000000),
        ("linux-2.6.24-i386", 0x1FEF0, 0xFFF4B000, (0xFF800000, 0xFFC00000), (0xE0800000, 0xFF7FE000), 0xDFEF0000),
        ("linux-2.6.24-i386-pae", 0x1DFF0, 0xFFF4C000, (0xFFC00000, 0xFFE00000), (0xDE800000, 0xFFBFE000), 0xDDFF0000),
        ("linux-3.6-i386", 0x7FEE0, 0xFFF16000, (0xFF800000, 0xFFC00000), (0xF7FFE000, 0xFF7FE000), 0xF77FE000),
        ("linux-3.6-i386", 0x3BF70, 0xFFF16000, (0xFF800000, 0xFFC00000), (0xF7FFE000, 0xFF7FE000), 0xF77FE000),
        ("linux-3.6-i386", 0x0FFF0, 0xFFF16000, (0xFF800000, 0xFFC00000), (0xD07F0000, 0xFF7FE000), 0xCFFF0000),
        ("linux-3.6-i386-pae", 0x7FFB0, 0xFFF15000, (0xFFC00000, 0xFFE00000), (0xF83FE000, 0xFFBFE000), 0xF7BFE000),
    ],
)  # fmt: skip
def test_older_kernels(name: str, end_pfn: int, fixmap: int, pkmap: tuple[int, int], vmalloc: tuple[int, int], lowmem: int) -> None:
    rules = layout.rules_for(name)
    if fixmap == 0xFFF15000:
        rules = replace(rules, fixed=rules.fixed + 1)  # a clock's slot that most did not have
    space = layout.i386_space(rules, end_pfn)
    assert (space.fixaddr_start, space.fixaddr_top) == (fixmap, 0xFFFFF000)
    assert (space.pkmap_base, space.pkmap_base + space.last_pkmap * PAGE_SIZE) == pkmap
    assert (space.vmalloc_start, space.vmalloc_end, space.high_memory) == (*vmalloc, lowmem)


def test_the_reserve_of_older_kernels() -> None:
    """2.6.24 takes ``vmalloc=`` as it is, and the hole comes out of it; 3.6 adds 8 MiB for the hole."""
    assert address_space("linux-2.6.24-i386", [(1, 1 << 18)], "vmalloc=256M").max_low_pfn << 12 == 768 * MIB
    later = address_space("linux-3.6-i386", [(1, 1 << 18)], "vmalloc=256M")
    assert (later.vmalloc_total, later.vmalloc_reserve) == (256 * MIB, 264 * MIB)


@given(st.integers(64 * MIB >> 12, 1 << 24), st.integers(16, 700), st.sampled_from(["linux-6.1-i386", "linux-6.1-i386-pae", "linux-3.6-i386"]))
def test_vmalloc_gets_what_is_asked_for(end_pfn: int, reserve: int, name: str) -> None:
    space = address_space(name, [(1, end_pfn)], f"vmalloc={reserve}M")
    assert space.high_memory <= space.vmalloc_start - 8 * MIB
    assert space.vmalloc_total >= reserve * MIB
    if space.max_pfn > space.max_low_pfn:
        assert space.vmalloc_total == reserve * MIB
    assert all(a.end == b.start for a, b in pairwise(space.regions))


def test_machines_that_do_not_boot() -> None:
    hung = [run for run in BOOTED if not run["probe"]]
    assert {run["cmdline"] for run in hung} == {"nokaslr vmalloc=1000M", "nokaslr vmalloc=0"}
    for run in hung:
        with pytest.raises(ProfileError, match="does not boot: low memory ends at"):
            predicted(run)
    with pytest.raises(ProfileError, match="does not boot"):
        address_space("linux-2.6.24-i386", [(1, 1 << 18)], "vmalloc=8M")
    with pytest.raises(ProfileError, match="leave out bases"):
        address_space("linux-6.1-i386", [(1, 1 << 18)], bases=Bases(0, 0, 0))
    good = address_space("linux-6.1", [(1, 1 << 18)])
    for bases in (Bases(good.vmalloc_start, good.page_offset, good.vmemmap_start), Bases(good.page_offset + 4096, good.vmalloc_start, good.vmemmap_start)):
        with pytest.raises(ProfileError, match="are none the kernel draws"):
            address_space("linux-6.1", [(1, 1 << 18)], bases=bases)


def test_memory_without_an_address_is_not_used() -> None:
    assert end_of_ram([(1, 0xBFFE0), (1 << 20, 0x140000)], 32) == 0xBFFE0
    assert end_of_ram([(1, 0xBFFE0), (1 << 20, 0x140000)], 36) == 0x140000
    assert end_of_ram([(1, 1 << 40)], 46) == 1 << 34
    assert end_of_ram([], 46) == 0


def test_the_command_line() -> None:
    assert words('a=1 b "c d"=2 e="f g" a=3 no-such') == {"a": "3", "b": "", "c d": "2", "e": "f g", "no_such": ""}
    for text, value in (("0x10", 16), ("010", 8), ("10k", 10240), ("1G", GIB), ("2t", 2 << 40), ("x", 0), ("", 0), ("5Mrest", 5 * MIB), ("08", 0), ("16E", 0)):
        assert memparse(text) == value, text


def test_names() -> None:
    assert layout.rules_for(get("linux-6.1")).name == layout.rules_for(" Linux-6.1-X86_64").name == "linux-6.1"
    with pytest.raises(ProfileError, match=r"no address space for 'linux-1\.0'; known: linux-6\.1, "):
        layout.rules_for("linux-1.0")
    names = [name for rules in layout.RULES for name in (rules.name, *rules.aliases)]
    assert len(names) == len(set(names))
