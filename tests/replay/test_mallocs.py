"""Recorded programs, real and random: the twin returns every address that the C library returned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmtwin.recording.readers import malloc_trace
from mmtwin.replay.mallocs import replay, sources
from mmtwin.user.ptmalloc import CALL_CALLOC, CALL_FREE, CALL_MALLOC, CALL_REALLOC
from mmtwin.user.ptmalloc_entry import CALL

DATA = Path(__file__).parents[1] / "data"
RECORDINGS = sorted(DATA.glob("malloc-*.mmrec"))


def test_there_are_recordings_of_every_sort() -> None:
    names = {path.stem.removeprefix("malloc-") for path in RECORDINGS}
    assert {"gcc-1", "python3", "sqlite3", "shell-1", "random-1", "random-large-1", "random-mallopt-1", "random-threads-1", "random-arenas-1"} <= names


@pytest.mark.parametrize("path", RECORDINGS, ids=[path.stem for path in RECORDINGS])
def test_every_address_is_the_c_librarys(path: Path) -> None:
    trace = malloc_trace.read(path)
    found, answers, _ = replay(trace, validate=True)
    assert found.all_equal and found.answers == found.equal > 10 and not found.differences
    assert len(answers) == len(trace.calls) and found.to_dict()["equal"] == found.equal
    assert found.arenas == (16 if "arenas" in path.stem else 6 if "threads" in path.stem else 1)


def test_other_settings_give_other_addresses() -> None:
    trace = malloc_trace.read(DATA / "malloc-gcc-1.mmrec")
    found, answers, _ = replay(trace, tunables={"tcache_count": 0}, validate=True)
    assert not found.all_equal and found.equal < found.answers and not found.ended
    assert len(found.differences) == 20 and found.differences[0]["function"] in ("malloc", "calloc", "realloc")
    live = answers[np.isin(trace.calls["kind"], (CALL_MALLOC, CALL_CALLOC))]
    assert (live > 0).all()


def test_a_double_free_ends_the_run() -> None:
    trace = malloc_trace.read(DATA / "malloc-shell-1.mmrec")
    at = int(np.flatnonzero(trace.calls["kind"] == CALL_FREE)[0])
    calls = np.concatenate([trace.calls[: at + 1], trace.calls[at : at + 1], trace.calls[at + 1 :]])
    found, _, _ = replay(malloc_trace.MallocTrace(trace.layout, calls))
    assert found.ended == "free(): double free detected in tcache 2" and not found.all_equal and found.equal == found.answers


def test_which_call_handed_out_a_block() -> None:
    calls = np.array(
        [
            (CALL_MALLOC, 0, 1, 0, 10, 0, 64), (CALL_MALLOC, 0, 1, 0, 10, 0, 128), (CALL_FREE, 0, 1, 0, 64, 0, 0), (CALL_FREE, 0, 1, 0, 64, 0, 0),
            (CALL_REALLOC, 0, 1, 0, 128, 1 << 60, 0), (CALL_REALLOC, 0, 1, 0, 128, 20, 128), (CALL_REALLOC, 0, 1, 0, 128, 20, 192), (CALL_FREE, 0, 1, 0, 128, 0, 0),
            (CALL_FREE, 0, 1, 0, 192, 0, 0), (CALL_FREE, 0, 1, 0, 99, 0, 0), (CALL_REALLOC, 0, 1, 0, 0, 5, 64), (CALL_REALLOC, 0, 1, 0, 64, 0, 0), (CALL_FREE, 0, 1, 0, 64, 0, 0),
        ],
        dtype=CALL,
    )  # fmt: skip
    assert sources(calls).tolist() == [-1, -1, 0, -1, 1, 1, 5, -1, 6, -1, -1, 10, -1]
    assert sources(calls[:0]).tolist() == []
