"""Which zone, which reserve, which list."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmtwin.errors import AllocationFailure
from mmtwin.gfp import ALLOC_NOFRAGMENT, GFP_ATOMIC, GFP_DMA, GFP_DMA32, GFP_HIGHUSER_MOVABLE, GFP_KERNEL, GFP_NOWAIT, HIGHATOMIC, MOVABLE, UNMOVABLE
from mmtwin.machine import Machine, boot
from mmtwin.mm.buddy import page_zone
from mmtwin.mm.page_alloc import EAGAIN, ENOMEM, bulk_zone, check_free, get_page_from_freelist, highest_zone, preferred_zone

BIG = 10


def exhaust(machine: Machine, gfp: int, order: int = 0) -> AllocationFailure:
    """Allocates until it fails."""
    with pytest.raises(AllocationFailure) as caught:
        while True:
            machine.alloc_pages(order, gfp)
    return caught.value


def test_highest_zone(bare: Callable[..., Machine]) -> None:
    state = bare().state
    assert [highest_zone(state, gfp) for gfp in (0, GFP_DMA, GFP_DMA32, GFP_KERNEL, GFP_HIGHUSER_MOVABLE, 0x5)] == [2, 0, 1, 2, 3, -1]


def test_zones_without_memory_are_passed_by(bare: Callable[..., Machine]) -> None:
    machine = bare("64MiB")
    assert preferred_zone(machine.state, 3) == 1
    assert page_zone(machine.state, machine.alloc_pages(0, GFP_KERNEL)) == 1
    assert page_zone(machine.state, machine.alloc_pages(0, GFP_KERNEL | GFP_DMA)) == 0
    assert page_zone(bare("8MiB").state, bare("8MiB").alloc_pages(0, GFP_KERNEL)) == 0


def test_normal_zone_first() -> None:
    machine = boot(ram="4GiB", cpus=1, reserved=())
    assert page_zone(machine.state, machine.alloc_pages(0, GFP_KERNEL)) == 2
    assert page_zone(machine.state, machine.alloc_pages(0, GFP_KERNEL | GFP_DMA32)) == 1


def test_falls_to_the_lower_zone_and_keeps_its_reserve(bare: Callable[..., Machine]) -> None:
    """GFP_KERNEL goes to DMA when DMA32 is at its mark, but leaves DMA's lowmem_reserve."""
    machine = bare("128MiB")
    machine.state.config["watermark_boost_factor"] = 0
    failure = exhaust(machine, GFP_KERNEL, order=3)
    assert (failure.errno, failure.status) == (-EAGAIN, "needs reclaim")
    dma = machine.state.zone[0]
    assert dma["nr_free_pages"] + machine.state.pcp["nr_free_pages_diff"][0] > machine.state.lowmem_reserve[0, 2]
    machine.alloc_pages(0, GFP_KERNEL | GFP_DMA)
    machine.validate()


def test_reserves_by_flags(bare: Callable[..., Machine]) -> None:
    machine = bare("64MiB")
    assert exhaust(machine, GFP_KERNEL).errno == -EAGAIN
    before = machine.free
    assert exhaust(machine, GFP_NOWAIT).errno == -ENOMEM
    assert before - machine.free <= 2 * int(machine.state.pcp[1]["batch"])  # no deeper than GFP_KERNEL: the same mark
    assert exhaust(machine, GFP_ATOMIC).errno == -ENOMEM
    assert machine.free < before - int(machine.state.zone[1]["wmark_min"]) // 4
    machine.alloc_pages(0, GFP_KERNEL | 0x20000)  # __GFP_MEMALLOC: no watermarks at all
    machine.validate()


def test_slow_path_wakes_kswapd(bare: Callable[..., Machine]) -> None:
    machine = bare("64MiB")
    exhaust(machine, GFP_KERNEL)
    assert machine.state.config[0]["kswapd_wakeups"] > 0
    quiet = bare("64MiB")
    exhaust(quiet, GFP_KERNEL & ~0x800)
    assert quiet.state.config[0]["kswapd_wakeups"] == 0


def test_atomic_high_order_reserves_a_pageblock(bare: Callable[..., Machine]) -> None:
    machine = bare("64MiB")
    exhaust(machine, GFP_KERNEL, order=1)
    pfn = machine.alloc_pages(1, GFP_ATOMIC)
    z = page_zone(machine.state, pfn)
    assert machine.state.pageblock[pfn >> 9] == HIGHATOMIC and machine.state.zone[z]["nr_reserved_highatomic"] == 512
    machine.validate()


def test_nofragment_prefers_the_lower_zone_to_mixing_pageblocks() -> None:
    machine = boot(ram="4GiB", cpus=1, reserved=())
    state = machine.state
    assert state.config[0]["nofragment_zone"] == 2
    state.zone[2]["wmark_min"] = state.zone[2]["wmark_low"] = state.zone[2]["wmark_high"] = 0
    # no whole pageblock in Normal: allocate everything of order 9 and 10 there as movable, and free single blocks of order 8
    held = []
    while True:
        pfn = get_page_from_freelist(state, 0, BIG, GFP_HIGHUSER_MOVABLE, 3, 0, False)
        if pfn < 1 << 20:
            break
        held.append(pfn)
    machine.free_pages(pfn, BIG)
    assert not state.free_area["nr_free"][2 * 11 + 9 : 3 * 11].any()
    state.page[held[0]]["order"] = 8
    machine.free_pages(held[0], 8)
    assert page_zone(state, get_page_from_freelist(state, 0, 0, GFP_KERNEL, 2, ALLOC_NOFRAGMENT, True)) == 1
    assert page_zone(state, get_page_from_freelist(state, 0, 0, GFP_KERNEL, 2, 0, True)) == 2


def test_contended_lists_are_passed_by(bare: Callable[..., Machine]) -> None:
    state = bare("64MiB").state
    assert get_page_from_freelist(state, 0, 0, GFP_KERNEL, 2, 1, True) >= 0
    assert state.pcp[1]["count"] == 0


def test_tiny_machines_do_not_group_by_mobility(bare: Callable[..., Machine]) -> None:
    machine = bare("8MiB")
    assert machine.state.config[0]["page_group_by_mobility_disabled"] == 1
    pfn = machine.alloc_pages(0, GFP_HIGHUSER_MOVABLE)
    assert machine.state.page[pfn]["migratetype"] == UNMOVABLE
    assert bare("16MiB").state.config[0]["page_group_by_mobility_disabled"] == 0
    pfn = (grouped := bare("16MiB")).alloc_pages(0, GFP_HIGHUSER_MOVABLE)
    assert grouped.state.page[pfn]["migratetype"] == MOVABLE
    machine.validate()


def test_bulk(bare: Callable[..., Machine]) -> None:
    machine = bare("64MiB")
    machine.state.pcp[1]["free_factor"] = 3
    pages = machine.alloc_pages_bulk(100, GFP_KERNEL)
    assert len(pages) == 100 and pages == list(range(pages[0], pages[0] + 100))
    assert machine.state.pcp[1]["free_factor"] == 3 and machine.state.zone[1]["pgalloc"] == 100
    machine.alloc_pages_bulk(1, GFP_KERNEL)  # one page is an ordinary allocation
    assert machine.state.pcp[1]["free_factor"] == 1
    assert machine.alloc_pages_bulk(0, GFP_KERNEL) == []
    machine.validate()


def test_bulk_needs_room_above_the_low_mark(bare: Callable[..., Machine]) -> None:
    machine = bare("64MiB")
    free = int(machine.state.zone[1]["nr_free_pages"]) - int(machine.state.zone[1]["wmark_low"])
    assert bulk_zone(machine.state, GFP_KERNEL, free - 1) == 1
    assert bulk_zone(machine.state, GFP_KERNEL, free) == -1  # DMA is smaller still
    assert len(machine.alloc_pages_bulk(machine.managed, GFP_KERNEL)) == 1


def test_exact(bare: Callable[..., Machine]) -> None:
    machine = bare("64MiB")
    free = machine.free
    pfn = machine.alloc_pages_exact(5 * 4096, GFP_KERNEL)
    on_lists = int(machine.state.pcp["count"].sum())
    assert free - machine.free - on_lists == 5 and machine.state.pcp["count"][1] == on_lists
    machine.validate()
    machine.free_pages_exact(pfn, 5 * 4096)
    machine.drain()
    assert machine.free == free
    machine.validate()


def test_list_free_uses_the_types_of_before(bare: Callable[..., Machine]) -> None:
    machine = bare("64MiB")
    pages = machine.alloc_pages_bulk(50, GFP_KERNEL)
    machine.free_pages_list(pages)
    assert machine.state.zone[1]["pgfree"] == 50
    machine.drain()
    assert machine.free == machine.managed
    machine.validate()


def test_check_free(bare: Callable[..., Machine]) -> None:
    machine = bare("64MiB")
    state = machine.state
    pfn = machine.alloc_pages(3, GFP_KERNEL)
    assert check_free(state, pfn, 3) == 0
    assert check_free(state, pfn, 2) == check_free(state, pfn + 1, 0) == check_free(state, pfn + 2, 1) == -2
    assert check_free(state, pfn + 1, 1) == check_free(state, -1, 0) == check_free(state, pfn, 11) == check_free(state, pfn, -1) == -22
    assert check_free(state, len(state.page), 0) == check_free(state, 0, 0) == -22
    machine.free_pages(pfn, 3)
    assert check_free(state, pfn, 3) == check_free(state, pfn + 1, 0) == -16
