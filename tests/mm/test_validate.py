"""Every invariant is broken once, and must be named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmtwin.errors import InvariantError
from mmtwin.gfp import GFP_HIGHUSER_MOVABLE, GFP_KERNEL, HIGHATOMIC
from mmtwin.machine import Machine
from mmtwin.mm.buddy import free_list
from mmtwin.mm.tables import PG_BUDDY, PG_FREEING, PG_LRU, Pgdat
from mmtwin.mm.validate import free_blocks, pcp_blocks, validate
from mmtwin.recording.model import Recording
from mmtwin.recording.state import free_lists, pcp_pages, restore


@pytest.fixture
def state(bare: Callable[..., Machine]) -> Pgdat:
    """A machine with something on every kind of list."""
    machine = bare("128MiB", cpus=2)
    machine.free_pages(machine.alloc_pages(9, GFP_HIGHUSER_MOVABLE), 9)
    for cpu in range(2):
        for order in (0, 1, 3):
            machine.alloc_pages(order, GFP_KERNEL, cpu)
            machine.alloc_pages(order, GFP_HIGHUSER_MOVABLE, cpu)
    validate(machine.state)
    assert len(pcp_blocks(machine.state).pfn) > 10
    return machine.state


def block(state: Pgdat, order: int) -> int:
    """Some free block of an order in DMA32."""
    blocks = free_blocks(state)
    return int(blocks.pfn[(blocks.order == order) & (blocks.zone == 1)][0])


def listed(state: Pgdat) -> int:
    """Some page on a per-CPU list."""
    return int(pcp_blocks(state).pfn[0])


def broken_next(state: Pgdat) -> None:
    state.page[block(state, 10)]["next"] = 5


def link_out_of_range(state: Pgdat) -> None:
    state.page[block(state, 10)]["prev"] = len(state.page) + 1


def ring_without_head(state: Pgdat) -> None:
    pfn = block(state, 10)
    before, after = int(state.page[pfn]["prev"]), int(state.page[pfn]["next"])
    state.page[before]["next"], state.page[after]["prev"] = after, before
    state.page[pfn]["next"] = state.page[pfn]["prev"] = pfn


def lost_flag(state: Pgdat) -> None:
    state.page[block(state, 10)]["flags"] = 0


def wrong_flag(state: Pgdat) -> None:
    state.page[block(state, 10)]["flags"] = PG_BUDDY | PG_LRU


def pcp_flag(state: Pgdat) -> None:
    state.page[listed(state)]["flags"] = PG_BUDDY


def wrong_order(state: Pgdat) -> None:
    state.page[block(state, 10)]["order"] = 9


def pcp_order(state: Pgdat) -> None:
    state.page[listed(state)]["order"] = 7


def pcp_type(state: Pgdat) -> None:
    blocks = pcp_blocks(state)
    state.page[int(blocks.pfn[0])]["migratetype"] = 2 if blocks.list_index[0] % 3 != 2 else 0


def wrong_zone(state: Pgdat) -> None:
    state.zone[1]["end_pfn"], state.zone[1]["present_pages"], state.zone[1]["managed_pages"] = 8192, 4096, 4096


def flag_inside(state: Pgdat) -> None:
    state.page[block(state, 10) + 77]["flags"] = PG_LRU


def still_freeing(state: Pgdat) -> None:
    used = next(pfn for pfn in range(4096, 16000) if state.page[pfn]["flags"] == 4)
    state.page[used]["flags"] = PG_FREEING


def not_merged(state: Pgdat) -> None:
    pfn = block(state, 10)
    entry = state.page[pfn]
    before, after = int(entry["prev"]), int(entry["next"])
    state.page[before]["next"], state.page[after]["prev"] = after, before
    head = free_list(state, 1, 9, 1)
    for half in (pfn, pfn + 512):
        first = int(state.page[head]["next"])
        state.page[half] = (first, head, 9, PG_BUDDY, 0, 0)
        state.page[first]["prev"] = state.page[head]["next"] = half
    state.free_area[11 + 10]["nr_free"] -= 1
    state.free_area[11 + 9]["nr_free"] += 2


def nr_free(state: Pgdat) -> None:
    state.free_area[11 + 10]["nr_free"] += 1


def pcp_count(state: Pgdat) -> None:
    state.pcp[2]["count"] += 1


def free_pages(state: Pgdat) -> None:
    state.zone[1]["nr_free_pages"] += 1


def difference(state: Pgdat) -> None:
    state.pcp[2]["nr_free_pages_diff"] += 1


def marks(state: Pgdat) -> None:
    state.zone[1]["wmark_low"] = 0


def managed(state: Pgdat) -> None:
    state.zone[1]["managed_pages"] = int(state.zone[1]["present_pages"]) + 1


def too_few_managed(state: Pgdat) -> None:
    state.zone[1]["managed_pages"] = 100


def zones_overlap(state: Pgdat) -> None:
    state.zone[1]["start_pfn"] = 100


def highatomic(state: Pgdat) -> None:
    state.pageblock[20] = HIGHATOMIC


def pageblock(state: Pgdat) -> None:
    state.pageblock[20] = 9


def online(state: Pgdat) -> None:
    state.config["online_cpus"] = 3


def list_base(state: Pgdat) -> None:
    state.config["free_list_base"] = 1


BREAKS = [
    (broken_next, r"page\[\d+\]\.next is 5, but page\[5\]\.prev is"),
    (link_out_of_range, r"page\[\d+\]\.prev is \d+, outside the table"),
    (ring_without_head, r"page\[\d+\] is on no list"),
    (lost_flag, r"neither free nor a list head|but page"),
    (wrong_flag, r"free list of zone 1, order 10, type 1, position 0: page\[\d+\] has flags 9"),
    (pcp_flag, r"per-CPU list \d+ of zone 1, CPU 0, position 0: page\[\d+\] has flags 1"),
    (wrong_order, r"order 10, .* has order 9"),
    (pcp_order, r"per-CPU list .* has order 7"),
    (pcp_type, r"per-CPU list .* has cached type \d, which belongs on list"),
    (wrong_zone, "is not inside the zone"),
    (flag_inside, r"page\[\d+\] has flags 8 but is inside the free block \d+ of order 10"),
    (still_freeing, "is still being freed"),
    (not_merged, r"free buddies \d+ and \d+ of order 9 in zone 1 are not merged"),
    (nr_free, "free_area of zone 1, order 10: nr_free is"),
    (pcp_count, "pcp of zone 1, CPU 0: count is"),
    (free_pages, r"zone\[1\]: nr_free_pages"),
    (difference, r"zone\[1\]: nr_free_pages"),
    (marks, r"zone\[1\]: watermarks"),
    (managed, r"zone\[1\]: managed"),
    (too_few_managed, r"zone\[1\]: \d+ pages are free but only 100 are managed"),
    (zones_overlap, r"zone\[1\]: frames 100 to"),
    (highatomic, r"zone\[1\]: nr_reserved_highatomic is 0"),
    (pageblock, r"pageblock\[20\] has type 9"),
    (online, "3 online CPUs of 2"),
    (list_base, "config: lists begin"),
]


@pytest.mark.parametrize(("damage", "message"), BREAKS, ids=lambda value: getattr(value, "__name__", ""))
def test_names_what_is_broken(state: Pgdat, damage: Callable[[Pgdat], None], message: str) -> None:
    damage(state)
    with pytest.raises(InvariantError, match=message) as caught:
        validate(state)
    assert "\n" not in str(caught.value)


def test_alike_pageblocks_may_stay_apart_if_allowed(state: Pgdat) -> None:
    not_merged(state)
    validate(state, allow_unmerged_pageblocks=True)


def test_double_block(state: Pgdat) -> None:
    """The same frames on two lists."""
    pfn, head = block(state, 10) + 1, free_list(state, 1, 0, 1)
    first = int(state.page[head]["next"])
    state.page[pfn] = (first, head, 0, PG_BUDDY, 0, 0)
    state.page[first]["prev"] = state.page[head]["next"] = pfn
    with pytest.raises(InvariantError, match=rf"page frame {pfn} is free twice"):
        validate(state)


def test_real_states_are_valid(real: dict[str, Recording]) -> None:
    for recording in real.values():
        assert recording.before is not None and recording.after is not None
        for snapshot in (recording.before, recording.after):
            restored = restore(snapshot)
            validate(restored)
            blocks, on_cpus = free_blocks(restored), pcp_blocks(restored)
            assert (
                list(zip(*(column.tolist() for column in blocks), strict=True))
                == free_lists(restored).select("zone", "order", "migratetype", "position", "pfn").rows()
            )
            expected = pcp_pages(restored).select("zone", "cpu", "list", "position", "pfn").rows()
            assert list(zip(*(column.tolist() for column in on_cpus[:5]), strict=True)) == expected
