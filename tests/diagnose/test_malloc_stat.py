"""Sums of malloc calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmtwin.diagnose.blame import blame
from mmtwin.diagnose.malloc_stat import objects
from mmtwin.diagnose.stat import stat
from mmtwin.errors import RequestError
from mmtwin.recording import store
from mmtwin.recording.readers import malloc_trace
from mmtwin.user.ptmalloc import CALL_FREE, CALL_MALLOC, CALL_REALLOC
from mmtwin.user.ptmalloc_entry import CALL
from tests.recording.readers.test_malloc_trace import raw

DATA = Path(__file__).parents[1] / "data"


def test_sums_by_hand() -> None:
    calls = [
        (CALL_MALLOC, 0, 1, 0, 100, 0, 4112), (CALL_MALLOC, 0, 1, 0, 200_000, 0, 0x7F0000000010), (CALL_REALLOC, 0, 2, 0, 4112, 20, 8208),
        (CALL_FREE, 0, 2, 0, 0x7F0000000010, 0, 0), (CALL_MALLOC, 0, 1, 0, 1 << 60, 0, 0), (CALL_REALLOC, 0, 1, 0, 8208, 0, 0), (CALL_REALLOC, 0, 1, 0, 0, 1, 64),
    ]  # fmt: skip
    result = stat(malloc_trace.to_recording(malloc_trace.parse(raw(calls))), "size")
    total = result.summary
    assert (total.allocations, total.failed, total.frees, total.live, total.live_bytes) == (4, 1, 3, 1, 32)
    assert total.bytes_allocated == 112 + 200_704 + 32 + 32 and total.bytes_requested == 100 + 200_000 + 20 + 1
    assert result.clock == "events" and any("realloc is a free" in note for note in result.notes)


def test_a_recorded_program() -> None:
    recording = store.load(DATA / "malloc-gcc-1.mmrec")
    calls = malloc_trace.from_recording(recording).calls
    total = stat(recording, "pid").summary
    assert total.frees_unmatched == total.reused == 0
    assert total.frees_matched == int(np.isin(calls["kind"], CALL_FREE).sum() + ((calls["kind"] == CALL_REALLOC) & (calls["a"] != 0)).sum())
    assert calls.dtype == CALL and objects(recording).events["kind"].n_unique() == 2


def test_it_speaks_of_malloc_and_blame_does_not() -> None:
    recording = store.load(DATA / "malloc-gcc-1.mmrec")
    assert stat(recording, "callsite").rows["label"].to_list() == ["(malloc)"]
    with pytest.raises(RequestError, match="a program's calls of malloc"):
        blame(recording)
