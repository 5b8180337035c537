"""What a translation costs: a hit in the TLB, and a page walk (of four levels down to a PTE, without what the TLB does before and after)."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from bench.measure import Figures, one_core
from mmtwin._jit import kernel
from mmtwin.machine import boot
from mmtwin.mm.init_mm import boot_frames, new_mmu
from mmtwin.mm.mmu import READ, translate
from mmtwin.mm.pgtable import map_page, unmap_range, walk_from
from mmtwin.mm.pgtable_tables import PAGE_KERNEL, Mmu, reserve_tables, signed
from mmtwin.mm.tables import Pgdat
from mmtwin.profiles.layout import address_space

ABOUT = {
    "page_table_walk_ns": "a page walk, of random vmalloc addresses, 4 levels",
    "tlb_hit_ns": "a translation that the first-level TLB holds",
    "tlb_miss_ns": "a translation that no TLB holds: both lookups, the walk, filling both levels",
    "map_unmap_page_ns": "setting a PTE of a table that exists, and clearing it",
}
PAGES = 1 << 15


@kernel
def map_all(b: Pgdat, m: Mmu, start: int, pages: int) -> int:
    """Maps pages one behind the other; 0 or an error."""
    for n in range(pages):
        error = map_page(b, m, 0, start + (n << 12), n & 0xFFF, PAGE_KERNEL)
        if error:
            return error
    return 0


@kernel
def remap(b: Pgdat, m: Mmu, start: int, pages: int, rounds: int) -> int:
    """Unmaps and maps every page, `rounds` times."""
    for _ in range(rounds):
        for n in range(pages):
            at = start + (n << 12)
            unmap_range(m, at, at + 4096)
            map_page(b, m, 0, at, n & 0xFFF, PAGE_KERNEL)
    return 0


@kernel
def walk_all(m: Mmu, addresses: npt.NDArray[np.int64], rounds: int) -> int:
    """Walks to every address, `rounds` times."""
    total = 0
    for _ in range(rounds):
        for i in range(len(addresses)):
            entry, level, row, index = walk_from(m, 0, addresses[i])
            total += entry + level + row + index
    return total


@kernel
def translate_all(m: Mmu, addresses: npt.NDArray[np.int64], rounds: int) -> int:
    """Translates every address, `rounds` times; how many faulted."""
    faults = 0
    for _ in range(rounds):
        for i in range(len(addresses)):
            faults += translate(m, 0, addresses[i], READ) < 0
    return faults


def measure(rounds: int = 40) -> Figures:
    """All of it, on one machine; the fastest of five runs counts."""
    machine = boot(ram="1GiB", cpus=1)
    space = address_space(machine.profile, machine.ram)
    m = reserve_tables(new_mmu(space, machine.ram, 1, boot_frames(machine.reserved), machine.profile.image.kept), PAGES)
    start = signed(space.vmalloc_start)
    if map_all(machine.state, m, start, PAGES):
        raise RuntimeError("the pages could not be mapped")
    everywhere = start + np.random.default_rng(1).permutation(PAGES).astype(np.int64) * 4096
    few = start + np.arange(32, dtype=np.int64) * 4096

    def fastest(run: object, count: int) -> float:
        best = float("inf")
        run(1)  # type: ignore[operator]
        for _ in range(5):
            began = time.perf_counter()
            run(rounds)  # type: ignore[operator]
            best = min(best, time.perf_counter() - began)
        return round(best / (count * rounds) * 1e9, 2)

    with one_core():
        return {
            "page_table_walk_ns": fastest(lambda n: walk_all(m, everywhere, n), PAGES),
            "tlb_hit_ns": fastest(lambda n: translate_all(m, np.tile(few, 1024), n), PAGES),
            "tlb_miss_ns": fastest(lambda n: translate_all(m, everywhere, n), PAGES),
            "map_unmap_page_ns": fastest(lambda n: remap(machine.state, m, start, PAGES, n), PAGES),
        }
