"""What malloc costs in the replay loop, beside the C library itself answering the same calls.

A *pair* is a malloc and the free of its block. In each stream blocks are live for a while and freed in random order; everything is freed in the end, so a stream can be
answered again and again by one process. The C library runs in a small C program that reads the same stream (gcc, if it is there; else those figures are None).
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.measure import Figures, one_core
from mmtwin.user.heap import Heap
from mmtwin.user.ptmalloc import CALL_FREE, CALL_MALLOC
from mmtwin.user.ptmalloc_entry import CALL, replay_entry
from mmtwin.user.validate_ptmalloc import validate_ptmalloc

Int = npt.NDArray[np.int64]
STREAMS = {
    "pairs": ("up to 1,000 bytes, 100 live", 100, 1_000),
    "many": ("up to 1,000 bytes, 10,000 live", 10_000, 1_000),
    "mixed": ("up to 16 KiB, 1,000 live: bins, splitting and joining", 1_000, 16_384),
}
"""What a stream is like, its live blocks, its largest size."""
ABOUT = {
    "malloc_pairs_per_second": "malloc and free in the replay loop, up to 1,000 bytes, 100 live, one core, median round",
    "malloc_pairs_per_second_slowest": "slowest round",
    "malloc_pairs_per_second_fastest": "fastest round",
    **{f"malloc_pairs_per_second_{name}": text for name, (text, _, _) in STREAMS.items() if name != "pairs"},
    **{f"libc_malloc_pairs_per_second_{name}": f"the C library, the same calls: {text}" for name, (text, _, _) in STREAMS.items()},
    **{f"malloc_over_libc_{name}": "the twin's rate over the C library's" for name in STREAMS},
}


def stream(pairs: int, live: int, largest: int, seed: int = 1) -> tuple[Int, Int]:
    """Sizes, and for frees the number of the malloc (-1 for mallocs); every block is freed."""
    random = np.random.default_rng(seed)
    size, source = np.zeros(2 * pairs, dtype=np.int64), np.full(2 * pairs, -1, dtype=np.int64)
    drawn, places = random.integers(0, largest + 1, pairs), random.integers(0, live, pairs)
    held, at = [-1] * live, 0
    for wanted, place in zip(drawn.tolist(), places.tolist(), strict=True):
        if held[place] >= 0:
            source[at] = held[place]
            at += 1
        size[at] = wanted
        held[place] = at
        at += 1
    for one in held:
        if one >= 0:
            source[at] = one
            at += 1
    return size, source


def twin_seconds(size: Int, source: Int, rounds: int) -> list[float]:
    """Seconds of each round, after one that does not count."""
    calls, answers = np.zeros(len(size), dtype=CALL), np.zeros(len(size), dtype=np.int64)
    calls["kind"], calls["thread"], calls["a"] = np.where(source < 0, CALL_MALLOC, CALL_FREE), 1, size
    heap, seconds = Heap(), []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        done = replay_entry(heap.state, calls, source, answers, 0)
        seconds.append(time.perf_counter() - start)
        if done != len(calls):
            raise RuntimeError(f"call {done} of {len(calls)}: {answers[done]}")
    validate_ptmalloc(heap.state)
    return seconds[1:]


def libc_seconds(size: Int, source: Int, rounds: int) -> list[float]:
    """The same of the C library; none if there is no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return []
    with tempfile.TemporaryDirectory() as directory:
        program, file = Path(directory) / "mallocs", Path(directory) / "calls"
        # without -fno-builtin the compiler may drop the calls
        subprocess.run([compiler, "-O2", "-fno-builtin", "-o", str(program), str(Path(__file__).with_name("mallocs.c"))], check=True)
        np.column_stack([size, source]).tofile(file)
        done = subprocess.run([str(program), str(file), str(rounds + 1)], capture_output=True, text=True, check=True, env={})
    return [float(line) for line in done.stdout.split()][1:]


def measure(pairs: int = 1_000_000, rounds: int = 7) -> Figures:
    """All figures."""
    figures: Figures = dict.fromkeys(ABOUT)
    with one_core():
        for name, (_, live, largest) in STREAMS.items():
            size, source = stream(pairs, live, largest)
            rates = [pairs / seconds for seconds in twin_seconds(size, source, rounds)]
            key = "malloc_pairs_per_second" + ("" if name == "pairs" else f"_{name}")
            figures[key] = round(statistics.median(rates))
            if name == "pairs":
                figures[f"{key}_slowest"], figures[f"{key}_fastest"] = round(min(rates)), round(max(rates))
            if libc := libc_seconds(size, source, rounds):
                figures[f"libc_malloc_pairs_per_second_{name}"] = round(pairs / statistics.median(libc))
                figures[f"malloc_over_libc_{name}"] = round(statistics.median(rates) * statistics.median(libc) / pairs, 3)
    return figures
