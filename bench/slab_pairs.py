"""What a kmalloc and its kfree cost from Python, beside glibc's malloc and free called from Python."""

from __future__ import annotations

import ctypes
import ctypes.util
import time

import mmtwin
from bench.measure import Figures, one_core, say

SIZE = 28
ABOUT = {
    "kmalloc_pair_microseconds": f"m.kmalloc({SIZE}) and m.kfree() from Python, fastest of the rounds",
    "glibc_malloc_pair_microseconds": f"glibc's malloc({SIZE}) and free() from Python through ctypes, fastest of the rounds",
    "kmalloc_pair_ratio_to_glibc": "the first over the second",
}


def _twin(pairs: int) -> float:
    machine = mmtwin.boot(ram="256MiB", cpus=2)
    kmalloc, kfree = machine.kmalloc, machine.kfree
    kfree(kmalloc(SIZE))  # loads the compiled code
    start = time.perf_counter()
    for _ in range(pairs):
        kfree(kmalloc(SIZE))
    return time.perf_counter() - start


def _glibc(pairs: int) -> float | None:
    name = ctypes.util.find_library("c")
    if name is None:
        return None
    library = ctypes.CDLL(name)
    malloc, free = library.malloc, library.free
    malloc.argtypes, malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    free.argtypes, free.restype = [ctypes.c_void_p], None
    start = time.perf_counter()
    for _ in range(pairs):
        free(malloc(SIZE))
    return time.perf_counter() - start


def measure(pairs: int = 200_000, rounds: int = 5) -> Figures:
    """Both in turn, `rounds` times."""
    figures: Figures = dict.fromkeys(ABOUT)
    with one_core():
        runs = [(_twin(pairs), _glibc(pairs)) for _ in range(rounds)]
    own = min(mine for mine, _ in runs) / pairs * 1e6
    figures["kmalloc_pair_microseconds"] = round(own, 3)
    theirs = [seconds for _, seconds in runs if seconds is not None]
    if not theirs:
        say("glibc malloc: not measured, no C library found")
        return figures
    figures["glibc_malloc_pair_microseconds"] = round(min(theirs) / pairs * 1e6, 3)
    figures["kmalloc_pair_ratio_to_glibc"] = round(own / (min(theirs) / pairs * 1e6), 2)
    return figures
