"""Rows, lists and merging: the small things that the tests of the allocator do not name."""

from __future__ import annotations

import pytest

from mmtwin.mm.vmap_tables import AREA_FREE, AREA_HELD, AREA_UNUSED, FREED_AREA, TREE_FREE, bias
from mmtwin.mm.vmap_tree import NO_ROOM, free_area_row, free_object, list_add_area, list_add_tail_area, list_del_area, log_freed, merge_or_add, new_area
from tests.vmalloc_machine import PAGE, VmallocMachine


def test_rows_are_used_again_last_first() -> None:
    v = VmallocMachine(areas=4).v
    rows = [new_area(v, 100 + i) for i in range(3)]
    assert new_area(v, 0) == NO_ROOM
    free_area_row(v, rows[0])
    free_object(v, rows[1])
    assert v.freed[: v.config[0]["freed"]].tolist() == [(101, FREED_AREA)]
    assert v.area["state"][rows].tolist() == [AREA_UNUSED, AREA_UNUSED, AREA_HELD]
    assert [new_area(v, 0), new_area(v, 0), new_area(v, 0)] == [rows[1], rows[0], NO_ROOM]
    assert v.config[0]["areas_in_use"] == 4


def test_full_log_counts_on() -> None:
    v = VmallocMachine(areas=4).v
    for i in range(len(v.freed) + 3):
        log_freed(v, i, FREED_AREA)
    assert v.config[0]["freed"] == len(v.freed) + 3 and v.freed[-1]["object"] == len(v.freed) - 1


def test_lists() -> None:
    v = VmallocMachine(612, 2).v
    head = int(v.config[0]["pool_base"])
    rows = [new_area(v, 0) for _ in range(3)]
    list_add_area(v, head, rows[0])
    list_add_area(v, head, rows[1])
    list_add_tail_area(v, head, rows[2])

    def walk(column: str) -> list[int]:
        found, at = [], int(v.area[head][column])
        while at != head:
            found.append(at)
            at = int(v.area[at][column])
        return found

    assert walk("next") == walk("prev")[::-1] == [rows[1], rows[0], rows[2]]
    list_del_area(v, head, rows[0])
    assert walk("next") == walk("prev")[::-1] == [rows[1], rows[2]] and v.tree[head]["nr"] == 2


@pytest.mark.parametrize(
    ("around", "expected", "freed"),
    [
        ([], [(10, 12)], []),
        ([(8, 10)], [(8, 12)], ["new"]),
        ([(12, 20)], [(10, 20)], ["new"]),
        ([(8, 10), (12, 20)], [(8, 20)], ["new", "right"]),
        ([(7, 9), (13, 20)], [(7, 9), (10, 12), (13, 20)], []),
    ],
)
@pytest.mark.parametrize("augment", [False, True])
def test_merging(around: list[tuple[int, int]], expected: list[tuple[int, int]], freed: list[str], augment: bool) -> None:
    """All places that an area can have between its neighbours."""
    machine = VmallocMachine()
    v = machine.v
    tree = TREE_FREE if augment else int(v.config[0]["lazy_tree"])
    if augment:
        v.tree[TREE_FREE]["rb_root"] = v.tree[TREE_FREE]["nr"] = 0
        v.area[TREE_FREE]["next"] = v.area[TREE_FREE]["prev"] = TREE_FREE
    names = {}
    for name, (start, end) in [("left" if a[1] <= 10 else "right", a) for a in around] + [("new", (10, 12))]:
        row = new_area(v, 50 + len(names))
        names[name] = 50 + len(names)
        v.area[row]["va_start"], v.area[row]["va_end"] = bias(start * PAGE), bias(end * PAGE)
        result = merge_or_add(v, tree, row, AREA_FREE, augment)
        assert result != 0 and v.area[result]["state"] == AREA_FREE
    assert machine.on(tree) == [(a * PAGE, b * PAGE) for a, b in expected]
    assert v.freed["object"][: v.config[0]["freed"]].tolist() == [names[name] for name in freed]
    assert v.tree[tree]["nr"] == len(expected) and v.config[0]["merges"] == len(freed)
