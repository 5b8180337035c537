"""Replays recorded calls of malloc: the twin answers each call before its recorded answer is looked at.

The twin's own address takes the place of a recorded one wherever a block is freed or resized, so a run can go on behind a difference, and may have other settings
than the recorded process had.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mmtwin.notebook import Card, InNotebook
from mmtwin.recording.readers.malloc_trace import FUNCTIONS, MallocTrace, arguments
from mmtwin.user.heap import Heap
from mmtwin.user.ptmalloc import CALL_BRK, CALL_FREE, CALL_MAPS, CALL_REALLOC, CALL_THREAD_CREATE, CALL_THREAD_EXIT
from mmtwin.user.ptmalloc_entry import replay_entry
from mmtwin.user.ptmalloc_tables import ABORTS, FIRST_ABORT, Ptmalloc, grown, set_maps
from mmtwin.user.ptmalloc_vm import insert_range, page_align, remove_range
from mmtwin.user.validate_ptmalloc import validate_ptmalloc

Int = npt.NDArray[np.int64]
SILENT = (CALL_FREE, CALL_MAPS, CALL_BRK, CALL_THREAD_CREATE, CALL_THREAD_EXIT)
"""Kinds without an answer."""
FIRST = 20
"""Differences that are kept."""


@dataclass(frozen=True)
class MallocCheck(InNotebook):
    """What a replay found.

    :ivar answers: calls that return an address (or, mallopt and malloc_trim, a number).
    :ivar equal: those that the twin answered as the C library did.
    :ivar ended: what ended the twin's process before the last call, "" if nothing did.
    :ivar seconds: of the calls alone.
    :ivar differences: the first ones: call, function, thread, arguments, expected, predicted.
    """

    calls: int
    answers: int
    equal: int
    threads: int
    arenas: int
    ended: str
    seconds: float
    calls_per_second: float
    differences: list[dict[str, Any]] = field(default_factory=list)

    @property
    def all_equal(self) -> bool:
        """Every answer, up to the last call."""
        return self.equal == self.answers and not self.ended

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def _card(self) -> Card:
        rows = [
            ("calls", f"{self.calls:,}"),
            ("answers equal", f"{self.equal:,} of {self.answers:,}"),
            ("threads", str(self.threads)),
            ("arenas", str(self.arenas)),
        ]
        return Card("Replay of malloc", rows, notes=[self.ended] if self.ended else [])


def sources(calls: npt.NDArray[np.void]) -> Int:
    """For each free and realloc the call that handed out the block; -1 where that is not recorded, and for all other calls."""
    kind, a, b, result = calls["kind"], calls["a"], calls["b"], calls["result"]
    rows = np.arange(len(calls), dtype=np.int64)
    gives = (result != 0) & ~np.isin(kind, SILENT) & (kind <= FUNCTIONS.index("pvalloc"))
    takes = ((kind == CALL_FREE) | (kind == CALL_REALLOC)) & (a != 0)
    ends = takes & ((kind == CALL_FREE) | (result != 0) | (b == 0))  # a realloc that fails leaves the block alone
    key = np.concatenate([a[ends], result[gives]])
    when = np.concatenate([2 * rows[ends], 2 * rows[gives] + 1])
    giver = np.concatenate([np.full(int(ends.sum()), -1), rows[gives]])
    order = np.lexsort((when, key))
    key, when, giver = key[order], when[order], giver[order]
    found = np.full(len(calls), -1, dtype=np.int64)
    if not len(key):
        return found
    keys, first = np.unique(key, return_index=True)
    wanted = rows[takes]
    group = np.searchsorted(keys, a[wanted])
    group[group == len(keys)] = 0
    known = keys[group] == a[wanted]
    stride = 2 * len(calls) + 2
    rank = np.searchsorted(np.searchsorted(keys, key) * stride + when, group * stride + 2 * wanted) - 1
    good = known & (rank >= first[group])
    found[wanted[good]] = giver[rank[good]]
    return found


def move_break(state: Ptmalloc, to: int) -> None:
    """Somebody else than malloc called brk."""
    old, new = page_align(int(state.mp[0]["brk"])), page_align(to)
    if new > old:
        insert_range(state, old, new)
    elif new < old:
        remove_range(state, new, old)
    state.mp[0]["brk"] = state.mp[0]["curbrk"] = to


def replay(trace: MallocTrace, *, tunables: Mapping[str, int] = {}, validate: bool = False) -> tuple[MallocCheck, Int, Ptmalloc]:
    """Answers every call.

    :param tunables: other settings than the recorded process had, as for `Heap`.
    :param validate: check the invariants at the end.
    :returns: what was found, the answers, and the final state.
    """
    calls = arguments(trace.calls)
    source, answers = sources(trace.calls), np.zeros(len(calls), dtype=np.int64)
    heap = object.__new__(Heap)
    heap.state = trace.layout.new_state(trace.threads)
    for name, value in tunables.items():
        heap.tune(name, value)
    state, at, seconds, ended = heap.state, 0, 0.0, ""
    kind = calls["kind"]
    while at < len(calls):
        began = time.perf_counter()
        at = int(replay_entry(state, calls, source, answers, at))
        seconds += time.perf_counter() - began
        if at == len(calls):
            break
        if kind[at] == CALL_MAPS:
            count = int(calls[at]["count"])
            set_maps(state, [(int(one["a"]), int(one["b"])) for one in calls[at : at + count]])
            at += count
        elif kind[at] == CALL_BRK:
            move_break(state, int(calls[at]["a"]))
            at += 1
        elif answers[at] < 0:
            code = int(answers[at])
            ended = ABORTS[FIRST_ABORT - code] if code <= FIRST_ABORT else "Segmentation fault"
            break
        else:
            state = grown(state, trace.threads)
    if validate and not ended:
        validate_ptmalloc(state)
    answered = ~np.isin(kind, SILENT)
    answered[at:] = False
    same = answers == trace.calls["result"]
    differences = [
        {"call": int(i), "function": FUNCTIONS[kind[i]], "thread": int(calls[i]["thread"]), "arguments": [int(trace.calls[i]["a"]), int(trace.calls[i]["b"])],
         "expected": int(trace.calls[i]["result"]), "predicted": int(answers[i])}
        for i in np.flatnonzero(answered & ~same)[:FIRST]
    ]  # fmt: skip
    done = int((kind[:at] != CALL_MAPS).sum())
    found = MallocCheck(
        done, int(answered.sum()), int((answered & same).sum()), trace.threads, int(state.mp[0]["narenas"]), ended, seconds, done / seconds if seconds else 0.0,
        differences,
    )  # fmt: skip
    return found, answers, state
