"""Bounce buffers against a real kernel's slots, and their invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtwin.mm import swiotlb
from mmtwin.mm.swiotlb import ALL_ONES, IO_TLB_SHIFT, Swiotlb, SwiotlbSettings, new_swiotlb
from tests.dma_fixture import Run, fields, runs

BOUNCED = [run for run in runs() if any(line.startswith("round ") for line in run.lines)]
FILLED = next(run for run in runs() if any(line.startswith("full ") for line in run.lines))
MASK32 = 0xFFFFFFFF


def pool_of(run: Run) -> Swiotlb:
    """The guest's pool: the first mapping, on CPU 0, got the first slot."""
    found = next(fields(line) for line in run.lines if line.startswith("copies "))
    nslabs, nareas = SwiotlbSettings.from_cmdline(run.cmdline).size(int(run.words["cpus"]))
    return new_swiotlb(int(found["dma"], 16), nslabs, nareas, True)


@pytest.mark.parametrize("run", BOUNCED, ids=lambda run: f"{run.words['cpus']}cpu-{run.cmdline}")
def test_slots_are_the_kernels(run: Run) -> None:
    """Every mapping of the random sequences, with and without alignment masks and boundaries, on several CPUs: the kernel's slot."""
    pool = pool_of(run)
    align, boundary, equal, wrong = 0, MASK32, 0, []
    for line in run.lines:
        f = fields(line)
        if line.startswith("copies "):
            index = int(swiotlb.swiotlb_find_slots(pool, 0, 4196, 16, 0, 0, boundary))
            assert swiotlb.slot_addr(pool, index) == int(f["dma"], 16)
            swiotlb.swiotlb_release_slots(pool, int(f["dma"], 16), 0)
        if line.startswith("round "):
            align, boundary = int(f["align"], 16), int(f["boundary"], 16) or MASK32
        elif line.startswith("unmap "):
            swiotlb.swiotlb_release_slots(pool, int(f["dma"], 16), align)
        elif line.startswith("map "):
            phys, size = int(f["phys"], 16), int(f["size"])
            index = int(swiotlb.swiotlb_find_slots(pool, int(f["cpu"]), phys, size, 0, align, boundary))
            mine = None if index < 0 else swiotlb.slot_addr(pool, index) + (phys & align & 2047)
            if mine == (int(f["dma"], 16) if "dma" in f else None):
                equal += 1
            else:
                wrong.append((line, mine))
    assert not wrong, wrong[:3]
    assert equal > 1500
    assert not swiotlb.validate_swiotlb(pool)
    assert swiotlb.mem_used(pool) == 0


def test_the_pool_fills_as_the_kernels() -> None:
    taken = [int(fields(line)["dma"], 16) for line in FILLED.lines if line.startswith("full ") and "dma" in line]
    nslabs, nareas = SwiotlbSettings.from_cmdline(FILLED.cmdline).size(int(FILLED.words["cpus"]))
    assert len(taken) * 128 == nslabs
    pool = new_swiotlb(min(taken), nslabs, nareas, True)
    mine = [swiotlb.slot_addr(pool, int(swiotlb.swiotlb_find_slots(pool, 0, 4096, 1 << 18, 0, 0, MASK32))) for _ in taken]
    assert sorted(mine) == sorted(taken)
    assert int(swiotlb.swiotlb_find_slots(pool, 0, 4096, 1, 0, 0, MASK32)) == -1
    assert swiotlb.mem_used(pool) == nslabs


def test_the_command_line() -> None:
    assert SwiotlbSettings.from_cmdline("quiet") == SwiotlbSettings()
    assert SwiotlbSettings.from_cmdline("swiotlb=1000,force") == SwiotlbSettings(1024, 0, True)
    assert SwiotlbSettings.from_cmdline("swiotlb=2048,2,force") == SwiotlbSettings(2048, 2, True)
    assert SwiotlbSettings.from_cmdline("swiotlb=noforce") == SwiotlbSettings(disable=True)
    assert SwiotlbSettings.from_cmdline("swiotlb=,4,force") == SwiotlbSettings(nareas=4, force=True)
    assert SwiotlbSettings().size(3) == (32768, 4)
    assert SwiotlbSettings(128).size(3) == (512, 4)
    assert SwiotlbSettings(384).size(1) == (512, 1)


def test_the_largest_mapping() -> None:
    assert swiotlb.max_mapping_size(0) == 256 << 10
    assert swiotlb.max_mapping_size(0xFFF) == 0x3F000
    pool = new_swiotlb(1 << 20, 1024)
    assert int(swiotlb.swiotlb_find_slots(pool, 0, 4096, (256 << 10) + 1, 0, 0, ALL_ONES)) == -1
    assert int(swiotlb.swiotlb_find_slots(pool, 0, 4096, 256 << 10, 0, 0, ALL_ONES)) == 0


def test_a_search_that_never_ends() -> None:
    """Odd slots are wanted, the search began at an even one that is not slot 0, and all is taken: the recorded guest hung."""
    hung = next(run for run in runs() if any(line.startswith("hang ") for line in run.lines))
    assert hung.lines[-1] == "hang mapping"
    pool = new_swiotlb(0x1D000000, 512, 1, True)
    assert [int(swiotlb.swiotlb_find_slots(pool, 0, 0x5000000, 1 << 18, 0, 0xFFF, MASK32)) for _ in range(3)] == [0, 128, 256]
    assert int(swiotlb.swiotlb_find_slots(pool, 0, 0x5000000, 4096, 0, 0xFFF, MASK32)) == 384
    assert int(swiotlb.swiotlb_find_slots(pool, 0, 0x5000800, 126 << 11, 0, 0xFFF, MASK32)) == swiotlb.ENDLESS
    assert int(swiotlb.swiotlb_find_slots(pool, 0, 0x5000800, 2048, 0, 0xFFF, MASK32)) == 387


steps = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1 << 20), st.integers(1, 1 << 18), st.booleans()), max_size=60)


@settings(max_examples=60, deadline=None)
@given(steps, st.sampled_from([0, 0x1FF, 0xFFF, 0xFFFF]), st.sampled_from([ALL_ONES, MASK32, 0x3FFFF]))
def test_mappings_never_overlap_and_all_slots_come_back(todo: list[tuple[int, int, int, bool]], align: int, boundary: int) -> None:
    pool = new_swiotlb(0x12345000, 2048, 4)
    live: list[tuple[int, int]] = []
    for cpu, phys, size, unmap in todo:
        if unmap and live:
            address, _ = live.pop(phys % len(live))
            swiotlb.swiotlb_release_slots(pool, address, align)
        else:
            index = int(swiotlb.swiotlb_find_slots(pool, cpu, phys, size, 0, align, boundary))
            if index >= 0:
                address = swiotlb.slot_addr(pool, index) + (phys & align & 2047)
                if phys:
                    assert (address ^ phys) & align == 0, "the device's address bits are kept"
                assert swiotlb.is_swiotlb_buffer(pool, address)
                assert swiotlb.is_swiotlb_buffer(pool, address + size - 1)
                if boundary != ALL_ONES:
                    assert swiotlb.slot_addr(pool, index) // (boundary + 1) == (address + size - 1) // (boundary + 1)
                assert all(address + size <= other or other + length <= address for other, length in live)
                live.append((address, size))
        assert not swiotlb.validate_swiotlb(pool)
    for address, _ in live:
        swiotlb.swiotlb_release_slots(pool, address, align)
    assert swiotlb.mem_used(pool) == 0
    assert not swiotlb.validate_swiotlb(pool)
    assert (pool.slot["list"] == 128 - np.arange(2048) % 128).all()


def test_a_second_unmap_changes_nothing() -> None:
    pool = new_swiotlb(0, 1024)
    assert IO_TLB_SHIFT == 11
    first = int(swiotlb.swiotlb_find_slots(pool, 0, 4096, 3000, 0, 0, ALL_ONES))
    second = int(swiotlb.swiotlb_find_slots(pool, 0, 4096, 3000, 0, 0, ALL_ONES))
    assert (first, second) == (0, 2)
    assert int(swiotlb.swiotlb_release_slots(pool, swiotlb.slot_addr(pool, first), 0)) == 2
    before = pool.slot.copy()
    assert int(swiotlb.swiotlb_release_slots(pool, swiotlb.slot_addr(pool, first), 0)) == 0
    assert (pool.slot == before).all()
    assert swiotlb.mem_used(pool) == 2
