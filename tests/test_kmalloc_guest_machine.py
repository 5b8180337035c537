"""Machine against what a real kernel answered: every kmalloc, array, krealloc and kmem_cache_create of data/kmalloc-probe-6.1.txt.gz."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for plain `pytest`, which does not put the directory there

from mmtwin import AllocationFailure, RequestError, boot
from mmtwin.machine import Machine
from mmtwin.mm import slab_common as sc
from mmtwin.mm.slab_entry import object_entry
from mmtwin.mm.slab_tables import KMALLOC_INDEXES, KMALLOC_TYPES, new_slub
from mmtwin.units import PAGE_SIZE
from tests.data_kmalloc_probe import KmallocRange, ProbeRun, RealCache, probe_runs

ZERO_SIZE_PTR = 16
GFP_DMA, GFP_ZERO = 0x1, 0x100
DMA_LIMIT = 16 << 20


def config_of(run: ProbeRun) -> sc.SlubConfig:
    return sc.SlubConfig.from_cmdline(run.cmdline, sc.slub_cpus(int(run.header["present_cpus"]), int(run.header["nr_cpu_ids"])))


def machine_with(run: ProbeRun, caches: Sequence[RealCache]) -> Machine:
    """A machine with exactly these caches of the real one, all empty."""
    plain = boot(ram="256MiB", cpus=run.cpus)
    slub = new_slub(run.cpus, plain.profile.page_offset)
    names = [cache.name for cache in caches]
    for number, cache in enumerate(caches):
        row = slub.cache[number]
        for column in (*sc.CacheGeometry._fields, "refcount", "usersize", "ctor"):
            row[column] = getattr(cache, column)
        row["live"], row["random_seq"] = 1, -1
    slub.config[0]["caches"] = len(caches)
    for kind in range(KMALLOC_TYPES):
        for index in range(1, KMALLOC_INDEXES):
            slub.kmalloc[kind * KMALLOC_INDEXES + index] = names.index(sc.KMALLOC_TYPE_PREFIX[kind] + sc.KMALLOC_CLASSES[index].label)
    return Machine(plain.state, plain.profile, plain.ram, plain.reserved, slub=slub, cache_names=names, slab_config=config_of(run))


@pytest.fixture(scope="module")
def machine() -> Machine:
    """As the guest of the run that asks everything."""
    return machine_with(probe_runs()[0], probe_runs()[0].caches)


def answer(m: Machine, real: KmallocRange, size: int, count: int) -> KmallocRange:
    """What the machine says to this request, made `count` times before all is freed, in the form of the guest's answer; contents are not kept."""
    found = real._replace(first=size, last=size, roundup=m.kmalloc_size_roundup(size), cache=None, ksize=0, align=0, pages_order=0, zero=-1, dma=-1)
    try:
        held = [m.kmalloc(size, real.gfp) for _ in range(count)]
    except AllocationFailure as failure:
        assert failure.status == "order too large" and failure.errno == -12
        return found
    found = found._replace(cache="-", zero=real.zero, dma=1 if real.gfp & GFP_DMA else -1)
    if not size:
        assert held == [ZERO_SIZE_PTR] * count and m.ksize(ZERO_SIZE_PTR) == 0
        m.kfree(ZERO_SIZE_PTR)
        return found._replace(align=ZERO_SIZE_PTR)
    ksize = m.ksize(held[0])
    bits = 1 << (ksize - 1).bit_length()
    for address in held:
        physical = address - m.PAGE_OFFSET
        bits |= address
        number, row, slot, taken = object_entry(m._handle, physical)
        if number >= 0:
            assert slot >= 0 and taken == 1
            slab = m.slub.slab[row]
            begin, order, cache = int(slab["pfn"]) * PAGE_SIZE, int(slab["order"]), m._cache_names[number]
        else:
            begin, order, cache = physical, int(m.state.page[physical // PAGE_SIZE]["order"]), "-"
        contiguous = begin <= physical and physical + ksize <= begin + (PAGE_SIZE << order)
        below = physical + ksize <= DMA_LIMIT if real.gfp & GFP_DMA else -1
        found = found._replace(cache=cache, ksize=ksize, pages_order=order, contiguous=int(contiguous), dma=int(below))
        assert m.virt_to_phys(address) == physical and m.phys_to_virt(physical) == address
    for address in held:
        m.kfree(address)
    return found._replace(align=bits & -bits)


def test_kmalloc_of_every_range(machine: Machine) -> None:
    """Both ends of every range, with 16 objects held as the guest did: class, ksize, alignment, contiguity, place below 16 MiB, NULL, ZERO_SIZE_PTR."""
    for real in probe_runs()[0].kmalloc:
        for size in {real.first, real.last}:
            assert answer(machine, real, size, 16 if size <= sc.KMALLOC_MAX_CACHE_SIZE else 1)._replace(linear=1) == real._replace(
                first=size, last=size, roundup=real.roundup if size == real.first else machine.kmalloc_size_roundup(real.first)
            ), real
    machine.validate()


def test_kmalloc_of_every_size(machine: Machine) -> None:
    """All the sizes that the guest was asked for, with each kind of flags."""
    asked = {(r.gfp, r.first, r.last): r for r in probe_runs()[0].kmalloc}
    names, handle, offset, limit = machine._cache_names, machine._handle, machine.PAGE_OFFSET, DMA_LIMIT
    sizes = 0
    for (gfp, first, last), real in asked.items():
        for size in range(first, last + 1):
            sizes += 1
            if real.cache is None:
                with pytest.raises(AllocationFailure, match="KMALLOC_MAX_SIZE"):
                    machine.kmalloc(size, gfp)
                continue
            address = machine.kmalloc(size, gfp)
            assert address % real.align == 0 and (not size or machine.ksize(address) == real.ksize)
            if size:
                physical = address - offset
                number = object_entry(handle, physical)[0]
                assert (names[number] if number >= 0 else "-") == real.cache
                assert real.dma != 1 or physical + real.ksize <= limit
            assert machine.kmalloc_size_roundup(size) == real.roundup
            machine.kfree(address)
    assert sizes > 13 * 9000
    machine.validate()


def arrays() -> list[ProbeRun]:
    return [run for run in probe_runs() if "array" in run.lines]


@pytest.mark.parametrize("run", arrays(), ids=lambda run: run.cmdline or "as Debian boots")
def test_arrays(run: ProbeRun, machine: Machine) -> None:
    overflowed = 0
    for words, _ in run.lines["array"]:
        call = machine.kcalloc if words["how"] == "kcalloc" else machine.kmalloc_array
        n, size = int(words["n"]), int(words["size"])
        if "ksize" in words or "zero_size_ptr" in words:
            address = call(n, size)
            assert address == words.get("zero_size_ptr", address)
            assert machine.ksize(address) == words.get("ksize", 0)
            machine.kfree(address)
            continue
        with pytest.raises(AllocationFailure) as caught:
            call(n, size)
        overflowed += caught.value.status == "overflow"
        assert (caught.value.status == "overflow") == (n * size > sc.SIZE_MAX)
    assert overflowed >= 14


@pytest.mark.parametrize("run", arrays(), ids=lambda run: run.cmdline or "as Debian boots")
def test_krealloc(run: ProbeRun, machine: Machine) -> None:
    for words, _ in run.lines["krealloc"]:
        old = machine.kmalloc(int(words["from"]))
        assert machine.ksize(old) == words["ksize_before"]
        if "ksize" in words or "zero_size_ptr" in words:
            new = machine.krealloc(old, int(words["to"]))
            assert machine.ksize(new) == words.get("ksize", 0) and new == words.get("zero_size_ptr", new)
            assert "same" not in words or (new == old) == bool(words["same"])
            machine.kfree(new)
        else:
            with pytest.raises(AllocationFailure):
                machine.krealloc(old, int(words["to"]))
            assert machine.ksize(old) == words["ksize_before"], "NULL leaves the old object"
            machine.kfree(old)
    for words, _ in run.lines["krealloc_null"]:
        for null in (0, ZERO_SIZE_PTR):
            new = machine.krealloc(null, int(words["to"]))
            assert machine.ksize(new) == words.get("ksize", 0) and new == words.get("zero_size_ptr", new)
            machine.kfree(new)
    assert run.lines["ksize_of"] == [({"null": machine.ksize(0), "zero_size_ptr": machine.ksize(ZERO_SIZE_PTR)}, None)]
    for words, _ in run.lines["kzalloc"]:
        address = machine.kzalloc(int(words["size"]))
        assert machine.ksize(address) == words["ksize"]
        machine.kfree(address)
    assert len(run.lines["krealloc"]) > 250
    machine.validate()


def row_of(m: Machine, number: int, real: RealCache) -> RealCache:
    """A cache of the machine as the probe would show it; `real` says what is not kept. Without red zones nobody looks at red_left_pad."""
    row = m.slub.cache[number]
    fields = {c: int(row[c]) for c in (*sc.CacheGeometry._fields, "refcount", "usersize", "ctor")}
    if not fields["flags"] & sc.SLAB_RED_ZONE:
        fields["red_left_pad"] = real.red_left_pad
    return real._replace(**fields)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_kmem_cache_create(number: int) -> None:
    """Refused, merged and with which, or made and with which geometry; ksize of an object, and how often the constructor was called; destroyed again."""
    run = probe_runs()[number]
    m, rows = machine_with(run, run.caches), 0
    known = len(run.caches)
    outcomes = {"null": 0, "merged": 0, "made": 0}
    for asked, real in run.created:
        if rows == 600:  # a machine has room for 1024 caches in its life
            now = [c._replace(**{n: int(m.slub.cache[i][n]) for n in ("object_size", "inuse", "refcount")}) for i, c in enumerate(run.caches)]
            m, rows = machine_with(run, now), 0
        size, align, flags, ctor, useroffset, usersize = (int(asked[k]) for k in ("size", "align", "flags", "ctor", "useroffset", "usersize"))
        constructed: list[int] = []
        arguments = ("probe", size, align, flags, constructed.append if ctor else None)
        if real is None:
            before = m.digest() if outcomes["null"] < 4 else ""
            with pytest.raises(RequestError, match="error -22"):
                m.kmem_cache_create(*arguments, useroffset=useroffset, usersize=usersize)
            assert not before or m.digest() == before
            outcomes["null"] += 1
            continue
        cache = m.kmem_cache_create(*arguments, useroffset=useroffset, usersize=usersize)
        assert bool(cache.merged_with) == bool(asked["merged"]), asked
        assert row_of(m, cache.id, real) == real, asked
        assert (m._cache_names[cache.id] == real.name and cache.id < known) if cache.merged_with else real.name == "."
        assert m.kmem_cache_size(cache) == asked["kmem_cache_size"]
        if asked["ksize"]:  # 0: the guest had no memory for the first object
            address = m.kmem_cache_alloc(cache, 0xCC1 if real.allocflags & GFP_DMA else 0xCC0)
            assert m.ksize(address) == asked["ksize"] and address % real.align == 0
            assert len(set(constructed)) == len(constructed) == asked["constructed"]
            assert not ctor or address in constructed
            m.kmem_cache_free(cache, address)
        m.kmem_cache_destroy(cache)
        rows += not cache.merged_with
        outcomes["merged" if cache.merged_with else "made"] += 1
    debug = bool(config_of(run).debug.flags)
    assert outcomes["null"] >= 4 and outcomes["made"] > 700 and (outcomes["merged"] > 150) != debug, outcomes
    assert sum(outcomes.values()) == 1201
    m.validate()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_two_caches_alike(number: int) -> None:
    """Which sizes become an alias of a cache of 984 bytes; a name may be used twice."""
    run = probe_runs()[number]
    m = machine_with(run, run.caches)
    ((_, first_real),) = run.lines["merge_first"]
    first = m.kmem_cache_create("probe_first", 984, 8)
    assert first_real is not None and row_of(m, first.id, first_real) == first_real
    for words, real in run.lines["merge"]:
        assert real is not None
        second = m.kmem_cache_create("probe_second", int(words["size"]))
        assert (second.id == first.id) == bool(words["same"]), words
        assert row_of(m, second.id, real) == real
        m.kmem_cache_destroy(second)
    twice = [m.kmem_cache_create("probe_twice", 984, ctor=lambda address: None) for _ in range(2)]
    assert twice[0].id != twice[1].id
    for cache in (*twice, first):
        m.kmem_cache_destroy(cache)


def test_contexts_ask_alike() -> None:
    """The guest's answers do not depend on the context, so a machine needs none."""
    by_request: dict[tuple[int, int], set[KmallocRange]] = {}
    for real in probe_runs()[0].kmalloc:
        by_request.setdefault((real.gfp, real.first), set()).add(real._replace(context="", last=0))
    assert all(len(found) == 1 for found in by_request.values())
    assert np.unique([gfp for gfp, _ in by_request]).size == 13
