"""What an allocation and its free cost, in machines of 256 MiB to 1 TiB: the twin has no work that grows with the machine.

Blocks are allocated until the working set is reached, then all are freed in random order; that is repeated and the fastest round counts. With *equal work*
every machine gets the same requests and the per-CPU list sizes of the smallest one; with its own, longer lists a large machine would reach the buddy lists
less often and look cheaper than it is. *Half full* keeps each machine's own sizes and lets the working set grow to half of the free memory (16 GiB at most): then
the page table no longer fits the processor's caches, and cache misses show.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.measure import Figures, one_core
from mmtwin._jit import kernel
from mmtwin.machine import Machine, boot
from mmtwin.mm.page_alloc import alloc_pages, free_pages_prepare, free_the_page
from mmtwin.mm.tables import Pgdat

SIZES = {"256mib": "256MiB", "4gib": "4GiB", "64gib": "64GiB", "1tib": "1TiB"}
REQUESTS = {0: 0x100CCA, 4: 0x40CC0, 9: 0x1C24CA}
"""Orders and their flags: a process's page, a kernel buffer, a huge page."""
EQUAL_WORK = 24_576
"""Page frames of the working set that every machine gets: 96 MiB."""
MOST = 1 << 22


def name(order: int, what: str) -> str:
    """Key of one figure."""
    return f"alloc_free_pair{'' if order == 0 else f'_order{order}'}_{what}"


ABOUT = {
    **{name(o, f"ns_{size}"): f"allocate and free a block of order {o}, the same requests in every machine" for o in REQUESTS for size in SIZES},
    **{name(o, "ratio_1tib_to_256mib"): f"order {o}: how much dearer in 1 TiB than in 256 MiB" for o in REQUESTS},
    **{f"alloc_free_pair_half_full_ns_{size}": "order 0, working set half of the memory, at most 16 GiB" for size in SIZES},
}


@kernel
def fill_and_free(b: Pgdat, order: int, gfp: int, held: npt.NDArray[np.int64], turn: npt.NDArray[np.int64]) -> int:
    """Allocates a block for each place of `held`, then frees them in the order `turn`; returns how many were allocated if that fails half-way."""
    for i in range(len(held)):
        pfn = alloc_pages(b, 0, order, gfp, False)
        if pfn < 0:
            return i
        held[i] = pfn
    for i in range(len(turn)):
        pfn = held[turn[i]]
        free_pages_prepare(b, pfn, order)
        free_the_page(b, 0, pfn, order)
    return len(held)


def pair_ns(machine: Machine, order: int, gfp: int, blocks: int, rounds: int) -> float:
    """Nanoseconds per allocation and free, fastest of `rounds`, after one round that is not counted."""
    held, turn = np.zeros(blocks, dtype=np.int64), np.random.default_rng(order).permutation(blocks).astype(np.int64)
    best = float("inf")
    for i in range(rounds + 1):
        start = time.perf_counter()
        got: Any = fill_and_free(machine.state, order, gfp, held, turn)
        seconds = time.perf_counter() - start
        if got < blocks:
            raise RuntimeError(f"{machine!r}: only {got} of {blocks} blocks of order {order} could be allocated")
        best = min(best, seconds) if i else best
    return round(best / blocks * 1e9, 2)


def list_sizes(machine: Machine) -> tuple[int, int]:
    """``high`` and ``batch`` of the per-CPU lists of a machine's main zone."""
    rows = machine.state.pcp[np.argmax(machine.state.zone["managed_pages"]) * machine.cpus]
    return int(rows["high"]), int(rows["batch"])


def measure(rounds: int = 25, sizes: dict[str, str] = SIZES, most: int = MOST, equal_work: int = EQUAL_WORK) -> Figures:
    """All sizes and orders. Keys of sizes that were left out are None."""
    figures: Figures = dict.fromkeys(ABOUT)
    limits = list_sizes(boot(ram=SIZES["256mib"], cpus=2))
    with one_core():
        for key, ram in sizes.items():
            machine = boot(ram=ram, cpus=2)
            own = machine.state.pcp[["high", "batch"]].copy()
            machine.state.pcp["high"], machine.state.pcp["batch"] = limits
            for order, gfp in REQUESTS.items():
                figures[name(order, f"ns_{key}")] = pair_ns(machine, order, gfp, max(equal_work >> order, 1), rounds)
            machine.drain()
            machine.state.pcp["high"], machine.state.pcp["batch"] = own["high"], own["batch"]
            half = min(machine.free // 2, most)
            figures[f"alloc_free_pair_half_full_ns_{key}"] = pair_ns(machine, 0, REQUESTS[0], half, max(1, min(rounds, 4)))
    for order in REQUESTS:
        small, large = figures[name(order, "ns_256mib")], figures[name(order, "ns_1tib")]
        if small and large:
            figures[name(order, "ratio_1tib_to_256mib")] = round(large / small, 3)
    return figures
