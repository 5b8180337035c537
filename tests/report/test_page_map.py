"""The map's encoding: what goes in comes out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtwin.report import page_map
from mmtwin.report.page_map import PageMap, _numbers, decode, varints

ORDER = 3  # pageblocks of 8 frames
FRAMES = 40
MOMENTS = st.lists(
    st.lists(st.tuples(st.integers(0, FRAMES - 1), st.integers(1, 9), st.integers(0, 300), st.integers(-1, 1 << 30)), max_size=8), min_size=1, max_size=6
)


@given(st.lists(st.integers(0, (1 << 60) - 1)))
def test_varints(numbers: list[int]) -> None:
    assert _numbers(varints(np.array(numbers, dtype=np.int64))) == numbers


def test_varints_are_short() -> None:
    assert varints(np.array([0, 127, 128, 300], dtype=np.int64)) == b"\x00\x7f\x80\x01\xac\x02"


@given(MOMENTS)
def test_frames_come_back(moments: list[list[tuple[int, int, int, int]]]) -> None:
    """Holes that fill a whole pageblock are left out; everything else is there at every moment."""
    memory = np.ones(FRAMES, dtype=bool)
    memory[8:16] = False
    memory[18] = False
    made = PageMap(memory, ORDER, len(moments))
    assert made.ranges == [(0, 8), (16, 24)] and made.share == 1
    holder, event = np.zeros(FRAMES, dtype=np.int32), np.full(FRAMES, -1, dtype=np.int32)
    expected = []
    for changes in moments:
        for first, count, one, row in changes:
            holder[first : first + count], event[first : first + count] = one, row
        made.add(holder.copy(), event.copy(), np.zeros(301, dtype=np.int64))
        shown = np.concatenate((np.arange(8), np.arange(16, FRAMES)))
        expected.append((holder[shown].tolist(), event[shown].tolist()))
    assert [(h.tolist(), e.tolist()) for h, e in decode(made.to_dict())] == expected


def test_a_large_machine_shows_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two frames a cell: a pageblock's cells are sorted by class, then by holder, and stand for as many frames as they are shown for."""
    monkeypatch.setattr(page_map, "MOST_CELLS", 10)
    made = PageMap(np.ones(16, dtype=bool), ORDER, 3)
    assert (made.share, made.to_dict()["cells"]) == (2, 8)
    classes = np.array([1, 0, 1])
    first, second = [2, 1, 2, 1, 0, 1, 0, 1], [0] * 8
    made.add(np.array(first + second, dtype=np.int32), np.arange(16, dtype=np.int32), classes)
    made.add(np.array(first + second[:6] + [1, 1], dtype=np.int32), np.arange(16, dtype=np.int32), classes)
    (holder, event), (later, _) = decode(made.to_dict())
    assert holder.tolist() == [1, 1, 0, 2] + [0] * 4
    assert later.tolist() == [1, 1, 0, 2, 1, 0, 0, 0]
    assert set(event.tolist()) == {-1}


def test_nothing_changed_costs_nothing() -> None:
    made = PageMap(np.ones(16, dtype=bool), ORDER, 3)
    for _ in range(3):
        made.add(np.zeros(16, dtype=np.int32), np.full(16, 5, dtype=np.int32), np.zeros(1, dtype=np.int64))
    assert made.to_dict()["runs"] == [1, 0, 0]


def test_what_changes_too_much_is_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first and the last moment are always there; in between the map stays as it was where there is no room."""
    moments, frames = 50, 4096
    random = np.random.default_rng(1)
    every = [random.integers(0, 1000, frames, dtype=np.int32) for _ in range(moments)]
    sizes = {}
    for room in (1 << 30, 100_000):
        monkeypatch.setattr(page_map, "MOST_BYTES", room)
        made = PageMap(np.ones(frames, dtype=bool), 9, moments)
        for holder in every:
            made.add(holder, np.full(frames, -1, dtype=np.int32), np.zeros(1000, dtype=np.int64))
        data = made.to_dict()
        shown = [holder.tolist() for holder, _ in decode(data)]
        kept = 0
        for step in range(moments):
            kept = step if step in data["looked"] else kept
            assert shown[step] == every[kept].tolist()
        sizes[room] = len(data["looked"]), made._bytes
    assert sizes[1 << 30][0] == moments and {0, moments - 1} <= set(data["looked"])
    assert 3 < sizes[100_000][0] < 12 and sizes[100_000][1] < 140_000
