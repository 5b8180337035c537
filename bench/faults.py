"""Page faults of processes, and ten thousand processes that come and go."""

from __future__ import annotations

import random
import time

import numpy as np

import mmtwin
from bench.measure import Figures
from mmtwin.mm.tables import PG_ALLOCATED, PG_SLAB
from mmtwin.process import MADV_DONTNEED

PAGE = 4096
ABOUT = {
    "page_faults_per_second": "first touches of anonymous pages in a compiled loop: TLB miss, walk, VMA, page, entry, rmap, LRU batch",
    "page_fault_cycles_per_second": "the same, each page given back as well (madvise)",
    "cow_faults_per_second": "write faults after fork: page, copy, reference counts",
    "forks_per_second": "fork and exit of a process with 20 areas and 100 pages",
    "churn_processes": "processes forked, touched and killed in random order; 0 frames are missing at the end, all invariants hold",
    "churn_seconds": "for those",
    "churn_frames_lost": "page frames that did not come back",
}


def _allocated(m: mmtwin.Machine) -> int:
    """Pages handed out, without slabs, page tables (vfree keeps those of kernel stacks; `validate` knows whose they are) and the stacks that CPUs keep."""
    flags = m.state.page["flags"][: int(m.state.config[0]["nr_frames"])]
    heads = np.flatnonzero((flags & PG_ALLOCATED != 0) & (flags & PG_SLAB == 0) & (flags >= 0))
    return int((1 << m.state.page["order"][heads].astype(np.int64)).sum()) - 4 * sum(len(stacks) for stacks in m._stacks.values())


def churn(processes: int, seed: int = 1) -> tuple[float, int]:
    """Seconds, and frames lost."""
    m = mmtwin.boot("linux-6.1", ram="2GiB", cpus=2, thp=False)
    m.spawn("first").exit()
    m.users.config[0]["thp"] = 0
    m.drop_caches()
    m.run_work()
    before, rnd, alive, made = _allocated(m), random.Random(seed), [m.spawn("init")], 1
    began = time.perf_counter()
    while made < processes:
        p, cpu = rnd.choice(alive), rnd.randrange(m.cpus)
        action = rnd.random()
        if action < 0.45 and len(alive) < 500:
            alive.append(p.fork(cpu))
            made += 1
        elif action < 0.65:
            pages = rnd.randrange(1, 30)
            p.touch(p.mmap(pages * PAGE, cpu=cpu), pages * PAGE, True, cpu)
        elif action < 0.75:
            p.touch(p.brk(p.brk() + 0x8000) - 0x8000, 0x8000, True, cpu)
        elif len(alive) > 1:
            alive.remove(p)
            p.exit(cpu)
    rnd.shuffle(alive)
    for p in alive:
        p.exit(rnd.randrange(m.cpus))
    m.lru_add_drain_all()
    m.drop_caches()
    m.run_work()
    seconds = time.perf_counter() - began
    m.validate()
    assert int(m.mmu.config[0]["pgd_list"]) == -1
    return seconds, _allocated(m) - before


def measure(rounds: int = 20, processes: int = 10_000) -> Figures:
    """The best of several rounds."""
    m = mmtwin.boot("linux-6.1", ram="1GiB", cpus=1, thp=False)
    p = m.spawn("app")
    m.users.config[0]["thp"] = 0
    pages = 100_000
    a = p.mmap(pages * PAGE)
    p.touch(a, PAGE)
    best = cycles = cow = 0.0
    for _ in range(rounds):
        p.madvise(a, pages * PAGE, MADV_DONTNEED)
        began = time.perf_counter()
        p.touch(a, pages * PAGE)
        touched = time.perf_counter()
        p.madvise(a, pages * PAGE, MADV_DONTNEED)
        best, cycles = max(best, pages / (touched - began)), max(cycles, pages / (time.perf_counter() - began))
    p.touch(a, 50_000 * PAGE)
    for _ in range(max(rounds // 4, 1)):
        child = p.fork()
        began = time.perf_counter()
        child.touch(a, 50_000 * PAGE)
        cow = max(cow, 50_000 / (time.perf_counter() - began))
        child.exit()
    p.exit()
    p = m.spawn("small")
    for _ in range(12):
        p.touch(p.mmap(8 * PAGE, 3), 8 * PAGE)
    began = time.perf_counter()
    for _ in range(200):
        p.fork().exit()
    forks = 200 / (time.perf_counter() - began)
    seconds, lost = churn(processes)
    return {
        "page_faults_per_second": round(best),
        "page_fault_cycles_per_second": round(cycles),
        "cow_faults_per_second": round(cow),
        "forks_per_second": round(forks),
        "churn_processes": processes,
        "churn_seconds": round(seconds, 1),
        "churn_frames_lost": lost,
    }
