"""Page tables of all kinds, and how many entries each request writes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for plain `pytest`, which does not put the directory there

import mmtwin
from mmtwin.mm import pgtable
from mmtwin.mm.page_alloc import EBUSY
from mmtwin.mm.pgtable_tables import (
    NO_ROOM,
    PAGE_KERNEL,
    PAGE_KERNEL_EXEC,
    PAGE_KERNEL_NOCACHE,
    PAGE_KERNEL_RO,
    PAGE_NX,
    copy_mmu,
    counters,
    empty_mmu,
    has_room,
    reserve_tables,
    signed,
    table_frames,
)
from mmtwin.mm.tables import PG_TABLE
from mmtwin.mm.validate_pgtable import validate_pgtable
from tests.mmu_box import KINDS, Box

MIB = 1 << 20


def written(box: Box, before: dict[str, int]) -> dict[str, int]:
    """Counters that have changed."""
    return {name: value - before[name] for name, value in counters(box.mmu).items() if value != before[name]}


def test_entries_are_the_processors() -> None:
    assert PAGE_KERNEL & (1 << 64) - 1 == 0x8000000000000163
    assert PAGE_KERNEL_RO & (1 << 64) - 1 == 0x8000000000000161
    assert PAGE_KERNEL_NOCACHE & (1 << 64) - 1 == 0x8000000000000173
    assert PAGE_KERNEL_EXEC == 0x163
    m = empty_mmu(4, 1)
    assert pgtable.leaf_entry(m, 0x1234, PAGE_KERNEL, 1) == signed(0x8000000001234163)
    assert pgtable.leaf_entry(m, 0x1200, PAGE_KERNEL, 2) == signed(0x80000000012001E3)  # with PSE
    assert pgtable.leaf_entry(m, 0x1200, PAGE_KERNEL | 0x80, 2) == signed(0x80000000012011E3)  # PAT moves to bit 12
    two = empty_mmu(2, 1)
    assert pgtable.leaf_entry(two, 0x1234, PAGE_KERNEL, 1) == 0x1234163  # no NX
    assert pgtable.entry_pfn(signed(0x80000000012011E3), 2) == 0x1200


@pytest.mark.parametrize(
    ("levels", "address", "indices"),
    [
        (4, 0xFFFFC90000201000, {4: 402, 3: 0, 2: 1, 1: 1}),
        (5, 0xFFA0000000201000, {5: 416, 4: 0, 3: 0, 2: 1, 1: 1}),
        (2, 0xE07F0000, {2: 897, 1: 1008}),
        (3, 0xE07F0000, {3: 3, 2: 259, 1: 496}),
    ],
)
def test_indices(levels: int, address: int, indices: dict[int, int]) -> None:
    m = empty_mmu(levels, 1)
    for shown in (signed(address), address - (1 << 63)):  # two's complement, and biased as the tables of virtual areas have it
        assert {level: pgtable.table_index(m, shown, level) for level in indices} == indices


def test_kmalloc_writes_no_page_table() -> None:
    m = mmtwin.boot(ram="512MiB", cpus=2)
    before = m.mmu_counters()
    objects = [m.kmalloc(size, cpu=size & 1) for size in (8, 28, 100, 4096, 8192, 1 << 20) for _ in range(200)]
    for p in objects:
        m.kfree(p)
    cache = m.kmem_cache_create("mine", 300)
    m.kmem_cache_free(cache, m.kmem_cache_alloc(cache))
    assert m.mmu_counters() == before
    m.validate()


@pytest.mark.parametrize(("kind", "tables"), [("4-level", 2), ("5-level", 3), ("i386", 1), ("i386-pae", 1)])
def test_writes_of_a_mapping(kind: str, tables: int) -> None:
    """n PTEs and one entry for each new table; a second mapping beside it needs no table; unmapping writes n, and one more for a guard page."""
    box = Box(kind)
    start = (box.space.vmalloc_start + 4 * MIB) & -4 * MIB
    before, free = counters(box.mmu), box.machine.free
    for n in range(5):
        box.map(start + n * 4096, 100 + n)
    assert written(box, before) == {
        "pte_writes": 5, "table_writes": tables, "table_pages": tables, **({"sync_calls": 1} if kind == "i386" else {})
    }  # fmt: skip
    assert box.machine.free <= free - tables
    before = counters(box.mmu)
    box.map(start + 6 * 4096, 200)
    assert written(box, before) == {"pte_writes": 1}
    before = counters(box.mmu)
    assert box.unmap(start, start + 6 * 4096) == 5
    assert written(box, before) == {"pte_writes": 6}  # the guard page's PTE is exchanged with 0 as well
    assert len(table_frames(box.state, box.mmu)) == tables
    for pfn in table_frames(box.state, box.mmu):
        assert int(box.state.page[pfn]["flags"]) & PG_TABLE
    before = counters(box.mmu)
    box.map(start, 100)
    assert written(box, before) == {"pte_writes": 1}  # tables are never given back
    validate_pgtable(box.mmu, box.state)


def test_tables_are_allocated_top_down_region_by_region() -> None:
    """One page after the other, as the per-CPU list gives them: PMD page, PTE page, PTE page."""
    box, other = Box(cpus=1), Box(cpus=1)
    start = box.space.vmalloc_start
    box.mmu = reserve_tables(box.mmu, 1024)
    pfns = np.arange(1024, dtype=np.int64)
    assert pgtable.map_pages(box.state, box.mmu, 0, signed(start), pfns, PAGE_KERNEL) == 0
    rows = range(int(other.mmu.config[0]["tables"]), int(box.mmu.config[0]["tables"]))
    assert [int(box.mmu.table[row]["level"]) for row in rows] == [2, 1, 1]
    assert [int(box.mmu.table[row]["pfn"]) for row in rows] == [other.machine.alloc_pages(0, 0xDC0) for _ in rows]
    assert counters(box.mmu)["pte_writes"] == 1024


def test_gfp_scope() -> None:
    """Under memalloc_noio_save the tables' requests lose __GFP_IO and __GFP_FS; a machine without memory says so."""
    box = Box(ram="64MiB", cpus=1)
    box.mmu.config[0]["gfp"] = 0xD00
    try:
        while True:
            box.machine.alloc_pages(0, 0xCC0)
    except mmtwin.AllocationFailure:
        pass
    before = counters(box.mmu)
    error = pgtable.map_page(box.state, box.mmu, 0, signed(box.space.vmalloc_start), 1, PAGE_KERNEL)
    assert error == -11
    assert written(box, before) == {}


def test_mapped_twice() -> None:
    box = Box()
    start = signed(box.space.vmalloc_start)
    assert pgtable.map_page(box.state, box.mmu, 0, start, 1, PAGE_KERNEL) == 0
    assert pgtable.map_page(box.state, box.mmu, 0, start, 1, PAGE_KERNEL) == -EBUSY
    assert pgtable.map_pages(box.state, box.mmu, 0, start - 0, np.array([5, 6]), PAGE_KERNEL) == -EBUSY
    direct = signed(box.space.page_offset) + 32 * MIB
    assert pgtable.map_page(box.state, box.mmu, 0, direct, 1, PAGE_KERNEL) == -EBUSY  # a huge entry is in the way
    assert pgtable.map_range(box.state, box.mmu, 0, start, start + 4096, 0, PAGE_KERNEL, 1) == -EBUSY


def test_no_room() -> None:
    box = Box()
    m = box.mmu._replace(table=box.mmu.table[: int(box.mmu.config[0]["tables"])])
    assert not has_room(m, 1)
    assert pgtable.map_page(box.state, m, 0, signed(box.space.vmalloc_start), 1, PAGE_KERNEL) == NO_ROOM
    larger = reserve_tables(m._replace(entry=m.entry[: len(m.table)], child=m.child[: len(m.table)]), 1 << 18)
    assert has_room(larger, 1 << 18)
    assert reserve_tables(larger, 1) is larger
    assert pgtable.map_page(box.state, larger, 0, signed(box.space.vmalloc_start), 1, PAGE_KERNEL) == 0
    validate_pgtable(larger, box.state)


@pytest.mark.parametrize("kind", KINDS)
def test_huge_mappings(kind: str) -> None:
    """ioremap of a large aligned range: the largest entries that fit, small ones at the ends."""
    box = Box(kind)
    levels = int(box.mmu.config[0]["levels"])
    size = 4 * MIB if levels == 2 else 2 * MIB
    start = (box.space.vmalloc_start + 2 * size) & -size
    box.mmu = reserve_tables(box.mmu, 4096)
    before = counters(box.mmu)
    first = signed(start) - 8192
    assert pgtable.map_range(box.state, box.mmu, 0, first, signed(start) + 2 * size + 4096, 0x40000000 - 8192, PAGE_KERNEL, 3) == 0
    assert written(box, before)["pte_writes"] == 2 + 2 + 1
    entry, level = pgtable.walk(box.mmu, signed(start) + 12345)
    assert level == 2
    assert entry & (1 << 64) - 1 == 0x40000000 | 0x1E3 | (1 << 63 if levels > 2 else 0)
    assert pgtable.vmalloc_to_pfn(box.mmu, signed(start) + size + 0x5000) == (0x40000000 + size + 0x5000) >> 12
    assert pgtable.vmalloc_to_pfn(box.mmu, first) == 0x40000 - 2
    before = counters(box.mmu)
    assert pgtable.unmap_range(box.mmu, first, signed(start) + 2 * size + 4096) == 5
    assert written(box, before)["pte_writes"] == 5
    assert pgtable.vmalloc_to_pfn(box.mmu, signed(start)) == -1
    validate_pgtable(box.mmu, box.state)


def test_gigantic_mapping() -> None:
    box = Box()
    start = box.space.vmalloc_start + (1 << 30)
    assert pgtable.map_range(box.state, box.mmu, 0, signed(start), signed(start) + (1 << 30), 1 << 32, PAGE_KERNEL, 3) == 0
    entry, level = pgtable.walk(box.mmu, signed(start))
    assert (level, entry & (1 << 64) - 1) == (3, 0x80000001000001E3)
    assert counters(box.mmu)["table_pages"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_huge_entry_over_an_empty_table(kind: str) -> None:
    """``pmd_free_pte_page``: on 64 bits the table goes, after its address was flushed; on 32 bits it stays and small pages are used."""
    box = Box(kind)
    levels = int(box.mmu.config[0]["levels"])
    size = 4 * MIB if levels == 2 else 2 * MIB
    start = (box.space.vmalloc_start + size) & -size
    box.map(start, 7)
    box.unmap(start, start + 4096)
    box.mmu = reserve_tables(box.mmu, 2048)
    before, free = counters(box.mmu), box.machine.free
    assert pgtable.map_range(box.state, box.mmu, 0, signed(start), signed(start) + size, 0x40000000, PAGE_KERNEL, 2) == 0
    if levels > 3:
        assert written(box, before) == {"pte_writes": 1, "table_writes": 1, "table_frees": 1, "tlb_range_flushes": 1, "invlpg": 2}
        box.map(start + size, 9)  # the freed row is used again, and is empty
        assert pgtable.walk(box.mmu, signed(start + size) + 4096) == (0, 1)
    else:
        assert written(box, before) == {"pte_writes": size // 4096}
        assert box.machine.free == free
    validate_pgtable(box.mmu, box.state)


def test_processes_share_the_kernels_half() -> None:
    """On i386 a new PGD entry is copied into each PGD (``arch_sync_kernel_mappings``); on x86-64 and with PAE they have it from the start."""
    for kind, writes in (("i386", 2), ("i386-pae", 0), ("4-level", 0), ("5-level", 0)):
        box = Box(kind)
        first, second = box.process(), box.process()
        before = counters(box.mmu)
        start = box.space.vmalloc_start + (8 * MIB if box.space.bits == 32 else 1 << 40)
        box.map(start, 5)
        assert written(box, before).get("sync_writes", 0) == writes, kind
        for root in (first, second):
            assert pgtable.walk_from(box.mmu, root, signed(start))[0] == pgtable.walk(box.mmu, signed(start))[0] != 0
        box.map(0x400000, 6, 0x67, first)
        assert pgtable.walk_from(box.mmu, second, 0x400000)[0] == 0
        assert pgtable.walk(box.mmu, 0x400000)[0] == 0
        validate_pgtable(box.mmu, box.state)


def test_copies_are_independent() -> None:
    box = Box()
    other = copy_mmu(box.mmu)
    box.map(box.space.vmalloc_start, 5)
    assert pgtable.walk(other, signed(box.space.vmalloc_start))[0] == 0
    assert int(other.config[0]["tables"]) < int(box.mmu.config[0]["tables"])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(KINDS)), st.lists(st.tuples(st.booleans(), st.integers(0, 3000), st.integers(1, 600)), max_size=12))
def test_tables_are_a_dictionary(kind: str, steps: list[tuple[bool, int, int]]) -> None:
    """Mapping and unmapping anywhere: the tables hold what a dictionary holds."""
    box = Box(kind, ram="64MiB", cpus=1)
    start, plain = signed(box.space.vmalloc_start), dict[int, int]()
    box.mmu = reserve_tables(box.mmu, 1 << 16)
    for is_map, first, n in steps:
        at = start + first * 4096
        if is_map:
            for page in range(first, first + n):
                error = pgtable.map_page(box.state, box.mmu, 0, start + page * 4096, page & 0xFFF, PAGE_KERNEL & ~PAGE_NX)
                assert error == (-EBUSY if page in plain else 0)
                plain.setdefault(page, page & 0xFFF)
        else:
            assert pgtable.unmap_range(box.mmu, at, at + n * 4096) == sum(page in plain for page in range(first, first + n))
            for page in range(first, first + n):
                plain.pop(page, None)
    for page in range(0, 3600, 7):
        assert pgtable.vmalloc_to_pfn(box.mmu, start + page * 4096) == plain.get(page, -1)
    validate_pgtable(box.mmu, box.state)
