"""The classic SLAB's rules. Sequences are worked out by hand; the functions run in the interpreter, one test compares the compiled ones."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmtwin.gfp import GFP_KERNEL
from mmtwin.machine import Machine
from mmtwin.mm import slab
from mmtwin.mm.page_alloc import EBUSY, EINVAL, ENOENT
from mmtwin.mm.slab_classic_geometry import OFF_SLAB, SLAB_TYPESAFE_BY_RCU, Variant, slab_geometry
from mmtwin.mm.slab_classic_tables import END, FREE, FULL, LISTS, PARTIAL, ClassicSlab, add_arrays, copy_slab, new_slab, reserve
from mmtwin.mm.tables import PG_SLAB, Pgdat

Bare = Callable[..., Machine]
VARIANTS: tuple[Variant, ...] = ("2.6.24", "3.6", "6.1")


class World:
    """A machine's pages, SLAB tables, and one cache (with one for its management data if that is off the slab)."""

    def __init__(self, pages: Pgdat, size: int, variant: Variant = "6.1", cpus: int = 1, flags: int = 0, tune: tuple[int, int, int] | None = None) -> None:
        self.b = pages
        self.s = new_slab(int(pages.config[0]["nr_frames"]), cpus, variant)
        g = slab_geometry(size, flags=flags, variant=variant)
        management = END
        if g.management == OFF_SLAB:
            self.s, management = slab.kmem_cache_create(self.s, slab_geometry(64 if variant != "6.1" else 32, variant=variant))
        self.s, self.c = slab.kmem_cache_create(self.s, g, flags=flags, management_cache=management, tune=tune)
        self.s = reserve(self.s, 3000, 100_000)
        self.num, self.cpus = g.num, cpus

    def alloc(self, cpu: int = 0, gfp: int = GFP_KERNEL) -> int:
        return slab.kmem_cache_alloc(self.b, self.s, self.c, cpu, gfp)

    def free(self, address: int, cpu: int = 0) -> int:
        return slab.kmem_cache_free(self.b, self.s, address, cpu)

    def walk(self, which: int) -> list[int]:
        head = self.c * LISTS + which
        found, row = [], int(self.s.slab[head]["next"])
        while row != head:
            found.append(row)
            row = int(self.s.slab[row]["next"])
        return found

    def entries(self, cpu: int = 0) -> list[int]:
        array = self.s.array[slab.cpu_array(self.s, self.c, cpu)]
        return [int(address) for address in self.s.entry[int(array["entry"]) : int(array["entry"]) + int(array["avail"])]]

    def __getitem__(self, name: str) -> int:
        return int(self.s.cache[self.c][name])

    def check(self) -> None:
        """What must hold at any time."""
        free = 0
        for which in (FULL, PARTIAL, FREE):
            for row in self.walk(which):
                active = int(self.s.slab[row]["active"])
                assert which == (FREE if active == 0 else FULL if active == self.num else PARTIAL)
                first = int(self.s.slab[row]["index"])
                rest = self.s.indices[first + active : first + self.num].tolist()
                assert len(set(rest)) == len(rest) and not self.s.used[first + np.array(rest, dtype=int)].any()
                free += self.num - active
        assert self["free_objects"] == free
        assert self["free_slabs"] == len(self.walk(FREE))
        assert self["total_slabs"] == sum(len(self.walk(which)) for which in (FULL, PARTIAL, FREE))


@pytest.fixture
def world(bare: Bare) -> Callable[..., World]:
    return lambda size, variant="6.1", cpus=1, **more: World(bare("64MiB", cpus=cpus).state, size, variant, cpus, **more)


def numbers(w: World, objects: list[int]) -> list[int]:
    """Object numbers in their slabs."""
    return [slab.number_of(w.s, slab.slab_of(w.s, o), o) for o in objects]


@pytest.mark.parametrize("variant", VARIANTS)
def test_first_batch(world: Callable[..., World], variant: Variant) -> None:
    """An array that was not used lately gets 16 objects; what was taken last from the slab is handed out first."""
    w = world(128, variant)
    objects = [w.alloc() for _ in range(16)]
    assert numbers(w, objects) == list(range(15, -1, -1))
    assert w["total_slabs"] == 1 and w["free_objects"] == w.num - 16
    assert numbers(w, [w.alloc()]) == [w.num - 1]  # now the batch is 60 and takes all the rest
    w.check()


@pytest.mark.parametrize("variant", VARIANTS)
def test_colours(world: Callable[..., World], variant: Variant) -> None:
    """Each new slab starts one colour further; 6.1 begins with the second."""
    w = world(600, variant)
    colour, step = w["colour"], w["colour_off"]
    assert colour >= 3
    seen: list[int] = []
    while len(seen) < 2 * colour + 1:
        row = slab.slab_of(w.s, w.alloc())
        offset = int(w.s.slab[row]["first"]) - w["header"]
        if row not in seen:
            seen.append(row)
            k = len(seen) - (0 if variant == "6.1" else 1)
            if w["total_slabs"] == len(seen):
                assert offset == k % colour * step
    assert {int(w.s.slab[r]["first"]) - w["header"] for r in seen} == {k * step for k in range(colour)}


def test_flush_gives_the_oldest_back(world: Callable[..., World]) -> None:
    """A full array (limit 24, batch 12) gives its 12 oldest entries to their slabs, then takes the freed object."""
    w = world(2048)
    objects = [w.alloc() for _ in range(40)]
    held = w.entries()
    for o in objects[: 24 - len(held)]:
        assert w.free(o) == 0
    before = w.entries()
    assert len(before) == 24
    assert w.free(objects[30]) == 0
    assert w.entries() == [*before[12:], objects[30]]
    w.check()


@pytest.mark.parametrize("variant", VARIANTS)
def test_lists_of_a_free(world: Callable[..., World], variant: Variant) -> None:
    """Objects of a full slab go back: the slab goes to the partial list's tail, the empty one to the free list's head; the last freed is the next taken."""
    w = world(1024, variant, tune=(1, 1, 0))
    objects = [w.alloc() for _ in range(3 * w.num)]
    rows = [slab.slab_of(w.s, o) for o in objects]
    first, second = rows[0], rows[w.num]
    assert set(w.walk(FULL)) == set(rows)
    pick = [o for o, r in zip(objects, rows, strict=True) if r == first]
    other = next(o for o, r in zip(objects, rows, strict=True) if r == second)
    for o in (pick[0], other, pick[1], objects[-1]):  # with a limit of 1 each free flushes the one before
        w.free(o)
    assert w.walk(PARTIAL) == [second, first]
    w.alloc()  # the array's own
    assert w.alloc() == other
    assert w.alloc() == pick[1]
    w.check()


def test_shared_array(world: Callable[..., World]) -> None:
    """With two CPUs a flush goes to the shared array, and another CPU's refill takes the newest of it."""
    w = world(2048, cpus=2)
    objects = [w.alloc() for _ in range(60)]
    for o in objects[:40]:
        w.free(o)
    shared = w.s.array[slab.shared_array(w.s, w.c)]
    assert int(shared["avail"]) == 24 and int(shared["limit"]) == 96
    inside = w.s.entry[int(shared["entry"]) : int(shared["entry"]) + 24].tolist()
    assert w.alloc(cpu=1) == inside[-1]
    assert w.entries(1) == inside[12:23] and int(shared["avail"]) == 12 and int(shared["touched"]) == 1
    w.check()


@pytest.mark.parametrize(("variant", "mark"), [("2.6.24", 0), ("3.6", 1)])
def test_who_is_touched(world: Callable[..., World], variant: Variant, mark: int) -> None:
    """2.6.24 marks the array that is filled, 3.6 the shared one."""
    w = world(2048, variant, cpus=2)
    for o in [w.alloc() for _ in range(60)][:40]:
        w.free(o)
    w.alloc(cpu=1)
    assert int(w.s.array[slab.shared_array(w.s, w.c)]["touched"]) == mark


def test_slabs_beyond_the_limit_go(world: Callable[..., World]) -> None:
    """free_limit 2 * 12 + 2: when more objects are free, slabs leave from the free list's tail, and the one that left last is freed first."""
    w = world(2048)
    assert w["free_limit"] == 26
    objects = [w.alloc() for _ in range(120)]
    pages = int(w.s.config[0]["pages"])
    for o in objects:
        w.free(o)
    assert w["free_objects"] <= 26 and int(w.s.config[0]["pages"]) < pages
    w.check()
    assert slab.shrink(w.b, w.s, w.c, 0) == 0
    assert int(w.s.config[0]["pages"]) == 0 and not w.s.frame.any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_reap(world: Callable[..., World], variant: Variant) -> None:
    """A pass clears a mark, the next one drains a fifth of the array's size; the node's lists have their turn when their time has come."""
    w = world(2048, variant)
    objects = [w.alloc() for _ in range(40)]
    for o in objects[:30]:
        w.free(o)
    count, due = len(w.entries()), w["next_reap"]
    array = w.s.array[slab.cpu_array(w.s, w.c, 0)]
    assert int(array["touched"]) == 1
    oldest = w.entries()
    slab.cache_reap(w.b, w.s, 0, due - 1)
    assert int(array["touched"]) == 0 and len(w.entries()) == count
    slab.cache_reap(w.b, w.s, 0, due - 1)
    assert w.entries() == oldest[5:]  # (24 + 4) // 5
    w.s.cache[w.c]["free_touched"] = 1
    free = w["free_slabs"]
    slab.cache_reap(w.b, w.s, 0, due)
    assert w["free_touched"] == 0 and w["next_reap"] == due + 1000 and w["free_slabs"] >= free
    total = w["total_slabs"]
    slab.cache_reap(w.b, w.s, 0, due + 1000)
    assert total - w["total_slabs"] >= 3  # (26 + 5 * 2 - 1) // (5 * 2), and what the drained objects put above the limit
    w.check()


@pytest.mark.parametrize("variant", VARIANTS)
def test_management_off_the_slab(world: Callable[..., World], variant: Variant) -> None:
    """Each slab has an object of the general cache for its numbers; it goes back with the slab."""
    w = world(256 if variant == "6.1" else 1024, variant, flags=SLAB_TYPESAFE_BY_RCU if variant == "6.1" else 0)
    assert w["management"] == OFF_SLAB
    objects = [w.alloc() for _ in range(100)]
    mine = {int(w.s.slab[slab.slab_of(w.s, o)]["management"]) for o in objects}
    assert len(mine) == w["total_slabs"] and END not in mine
    assert all(slab.check_free(w.s, address) > 0 for address in mine)
    for o in objects:
        w.free(o)
    slab.shrink(w.b, w.s, w.c, 0)
    if variant == "6.1":
        assert int(w.s.config[0]["pages"]) > 1
        assert slab.rcu_done(w.b, w.s, 0) > 0
    assert all(slab.check_free(w.s, address) == -EBUSY for address in mine if slab.slab_of(w.s, address) != END)
    slab.shrink(w.b, w.s, 0, 0)
    assert int(w.s.config[0]["pages"]) == 0
    w.check()


def test_wrong_frees(world: Callable[..., World]) -> None:
    w = world(128)
    address = w.alloc()
    assert w.free(address + 8) == -EINVAL
    assert w.free(5 << 20) == -ENOENT and w.free(-4096) == -ENOENT and w.free(1 << 40) == -ENOENT
    assert w.free(address) == 0 and w.free(address) == -EBUSY
    assert int(w.b.page[address >> 12]["flags"]) & PG_SLAB
    w.check()


def test_no_room_and_no_memory(bare: Bare) -> None:
    w = World(bare("64MiB").state, 4096)
    w.s = w.s._replace(slab=w.s.slab[: int(w.s.config[0]["slabs"])])
    assert w.alloc() == -slab.ENOSPC
    w = World(bare("64MiB").state, 4096)
    w.s = reserve(w.s, 20_000, 20_000)
    found = 0
    while w.alloc() >= 0:
        found += 1
    assert found > 8000
    w.check()


@pytest.mark.parametrize(("size", "flags"), [(128, 0), (256, SLAB_TYPESAFE_BY_RCU)])
def test_fallback_object_comes_from_the_node(bare: Bare, monkeypatch: pytest.MonkeyPatch, size: int, flags: int) -> None:
    """When this node has no page without reclaim, the request's own flags may find one; its slab is put on the list and gives one object, not a batch."""
    w = World(bare("64MiB").state, size, flags=flags)
    asked: list[int] = []

    def pages(b: Pgdat, s: ClassicSlab, c: int, cpu: int, gfp: int) -> int:
        asked.append(gfp & 0x200000)
        return -12 if gfp & 0x200000 else 8192 + 16 * len(asked)

    monkeypatch.setattr(slab, "slab_pages", pages)
    address = w.alloc()
    assert numbers(w, [address]) == [0] and w.entries() == []
    assert asked == ([0x200000, 0] if not flags else [0x200000, 0, 0x200000, 0])
    assert w["free_objects"] == w.num - 1 and w.walk(PARTIAL) == [slab.slab_of(w.s, address)]
    w.check()
    monkeypatch.setattr(slab, "slab_pages", lambda *_: -12)
    for _ in range(w.num - 1):
        assert w.alloc() > 0
    assert w.alloc() == -12 and w.alloc(gfp=GFP_KERNEL | 0x200000) == -12
    w.check()


def test_bad_arrays(bare: Bare) -> None:
    w = World(bare("64MiB").state, 128)
    for limits in ((0, 1, 0), (1, 2, 0), (4, 0, 0), (4, 2, -1), (1 << 20, 1, 0)):
        with pytest.raises(ValueError, match="limit"):
            add_arrays(w.s, w.c, *limits)
    with pytest.raises(ValueError, match="on the slab"):
        slab.kmem_cache_create(w.s, slab_geometry(256, flags=SLAB_TYPESAFE_BY_RCU))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 30), variant=st.sampled_from(VARIANTS), size=st.sampled_from([16, 100, 192, 700, 1024, 3000]), cpus=st.sampled_from([1, 2]))
def test_any_sequence(bare: Bare, seed: int, variant: Variant, size: int, cpus: int) -> None:
    """No object twice, lists and counters fit, every object where its colour says, and every page back at the end."""
    w = World(bare("64MiB", cpus=cpus).state, size, variant, cpus)
    rng, live = random.Random(seed), dict[int, None]()
    for step in range(400):
        cpu = rng.randrange(cpus)
        if rng.random() < 0.55 + 0.4 * ((step // 100) % 2 == 0) - 0.4 * ((step // 100) % 2) or not live:
            address = w.alloc(cpu)
            assert address > 0 and address not in live
            row = slab.slab_of(w.s, address)
            base = int(w.s.slab[row]["pfn"]) << 12
            assert address - base + w["size"] <= 4096 << w["order"]
            assert (int(w.s.slab[row]["first"]) - w["header"]) % w["colour_off"] == 0
            live[address] = None
        else:
            address = rng.choice(list(live))
            del live[address]
            assert w.free(address, cpu) == 0
        if step % 97 == 0:
            slab.cache_reap(w.b, w.s, cpu, step * 100)
    w.check()
    for address in live:
        assert w.free(address) == 0
    assert slab.shrink(w.b, w.s, w.c, 0) == 0
    if w.c:
        slab.shrink(w.b, w.s, 0, 0)
    assert int(w.s.config[0]["pages"]) == 0 and not w.s.frame.any()


def digest(s: ClassicSlab, b: Pgdat) -> str:
    return hashlib.sha256(b"".join(t.tobytes() for t in (*s, b.page, b.zone, b.pcp))).hexdigest()


def test_compiled_is_the_same(bare: Bare) -> None:
    def run(w: World, compiled: bool) -> tuple[list[int], str]:
        rng, live, said = random.Random(7), list[int](), list[int]()
        call = slab.request_kernel if compiled else slab.request_kernel.py_func if hasattr(slab.request_kernel, "py_func") else slab.request_kernel
        for step in range(600):
            if rng.random() < 0.6 or not live:
                live.append(call(w.b, w.s, slab.ALLOC, w.c, 0, GFP_KERNEL))
                said.append(live[-1])
            else:
                said.append(call(w.b, w.s, slab.FREE_OBJECT, 0, 0, live.pop(rng.randrange(len(live)))))
            if step % 150 == 149:
                said.append(call(w.b, w.s, slab.REAP, 0, 0, step * 10))
        said.append(call(w.b, w.s, slab.SHRINK, w.c, 0, 0))
        said.append(call(w.b, w.s, slab.RCU_DONE, 0, 0, 0))
        return said, digest(w.s, w.b)

    one, two = (World(bare("64MiB").state, 256, flags=SLAB_TYPESAFE_BY_RCU) for _ in range(2))
    assert run(one, True) == run(two, False)
    assert copy_slab(one.s).cache.tobytes() == one.s.cache.tobytes()
