"""Vmap nodes of 6.12: against a model of pools that is obviously right, and rule by rule."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mmtwin.mm import vmap_node as nodes
from mmtwin.mm.vmalloc import LAZY_PAGES
from mmtwin.mm.vmap_entry import purge_entry, shrink_pools_entry
from mmtwin.mm.vmap_tables import bias, unbias, vmap_nodes
from mmtwin.mm.vmap_tree import addr_to_node_id
from tests.mm.test_vmalloc import first_fit, joined, tree_search
from tests.vmalloc_machine import MODULES_END, MODULES_VADDR, PAGE, VMALLOC_END, VMALLOC_START, VmallocMachine

ULONG_MAX = (1 << 64) - 1


def purge(machine: VmallocMachine, full: bool = False) -> int:
    return machine.call(purge_entry, int(machine.v.config[0]["ulong_max"]), bias(0), full)


class Use(RuleBasedStateMachine):
    """Random use. The model has a pool per node and size: the list of its areas, first first."""

    @initialize(cpus=st.sampled_from([1, 2, 3, 5]), pages=st.sampled_from([600, 100_000]))
    def begin(self, cpus: int, pages: int) -> None:
        self.end = VMALLOC_START + pages * PAGE - 1
        self.machine = VmallocMachine(612, cpus, end=self.end, areas=4)
        self.cpus, self.free = cpus, [(1, ULONG_MAX)]
        self.lazy: list[list[tuple[int, int]]] = [[] for _ in range(cpus)]
        self.pools: dict[tuple[int, int], list[int]] = {}
        self.held: dict[int, tuple[int, int]] = {}

    def node_of(self, address: int) -> int:
        return address // (16 * PAGE) % self.cpus if self.cpus > 1 else 0

    def decay(self, full: bool) -> None:
        for (_, size), pool in self.pools.items():
            n = len(pool) if full or len(pool) < 4 else len(pool) // 4
            self.free = joined(self.free + [(a, a + size) for a in pool[:n]])
            del pool[:n]

    def purge(self, full: bool) -> None:
        self.decay(full)
        for node, areas in enumerate(self.lazy):
            for address, size in sorted(areas):
                if not full and self.cpus > 1 and size <= 256 * PAGE:
                    self.pools.setdefault((node, size), []).insert(0, address)
                else:
                    self.free = joined([*self.free, (address, address + size)])
            areas.clear()

    @rule(pages=st.sampled_from([1, 2, 2, 2, 3, 5, 8, 256, 257]), shift=st.sampled_from([0, 12, 14]), cpu=st.integers(0, 4), times=st.integers(1, 6))
    def alloc(self, pages: int, shift: int, cpu: int, times: int) -> None:
        for _ in range(times):
            self.alloc_one(pages * PAGE, 1 << shift, cpu % self.cpus)

    def alloc_one(self, size: int, align: int, cpu: int) -> None:
        pool = self.pools.get((cpu, size), [])
        expected = 0
        if pool:
            if pool[0] % align:
                pool.append(pool.pop(0))
            else:
                expected = pool.pop(0)
        pooled = bool(expected)
        expected = expected or tree_search(self.machine, size, align, VMALLOC_START, self.end)
        if align <= PAGE and not pooled:
            assert expected == first_fit(self.free, size, align, VMALLOC_START, self.end)
        address = self.machine.alloc(size, align, cpu)
        if not expected:
            self.purge(True)
            if align <= PAGE:
                assert address == first_fit(self.free, size, align, VMALLOC_START, self.end)
        else:
            assert address == expected
        if not address:
            return
        assert address % align == 0
        self.held[address] = (size, cpu)
        if not pooled:
            start, end = next(area for area in self.free if area[0] <= address < area[1])
            self.free.remove((start, end))
            self.free = sorted(self.free + [a for a in ((start, address), (address + size, end)) if a[0] < a[1]])

    @precondition(lambda self: self.held)
    @rule(choice=st.integers(0, 1 << 20), times=st.integers(1, 12))
    def release(self, choice: int, times: int) -> None:
        for _ in range(min(times, len(self.held))):
            address = sorted(self.held)[choice % len(self.held)]
            size, cpu = self.held.pop(address)
            assert self.machine.address(self.machine.find(address + size - 1)) == address
            self.machine.free(address, drain=False)
            self.lazy[cpu if self.cpus > 1 else 0].append((address, size))

    @rule(full=st.booleans())
    def drain(self, full: bool) -> None:
        assert purge(self.machine, full) == (1 if any(self.lazy) else 0)
        self.purge(full)

    @rule()
    def shrink(self) -> None:
        assert self.machine.call(shrink_pools_entry) == sum(len(pool) for pool in self.pools.values())
        self.decay(True)

    @invariant()
    def consistent(self) -> None:
        if not hasattr(self, "machine"):
            return
        self.machine.validate()
        assert self.machine.free_areas() == self.free
        assert self.machine.busy() == sorted((a, a + size) for a, (size, _) in self.held.items())
        assert self.machine.lazy() == sorted((a, a + size) for areas in self.lazy for a, size in areas)
        expected = [(a, a + size) for (_, size), pool in sorted(self.pools.items()) for a in pool]
        assert self.machine.pools() == expected


Use.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestUse = Use.TestCase


def test_number_of_nodes() -> None:
    assert [vmap_nodes(612, 64, n) for n in (1, 2, 128, 300)] == [1, 2, 128, 128]
    assert vmap_nodes(601, 64, 8) == vmap_nodes(612, 32, 8) == 1


def test_node_of_an_address() -> None:
    machine = VmallocMachine(612, 3)
    for address in (0, PAGE, VMALLOC_START, VMALLOC_START + 17 * PAGE, 0xFFFFFFFFC0000000, ULONG_MAX):
        assert addr_to_node_id(machine.v, bias(address)) == address // 65536 % 3


def test_pools_are_last_in_first_out() -> None:
    """Purged in the order of addresses, each at the front: the highest address comes back first, without an object."""
    machine = VmallocMachine(612, 2)
    areas = [machine.alloc(2 * PAGE) for _ in range(3)]
    for address in areas:
        machine.free(address)
    assert machine.alloc(2 * PAGE) == areas[-1] + 2 * PAGE  # lazily freed ones are not used again
    assert purge(machine) == 1
    number = machine.number
    assert machine.alloc(2 * PAGE, cpu=1) == areas[-1] + 4 * PAGE  # the other CPU's pool is empty
    assert machine.number > number
    number = machine.number
    assert [machine.alloc(2 * PAGE) for _ in range(4)] == [*reversed(areas), areas[-1] + 6 * PAGE]
    assert machine.number == number + 1
    machine.validate()


def test_decay() -> None:
    """A quarter of a pool goes at a purge, from the front; of fewer than four areas all."""
    for count, left in ((1, 0), (3, 0), (4, 3), (7, 6), (8, 6), (20, 15)):
        machine = VmallocMachine(612, 2)
        areas = [machine.alloc(2 * PAGE) for _ in range(2 * count)][::2]
        for address in areas:
            machine.free(address)
        purge(machine)
        assert [a for a, _ in machine.pools()] == areas[::-1]
        purge(machine)
        assert [a for a, _ in machine.pools()] == areas[::-1][count - left :]
        machine.validate()


def test_pool_of_256_pages_is_the_last() -> None:
    machine = VmallocMachine(612, 2)
    areas = [machine.alloc(pages * PAGE) for pages in (256, 257)]
    for address in areas:
        machine.free(address)
    purge(machine)
    assert machine.pools() == [(areas[0], areas[0] + 256 * PAGE)]


def test_misaligned_head_goes_to_the_end() -> None:
    machine = VmallocMachine(612, 2)
    areas = [machine.alloc(PAGE) for _ in range(8)]
    for address in areas[4:]:
        machine.free(address)
    purge(machine)
    assert [a for a, _ in machine.pools()] == areas[:3:-1]
    assert machine.alloc(PAGE, 4 * PAGE) == areas[7] + PAGE  # from the tree
    assert [a for a, _ in machine.pools()] == [areas[6], areas[5], areas[4], areas[7]]


def test_only_the_vmalloc_range_has_pools() -> None:
    machine = VmallocMachine(612, 2)
    address = machine.alloc(PAGE, start=MODULES_VADDR, end=MODULES_END)
    machine.free(address)
    purge(machine)
    assert machine.pools() == []
    one = VmallocMachine(612, 1)
    one.free(one.alloc(PAGE))
    purge(one)
    assert one.pools() == [] and one.free_areas() == [(1, ULONG_MAX)]


def test_lazy_areas_are_not_joined() -> None:
    machine = VmallocMachine(612, 1)
    areas = [machine.alloc(PAGE) for _ in range(3)]
    for address in areas:
        machine.free(address)
    assert machine.lazy() == [(a, a + PAGE) for a in areas]


def test_full_purge_fills_no_pools() -> None:
    machine = VmallocMachine(612, 2)
    areas = [machine.alloc(PAGE) for _ in range(4)]
    machine.free(areas[0])
    purge(machine)
    machine.free(areas[2])
    purge(machine, full=True)
    assert machine.pools() == [] and len(machine.free_areas()) == 3


def test_drain_is_one_round() -> None:
    machine = VmallocMachine(612, 2)
    large = machine.alloc((2 * LAZY_PAGES + 1) * PAGE)
    machine.free(large, drain=False)
    assert machine.v.config[0]["drain"] == 1
    assert machine.drain() == 1
    assert machine.v.config[0]["lazy_nr"] == 0
    assert machine.drain() == 0


def test_helpers_come_last() -> None:
    """Twice what is allowed is lazy: one node is left to a work item, and its areas follow those of the others."""
    machine = VmallocMachine(612, 2)
    machine.alloc(PAGE)
    areas = [machine.alloc((2 * LAZY_PAGES + 1) * PAGE, cpu=cpu) for cpu in (0, 1)]
    machine.alloc(PAGE)
    objects = [int(machine.v.area["object"][machine.find(a)]) for a in areas]
    for address in areas:
        machine.free(address, drain=False)
    machine.drain()
    assert [o for o, _ in machine.log.tolist()] == [objects[0]]  # node 1's area was free already, node 0's went into it
    machine.validate()


def test_find_asks_the_other_nodes() -> None:
    machine = VmallocMachine(612, 4)
    address = machine.alloc(64 * PAGE)
    assert all(machine.find(address + i * PAGE) == machine.find(address) != 0 for i in range(64))
    assert machine.find(address + 64 * PAGE) == 0


def test_begin_and_nodes_apart() -> None:
    """A replay runs the sections one by one."""
    machine = VmallocMachine(612, 2)
    a, b = machine.alloc(PAGE, cpu=0), machine.alloc(PAGE, cpu=1)
    machine.free(a)
    machine.free(b)
    assert nodes.begin_purge(machine.v, int(machine.v.config[0]["ulong_max"]), bias(0), False) == 2
    assert (unbias(machine.v.config[0]["flush_start"]), unbias(machine.v.config[0]["flush_end"])) == (a, b + PAGE)
    assert machine.lazy() == [] and machine.v.config[0]["lazy_nr"] == 2
    machine.validate()
    assert nodes.purge_vmap_node(machine.v, 1) == 1
    machine.validate()
    assert nodes.purge_vmap_node(machine.v, 0) == 1
    assert machine.pools() == [(a, a + PAGE), (b, b + PAGE)]
    assert machine.end == VMALLOC_END
