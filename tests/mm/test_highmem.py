"""kmap and kmap_local_page: which place a page gets, and when unused ones are flushed (mm/highmem.c)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for plain `pytest`, which does not put the directory there

from mmtwin.errors import KmapError
from mmtwin.mm.highmem import copy_highmem, kmap_high, kunmap_high, mapped_high, page_address_high
from mmtwin.mm.pgtable_tables import counters
from tests.mmu_box import Box

PAGE = 4096


@pytest.fixture(params=["i386", "i386-pae"])
def box(request: pytest.FixtureRequest) -> Box:
    """A machine with high memory."""
    return Box(request.param, ram="1GiB", cpus=2)


def test_places_are_taken_upwards_and_flushed_when_they_wrap(box: Box) -> None:
    """The search starts behind the last place, 1 at first; past the end all unused mappings go, with one flush of everything."""
    space, first = box.space, box.space.max_low_pfn
    last = space.last_pkmap
    assert last == (512 if space.levels == 3 else 1024)
    seen = []
    for n in range(last - 1):
        seen.append((box.kmap(first + n) - space.pkmap_base) // PAGE)
        if n % 2:
            box.kunmap(first + n)
    assert seen == list(range(1, last))
    assert mapped_high(box.mmu, box.highmem) == last - 1
    before = counters(box.mmu)
    assert box.kmap(first + 3) == space.pkmap_base + 4 * PAGE  # still mapped: no new place
    box.kunmap(first + 3)
    assert counters(box.mmu) == before
    assert box.kmap(first + last) == space.pkmap_base  # place 0: the search wrapped
    after = counters(box.mmu)
    unused = (last - 1) // 2
    assert after["tlb_flushes"] - before["tlb_flushes"] == 1
    assert after["pte_writes"] - before["pte_writes"] == unused + 1
    assert int(box.highmem.config[0]["flushes"]) == 1
    assert box.page_address(first + 3) == 0
    assert box.kmap(first + 3) == space.pkmap_base + 2 * PAGE  # the first that was unused


def test_all_in_use(box: Box) -> None:
    first, last = box.space.max_low_pfn, box.space.last_pkmap
    for n in range(last):
        box.kmap(first + n)
    with pytest.raises(KmapError, match=f"all {last} places are in use"):
        box.kmap(first + last)
    box.kunmap(first + 77)
    assert box.kmap(first + last) == box.space.pkmap_base + 78 * PAGE


def test_local_slots_are_a_stack_per_cpu(box: Box) -> None:
    first, top = box.space.max_low_pfn, box.space.fixaddr_top
    found = [box.kmap_local_page(first + n) for n in range(16)]
    assert found == [top - (68 + n) * PAGE for n in range(16)]
    with pytest.raises(KmapError, match="no slot left"):
        box.kmap_local_page(first + 16)
    assert box.kmap_local_page(first, cpu=1) == top - (68 + 16) * PAGE
    with pytest.raises(KmapError, match="reverse order"):
        box.kunmap_local(found[3])
    before = counters(box.mmu)
    for address in reversed(found):
        box.kunmap_local(address + 5)
    after = counters(box.mmu)
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {"pte_writes": 16, "invlpg": 16}
    with pytest.raises(KmapError):
        box.kunmap_local(found[0])


def test_compiled_functions_and_copies(box: Box) -> None:
    pfn = box.space.max_low_pfn + 1
    other = copy_highmem(box.highmem)
    assert kmap_high(box.state, box.mmu, box.highmem, 0, pfn) == box.space.pkmap_base + PAGE
    assert page_address_high(box.highmem, pfn) == box.space.pkmap_base + PAGE
    assert page_address_high(other, pfn) == 0
    assert kunmap_high(box.highmem, pfn) == 0
    assert kunmap_high(box.highmem, pfn) == -22
    assert kunmap_high(box.highmem, pfn + 1) == -22


def test_none_on_64_bits() -> None:
    box = Box()
    assert len(box.highmem.pkmap) == len(box.highmem.slot) == 0
    assert box.kmap(0x500) == box.PAGE_OFFSET + 0x500000
