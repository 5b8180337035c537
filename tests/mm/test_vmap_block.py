"""vm_map_ram's blocks: against a model, and rule by rule."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mmtwin.mm.vmap_block import NO_BLOCK, OFF_QUEUE, block_bytes, new_vmap_block, purge_fragmented_blocks
from mmtwin.mm.vmap_entry import block_free_entry, overflow_purge_entry, unmap_aliases_entry
from mmtwin.mm.vmap_tables import FREED_AREA, FREED_BLOCK, bias, block_pages, unbias
from mmtwin.mm.vmap_tree import NO_ROOM
from tests.vmalloc_machine import PAGE, VMALLOC_START, VmallocMachine

BLOCK = 128
"""Pages of a block in these tests: CONFIG_NR_CPUS is 16384, so the size is the smallest."""


def test_block_pages() -> None:
    """``VMAP_BBMAP_BITS`` for Debian's 64-bit and 32-bit kernels and others, worked out by hand."""
    assert block_pages(64, 8192) == 256
    assert block_pages(64, 2048) == block_pages(64, 64) == 1024
    assert block_pages(64, 1 << 20) == 128
    assert block_pages(32, 32) == 64
    assert block_pages(32, 8) == 256
    assert block_pages(64, 5000) == 256  # rounded up to 8192


class Use(RuleBasedStateMachine):
    """Random use on several CPUs. The model: per block its base, what is free and dirty, and whose queue it is on, in the queues' order."""

    @initialize(version=st.sampled_from([601, 612]), cpus=st.integers(1, 3))
    def begin(self, version: int, cpus: int) -> None:
        self.machine = VmallocMachine(version, cpus, config_nr_cpus=16384, areas=8)
        self.version, self.cpus = version, cpus
        self.queues: list[list[int]] = [[] for _ in range(cpus)]
        self.free: dict[int, int] = {}
        self.dirty: dict[int, int] = {}
        self.held: dict[int, int] = {}

    @rule(pages=st.integers(1, 64), cpu=st.integers(0, 2), times=st.integers(1, 4))
    def map_ram(self, pages: int, cpu: int, times: int) -> None:
        cpu %= self.cpus
        size = 1 << (pages - 1).bit_length()
        for _ in range(times):
            expected = next((b for b in self.queues[cpu] if self.free[b] >= size), None)
            address = self.machine.map_ram(pages, cpu)
            if expected is None:
                assert address % (BLOCK * PAGE) == 0 and address not in self.free
                self.queues[cpu].append(address)
                self.free[address], self.dirty[address] = BLOCK - size, 0
            else:
                assert address == expected + (BLOCK - self.free[expected]) * PAGE
                self.free[expected] -= size
                if not self.free[expected]:
                    self.queues[cpu].remove(expected)
            self.held[address] = pages

    def gone(self, block: int) -> None:
        del self.free[block], self.dirty[block]
        for queue in self.queues:
            if block in queue:
                queue.remove(block)

    @precondition(lambda self: self.held)
    @rule(choice=st.integers(0, 1 << 20), times=st.integers(1, 6))
    def unmap_ram(self, choice: int, times: int) -> None:
        for _ in range(min(times, len(self.held))):
            address = sorted(self.held)[choice % len(self.held)]
            pages = self.held.pop(address)
            self.machine.unmap_ram(address, pages)
            block = address - address % (BLOCK * PAGE)
            self.dirty[block] += 1 << (pages - 1).bit_length()
            if self.dirty[block] == BLOCK:
                self.gone(block)

    def fragmented(self, force: bool) -> list[int]:
        return [b for b in self.free if self.free[b] + self.dirty[b] == BLOCK and (force or self.free[b] < BLOCK // 4)]

    @rule()
    def purge(self) -> None:
        self.machine.call(overflow_purge_entry)
        for block in self.fragmented(True):
            self.gone(block)

    @rule()
    def unmap_aliases(self) -> None:
        blocks = self.fragmented(self.version == 601)
        result = self.machine.unmap_aliases()
        assert result >= bool(blocks)
        for block in blocks:
            self.gone(block)

    @invariant()
    def consistent(self) -> None:
        if not hasattr(self, "machine"):
            return
        self.machine.validate()
        v = self.machine.v
        for cpu, queue in enumerate(self.queues):
            at, found = int(v.block[cpu]["next"]), []
            while at != cpu:
                found.append(self.machine.address(int(v.block[at]["area"])))
                at = int(v.block[at]["next"])
            assert found == queue
        assert self.machine.busy() == [(b, b + BLOCK * PAGE) for b in sorted(self.free)]


Use.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestUse = Use.TestCase


def test_pieces_are_never_given_again() -> None:
    machine = VmallocMachine(config_nr_cpus=16384)
    first = machine.map_ram(3)
    assert first % (BLOCK * PAGE) == 0
    assert machine.map_ram(4) == first + 4 * PAGE  # 3 pages took 4
    machine.unmap_ram(first, 3)
    assert machine.map_ram(1) == first + 8 * PAGE
    assert machine.map_ram(64) == first + 9 * PAGE  # no alignment within the block
    assert machine.map_ram(64) == first + BLOCK * PAGE  # 55 left: a second block, behind the first
    assert machine.map_ram(32) == first + 73 * PAGE  # the first block is asked first
    machine.validate()


def test_a_full_block_is_freed_when_all_is_dirty() -> None:
    for version in (601, 612):
        machine = VmallocMachine(version, config_nr_cpus=16384)
        pieces = [machine.map_ram(32) for _ in range(4)]
        block_object = machine.number
        area_object = int(machine.v.area["object"][machine.find(pieces[0])])
        assert machine.v.block[int(machine.v.config[0]["block_heads"])]["state"] == OFF_QUEUE
        for piece in pieces:
            assert not len(machine.log)
            machine.unmap_ram(piece, 32)
        assert machine.log.tolist() == [(block_object, FREED_BLOCK)] and area_object in machine.objects
        assert machine.lazy() == [(pieces[0], pieces[0] + BLOCK * PAGE)]
        assert machine.v.config[0]["lazy_nr"] == BLOCK
        machine.drain()
        assert [kind for _, kind in machine.log.tolist()] == [FREED_AREA] * 2  # it joins both its neighbours
        machine.validate()


def test_fragmented_blocks_are_purged() -> None:
    """What is left of a block of which nothing is in use is given up; 6.12's vm_unmap_aliases keeps it while a quarter is free."""
    for version, kept in ((601, False), (612, True)):
        for pages, free in ((32, 96), (64, 64)):
            machine = VmallocMachine(version, config_nr_cpus=16384)
            machine.unmap_ram(machine.map_ram(pages), pages)
            assert machine.unmap_aliases() == (2 if kept else 1)
            assert (int(machine.v.config[0]["blocks_in_use"]) == 1) is kept
            if kept:
                assert machine.v.block[int(machine.v.config[0]["block_heads"])]["free"] == free
        machine = VmallocMachine(version, config_nr_cpus=16384)
        for piece in [machine.map_ram(n) for n in (64, 32, 1)]:
            machine.unmap_ram(piece, 64 if piece % (BLOCK * PAGE) == 0 else 32 if piece % (BLOCK * PAGE) == 64 * PAGE else 1)
        assert machine.unmap_aliases() == 1
        assert machine.v.config[0]["blocks_in_use"] == 0
        machine.validate()


def test_unmap_aliases_flushes_what_is_dirty() -> None:
    for version in (601, 612):
        machine = VmallocMachine(version, config_nr_cpus=16384)
        pieces = [machine.map_ram(8) for _ in range(5)]
        assert machine.unmap_aliases() == 0
        for i in (1, 3):
            machine.unmap_ram(pieces[i], 8)
        assert machine.unmap_aliases() == 2
        config = machine.v.config[0]
        assert (unbias(config["flush_start"]), unbias(config["flush_end"])) == (pieces[1], pieces[4])
        assert machine.unmap_aliases() == (2 if version == 601 else 0)  # 6.12 remembers that it flushed them
        assert machine.call(unmap_aliases_entry, bias(PAGE), bias(2 * PAGE), True) == 2


def test_unmap_aliases_purges_by_address_in_612() -> None:
    """6.12 walks its arrays of blocks: those of CPU 0's array by address, then CPU 1's; which array a block is in depends on its address, not on whose queue it is on."""
    machine = VmallocMachine(612, 2, config_nr_cpus=16384)
    pieces = [(machine.map_ram(pages, cpu), pages) for cpu in (1, 0) for pages in (64, 32, 8, 64, 32, 16, 16)]
    objects = {machine.address(int(b["area"])): int(b["object"]) for b in machine.v.block[3:7]}
    for address, pages in pieces:
        machine.unmap_ram(address, pages)
    assert machine.v.config[0]["blocks_in_use"] == 4
    machine.unmap_aliases()
    expected = sorted(objects, key=lambda a: (a // (BLOCK * PAGE) % 2, a))
    assert [o for o, kind in machine.log.tolist() if kind == FREED_BLOCK] == [objects[a] for a in expected]


def test_addresses_without_a_block() -> None:
    machine = VmallocMachine(config_nr_cpus=16384)
    address = machine.alloc(PAGE)
    assert machine.call(block_free_entry, bias(address), 0) == NO_BLOCK
    assert machine.call(block_free_entry, bias(VMALLOC_START + PAGE), 0) == NO_BLOCK


def test_no_room_for_blocks() -> None:
    machine = VmallocMachine(config_nr_cpus=16384, blocks=0)
    row = machine.area(block_bytes(machine.v), block_bytes(machine.v))
    assert new_vmap_block(machine.v, 0, row, 0, 0) == NO_ROOM
    purge_fragmented_blocks(machine.v, 0)
    machine.validate()
