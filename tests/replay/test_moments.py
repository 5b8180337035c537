"""The twin at any moment of a recording."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtwin.errors import RequestError
from mmtwin.mm.tables import PG_ALLOCATED, PG_BUDDY, PG_PCP
from mmtwin.recording.model import Recording
from mmtwin.replay.check import compare, replay
from mmtwin.replay.moments import EARLIER, FREE, follow, moments


def test_stopping_changes_nothing(recordings: dict[str, Recording]) -> None:
    """Looked at on the way, the replay ends as it does without, which is as the kernel did."""
    recording = recordings["files-256m-1cpu"]
    end = len(recording.events)
    free = []
    for moment in moments(recording, [0, 1, end // 3, end // 3, end // 2, end]):
        free.append(int(moment.state.zone["nr_free_pages"].sum()))
    assert recording.after is not None
    assert all(part.equal == part.total for part in compare(moment.state, recording.after))
    assert moment.outcome.counters["page_allocs"] == replay(recording)[0].page_allocs
    assert free[2] == free[3] and len(set(free)) > 2


def test_the_owner_of_a_frame_is_who_got_it(recordings: dict[str, Recording]) -> None:
    """Frames that the events say are handed out are so in the twin's tables, and free ones are on a list."""
    recording = recordings["files-256m-1cpu"]
    for moment in moments(recording, [len(recording.events) // 2, len(recording.events)]):
        flags = moment.state.page["flags"]
        heads = recording.events[moment.owner[moment.owner >= 0]]["pfn"].to_numpy()
        assert np.mean(flags[np.unique(heads)] & PG_ALLOCATED != 0) > 0.999
        free = np.flatnonzero(moment.owner == FREE)
        assert len(free) and not np.any(moment.owner[(flags[: len(moment.owner)] & (PG_BUDDY | PG_PCP)) != 0] >= 0)
    assert np.any(moment.owner == EARLIER)


EVENTS = st.lists(st.tuples(st.integers(0, 31), st.integers(0, 3), st.booleans()), max_size=40)


@given(EVENTS, st.integers(0, 40))
def test_the_last_event_decides(events: list[tuple[int, int, bool]], cut: int) -> None:
    rows = [(10 + i, pfn >> order << order, order, alloc) for i, (pfn, order, alloc) in enumerate(events)]
    expected = np.full(32, EARLIER)
    for row, pfn, order, alloc in rows:
        expected[pfn : pfn + (1 << order)] = row if alloc else FREE
    owner = np.full(32, EARLIER, dtype=np.int64)
    for part in (rows[:cut], rows[cut:]):
        follow(owner, pl.DataFrame(part, schema={"row": pl.Int64, "pfn": pl.Int64, "order": pl.Int64, "alloc": pl.Boolean}, orient="row"))
    assert owner.tolist() == expected.tolist()


def test_moments_that_are_not_there(recordings: dict[str, Recording]) -> None:
    recording = recordings["files-256m-1cpu"]
    with pytest.raises(RequestError, match=r"event 99999999: the recording has events 0 to"):
        next(moments(recording, [99999999]))
    with pytest.raises(RequestError, match="ascending"):
        next(moments(recording, [5, 4]))
