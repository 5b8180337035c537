"""The red-black trees against an independent one with pointers, after a textbook: same shape, same colours, whatever is inserted and deleted."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmtwin.mm.rbtree import biased_size, propagate, rb_erase, rb_insert, rb_link_node, rb_prev
from mmtwin.mm.vmap_tables import NIL, RB_BLACK, VMAP_AREA, VMAP_TREE, ZERO_BYTES, bias, unbias

PAGE = 4096


class Node:
    def __init__(self, key: int, nil: Node | None) -> None:
        self.key, self.red = key, nil is not None
        self.left: Any = nil or self
        self.right: Any = nil or self
        self.parent: Any = nil or self


class Textbook:
    """Red-black trees as in Cormen, Leiserson, Rivest and Stein, 3rd edition, chapter 13."""

    def __init__(self) -> None:
        self.nil = Node(0, None)
        self.root: Any = self.nil

    def rotate(self, x: Any, side: str) -> None:
        other = "left" if side == "right" else "right"
        y = getattr(x, other)
        inside = getattr(y, side)
        setattr(x, other, inside)
        if inside is not self.nil:
            inside.parent = x
        self.transplant(x, y)
        setattr(y, side, x)
        x.parent = y

    def transplant(self, u: Any, v: Any) -> None:
        if u.parent is self.nil:
            self.root = v
        elif u is u.parent.left:
            u.parent.left = v
        else:
            u.parent.right = v
        v.parent = u.parent

    def insert(self, key: int) -> None:
        z, y, x = Node(key, self.nil), self.nil, self.root
        while x is not self.nil:
            y = x
            x = x.left if key < x.key else x.right
        z.parent = y
        if y is self.nil:
            self.root = z
        elif key < y.key:
            y.left = z
        else:
            y.right = z
        while z.parent.red:
            side, other = ("left", "right") if z.parent is z.parent.parent.left else ("right", "left")
            uncle = getattr(z.parent.parent, other)
            if uncle.red:
                z.parent.red = uncle.red = False
                z.parent.parent.red = True
                z = z.parent.parent
            else:
                if z is getattr(z.parent, other):
                    z = z.parent
                    self.rotate(z, side)
                z.parent.red = False
                z.parent.parent.red = True
                self.rotate(z.parent.parent, other)
        self.root.red = False

    def delete(self, key: int) -> None:
        z = self.root
        while z.key != key:
            z = z.left if key < z.key else z.right
        y, was_red = z, z.red
        if z.left is self.nil:
            x = z.right
            self.transplant(z, x)
        elif z.right is self.nil:
            x = z.left
            self.transplant(z, x)
        else:
            y = z.right
            while y.left is not self.nil:
                y = y.left
            was_red, x = y.red, y.right
            if y.parent is z:
                x.parent = y
            else:
                self.transplant(y, y.right)
                y.right = z.right
                y.right.parent = y
            self.transplant(z, y)
            y.left = z.left
            y.left.parent = y
            y.red = z.red
        if was_red:
            return
        while x is not self.root and not x.red:
            side, other = ("left", "right") if x is x.parent.left else ("right", "left")
            w = getattr(x.parent, other)
            if w.red:
                w.red, x.parent.red = False, True
                self.rotate(x.parent, side)
                w = getattr(x.parent, other)
            if not w.left.red and not w.right.red:
                w.red, x = True, x.parent
            else:
                if not getattr(w, other).red:
                    getattr(w, side).red, w.red = False, True
                    self.rotate(w, other)
                    w = getattr(x.parent, other)
                w.red, x.parent.red = x.parent.red, False
                getattr(w, other).red = False
                self.rotate(x.parent, side)
                x = self.root
        x.red = False

    def shape(self, node: Any = None) -> Any:
        node = node or self.root
        return (
            None
            if node is self.nil
            else (
                node.key,
                node.red,
                self.shape(node.left) if node.left is not self.nil else None,
                self.shape(node.right) if node.right is not self.nil else None,
            )
        )


class Table:
    """The same over the tables: row k + 1 has key k."""

    def __init__(self, keys: int, augment: bool) -> None:
        self.area, self.tree, self.augment = np.zeros(keys + 1, dtype=VMAP_AREA), np.zeros(1, dtype=VMAP_TREE), augment
        self.area["va_start"] = np.arange(keys + 1) << 20
        self.area["va_end"] = self.area["va_start"] + (np.arange(keys + 1) * 7919 % 251 + 1) * 4096
        self.area[NIL]["rb_color"], self.area[NIL]["subtree_max_size"] = RB_BLACK, ZERO_BYTES

    def insert(self, key: int) -> None:
        row, parent, at = key + 1, NIL, int(self.tree[0]["rb_root"])
        while at != NIL:
            parent = at
            at = int(self.area[at]["rb_left" if row < at else "rb_right"])
        rb_link_node(self.area, self.tree, 0, row, parent, row > parent)
        rb_insert(self.area, self.tree, 0, row, self.augment)
        if self.augment:
            self.area[row]["subtree_max_size"] = ZERO_BYTES
            propagate(self.area, row, NIL)

    def delete(self, key: int) -> None:
        rb_erase(self.area, self.tree, 0, key + 1, self.augment)

    def shape(self) -> Any:
        return self.below(int(self.tree[0]["rb_root"]), NIL)

    def below(self, row: int, parent: int) -> Any:
        if row == NIL:
            return None
        entry = self.area[row]
        assert entry["rb_parent"] == parent
        return row - 1, entry["rb_color"] != RB_BLACK, self.below(int(entry["rb_left"]), row), self.below(int(entry["rb_right"]), row)

    def largest(self, row: int) -> int:
        """The largest size below a row, counted anew; every node has to know its own."""
        if row == NIL:
            return 0
        entry = self.area[row]
        found = max(int(entry["va_end"] - entry["va_start"]), self.largest(int(entry["rb_left"])), self.largest(int(entry["rb_right"])))
        assert unbias(int(entry["subtree_max_size"])) == found
        return found


def use(choices: list[int], keys: int, augment: bool) -> None:
    textbook, table, present = Textbook(), Table(keys, augment), set[int]()
    for choice in choices:
        key = choice % keys
        if key in present:
            textbook.delete(key)
            table.delete(key)
        else:
            textbook.insert(key)
            table.insert(key)
        present ^= {key}
        expected = None if textbook.root is textbook.nil else textbook.shape()
        assert table.shape() == expected
        if augment:
            table.largest(int(table.tree[0]["rb_root"]))
    order = sorted(present)
    for i, key in enumerate(order):
        assert rb_prev(table.area, key + 1) == (order[i - 1] + 1 if i else NIL)


@given(st.lists(st.integers(0, 1 << 16), max_size=120), st.sampled_from([3, 8, 20, 40]))
def test_same_shape(choices: list[int], keys: int) -> None:
    use(choices, keys, False)


@given(st.lists(st.integers(0, 1 << 16), max_size=120), st.sampled_from([3, 8, 20, 40]))
def test_same_shape_and_maxima(choices: list[int], keys: int) -> None:
    use(choices, keys, True)


def test_long() -> None:
    random = np.random.default_rng(1)
    use(random.integers(0, 1 << 20, 3000).tolist(), 300, True)
    use([*range(200), *range(0, 200, 3), *reversed(range(200))], 200, True)


def test_rotations_are_counted() -> None:
    table = Table(3, False)
    counts = []
    for key in (0, 1, 2):
        row = key + 1
        rb_link_node(table.area, table.tree, 0, row, row - 1, True)
        counts.append(rb_insert(table.area, table.tree, 0, row, False))
    assert counts == [0, 0, 1]
    assert table.shape() == (1, False, (0, True, None, None), (2, True, None, None))


def test_sizes_above_half_of_the_space() -> None:
    """The hole below the kernel's half is larger than a signed number; in any order of adding, compiled code would be allowed to get it wrong."""
    for start, end in ((1, 0xFFFFC90000000000), (1, (1 << 64) - 1), (1, 2), (0xFFFFC90000000000, (1 << 64) - 1), (PAGE, 1 << 63), (PAGE, (1 << 63) - PAGE)):
        assert unbias(biased_size(bias(start), bias(end))) == end - start
