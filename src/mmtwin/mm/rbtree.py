"""The kernel's red-black trees over the table of virtual areas: the same rotations and recolourings as lib/rbtree.c, so the same shape.

Searches for aligned areas depend on the shape of the free tree (mm/vmalloc.py), so an equivalent tree would not do. Nodes are rows, row 0 is no node: it is black and
its `subtree_max_size` is 0 bytes, so looking at a missing child needs no test. An *augmented* tree keeps in each node the largest size in its subtree
(include/linux/rbtree_augmented.h, RB_DECLARE_CALLBACKS_MAX).
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner
from mmtwin.mm.vmap_tables import NIL, RB_BLACK, RB_RED, ZERO_BYTES


@inner
def biased_size(va_start: int, va_end: int) -> int:
    """The bytes from `va_start` to `va_end`, biased. In an order of adding that never leaves 64 bits: compiled code takes it for granted that nothing does."""
    return (va_end + ZERO_BYTES) - va_start if va_end >= 0 else (va_end - va_start) + ZERO_BYTES


@inner
def compute_max(area: Any, node: int) -> int:
    """The largest area in the subtree of `node`, as a biased size, given that its children's are right."""
    entry = area[node]
    largest = biased_size(int(entry["va_start"]), int(entry["va_end"]))
    left = int(area[int(entry["rb_left"])]["subtree_max_size"])
    right = int(area[int(entry["rb_right"])]["subtree_max_size"])
    if left > largest:
        largest = left
    if right > largest:
        largest = right
    return largest


@inner
def propagate(area: Any, node: int, stop: int) -> int:
    """Corrects the maxima from `node` upwards until one is right already, or `stop` is reached; returns how many nodes were looked at."""
    steps = 0
    while node != stop:
        largest = compute_max(area, node)
        steps += 1
        if int(area[node]["subtree_max_size"]) == largest:
            break
        area[node]["subtree_max_size"] = largest
        node = int(area[node]["rb_parent"])
    return steps


@inner
def _rotated(area: Any, old: int, new: int) -> None:
    """The augmentation's ``rotate``: `new` took the place of `old`, which is now its child."""
    area[new]["subtree_max_size"] = area[old]["subtree_max_size"]
    area[old]["subtree_max_size"] = compute_max(area, old)


@inner
def _change_child(area: Any, tree: Any, t: int, old: int, new: int, parent: int) -> None:
    if parent == NIL:
        tree[t]["rb_root"] = new
    elif int(area[parent]["rb_left"]) == old:
        area[parent]["rb_left"] = new
    else:
        area[parent]["rb_right"] = new


@inner
def _rotate_set_parents(area: Any, tree: Any, t: int, old: int, new: int, color: int) -> None:
    """``__rb_rotate_set_parents``: `new` takes the parent and the colour of `old`, which becomes its child of the given colour."""
    parent = int(area[old]["rb_parent"])
    area[new]["rb_parent"] = parent
    area[new]["rb_color"] = area[old]["rb_color"]
    area[old]["rb_parent"] = new
    area[old]["rb_color"] = color
    _change_child(area, tree, t, old, new, parent)


@inner
def _paint(area: Any, node: int, parent: int, color: int) -> None:
    """``rb_set_parent_color``."""
    area[node]["rb_parent"] = parent
    area[node]["rb_color"] = color


@inner
def rb_link_node(area: Any, tree: Any, t: int, node: int, parent: int, right: bool) -> None:
    """Hangs a red node without children below `parent`; NIL: it is the root."""
    entry = area[node]
    entry["rb_parent"] = parent
    entry["rb_color"] = RB_RED
    entry["rb_left"] = NIL
    entry["rb_right"] = NIL
    if parent == NIL:
        tree[t]["rb_root"] = node
    elif right:
        area[parent]["rb_right"] = node
    else:
        area[parent]["rb_left"] = node


@inner
def rb_insert(area: Any, tree: Any, t: int, node: int, augment: bool) -> int:
    """``rb_insert_color`` and ``rb_insert_augmented``: balances the tree after `rb_link_node`; returns the number of rotations."""
    parent = int(area[node]["rb_parent"])
    rotations = 0
    while True:
        if parent == NIL:
            area[node]["rb_color"] = RB_BLACK
            break
        if int(area[parent]["rb_color"]) == RB_BLACK:
            break
        grandparent = int(area[parent]["rb_parent"])
        uncle = int(area[grandparent]["rb_right"])
        left = parent != uncle
        if not left:
            uncle = int(area[grandparent]["rb_left"])
        if int(area[uncle]["rb_color"]) == RB_RED:
            # Case 1: the uncle is red too. Colours are exchanged with the grandparent, where the same question arises.
            _paint(area, uncle, grandparent, RB_BLACK)
            _paint(area, parent, grandparent, RB_BLACK)
            node = grandparent
            parent = int(area[node]["rb_parent"])
            area[node]["rb_color"] = RB_RED
            continue
        if left:
            child = int(area[parent]["rb_right"])
            if node == child:
                # Case 2: the node is the inner grandchild: rotate at the parent to make it the outer one.
                child = int(area[node]["rb_left"])
                area[parent]["rb_right"] = child
                area[node]["rb_left"] = parent
                if child != NIL:
                    _paint(area, child, parent, RB_BLACK)
                _paint(area, parent, node, RB_RED)
                if augment:
                    _rotated(area, parent, node)
                rotations += 1
                parent = node
                child = int(area[node]["rb_right"])
            # Case 3: the node is the outer grandchild: rotate at the grandparent.
            area[grandparent]["rb_left"] = child
            area[parent]["rb_right"] = grandparent
        else:
            child = int(area[parent]["rb_left"])
            if node == child:
                child = int(area[node]["rb_right"])
                area[parent]["rb_left"] = child
                area[node]["rb_right"] = parent
                if child != NIL:
                    _paint(area, child, parent, RB_BLACK)
                _paint(area, parent, node, RB_RED)
                if augment:
                    _rotated(area, parent, node)
                rotations += 1
                parent = node
                child = int(area[node]["rb_left"])
            area[grandparent]["rb_right"] = child
            area[parent]["rb_left"] = grandparent
        if child != NIL:
            _paint(area, child, grandparent, RB_BLACK)
        _rotate_set_parents(area, tree, t, grandparent, parent, RB_RED)
        if augment:
            _rotated(area, grandparent, parent)
        rotations += 1
        break
    return rotations


@inner
def _unlink(area: Any, tree: Any, t: int, node: int, augment: bool) -> int:
    """``__rb_erase_augmented``: takes the node out; returns where black nodes are missing then, NIL if nowhere."""
    right = int(area[node]["rb_right"])
    left = int(area[node]["rb_left"])
    parent = int(area[node]["rb_parent"])
    color = int(area[node]["rb_color"])
    if left == NIL or right == NIL:
        child = left if left != NIL else right
        _change_child(area, tree, t, node, child, parent)
        if child != NIL:
            _paint(area, child, parent, color)
            rebalance = NIL
        else:
            rebalance = parent if color == RB_BLACK else NIL
        changed = parent
    else:
        successor = right
        below = int(area[successor]["rb_left"])
        if below == NIL:
            hole = successor
            orphan = int(area[successor]["rb_right"])
            if augment:
                area[successor]["subtree_max_size"] = area[node]["subtree_max_size"]
        else:
            hole = successor
            while below != NIL:
                hole = successor
                successor = below
                below = int(area[successor]["rb_left"])
            orphan = int(area[successor]["rb_right"])
            area[hole]["rb_left"] = orphan
            area[successor]["rb_right"] = right
            area[right]["rb_parent"] = successor
            if augment:
                area[successor]["subtree_max_size"] = area[node]["subtree_max_size"]
                propagate(area, hole, successor)
        area[successor]["rb_left"] = left
        area[left]["rb_parent"] = successor
        _change_child(area, tree, t, node, successor, parent)
        if orphan != NIL:
            _paint(area, orphan, hole, RB_BLACK)
            rebalance = NIL
        else:
            rebalance = hole if int(area[successor]["rb_color"]) == RB_BLACK else NIL
        _paint(area, successor, parent, color)
        changed = successor
    if augment:
        propagate(area, changed, NIL)
    return rebalance


@inner
def _rebalance(area: Any, tree: Any, t: int, parent: int, augment: bool) -> int:
    """``____rb_erase_color``: one black node is missing on the side of `parent` that is empty; returns the number of rotations."""
    node = NIL
    rotations = 0
    while parent != NIL:
        sibling = int(area[parent]["rb_right"])
        left = node != sibling
        if not left:
            sibling = int(area[parent]["rb_left"])
        if int(area[sibling]["rb_color"]) == RB_RED:
            # Case 1: rotate at the parent, so that the sibling is black.
            if left:
                inner_child = int(area[sibling]["rb_left"])
                area[parent]["rb_right"] = inner_child
                area[sibling]["rb_left"] = parent
            else:
                inner_child = int(area[sibling]["rb_right"])
                area[parent]["rb_left"] = inner_child
                area[sibling]["rb_right"] = parent
            _paint(area, inner_child, parent, RB_BLACK)
            _rotate_set_parents(area, tree, t, parent, sibling, RB_RED)
            if augment:
                _rotated(area, parent, sibling)
            rotations += 1
            sibling = inner_child
        if left:
            outer, near = int(area[sibling]["rb_right"]), int(area[sibling]["rb_left"])
        else:
            outer, near = int(area[sibling]["rb_left"]), int(area[sibling]["rb_right"])
        if int(area[outer]["rb_color"]) == RB_BLACK:
            if int(area[near]["rb_color"]) == RB_BLACK:
                # Case 2: the sibling becomes red; a red parent becomes black and all is well, below a black one the same question arises.
                _paint(area, sibling, parent, RB_RED)
                if int(area[parent]["rb_color"]) == RB_RED:
                    area[parent]["rb_color"] = RB_BLACK
                    break
                node = parent
                parent = int(area[node]["rb_parent"])
                continue
            # Case 3: rotate at the sibling, so that its outer child is red.
            if left:
                moved = int(area[near]["rb_right"])
                area[sibling]["rb_left"] = moved
                area[near]["rb_right"] = sibling
                area[parent]["rb_right"] = near
            else:
                moved = int(area[near]["rb_left"])
                area[sibling]["rb_right"] = moved
                area[near]["rb_left"] = sibling
                area[parent]["rb_left"] = near
            if moved != NIL:
                _paint(area, moved, sibling, RB_BLACK)
            if augment:
                _rotated(area, sibling, near)
            rotations += 1
            outer = sibling
            sibling = near
        # Case 4: rotate at the parent; the outer child becomes black.
        if left:
            near = int(area[sibling]["rb_left"])
            area[parent]["rb_right"] = near
            area[sibling]["rb_left"] = parent
        else:
            near = int(area[sibling]["rb_right"])
            area[parent]["rb_left"] = near
            area[sibling]["rb_right"] = parent
        _paint(area, outer, sibling, RB_BLACK)
        if near != NIL:
            area[near]["rb_parent"] = parent
        _rotate_set_parents(area, tree, t, parent, sibling, RB_BLACK)
        if augment:
            _rotated(area, parent, sibling)
        rotations += 1
        break
    return rotations


@inner
def rb_erase(area: Any, tree: Any, t: int, node: int, augment: bool) -> int:
    """``rb_erase`` and ``rb_erase_augmented``; returns the number of rotations."""
    return _rebalance(area, tree, t, _unlink(area, tree, t, node, augment), augment)


@inner
def rb_prev(area: Any, node: int) -> int:
    """The node before `node` in address order, NIL if there is none."""
    below = int(area[node]["rb_left"])
    if below != NIL:
        while below != NIL:
            node = below
            below = int(area[node]["rb_right"])
        return node
    parent = int(area[node]["rb_parent"])
    while parent != NIL and node == int(area[parent]["rb_left"]):
        node = parent
        parent = int(area[node]["rb_parent"])
    return parent
