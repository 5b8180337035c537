"""The kernel's doubly linked lists over the page table (include/linux/list.h): `head` and entries are row numbers."""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, slow


@inner
def list_add(page: Any, new: int, head: int) -> None:
    """Inserts `new` at the front of the list."""
    first = int(page[head]["next"])
    entry = page[new]
    entry["next"] = first
    entry["prev"] = head
    page[first]["prev"] = new
    page[head]["next"] = new


@inner
def list_add_tail(page: Any, new: int, head: int) -> None:
    """Inserts `new` at the end of the list."""
    last = int(page[head]["prev"])
    entry = page[new]
    entry["next"] = head
    entry["prev"] = last
    page[last]["next"] = new
    page[head]["prev"] = new


@inner
def list_del(page: Any, entry: int) -> None:
    """Removes `entry` from the list it is on."""
    after = int(page[entry]["next"])
    before = int(page[entry]["prev"])
    page[before]["next"] = after
    page[after]["prev"] = before


@inner
def list_empty(page: Any, head: int) -> bool:
    """Whether the list has no entry."""
    return int(page[head]["next"]) == head


@slow
def rotate_to_front(page: Any, head: int, entry: int) -> bool:
    """Turns the list so that it begins with `entry` (list_cut and list_splice in compaction); false if `entry` is not on it."""
    at = int(page[head]["next"])
    while at != entry:
        if at == head:
            return False
        at = int(page[at]["next"])
    list_del(page, head)
    list_add_tail(page, head, entry)
    return True
