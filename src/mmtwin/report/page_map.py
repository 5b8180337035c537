"""The map of page frames over time, small enough for a page: only what changed from one moment to the next, as runs of cells.

A cell is a page frame, or on large machines an equal share of a pageblock's frames: then a pageblock's cells are sorted by what they hold, so that they show shares and
not places. A moment is a list of runs against the moment before (the first: against nothing). Four columns of numbers describe the runs: `gap` (cells since the end of the
run before), `length`, `holder`, and `event` (0: none; else 1 + the difference to the last one, sign in the lowest bit). Each column is a stream of variable-length
numbers, seven bits a byte, lowest first, deflated; the browser inflates it by itself (DecompressionStream).
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]
Frames = npt.NDArray[np.int32]
MOST_CELLS = 1 << 18
"""Cells of a map: 1 GiB of single frames."""
COLUMNS = ("gap", "length", "holder", "event")
MOST_BYTES = 3 << 20
"""Bytes of all columns before they are deflated. Where memory changes so much that they would be more, some moments are left out, evenly: the map then stays as it was."""


class PageMap:
    """Takes one moment after the other.

    :ivar ranges: frames that the map shows, as (first, number) of whole pageblocks that have memory.
    :ivar share: frames of a cell.
    :ivar looked: numbers of the moments that are kept.
    """

    def __init__(self, has_memory: npt.NDArray[np.bool_], pageblock_order: int, moments: int) -> None:
        """:param has_memory: for each page frame whether there is any memory at it. :param moments: how many there will be."""
        self.moments, self._bytes = moments, 0
        self.looked: list[int] = []
        self.block = 1 << pageblock_order
        blocks = -(-len(has_memory) // self.block)
        padded = np.zeros(blocks * self.block, dtype=bool)
        padded[: len(has_memory)] = has_memory
        self._some = np.asarray(padded.reshape(blocks, self.block).any(axis=1))
        edges = np.flatnonzero(np.diff(np.concatenate(([False], self._some, [False])).astype(np.int8)))
        self.ranges = [(int(a) * self.block, int(b - a) * self.block) for a, b in edges.reshape(-1, 2)]
        self.frames = int(self._some.sum()) * self.block
        self.share = 1
        while self.frames // self.share > MOST_CELLS and self.share < self.block:
            self.share *= 2
        self._holder = np.full(self.frames // self.share, -1, dtype=np.int32)
        self._event = np.full(self.frames // self.share, -1, dtype=np.int32)
        self._shown: Frames | None = None
        self._last = 0
        self.runs: list[int] = []
        self._streams: dict[str, list[bytes]] = {name: [] for name in COLUMNS}

    def add(self, holder: Frames, event: Frames, classes: Int) -> None:
        """The next moment.

        :param holder: each frame's holder; `event`: who handed it out, -1 for nobody.
        :param classes: the class of each holder: a pageblock's cells are sorted by it first.
        """
        now = len(self.runs)
        if 0 < now < self.moments - 1 and self._bytes > MOST_BYTES * now // self.moments:
            self.runs.append(0)
            return
        self.looked.append(now)
        if self.share == 1:
            holder, event = self._blocks(holder, 0).ravel(), self._blocks(event, -1).ravel()
        else:
            holder, event = self._shares(self._blocks(holder, 0), classes), self._event
        at = np.flatnonzero(np.not_equal(holder, self._holder) | np.not_equal(event, self._event))
        h, e = holder[at], event[at]
        begins = np.ones(len(at), dtype=bool)
        begins[1:] = (np.diff(at) > 1) | (np.diff(h) != 0) | (np.diff(e) != 0)
        first = np.flatnonzero(begins)
        length = np.diff(np.append(first, len(at)))
        start = at[first]
        gap = start - np.concatenate(([0], (start + length)[:-1]))
        self.runs.append(len(first))
        columns = {"gap": gap, "length": length, "holder": h[first], "event": self._differences(e[first])}
        for name in COLUMNS:
            self._streams[name].append(varints(columns[name]))
            self._bytes += len(self._streams[name][-1])
        self._holder, self._event = holder, event

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the streams in base 64."""
        streams = {name: base64.b64encode(zlib.compress(b"".join(parts), 9)).decode() for name, parts in self._streams.items()}
        return {
            "ranges": self.ranges, "share": self.share, "pageblock": self.block, "cells": self.frames // self.share, "runs": self.runs, "looked": self.looked,
            "streams": streams,
        }  # fmt: skip

    def _blocks(self, values: Frames, beyond: int) -> Frames:
        """The frames of each pageblock that is shown; a pageblock may reach `beyond` the last frame."""
        whole = len(self._some) * self.block
        if len(values) < whole:
            values = np.append(values, np.full(whole - len(values), beyond, dtype=values.dtype))
        return values[:whole].reshape(-1, self.block)[self._some]

    def _shares(self, blocks: Frames, classes: Int) -> Frames:
        """Each pageblock's cells: every so many frames one, sorted by class and holder. Only pageblocks that changed are sorted again."""
        cells = self._holder.reshape(len(blocks), -1).copy()
        changed = np.full(len(blocks), True) if self._shown is None else np.any(blocks != self._shown, axis=1)
        now = blocks[changed].astype(np.int64)
        key = np.sort(classes[now] * len(classes) + now, axis=1)
        cells[changed] = key[:, self.share // 2 :: self.share] % len(classes)
        self._shown = blocks
        return cells.ravel()

    def _differences(self, events: Frames) -> Int:
        """0 for no event, else 1 + the zigzag difference to the last event."""
        some = events >= 0
        found = np.zeros(len(events), dtype=np.int64)
        known = events[some]
        if len(known):
            difference = np.diff(known.astype(np.int64), prepend=self._last)
            found[some] = 1 + np.where(difference < 0, -2 * difference - 1, 2 * difference)
            self._last = int(known[-1])
        return found


def varints(numbers: Int) -> bytes:
    """Numbers (not negative) in seven bits a byte, lowest first; the highest bit says that more follow."""
    numbers = numbers.astype(np.uint64)
    lengths = np.ones(len(numbers), dtype=np.int64)
    for more in range(1, 10):
        lengths += numbers >= np.uint64(1 << 7 * more) if more < 9 else 0
    ends = np.cumsum(lengths)
    out = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    for place in range(int(lengths.max(initial=0))):
        mine = lengths > place
        byte = (numbers[mine] >> np.uint64(7 * place)) & np.uint64(0x7F)
        out[(ends - lengths)[mine] + place] = byte | np.where(lengths[mine] > place + 1, 0x80, 0).astype(np.uint64)
    return out.tobytes()


def decode(data: dict[str, Any]) -> list[tuple[Int, Int]]:
    """The moments of a map's plain data, each as (holder, event) of all cells: what the page's script does, for tests and other readers."""
    columns = {name: _numbers(zlib.decompress(base64.b64decode(data["streams"][name]))) for name in COLUMNS}
    holder, event = np.full(data["cells"], -1, dtype=np.int64), np.full(data["cells"], -1, dtype=np.int64)
    found, at, last = [], 0, 0
    for runs in data["runs"]:
        cell = 0
        for i in range(at, at + runs):
            cell += columns["gap"][i]
            end = cell + columns["length"][i]
            holder[cell:end] = columns["holder"][i]
            code = columns["event"][i]
            if code:
                last += (code - 1) // 2 if (code - 1) % 2 == 0 else -(code // 2)
            event[cell:end] = last if code else -1
            cell = end
        at += runs
        found.append((holder.copy(), event.copy()))
    return found


def _numbers(data: bytes) -> list[int]:
    found, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            found.append(value)
            value, shift = 0, 0
    return found
