"""TLBs: which entry gives way, what a flush drops, and when page by page becomes everything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for plain `pytest`, which does not put the directory there

from mmtwin.mm import tlb
from mmtwin.mm.mmu import READ, translate
from mmtwin.mm.pgtable_tables import TLB_ROWS, Mmu, counters, empty_mmu, signed
from tests.mmu_box import Box


def hits(m: Mmu) -> tuple[int, int, int]:
    """Hits of both levels, and misses."""
    found = counters(m)
    return found["tlb_hits"], found["tlb_hits_l2"], found["tlb_misses"]


def test_capacity() -> None:
    """64 pages fit into the first level, 1536 into the second, one behind the other; the least recently used gives way."""
    box = Box()
    start = signed(box.space.vmalloc_start)
    for n in range(1537):
        box.map(box.space.vmalloc_start + n * 4096, n + 1)
    for _ in range(2):
        for n in range(64):
            translate(box.mmu, 0, start + n * 4096, READ)
    assert hits(box.mmu) == (64, 0, 64)
    translate(box.mmu, 0, start + 64 * 4096, READ)  # drives page 0 out of the first level, not out of the second
    translate(box.mmu, 0, start, READ)
    assert hits(box.mmu) == (64, 1, 65)
    translate(box.mmu, 0, start, READ)
    assert hits(box.mmu) == (65, 1, 65)
    tlb.flush_tlb_local(box.mmu, 0, False)
    before = hits(box.mmu)
    for _ in range(2):
        for n in range(1536):
            translate(box.mmu, 0, start + n * 4096, READ)
    assert hits(box.mmu)[2] - before[2] == 1536
    translate(box.mmu, 0, start + 1536 * 4096, READ)
    assert hits(box.mmu)[2] - before[2] == 1537
    translate(box.mmu, 0, start + 1535 * 4096, READ)
    assert hits(box.mmu)[2] - before[2] == 1537
    translate(box.mmu, 0, start, READ)  # the one that gave way
    assert hits(box.mmu)[2] - before[2] == 1538


def test_huge_pages_have_their_own_part() -> None:
    box = Box(ram="512MiB")
    offset = signed(box.space.page_offset)
    for _ in range(2):
        for n in range(32):
            translate(box.mmu, 0, offset + (n + 2 << 21) + n, READ)
    assert hits(box.mmu) == (32, 0, 32)


@pytest.mark.parametrize(("pages", "flushes", "invlpg"), [(1, 0, 2), (33, 0, 66), (34, 1, 0)])
def test_ceiling(pages: int, flushes: int, invlpg: int) -> None:
    """tlb_single_page_flush_ceiling: up to 33 pages each is flushed on each CPU, more flush everything."""
    box = Box(cpus=2)
    start = signed(box.space.vmalloc_start)
    tlb.flush_tlb_kernel_range(box.mmu, start, start + pages * 4096)
    found = counters(box.mmu)
    assert (found["tlb_flushes"], found["invlpg"], found["tlb_range_flushes"]) == (flushes, invlpg, 1 - flushes)


def test_a_full_flush_drops_global_translations_too() -> None:
    box = Box()
    address = box.space.vmalloc_start
    box.map(address, 3)
    for cpu in range(2):
        translate(box.mmu, cpu, signed(address), READ)
    root = box.process()
    box.switch(root)
    box.unmap(address, address + 4096)
    assert translate(box.mmu, 0, signed(address), READ) == 3 << 12  # global: it survived the change of CR3
    tlb.flush_tlb_all(box.mmu)
    assert [translate(box.mmu, cpu, signed(address), READ) for cpu in range(2)] == [-1, -1]
    assert [int(n) for n in box.mmu.cpu["flushes"]] == [1, 1]


def test_biased_addresses_are_the_same_pages() -> None:
    m = empty_mmu(4, 1)
    for address in (0xFFFFC90000201000, 0xFFFF888000000000, 0x400000):
        for level in (1, 2, 3):
            assert tlb.page_number(m, signed(address), level) == tlb.page_number(m, address - (1 << 63), level)
    assert len(m.tlb) == TLB_ROWS == 64 + 32 + 4 + 1536 + 16
