"""The virtual-area allocator of 6.1: against a slow model that is obviously right, and rule by rule. Expected numbers follow from the kernel's source by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mmtwin.mm import vmalloc as rules
from mmtwin.mm.vmalloc import LAZY_PAGES, NO_SPARE, OVERFLOW, aligned
from mmtwin.mm.vmap_entry import give_back_entry
from mmtwin.mm.vmap_tables import FREED_AREA, TREE_FREE, ZERO_BYTES, bias, unbias
from mmtwin.mm.vmap_tree import merge_or_add_augment, new_area, preload
from tests.vmalloc_machine import MODULES_END, MODULES_VADDR, PAGE, VMALLOC_END, VMALLOC_START, VmallocMachine

Area = tuple[int, int]
ULONG_MAX = (1 << 64) - 1


def joined(areas: list[Area]) -> list[Area]:
    """Sorted, with neighbours joined."""
    result: list[Area] = []
    for start, end in sorted(areas):
        if result and result[-1][1] == start:
            result[-1] = (result[-1][0], end)
        else:
            result.append((start, end))
    return result


def first_fit(free: list[Area], size: int, align: int, vstart: int, vend: int) -> int:
    """The lowest address that fits, 0 if the lowest free area that fits lies too high or there is none."""
    for start, end in free:
        at = -(-max(start, vstart) // align) * align
        if at + size <= end:
            return at if at + size <= vend else 0
    return 0


def tree_search(machine: VmallocMachine, size: int, align: int, vstart: int, vend: int) -> int:
    """The kernel's search, told anew over nested tuples: where the way down goes, and where it turns around."""

    def largest(node: Any) -> int:
        return 0 if node is None else max(node[1] - node[0], largest(node[3]), largest(node[4]))

    def fit(node: Any, low: int) -> bool:
        return -(-max(node[0], low) // align) * align + size <= node[1]

    length = size if align <= PAGE or vend - vstart == size else size + align - 1
    path, low = [machine.shape()], vstart
    while path:
        node = path[-1]
        if largest(node[3]) >= length and low < node[0]:
            path.append(node[3])
            continue
        if not fit(node, low):
            if largest(node[4]) >= length:
                path.append(node[4])
                continue
            path.pop()
            while path:
                node = path[-1]
                if fit(node, low):
                    break
                if largest(node[4]) >= length and low <= node[0]:
                    low = node[0] + 1
                    break
                path.pop()
            else:
                return 0
            if not fit(node, low):
                path.append(node[4])
                continue
        at = -(-max(node[0], vstart) // align) * align
        return at if at + size <= vend else 0
    return 0


class Use(RuleBasedStateMachine):
    """Random use of a small space. The model keeps sorted lists of what is free and what is lazily freed."""

    @initialize(cpus=st.integers(1, 3), pages=st.sampled_from([48, 200, 20_000]), bits=st.sampled_from([32, 64]))
    def begin(self, cpus: int, pages: int, bits: int) -> None:
        start = VMALLOC_START if bits == 64 else 0xF8000000
        self.end = start + pages * PAGE - (bits == 64)
        self.machine = VmallocMachine(601, cpus, start, self.end, bits, areas=4, config_nr_cpus=32)
        self.start, self.cpus = start, cpus
        self.free: list[Area] = [(1, ULONG_MAX if bits == 64 else 0xFFFFFFFF)]
        self.lazy: list[Area] = []
        self.held: dict[int, int] = {}

    def expect(self, size: int, align: int) -> int:
        expected = tree_search(self.machine, size, align, self.start, self.end)
        if align <= PAGE:
            assert expected == first_fit(self.free, size, align, self.start, self.end)
        return expected

    def purge(self) -> None:
        self.free, self.lazy = joined(self.free + self.lazy), []

    @rule(pages=st.integers(1, 40), shift=st.sampled_from([0, 12, 13, 14, 16, 20]), cpu=st.integers(0, 2))
    def alloc(self, pages: int, shift: int, cpu: int) -> None:
        size, align = pages * PAGE, 1 << shift
        expected = self.expect(size, align)
        address = self.machine.alloc(size, align, cpu % self.cpus)
        if not expected:
            self.purge()
            if shift <= 12:
                expected = first_fit(self.free, size, align, self.start, self.end)
                assert address == expected
        else:
            assert address == expected
        if address:
            assert address % align == 0 and self.start <= address and address + size <= self.end
            self.held[address] = size
            start, end = next(area for area in self.free if area[0] <= address < area[1])
            self.free.remove((start, end))
            self.free = sorted(self.free + [a for a in ((start, address), (address + size, end)) if a[0] < a[1]])

    @precondition(lambda self: self.held)
    @rule(choice=st.integers(0, 1 << 20))
    def release(self, choice: int) -> None:
        address = sorted(self.held)[choice % len(self.held)]
        size = self.held.pop(address)
        row = self.machine.find(address + size - 1)
        assert self.machine.address(row) == address
        self.machine.free(address)
        assert self.machine.find(address) == 0
        self.lazy = joined([*self.lazy, (address, address + size)])
        if sum(end - start for start, end in self.lazy) > LAZY_PAGES * self.cpus.bit_length() * PAGE:
            self.purge()

    @rule()
    def drain(self) -> None:
        assert self.machine.drain() == (1 if self.lazy else 0)
        self.purge()

    @precondition(lambda self: self.held)
    @rule(choice=st.integers(0, 1 << 20))
    def give_back(self, choice: int) -> None:
        address = sorted(self.held)[choice % len(self.held)]
        size = self.held.pop(address)
        self.machine.call(give_back_entry, self.machine.find(address))
        self.free = joined([*self.free, (address, address + size)])

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "machine"):
            self.machine.validate()
            assert self.machine.free_areas() == self.free
            assert self.machine.lazy() == self.lazy
            assert self.machine.busy() == sorted((a, a + s) for a, s in self.held.items())


Use.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestUse = Use.TestCase


def test_boot() -> None:
    machine = VmallocMachine()
    machine.validate()
    assert machine.free_areas() == [(1, ULONG_MAX)]
    early = ((VMALLOC_START, 3 * PAGE), (VMALLOC_START + 8 * PAGE, PAGE), (VMALLOC_START + 9 * PAGE, PAGE))
    machine = VmallocMachine(early=early)
    machine.validate()
    assert machine.busy() == [(a, a + size) for a, size in early]
    assert machine.free_areas() == [(1, VMALLOC_START), (VMALLOC_START + 3 * PAGE, VMALLOC_START + 8 * PAGE), (VMALLOC_START + 10 * PAGE, ULONG_MAX)]
    assert machine.v.area["object"][machine.find(VMALLOC_START)] == 1
    too_small = VmallocMachine(areas=1)
    assert rules.vmalloc_init(too_small.v, np.zeros((1, 2), dtype=np.int64)) == -1000


def test_register_early() -> None:
    v, early = VmallocMachine(start=VMALLOC_START + PAGE).v, list[tuple[int, int]]()
    found = [unbias(rules.vm_area_register_early(v, size * PAGE, align * PAGE, early)) - VMALLOC_START for size, align in ((2, 4), (3, 1), (1, 1))]
    assert [at // PAGE for at in found] == [4, 1, 6]
    assert [unbias(a) - VMALLOC_START for a, _ in early] == sorted(found)


def test_first_areas_are_adjacent() -> None:
    """Two requests after one another get adjacent areas, guard pages included; the first splits the hole in the middle, the next ones take from its left edge."""
    machine = VmallocMachine()
    first, second = machine.alloc(6 * PAGE), machine.alloc(2 * PAGE)
    assert (first, second) == (VMALLOC_START, VMALLOC_START + 6 * PAGE)
    assert machine.free_areas() == [(1, VMALLOC_START), (second + 2 * PAGE, ULONG_MAX)]
    assert machine.v.config[0]["splits"] == 1
    assert machine.number == 5  # the hole, two areas, a spare for each: the second is not used
    assert machine.alloc(PAGE, start=MODULES_VADDR, end=MODULES_END) == MODULES_VADDR


def test_remainder_is_on_the_left() -> None:
    """A split in the middle makes the spare the left remainder; the original object keeps the right one."""
    machine = VmallocMachine()
    machine.alloc(PAGE)
    free = {int(row["object"]): unbias(int(row["va_start"])) for row in machine.v.area[machine.v.area["state"] == 2]}
    assert free == {1: VMALLOC_START + PAGE, 3: 1}


def test_fits() -> None:
    machine = VmallocMachine()
    areas = [machine.alloc(4 * PAGE) for _ in range(4)]
    machine.free(areas[1])
    machine.drain()
    objects = len(machine.objects)
    assert machine.alloc(PAGE) == areas[1]  # left edge
    assert machine.alloc(PAGE, 2 * PAGE) == areas[1] + 2 * PAGE  # middle of the rest: aligned
    assert len(machine.free_areas()) == 4
    assert machine.alloc(PAGE, start=areas[1] + 3 * PAGE) == areas[1] + 3 * PAGE  # the whole
    assert len(machine.log) == 1
    assert machine.alloc(PAGE) == areas[1] + PAGE
    assert len(machine.log) == 1
    assert len(machine.free_areas()) == 2
    assert len(machine.objects) == objects + 3
    machine.validate()


def test_right_edge() -> None:
    machine = VmallocMachine()
    areas = [machine.alloc(4 * PAGE) for _ in range(2)]
    machine.free(areas[0])
    machine.drain()
    splits = int(machine.v.config[0]["splits"])
    assert machine.alloc(2 * PAGE, start=areas[0] + 2 * PAGE) == areas[0] + 2 * PAGE
    assert machine.v.config[0]["splits"] == splits
    machine.validate()


def test_aligned_search_depends_on_the_shape() -> None:
    """One and the same free space, two trees: a kernel stack's area (5 pages, aligned to 4) finds the hole that fits exactly only if the way through the tree passes it.

    Searched for are 5 pages and 16 KiB - 1 more. The hole of 5 aligned pages is too small for that; as the left child of the large hole it is not looked at.
    """
    hole, large = (VMALLOC_START, VMALLOC_START + 5 * PAGE), (VMALLOC_START + 8 * PAGE, VMALLOC_START + 80 * PAGE)
    found = []
    for order in ((hole, large), (large, hole)):
        machine = VmallocMachine()
        machine.v.area[int(machine.v.area[TREE_FREE]["next"])]["va_end"] = bias(VMALLOC_START - PAGE)
        whole = int(machine.v.area[TREE_FREE]["next"])
        machine.v.tree[TREE_FREE]["rb_root"] = machine.v.tree[TREE_FREE]["nr"] = 0
        machine.v.area[TREE_FREE]["next"] = machine.v.area[TREE_FREE]["prev"] = TREE_FREE
        assert whole
        for start, end in order:
            row = new_area(machine.v, machine.new_object())
            machine.v.area[row]["va_start"], machine.v.area[row]["va_end"] = bias(start), bias(end)
            merge_or_add_augment(machine.v, row)
        assert machine.free_areas() == [hole, large]
        found.append(machine.alloc(5 * PAGE, 4 * PAGE))
    assert found == [hole[0], large[0]]
    assert first_fit([hole, large], 5 * PAGE, 4 * PAGE, VMALLOC_START, VMALLOC_END) == hole[0]


def test_exact_range_is_searched_by_its_size() -> None:
    """With an alignment above a page, a range of exactly the size is not searched for more than that."""
    machine = VmallocMachine()
    start = VMALLOC_START + 64 * PAGE
    assert machine.alloc(4 * PAGE, 4 * PAGE, start=start, end=start + 4 * PAGE) == start
    assert machine.alloc(4 * PAGE, 4 * PAGE, start=start + 16 * PAGE, end=start + 21 * PAGE) == start + 16 * PAGE


def test_lazily_freed_addresses_are_not_used_again() -> None:
    machine = VmallocMachine()
    addresses = []
    for _ in range(6):
        addresses.append(machine.alloc(2 * PAGE))
        machine.free(addresses[-1])
    assert addresses == [VMALLOC_START + 2 * i * PAGE for i in range(6)]
    assert machine.lazy() == [(VMALLOC_START, VMALLOC_START + 12 * PAGE)]  # joined; each join freed an object
    assert machine.v.config[0]["merges"] == 5
    assert machine.drain() == 1
    assert machine.free_areas() == [(1, ULONG_MAX)]
    assert machine.alloc(2 * PAGE) == VMALLOC_START


def test_drain_threshold() -> None:
    """32 MiB per binary digit of the number of CPUs, guard pages included; the area that goes above it is still freed before the purge."""
    for cpus, digits in ((1, 1), (2, 2), (3, 2), (4, 3)):
        machine = VmallocMachine(cpus=cpus)
        address = machine.alloc(8192 * digits * PAGE)
        small = machine.alloc(PAGE)
        machine.free(address)
        assert machine.v.config[0]["lazy_nr"] == 8192 * digits and not machine.v.config[0]["drain"]
        machine.free(small, drain=False)
        assert machine.v.config[0]["drain"] == 1 and machine.v.config[0]["lazy_nr"] == 8192 * digits + 1
        assert machine.drain() == 1
        assert machine.v.config[0]["lazy_nr"] == machine.v.config[0]["drain"] == 0
        assert (unbias(machine.v.config[0]["flush_start"]), unbias(machine.v.config[0]["flush_end"])) == (address, small + PAGE)


def test_merge_frees_objects_in_order() -> None:
    """An area between two lazily freed ones: its own object first, then the right one's."""
    machine = VmallocMachine()
    rows = [machine.area(2 * PAGE) for _ in range(3)]
    objects = machine.v.area["object"][rows].tolist()
    addresses = [machine.address(row) for row in rows]
    machine.free(addresses[0])
    machine.free(addresses[2])
    assert not len(machine.log)
    machine.free(addresses[1])
    assert machine.log.tolist() == [(objects[1], FREED_AREA), (objects[2], FREED_AREA)]


def test_purge_frees_objects_in_the_order_of_addresses() -> None:
    machine = VmallocMachine()
    rows = [machine.area(2 * PAGE) for _ in range(5)]
    objects = machine.v.area["object"][rows].tolist()
    for i in (3, 1):
        machine.free(machine.address(rows[i]))
    machine.drain()
    assert not len(machine.log)
    for i in (0, 2, 4):
        machine.free(machine.address(rows[i]))
    machine.drain()  # each goes into its right neighbour, and that into the left one; the first object of all keeps the space behind
    assert [o for o, _ in machine.log.tolist()] == [*objects, 1]
    assert machine.free_areas() == [(1, ULONG_MAX)]


def test_overflow_purges_once() -> None:
    machine = VmallocMachine(start=VMALLOC_START, end=VMALLOC_START + 16 * PAGE - 1)
    areas = [machine.alloc(5 * PAGE) for _ in range(3)]
    assert areas == [VMALLOC_START + 5 * i * PAGE for i in range(3)]
    assert machine.alloc(PAGE) == 0  # the inclusive end makes the last page useless
    machine.free(areas[1])
    assert machine.alloc(5 * PAGE) == areas[1]
    assert machine.v.config[0]["overflows"] == 3
    machine.validate()


def test_no_spare() -> None:
    """Without a spare a split is refused before anything changed."""
    machine = VmallocMachine()
    before = machine.digest()
    start, end = bias(VMALLOC_START), bias(VMALLOC_END)
    assert rules.alloc_vmap_area_locked(machine.v, 0, PAGE, 1, start, end) == NO_SPARE
    assert machine.digest() == before
    preload(machine.v, 0, new_area(machine.v, machine.new_object()))
    preload(machine.v, 0, new_area(machine.v, 99))
    assert machine.v.freed[0].tolist() == (99, FREED_AREA)
    assert unbias(rules.alloc_vmap_area_locked(machine.v, 0, PAGE, 1, start, end)) == VMALLOC_START
    assert machine.v.cpu[0]["ne_fit_preload_node"] == 0


def test_outside_a_free_area_nothing_is_taken() -> None:
    machine = VmallocMachine()
    machine.alloc(PAGE)
    row = int(machine.v.tree[TREE_FREE]["rb_root"])
    inside = int(machine.v.area[row]["va_start"])
    assert rules.adjust_va_to_fit_type(machine.v, 0, row, inside - PAGE, PAGE) == OVERFLOW


def test_alignment_at_the_top() -> None:
    top = (1 << 63) - 1
    assert aligned(top, 1) == aligned(top, PAGE) == top
    assert aligned(top - 1, PAGE) == top
    assert aligned(ZERO_BYTES + 1, PAGE) == ZERO_BYTES + PAGE
    machine = VmallocMachine()
    highest = ULONG_MAX - ULONG_MAX % PAGE
    assert machine.alloc(PAGE, PAGE, start=highest, end=ULONG_MAX) == 0
    assert machine.alloc(PAGE, PAGE, start=highest - PAGE, end=ULONG_MAX) == highest - PAGE


def test_find_exceed() -> None:
    for version in (601, 612):
        machine = VmallocMachine(version, 4)
        areas = [machine.alloc(20 * PAGE) for _ in range(6)]
        machine.free(areas[2])
        expected = [(areas[0] - 1, areas[0]), (areas[0], areas[0]), (areas[1] - 1, areas[0]), (areas[2], areas[3]), (areas[5] + 20 * PAGE, 0)]
        for address, area in expected:
            row = rules.find_vmap_area_exceed_addr(machine.v, bias(address))
            assert (machine.address(row) if row else 0) == area


def test_overlaps_are_refused() -> None:
    """A broken table: what overlaps is put nowhere, as in the kernel, which warns."""
    machine = VmallocMachine()
    row = machine.area(4 * PAGE)
    other = new_area(machine.v, 0)
    machine.v.area[other]["va_start"] = machine.v.area[row]["va_start"] + PAGE
    machine.v.area[other]["va_end"] = machine.v.area[row]["va_end"] + PAGE
    assert rules.insert_busy(machine.v, other) == -1
    machine.v.area[other]["va_start"], machine.v.area[other]["va_end"] = bias(PAGE), bias(2 * PAGE)
    assert merge_or_add_augment(machine.v, other) == 0


@pytest.mark.parametrize("pages", [1, 3])
def test_cost_is_counted(pages: int) -> None:
    machine = VmallocMachine()
    machine.alloc(pages * PAGE)
    before = machine.v.config[0].copy()
    machine.alloc(pages * PAGE)
    after = machine.v.config[0]
    assert after["allocs"] == before["allocs"] + 1
    assert after["tree_steps"] - before["tree_steps"] == 2 + 2 + 1  # the hole below and the one that fits; its maximum and the root's; one busy area
    assert after["list_steps"] - before["list_steps"] == 1
