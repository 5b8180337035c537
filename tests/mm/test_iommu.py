"""I/O virtual addresses against those that a real kernel gave behind QEMU's Intel IOMMU, and their invariants."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtwin.dma.iommu import IommuDomain
from mmtwin.mm import iommu
from mmtwin.units import PAGE_SIZE
from tests.dma_fixture import Run, fields, runs

TRANSLATED = [run for run in runs() if "intel_iommu=on" in run.cmdline]


def domain_of(run: Run) -> IommuDomain:
    windows = [tuple(int(word, 16) for word in line.split()[1:]) for line in run.lines if line.startswith("window ")]
    return IommuDomain(int(run.words["cpus"]), strict="iommu.strict=1" in run.cmdline, windows=[(a, b) for a, b in windows])


@pytest.mark.parametrize("run", TRANSLATED, ids=lambda run: run.cmdline)
def test_addresses_are_the_kernels(run: Run) -> None:
    """Random mappings for masks of 28, 32 and 64 bits. Lazily, only the first round is judged: the timer that empties the queues came at unknown times in the others."""
    domain, live, limit, equal, wrong = domain_of(run), dict[int, int](), 0, 0, list[tuple[str, str]]()
    for line in run.lines:
        words = line.split()
        if words[0] == "iround":
            limit = (1 << int(fields(line)["bits"])) - 1
            if not domain.strict and "nowait" not in words:
                break
        elif words[0] == "imap":
            index, at, n = int(words[1]), int(words[2], 16), int(words[3])
            size = -(-(at + n) // PAGE_SIZE) * PAGE_SIZE
            dma = domain.alloc_iova(size, limit, 0) + at
            live[index] = size
            if dma == int(words[4], 16):
                equal += 1
            else:
                wrong.append((line, hex(dma)))
        elif words[0] == "iunmap":
            domain.free_iova(int(words[2], 16) & -PAGE_SIZE, live.pop(int(words[1])), 0, queued=not domain.strict)
    assert not wrong, (len(wrong), equal, wrong[:3])
    assert equal > (2300 if domain.strict else 1200)
    assert not live


def test_the_windows_are_kept_free() -> None:
    domain = domain_of(TRANSLATED[0])
    taken = domain.alloc_iova(1 << 20, 0xFFFFFFFF, 0)
    assert taken == 0xFFF00000
    assert domain.alloc_iova(1 << 24, 0xFFFFFFFF, 0) == 0xBF000000 - (0 if taken else 1)
    assert (0xFEE00000 >> 12, 0xFEEFFFFF >> 12) in iommu.ranges(domain.iova)


def test_a_full_space_is_emptied_of_caches_before_giving_up() -> None:
    """Freed single pages wait in magazines, so that a large range is found only after a flush of them."""
    d = iommu.new_iova(1, start_pfn=1, room=2048)
    limit = 1023
    taken = [int(iommu.alloc_iova_fast(d, 0, 1, limit, True)) for _ in range(1023)]
    assert sorted(taken) == list(range(1, 1024))
    assert int(iommu.alloc_iova_fast(d, 0, 1, limit, True)) == 0
    for pfn in taken:
        iommu.free_iova_fast(d, 0, pfn, 1)
    assert len(iommu.cached(d)) == 1023
    assert int(iommu.alloc_iova_fast(d, 0, 512, limit, False)) == 0
    assert int(iommu.alloc_iova_fast(d, 0, 512, limit, True)) == 512
    assert iommu.cached(d) == []


def test_more_magazines_than_the_depot_holds() -> None:
    """Two magazines of the CPU, 32 in the depot; what is beyond is really free."""
    d = iommu.new_iova(1, room=8192)
    taken = [int(iommu.alloc_iova_fast(d, 0, 1, (1 << 20) - 1, False)) for _ in range(127 * 40)]
    for pfn in taken:
        iommu.free_iova_fast(d, 0, pfn, 1)
    assert len(iommu.cached(d)) == 127 * 34
    assert len(iommu.ranges(d)) == 127 * 34
    again = [int(iommu.alloc_iova_fast(d, 0, 1, (1 << 20) - 1, False)) for _ in range(127 * 40)]
    assert len(set(again)) == len(again)


def test_the_table_grows() -> None:
    domain = IommuDomain(1)
    for _ in range(1000):
        assert domain.alloc_iova(PAGE_SIZE, 0xFFFFFFFF, 0)
    assert len(iommu.ranges(domain.iova)) == 1001


def test_reserved_ranges_are_joined() -> None:
    d = iommu.new_iova(1)
    iommu.reserve_iova(d, 10, 20)
    iommu.reserve_iova(d, 15, 30)
    iommu.reserve_iova(d, 5, 12)
    assert iommu.ranges(d) == [(5, 20), (21, 30)]
    iommu.reserve_iova(d, 6, 9)
    assert iommu.ranges(d) == [(5, 20), (21, 30)]


steps = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 70), st.sampled_from([100, 4095, (1 << 20) - 1, 1 << 24]), st.booleans()), max_size=80)


@settings(max_examples=60, deadline=None)
@given(steps, st.booleans())
def test_ranges_never_overlap_and_all_come_back(todo: list[tuple[int, int, int, bool]], lazily: bool) -> None:
    d = iommu.new_iova(2, room=512)
    live: dict[int, int] = {}
    for cpu, pages, limit, unmap in todo:
        if unmap and live:
            pfn = sorted(live)[pages % len(live)]
            (iommu.queue_iova if lazily else iommu.free_iova_fast)(d, cpu, pfn, live.pop(pfn))
        else:
            pfn = int(iommu.alloc_iova_fast(d, cpu, pages, limit, True))
            if pfn:
                assert pfn >= 1
                assert pfn + pages - 1 <= limit
                assert pfn % (1 << (pages - 1).bit_length()) == 0, "aligned to its size rounded up"
                assert all(pfn + pages <= other or other + length <= pfn for other, length in live.items())
                live[pfn] = pages
        found = iommu.ranges(d)
        assert all(a[1] < b[0] for a, b in itertools.pairwise(found))
    for pfn, pages in live.items():
        (iommu.queue_iova if lazily else iommu.free_iova_fast)(d, 0, pfn, pages)
    iommu.fq_flush_timeout(d, 0)
    assert sorted(lo for lo, _ in iommu.ranges(d)) == iommu.cached(d), "what is not in a magazine is free"
