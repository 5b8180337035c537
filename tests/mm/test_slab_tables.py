"""The slab tables: what is empty at first, that growing keeps everything, and SLUB's figures for kmalloc's classes (worked out by hand from the rules)."""

from __future__ import annotations

import numpy as np
import pytest

from mmtwin.mm.slab_common import calculate_alignment, calculate_sizes
from mmtwin.mm.slab_tables import END, KMALLOC_INDEXES, KMALLOC_TYPES, MAX_CACHES, Slub, copy_slub, new_slub, reserve
from mmtwin.mm.slub import slot_class
from tests.slub_machine import SlubMachine


def test_new_tables_are_empty() -> None:
    made = new_slub(3, 0xFFFF888000000000, slabs=10, slots=100)
    assert (len(made.cache), len(made.cpu), len(made.slab), len(made.slot)) == (MAX_CACHES, 3 * MAX_CACHES, MAX_CACHES + 10, 100)
    assert set(made.cpu["slab"].tolist()) == set(made.cpu["partial"].tolist()) == set(made.cpu["freelist"].tolist()) == {END}
    assert made.slab["next"][:MAX_CACHES].tolist() == made.slab["prev"][:MAX_CACHES].tolist() == list(range(MAX_CACHES))
    assert (made.kmalloc == -1).all() and len(made.kmalloc) == KMALLOC_TYPES * KMALLOC_INDEXES
    assert int(made.config[0]["page_offset"]) == 0xFFFF888000000000 - (1 << 64)


def test_reserve_makes_room_and_keeps_what_is_there() -> None:
    machine = SlubMachine(caches=[("c", 256, 0, 0)], kmalloc=False, slabs=4)
    for _ in range(3 * 16):
        machine.alloc(0)
    before = copy_slub(machine.slub)
    assert reserve(machine.slub, 1, 16) is machine.slub
    grown = reserve(machine.slub, 100, 1 << 16)
    assert len(grown.slab) - int(grown.config[0]["slabs"]) >= 100 and len(grown.slot) - int(grown.config[0]["slots"]) >= 1 << 16
    for name in Slub._fields:
        table, old = getattr(grown, name), getattr(before, name)
        assert np.array_equal(table[: len(old)], old), name
    machine.slub = grown
    machine.validate()
    machine.alloc(0)
    assert not np.array_equal(before.cpu, machine.slub.cpu), "a copy is independent"


def test_full_tables_are_enlarged_on_the_way() -> None:
    machine = SlubMachine(caches=[("c", 2048, 0, 0)], kmalloc=False, slabs=1)
    held = {machine.alloc(0) for _ in range(500)}
    assert len(held) == 500
    machine.validate()


@pytest.mark.parametrize(("objects", "k"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (21, 5), (512, 9), (32767, 15)])
def test_slots_of_a_slab(objects: int, k: int) -> None:
    assert slot_class(objects) == k


B5 = {  # size: (order, objects, cpu_partial_slabs, min_partial) with 1, 4 and 8 CPUs, and the minimum order
    8: ((0, 512, 1, 5), (0, 512, 1, 5), (0, 512, 1, 5), 0),
    16: ((0, 256, 1, 5), (0, 256, 1, 5), (0, 256, 1, 5), 0),
    32: ((0, 128, 2, 5), (0, 128, 2, 5), (0, 128, 2, 5), 0),
    64: ((0, 64, 4, 5), (0, 64, 4, 5), (0, 64, 4, 5), 0),
    96: ((0, 42, 6, 5), (0, 42, 6, 5), (0, 42, 6, 5), 0),
    128: ((0, 32, 8, 5), (0, 32, 8, 5), (0, 32, 8, 5), 0),
    192: ((0, 21, 12, 5), (0, 21, 12, 5), (0, 21, 12, 5), 0),
    256: ((0, 16, 7, 5), (0, 16, 7, 5), (1, 32, 4, 5), 0),
    512: ((0, 8, 13, 5), (1, 16, 7, 5), (2, 32, 4, 5), 0),
    1024: ((1, 8, 6, 5), (2, 16, 3, 5), (3, 32, 2, 5), 0),
    2048: ((2, 8, 6, 5), (3, 16, 3, 5), (3, 16, 3, 5), 0),
    4096: ((3, 8, 2, 6), (3, 8, 2, 6), (3, 8, 2, 6), 0),
    8192: ((3, 4, 3, 6), (3, 4, 3, 6), (3, 4, 3, 6), 1),
}


@pytest.mark.parametrize("size", B5)
def test_kmalloc_classes(size: int) -> None:
    *expected, least = B5[size]
    for cpus, figures in zip((1, 4, 8), expected, strict=True):
        found = calculate_sizes(size, calculate_alignment(0, size & -size, size), 0, False, cpus)
        assert found is not None
        assert (found.order, found.objects, found.cpu_partial_slabs, found.min_partial) == figures, cpus
        assert (found.min_order, found.min_objects) == (least, (4096 << least) // size)
