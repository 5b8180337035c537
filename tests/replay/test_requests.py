from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmtwin.errors import RecordingError
from mmtwin.recording import store
from mmtwin.recording.model import Recording
from mmtwin.replay.requests import (
    FLAG_MAYBE,
    FLAG_REFUSED,
    OBJECT_ALLOC,
    OBJECT_FREE,
    PAGES_ALLOC,
    PAGES_BULK,
    PAGES_FREE,
    REQUEST,
    Requests,
    _with_lifetimes,
    requests,
)  # fmt: skip

RECORDINGS = Path(__file__).parents[1] / "recordings"


@pytest.fixture(scope="module")
def pipes() -> Recording:
    return store.load(RECORDINGS / "pipes-512m-1cpu-slab.mmrec")


@pytest.fixture(scope="module")
def asked(pipes: Recording) -> Requests:
    return requests(pipes)


def count(recording: Recording, kind: str) -> int:
    return int((recording.events["kind"].cast(pl.String) == kind).sum())


def test_what_was_asked(pipes: Recording, asked: Requests) -> None:
    ops = asked.table["op"]
    assert asked.unknown == {} and asked.failed == 0
    new = count(pipes, "slab_new")
    assert new > 0
    assert np.count_nonzero(ops == PAGES_ALLOC) == count(pipes, "mm_page_alloc") - new  # a slab's pages are nobody's request
    small = pipes.events.filter((pl.col("kind").cast(pl.String) == "kmalloc") & (pl.col("bytes_alloc") <= 8192))
    assert abs(np.count_nonzero(ops == OBJECT_ALLOC) - len(small) - count(pipes, "kmem_cache_alloc")) <= 2
    assert int(asked.table["arg"][ops == PAGES_BULK].sum()) == 60


def test_every_number_is_handed_out_once(asked: Requests) -> None:
    table = asked.table
    for alloc, free, old in ((OBJECT_ALLOC, OBJECT_FREE, asked.old_objects), (PAGES_ALLOC, PAGES_FREE, asked.old_blocks)):
        born = table["id"][table["op"] == alloc]
        assert len(np.unique(born)) == len(born)
        assert not np.isin(old[:, 0], born).any()
        at = {int(n): i for i, n in zip(np.flatnonzero(table["op"] == alloc), born, strict=True)}
        freed = np.flatnonzero(table["op"] == free)
        assert all(at.get(int(table["id"][i]), -1) < i for i in freed)


def test_a_granted_refusal_lives_as_long_as_its_like() -> None:
    table = np.zeros(12, dtype=REQUEST)
    for number, (alloc, free) in enumerate(((0, 4), (1, 5), (2, 8))):
        table["op"][[alloc, free]], table["id"][[alloc, free]] = (PAGES_ALLOC, PAGES_FREE), number
    table["op"][6], table["id"][6], table["flag"][6] = PAGES_ALLOC, 3, FLAG_REFUSED
    longer = _with_lifetimes(table)
    maybe = np.flatnonzero(longer["flag"] & FLAG_MAYBE)
    assert maybe.tolist() == [10] and int(longer["id"][10]) == 3 and int(longer["op"][10]) == PAGES_FREE


def test_refuses_what_has_no_state(pipes: Recording) -> None:
    with pytest.raises(RecordingError, match="state to start from"):
        requests(replace(pipes, before=None))
    with pytest.raises(RecordingError, match="mmtwin record"):
        requests(replace(pipes, provenance=replace(pipes.provenance, probes=[])))
