"""What an area of virtual addresses and its lazy free cost in compiled code, with few and with many other areas alive, beside the kernel's own test.

A *pair* is the address part of vmalloc and vfree: the search in the free tree, the busy tree in and out, the lazily freed areas, and the purges that 32 MiB of them per
binary digit of the CPUs bring about, all inside the time. Pages and page tables are not part of it. Areas are one page and its guard page, unless said otherwise.

*Beside others* allocates and frees one area while the others stay: the trees are as deep as the others make them. *Random* frees any of the live areas and allocates one
anew, so holes are everywhere and nothing is in the processor's caches.

The kernel's figures are those of lib/test_vmalloc.c as published with the patches of December 2022 (1 CPU, 1 million loops): it allocates, maps and frees the pages as well, on other
hardware; they are here for scale.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from bench.measure import Figures, one_core
from mmtwin._jit import kernel
from mmtwin.mm.validate_vmalloc import validate_vmalloc
from mmtwin.mm.vmalloc import find_vmap_area, free_vmap_area_noflush, take_area, unlink_busy, vmalloc_init
from mmtwin.mm.vmap_node import drain_vmap_area_work, take_from_pool
from mmtwin.mm.vmap_tables import NIL, Vmalloc, new_vmalloc
from mmtwin.mm.vmap_tree import new_area, preload

VMALLOC_START, VMALLOC_END = 0xFFFFC90000000000, 0xFFFFE8FFFFFFFFFF
PAGE = 4096
LIVE = {"1k": 1_000, "10k": 10_000, "100k": 100_000, "1m": 1_000_000}
SMALL, STACK, STACK_ALIGN = 2 * PAGE, 6 * PAGE, 8 * PAGE
"""A page and its guard; ``fix_align_alloc_test``: 5 pages and the guard, aligned to twice THREAD_ALIGN."""
LONG_BUSY = 15_000
RANDOM_PAIRS = 200_000
"""Of a round: at a million areas a pair waits for memory a dozen times."""
PUBLISHED = {"fix_size": 0.491, "long_busy_list": 10.49, "fix_align": 0.98}
"""Microseconds per loop of lib/test_vmalloc.c."""
ABOUT = {
    "vmap_pairs_per_second": "allocate and lazily free an area beside 1,000 others, 6.1, one core, purges included, median round",
    "vmap_pairs_per_second_slowest": "slowest round",
    "vmap_pairs_per_second_fastest": "fastest round",
    **{f"vmap_pairs_per_second_{name}_live": f"the same beside {live:,} others" for name, live in LIVE.items()},
    **{f"vmap_tree_nodes_per_pair_{name}_live": f"tree nodes looked at per pair beside {live:,} others" for name, live in LIVE.items()},
    **{f"vmap_random_pairs_per_second_{name}_live": f"free a random one of {live:,} areas and allocate one, 6.1" for name, live in LIVE.items()},
    "vmap_pairs_per_second_6_12": "beside 1,000 others, 6.12 with two CPUs: pools and one tree per CPU",
    "vmap_random_pairs_per_second_6_12_1m_live": "random with 1,000,000 areas, 6.12 with two CPUs",
    "vmap_aligned_pairs_per_second": "5 pages and guard aligned to 8 pages, as test_vmalloc's fix_align, 6.1",
    "vmap_long_busy_list_loops_per_second": "100 pages and 1 page allocated and freed beside 15,000 others, as test_vmalloc's long_busy_list, 6.1",
    **{f"kernel_test_vmalloc_{name}_loops_per_second": f"published: {seconds} us per loop, pages and mappings included" for name, seconds in PUBLISHED.items()},
}


@kernel
def initialise(v: Vmalloc, early: npt.NDArray[np.int64]) -> int:
    """`vmalloc_init`."""
    return vmalloc_init(v, early)


@kernel
def fill(v: Vmalloc, held: npt.NDArray[np.int64], cpus: int, size: int, vstart: int, vend: int) -> int:
    """Allocates an area for each place of `held` (its address); returns how many."""
    for i in range(len(held)):
        cpu = i % cpus
        if int(v.cpu[cpu]["ne_fit_preload_node"]) == NIL:
            preload(v, cpu, new_area(v, 0))
        row = take_area(v, cpu, new_area(v, 0), size, 1, vstart, vend, 0)
        if row < 0:
            return i
        held[i] = v.area[row]["va_start"]
    return len(held)


@kernel
def churn(
    v: Vmalloc, held: npt.NDArray[np.int64], turn: npt.NDArray[np.int64], cpus: int, sizes: npt.NDArray[np.int64], align: int, vstart: int, vend: int
) -> int:
    """For each of `turn`: allocates an area for that place of `held` and frees the one that was there; returns how many pairs that were.

    In the end `held` has new addresses. Turns of one place are pairs beside the others, turns of all places are random pairs.
    """
    for i in range(len(turn)):
        cpu = i % cpus
        size = sizes[i % len(sizes)]
        old = find_vmap_area(v, held[turn[i]])
        if old == NIL:
            return i
        unlink_busy(v, old)
        if free_vmap_area_noflush(v, old):
            drain_vmap_area_work(v)
        row = take_from_pool(v, cpu, size, align, vstart, vend, 0)
        if row == NIL:
            if int(v.cpu[cpu]["ne_fit_preload_node"]) == NIL:
                preload(v, cpu, new_area(v, 0))
            row = take_area(v, cpu, new_area(v, 0), size, align, vstart, vend, 0)
            if row < 0:
                return i
        v.config[0]["freed"] = 0
        held[turn[i]] = v.area[row]["va_start"]
    return len(turn)


class Areas:
    """A machine with live areas."""

    def __init__(self, live: int, version: int = 601, cpus: int = 1) -> None:
        self.v = new_vmalloc(cpus, VMALLOC_START, VMALLOC_END, 0xFFFFFFFFC0000000, 0xFFFFFFFFFF000000, version=version, areas=2 * live + 40_000)
        initialise(self.v, np.zeros((0, 2), dtype=np.int64))
        self._shuffle()
        self.range = int(self.v.config[0]["vmalloc_start"]), int(self.v.config[0]["vmalloc_end"])
        self.cpus, self.held = cpus, np.zeros(live + 2, dtype=np.int64)
        if fill(self.v, self.held, cpus, SMALL, *self.range) != live + 2:
            raise RuntimeError(f"not all of {live} areas could be allocated")

    def _shuffle(self) -> None:
        """Unused rows are taken in random order, as objects of a cache in use come. In order, the rows on a path through the tree would be powers of two apart,
        which all fall into the same few lines of the processor's caches."""
        config = self.v.config[0]
        first, last = int(config["areas"]), len(self.v.area)
        order = np.random.default_rng(2).permutation(np.arange(first, last))
        self.v.area["next"][order] = np.append(order[1:], NIL)
        config["free_area"], config["areas"] = order[0], last

    def seconds(self, turn: npt.NDArray[np.int64], sizes: tuple[int, ...] = (SMALL,), align: int = 1) -> float:
        """Of one pass over `turn`."""
        numbers = np.array(sizes, dtype=np.int64)
        start = time.perf_counter()
        done = churn(self.v, self.held, turn, self.cpus, numbers, align, *self.range)
        seconds = time.perf_counter() - start
        if done != len(turn):
            raise RuntimeError(f"pair {done} of {len(turn)} failed")
        return seconds

    def beside(self, pairs: int, rounds: int, sizes: tuple[int, ...] = (SMALL,), align: int = 1) -> tuple[list[float], float]:
        """Rates of the rounds, and tree nodes per pair."""
        turn = np.arange(pairs, dtype=np.int64) % len(sizes) + len(self.held) - len(sizes)
        self.seconds(turn[:1000], sizes, align)
        before = int(self.v.config[0]["tree_steps"])
        found = [pairs / self.seconds(turn, sizes, align) for _ in range(rounds)]
        return found, (int(self.v.config[0]["tree_steps"]) - before) / (pairs * rounds)

    def random(self, pairs: int, rounds: int) -> float:
        """The median rate of random pairs, after as many as there are areas that are not counted."""
        random, pairs = np.random.default_rng(1), min(pairs, RANDOM_PAIRS)
        self.seconds(random.integers(0, len(self.held), len(self.held)))
        return float(np.median([pairs / self.seconds(random.integers(0, len(self.held), pairs)) for _ in range(rounds)]))


def measure(pairs: int = 1_000_000, rounds: int = 5, live: dict[str, int] = LIVE) -> Figures:
    """All figures; those of sizes that are left out are None."""
    figures: Figures = dict.fromkeys(ABOUT)
    with one_core():
        for name, count in live.items():
            areas = Areas(count)
            found, nodes = areas.beside(pairs, rounds)
            figures[f"vmap_pairs_per_second_{name}_live"] = round(float(np.median(found)))
            figures[f"vmap_tree_nodes_per_pair_{name}_live"] = round(nodes, 1)
            if count == min(live.values()):
                figures["vmap_pairs_per_second"] = round(float(np.median(found)))
                figures["vmap_pairs_per_second_slowest"], figures["vmap_pairs_per_second_fastest"] = round(min(found)), round(max(found))
                figures["vmap_aligned_pairs_per_second"] = round(float(np.median(areas.beside(pairs, rounds, (STACK,), STACK_ALIGN)[0])))
                figures["vmap_pairs_per_second_6_12"] = round(float(np.median(Areas(count, 612, 2).beside(pairs, rounds)[0])))
            figures[f"vmap_random_pairs_per_second_{name}_live"] = round(areas.random(pairs, rounds))
            validate_vmalloc(areas.v)
        largest = max(live.values())
        if largest == LIVE["1m"]:
            figures["vmap_random_pairs_per_second_6_12_1m_live"] = round(Areas(largest, 612, 2).random(pairs, rounds))
        busy, _ = Areas(LONG_BUSY).beside(2 * (pairs // 2), rounds, (101 * PAGE, SMALL))
        figures["vmap_long_busy_list_loops_per_second"] = round(float(np.median(busy)) / 2)
    for name, seconds in PUBLISHED.items():
        figures[f"kernel_test_vmalloc_{name}_loops_per_second"] = round(1e6 / seconds)
    return figures
