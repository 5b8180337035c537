"""Linked lists against Python's own."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from mmtwin.mm.list import list_add, list_add_tail, list_del, list_empty
from mmtwin.mm.tables import Pgdat, new_pgdat


def pages_on(state: Pgdat, head: int) -> list[int]:
    found, at = [], int(state.page[head]["next"])
    while at != head:
        found.append(at)
        at = int(state.page[at]["next"])
    return found


@given(st.lists(st.tuples(st.sampled_from(["head", "tail", "del"]), st.integers(0, 15)), max_size=60))
def test_against_a_python_list(steps: list[tuple[str, int]]) -> None:
    state = new_pgdat(16, 1)
    head, model = 16, list[int]()
    for what, row in steps:
        if what == "del" and row in model:
            list_del(state.page, row)
            model.remove(row)
        elif what != "del" and row not in model:
            if what == "head":
                list_add(state.page, row, head)
                model.insert(0, row)
            else:
                list_add_tail(state.page, row, head)
                model.append(row)
        assert pages_on(state, head) == model
        assert list_empty(state.page, head) == (not model)


def test_new_lists_are_empty(walk: Callable[[Pgdat, int], list[int]]) -> None:
    state = new_pgdat(8, 2)
    assert all(list_empty(state.page, head) and walk(state, head) == [] for head in range(8, len(state.page)))
