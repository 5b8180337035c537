"""Free ranges and areas against a search that looks at every page."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmtwin.mm.vmap_tables import NIL
from mmtwin.user import vma
from mmtwin.user.mm_tables import VM_GROWSDOWN, Users, areas_of, new_users
from mmtwin.user.validate import _check_areas

PAGE = 4096
TOP = 200


def space(areas: list[tuple[int, int]], stack: int) -> Users:
    """An address space of TOP pages with areas at these pages; the one with index `stack` is a stack."""
    s = new_users(16, 1)
    s.mm[0]["used"], s.mm[0]["task_size"], s.config[0]["mms"], s.config[0]["guard_gap"] = 1, TOP * PAGE, 1, 3 * PAGE
    for i, (start, end) in enumerate(areas):
        row = int(vma.new_vma(s))
        s.vma[row]["vm_start"], s.vma[row]["vm_end"], s.vma[row]["vm_file"] = start * PAGE, end * PAGE, -1
        s.vma[row]["vm_flags"] = VM_GROWSDOWN if i == stack else 0
        vma.vma_link(s, 0, row)
        size = "stack_vm" if i == stack else "total_vm"
        s.mm[0]["total_vm"] += end - start
        s.mm[0]["stack_vm"] += end - start if size == "stack_vm" else 0
    return s


@st.composite
def areas(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Areas that do not overlap, in any order."""
    cuts = sorted(draw(st.sets(st.integers(1, TOP), max_size=40)))
    found = [(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False) if a < b]
    return draw(st.permutations(found))


def free_pages(s: Users) -> np.ndarray:  # type: ignore[type-arg]
    free = np.ones(TOP, dtype=bool)
    for row in areas_of(s, 0):
        start = int(vma.vm_start_gap(s, row)) // PAGE
        free[start : int(s.vma[row]["vm_end"]) // PAGE] = False
    return free


def highest(s: Users, low: int, high: int, length: int) -> int:
    """The kernel's rule page by page: it keeps out of a stack's gap only when the stack is the next area above, and then goes on below the gap."""
    areas = [(int(s.vma[row]["vm_start"]) // PAGE, int(s.vma[row]["vm_end"]) // PAGE, int(vma.vm_start_gap(s, row)) // PAGE) for row in areas_of(s, 0)]
    while True:
        fits = [at for at in range(low, high - length + 1) if all(at + length <= start or end <= at for start, end, _ in areas)]
        if not fits:
            return -12
        above = min((area for area in areas if area[1] >= max(fits) + length), default=None)
        if above is None or above[2] >= max(fits) + length:
            return max(fits) * PAGE
        high = above[2]


def gap_is_clear(s: Users) -> bool:
    """No area lies in the stack's gap (one that was placed there with MAP_FIXED may)."""
    rows = areas_of(s, 0)
    return all(int(s.vma[before]["vm_end"]) <= int(vma.vm_start_gap(s, row)) for before, row in pairwise(rows))


@settings(max_examples=300, deadline=None)
@example([(1, 2), (3, 4)], 1, 1, 0, 1)
@given(areas(), st.integers(-1, 20), st.integers(1, 40), st.integers(0, TOP), st.integers(0, TOP))
def test_placement_equals_a_linear_search(where: list[tuple[int, int]], stack: int, length: int, low: int, high: int) -> None:
    s = space(where, stack)
    _check_areas(s, 0, areas_of(s, 0))
    free = free_pages(s)
    fits = [at for at in range(low, high - length + 1) if free[at : at + length].all()]
    found = int(vma.unmapped_area_topdown(s, 0, low * PAGE, high * PAGE, length * PAGE))
    assert found == highest(s, low, high, length)
    if gap_is_clear(s):
        assert found == (max(fits) * PAGE if fits else -12)
    if stack < 0:
        found = int(vma.unmapped_area(s, 0, low * PAGE, high * PAGE, length * PAGE))
        assert found == (min(fits) * PAGE if fits else -12)


@settings(max_examples=200, deadline=None)
@given(areas(), st.lists(st.integers(0, 30)), st.integers(0, TOP * PAGE))
def test_find_and_unlink(where: list[tuple[int, int]], gone: list[int], address: int) -> None:
    s = space(where, -1)
    for n in gone:
        rows = areas_of(s, 0)
        if not rows:
            break
        row = rows[n % len(rows)]
        s.mm[0]["total_vm"] -= (int(s.vma[row]["vm_end"]) - int(s.vma[row]["vm_start"])) // PAGE
        vma.vma_unlink(s, row)
        vma.free_vma(s, row)
        _check_areas(s, 0, areas_of(s, 0))
    want = next((row for row in areas_of(s, 0) if int(s.vma[row]["vm_end"]) > address), NIL)
    assert int(vma.find_vma(s, 0, address)) == want
    assert int(vma.find_vma(s, 0, address)) == want
