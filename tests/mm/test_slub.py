"""SLUB's rules: sequences worked out by hand, then random requests beside a plain model of lists, and one digest however the code is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from mmtwin.mm.page_alloc import alloc_pages, free_pages_prepare, free_the_page
from mmtwin.mm.slub import SLOT_BITS, SLOT_MASK, first_gfp, object_address, slab_gfp
from tests.slub_machine import GFP_KERNEL, SlubMachine

ATOMIC, NOWAIT = 0xA20, 0x800
RED_ZONE, CONSISTENCY, STORE_USER, RECLAIM_ACCOUNT = 0x400, 0x100, 0x10000, 0x20000


def rows(objects: list[int]) -> list[int]:
    """Rows of slabs, each once, in the order of their first object."""
    return list(dict.fromkeys(packed >> SLOT_BITS for packed in objects))


# Sequences


def test_the_first_kmalloc_of_an_empty_cache() -> None:
    """kmalloc-2k with one CPU: order 2, 8 objects, in ascending order."""
    machine = SlubMachine()
    before = machine.free_pages()
    addresses = [machine.kmalloc(2000) for _ in range(8)]
    assert addresses == [addresses[0] + 0x800 * i for i in range(8)]
    assert addresses[0] % (4096 << 2) == 0
    assert before - machine.free_pages() == 4
    assert machine.kmalloc(2000) not in range(addresses[0], addresses[0] + 16384)
    machine.validate()


@pytest.mark.parametrize(
    ("name", "gfp", "first", "second"),
    [
        ("kmalloc-2k", GFP_KERNEL, 0xD20C0, 0x40CC0),
        ("kmalloc-2k", ATOMIC, 0x52A20, 0x40A20),
        ("kmalloc-2k", NOWAIT, 0x52800, 0x40800),
        ("kmalloc-64", GFP_KERNEL, 0x12CC0, 0xCC0),
        ("kmalloc-64", ATOMIC, 0x12A20, 0xA20),
        ("kmalloc-64", NOWAIT, 0x12800, 0x800),
        ("kmalloc-rcl-64", GFP_KERNEL, 0x12CD0, 0xCD0),
        ("kmalloc-64", GFP_KERNEL | 0x100 | 0x400000, 0x12CC0, 0xCC0),  # __GFP_ZERO and __GFP_ACCOUNT are not the pages' matter
        ("kmalloc-64", GFP_KERNEL | 0x8000, 0x12CC0, 0x8CC0),  # __GFP_NOFAIL only counts for the second try
    ],
)
def test_flags_of_page_requests(name: str, gfp: int, first: int, second: int) -> None:
    machine = SlubMachine()
    cache = machine.slub.cache[machine[name]]
    assert (hex(first_gfp(cache, gfp)), hex(slab_gfp(cache, gfp))) == (hex(first), hex(second))


def test_where_no_large_block_is_left_a_slab_is_small() -> None:
    """All memory in single pages: kmalloc-2k falls back to order 0, two objects."""
    machine = SlubMachine("4MiB")
    pages = []
    while (pfn := alloc_pages(machine.pages, 0, 0, 0x20 | 0x80000 >> 20, False)) >= 0 and len(pages) < 900:
        pages.append(pfn)
    for pfn in sorted(pages)[::2]:
        free_pages_prepare(machine.pages, pfn, 0)
        free_the_page(machine.pages, 0, pfn, 0)
    while alloc_pages(machine.pages, 0, 1, 0x20, False) >= 0:
        pass
    packed = machine.alloc(machine["kmalloc-2k"], gfp=ATOMIC)
    slab = machine.slub.slab[packed >> SLOT_BITS]
    assert (int(slab["order"]), int(slab["objects"])) == (0, 2)
    assert machine.alloc(machine["kmalloc-2k"], gfp=ATOMIC) == packed + 1
    machine.validate()


def test_fill_and_empty() -> None:
    """16 objects of kmalloc-2k are slabs X and Y. X, freed, waits on the CPU's partial list even when empty; no page comes back before a shrink."""
    machine = SlubMachine()
    c, before = machine["kmalloc-2k"], machine.free_pages()
    held = [machine.alloc(c) for _ in range(16)]
    x, y = rows(held)
    assert int(machine.slub.cpu[c]["slab"]) == y and int(machine.slub.slab[x]["frozen"]) == 0
    machine.free(held[3])
    assert machine.cpu_partial(c) == [x] and int(machine.slub.slab[x]["slabs"]) == 1 and int(machine.slub.slab[x]["frozen"]) == 1
    for packed in held[:3] + held[4:8]:
        machine.free(packed)
    assert machine.cpu_partial(c) == [x] and int(machine.slub.slab[x]["inuse"]) == 0
    for packed in held[8:]:
        machine.free(packed)
    assert int(machine.slub.slab[y]["inuse"]) == 8 and int(machine.slub.cpu[c]["freelist"]) == 7
    assert before - machine.free_pages() == 8
    machine.validate()
    machine.shrink(c)
    assert machine.free_pages() == before
    machine.validate()


def test_freed_objects_come_back_last_in_first_out() -> None:
    machine = SlubMachine()
    held = [machine.alloc(3) for _ in range(10)]
    for i in (2, 7, 4):
        machine.free(held[i])
    assert [machine.alloc(3) for _ in range(4)] == [held[4], held[7], held[2], held[9] + 1]


def test_a_full_partial_list_goes_to_the_node() -> None:
    """kmalloc-8k: 4 objects, 3 slabs on a CPU's list. The fourth slab that becomes partial sends the three to the node's tail, the newest first."""
    machine = SlubMachine()
    c = machine["kmalloc-8k"]
    held = [machine.alloc(c) for _ in range(24)]
    slabs = rows(held)
    for i in range(3):
        machine.free(held[4 * i])
    assert machine.cpu_partial(c) == slabs[2::-1]
    machine.free(held[12])
    assert machine.cpu_partial(c) == [slabs[3]]
    assert machine.partial(c) == slabs[2::-1]
    machine.validate()


def test_empty_slabs_beyond_min_partial_are_discarded() -> None:
    """kmalloc-8k keeps 6 partial slabs on the node: of 9 empty ones that arrive there three times three, the last three go."""
    machine = SlubMachine()
    c = machine["kmalloc-8k"]
    held = [machine.alloc(c) for _ in range(4 * 12)]
    before = machine.free_pages()
    for packed in held[: 4 * 10]:
        machine.free(packed)
    assert int(machine.slub.cache[c]["nr_partial"]) == 6
    assert len(machine.cpu_partial(c)) == 1
    assert machine.free_pages() - before == 3 * 8
    machine.validate()


def test_the_last_object_of_a_slab_on_the_node() -> None:
    """Freed: the slab stays while the node has no more than min_partial, else it goes at once."""
    machine = SlubMachine()
    c = machine["kmalloc-8k"]
    held = [machine.alloc(c) for _ in range(4 * 12)]
    slabs = rows(held)
    for i in range(9):
        machine.free(held[4 * i])
        machine.free(held[4 * i + 1])
    assert machine.partial(c) == slabs[2::-1] + slabs[5:2:-1], "three lists of three; the third is still the CPU's"
    for packed in held[2:4]:
        machine.free(packed)
    assert slabs[0] not in machine.partial(c), "nr_partial was 6"
    for packed in held[6:8]:
        machine.free(packed)
    assert slabs[1] in machine.partial(c) and int(machine.slub.slab[slabs[1]]["inuse"]) == 0
    machine.validate()


def test_refill_from_the_node() -> None:
    """The first slab becomes the CPU's, and up to half of what a CPU's list holds and one move to that list: 3 // 2 + 1 = 2."""
    machine = SlubMachine(cpus=2)
    c = machine["kmalloc-8k"]
    held = [machine.alloc(c) for _ in range(28)]
    slabs = rows(held)
    for i in range(6):
        machine.free(held[4 * i])
    machine.flush(c, 0)
    listed = machine.partial(c)
    assert sorted(listed) == sorted(slabs[:6])
    assert machine.alloc(c, 1) >> SLOT_BITS == listed[0]
    assert machine.cpu_partial(c, 1) == [listed[2], listed[1]]
    assert machine.partial(c) == listed[3:]
    machine.validate()


def test_another_cpus_free_goes_to_the_slabs_own_list() -> None:
    machine = SlubMachine(cpus=2)
    c = machine["kmalloc-2k"]
    per_slab = int(machine.slub.cache[c]["objects"])
    held = [machine.alloc(c) for _ in range(per_slab)]
    machine.free(held[5], 1)
    machine.free(held[2], 1)
    slab = machine.slub.slab[held[0] >> SLOT_BITS]
    assert (int(slab["freelist"]), int(slab["inuse"])) == (2, per_slab - 2)
    assert [machine.alloc(c), machine.alloc(c)] == [held[2], held[5]], "the CPU takes its slab's own list over"
    assert int(slab["inuse"]) == per_slab
    machine.validate()


@pytest.mark.parametrize("remote", [False, True])
def test_deactivation_puts_a_slab_at_the_head_or_the_tail(remote: bool) -> None:
    """At the tail if others had freed into it."""
    machine = SlubMachine(cpus=2)
    c = machine["kmalloc-1k"]
    held = [machine.alloc(c, 0) for _ in range(3)]
    x, y = held[0] >> SLOT_BITS, machine.alloc(c, 1) >> SLOT_BITS
    if remote:
        machine.free(held[1], 1)
    machine.flush(c, 1)
    machine.flush(c, 0)
    assert machine.partial(c) == ([y, x] if remote else [x, y])
    slab = machine.slub.slab[x]
    assert (int(slab["inuse"]), int(slab["freelist"]), int(slab["frozen"])) == (2 if remote else 3, 3, 0)
    machine.validate()


def test_shrink_sorts_the_fullest_first() -> None:
    machine = SlubMachine(caches=[("c", 512, 0, 0)], kmalloc=False)
    held = [machine.alloc(0) for _ in range(8 * 6)]
    slabs = rows(held)
    for i, count in enumerate((3, 8, 1, 5, 1)):
        for packed in held[8 * i : 8 * i + count]:
            machine.free(packed)
    machine.shrink(0)
    # list_move puts each at the head, so of those with as many free objects the one that came last is first
    free = [8 - int(machine.slub.slab[r]["inuse"]) for r in machine.partial(0)]
    assert free == [1, 1, 3, 5]
    assert slabs[1] not in machine.partial(0)
    machine.validate()


def test_debug_caches_have_no_cpu_slabs() -> None:
    machine = SlubMachine(caches=[("d", 1000, 0, CONSISTENCY | RED_ZONE | STORE_USER)], kmalloc=False)
    assert int(machine.slub.cache[0]["red_left_pad"]) > 0
    per_slab = int(machine.slub.cache[0]["objects"])
    held = [machine.alloc(0) for _ in range(2 * per_slab + 1)]
    a, b, c = rows(held)
    assert machine.partial(0) == [c]
    machine.free(held[per_slab])
    machine.free(held[0])
    assert machine.partial(0) == [c, b, a], "a full slab returns to the tail"
    assert (machine.slub.cpu["slab"] == -1).all()
    first = object_address(machine.slub, held[0]) - (int(machine.slub.slab[a]["pfn"]) << 12) - int(machine.slub.config[0]["page_offset"])
    assert first == int(machine.slub.cache[0]["red_left_pad"])
    machine.validate()


def test_bulk_frees_look_three_objects_ahead() -> None:
    """From the end, objects of the same slab are gathered; after three of other slabs the search ends."""
    machine = SlubMachine(cpus=2)
    c = machine["kmalloc-8k"]
    held = [machine.alloc(c) for _ in range(12)]
    x, y = held[:4], held[4:8]
    machine.free_bulk([x[0], y[0], y[1], x[1]], 1)
    assert machine.cpu_partial(c, 1) == [y[0] >> SLOT_BITS, x[0] >> SLOT_BITS], "x with both objects first, then y"
    assert machine.alloc(c, 1) == y[0]
    machine.validate()
    far = SlubMachine(cpus=2)
    held = [far.alloc(c) for _ in range(16)]
    x, y = held[:4], held[4:8]
    far.free_bulk([x[0], y[0], y[1], y[2], x[1]], 1)
    assert far.cpu_partial(c, 1)[-1] == x[0] >> SLOT_BITS and int(far.slub.slab[x[0] >> SLOT_BITS]["inuse"]) == 2
    far.validate()


def test_a_permutation_decides_the_order() -> None:
    machine = SlubMachine(caches=[("c", 256, 0, 0)], kmalloc=False, shuffled=True)
    held = [machine.alloc(0) for _ in range(32)]
    sequence = machine.slub.random.tolist()
    for slab in (held[:16], held[16:]):
        slots = [packed & SLOT_MASK for packed in slab]
        start = sequence.index(slots[0])
        assert slots == sequence[start:] + sequence[:start]
    machine.validate()


# Random requests beside a model


class ModelSlab:
    """A slab as the rules speak of it."""

    def __init__(self, row: int, objects: int) -> None:
        self.row, self.objects, self.inuse, self.free, self.frozen = row, objects, objects, list[int](), True


class Model:
    """One cache of the rules, in lists: what is first comes first."""

    def __init__(self, machine: SlubMachine, cache: int) -> None:
        self.machine, self.cache = machine, cache
        geometry = machine.slub.cache[cache]
        self.min_partial, self.limit = int(geometry["min_partial"]), int(geometry["cpu_partial_slabs"])
        self.slab: list[ModelSlab | None] = [None] * machine.cpus
        self.list = [list[int]() for _ in range(machine.cpus)]
        self.partial: list[list[ModelSlab]] = [[] for _ in range(machine.cpus)]
        self.node: list[ModelSlab] = []
        self.by_row: dict[int, ModelSlab] = {}

    def alloc(self, cpu: int, got: int) -> int:
        """The object that must come; `got` only says which row a new slab has and where its permutation begins."""
        while True:
            slab = self.slab[cpu]
            if slab is not None:
                if not self.list[cpu]:
                    self.list[cpu], slab.free, slab.inuse = slab.free, [], slab.objects
                if self.list[cpu]:
                    return slab.row << SLOT_BITS | self.list[cpu].pop(0)
                slab.frozen, self.slab[cpu] = False, None
            if self.partial[cpu]:
                self.slab[cpu] = self.partial[cpu].pop(0)
                continue
            if self.node:
                slab = self.slab[cpu] = self.node.pop(0)
                slab.frozen = True
                for _ in range(min(self.limit // 2 + 1, len(self.node))):
                    self.partial[cpu].insert(0, self.node.pop(0))
                    self.partial[cpu][0].frozen = True
                continue
            row = got >> SLOT_BITS
            assert row not in self.by_row, "a new slab was expected"
            entry = self.machine.slub.slab[row]
            slab = self.slab[cpu] = self.by_row[row] = ModelSlab(row, int(entry["objects"]))
            at = int(self.machine.slub.cache[self.cache]["random_seq"])
            sequence = list(range(slab.objects)) if at < 0 else self.machine.slub.random[at : at + int(self.machine.slub.cache[self.cache]["objects"])].tolist()
            start = sequence.index(got & SLOT_MASK) if at >= 0 else 0
            self.list[cpu] = [i for i in sequence[start:] + sequence[:start] if i < slab.objects]

    def free(self, cpu: int, row: int, slots: list[int]) -> None:
        """A chain of objects of one slab, the first one first."""
        slab = self.by_row[row]
        if self.slab[cpu] is slab:
            self.list[cpu][:0] = slots
            return
        full, slab.free = not slab.free, slots + slab.free
        slab.inuse -= len(slots)
        if slab.frozen:
            return
        if full:
            slab.frozen = True
            old = self.partial[cpu]
            if len(old) >= self.limit and old:
                self.partial[cpu] = []
                self.unfreeze(old)
            self.partial[cpu].insert(0, slab)
        elif slab.inuse == 0 and len(self.node) >= self.min_partial:
            self.node.remove(slab)
            del self.by_row[row]

    def unfreeze(self, slabs: list[ModelSlab]) -> None:
        for slab in slabs:
            slab.frozen = False
            if slab.inuse == 0 and len(self.node) >= self.min_partial:
                del self.by_row[slab.row]
            else:
                self.node.append(slab)

    def flush(self, cpu: int) -> None:
        slab, remote = self.slab[cpu], []
        if slab is not None:
            remote, slab.free = slab.free, self.list[cpu] + slab.free
            slab.inuse, slab.frozen = slab.inuse - len(self.list[cpu]), False
            if slab.inuse == 0 and len(self.node) >= self.min_partial:
                del self.by_row[slab.row]
            elif slab.free:
                self.node.insert(len(self.node) if remote else 0, slab)
            self.slab[cpu], self.list[cpu] = None, []
        partial, self.partial[cpu] = self.partial[cpu], []
        self.unfreeze(partial)

    def shrink(self) -> None:
        for cpu in range(self.machine.cpus):
            self.flush(cpu)
        for slab in [s for s in self.node if s.inuse == 0]:
            self.node.remove(slab)
            del self.by_row[slab.row]
        few = [s for s in self.node if s.objects - s.inuse <= 32]
        few.reverse()
        few.sort(key=lambda s: s.objects - s.inuse)
        self.node = few + [s for s in self.node if s.objects - s.inuse > 32]

    def check(self) -> None:
        """The tables say the same."""
        machine, c = self.machine, self.cache
        assert machine.partial(c) == [s.row for s in self.node]
        for cpu in range(machine.cpus):
            k, slab = machine.slub.cpu[c * machine.cpus + cpu], self.slab[cpu]
            assert machine.cpu_partial(c, cpu) == [s.row for s in self.partial[cpu]]
            assert int(k["slab"]) == (slab.row if slab else -1)
            assert int(k["freelist"]) == (self.list[cpu][0] if self.list[cpu] else -1)
        for row, slab in self.by_row.items():
            entry = machine.slub.slab[row]
            assert (int(entry["inuse"]), bool(entry["frozen"])) == (slab.inuse, slab.frozen)
            assert int(entry["freelist"]) == (slab.free[0] if slab.free else -1)


CACHES = [
    ("c8k", 8192, 0, 0),
    ("c96", 96, 0, 0),
    ("c512", 512, 64, RECLAIM_ACCOUNT),
    ("one", 20000, 0, 0),
    ("c2k", 2000, 0, 0),
    ("debug", 700, 0, CONSISTENCY | RED_ZONE),
]


class Requests(RuleBasedStateMachine):
    """Random requests on several caches and CPUs; both allocators are consistent after each, no object is handed out twice, the model agrees, and
    in the end every page comes back."""

    large = Bundle("large")

    @initialize(cpus=st.integers(1, 3), shuffled=st.booleans())
    def boot(self, cpus: int, shuffled: bool) -> None:
        self.machine = SlubMachine(cpus=cpus, caches=CACHES, shuffled=shuffled, kmalloc=False, slabs=2)
        for index in range(3, 14):  # kmalloc of some sizes; the others share the caches of this test
            self.machine.slub.kmalloc[index] = self.machine["c8k"]
        self.machine.slub.kmalloc[[1, 2]] = self.machine["c96"], self.machine["c512"]
        self.start = self.machine.free_pages()
        self.models = {c: Model(self.machine, c) for c in range(len(CACHES)) if CACHES[c][0] != "debug"}
        self.held: dict[int, int] = {}
        self.pages: list[int] = []

    def cpu(self, number: int) -> int:
        return number % self.machine.cpus

    def took(self, c: int, cpu: int, packed: int) -> None:
        if packed < 0:
            return
        if c in self.models:
            assert self.models[c].alloc(cpu, packed) == packed
        assert packed not in self.held, "handed out twice"
        self.held[packed] = c

    @rule(c=st.integers(0, len(CACHES) - 1), cpu=st.integers(0, 2), count=st.integers(1, 50))
    def alloc(self, c: int, cpu: int, count: int) -> None:
        for _ in range(count):
            self.took(c, self.cpu(cpu), self.machine.alloc(c, self.cpu(cpu)))

    @rule(size=st.integers(1, 8192), cpu=st.integers(0, 2))
    def kmalloc(self, size: int, cpu: int) -> None:
        physical = self.machine.kmalloc(size, cpu=self.cpu(cpu))
        packed = self.machine.packed(physical)
        self.took(int(self.machine.slub.slab[packed >> SLOT_BITS]["cache"]), self.cpu(cpu), packed)

    @rule(size=st.integers(8193, 1 << 22), cpu=st.integers(0, 2))
    def kmalloc_large(self, size: int, cpu: int) -> None:
        physical = self.machine.kmalloc(size, cpu=self.cpu(cpu))
        if physical >= 0:
            self.pages.append(physical)

    def freed(self, packed: int, cpu: int) -> None:
        c = self.held.pop(packed)
        if c in self.models:
            self.models[c].free(cpu, packed >> SLOT_BITS, [packed & SLOT_MASK])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), cpu=st.integers(0, 2), count=st.integers(1, 60))
    def free(self, data: st.DataObject, cpu: int, count: int) -> None:
        cpu, turn = self.cpu(cpu), np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
        for packed in turn.permutation(list(self.held))[:count].tolist():
            self.machine.free(packed, cpu)
            self.freed(packed, cpu)

    @precondition(lambda self: self.held)
    @rule(cpu=st.integers(0, 2), start=st.floats(0, 1), count=st.integers(1, 80))
    def free_run(self, cpu: int, start: float, count: int) -> None:
        """In the order of allocation: whole slabs become empty."""
        cpu, held = self.cpu(cpu), list(self.held)
        at = int(start * (len(held) - 1))
        for packed in held[at : at + count]:
            self.machine.free(packed, cpu)
            self.freed(packed, cpu)

    @precondition(lambda self: self.held or self.pages)
    @rule(data=st.data(), cpu=st.integers(0, 2), count=st.integers(1, 40))
    def free_bulk(self, data: st.DataObject, cpu: int, count: int) -> None:
        turn = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
        chosen = turn.permutation(list(self.held))[:count].astype(np.int64).tolist()
        large, self.pages = self.pages[:2], self.pages[2:]
        mixed = turn.permutation(chosen + [-p for p in large]).astype(np.int64).tolist() if turn.integers(2) else sorted(chosen) + [-p for p in large]
        todo = list(mixed)
        while todo:  # groups as the rules make them: the last one's slab, looking past two others
            last = todo.pop()
            if last < 0:
                continue
            slots, looked, at = [last & SLOT_MASK], 0, len(todo)
            while at and looked < 3:
                at -= 1
                if todo[at] >= 0 and todo[at] >> SLOT_BITS == last >> SLOT_BITS:
                    slots.append(todo[at] & SLOT_MASK)
                    todo[at] = todo[-1]
                    todo.pop()
                else:
                    looked += 1
            c = self.held[last]
            if c in self.models:
                self.models[c].free(self.cpu(cpu), last >> SLOT_BITS, slots)
        for packed in chosen:
            del self.held[packed]
        self.machine.free_bulk(mixed, self.cpu(cpu))

    @rule(c=st.integers(0, len(CACHES) - 1), cpu=st.integers(0, 2))
    def flush(self, c: int, cpu: int) -> None:
        self.machine.flush(c, self.cpu(cpu))
        if c in self.models:
            self.models[c].flush(self.cpu(cpu))

    @rule(c=st.integers(0, len(CACHES) - 1))
    def shrink(self, c: int) -> None:
        self.machine.shrink(c)
        if c in self.models:
            self.models[c].shrink()

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "machine"):
            self.machine.validate()
            for model in self.models.values():
                model.check()

    def teardown(self) -> None:
        if not hasattr(self, "machine"):
            return
        for packed in self.held:
            self.machine.free(packed)
        for physical in self.pages:
            assert self.machine.kfree(physical) == 0
        for c in range(len(CACHES)):
            self.machine.shrink(c)
        self.machine.validate()
        assert self.machine.free_pages() == self.start
        assert int(self.machine.slub.config[0]["pages"]) == 0


TestRequests: Any = Requests.TestCase
TestRequests.settings = settings(max_examples=25, stateful_step_count=20)


# One source, two ways to run it (the replay's test has the third, with bounds checks: these entry points take a minute to compile)

PROGRAM = """
import hashlib, json
import numpy as np
from mmtwin.mm import slab_entry
from mmtwin.mm.handle import address_table
from tests.slub_machine import SlubMachine
machine = SlubMachine(cpus=2, shuffled=True, slabs=4000)
machine.slub = machine.slub._replace(slot=np.full(1 << 18, -2, dtype=np.int16))
table = address_table(machine.pages, machine.slub)
handle, rng, held = table.ctypes.data, np.random.default_rng(3), []
for i in range(4000):
    what, cpu = int(rng.integers(100)), int(rng.integers(2))
    if what < 60 or not held:
        held.append(slab_entry.kmalloc_entry(handle, int(rng.integers(1, 9000)), (0xCC0, 0xA20, 0xCD0, 0x400CC0)[int(rng.integers(4))], cpu))
    elif what < 96:
        slab_entry.kfree_entry(handle, held.pop(int(rng.integers(len(held)))), cpu)
    elif what < 98:
        out = np.array([held.pop() for _ in range(min(9, len(held)))], dtype=np.int64)
        slab_entry.free_bulk_entry(handle, -1, cpu, out)
    else:
        slab_entry.shrink_entry(handle, int(rng.integers(len(machine.names))), cpu)
machine.validate()
digest = hashlib.sha256()
for part in (*machine.pages, *machine.slub):
    digest.update(part.tobytes())
print(json.dumps([digest.hexdigest(), len(held), min(held) >= 0, int(machine.slub.config[0]["pages"])]))
"""
MODES = {"compiled": {}, "interpreted": {"NUMBA_DISABLE_JIT": "1"}}


def test_one_digest() -> None:
    path = os.pathsep.join(["", *sys.path]).lstrip(os.pathsep)
    found = {}
    for mode, extra in MODES.items():
        done = subprocess.run([sys.executable, "-c", PROGRAM], env={**os.environ, "PYTHONPATH": path, **extra}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (mode, done.stderr[-2000:])
        found[mode] = json.loads(done.stdout)
    assert found["compiled"] == found["interpreted"]
    assert found["compiled"][2] and found["compiled"][3] > 100
