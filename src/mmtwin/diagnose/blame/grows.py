"""Who grows: live bytes over time and their slope, by call site, by cache, by page request.

Every group starts at nothing, as what is older than the recording is not in its events; so each rises at first, leak or not. The slope is therefore that of the recording's second
half. SLUB's own tables, where slab events were recorded, know the older objects too: `caches_over_time`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from mmtwin.diagnose.blame.lives import Lives
from mmtwin.diagnose.blame.steps import Int, Steps, live_over_time, slope

SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "label": pl.String, "live_start": pl.Int64, "live_end": pl.Int64, "peak": pl.Int64, "slope": pl.Float64, "allocations": pl.Int64, "series": pl.List(pl.Int64),
}  # fmt: skip


@dataclass(frozen=True)
class Grows:
    """Groups by how fast they grow.

    :ivar what: "objects", "caches" or "pages".
    :ivar rows: label, live_start and live_end (bytes at the first and the last moment), peak, slope (bytes per second or per million events, over the second half), allocations (null of
        "caches"), series (bytes at each moment).
    """

    what: str
    rows: pl.DataFrame


def grows(what: str, lives: Lives, steps: Steps) -> Grows:
    """Growth of what the events tell."""
    series = live_over_time(lives.table, len(lives.names), steps, "bytes")
    inside = lives.table.filter(pl.col("time") >= steps.start)["group"].to_numpy()
    counts = np.bincount(inside, minlength=len(lives.names)).tolist()
    return _rows(what, lives.names, series, steps, counts)


def caches_over_time(what: str, bytes_of: list[Mapping[str, int]], steps: Steps) -> Grows:
    """Growth of caches by their bytes in live objects at each moment."""
    names = sorted({name for moment in bytes_of for name in moment})
    series = np.array([[moment.get(name, 0) for moment in bytes_of] for name in names], dtype=np.int64).reshape(len(names), len(steps.times))
    return _rows(what, names, series, steps, None)


def _rows(what: str, names: list[str], series: Int, steps: Steps, counts: list[int] | None) -> Grows:
    rising = [steps.per(value) for value in slope(steps, series, len(steps.times) // 2).tolist()]
    rows = pl.DataFrame(
        {
            "label": names, "live_start": series[:, 0], "live_end": series[:, -1], "peak": series.max(axis=1, initial=0), "slope": rising,
            "allocations": counts if counts is not None else [None] * len(names), "series": series.tolist(),
        },
        schema=SCHEMA,
    )  # fmt: skip
    used = rows.filter((pl.col("peak") > 0) | (pl.col("allocations") > 0))
    return Grows(what, used.sort("slope", "live_end", "label", descending=[True, True, False]))
