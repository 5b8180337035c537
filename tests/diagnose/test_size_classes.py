from __future__ import annotations

import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtwin.diagnose.advise.size_classes import KERNEL_CLASSES, Objects, best_classes, evaluate, slab_of
from mmtwin.errors import RequestError

COUNTS = st.dictionaries(st.integers(1, 128), st.integers(0, 3000), max_size=8)


def allowed(classes: tuple[int, ...], natural: bool) -> bool:
    """Whether every request of a power of two gets an object aligned to it: said without the rule that the search uses."""
    powers = [1 << n for n in range(3, 8)] if natural else []
    return all(next(c for c in classes if c >= power) % power == 0 for power in powers)


@settings(max_examples=60, deadline=None)
@given(st.lists(COUNTS, min_size=1, max_size=2), st.sampled_from([1, 2, 8]), st.booleans(), st.sampled_from([(), (64,), (96, 24)]))
def test_brute_force(counts: list[dict[int, int]], cpus: int, natural: bool, keep: tuple[int, ...]) -> None:
    """Every set of up to 4 of the 16 classes up to 128 bytes."""
    objects = Objects(dict(enumerate(counts)))
    found = best_classes(objects, 4, cpus=cpus, keep=keep, natural=natural, largest=128)
    least: dict[int, int] = {}
    for k in range(1, 5):
        for lower in combinations(range(8, 128, 8), k - 1):
            classes = (*lower, 128)
            if set(keep) <= set(classes) and allowed(classes, natural):
                total = evaluate(objects, classes, cpus=cpus).slab_bytes
                least[k] = min(total, least.get(k, total))
    by_number = {len(c.sizes): c for c in found}
    so_far = None
    for k in sorted(least):
        if so_far is None or least[k] < so_far:
            so_far = least[k]
            assert by_number.pop(k).slab_bytes == so_far
    assert not by_number
    for classes in found:
        assert set(keep) <= set(classes.sizes) and allowed(classes.sizes, natural)


@given(COUNTS)
def test_costs_add_up(counts: dict[int, int]) -> None:
    objects = Objects({0: counts})
    kernel = evaluate(objects, KERNEL_CLASSES, cpus=2)
    assert kernel.slab_bytes == objects.bytes_requested + kernel.object_waste_bytes + kernel.slab_waste_bytes
    assert kernel.object_waste_bytes >= 0 and kernel.slab_waste_bytes >= 0


def test_what_a_class_costs() -> None:
    """320 bytes on one CPU: 12 in a page leave 256 bytes; 13 objects are two slabs."""
    assert slab_of(320, 1) == (4096, 12)
    got = evaluate(Objects({0: {300: 13}}), (320, 8192), cpus=1)
    assert (got.slab_bytes, got.object_waste_bytes, got.slab_waste_bytes) == (8192, 13 * 20, 8192 - 13 * 320)


def test_types_have_slabs_of_their_own() -> None:
    one = evaluate(Objects({0: {64: 64}}), KERNEL_CLASSES)
    two = evaluate(Objects({0: {64: 32}, 1: {64: 32}}), KERNEL_CLASSES)
    assert (one.slab_bytes, two.slab_bytes) == (4096, 8192)


def test_alloc_pipe_info() -> None:
    """1,000 objects of 640 bytes, which the kernel puts into kmalloc-1k: one class more saves a third."""
    objects = Objects({0: {640: 1000}})
    kernel = evaluate(objects, KERNEL_CLASSES, cpus=2)
    best = best_classes(objects, len(KERNEL_CLASSES) + 1, cpus=2, keep=KERNEL_CLASSES)[-1]
    assert set(best.sizes) - set(KERNEL_CLASSES) == {640}
    slab, fit = slab_of(640, 2)
    assert (kernel.slab_bytes, best.slab_bytes) == (63 * 16384, -(-1000 // fit) * slab)


def test_never_worse_than_the_kernel_with_as_many() -> None:
    generator = np.random.default_rng(1)
    for _ in range(3):
        sizes = {int(s): int(n) for s, n in zip(generator.integers(1, 8193, 300), generator.integers(1, 500, 300), strict=True)}
        objects = Objects({0: sizes})
        best = best_classes(objects, 13, cpus=2)
        assert best[-1].slab_bytes <= evaluate(objects, KERNEL_CLASSES, cpus=2).slab_bytes
        assert [c.slab_bytes for c in best] == sorted((c.slab_bytes for c in best), reverse=True)
        assert all(c.sizes[-1] == 8192 and len(c.sizes) <= 13 for c in best)


def test_a_million_requests_take_seconds() -> None:
    generator = np.random.default_rng(2)
    sizes, numbers = np.unique(generator.integers(1, 8193, 1_000_000), return_counts=True)
    start = time.process_time()
    best_classes(Objects({0: dict(zip(sizes.tolist(), numbers.tolist(), strict=True))}), 13, cpus=4)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("objects", "more"),
    [({0: 1}, {}), ({9000: 1}, {}), ({8: -1}, {}), ({8: 1}, {"keep": (12,)}), ({8: 1}, {"keep": (16384,)}), ({8: 1}, {"minalign": 24})],
)
def test_refused(objects: dict[int, int], more: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        best_classes(Objects({0: objects}), 2, **more)  # type: ignore[arg-type]


def test_no_class_holds_it() -> None:
    with pytest.raises(RequestError, match="no class holds 100 bytes; the largest is 64"):
        evaluate(Objects({0: {100: 1}}), (64,))
