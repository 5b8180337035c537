"""I/O virtual addresses: which range of a device's address space a mapping gets, and the IOMMU's table behind it (drivers/iommu/iova.c, dma-iommu.c of Linux 6.1).

Ranges are taken from the top downwards, aligned to their size rounded up to a power of two; those of up to 32 pages go through magazines of 127 ranges per
CPU when they are freed. The kernel keeps the ranges in a red-black tree, but walks it by address only, so that a table in address order gives the same answers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmtwin._jit import inner, kernel
from mmtwin.units import PAGE_SHIFT

IOVA_ANCHOR = 1 << 62
"""Above every page number: the range that the walk begins at."""
IOVA_RANGE_CACHE_MAX_SIZE = 6
"""Ranges of up to 2^5 pages are cached."""
IOVA_MAG_SIZE = 127
MAX_GLOBAL_MAGS = 32
IOVA_FQ_SIZE = 256
DMA_32BIT_PFN = 1 << (32 - PAGE_SHIFT)
NO_ROOM = -1
"""The table of ranges is full: the caller enlarges it and asks again."""

IOMMU_READ, IOMMU_WRITE = 1, 2

IOVA = np.dtype([("pfn_lo", "i8"), ("pfn_hi", "i8")])
"""``struct iova``; rows 0 to count - 1 are in descending order, as ranges are given out from the top down; the first one is the anchor."""
IOVA_CONFIG = np.dtype(
    [
        ("count", "i8"),
        ("start_pfn", "i8"),
        ("max32_alloc_size", "i8"),  # requests of this size failed below 4 GiB since something was freed there
        ("cached", "i8"),  # pfn_lo of the range where the next walk begins
        ("cached32", "i8"),
        ("nr_cpus", "i8"),
        ("fq_flush_start", "i8"),
        ("fq_flush_finish", "i8"),
        ("free_mag", "i8"),  # head of the list of unused magazines (`mag` column 1), -1: none
        ("steps", "i8"),  # ranges looked at
    ]
)
RCACHE = np.dtype([("loaded", "i4"), ("prev", "i4")])
"""``struct iova_cpu_rcache``: rows of `mag`; size class s of CPU c is row s * nr_cpus + c."""
FQ = np.dtype([("head", "i4"), ("tail", "i4")])
"""``struct iova_fq``."""


class Iova(NamedTuple):
    """``struct iova_domain`` with its caches and flush queues.

    :param mag: magazines: their size, then the page numbers.
    :param depot: by size class: how many full magazines, then their rows.
    :param fq_entry: by CPU and place: page number, pages, flush counter.
    """

    iova: npt.NDArray[np.void]
    config: npt.NDArray[np.void]
    rcache: npt.NDArray[np.void]
    mag: npt.NDArray[np.int64]
    depot: npt.NDArray[np.int64]
    fq: npt.NDArray[np.void]
    fq_entry: npt.NDArray[np.int64]


def new_iova(nr_cpus: int, start_pfn: int = 1, room: int = 256) -> Iova:
    """``init_iova_domain`` and ``iova_domain_init_rcaches``: nothing given out."""
    iova = np.zeros(room, dtype=IOVA)
    iova[0] = (IOVA_ANCHOR, IOVA_ANCHOR)
    mags = IOVA_RANGE_CACHE_MAX_SIZE * (2 * nr_cpus + MAX_GLOBAL_MAGS + 1)
    mag = np.zeros((mags, 1 + IOVA_MAG_SIZE), dtype=np.int64)
    rcache = np.zeros(IOVA_RANGE_CACHE_MAX_SIZE * nr_cpus, dtype=RCACHE)
    rcache["loaded"], rcache["prev"] = np.arange(len(rcache)) * 2, np.arange(len(rcache)) * 2 + 1
    first = 2 * len(rcache)
    mag[first:, 1] = np.append(np.arange(first + 1, mags), -1)
    config = np.zeros(1, dtype=IOVA_CONFIG)
    config[0] = (1, start_pfn, DMA_32BIT_PFN, IOVA_ANCHOR, IOVA_ANCHOR, nr_cpus, 0, 0, first, 0)
    depot = np.zeros((IOVA_RANGE_CACHE_MAX_SIZE, 1 + MAX_GLOBAL_MAGS), dtype=np.int64)
    return Iova(iova, config, rcache, mag, depot, np.zeros(nr_cpus, dtype=FQ), np.zeros((nr_cpus * IOVA_FQ_SIZE, 3), dtype=np.int64))


def grown(d: Iova) -> Iova:
    """The same with twice the room for ranges."""
    return d._replace(iova=np.concatenate([d.iova, np.zeros_like(d.iova)]))


@inner
def position(d: Any, pfn: int) -> int:
    """The lowest range whose end is not below `pfn`."""
    low, high = 0, int(d.config[0]["count"]) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if int(d.iova[middle]["pfn_hi"]) < pfn:
            high = middle - 1
        else:
            low = middle
    return low


@inner
def insert_range(d: Any, at: int, pfn_lo: int, pfn_hi: int) -> None:
    """A new range in row `at`, in front of the one that is there."""
    config = d.config[0]
    i = int(config["count"])
    while i > at:
        d.iova[i]["pfn_lo"], d.iova[i]["pfn_hi"] = d.iova[i - 1]["pfn_lo"], d.iova[i - 1]["pfn_hi"]
        i -= 1
    d.iova[at]["pfn_lo"], d.iova[at]["pfn_hi"] = pfn_lo, pfn_hi
    config["count"] = int(config["count"]) + 1


@inner
def remove_iova(d: Any, at: int) -> None:
    """``remove_iova``: the walk for the next request begins above it if it was where the walk would have begun, or higher (``__cached_rbnode_delete_update``)."""
    config = d.config[0]
    lo, hi, following = int(d.iova[at]["pfn_lo"]), int(d.iova[at]["pfn_hi"]), int(d.iova[at - 1]["pfn_lo"])
    cached32 = int(config["cached32"])
    if lo == cached32 or (hi < DMA_32BIT_PFN and lo >= cached32):
        config["cached32"] = following
    if lo < DMA_32BIT_PFN:
        config["max32_alloc_size"] = DMA_32BIT_PFN
    if lo >= int(config["cached"]):
        config["cached"] = following
    count = int(config["count"]) - 1
    for i in range(at, count):
        d.iova[i]["pfn_lo"], d.iova[i]["pfn_hi"] = d.iova[i + 1]["pfn_lo"], d.iova[i + 1]["pfn_hi"]
    config["count"] = count


@inner
def find_limit(d: Any, limit_pfn: int) -> int:
    """``iova_find_limit``: where a walk that must stay below `limit_pfn` begins."""
    return 0 if limit_pfn > DMA_32BIT_PFN else position(d, limit_pfn)


@inner
def alloc_iova(d: Any, size: int, limit_pfn: int) -> int:
    """``alloc_iova`` with size_aligned: the highest range below `limit_pfn` (exclusive) and the last one given out; its first page, 0 if there is none."""
    config = d.config[0]
    if int(config["count"]) == len(d.iova):
        return NO_ROOM
    if limit_pfn <= DMA_32BIT_PFN and size >= int(config["max32_alloc_size"]):
        return 0
    align = 1
    while align < size:
        align <<= 1
    start_pfn = int(config["start_pfn"])
    at = position(d, int(config["cached32"]) if limit_pfn <= DMA_32BIT_PFN else int(config["cached"]))
    retry_pfn = int(d.iova[at]["pfn_hi"])
    high_pfn, low_pfn, retried = limit_pfn, start_pfn, False
    while True:
        new_pfn, found = 0, False
        while True:
            config["steps"] = int(config["steps"]) + 1
            high_pfn = min(high_pfn, int(d.iova[at]["pfn_lo"]))
            new_pfn = (high_pfn - size) & -align
            at += 1
            if at == int(config["count"]) or new_pfn > int(d.iova[at]["pfn_hi"]) or new_pfn < low_pfn:
                break
        found = high_pfn >= size and new_pfn >= low_pfn
        if found:
            break
        if retried or low_pfn != start_pfn or retry_pfn >= limit_pfn:
            config["max32_alloc_size"] = size
            return 0
        retried = True
        high_pfn, low_pfn = limit_pfn, retry_pfn + 1
        at = find_limit(d, limit_pfn)
    insert_range(d, position(d, new_pfn) + 1, new_pfn, new_pfn + size - 1)
    if new_pfn + size - 1 < DMA_32BIT_PFN:
        config["cached32"] = new_pfn
    else:
        config["cached"] = new_pfn
    return new_pfn


@inner
def free_iova(d: Any, pfn: int) -> None:
    """``free_iova``: the range that holds this page, if any, goes."""
    at = position(d, pfn)
    if int(d.iova[at]["pfn_lo"]) <= pfn and int(d.iova[at]["pfn_lo"]) != IOVA_ANCHOR:
        remove_iova(d, at)


@inner
def log_size(size: int) -> int:
    """``order_base_2``: the size class of so many pages."""
    log = 0
    while 1 << log < size:
        log += 1
    return log


@inner
def magazine_free_pfns(d: Any, m: int) -> None:
    """``iova_magazine_free_pfns``: what a magazine holds becomes free for everyone."""
    for i in range(int(d.mag[m, 0])):
        free_iova(d, int(d.mag[m, 1 + i]))
    d.mag[m, 0] = 0


@inner
def magazine_give(d: Any, m: int) -> None:
    """An empty magazine is kept for later."""
    d.mag[m, 0] = 0
    d.mag[m, 1] = d.config[0]["free_mag"]
    d.config[0]["free_mag"] = m


@inner
def rcache_insert(d: Any, cpu: int, pfn: int, size: int) -> bool:
    """``iova_rcache_insert``: a freed range goes to the CPU's magazine; full ones go to the depot, and what the depot has no room for is really freed."""
    log = log_size(size)
    if log >= IOVA_RANGE_CACHE_MAX_SIZE:
        return False
    cache = d.rcache[log * int(d.config[0]["nr_cpus"]) + cpu]
    loaded, prev = int(cache["loaded"]), int(cache["prev"])
    surplus = -1
    if int(d.mag[loaded, 0]) == IOVA_MAG_SIZE:
        if int(d.mag[prev, 0]) < IOVA_MAG_SIZE:
            cache["loaded"], cache["prev"] = prev, loaded
        else:
            fresh = int(d.config[0]["free_mag"])
            d.config[0]["free_mag"] = d.mag[fresh, 1]
            d.mag[fresh, 0] = 0
            held = int(d.depot[log, 0])
            if held < MAX_GLOBAL_MAGS:
                d.depot[log, 1 + held] = loaded
                d.depot[log, 0] = held + 1
            else:
                surplus = loaded
            cache["loaded"] = fresh
    m = int(cache["loaded"])
    d.mag[m, 1 + int(d.mag[m, 0])] = pfn
    d.mag[m, 0] = int(d.mag[m, 0]) + 1
    if surplus >= 0:
        magazine_free_pfns(d, surplus)
        magazine_give(d, surplus)
    return True


@inner
def rcache_get(d: Any, cpu: int, size: int, limit_pfn: int) -> int:
    """``iova_rcache_get``: a range of this size class from the CPU's magazines or the depot that ends below `limit_pfn`; 0 if there is none."""
    log = log_size(size)
    if log >= IOVA_RANGE_CACHE_MAX_SIZE:
        return 0
    cache = d.rcache[log * int(d.config[0]["nr_cpus"]) + cpu]
    loaded, prev = int(cache["loaded"]), int(cache["prev"])
    if int(d.mag[loaded, 0]) == 0:
        held = int(d.depot[log, 0])
        if int(d.mag[prev, 0]):
            cache["loaded"], cache["prev"] = prev, loaded
        elif held:
            magazine_give(d, loaded)
            cache["loaded"] = d.depot[log, held]
            d.depot[log, 0] = held - 1
        else:
            return 0
    m = int(cache["loaded"])
    last = int(d.mag[m, 0])
    i = last
    while i >= 1 and int(d.mag[m, i]) > limit_pfn - size:
        i -= 1
    if i == 0:
        return 0
    pfn = int(d.mag[m, i])
    d.mag[m, i] = d.mag[m, last]
    d.mag[m, 0] = last - 1
    return pfn


@kernel
def alloc_iova_fast(d: Any, cpu: int, size: int, limit_pfn: int, flush_rcache: bool) -> int:
    """``alloc_iova_fast``: `size` pages that end at `limit_pfn` (inclusive) or below.

    :param flush_rcache: empty all caches and try again before giving up.
    :returns: the first page, 0: none, NO_ROOM: enlarge the table.
    """
    if size < 1 << (IOVA_RANGE_CACHE_MAX_SIZE - 1):
        size = 1 << log_size(size)
    pfn = rcache_get(d, cpu, size, limit_pfn + 1)
    if pfn:
        return pfn
    pfn = alloc_iova(d, size, limit_pfn + 1)
    if pfn == 0 and flush_rcache:
        for c in range(int(d.config[0]["nr_cpus"])):
            for log in range(IOVA_RANGE_CACHE_MAX_SIZE):
                cache = d.rcache[log * int(d.config[0]["nr_cpus"]) + c]
                magazine_free_pfns(d, int(cache["loaded"]))
                magazine_free_pfns(d, int(cache["prev"]))
        for log in range(IOVA_RANGE_CACHE_MAX_SIZE):
            for j in range(int(d.depot[log, 0])):
                magazine_free_pfns(d, int(d.depot[log, 1 + j]))
                magazine_give(d, int(d.depot[log, 1 + j]))
            d.depot[log, 0] = 0
        pfn = alloc_iova(d, size, limit_pfn + 1)
    return pfn


@inner
def free_iova_inner(d: Any, cpu: int, pfn: int, size: int) -> None:
    """``free_iova_fast``."""
    if not rcache_insert(d, cpu, pfn, size):
        free_iova(d, pfn)


@kernel
def free_iova_fast(d: Any, cpu: int, pfn: int, size: int) -> None:
    """``free_iova_fast``: back to the CPU's magazine, or free if the range is large."""
    free_iova_inner(d, cpu, pfn, size)


@inner
def fq_ring_free(d: Any, cpu: int, owner: int) -> None:
    """``fq_ring_free``: entries of CPU `owner`'s queue that a finished flush has covered become free, on CPU `cpu`."""
    fq = d.fq[owner]
    while int(fq["head"]) != int(fq["tail"]):
        entry = owner * IOVA_FQ_SIZE + int(fq["head"])
        if int(d.fq_entry[entry, 2]) >= int(d.config[0]["fq_flush_finish"]):
            return
        free_iova_inner(d, cpu, int(d.fq_entry[entry, 0]), int(d.fq_entry[entry, 1]))
        fq["head"] = (int(fq["head"]) + 1) % IOVA_FQ_SIZE


@inner
def fq_flush_iotlb(d: Any) -> None:
    """``fq_flush_iotlb``: the IOMMU forgets what it had cached."""
    d.config[0]["fq_flush_start"] = int(d.config[0]["fq_flush_start"]) + 1
    d.config[0]["fq_flush_finish"] = int(d.config[0]["fq_flush_finish"]) + 1


@kernel
def queue_iova(d: Any, cpu: int, pfn: int, pages: int) -> None:
    """``queue_iova``: a range that was unmapped waits until the IOMMU's cache is flushed: when 255 are waiting, or after 10 ms (`fq_flush_timeout`)."""
    fq_ring_free(d, cpu, cpu)
    fq = d.fq[cpu]
    if (int(fq["tail"]) + 1) % IOVA_FQ_SIZE == int(fq["head"]):
        fq_flush_iotlb(d)
        fq_ring_free(d, cpu, cpu)
    entry = cpu * IOVA_FQ_SIZE + int(fq["tail"])
    fq["tail"] = (int(fq["tail"]) + 1) % IOVA_FQ_SIZE
    d.fq_entry[entry, 0], d.fq_entry[entry, 1], d.fq_entry[entry, 2] = pfn, pages, d.config[0]["fq_flush_start"]


@kernel
def fq_flush_timeout(d: Any, cpu: int) -> None:
    """``fq_flush_timeout``, the timer on CPU `cpu`: every waiting range becomes free."""
    fq_flush_iotlb(d)
    for owner in range(int(d.config[0]["nr_cpus"])):
        fq_ring_free(d, cpu, owner)


@kernel
def reserve_iova(d: Any, pfn_lo: int, pfn_hi: int) -> int:
    """``reserve_iova``: keeps a range from being given out; what overlaps with ranges that exist is joined with them. 0, or NO_ROOM."""
    if int(d.config[0]["count"]) == len(d.iova):
        return NO_ROOM
    overlap = False
    i = int(d.config[0]["count"]) - 1
    while i >= 0:
        iova = d.iova[i]
        if pfn_lo <= int(iova["pfn_hi"]) and pfn_hi >= int(iova["pfn_lo"]):
            if pfn_lo < int(iova["pfn_lo"]):
                iova["pfn_lo"] = pfn_lo
            if pfn_hi > int(iova["pfn_hi"]):
                pfn_lo = int(iova["pfn_hi"]) + 1
            if pfn_lo >= int(iova["pfn_lo"]) and pfn_hi <= int(iova["pfn_hi"]):
                return 0
            overlap = True
        elif overlap:
            break
        i -= 1
    insert_range(d, position(d, pfn_lo) + 1, pfn_lo, pfn_hi)
    return 0


def ranges(d: Iova) -> list[tuple[int, int]]:
    """All ranges in use, cached or reserved, ascending, without the anchor."""
    count = int(d.config[0]["count"])
    return [(int(iova["pfn_lo"]), int(iova["pfn_hi"])) for iova in d.iova[1:count][::-1]]


def cached(d: Iova) -> list[int]:
    """First pages of the ranges that lie in magazines."""
    used = [int(m) for c in d.rcache for m in (c["loaded"], c["prev"])]
    used += [int(d.depot[log, 1 + j]) for log in range(IOVA_RANGE_CACHE_MAX_SIZE) for j in range(int(d.depot[log, 0]))]
    return sorted(int(pfn) for m in used for pfn in d.mag[m, 1 : 1 + int(d.mag[m, 0])])
