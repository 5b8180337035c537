"""The twin at any moment of a recording: its state before an event, and which request each page frame belongs to.

The state is the one that `mmtwin replay --check` compares at the end, so what it says of a moment is what the kernel's own tables held then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.errors import RequestError
from mmtwin.mm.slab_tables import Slub
from mmtwin.mm.tables import Pgdat
from mmtwin.recording.model import Recording
from mmtwin.replay.engine import Outcome, run_until
from mmtwin.replay.start import start

EARLIER = -1
"""In `Moment.owner`: not handed out or freed since the recording began."""
FREE = -2
"""In `Moment.owner`: freed, and not handed out again."""


class Moment(NamedTuple):
    """The machine just before an event.

    :param event: row of the recording's events; len(events) is the end.
    :param state: the page allocator's tables; they go on changing when the next moment is asked for.
    :param slub: SLUB's tables; None where its events were not recorded.
    :param cache_names: names of slab caches by their row.
    :param owner: for each page frame the row of the mm_page_alloc event that handed it out, `EARLIER` or `FREE`. From the printed events alone: pages that were
        taken without an event (bulk allocations, compaction) keep what was said of them last.
    :param outcome: what the replay has counted so far.
    """

    event: int
    state: Pgdat
    slub: Slub | None
    cache_names: list[str]
    owner: npt.NDArray[np.int64]
    outcome: Outcome


def moments(recording: Recording, events: Sequence[int]) -> Iterator[Moment]:
    """The machine just before each of these events, in one replay.

    :param events: rows of the recording's events, ascending; len(recording.events) is the end.
    :raises RecordingError: the recording has no snapshot of the page allocator.
    :raises RequestError: a row that the recording does not have, or rows that are not ascending.
    """
    rows = [int(event) for event in events]
    for row in rows:
        if not 0 <= row <= len(recording.events):
            raise RequestError(f"event {row}: the recording has events 0 to {len(recording.events)} (its end)")
    if rows != sorted(rows):
        raise RequestError("the events must be in ascending order")
    begin = start(recording)
    stops = np.searchsorted(begin.placement.ops["at"], rows).tolist()
    owner = np.full(int(begin.state.config[0]["nr_frames"]), EARLIER, dtype=np.int64)
    pages = _page_events(recording.events)
    known = 0
    for row, outcome in zip(rows, run_until(begin.state, begin.placement, stops, slub=begin.slub), strict=True):
        follow(owner, pages.filter(pl.col("row").is_between(known, row, closed="left")))
        known = row
        yield Moment(row, outcome.state, None if begin.slub is None else outcome.slub, begin.cache_names, owner, outcome)


def _page_events(events: pl.DataFrame) -> pl.DataFrame:
    """The successful allocations of pages and the frees: row, pfn, order, alloc."""
    kind = pl.col("kind")
    return (
        events.lazy()
        .with_row_index("row")
        .filter(kind.is_in(["mm_page_alloc", "mm_page_free", "mm_page_free_batched"]) & (pl.col("pfn") >= 0))
        .select(pl.col("row").cast(pl.Int64), "pfn", pl.col("order").clip(0).cast(pl.Int64), (kind == "mm_page_alloc").alias("alloc"))
        .collect()
    )


def follow(owner: npt.NDArray[np.int64], pages: pl.DataFrame) -> None:
    """Brings `owner` up to date with more events: the last one that names a frame decides.

    :param pages: row (ascending), pfn, order, alloc.
    """
    last = np.full(len(owner), -1, dtype=np.int64)
    for order in pages["order"].unique().to_list():
        some = pages.filter((pl.col("order") == order) & (pl.col("pfn") + (1 << order) <= len(owner)))
        frames = (some["pfn"].to_numpy()[:, None] + np.arange(1 << order)).ravel()
        mine = np.full(len(owner), -1, dtype=np.int64)
        mine[frames] = np.repeat(some["row"].to_numpy(), 1 << order)  # numpy keeps the last of several values for one place
        np.maximum(last, mine, out=last)
    named = np.flatnonzero(last >= 0)
    if len(named):
        rows = pages["row"].to_numpy()
        allocated = pages["alloc"].to_numpy()[np.searchsorted(rows, last[named])]
        owner[named] = np.where(allocated, last[named], FREE)
