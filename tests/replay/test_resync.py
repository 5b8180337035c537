"""After a difference the twin is moved to what the kernel did, and stays a consistent machine."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from mmtwin.gfp import GFP_KERNEL, UNMOVABLE
from mmtwin.machine import Machine, boot
from mmtwin.mm.tables import PG_BUDDY, PG_PCP
from mmtwin.replay.resync import any_covered, covered, extract, put_back


def test_covered(bare: Callable[..., Machine]) -> None:
    m = bare()
    pfn = m.alloc_pages(0, GFP_KERNEL)
    assert covered(m.state, pfn, PG_BUDDY | PG_PCP) == -1
    assert covered(m.state, pfn + 1, PG_PCP) == pfn + 1 if m.state.pcp["batch"].max() > 1 else True
    block = m.alloc_pages(10, GFP_KERNEL)
    m.free_pages(block, 10)
    assert covered(m.state, block + 700, PG_BUDDY) == block
    assert any_covered(m.state, block + 700, 2)


def test_put_back_undoes_an_allocation(bare: Callable[..., Machine]) -> None:
    m = bare()
    for order in (0, 2, 5, 9, 10):
        m.free_pages(m.alloc_pages(order, GFP_KERNEL), order)
        pfn = m.alloc_pages(order, GFP_KERNEL)
        put_back(m.state, 0, pfn, order)
        m.validate()
        assert m.alloc_pages(order, GFP_KERNEL) == pfn


@given(st.lists(st.tuples(st.integers(256, 16383), st.integers(0, 9)), max_size=12), st.lists(st.integers(0, 4), max_size=6))
def test_extract_leaves_a_consistent_machine(taken: list[tuple[int, int]], orders: list[int]) -> None:
    """Whatever block is taken off, wherever it lay (free, listed, in use, half of each)."""
    m = boot(ram="64MiB", cpus=1, reserved=())
    for order in orders:
        m.free_pages(m.alloc_pages(order, GFP_KERNEL), order)
    for pfn, order in taken:
        pfn &= ~((1 << order) - 1)
        extract(m.state, 0, pfn, order)
        assert not any_covered(m.state, pfn, order)
        m.validate()
    assert m.state.pageblock.max() <= 1 or UNMOVABLE in m.state.pageblock
