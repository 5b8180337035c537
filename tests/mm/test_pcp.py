"""Per-CPU lists: refills, drains, and how far a drain goes. The sequences are worked out by hand from the rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmtwin.gfp import GFP_KERNEL, HIGHATOMIC, ISOLATE, MIGRATE_TYPES, MOVABLE, UNMOVABLE
from mmtwin.machine import Machine
from mmtwin.mm.buddy import free_list
from mmtwin.mm.pcp import order_to_pindex, pcp_allowed_order, pcp_list, pindex_to_order, rmqueue_pcplist, rmqueue_pcplist_locked
from mmtwin.mm.tables import ZONE_RECLAIM_ACTIVE, Pgdat, new_pgdat
from mmtwin.mm.validate import validate

Walk = Callable[[Pgdat, int], list[int]]
DMA32 = 1


@pytest.fixture
def machine(bare: Callable[..., Machine]) -> Machine:
    """1 GiB, one CPU, batch 63: 256 blocks of order 10 in DMA32."""
    made = bare("1GiB")
    assert made.state.pcp[DMA32]["batch"] == 63
    return made


def test_list_numbers() -> None:
    found = [order_to_pindex(migratetype, order) for order in (0, 1, 2, 3) for migratetype in range(3)]
    assert found == list(range(12))
    assert [order_to_pindex(migratetype, 9) for migratetype in range(3)] == [12, 13, 12]
    assert [pindex_to_order(new_pgdat(1, 1), index) for index in range(14)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 9, 9]


def test_allowed_orders(machine: Machine) -> None:
    assert [order for order in range(11) if pcp_allowed_order(machine.state, order)] == [0, 1, 2, 3, 9]
    machine.state.config["thp"] = 0
    assert [order for order in range(11) if pcp_allowed_order(machine.state, order)] == [0, 1, 2, 3]


def test_refill_of_order_0(machine: Machine, walk: Walk) -> None:
    """63 pages come off one block in ascending order; the request takes the first, the next 62 requests the others."""
    state = machine.state
    first = machine.alloc_pages(0, GFP_KERNEL)
    assert first % 1024 == 0
    assert walk(state, pcp_list(state, DMA32, 0)) == list(range(first + 1, first + 63))
    assert [machine.alloc_pages(0, GFP_KERNEL) for _ in range(62)] == list(range(first + 1, first + 63))
    assert state.pcp[DMA32]["count"] == 0
    left = {order: walk(state, free_list(state, DMA32, order, UNMOVABLE)) for order in range(11)}
    assert left == {0: [first + 63], 6: [first + 64], 7: [first + 128], 8: [first + 256], 9: [first + 512], **{order: [] for order in (1, 2, 3, 4, 5, 10)}}
    machine.validate()


@pytest.mark.parametrize(("batch", "order", "blocks"), [(63, 2, 15), (63, 3, 7), (63, 1, 31), (7, 2, 2), (7, 3, 2), (1, 0, 1), (1, 3, 1), (63, 9, 2)])
def test_refill_of_higher_orders(machine: Machine, batch: int, order: int, blocks: int) -> None:
    state = machine.state
    state.pcp[DMA32]["batch"] = batch
    machine.alloc_pages(order, GFP_KERNEL)
    assert state.pcp[DMA32]["count"] == (blocks - 1) << order
    machine.validate()


def test_freed_page_is_used_again_first(machine: Machine) -> None:
    held = [machine.alloc_pages(0, GFP_KERNEL) for _ in range(5)]
    machine.free_pages(held[3], 0)
    machine.free_pages(held[1], 0)
    assert [machine.alloc_pages(0, GFP_KERNEL) for _ in range(2)] == [held[1], held[3]]


def test_drain_doubles(machine: Machine) -> None:
    """high 383, batch 7: 7 pages, then 14, 28, ... while every allocation halves the factor."""
    state, pcp = machine.state, machine.state.pcp[DMA32 : DMA32 + 1]
    pcp["batch"], pcp["high"] = 7, 383
    held = [machine.alloc_pages(0, GFP_KERNEL) for _ in range(1400)]
    machine.drain()
    pcp["free_factor"] = 0
    at = iter(held)
    for _ in range(382):
        machine.free_pages(next(at), 0)
    assert pcp["count"][0] == 382
    for drained, factor in ((7, 1), (14, 2), (28, 3), (56, 4), (112, 5), (224, 5)):
        while True:
            before = int(pcp["count"][0])
            machine.free_pages(next(at), 0)
            if int(pcp["count"][0]) <= before:
                break
        assert (before + 1 - int(pcp["count"][0]), int(pcp["free_factor"][0])) == (drained, factor)
        machine.validate()
    assert rmqueue_pcplist(state, DMA32, 0, 0, UNMOVABLE, 0) >= 0
    assert pcp["free_factor"][0] == 2
    assert rmqueue_pcplist_locked(state, DMA32, 0, 0, UNMOVABLE, 0) >= 0  # the bulk allocator's way does not halve
    assert pcp["free_factor"][0] == 2


def test_drain_keeps_one_batch(machine: Machine) -> None:
    state = machine.state
    state.pcp[DMA32]["high"], state.pcp[DMA32]["free_factor"] = 100, 5
    held = [machine.alloc_pages(0, GFP_KERNEL) for _ in range(300)]
    machine.drain()
    state.pcp[DMA32]["free_factor"] = 5
    for pfn in held[:100]:
        machine.free_pages(pfn, 0)
    assert state.pcp[DMA32]["count"] == 63  # 37 of 100 were given back: 100 - 63


def test_high_order_free_after_a_drain_empties_the_lists(machine: Machine) -> None:
    held = machine.alloc_pages(2, GFP_KERNEL)
    assert machine.state.pcp[DMA32]["count"] == 56
    machine.state.pcp[DMA32]["free_factor"] = 1
    machine.free_pages(held, 2)
    assert machine.state.pcp[DMA32]["count"] == 0
    machine.validate()


def test_drain_empties_one_list_before_the_next(machine: Machine, walk: Walk) -> None:
    state = machine.state
    singles = [machine.alloc_pages(0, GFP_KERNEL) for _ in range(20)]
    machine.alloc_pages(1, GFP_KERNEL)
    machine.drain()
    for pfn in singles[:10]:
        machine.free_pages(pfn, 0)
    state.pcp[DMA32]["high"], state.pcp[DMA32]["batch"], state.pcp[DMA32]["free_factor"] = 11, 4, 0
    machine.free_pages(singles[10], 0)  # 11 pages: gives back 4, the oldest
    assert walk(state, pcp_list(state, DMA32, 0)) == singles[10:3:-1]


def test_reclaim_makes_the_lists_short(machine: Machine) -> None:
    state = machine.state
    held = [machine.alloc_pages(0, GFP_KERNEL) for _ in range(600)]
    machine.drain()
    state.zone[DMA32]["flags"] |= ZONE_RECLAIM_ACTIVE
    for pfn in held[:251]:
        machine.free_pages(pfn, 0)
    assert state.pcp[DMA32]["count"] == 251
    machine.free_pages(held[251], 0)
    assert state.pcp[DMA32]["count"] == 252 - 63


def test_boot_pageset_passes_everything_through(machine: Machine) -> None:
    pfn = machine.alloc_pages(0, GFP_KERNEL)
    machine.drain()
    machine.state.pcp[DMA32]["high"], machine.state.pcp[DMA32]["batch"] = 0, 1
    machine.free_pages(pfn, 0)
    assert machine.state.pcp[DMA32]["count"] == 0


def test_highatomic_waits_among_the_movable(machine: Machine, walk: Walk) -> None:
    state = machine.state
    pfn = machine.alloc_pages(0, GFP_KERNEL)
    machine.drain()
    state.pageblock[pfn >> 9] = HIGHATOMIC
    machine.free_pages(pfn, 0)
    assert walk(state, pcp_list(state, DMA32, MOVABLE)) == [pfn] and state.page[pfn]["migratetype"] == HIGHATOMIC
    machine.drain()
    base = int(state.config[0]["free_list_base"])
    heads = [base + (DMA32 * 11 + order) * MIGRATE_TYPES + HIGHATOMIC for order in range(11)]
    assert sum(len(walk(state, head)) for head in heads) == 1


def test_isolated_goes_straight_to_the_buddy_lists(machine: Machine) -> None:
    pfn = machine.alloc_pages(0, GFP_KERNEL)
    machine.drain()
    machine.state.pageblock[pfn >> 9] = ISOLATE
    machine.free_pages(pfn, 0)
    assert machine.state.pcp[DMA32]["count"] == 0


def test_another_cpus_drain_changes_the_drainers_counter(bare: Callable[..., Machine]) -> None:
    machine = bare("64MiB", cpus=3)
    machine.alloc_pages(0, GFP_KERNEL, cpu=2)
    before = machine.state.pcp["nr_free_pages_diff"].copy()
    machine.drain(cpu=2, here=1)
    changed = (machine.state.pcp["nr_free_pages_diff"] != before).nonzero()[0].tolist()
    assert changed in ([], [DMA32 * 3 + 1])
    validate(machine.state)
