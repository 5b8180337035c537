"""What all figures share: one core, minima and medians, memory of this process, and fresh processes."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Figures = dict[str, float | int | None]
"""Numbers by key, the unit in the key; None where it could not be measured here."""

ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keeps this thread on one core, so that a figure is that of one core and no move to another one disturbs it."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def rates(prefix: str, work: Sequence[float], seconds: Sequence[float]) -> Figures:
    """The median rate under `prefix`, and the slowest and the fastest round's."""
    each = [w / s for w, s in zip(work, seconds, strict=True)]
    return {prefix: round(statistics.median(each)), f"{prefix}_slowest": round(min(each)), f"{prefix}_fastest": round(max(each))}


def resident_bytes() -> int:
    """Memory of this process that is resident now; where /proc is missing, the most there ever was."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def environment(extra: Mapping[str, str] = {}) -> dict[str, str]:
    """The environment for a fresh process that finds the same mmtwin and this package."""
    path = os.pathsep.join([str(ROOT), *(p for p in sys.path if p)])
    return {**os.environ, "PYTHONPATH": path, **extra}


def in_fresh_process(module: str) -> dict[str, Any]:
    """Runs ``python -m module``, which prints one JSON document, and returns that."""
    done = subprocess.run([sys.executable, "-m", module], env=environment(), capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def say(text: str) -> None:
    """Progress and notes, beside the figures."""
    print(text, file=sys.stderr, flush=True)
