"""Very many random kmalloc and kfree in compiled code, on several CPUs and caches, with all invariants checked now and then.

Objects are freed in random order and on other CPUs than they came from, so that all lists mix; waves of filling and emptying make slabs come and go.
Now and then a CPU's slabs are flushed and a cache is shrunk. In the end everything is freed and shrunk: no slab may be left.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.measure import Figures, one_core, say
from mmtwin._jit import kernel
from mmtwin.errors import InvariantError
from mmtwin.gfp import GFP_KERNEL
from mmtwin.machine import boot
from mmtwin.mm.kmalloc import kfree, kmalloc
from mmtwin.mm.slab_tables import Slub, reserve
from mmtwin.mm.slub import NO_ROOM, flush_cpu, shrink
from mmtwin.mm.tables import Pgdat
from mmtwin.mm.validate import validate
from mmtwin.mm.validate_slub import validate_slub

SIZES = (8, 16, 28, 64, 96, 100, 192, 256, 512, 1000, 2000, 4096, 8192, 20_000)
CPUS = 4
LIVE = 1 << 16
"""Objects that may live at a time."""
FLUSH, SHRINK = 1 << 14, 1 << 20
"""Operations (on average) between two flushes of a CPU, and between two times that a cache is shrunk."""
ABOUT = {
    "soak_operations": "random kmalloc and kfree in compiled code, over several caches and CPUs",
    "soak_operations_per_second": "one core, without the checks",
    "soak_checks": "checks of all invariants of the page and the slab allocator on the way",
    "soak_broken_invariants": "of them failed",
    "soak_failed_operations": "operations that were refused; there is memory for all, so none should be",
    "soak_slab_pages_left": "page frames of slabs after everything was freed and shrunk",
}


@kernel
def churn(b: Pgdat, s: Slub, held: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], operations: int) -> int:
    """Runs until `operations` are done or the tables need room; returns how many were done. `counts`: random state, operations in all, refused ones."""
    cpus = int(s.config[0]["nr_cpus"])
    for i in range(operations):
        before = int(counts[0])
        x = (before * 25214903917 + 11) & 0xFFFFFFFFFFFF
        y = (x * 25214903917 + 11) & 0xFFFFFFFFFFFF
        cpu = (y >> 20) % cpus
        at = (x >> 16) % len(held)
        emptying = (counts[1] // (4 * len(held))) & 1 != 0
        for _ in range((y >> 40) & 7):
            if (held[at] >= 0) == emptying:
                break
            at = at + 1 if at + 1 < len(held) else 0
        if held[at] < 0:
            size = sizes[(y >> 24) % len(sizes)]
            physical = kmalloc(b, s, size, GFP_KERNEL, cpu)
            if physical == NO_ROOM:
                return i
            counts[2] += 1 if physical < 0 else 0
            held[at] = physical
        else:
            counts[2] += 1 if kfree(b, s, held[at], cpu) != 0 else 0
            held[at] = -1
        counts[0] = y
        counts[1] += 1
        if x >> 16 & (FLUSH - 1) == 0:
            flush_cpu(b, s, (y >> 16) % int(s.config[0]["caches"]), cpu)
        if x >> 16 & (SHRINK - 1) == 1:
            shrink(b, s, (y >> 16) % int(s.config[0]["caches"]), cpu)
    return operations


@kernel
def give_all(b: Pgdat, s: Slub, held: npt.NDArray[np.int64]) -> int:
    """Frees and shrinks everything; returns how many frees were refused."""
    refused = 0
    for at in range(len(held)):
        if held[at] >= 0:
            refused += 1 if kfree(b, s, held[at], 0) != 0 else 0
            held[at] = -1
    for c in range(int(s.config[0]["caches"])):
        shrink(b, s, c, 0)
    return refused


def _broken(pages: Pgdat, slabs: Slub) -> int:
    try:
        validate(pages)
        validate_slub(slabs, pages)
    except InvariantError as error:
        say(f"soak: {error}")
        return 1
    return 0


def measure(operations: int = 100_000_000, every: int = 10_000_000, live: int = LIVE, ram: str = "1GiB") -> Figures:
    """Checks after each `every` operations and in the end."""
    machine = boot(ram=ram, cpus=CPUS)
    pages, slabs = machine.state, machine.slub
    held, sizes, counts = np.full(live, -1, dtype=np.int64), np.array(SIZES, dtype=np.int64), np.array([1, 0, 0], dtype=np.int64)
    churn(pages, slabs, held, sizes, counts, 0)  # loads the compiled code
    done, seconds, checks, broken = 0, 0.0, 0, 0
    with one_core():
        while done < operations:
            until = min(done + every, operations)
            while done < until:
                slabs = reserve(slabs, 1024, 1 << 20)
                start = time.perf_counter()
                got: Any = churn(pages, slabs, held, sizes, counts, until - done)
                seconds += time.perf_counter() - start
                done += int(got)
            checks, broken = checks + 1, broken + _broken(pages, slabs)
    refused = int(counts[2]) + int(give_all(pages, slabs, held))
    checks, broken = checks + 1, broken + _broken(pages, slabs)
    return {
        "soak_operations": done,
        "soak_operations_per_second": round(done / seconds),
        "soak_checks": checks,
        "soak_broken_invariants": broken,
        "soak_failed_operations": refused,
        "soak_slab_pages_left": int(slabs.config[0]["pages"]),
    }
