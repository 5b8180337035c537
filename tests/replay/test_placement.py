"""Requests are put where the lists really changed. Each case is a situation of the kernel, with the probes it raises."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

from mmtwin.recording.model import Recording
from mmtwin.replay.placement import (
    ALLOC,
    BUDDY_FREE,
    BULK_BEGIN,
    BULK_END,
    BULK_LOCKED,
    DRAIN,
    FREE_DRAIN,
    ISOLATED,
    NOP,
    PCP_FREE,
    PREPARE,
    ROTATE,
    WALK,
    place,
)

Events = Callable[..., pl.DataFrame]


def kinds(ops: np.ndarray) -> list[int]:
    """Operations without those that only look."""
    return [int(op) for op in ops["op"] if op not in (WALK, NOP)]


def page(pfn: int, **more: int) -> tuple[str, dict[str, int]]:
    return "mm_page_alloc", {"pfn": pfn, "order": 0, "migratetype": 0, "gfp": 0xCC0, **more}


def freed(pfn: int, **more: int) -> list[tuple[str, dict[str, int]]]:
    return [("mm_page_free", {"pfn": pfn, "order": 0, **more}), ("pcp_free", {"pfn": pfn, "order": 0, "migratetype": 0, **more})]


def test_an_allocation_printed_late_is_placed_at_its_mark(events: Events) -> None:
    """Task 7 takes a page, is preempted before it prints; task 8 frees one and prints at once."""
    table = events(("pcp_alloc", {"pid": 7}), *freed(99, pid=8), page(10, pid=7))
    placed = place(table)
    assert kinds(placed.ops) == [ALLOC, PREPARE, PCP_FREE]
    assert placed.ops["at"][0] == 0
    assert placed.ops["event"][0] == 3
    assert (placed.late, placed.unplaced) == (1, 0)


def test_an_allocation_in_time_does_not_move(events: Events) -> None:
    placed = place(events(("pcp_alloc", {}), page(10), *freed(99)))
    assert kinds(placed.ops) == [ALLOC, PREPARE, PCP_FREE]
    assert placed.late == 0


def test_a_soft_interrupt_has_marks_of_its_own(events: Events) -> None:
    """The interrupt comes between the task's mark and its print; both belong to the same pid."""
    table = events(("pcp_alloc", {}), ("pcp_alloc", {"context": 1}), page(20, context=1), page(10))
    placed = place(table)
    assert [int(p) for p in placed.ops["pfn"]] == [10, 20]
    assert placed.late == 1


def test_a_task_keeps_its_mark_when_it_moves_to_another_cpu(events: Events) -> None:
    placed = place(events(("pcp_alloc", {"cpu": 0}), *freed(99, cpu=1, pid=8), page(10, cpu=1)))
    assert placed.ops[0]["op"] == ALLOC
    assert placed.ops[0]["cpu"] == 0, "the list it was taken from is that of the CPU of the mark"


def test_the_idle_task_is_another_context_on_each_cpu(events: Events) -> None:
    table = events(("pcp_alloc", {"pid": 0, "cpu": 0}), page(20, pid=0, cpu=1), page(10, pid=0, cpu=0))
    placed = place(table)
    assert placed.unplaced == 1
    assert [int(p) for p in placed.ops["pfn"]] == [10, 20]


def test_a_refill_is_placed_under_the_zone_lock(events: Events) -> None:
    """Another CPU frees to its own list between the refill and the unlock: the buddy lists were changed at the refill."""
    locked = ("mm_page_alloc_zone_locked", {"pfn": 10, "order": 0, "migratetype": 0})
    placed = place(events(locked, *freed(99, cpu=1, pid=8), ("pcp_alloc", {}), page(10)))
    assert placed.ops[0]["op"] == ALLOC
    assert (placed.ops[0]["at"], placed.ops[0]["contended"]) == (0, 0)


def test_without_a_mark_of_the_list_the_list_was_passed_by(events: Events) -> None:
    """zone_locked but no pcp_alloc: the trylock failed, rmqueue_buddy served the request."""
    locked = ("mm_page_alloc_zone_locked", {"pfn": 10, "order": 0, "migratetype": 0})
    placed = place(events(*freed(99), locked, page(10)))
    assert placed.ops[2]["contended"] == 1


def test_a_free_with_a_drain_is_two_operations(events: Events) -> None:
    """What must go is decided at the free's mark, and goes under the zone lock."""
    table = events(*freed(99), ("pcp_alloc", {"cpu": 1, "pid": 8}), page(10, cpu=1, pid=8), ("mm_page_pcpu_drain", {"pfn": 50, "order": 0, "migratetype": 0}))
    placed = place(table)
    assert kinds(placed.ops) == [PREPARE, PCP_FREE, ALLOC, FREE_DRAIN]
    assert (placed.ops["pfn"][-1], placed.ops["arg2"][1]) == (99, 1)


def test_a_free_that_finds_the_list_taken_goes_to_the_buddy_lists(events: Events) -> None:
    table = events(("mm_page_free", {"pfn": 99, "order": 0}), ("buddy_free", {"pfn": 99, "order": 0, "migratetype": 2, "arg": 0}), *freed(98))
    assert kinds(place(table).ops) == [PREPARE, BUDDY_FREE, PREPARE, PCP_FREE]


def test_bulk_pages(events: Events) -> None:
    refill = [("mm_page_alloc_zone_locked", {"pfn": p, "order": 0, "migratetype": 0}) for p in (10, 11)]
    placed = place(events(("bulk", {"gfp": 0xCC2, "arg": 4}), *refill, ("bulk_end", {}), ("bulk_ret", {"arg": 4})))
    assert kinds(placed.ops) == [BULK_BEGIN, BULK_LOCKED, BULK_LOCKED, BULK_END]
    assert placed.ops[-1]["arg2"] == 4
    assert placed.bulks == 1


def test_a_bulk_request_that_falls_back_to_one_page(events: Events) -> None:
    locked = ("mm_page_alloc_zone_locked", {"pfn": 10, "order": 0, "migratetype": 0})
    placed = place(events(("bulk", {"gfp": 0xCC2, "arg": 1}), locked, ("pcp_alloc", {}), page(10), ("bulk_ret", {"arg": 1})))
    assert kinds(placed.ops) == [BULK_BEGIN, ALLOC]
    assert placed.ops[placed.ops["op"] == ALLOC][0]["at"] == 1


def test_a_drain_of_a_whole_list_comes_in_pieces(events: Events) -> None:
    drains = [("mm_page_pcpu_drain", {"pfn": p, "order": 0, "migratetype": 0}) for p in (1, 2)]
    placed = place(events(("drain_zone", {"arg": 3, "migratetype": 1}), *freed(99, pid=8), *drains))
    assert kinds(placed.ops) == [PREPARE, PCP_FREE, DRAIN]
    assert (placed.ops[-1]["arg"], placed.ops[-1]["migratetype"]) == (3, 1)


def test_an_isolation_that_the_watermark_refused_did_not_happen(events: Events) -> None:
    block = ("isolate", {"pfn": 64, "order": 4})
    assert kinds(place(events(block, ("isolate_ret", {"arg": 16}))).ops) == [ISOLATED]
    assert kinds(place(events(block, ("isolate_ret", {"arg": 0}))).ops) == []


def test_turned_lists_and_walks(events: Events) -> None:
    table = events(
        ("walk", {"gfp": 0xCC0, "order": 0, "arg": 0x801}), ("rotate", {"pfn": 64, "order": 4, "migratetype": 1, "arg": 1}), ("pcp_alloc", {}), page(10)
    )
    placed = place(table)
    assert [int(o) for o in placed.ops["op"]] == [WALK, ROTATE, ALLOC]
    assert (placed.ops[2]["arg"], placed.ops[2]["arg2"], placed.ops[2]["context"]) == (1, 0x801, placed.ops[0]["context"])


def test_without_probes_the_printed_order_stands(events: Events) -> None:
    """Plain trace text: a page freed in a list reaches it at mm_page_free_batched, any other at once."""
    table = events(("mm_page_free", {"pfn": 1, "order": 0}), ("mm_page_free", {"pfn": 2, "order": 0}), ("mm_page_free_batched", {"pfn": 1}), page(2))
    placed = place(table)
    assert kinds(placed.ops) == [PREPARE, PREPARE, PCP_FREE, PCP_FREE, ALLOC]
    assert placed.unplaced == 1


def test_an_empty_table(events: Events) -> None:
    assert len(place(events()).ops) == 0


def test_answers_place_nothing(real: dict[str, Recording]) -> None:
    """The order must not depend on the page frames that the kernel returned: with all of them blotted out it stays the same."""
    for recording in real.values():
        blotted = recording.events.with_columns(
            pl.when(pl.col("kind").cast(pl.String) == "mm_page_alloc").then(pl.lit(1, dtype=pl.Int64)).otherwise("pfn").alias("pfn")
        )
        a, b = place(recording.events, recording.before), place(blotted, recording.before)
        assert all(np.array_equal(a.ops[c], b.ops[c]) for c in ("at", "event", "op", "cpu", "order", "contended"))
