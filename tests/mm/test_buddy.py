"""The buddy lists: splitting, merging, placing, falling back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtwin.gfp import ALLOC_KSWAPD, ALLOC_NOFRAGMENT, HIGHATOMIC, ISOLATE, MOVABLE, RECLAIMABLE, UNMOVABLE
from mmtwin.machine import boot, free_memory
from mmtwin.mm.buddy import (
    boost_watermark,
    free_list,
    free_one_page,
    get_pageblock_migratetype,
    isolate_free_page,
    move_freepages_block,
    page_zone,
    reserve_highatomic_pageblock,
    rmqueue,
    rmqueue_smallest,
    unreserve_highatomic_pageblock,
)
from mmtwin.mm.tables import MAX_ORDER, PG_BUDDY, PG_LRU, ZONE_BOOSTED_WATERMARK, Pgdat, new_pgdat
from mmtwin.mm.validate import free_blocks, validate

Walk = Callable[[Pgdat, int], list[int]]


def empty(frames: int = 4096) -> Pgdat:
    """One zone, nothing free, every page in use."""
    state = new_pgdat(frames, 1)
    state.zone[1]["end_pfn"] = state.zone[1]["present_pages"] = state.zone[1]["managed_pages"] = frames
    return state


def free(state: Pgdat, pfn: int, order: int, migratetype: int = MOVABLE, to_tail: bool = False) -> None:
    free_one_page(state, pfn, 1, 0, order, migratetype, to_tail)


def take(state: Pgdat, z: int, order: int, migratetype: int, flags: int = 0) -> int:
    pfn = rmqueue(state, z, order, migratetype, flags)
    if pfn >= 0:
        state.zone[z]["nr_free_pages"] -= 1 << order
    return pfn


@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 4095)).map(lambda p: (min(p), max(p))), max_size=6), st.sampled_from([1000, 2048, 3000]))
def test_boot_at_once_equals_the_kernels_way(ranges: list[tuple[int, int]], border: int) -> None:
    """`free_memory` builds what freeing chunk by chunk makes (memblock: ascending, aligned, at most 2^10 pages, to the tail)."""
    states = []
    for slow in (False, True):
        state = new_pgdat(4096, 1)
        for z, (start, end) in enumerate(((0, border), (border, 4096))):
            state.zone[z]["start_pfn"], state.zone[z]["end_pfn"], state.zone[z]["present_pages"] = start, end, end - start
        if slow:
            for pfn in sorted({p for start, end in ranges for p in range(start, end)}):
                z = page_zone(state, pfn)
                free_one_page(state, pfn, z, 0, 0, MOVABLE, True)
                state.zone[z]["managed_pages"] += 1
        else:
            free_memory(state, ranges)
        validate(state)
        states.append(state)
    assert all(np.array_equal(a, b) for a, b in zip(free_blocks(states[0]), free_blocks(states[1]), strict=True))
    assert np.array_equal(states[0].zone, states[1].zone) and np.array_equal(states[0].free_area, states[1].free_area)


def test_boot_in_the_kernels_chunks() -> None:
    start, end = 3, 3500
    slow, quick = empty(), empty()
    free_memory(quick, [(start, end)])
    slow.zone[1]["managed_pages"] = end - start
    while start < end:
        order = min(MAX_ORDER, (start & -start).bit_length() - 1)
        while start + (1 << order) > end:
            order -= 1
        free(slow, start, order, to_tail=True)
        start += 1 << order
    assert all(np.array_equal(a, b) for a, b in zip(free_blocks(slow), free_blocks(quick), strict=True))


def test_split_keeps_the_lower_half(walk: Walk) -> None:
    state = empty()
    free(state, 1024, 10)
    assert take(state, 1, 0, MOVABLE) == 1024
    for order in range(10):
        assert walk(state, free_list(state, 1, order, MOVABLE)) == [1024 + (1 << order)]
    assert walk(state, free_list(state, 1, 10, MOVABLE)) == []
    validate(state)
    free(state, 1024, 0)
    assert walk(state, free_list(state, 1, 10, MOVABLE)) == [1024]
    validate(state)


def test_smallest_fit_takes_the_head() -> None:
    state = empty()
    for pfn, order in ((0, 3), (64, 3), (128, 5)):
        free(state, pfn, order)
    assert rmqueue_smallest(state, 1, 2, MOVABLE) == 64  # freed last, so at the head
    assert rmqueue_smallest(state, 1, 2, MOVABLE) == 68
    assert rmqueue_smallest(state, 1, 4, MOVABLE) == 128
    assert rmqueue_smallest(state, 1, 4, UNMOVABLE) == -1


def test_head_or_tail(walk: Walk) -> None:
    """Head, but the tail if the buddy of the block that would come of the next merge is free."""
    state = empty()
    free(state, 0, 0)
    free(state, 16, 0)
    head = free_list(state, 1, 0, MOVABLE)
    assert walk(state, head) == [16, 0]
    free(state, 34, 1)  # so that freeing 32 would make 32-33, whose buddy 34-35 is free
    free(state, 32, 0)
    assert walk(state, head) == [16, 0, 32]
    free(state, 48, 0, to_tail=True)
    assert walk(state, head) == [16, 0, 32, 48]


def test_no_look_ahead_at_the_top_orders(walk: Walk) -> None:
    state = empty(1 << 13)
    free(state, 4096 + 1024, 10)
    for pfn in (0, 4096):
        free(state, pfn, 9)
    assert walk(state, free_list(state, 1, 9, MOVABLE)) == [4096, 0]


def test_merging_takes_the_buddy_from_any_list(walk: Walk) -> None:
    state = empty()
    free(state, 8, 3, RECLAIMABLE)
    free(state, 0, 3, UNMOVABLE)
    assert walk(state, free_list(state, 1, 4, UNMOVABLE)) == [0] and walk(state, free_list(state, 1, 3, RECLAIMABLE)) == []


@pytest.mark.parametrize(("other", "merges"), [(UNMOVABLE, True), (RECLAIMABLE, True), (HIGHATOMIC, False), (ISOLATE, False)])
def test_pageblocks_of_special_types_do_not_merge(other: int, merges: bool, walk: Walk) -> None:
    state = empty()
    state.pageblock[1] = other
    free(state, 512, 9, other)
    free(state, 0, 9)
    assert walk(state, free_list(state, 1, 10, MOVABLE)) == ([0] if merges else [])
    state.zone[1]["nr_reserved_highatomic"] = 512 if other == HIGHATOMIC else 0
    validate(state)


def test_zones_do_not_merge() -> None:
    state = new_pgdat(4096, 1)
    for z, (start, end) in enumerate(((0, 1024), (1024, 4096))):
        state.zone[z]["start_pfn"], state.zone[z]["end_pfn"] = start, end
        state.zone[z]["present_pages"] = state.zone[z]["managed_pages"] = end - start
    state.zone[0]["end_pfn"] = state.zone[1]["start_pfn"] = 520
    state.zone[0]["present_pages"] = state.zone[0]["managed_pages"] = 520
    free_one_page(state, 512, 0, 0, 3, MOVABLE, False)
    free_one_page(state, 520, 1, 0, 3, MOVABLE, False)
    assert state.free_area["nr_free"].tolist()[3] == 1 and state.free_area["nr_free"].tolist()[14] == 1
    validate(state)


def test_isolated_pages_are_not_counted() -> None:
    state = empty()
    state.pageblock[0] = ISOLATE
    free(state, 0, 3, ISOLATE)
    assert state.zone[1]["nr_free_pages"] == 0
    validate(state)


def test_freed_frame_keeps_no_flags_when_it_merges_downwards() -> None:
    state = empty()
    free(state, 0, 0)
    state.page[1]["flags"] = 2
    free(state, 1, 0)
    assert state.page[1]["flags"] == 0
    validate(state)


def test_fallback_takes_the_largest_block_and_its_pageblocks(walk: Walk) -> None:
    state = empty()
    free(state, 1024, 10)
    free(state, 0, 8)
    assert take(state, 1, 0, UNMOVABLE) == 1024
    assert state.pageblock.tolist() == [MOVABLE, MOVABLE, UNMOVABLE, UNMOVABLE] + [MOVABLE] * 4
    assert walk(state, free_list(state, 1, 8, MOVABLE)) == [0]
    validate(state)


def test_movable_steals_the_smallest(walk: Walk) -> None:
    state = empty()
    state.pageblock[:] = UNMOVABLE
    for pfn, order in ((0, 1), (8, 2), (64, 3)):
        free(state, pfn, order, UNMOVABLE)
    assert take(state, 1, 0, MOVABLE) == 0
    assert state.pageblock[0] == UNMOVABLE and walk(state, free_list(state, 1, 0, MOVABLE)) == [1]
    validate(state)


def test_fallback_order_of_types() -> None:
    for start, first, second in ((UNMOVABLE, RECLAIMABLE, MOVABLE), (MOVABLE, RECLAIMABLE, UNMOVABLE), (RECLAIMABLE, UNMOVABLE, MOVABLE)):
        state = empty()
        free(state, 0, 3, second)
        free(state, 1024, 3, first)
        assert take(state, 1, 3, start) == 1024
        assert take(state, 1, 3, start) == 0
        assert take(state, 1, 3, start) == -1
    assert rmqueue(state, 1, 0, HIGHATOMIC, 0) == -1


def test_nofragment_needs_a_whole_pageblock() -> None:
    state = empty()
    free(state, 0, 8)
    assert rmqueue(state, 1, 0, UNMOVABLE, ALLOC_NOFRAGMENT) == -1
    free(state, 512, 9)
    assert rmqueue(state, 1, 0, UNMOVABLE, ALLOC_NOFRAGMENT) == 512


def test_half_a_pageblock_free_changes_its_type(walk: Walk) -> None:
    state = empty()
    free(state, 0, 7)
    free(state, 256, 7)  # 256 of 512 pages: half
    assert walk(state, free_list(state, 1, 7, MOVABLE)) == [256, 0]
    assert take(state, 1, 0, UNMOVABLE) == 0  # 256 was chosen, but all blocks moved in ascending order, and the search began anew
    assert state.pageblock[0] == UNMOVABLE
    assert walk(state, free_list(state, 1, 7, UNMOVABLE)) == [256]


def test_less_than_half_keeps_its_type_unless_alike() -> None:
    state = empty()
    free(state, 0, 7)
    state.page["flags"][128:512] = PG_LRU  # movable pages in use: not alike for an unmovable request
    assert take(state, 1, 0, UNMOVABLE) == 0
    assert state.pageblock[0] == MOVABLE
    state = empty()
    free(state, 0, 7)  # the rest is in use and not movable: alike
    assert take(state, 1, 0, UNMOVABLE) == 0
    assert state.pageblock[0] == UNMOVABLE


def test_boost() -> None:
    state = empty()
    state.zone[1]["wmark_high"] = 600
    state.config["watermark_boost_factor"] = 15000
    free(state, 0, 4)
    take(state, 1, 0, UNMOVABLE, ALLOC_KSWAPD)
    assert state.zone[1]["watermark_boost"] == 512 and state.zone[1]["flags"] & ZONE_BOOSTED_WATERMARK
    assert boost_watermark(state, 1) and state.zone[1]["watermark_boost"] == 900  # 600 * 1.5
    state.zone[1]["managed_pages"] = 2047
    assert not boost_watermark(state, 1)  # fewer than 4 pageblocks


def test_pageblock_across_the_zones_end_is_not_moved() -> None:
    state = empty()
    state.zone[1]["end_pfn"] = 4000
    free(state, 3584, 3)
    assert move_freepages_block(state, 3584, 1, UNMOVABLE) == (0, 0)


def test_pageblock_before_the_zone_is_moved_from_the_page_on() -> None:
    state = empty()
    state.zone[1]["start_pfn"] = 4
    free(state, 4, 2)
    free(state, 64, 2)
    assert move_freepages_block(state, 64, 1, UNMOVABLE) == (4, 0)


def test_highatomic_reserve_and_back() -> None:
    state = empty(1 << 14)
    free(state, 0, 8)
    reserve_highatomic_pageblock(state, 256, 1)
    assert state.zone[1]["nr_reserved_highatomic"] == 512 and get_pageblock_migratetype(state, 0) == HIGHATOMIC
    validate(state)
    free(state, 1024, 8)
    reserve_highatomic_pageblock(state, 1024, 1)  # 163 + 512 pages is the limit
    assert state.zone[1]["nr_reserved_highatomic"] == 1024
    free(state, 2048, 8)
    reserve_highatomic_pageblock(state, 2048, 1)
    assert state.zone[1]["nr_reserved_highatomic"] == 1024
    unreserve_highatomic_pageblock(state, 0, 1, MOVABLE)
    assert state.zone[1]["nr_reserved_highatomic"] == 512 and get_pageblock_migratetype(state, 0) == MOVABLE
    validate(state)


def test_compactions_free_block() -> None:
    state = empty()
    free(state, 0, 9, UNMOVABLE)
    state.pageblock[0] = UNMOVABLE
    isolate_free_page(state, 0, 1, 0, 9)
    assert state.pageblock[0] == MOVABLE and not state.page[0]["flags"] & PG_BUDDY and state.zone[1]["nr_free_pages"] == 0
    validate(state)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.sampled_from([UNMOVABLE, MOVABLE, RECLAIMABLE]), st.integers(0, 1 << 16)), max_size=60))
def test_random_requests_keep_all_invariants(steps: list[tuple[int, int, int]]) -> None:
    state = boot(ram="16MiB", cpus=1, reserved=()).state
    held: list[tuple[int, int]] = []
    for order, migratetype, choice in steps:
        if choice & 1 and held:
            pfn, freed = held.pop(choice % len(held))
            free_one_page(state, pfn, page_zone(state, pfn), 0, freed, get_pageblock_migratetype(state, pfn), bool(choice & 2))
        else:
            pfn = take(state, 0, order, migratetype)
            if pfn >= 0:
                held.append((pfn, order))
        validate(state)
