"""kmalloc and kfree over the tables: which cache or block a size becomes, what the page allocator is asked for, and what is refused."""

from __future__ import annotations

import pytest

from mmtwin.mm.kmalloc import cache_free, get_order, kmalloc_index, kmalloc_type, large_order
from mmtwin.mm.slab_common import kmalloc_index as index_by_data
from mmtwin.mm.slab_common import kmalloc_name, kmalloc_size_roundup
from mmtwin.mm.slab_common import kmalloc_type as type_by_data
from mmtwin.mm.slub import SLOT_BITS
from tests.slub_machine import SlubMachine

EINVAL, EBUSY, ENOENT, ENOMEM = 22, 16, 2, 12
KERNEL, ATOMIC, DMA, RECLAIMABLE, ACCOUNT = 0xCC0, 0xA20, 0xCC1, 0xCD0, 0x400CC0


@pytest.fixture
def machine() -> SlubMachine:
    return SlubMachine()


def test_compiled_rules_equal_those_in_data() -> None:
    assert [kmalloc_index(size) for size in range(1, 8193)] == [index_by_data(size) for size in range(1, 8193)]
    assert [kmalloc_type(gfp) for gfp in (KERNEL, ATOMIC, DMA, RECLAIMABLE, ACCOUNT, DMA | 0x10, RECLAIMABLE | 0x400000)] == [
        type_by_data(gfp) for gfp in (KERNEL, ATOMIC, DMA, RECLAIMABLE, ACCOUNT, DMA | 0x10, RECLAIMABLE | 0x400000)
    ]
    assert [get_order(size) for size in (1, 4096, 4097, 8192, 8193, 1 << 22, (1 << 22) + 1)] == [0, 0, 1, 1, 2, 10, 11]


@pytest.mark.parametrize(("size", "name"), [(1, "8"), (8, "8"), (9, "16"), (70, "96"), (97, "128"), (129, "192"), (193, "256"), (4097, "8k"), (8192, "8k")])
@pytest.mark.parametrize(
    ("gfp", "prefix"), [(KERNEL, "kmalloc-"), (ATOMIC, "kmalloc-"), (DMA, "dma-kmalloc-"), (RECLAIMABLE, "kmalloc-rcl-"), (ACCOUNT, "kmalloc-cg-")]
)
def test_the_cache_of_a_size(machine: SlubMachine, size: int, name: str, gfp: int, prefix: str) -> None:
    physical = machine.kmalloc(size, gfp)
    packed = machine.packed(physical)
    assert machine.names[int(machine.slub.slab[packed >> SLOT_BITS]["cache"])] == prefix + name
    assert physical % (kmalloc_size_roundup(size) & -kmalloc_size_roundup(size)) == 0
    if gfp == DMA:
        assert physical < 16 << 20
    assert machine.kfree(physical) == 0
    machine.validate()


def test_names_are_those_of_the_data() -> None:
    assert kmalloc_name(1, 8192) == "kmalloc-cg-8k"


@pytest.mark.parametrize(("size", "order"), [(8193, 2), (9000, 2), (16384, 2), (16385, 3), (1 << 20, 8), (1 << 22, 10)])
def test_large_ones_are_pages(machine: SlubMachine, size: int, order: int) -> None:
    before = machine.free_pages()
    physical = machine.kmalloc(size)
    assert physical % (4096 << order) == 0
    assert large_order(machine.pages, physical) == order
    assert before - machine.free_pages() == 1 << order
    assert machine.packed(physical) == -1
    assert machine.kfree(physical + 4096) == -EINVAL
    assert machine.kfree(physical) == 0
    assert machine.kfree(physical) == -EINVAL
    assert machine.free_pages() == before


def test_too_large_is_refused(machine: SlubMachine) -> None:
    assert machine.kmalloc((1 << 22) + 1) == -ENOMEM
    assert machine.kmalloc(1 << 40) == -ENOMEM


def test_what_cannot_be_freed(machine: SlubMachine) -> None:
    physical = machine.kmalloc(100)
    assert machine.kfree(physical + 8) == -EINVAL, "inside an object"
    assert machine.kfree(5 << 20) == -EINVAL, "free memory"
    assert machine.kfree(1 << 50) == -EINVAL, "no memory"
    assert cache_free(machine.pages, machine.slub, machine["kmalloc-8"], physical, 0) == -ENOENT, "another cache's"
    assert cache_free(machine.pages, machine.slub, machine["kmalloc-128"], 5 << 20, 0) == -EINVAL
    assert machine.kfree(physical) == 0
    assert machine.kfree(physical) == -EBUSY, "free already"
    assert cache_free(machine.pages, machine.slub, machine["kmalloc-128"], physical, 0) == -EBUSY
    assert machine.kmalloc(100) == physical
    machine.validate()


def test_beyond_the_last_object_is_nothing(machine: SlubMachine) -> None:
    """A slab of 21 objects of 192 bytes ends with 64 bytes that are no object."""
    physical = machine.kmalloc(192)
    assert physical % 4096 == 0
    assert machine.kfree(physical + 21 * 192) == -EINVAL


def test_bulk_with_large_ones(machine: SlubMachine) -> None:
    before = machine.free_pages()
    addresses = [machine.kmalloc(size) for size in (64, 9000, 64, 3000, 1 << 20, 64)]
    machine.free_bulk([machine.packed(a) if machine.packed(a) >= 0 else -a for a in addresses])
    # the last two of kmalloc-64 were gathered first, the last one ahead
    assert [machine.kmalloc(64) for _ in range(3)] == [addresses[0], addresses[5], addresses[2]]
    machine.free_bulk([machine.packed(addresses[i]) for i in (0, 2, 5)])
    for name in ("kmalloc-64", "kmalloc-4k"):
        machine.shrink(machine[name])
    machine.validate()
    assert machine.free_pages() == before
