"""The boot's page tables, and those of a memory dump."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for plain `pytest`, which does not put the directory there

import mmtwin
from mmtwin.mm import pgtable
from mmtwin.mm.init_mm import boot_frames, direct_map_bytes, mapped_bytes, new_mmu, restore_page_tables
from mmtwin.mm.pgtable_tables import counters, signed
from mmtwin.mm.tables import PG_ALLOCATED, PG_TABLE
from mmtwin.mm.validate_pgtable import validate_pgtable
from mmtwin.profiles import physical
from mmtwin.profiles.layout import address_space
from mmtwin.recording import store
from mmtwin.recording.load import machine
from tests.mmu_box import KINDS, Box

GIB = 1 << 30
RECORDINGS = Path(__file__).resolve().parents[1] / "recordings"


def test_direct_map_takes_the_largest_entries() -> None:
    """4 GiB, of which QEMU puts 1 above the hole: the second GiB and the one above get 1 GiB entries; the first has a hole, the third ends 128 KiB early."""
    ram = physical.ram_frames(physical.qemu_pc_memory_map(4 * GIB))
    space = address_space("linux-6.1", ram)
    m = new_mmu(space, ram, 1)
    mapped = direct_map_bytes(m, space)
    assert mapped[3] == 2 * GIB
    assert sum(mapped.values()) == sum(end - start for start, end in ram) * 4096 + (256 - 158) * 4096  # the first MiB with its hole
    none = new_mmu(space, ram, 1, gbpages=False)
    assert 3 not in direct_map_bytes(none, space)
    assert sum(direct_map_bytes(none, space).values()) == sum(mapped.values())


def test_a_large_machine_costs_little() -> None:
    ram = [(1, 159), (256, 1 << 28)]
    space = address_space("linux-6.1", ram)
    m = new_mmu(space, ram, 1)
    assert int(m.config[0]["tables"]) < 90
    assert direct_map_bytes(m, space)[3] == 1023 * GIB


def test_tables_of_the_vmalloc_range_exist() -> None:
    """preallocate_vmalloc_pages: 64 PUD pages with 4 levels, 50 P4D pages with 5; nothing below them."""
    for kind, level, count in (("4-level", 3, 64), ("5-level", 4, 50)):
        box = Box(kind)
        space, tables = box.space, set()
        for address in range(space.vmalloc_start, space.vmalloc_limit, 1 << 39):
            entry, at, row, _ = pgtable.walk_from(box.mmu, int(box.mmu.config[0]["root"]), signed(address))
            assert (entry, at) == (0, level)
            tables.add(row)
        assert len(tables) == count
        assert pgtable.walk(box.mmu, signed(space.modules_end - 4096)) == (0, 2)  # modules: level2_fixmap_pgt


def test_kernel_image_has_its_own_mapping() -> None:
    box = Box(ram="128MiB")
    start = box.profile.image.kept[0][0] << 12
    assert pgtable.vmalloc_to_pfn(box.mmu, signed(box.space.kernel_map + start)) == start >> 12
    assert mapped_bytes(box.mmu)[2] > direct_map_bytes(box.mmu, box.space)[2]


def test_frames_of_the_tables() -> None:
    m = mmtwin.boot(ram="128MiB", cpus=1)
    frames = [int(pfn) for pfn in m.mmu.table["pfn"][: int(m.mmu.config[0]["tables"])]]
    assert len(set(frames)) == len(frames)
    assert all(any(start <= pfn < end for start, end in m.reserved) for pfn in frames)
    assert frames[0] == next(boot_frames(m.reserved))
    assert all(int(m.state.page[pfn]["flags"]) == PG_TABLE for pfn in frames)
    assert set(counters(m.mmu).values()) == {0}
    m.validate()
    bare = mmtwin.boot(ram="128MiB", cpus=1, reserved=())
    assert min(bare.mmu.table["pfn"][: int(bare.mmu.config[0]["tables"])]) >= bare.ram[-1][1]  # nothing is kept from the allocator: numbers behind memory
    bare.validate()


@pytest.mark.parametrize("kind", KINDS)
def test_boot_tables_are_valid(kind: str) -> None:
    box = Box(kind, cmdline="highmem=0" if kind.startswith("i386") else "")
    validate_pgtable(box.mmu, box.state)
    space = box.space
    if space.bits == 32:
        assert pgtable.walk(box.mmu, space.pkmap_base) == (0, 1)
        assert pgtable.walk(box.mmu, space.fixaddr_top - 4096) == (0, 1)
        assert pgtable.walk(box.mmu, space.page_offset + 0x123000)[1] == 1  # the first PMD is mapped with small pages
        assert pgtable.walk(box.mmu, space.page_offset + 0x800000)[1] == 2


def test_restored_tables_have_the_dumps_frames() -> None:
    box = Box(cpus=1)
    space, top = box.space, 4
    kept = list(boot_frames(box.reserved))
    pgd, pud, modules_pud, modules_pmd = kept[200:204]
    pmd, pte = box.frame(), box.frame()
    index = pgtable.table_index(box.mmu, signed(space.vmalloc_start), top)
    rows = [
        (4, pgd, index, pud << 12 | 0x67), (3, pud, 0, pmd << 12 | 0x67), (2, pmd, 0, pte << 12 | 0x67), (2, pmd, 9, 0x80000000400001E3 - (1 << 64)),
        (4, pgd, 511, modules_pud << 12 | 0x67), (3, modules_pud, 511, modules_pmd << 12 | 0x67), (2, pmd, 10, 0),
    ]  # fmt: skip
    box.mmu = restore_page_tables(box.state, box.mmu, rows, box.reserved)
    found = [(level, int(box.mmu.table[row]["pfn"])) for level, row in _path(box, space.vmalloc_start)]
    assert found == [(4, pgd), (3, pud), (2, pmd), (1, pte)]
    assert pgtable.vmalloc_to_pfn(box.mmu, signed(space.vmalloc_start) + 9 * (2 << 20)) == 0x40000
    assert [int(box.state.page[pfn]["flags"]) for pfn in (pud, pmd, pte)] == [PG_TABLE, PG_ALLOCATED | PG_TABLE, PG_ALLOCATED | PG_TABLE]
    before = counters(box.mmu)["table_pages"]
    box.map(space.vmalloc_start + 4096, 7)
    assert counters(box.mmu)["table_pages"] == before  # the table was there
    box.map(space.modules_end - (512 << 20), 8)
    assert [int(box.mmu.table[row]["pfn"]) for _, row in _path(box, space.modules_end - (512 << 20))][:3] == [pgd, modules_pud, modules_pmd]
    assert pgtable.vmalloc_to_pfn(box.mmu, signed(space.page_offset) + 0x300000) == 0x300  # the direct map is the model's
    validate_pgtable(box.mmu, box.state)


def _path(box: Box, address: int) -> list[tuple[int, int]]:
    """Level and row of the tables on the way to an address."""
    row, found = int(box.mmu.config[0]["root"]), []
    for level in range(int(box.mmu.config[0]["levels"]), 0, -1):
        found.append((level, row))
        row = int(box.mmu.child[row, pgtable.table_index(box.mmu, signed(address), level)])
    return found


@pytest.mark.parametrize("name", ["areas-256m-1cpu", "areas-256m-4cpu"])
def test_tables_of_real_dumps(name: str) -> None:
    """Every page of every busy area has its PTE table, at the frame that the kernel's own entries name."""
    recording = store.load(RECORDINGS / f"{name}.mmrec")
    for which, snapshot in (("before", recording.before), ("after", recording.after)):
        assert snapshot is not None and snapshot.vmaps is not None
        m = machine(recording, which)
        rows = list(snapshot.vmaps["page_tables"].select("level", "pfn", "index", "value").iter_rows())
        m.mmu = restore_page_tables(m.state, m.mmu, rows, m.reserved)
        m.validate()
        named = {(value & (1 << 52) - 4096) >> 12 for level, _, _, value in rows if level == 2 and value & 0x81 == 1}
        found = {int(row["pfn"]) for row in m.mmu.table[: int(m.mmu.config[0]["tables"])] if row["level"] == 1 and not row["boot"]}
        assert named <= found
        areas = snapshot.vmaps["areas"].filter(snapshot.vmaps["areas"]["tree"] == "busy")
        for start, end in areas.select("va_start", "va_end").iter_rows():
            assert all(pgtable.walk(m.mmu, at)[1] == 1 for at in range(start, end - 4096, 4096))
        before = counters(m.mmu)["table_pages"]
        start, end = areas.select("va_start", "va_end").row(0)
        assert pgtable.map_page(m.state, m.mmu, 0, start, 5, signed(0x8000000000000163)) == 0
        assert counters(m.mmu)["table_pages"] == before
