"""The slab API of a machine: what kmalloc promises for every size, misuse, slabinfo and geometry of real kernels, copies, and the document's examples."""

from __future__ import annotations

import copy
import doctest
import gzip
import json
import pickle
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import mmtwin
from mmtwin import GFP_ATOMIC, GFP_KERNEL, GFP_KERNEL_ACCOUNT, AllocationFailure, BadFree, DoubleFree, MmtwinError, RequestError
from mmtwin.errors import CacheBusy, WrongCache
from mmtwin.machine import Machine, boot
from mmtwin.mm import slab_common as sc
from mmtwin.mm.slab_common import SlubConfig, kmalloc_size_roundup, slub_cpus
from mmtwin.recording.load import machine as load_machine
from mmtwin.recording.model import Recording
from mmtwin.recording.slab_state import Frames, has_slabs
from mmtwin.slab_api import KmemCache, boot_caches

ZERO_SIZE_PTR = 16
PAGE = 4096
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "kmalloc.md"
SIZES = (
    *range(1, 8193),
    8193,
    10000,
    12288,
    16384,
    16385,
    40000,
    65536,
    100000,
    1 << 17,
    200000,
    1 << 18,
    1 << 19,
    600000,
    1 << 20,
    1 << 21,
    (4 << 20) - 1,
    4 << 20,
)


def shrink_all(m: Machine) -> None:
    for cache in m.kmem_caches().values():
        m.kmem_cache_shrink(cache)
    m.drain()


def power(value: int) -> int:
    """The largest power of two that divides `value`."""
    return value & -value


# --- what kmalloc promises ---


@pytest.mark.parametrize("cmdline", ["", "slub_debug=FZPU"])
def test_every_size(cmdline: str) -> None:
    """Contiguous, aligned, of the size that rounding up says, in no one else's memory; and all is given back."""
    m = boot(ram="256MiB", cpus=2, cmdline=cmdline)
    m.kfree(m.kmalloc(1))
    shrink_all(m)
    free, held, debug = m.free, [], bool(cmdline)
    for number, size in enumerate(SIZES):
        address = m.kmalloc(size, (GFP_KERNEL, GFP_ATOMIC, GFP_KERNEL_ACCOUNT)[number % 3], number % 2)
        room = m.ksize(address)
        assert room == m.kmalloc_size_roundup(size) >= size
        promised = 1 << size.bit_length() - 1 if power(size) == size else 8
        assert address % max(8, promised) == 0
        assert (debug and room <= 8192) or address % power(room) == 0
        assert m.virt_to_phys(address) == address - m.PAGE_OFFSET and m.virt_to_phys(address + room - 1) == m.virt_to_phys(address) + room - 1
        assert m.phys_to_virt(m.virt_to_phys(address)) == address and m.virt_to_page(address) == (address - m.PAGE_OFFSET) >> 12
        if size > 8192:
            m.kfree(address)
            continue
        row = m._slab_row(m.virt_to_page(address))
        slab = m.slub.slab[row]
        begin = m.PAGE_OFFSET + int(slab["pfn"]) * PAGE
        assert begin <= address and address + room <= begin + (PAGE << int(slab["order"])), "in one block of pages"
        held.append((address, room))
    held.sort()
    assert all(a + room <= b for (a, room), (b, _) in pairwise(held)), "objects do not overlap"
    m.validate()
    random.Random(1).shuffle(held)
    for number, (address, _) in enumerate(held):
        m.kfree(address, number % 2)
    m.validate()
    shrink_all(m)
    assert m.free == free
    m.validate()


def test_limits() -> None:
    m = boot(cpus=1)
    before = m.digest()
    assert m.kmalloc(0) == m.kzalloc(0) == m.kcalloc(0, 8) == m.krealloc(0, 0) == ZERO_SIZE_PTR
    m.kfree(0)
    m.kfree(ZERO_SIZE_PTR)
    assert m.ksize(0) == m.ksize(ZERO_SIZE_PTR) == 0
    for size in ((4 << 20) + 1, 1 << 63, 1 << 70):
        with pytest.raises(AllocationFailure, match="KMALLOC_MAX_SIZE") as caught:
            m.kmalloc(size)
        assert (caught.value.errno, caught.value.status) == (-12, "order too large")
    with pytest.raises(AllocationFailure, match="overflows 64 bits") as caught:
        m.kcalloc(1 << 33, 1 << 31)
    assert caught.value.status == "overflow"
    assert m.digest() == before


def test_out_of_memory_says_what_linux_says() -> None:
    m, held = boot(ram="16MiB", cpus=1, reserved=()), []
    with pytest.raises(AllocationFailure, match=r"SLUB: Unable to allocate memory on node -1, gfp=0xa20\(GFP_ATOMIC\).*cache: kmalloc-4k, object size: 4096"):
        while True:
            held.append(m.kmalloc(4096, GFP_ATOMIC))
    with pytest.raises(AllocationFailure, match="no block of 1 MiB"):
        m.kmalloc(1 << 20, GFP_ATOMIC)
    many = m.kmem_cache_create("many", 512)
    before = len(m.frame("objects"))
    with pytest.raises(AllocationFailure, match=r"kmem_cache_alloc_bulk\('many', 30000\)"):
        m.kmem_cache_alloc_bulk(many, 30000, GFP_ATOMIC)
    assert len(m.frame("objects")) == before == len(held), "all or none"
    m.validate()
    m.kfree_bulk(held)
    m.validate()
    assert len(m.frame("objects")) == 0


def test_tables_grow() -> None:
    """More objects than the tables had room for at first."""
    m = boot(ram="256MiB", cpus=1)
    cache = m.kmem_cache_create("tiny", 8)
    held = m.kmem_cache_alloc_bulk(cache, 700000)
    assert len(set(held)) == 700000
    m.kmem_cache_free_bulk(cache, held)
    m.kmem_cache_destroy(cache)
    m.validate()


# --- misuse ---


def misuses(m: Machine) -> list[tuple[str, Callable[[], Any], type[MmtwinError], str]]:
    """What can be got wrong: how it is called, the error, a part of its message."""
    small, large, other = m.kmalloc(100), m.kmalloc(20000), m.kmalloc(300)
    mine, two = m.kmem_cache_create("mine", 1000, ctor=lambda address: None), m.kmem_cache_create("two", 5000)
    gone = m.kmem_cache_create("gone", 700, ctor=lambda address: None)
    m.kmem_cache_destroy(gone)
    own, freed, freed_large = m.kmem_cache_alloc(mine), m.kmalloc(100), m.kmalloc(9000)
    m.kfree(freed)
    m.kfree(freed_large)
    foreign = boot(cpus=1).kmem_cache_create("foreign", 40, ctor=lambda address: None)
    bad: Any = "100"
    list_: Any = [1]
    no_cache: Any = "mine"
    user_page = m.alloc_pages(3, GFP_KERNEL)
    inside_pages = m.phys_to_virt((user_page + 1) * PAGE)
    whole = "expected a whole number"
    found: list[tuple[str, Callable[[], Any], type[MmtwinError], str]] = []

    def add(name: str, call: Callable[[], Any], error: type[MmtwinError], message: str) -> None:
        found.append((name, call, error, message))

    for wrong in (bad, None, 1.5, list_):
        add(f"kmalloc {wrong!r}", lambda w=wrong: m.kmalloc(w), RequestError, whole)
        add(f"gfp {wrong!r}", lambda w=wrong: m.kmalloc(8, w), RequestError, whole)
        add(f"CPU {wrong!r}", lambda w=wrong: m.kmalloc(8, GFP_KERNEL, w), RequestError, whole)
        add(f"kzalloc {wrong!r}", lambda w=wrong: m.kzalloc(8, w), RequestError, whole)
        add(f"array {wrong!r}", lambda w=wrong: m.kmalloc_array(w, 8), RequestError, whole)
        add(f"kcalloc {wrong!r}", lambda w=wrong: m.kcalloc(8, 8, w), RequestError, whole)
        add(f"kfree {wrong!r}", lambda w=wrong: m.kfree(w), RequestError, whole)
        add(f"kfree on {wrong!r}", lambda w=wrong: m.kfree(small, w), RequestError, whole)
        add(f"ksize {wrong!r}", lambda w=wrong: m.ksize(w), RequestError, whole)
        add(f"krealloc {wrong!r}", lambda w=wrong: m.krealloc(w, 8), RequestError, whole)
        add(f"krealloc to {wrong!r}", lambda w=wrong: m.krealloc(small, w), RequestError, whole)
        add(f"bulk {wrong!r}", lambda w=wrong: m.kfree_bulk([small, w]), RequestError, whole)
        add(f"to page {wrong!r}", lambda w=wrong: m.virt_to_page(w), RequestError, whole)
        add(f"to virt {wrong!r}", lambda w=wrong: m.phys_to_virt(w), RequestError, whole)
        add(f"roundup {wrong!r}", lambda w=wrong: m.kmalloc_size_roundup(w), RequestError, whole)
        add(f"create {wrong!r}", lambda w=wrong: m.kmem_cache_create("x", w), RequestError, whole)
        add(f"create align {wrong!r}", lambda w=wrong: m.kmem_cache_create("x", 8, w), RequestError, whole)
        add(f"create flags {wrong!r}", lambda w=wrong: m.kmem_cache_create("x", 8, 0, w), RequestError, whole)
        add(f"alloc gfp {wrong!r}", lambda w=wrong: m.kmem_cache_alloc(mine, w), RequestError, whole)
        add(f"zalloc gfp {wrong!r}", lambda w=wrong: m.kmem_cache_zalloc(mine, w), RequestError, whole)
        add(f"alloc bulk {wrong!r}", lambda w=wrong: m.kmem_cache_alloc_bulk(mine, w), RequestError, whole)
        add(f"free {wrong!r}", lambda w=wrong: m.kmem_cache_free(mine, w), RequestError, whole)
        add(f"shrink on {wrong!r}", lambda w=wrong: m.kmem_cache_shrink(mine, w), RequestError, whole)
        add(f"destroy on {wrong!r}", lambda w=wrong: m.kmem_cache_destroy(two, w), RequestError, whole)
    for cpu in (-1, 2, 1 << 70):
        add(f"kmalloc CPU {cpu}", lambda c=cpu: m.kmalloc(8, GFP_KERNEL, c), RequestError, "this machine has CPUs 0 to 1")
        add(f"kfree CPU {cpu}", lambda c=cpu: m.kfree(small, c), RequestError, "this machine has CPUs 0 to 1")
        add(f"kfree NULL CPU {cpu}", lambda c=cpu: m.kfree(0, c), RequestError, "this machine has CPUs 0 to 1")
        add(f"krealloc CPU {cpu}", lambda c=cpu: m.krealloc(small, 8, GFP_KERNEL, c), RequestError, "this machine has CPUs 0 to 1")
        add(f"free bulk CPU {cpu}", lambda c=cpu: m.kfree_bulk([small], c), RequestError, "this machine has CPUs 0 to 1")
        add(f"alloc CPU {cpu}", lambda c=cpu: m.kmem_cache_alloc(mine, GFP_KERNEL, c), RequestError, "this machine has CPUs 0 to 1")
        add(f"free CPU {cpu}", lambda c=cpu: m.kmem_cache_free(mine, own, c), RequestError, "this machine has CPUs 0 to 1")
        add(f"destroy CPU {cpu}", lambda c=cpu: m.kmem_cache_destroy(two, c), RequestError, "this machine has CPUs 0 to 1")
    for gfp, message in ((-1, "no GFP flags"), (1 << 24, "no GFP flags"), (0xCD8, "exclude each other")):
        for size in (8, 20000):
            add(f"kmalloc({size}, {gfp:#x})", lambda s=size, g=gfp: m.kmalloc(s, g), RequestError, message)
        add(f"alloc {gfp:#x}", lambda g=gfp: m.kmem_cache_alloc(mine, g), RequestError, message)
        add(f"kcalloc {gfp:#x}", lambda g=gfp: m.kcalloc(1, 8, g), RequestError, message)
        add(f"krealloc {gfp:#x}", lambda g=gfp: m.krealloc(small, 8, g), RequestError, message)
    add("size -1", lambda: m.kmalloc(-1), RequestError, "size -1: expected 0 or more")
    add("array -1", lambda: m.kmalloc_array(-1, 8), RequestError, "expected 0 or more")
    add("krealloc -1", lambda: m.krealloc(small, -1), RequestError, "size -1: expected 0 or more")
    add("roundup -1", lambda: m.kmalloc_size_roundup(-1), RequestError, "-1")
    add("krealloc too much", lambda: m.krealloc(small, (4 << 20) + 1), AllocationFailure, "KMALLOC_MAX_SIZE")
    # objects
    for address, text in ((small + 8, "inside"), (small + 1, "inside"), (large + 8, "neither"), (large + PAGE, "neither"), (8, "neither"), (4096, "neither"),
                          (0x7F0000001000, "neither"), (-8, "neither"), (1 << 80, "neither"), (m.PAGE_OFFSET + (1 << 40), "neither"), (inside_pages, "neither")):  # fmt: skip
        for call in (m.kfree, m.ksize, lambda a: m.krealloc(a, 5000), lambda a: m.kmem_cache_free(mine, a), lambda a: m.kfree_bulk([small, a])):
            add(f"{call} of {address:#x}", lambda c=call, a=address: c(a), BadFree, text)
    add("free twice", lambda: m.kfree(freed), DoubleFree, "BUG kmalloc-128 .*Object already free: kfree")
    add("ksize of a freed one", lambda: m.ksize(freed), DoubleFree, "Object already free: ksize")
    add("krealloc of a freed one", lambda: m.krealloc(freed, 5000), DoubleFree, "Object already free")
    add("large twice", lambda: m.kfree(freed_large), BadFree, "neither kmalloc nor a cache")
    add("other cache", lambda: m.kmem_cache_free(mine, small), WrongCache, "Wrong slab cache. mine but object is from kmalloc-128")
    add("pages to a cache", lambda: m.kmem_cache_free(mine, large), BadFree, "neither")
    add("bulk twice", lambda: m.kfree_bulk([small, other, small]), DoubleFree, "twice in the list; nothing was freed")
    add("bulk freed", lambda: m.kfree_bulk([small, freed]), DoubleFree, "Object already free")
    add("bulk NULL", lambda: m.kfree_bulk([small, 0]), BadFree, "neither")
    add("bulk of other cache", lambda: m.kmem_cache_free_bulk(mine, [own, small]), WrongCache, "Wrong slab cache. mine")
    add("bulk of pages to a cache", lambda: m.kmem_cache_free_bulk(mine, [own, large]), BadFree, "neither")
    add("bulk of no list", lambda: m.kfree_bulk(small), RequestError, "expected a list of addresses")  # type: ignore[arg-type]
    # addresses
    for address in (0, 16, m.PAGE_OFFSET - 1, m.PAGE_OFFSET + (1 << 40), 1 << 70, -1):
        add(f"virt_to_phys {address:#x}", lambda a=address: m.virt_to_phys(a), RequestError, "not in the direct map")
    for physical in (-1, 1 << 40, 1 << 70):
        add(f"phys_to_virt {physical:#x}", lambda a=physical: m.phys_to_virt(a), RequestError, "memory ends at")
    # caches
    for cache in (gone, foreign, no_cache, None, KmemCache(-1, "x", 8), KmemCache(5000, "x", 8), 3):
        for name in ("kmem_cache_alloc", "kmem_cache_zalloc", "kmem_cache_size", "kmem_cache_shrink", "kmem_cache_destroy"):
            add(f"{name} {cache!r}", lambda n=name, c=cache: getattr(m, n)(c), RequestError, "no cache of this machine")
        add(f"free to {cache!r}", lambda c=cache: m.kmem_cache_free(c, own), RequestError, "no cache of this machine")
        add(f"bulk to {cache!r}", lambda c=cache: m.kmem_cache_free_bulk(c, [own]), RequestError, "no cache of this machine")
        add(f"bulk from {cache!r}", lambda c=cache: m.kmem_cache_alloc_bulk(c, 1), RequestError, "no cache of this machine")
    for name in ("", None, 5, b"x"):
        add(f"name {name!r}", lambda n=name: m.kmem_cache_create(n, 64), RequestError, "expected a name")
    for size, align in ((0, 0), (-1, 0), (64, -8), (64, 24), (64, 3)):
        add(f"create {size} {align}", lambda s=size, a=align: m.kmem_cache_create("x", s, a), RequestError, "at least 1 byte and a power of two")
    for size, align, flags in (((4 << 20) + 1, 0, 0), (1 << 70, 0, 0), (64, 1 << 40, 0), (64, 0, 1), (64, 0, sc.SLAB_KMALLOC), (64, 0, -1)):
        add(f"create {size} {align} {flags}", lambda s=size, a=align, f=flags: m.kmem_cache_create("x", s, a, f), RequestError, "error -22")
    add("constructor", lambda: m.kmem_cache_create("x", 64, ctor=5), RequestError, "expected a function")  # type: ignore[arg-type]
    for n in (-1, 1 << 40, 1 << 70):
        add(f"bulk of {n}", lambda n=n: m.kmem_cache_alloc_bulk(mine, n), RequestError, "expected 0 to")
    for name in ("kmalloc-64", "kmalloc-cg-64", "kmem_cache", "kmem_cache_node"):
        add(f"destroy {name}", lambda n=name: m.kmem_cache_destroy(m.kmem_caches()[n]), RequestError, "the allocator itself uses this cache")
    return found


def test_misuse_gives_one_error_and_changes_nothing() -> None:
    m = boot(ram="64MiB", cpus=2)
    cases = misuses(m)
    before = m.digest()
    for name, call, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value), name
        assert m.digest() == before, name
    m.validate()
    assert len(cases) > 250


def test_a_busy_cache_stays() -> None:
    m = boot(cpus=1)
    cache = m.kmem_cache_create("busy", 1000, ctor=lambda address: None)
    address = m.kmem_cache_alloc(cache)
    with pytest.raises(CacheBusy, match="kmem_cache_destroy busy: Slab cache still has objects"):
        m.kmem_cache_destroy(cache)
    m.validate()
    m.kmem_cache_free(cache, address)
    m.kmem_cache_destroy(cache)
    with pytest.raises(RequestError, match="no cache of this machine"):
        m.kmem_cache_alloc(cache)
    m.validate()


def test_merging_and_names() -> None:
    m = boot(cpus=1)
    first, second = m.kmem_cache_create("first", 984), m.kmem_cache_create("second", 980)
    assert first.id == second.id and second.merged_with == "first" and first.merged_with == ""
    assert "second" not in m.slabinfo() and "second" not in m.kmem_caches()
    address = m.kmem_cache_alloc(second)
    m.kmem_cache_destroy(first)
    assert m.kmem_cache_size(second) == 984
    m.kmem_cache_free(second, address)
    m.kmem_cache_destroy(second)
    assert "first" not in m.slabinfo()
    apart = boot(cpus=1, cmdline="slab_nomerge")
    assert apart.kmem_cache_create("first", 984).id != apart.kmem_cache_create("second", 980).id


def test_constructors() -> None:
    """For all objects of a new slab, those of copies too; not again when an object is handed out again; if the constructor fails nothing is kept of a bulk."""
    seen: list[int] = []
    m = boot(cpus=2)
    cache = m.kmem_cache_create("built", 200, ctor=seen.append)
    objects = int(m.slub.cache[cache.id]["objects"])
    held = m.kmem_cache_alloc_bulk(cache, objects)
    assert sorted(seen) == sorted(held)
    m.kmem_cache_free(cache, held.pop())
    held.append(m.kmem_cache_alloc(cache))
    assert len(seen) == objects
    twin = m.copy()
    twin.kmem_cache_alloc(cache)
    assert len(seen) == 2 * objects
    free, begun = len(m.frame("objects")), len(seen)

    def fails(address: int) -> None:
        seen.append(address)
        if len(seen) > begun + 60:
            raise ValueError

    failing = m.kmem_cache_create("failing", 200, ctor=fails)
    with pytest.raises(ValueError):
        m.kmem_cache_alloc_bulk(failing, 1000)
    assert len(m.frame("objects")) <= free + 1
    m.validate()


# --- as real kernels ---


def test_slabinfo_of_recorded_machines(recordings: dict[str, Recording]) -> None:
    """/proc/slabinfo as the guest printed it after the recorded events, line by line."""
    compared = 0
    for name, recording in recordings.items():
        if not has_slabs(recording.after) or "slabinfo" not in recording.provenance.procfs:
            continue
        if not any(probe.startswith("slab_take") for probe in recording.provenance.probes):
            continue  # without --slab it is printed later, after more has been allocated
        real = recording.provenance.procfs["slabinfo"].splitlines()
        assert load_machine(recording, "after", name).slabinfo().splitlines() == real, name
        compared += 1
    assert compared


@pytest.mark.parametrize("run", range(21))
def test_kmalloc_caches_of_real_kernels(run: int) -> None:
    """The caches that a machine boots with, against /sys/kernel/slab with 1 to 8 CPUs and many boot options."""
    data = json.loads(gzip.decompress((Path(__file__).parent / "data" / "sys-kernel-slab.json.gz").read_bytes()))
    found = data["runs"][run]
    real = {row["name"]: row for row in (dict(zip(data["columns"], row, strict=True)) for row in found["caches"])}
    m = boot(cpus=found["cpus"], cmdline=found["cmdline"])
    if slub_cpus(found["present"], found["possible"]) != m.slab_config.cpus:  # booted with room for more CPUs than there are
        config = SlubConfig.from_cmdline(found["cmdline"], slub_cpus(found["present"], found["possible"]))
        m = Machine(m.state, m.profile, m.ram, m.reserved, slab_config=config)
    mine = {row["cache"]: row for row in m.frame("caches").iter_rows(named=True)}
    columns = {"slab_size": "size", "order": "order", "objs_per_slab": "objects", "align": "align", "min_partial": "min_partial", "cpu_partial": "cpu_partial",
               "object_size": "object_size", "usersize": "usersize"}  # fmt: skip
    assert list(mine) == [cache.name for cache in boot_caches(m.slab_config)] and len(mine) >= 41
    for name, row in mine.items():
        assert {theirs: row[ours] for theirs, ours in columns.items()} == {theirs: real[name][theirs] for theirs in columns}, name
    listed = [line.split()[0] for line in m.slabinfo().splitlines()[2:]]
    assert listed == list(found["slabinfo"])[-len(listed) :], "newest first"


def test_a_loaded_machine_is_as_before_after_kmalloc_and_kfree(recordings: dict[str, Recording]) -> None:
    """An object taken and given back on the same CPU: where a CPU's free list has one, nothing is left of it; everywhere, what is handed out is the same."""
    used = 0
    for name, recording in recordings.items():
        if not has_slabs(recording.after):
            continue
        m = load_machine(recording, "after", name)
        m.validate()
        taken = m.frame("objects")
        for size in (8, 64, 100, 500, 2000, 8192, 20000):
            row = m.slub.cpu[m._kmalloc_cache(size, GFP_KERNEL) * m.cpus] if size <= 8192 else None
            before = m.digest() if row is not None and int(row["freelist"]) >= 0 else ""
            address = m.kmalloc(size)
            assert m.frame("objects").height == taken.height + (size <= 8192)
            m.kfree(address)
            assert not before or m.digest() == before, (name, size)
            used += bool(before)
        assert m.frame("objects").equals(taken)
        m.validate()
    assert used > 3


# --- copies ---


def exercise(m: Machine, seed: int) -> list[int]:
    """Random use; what was handed out."""
    r, held, seen = random.Random(seed), list[int](), list[int]()
    for _ in range(3000):
        if held and r.random() < 0.45:
            m.kfree(held.pop(r.randrange(len(held))), r.randrange(m.cpus))
        else:
            held.append(m.kmalloc(int(r.expovariate(0.003)) + 1, r.choice((GFP_KERNEL, GFP_ATOMIC, GFP_KERNEL_ACCOUNT)), r.randrange(m.cpus)))
            seen.append(held[-1])
    m.validate()
    return seen


@pytest.mark.parametrize("clone", [lambda m: m.copy(), lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy], ids=["copy", "pickle", "deepcopy"])
def test_copies_are_independent(clone: Callable[[Machine], Machine]) -> None:
    m = boot(ram="128MiB", cpus=2)
    cache = m.kmem_cache_create("mine", 77)
    m.kmem_cache_alloc(cache)
    exercise(m, 1)
    before = m.digest()
    other = clone(m)
    assert other.digest() == before and other.slabinfo() == m.slabinfo() and other.kmem_caches() == m.kmem_caches()
    seen = exercise(other, 2)
    other.kmem_cache_alloc(cache)
    assert m.digest() == before != other.digest(), "the original is as it was"
    assert exercise(m, 2) == seen
    m.kmem_cache_alloc(cache)
    assert m.digest() == other.digest()
    assert Frames.of(m.slub).slabs.equals(Frames.of(other.slub).slabs)


# --- the document ---


def test_the_document() -> None:
    found = doctest.testfile(str(DOCUMENT), module_relative=False, optionflags=doctest.ELLIPSIS, globs={"mmtwin": mmtwin})
    assert found.failed == 0 and found.attempted > 20


def test_the_documents_table() -> None:
    """The size table is what a machine with as many CPUs boots with."""
    rows = [
        [cell.strip() for cell in line.strip("| \n").split("|")] for line in DOCUMENT.read_text().splitlines() if line.startswith("| ") and line[2:3].isdigit()
    ]
    machines = {cpus: boot(cpus=cpus).frame("caches") for cpus in (1, 4, 8)}
    assert len(rows) == 13
    last = 0
    for sizes, name, align, *slabs in rows:
        first, _, top = sizes.partition("-")
        assert int(first) == last + 1
        last = int(top)
        assert align == str(power(kmalloc_size_roundup(last)))
        for (cpus, caches), slab in zip(machines.items(), slabs, strict=True):
            row = next(r for r in caches.iter_rows(named=True) if r["cache"] == name)
            assert row["object_size"] == kmalloc_size_roundup(last), (name, cpus)
            assert slab == f"{row['objects']} in {1 << row['order']}", (name, cpus)
    assert last == 8192
