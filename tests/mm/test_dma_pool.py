"""DMA pools against a real kernel's blocks, and their invariants."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtwin.mm import dma_pool
from mmtwin.mm.dma_pool import ALREADY_FREE, BAD_DMA, BAD_VADDR, NO_PAGE, DmaPool, new_pool, pool_geometry
from tests.dma_fixture import fields, runs

BASE = 1 << 32
"""Where page k of a pool is put here: pages lie 1 MiB apart."""


def take(pool: DmaPool, known: int) -> tuple[DmaPool, int, int]:
    """A block: the pool, the page's number in the order in which pages came, and the offset."""
    row = int(dma_pool.pool_find_free(pool))
    if row == NO_PAGE:
        pool = dma_pool.grown(pool)
        row = int(dma_pool.pool_add_page(pool, known << 20, BASE + (known << 20), 0))
    return pool, row, int(dma_pool.pool_take(pool, row))


def recorded() -> list[tuple[str, list[str]]]:
    """Pools of the recording with their allocations and frees."""
    found: list[tuple[str, list[str]]] = []
    for run in runs():
        for line in run.lines:
            if line.startswith("pool "):
                found.append((line, []))
            elif line.startswith(("a ", "f ")):
                found[-1][1].append(line)
    return found


@pytest.mark.parametrize(("head", "lines"), recorded(), ids=lambda value: value if isinstance(value, str) else "")
def test_blocks_are_the_kernels(head: str, lines: list[str]) -> None:
    """Every block of the random sequences: the kernel's page and offset; and the kernel refuses the same shapes."""
    f = fields(head)
    geometry = pool_geometry(int(f["size"]), int(f["align"]), int(f["boundary"]))
    assert (geometry is None) == head.endswith(" null")
    if geometry is None:
        return
    pool, live, wrong = new_pool(geometry), dict[str, tuple[int, int]](), list[tuple[str, int, int]]()
    for line in lines:
        words = line.split()
        if words[0] == "f":
            row, offset = live.pop(words[1])
            assert int(dma_pool.pool_free(pool, (row << 20) + offset, BASE + (row << 20) + offset, True)) == 0
            continue
        pool, row, offset = take(pool, int(pool.config[0]["pages"]))
        live[words[1]] = row, offset
        if (row, offset) != (int(words[2]), int(words[3], 16)):
            wrong.append((line, row, offset))
    assert not wrong, wrong[:3]
    assert len(lines) == 300


def test_the_kernels_geometry() -> None:
    assert pool_geometry(1, 0, 0) == (4, 4096, 4096)
    assert pool_geometry(100, 32, 0) == (128, 4096, 4096)
    assert pool_geometry(6000, 16, 8192) == (6000, 6000, 8192)
    assert pool_geometry(64, 3, 0) is None
    assert pool_geometry(0, 0, 0) is None
    assert pool_geometry(64, 0, 32) is None


def test_the_last_block_before_a_boundary_is_lost_when_it_would_fit_exactly() -> None:
    """64 blocks of 64 bytes would fit a page, but 6.1 hands out 63, and of 2 KiB only one; 68 blocks of 60 bytes are all that fit."""
    for size, blocks in ((64, 63), (60, 68), (2048, 1), (4096, 1)):
        geometry = pool_geometry(size, 4, 0)
        assert geometry is not None
        pool, _, _ = take(new_pool(geometry), 0)
        count = 1
        while int(dma_pool.pool_find_free(pool)) != NO_PAGE:
            dma_pool.pool_take(pool, 0)
            count += 1
        assert count == blocks


def test_a_boundary_above_the_page_lets_the_last_block_reach_beyond_it() -> None:
    """A bug of 6.1: the boundary stands for the end of the page as well. The recording has such a pool."""
    geometry = pool_geometry(2049, 0, 8192)
    assert geometry == (2049, 4096, 8192)
    pool, _, _ = take(new_pool(geometry), 0)
    assert int(dma_pool.pool_take(pool, 0)) + 2049 > 4096
    assert any("size=2049 align=0 boundary=8192 made" in head for head, _ in recorded())


def test_what_is_refused() -> None:
    geometry = pool_geometry(64, 0, 0)
    assert geometry is not None
    pool, _, offset = take(new_pool(geometry), 0)
    assert int(dma_pool.pool_free(pool, offset, BASE + (5 << 20), False)) == BAD_DMA
    assert int(dma_pool.pool_free(pool, offset + 64, BASE + offset, True)) == BAD_VADDR
    assert int(dma_pool.pool_free(pool, offset + (1 << 30), BASE + offset, False)) == BAD_VADDR
    assert int(dma_pool.pool_free(pool, offset, BASE + offset, True)) == 0
    assert int(dma_pool.pool_free(pool, offset, BASE + offset, True)) == ALREADY_FREE


def test_a_block_that_was_freed_twice_is_handed_out_twice() -> None:
    geometry = pool_geometry(64, 0, 0)
    assert geometry is not None
    pool, _, offset = take(new_pool(geometry), 0)
    assert int(dma_pool.pool_free(pool, offset, BASE + offset, False)) == 0
    assert int(dma_pool.pool_free(pool, offset, BASE + offset, False)) == 0
    assert [int(dma_pool.pool_take(pool, 0)) for _ in range(3)] == [offset] * 3


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5000),
    st.sampled_from([0, 1, 4, 32, 256]),
    st.sampled_from([0, 256, 1024, 8192]),
    st.lists(st.integers(0, 40), max_size=80),
)
def test_blocks_never_overlap_or_cross_a_boundary_and_all_come_back(size: int, align: int, boundary: int, todo: list[int]) -> None:
    geometry = pool_geometry(size, align, boundary)
    if geometry is None:
        assert boundary and boundary < -(-max(size, 4) // (align or 1)) * (align or 1)
        return
    pool, live = new_pool(geometry), list[tuple[int, int]]()
    for draw in todo:
        if draw % 3 == 0 and live:
            row, offset = live.pop(draw % len(live))
            assert int(dma_pool.pool_free(pool, (row << 20) + offset, BASE + (row << 20) + offset, True)) == 0
            continue
        pool, row, offset = take(pool, int(pool.config[0]["pages"]))
        assert offset % (align or 1) == 0
        if geometry.boundary <= geometry.allocation:
            assert offset + geometry.size <= geometry.allocation
        assert offset // geometry.boundary == (offset + geometry.size - 1) // geometry.boundary
        assert all(r != row or offset + geometry.size <= o or o + geometry.size <= offset for r, o in live)
        live.append((row, offset))
    for row, offset in live:
        assert int(dma_pool.pool_free(pool, (row << 20) + offset, BASE + (row << 20) + offset, True)) == 0
    assert not pool.page["in_use"].any()
