"""The best size classes for a traffic: an exact optimum by dynamic programming, in whole slabs.

A class of `c` bytes costs ``ceil(n / objects) * (PAGE_SIZE << order)`` for `n` objects, with order and objects as SLUB would choose them (``calculate_order``, mm/slub.c).
So the waste inside objects, the remainder of each slab and the last slab that is not full are all counted. The types of kmalloc (kmalloc-, kmalloc-cg-,
kmalloc-rcl-, dma-kmalloc-) have slabs of their own.

Rules that every answer keeps, those of kmalloc (include/linux/slab.h): classes are multiples of `minalign`; a request gets the smallest class that holds it; the
largest class is KMALLOC_MAX_CACHE_SIZE, as every request up to there must be served; and ``kmalloc(2^n)`` is aligned to 2^n (promised since Linux 5.4), so a class
between 2^n and 2^(n+1) needs 2^n as a class too: a request of 2^n bytes would else get an object that is not aligned.

As the smallest class that fits serves a request, a set of classes cuts the sizes into intervals, and the cost of an interval depends on its ends only. So the least
cost of the sizes up to `c` with `k` classes, the last of them `c`, is the minimum over the class `p` before it: 1,024 sizes, 13 classes, a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from mmtwin.errors import RequestError
from mmtwin.mm.slab_common import KMALLOC_CLASS_SIZES, KMALLOC_MAX_CACHE_SIZE, KMALLOC_MIN_SIZE, align_up, calculate_order
from mmtwin.units import PAGE_SIZE

Int = npt.NDArray[np.int64]
KERNEL_CLASSES = KMALLOC_CLASS_SIZES["linux-6.1"]
INFINITE = np.int64(1) << 60
"""More than any cost; two of them can be added."""


@dataclass(frozen=True)
class Objects:
    """What is to be held: how many objects of each size, by type of kmalloc's caches.

    :ivar counts: for each type (any key), size in bytes to number of objects.
    """

    counts: Mapping[int, Mapping[int, int]]

    @property
    def bytes_requested(self) -> int:
        """Sum of the sizes."""
        return sum(size * number for sizes in self.counts.values() for size, number in sizes.items())

    @property
    def number(self) -> int:
        """Of objects."""
        return sum(sum(sizes.values()) for sizes in self.counts.values())


@dataclass(frozen=True)
class Classes:
    """A set of size classes and what it costs.

    :ivar sizes: bytes, ascending.
    :ivar slab_bytes: of the slabs that hold the objects, filled as far as they can be.
    :ivar object_waste_bytes: asked for nothing inside objects.
    :ivar slab_waste_bytes: remainders of slabs, and the free objects of each last slab.
    """

    sizes: tuple[int, ...]
    slab_bytes: int
    object_waste_bytes: int
    slab_waste_bytes: int


def best_classes(
    objects: Objects,
    most: int,
    *,
    cpus: int = 1,
    keep: Iterable[int] = (),
    minalign: int = KMALLOC_MIN_SIZE,
    natural: bool = True,
    largest: int = KMALLOC_MAX_CACHE_SIZE,
) -> list[Classes]:
    """For each number of classes up to `most` the set that needs the fewest bytes of slabs.

    :param objects: sizes from 1 to `largest`.
    :param cpus: what slab orders depend on (`slab_common.slub_cpus`).
    :param keep: classes that must be among them.
    :param minalign: ARCH_KMALLOC_MINALIGN; also the smallest class.
    :param natural: a request of 2^n bytes must be aligned to 2^n.
    :param largest: the last class, which is always there.
    :returns: the best for the least possible number of classes first; a larger set is listed only if it is better. Of equal ones the one with lower classes last.
    :raises RequestError: sizes or classes outside of what is allowed.
    """
    _check(objects, largest, minalign)
    kept = sorted({*keep, largest})
    if any(c % minalign or not minalign <= c <= largest for c in kept):
        raise RequestError(f"classes to keep: {kept}; expected multiples of {minalign} from {minalign} to {largest}")
    n = largest // minalign
    below = _below(objects, n, minalign)
    first = _first_predecessor(n, minalign, kept, natural)
    cost = _interval_costs(below, *_geometry(n, minalign, cpus))
    before, behind = np.ogrid[: n + 1, : n + 1]
    cost[(before >= behind) | (before < first[None, :])] = INFINITE
    best = np.full(n + 1, INFINITE, dtype=np.int64)  # best[c]: sizes up to class c (in units of minalign) with the classes so far, the last of them c
    best[0] = 0  # no class yet
    choices: list[Int] = []
    found: list[Classes] = []
    for _ in range(min(most, n)):
        total = best[:, None] + cost
        choices.append(total.argmin(axis=0))
        best = np.minimum(total.min(axis=0), INFINITE)
        if best[n] < INFINITE and (not found or best[n] < found[-1].slab_bytes):
            found.append(evaluate(objects, _trace_back(choices, n, minalign), cpus=cpus))
    return found


def evaluate(objects: Objects, classes: Iterable[int], *, cpus: int = 1) -> Classes:
    """What a given set of classes costs.

    :raises RequestError: no class holds the largest object.
    """
    sizes = tuple(sorted(set(classes)))
    total = given = 0
    for counts in objects.counts.values():
        in_class: dict[int, int] = {}
        for size, number in counts.items():
            at = int(np.searchsorted(sizes, size))
            if at == len(sizes):
                raise RequestError(f"no class holds {size} bytes; the largest is {sizes[-1] if sizes else 'missing'}")
            in_class[sizes[at]] = in_class.get(sizes[at], 0) + number
        for c, number in in_class.items():
            slab, fit = slab_of(c, cpus)
            total += -(-number // fit) * slab
            given += number * c
    return Classes(sizes, total, given - objects.bytes_requested, total - given)


@cache
def slab_of(size: int, cpus: int) -> tuple[int, int]:
    """(bytes of a slab, objects in it) of a cache without debugging, 6.1's rule."""
    slab = PAGE_SIZE << calculate_order(size, cpus)
    return slab, slab // size


def _check(objects: Objects, largest: int, minalign: int) -> None:
    if minalign < 1 or minalign & (minalign - 1) or largest % minalign:
        raise RequestError(f"minalign {minalign}: expected a power of two that divides {largest}")
    for sizes in objects.counts.values():
        for size, number in sizes.items():
            if not 1 <= size <= largest or number < 0:
                raise RequestError(f"{number} objects of {size} bytes: expected 0 or more, of 1 to {largest} bytes")


def _below(objects: Objects, n: int, minalign: int) -> Int:
    """By type: number of objects of at most c units, for c from 0 to n. Types without objects are left out."""
    rows = np.zeros((max(1, len(objects.counts)), n + 1), dtype=np.int64)
    for row, sizes in zip(rows, objects.counts.values(), strict=False):
        for size, number in sizes.items():
            row[align_up(size, minalign) // minalign] += number
    return rows.cumsum(axis=1)


def _first_predecessor(n: int, minalign: int, kept: list[int], natural: bool) -> Int:
    """For each class the lowest that may be the one before it (0: it may be the first)."""
    first = np.zeros(n + 1, dtype=np.int64)
    for c in range(1, n + 1):
        size = c * minalign
        low = max((k for k in kept if k < size), default=0)
        power = 1 << (size.bit_length() - 1)
        if natural and power != size and power >= minalign:
            low = max(low, power)  # so 2^n is a class, or one between it and this one, which needs it as well
        first[c] = low // minalign
    return first


def _geometry(n: int, minalign: int, cpus: int) -> tuple[Int, Int]:
    slab, fit = np.zeros(n + 1, dtype=np.int64), np.ones(n + 1, dtype=np.int64)
    for c in range(1, n + 1):
        slab[c], fit[c] = slab_of(c * minalign, cpus)
    return slab, fit


def _interval_costs(below: Int, slab: Int, fit: Int) -> Int:
    """Bytes of slabs for the sizes above p and up to c, at [p, c]."""
    cost = np.zeros((below.shape[1], below.shape[1]), dtype=np.int64)
    for row in below:
        cost -= (row[:, None] - row[None, :]) // fit * slab
    return cost


def _trace_back(choices: list[Int], n: int, minalign: int) -> list[int]:
    sizes, at = [], n
    for choice in reversed(choices):
        sizes.append(at * minalign)
        at = int(choice[at])
    return sizes
