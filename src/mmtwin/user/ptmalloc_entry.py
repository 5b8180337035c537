"""What Python calls: single calls, and whole streams of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmtwin._jit import inner, kernel, slow
from mmtwin.units import PAGE_SIZE
from mmtwin.user.ptmalloc import calloc, free, malloc, malloc_trim, mallopt, memalign, realloc, seen, thread_exit
from mmtwin.user.ptmalloc_tables import TOO_BIG, Ptmalloc

CALL_MALLOC, CALL_FREE, CALL_CALLOC, CALL_REALLOC, CALL_MEMALIGN, CALL_POSIX_MEMALIGN, CALL_VALLOC, CALL_PVALLOC = range(1, 9)
CALL_MALLOPT, CALL_TRIM, CALL_THREAD_EXIT, CALL_MAPS, CALL_BRK, CALL_THREAD_CREATE = range(9, 15)
"""As the recorder numbers them (oracle/malloc/recorder.c)."""
CALL = np.dtype([("kind", "u1"), ("first", "u1"), ("thread", "u2"), ("count", "u4"), ("a", "i8"), ("b", "i8"), ("result", "i8")])
"""A recorded call: what `a` and `b` are depends on the function, in the order of its arguments; threads are numbered from 1."""


@inner
def one_call(m: Ptmalloc, t: int, kind: int, a: int, b: int) -> int:
    """One call of thread `t`; `calloc` takes the product of its arguments as `b`, -1 if that overflows."""
    if kind == CALL_MALLOC:
        return malloc(m, t, a)
    if kind == CALL_FREE:
        return free(m, t, a)
    if kind == CALL_CALLOC:
        return calloc(m, t, b) if b >= 0 else 0
    return rare_call(m, t, kind, a, b)


@slow
def rare_call(m: Ptmalloc, t: int, kind: int, a: int, b: int) -> int:
    """The other functions."""
    if kind == CALL_REALLOC:
        return realloc(m, t, a, b)
    if kind == CALL_MEMALIGN or kind == CALL_POSIX_MEMALIGN:
        return memalign(m, t, a, b)
    if kind == CALL_VALLOC:
        return memalign(m, t, PAGE_SIZE, a)
    if kind == CALL_PVALLOC:  # the C library's rounding: the lowest bit stays
        return memalign(m, t, PAGE_SIZE, (a + PAGE_SIZE - 1) & -(PAGE_SIZE - 1)) if 0 <= a < TOO_BIG else 0
    if kind == CALL_MALLOPT:
        return mallopt(m, a, b)
    if kind == CALL_TRIM:
        return malloc_trim(m, a)
    if kind == CALL_THREAD_EXIT:
        return thread_exit(m, t)
    if kind == CALL_THREAD_CREATE:
        m.mp[0]["multiple_threads"] = 1
    return 0


@kernel
def call_entry(m: Ptmalloc, t: int, kind: int, a: int, b: int) -> int:
    """`one_call`; `GROW`, with nothing done, if a table must become larger first."""
    error = seen(m, t)
    return error if error < 0 else one_call(m, t, kind, a, b)


@kernel
def replay_entry(m: Ptmalloc, calls: npt.NDArray[np.void], source: npt.NDArray[np.int64], answers: npt.NDArray[np.int64], start: int) -> int:
    """Answers recorded calls from `start` on, until one that it cannot: `CALL_MAPS` and `CALL_BRK`, tables too small, or the process's end. Returns that one's number.

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
        answers[n] = one_call(m, t, kind, a, int(call["b"]))
        if answers[n] < 0:
            return n
    return len(calls)
