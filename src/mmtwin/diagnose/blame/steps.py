"""A recording cut into equal steps, and sums over what was live at each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.diagnose.stat import clock, event_window
from mmtwin.errors import RequestError
from mmtwin.recording.model import Recording

STEPS = 20
MOST_STEPS = 1000

Int = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Steps:
    """Moments at equal distances on the trace clock, the first and the last included.

    :ivar times: of the moments; what happened up to and including that time is past.
    :ivar rows: how many events are past, for `moments`.
    :ivar clock: "ns", or "events" where the clock is a counter.
    """

    times: Int
    rows: Int
    clock: str

    @property
    def start(self) -> int:
        return int(self.times[0])

    @property
    def end(self) -> int:
        return int(self.times[-1])

    def per(self, slope: float) -> float:
        """A slope per unit of time, for people: per second, or per million events."""
        return slope * (1e9 if self.clock == "ns" else 1e6)

    @property
    def unit(self) -> str:
        """What `per` is by."""
        return "s" if self.clock == "ns" else "million events"


def cut(recording: Recording, count: int = STEPS, window: tuple[int | None, int | None] = (None, None)) -> Steps:
    """The moments.

    :param count: steps; there is one moment more.
    :param window: first and last time on the trace clock.
    :raises RequestError: no events, none in the window, or a number of steps that makes no sense.
    """
    if not 1 <= count <= MOST_STEPS:
        raise RequestError(f"{count} steps: expected 1 to {MOST_STEPS}")
    times = recording.events["time"]
    if not len(times):
        raise RequestError("the recording has no events")
    start, end = event_window(times, window)
    at = start + (end - start) * np.arange(count + 1, dtype=np.int64) // count
    passed = np.maximum.accumulate(times.to_numpy())  # merged trace text may be slightly out of order
    rows = np.searchsorted(passed, at, side="right")
    rows[0] = np.searchsorted(passed, start, side="left")
    return Steps(at, rows.astype(np.int64), clock(recording))


def live_over_time(table: pl.DataFrame, groups: int, steps: Steps, weight: str) -> Int:
    """How much of each group was live at each moment.

    :param table: group, time, end (null: to the last moment and beyond) and the weight.
    :returns: one row per group, one column per moment.
    """
    n = len(steps.times)
    group, amount = table["group"].to_numpy(), table[weight].to_numpy()
    begins = np.searchsorted(steps.times, table["time"].to_numpy(), side="left")
    ended = table["end"].is_not_null().to_numpy()
    ends = np.searchsorted(steps.times, table["end"].fill_null(0).to_numpy(), side="left")
    change = _sums(group * (n + 1) + begins, amount, groups * (n + 1))
    change -= _sums(group[ended] * (n + 1) + ends[ended], amount[ended], groups * (n + 1))
    return np.cumsum(change.reshape(groups, n + 1), axis=1)[:, :n]


def _sums(where: Int, amount: Int, length: int) -> Int:
    """Sums by place, exact (bincount's weights are floating point: exact up to 2^53 bytes)."""
    return np.rint(np.bincount(where, weights=amount, minlength=length)).astype(np.int64)


def slope(steps: Steps, series: npt.NDArray[np.int64], since: int = 0) -> npt.NDArray[np.float64]:
    """Least-squares slope of each row, per unit of the clock.

    :param since: first moment that counts.
    """
    x = steps.times[since:].astype(np.float64)
    x = x - x.mean()
    spread = float((x * x).sum())
    y = series[:, since:].astype(np.float64)
    return (y - y.mean(axis=1, keepdims=True)) @ x / spread if spread else np.zeros(len(series))
