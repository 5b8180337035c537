"""What Python calls: single calls, and whole streams of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmtwin._jit import kernel
from mmtwin.user.ptmalloc import CALL_BRK, CALL_FREE, CALL_MALLOC, CALL_MAPS, heap_call, seen, tcache_free, tcache_malloc
from mmtwin.user.ptmalloc_tables import Ptmalloc

CALL = np.dtype([("kind", "u1"), ("first", "u1"), ("thread", "u2"), ("count", "u4"), ("a", "i8"), ("b", "i8"), ("result", "i8")])
"""A recorded call: what `a` and `b` are depends on the function, in the order of its arguments; threads are numbered from 1."""


@kernel
def replay_entry(m: Ptmalloc, calls: npt.NDArray[np.void], source: npt.NDArray[np.int64], answers: npt.NDArray[np.int64], start: int) -> int:
    """Answers calls from `start` on, until one that it cannot: `CALL_MAPS` and `CALL_BRK`, tables too small, or the process's end. Returns that one's number.

    :param source: for free and realloc: which call handed out the block, -1 if none did; the twin's own address takes the place of the recorded one.
    :param answers: filled: addresses, or a negative code for what ended the process.
    """
    for n in range(start, len(calls)):
        call = calls[n]
        kind = int(call["kind"])
        if kind == CALL_MAPS or kind == CALL_BRK:
            return n
        t = int(call["thread"]) - 1
        if seen(m, t) < 0:
            return n
        a = int(call["a"])
        if source[n] >= 0:
            a = answers[source[n]]
        answer = 0
        if kind == CALL_MALLOC:
            answer = tcache_malloc(m, t, a)
        elif kind == CALL_FREE and tcache_free(m, t, a):
            answers[n] = 0
            continue
        if answer == 0:
            answer = heap_call(m, t, kind, a, int(call["b"]))
        answers[n] = answer
        if answer < 0:
            return n
    return len(calls)
