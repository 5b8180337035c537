"""The geometry of slab caches: worked examples, boot options, and all caches of real kernels with 1 to 8 CPUs and many slab options."""

from __future__ import annotations

import gzip
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for plain `pytest`, which does not put the directory there

from mmtwin.errors import RequestError
from mmtwin.mm import slab_common as sc
from tests.data_kmalloc_probe import ProbeRun, RealCache, probe_runs

DATA = Path(__file__).resolve().parents[1] / "data"
FLAG_COLUMNS = {
    "hwcache_align": sc.SLAB_HWCACHE_ALIGN, "reclaim_account": sc.SLAB_RECLAIM_ACCOUNT, "cache_dma": sc.SLAB_CACHE_DMA, "destroy_by_rcu": sc.SLAB_TYPESAFE_BY_RCU,
}  # fmt: skip
DEBUG_COLUMNS = {"sanity_checks": sc.SLAB_CONSISTENCY_CHECKS, "red_zone": sc.SLAB_RED_ZONE, "poison": sc.SLAB_POISON, "store_user": sc.SLAB_STORE_USER}
INTERNAL = sc.CMPXCHG_DOUBLE | sc.OBJECT_POISON


@cache
def sys_kernel_slab(name: str) -> list[dict[str, Any]]:
    """The runs of a file that oracle/sys-slab.sh made, with each cache as a dictionary."""
    found = json.loads(gzip.decompress((DATA / name).read_bytes()))
    return [run | {"caches": [dict(zip(found["columns"], row, strict=True)) for row in run["caches"]]} for run in found["runs"]]


def config_of(run: dict[str, Any]) -> sc.SlubConfig:
    return sc.SlubConfig.from_cmdline(run["cmdline"], sc.slub_cpus(run["present"], run["possible"]))


def asked_flags(real: dict[str, Any]) -> int:
    """The flags a cache was made with, as far as /sys/kernel/slab tells: without those of slub_debug."""
    flags = sum(bit for column, bit in FLAG_COLUMNS.items() if real[column])
    if "kmalloc-" in real["name"]:
        flags |= sc.SLAB_KMALLOC
    return flags | (sc.SLAB_ACCOUNT if re.match(r":[a-zF]*A", real["name"]) or "kmalloc-cg-" in real["name"] else 0)


# --- real caches: /sys/kernel/slab ---


@pytest.mark.parametrize("run", range(21))
def test_geometry_of_all_real_caches(run: int) -> None:
    found = sys_kernel_slab("sys-kernel-slab.json.gz")[run]
    config, wrong = config_of(found), []
    for real in found["caches"]:
        twin = sc.open_cache(real["name"], real["object_size"], real["align"], asked_flags(real), bool(real["ctor"]), config)
        assert twin is not None, real["name"]
        expected = tuple(real[c] for c in ("slab_size", "order", "objs_per_slab", "align", "min_partial", "cpu_partial", *DEBUG_COLUMNS))
        debug = tuple(int(bool(twin.flags & bit)) for bit in DEBUG_COLUMNS.values())
        if (twin.size, twin.order, twin.objects, twin.align, twin.min_partial, twin.cpu_partial, *debug) != expected:
            wrong.append((real["name"], expected, twin))
    assert not wrong, f"{found['cmdline']}: {wrong[:3]}"
    assert len(found["caches"]) >= 140


def test_the_real_runs_are_those_asked_for() -> None:
    runs = [(r["cpus"], r["cmdline"]) for r in sys_kernel_slab("sys-kernel-slab.json.gz")]
    options = ["slub_min_objects=4", "slub_min_objects=32", "slub_max_order=1", "slub_max_order=0", "slub_min_order=1"]
    assert {(c, "") for c in (1, 2, 4, 8)} | {(c, o) for c in (1, 4) for o in options} | {(1, "slub_debug=FZPU"), (1, "slab_nomerge")} <= set(runs)
    assert all(r["present"] == r["cpus"] for r in sys_kernel_slab("sys-kernel-slab.json.gz"))


@pytest.mark.parametrize("run", range(21))
def test_names_in_sys_kernel_slab(run: int) -> None:
    """Mergeable caches have made-up names that tell flags and size; with slub_debug=O, which may take flags away, none has."""
    found = sys_kernel_slab("sys-kernel-slab.json.gz")[run]
    config = config_of(found)
    boot = {c.name: c for c in (*sc.create_boot_caches(), *sc.create_kmalloc_caches())}
    for real in found["caches"]:
        twin = sc.open_cache(real["name"], real["object_size"], real["align"], asked_flags(real), bool(real["ctor"]), config)
        assert twin is not None
        refcount = boot[real["name"]].refcount if real["name"] in boot else 1
        assert sc.sysfs_name(real["name"], sc.Mergeable(twin.flags, twin.size, real["ctor"], real["usersize"], refcount), config) == real["name"]
    aliases = {alias for alias, target in found["links"].items() if target.startswith(":")}
    assert set(found["links"].values()) <= {real["name"] for real in found["caches"]}
    assert bool(aliases) == (not config.nomerge and not config.debug.flags), "with debug flags nothing merges"


def test_order_in_6_12() -> None:
    runs, caches = sys_kernel_slab("sys-kernel-slab-6.12.json.gz"), 0
    assert [r["cpus"] for r in runs] == [1, 2, 4, 8]
    for found in runs:
        cpus = sc.slub_cpus(found["present"], found["possible"])
        for real in found["caches"]:
            size = real["slab_size"]
            order = sc.calculate_order(size, cpus, variant="6.12")
            assert (order, (4096 << order) // size) == (real["order"], real["objs_per_slab"]), real
            assert (sc.calculate_min_partial(size), sc.calculate_cpu_partial(size)) == (real["min_partial"], real["cpu_partial"]), real
            caches += 1
    assert caches > 700


def test_kmalloc_caches_of_the_real_kernel() -> None:
    """All caches made at boot, in order: names, sizes, alignment, usercopy region; and none of type CGROUP with nokmem."""
    for found in sys_kernel_slab("sys-kernel-slab.json.gz"):
        config = config_of(found)
        boot = sc.create_boot_caches() + sc.create_kmalloc_caches(nokmem=config.nokmem)
        assert list(reversed(found["slabinfo"]))[: len(boot)] == [c.name for c in boot]
        real = {c["name"]: c for c in found["caches"]}
        for c in boot:
            assert (real[c.name]["object_size"], real[c.name]["align"], real[c.name]["usersize"]) == (c.object_size, c.align, c.usersize), c
            assert asked_flags(real[c.name]) == c.flags
    assert len(boot) == 2 + 3 * 13


# --- real caches: struct kmem_cache, as the module oracle/module/kmalloc_probe.c saw it ---


def config_of_probe(run: ProbeRun) -> sc.SlubConfig:
    return sc.SlubConfig.from_cmdline(run.cmdline, sc.slub_cpus(int(run.header["present_cpus"]), int(run.header["nr_cpu_ids"])))


def as_real(twin: sc.CacheGeometry, real: RealCache) -> RealCache:
    """`real` with the twin's geometry in it. What the kernel keeps in red_left_pad without red zones is not looked at."""
    pad = twin.red_left_pad if twin.flags & sc.SLAB_RED_ZONE else real.red_left_pad
    return real._replace(**(twin._asdict() | {"red_left_pad": pad}))


PROBE_TABLES = [0, 1, 2, 3, 4, 5, 6, 7]
"""Runs of the probe with a table of all caches."""


@pytest.mark.parametrize("number", PROBE_TABLES)
def test_every_field_of_all_real_caches(number: int) -> None:
    """Free pointer, metadata, red zones, fallback order, GFP flags, CPU partial slabs: all that sysfs does not show."""
    run = probe_runs()[number]
    config = config_of_probe(run)
    for real in run.caches:
        extra = config.debug.flags if not real.flags & sc.SLAB_NO_USER_FLAGS else 0
        asked = real.flags & ~INTERNAL & ~extra
        twin = sc.open_cache(real.name, real.object_size, real.align, asked, bool(real.ctor), config)
        assert twin is not None
        if real.refcount > 1:  # what was merged in may have made these two greater
            twin = twin._replace(inuse=real.inuse, offset=real.offset)
        assert as_real(twin, real) == real
    assert len(run.caches) > 150


def test_merging_predicts_the_real_list_of_caches() -> None:
    """From the caches as they are made without merging follow the caches that there are with it: which, how often used, how big."""
    (separate,) = (r for r in probe_runs() if "slab_nomerge" in r.cmdline)
    merged = next(r for r in probe_runs() if r.cpus == 1 and r.caches and "slub_debug" not in r.cmdline and "nomerge" not in r.cmdline)
    boot = {c.name for c in (*sc.create_boot_caches(), *sc.create_kmalloc_caches())}
    caches: list[RealCache] = []
    for made in separate.caches:
        found = None
        if made.name not in boot:
            found = sc.find_mergeable(caches, made.object_size, made.align, made.flags, made.name, bool(made.ctor), made.usersize)
        if found is None:
            caches.append(made)
        else:
            old = caches[found]
            size, inuse = max(old.object_size, made.object_size), max(old.inuse, sc.align_up(made.object_size, 8))
            caches[found] = old._replace(object_size=size, inuse=inuse, refcount=old.refcount + 1)
    assert caches == merged.caches
    assert len(separate.caches) - len(caches) > 50


@pytest.mark.parametrize("number", [0, 1, 2])
def test_kmem_cache_create_on_a_real_kernel(number: int) -> None:
    """What came of kmem_cache_create for many sizes, alignments and flags: refused, merged with which cache, or made with which geometry."""
    run = probe_runs()[number]
    config = config_of_probe(run)
    caches = list(run.caches)
    outcomes = {"null": 0, "merged": 0, "made": 0}
    for asked, real in run.created:
        size, align, flags, ctor, useroffset, usersize = (int(asked[k]) for k in ("size", "align", "flags", "ctor", "useroffset", "usersize"))
        useroffset, usersize = sc.usercopy_region(size, useroffset, usersize)
        refused = sc.kmem_cache_sanity_check("probe", size, flags) != 0
        twin = sc.new_cache("probe", size, align, flags, bool(ctor), config)
        at = None if refused else sc.find_mergeable(caches, size, align, flags, "probe", bool(ctor), usersize, config.nomerge, config.debug)
        if at is None and twin is None:
            assert real is None, asked
            outcomes["null"] += 1
            continue
        assert real is not None, asked
        if at is not None:
            old = caches[at]
            caches[at] = old._replace(object_size=max(old.object_size, size), inuse=max(old.inuse, sc.align_up(size, 8)))
            assert real == caches[at]._replace(refcount=old.refcount + 1), asked
            assert asked["merged"] == 1
            outcomes["merged"] += 1
        else:
            assert twin is not None
            made = as_real(twin, real)._replace(name=".", refcount=1, useroffset=useroffset, usersize=usersize, ctor=ctor)
            assert real == made, asked
            assert asked["merged"] == 0
            if asked["ksize"]:  # 0: no memory for the first object
                assert asked["ksize"] == sc.slab_ksize(twin), asked
                assert asked["constructed"] == (twin.objects if ctor else 0), asked
            outcomes["made"] += 1
        assert asked["kmem_cache_size"] == real.object_size
    debug = bool(config.debug.flags)
    assert outcomes["null"] >= 4 and outcomes["made"] > 700 and (outcomes["merged"] > 150) != debug, outcomes


def test_two_caches_alike() -> None:
    for run in probe_runs()[:3]:
        config = config_of_probe(run)
        for words, real in run.lines["merge"]:
            assert real is not None
            first = next(r for _, r in run.lines["merge_first"] if r is not None)
            at = sc.find_mergeable([*run.caches, first], int(words["size"]), 0, 0, "probe_second", debug=config.debug)
            assert (at == len(run.caches)) == bool(words["same"]), words
        assert run.lines["twice"] == [({"first": 1, "second": 1}, None)], "a name may be used twice"


# --- worked examples ---

ORDERS = {
    8: ["0/512", "0/512", "0/512", 1, 5, 0], 16: ["0/256", "0/256", "0/256", 1, 5, 0], 32: ["0/128", "0/128", "0/128", 2, 5, 0], 64: ["0/64", "0/64", "0/64", 4, 5, 0],
    96: ["0/42", "0/42", "0/42", 6, 5, 0], 128: ["0/32", "0/32", "0/32", 8, 5, 0], 192: ["0/21", "0/21", "0/21", 12, 5, 0], 256: ["0/16", "0/16", "1/32", 7, 5, 0],
    512: ["0/8", "1/16", "2/32", 13, 5, 0], 1024: ["1/8", "2/16", "3/32", 6, 5, 0], 2048: ["2/8", "3/16", "3/16", 6, 5, 0], 4096: ["3/8", "3/8", "3/8", 2, 6, 0],
    8192: ["3/4", "3/4", "3/4", 3, 6, 1],
}  # fmt: skip
"""kmalloc's caches: order/objects with 1, 4 and 8 CPUs, CPU partial slabs with 1, min_partial, order of the fallback."""


@pytest.mark.parametrize("size", ORDERS)
def test_kmalloc_orders(size: int) -> None:
    *orders, cpu_partial_slabs, min_partial, min_order = ORDERS[size]
    for cpus, order in zip((1, 4, 8), orders, strict=True):
        twin = sc.open_cache("x", size, 8, sc.SLAB_KMALLOC, config=sc.SlubConfig(cpus))
        assert twin is not None
        assert f"{twin.order}/{twin.objects}" == order
        if cpus == 1:
            assert (twin.cpu_partial_slabs, twin.min_partial, twin.min_order) == (cpu_partial_slabs, min_partial, min_order)


def test_kmalloc_192_with_16_cpus() -> None:
    assert (sc.calculate_order(192, 15), sc.calculate_order(192, 16)) == (0, 1)


def test_calculate_order_limits() -> None:
    assert sc.calculate_order(4 << 20, 1) == 10
    assert sc.calculate_order((4 << 20) + 8, 1) == -1
    assert sc.calculate_order((4 << 20) + 8, 1, variant="6.12") == -1
    assert sc.calculate_order(4 << 20, 1, variant="6.12") == 10
    assert sc.calculate_order(8, 1, min_order=7) == 5, "no more than 32767 objects"
    assert sc.calculate_order(8, 1, min_order=7, variant="6.12") == 5
    assert sc.calculate_order(5000, 1, max_order=0) == 1
    assert sc.calculate_order(64, 1, min_order=5) == 5, "above the maximum, which does not bind then"
    for size, cpus, variant in ((0, 1, "6.1"), (8, 0, "6.1"), (8, 1, "5.0")):
        with pytest.raises(RequestError, match="no slab order"):
            sc.calculate_order(size, cpus, variant=variant)


def test_orders_of_6_1_and_6_12_differ() -> None:
    """6.12 would rather waste up to a half than place fewer objects."""
    sizes = [size for size in range(8, 16384, 8) if sc.calculate_order(size, 1) != sc.calculate_order(size, 1, variant="6.12")]
    assert sizes
    assert all(size > 1024 for size in sizes)


def test_debug_layout() -> None:
    """kmalloc-64 with slub_debug=FZPU: 64 left pad, 64 object, 8 red zone, 8 free pointer, 64 tracks, 4 asked size, 8 padding, all aligned to 64."""
    twin = sc.calculate_sizes(64, 64, sc.SLAB_KMALLOC | sc.DEBUG_DEFAULT_FLAGS, False, 1)
    assert twin is not None
    assert (twin.red_left_pad, twin.inuse, twin.offset, twin.size) == (64, 72, 72, 256)
    assert twin.flags & sc.OBJECT_POISON
    assert not twin.flags & sc.CMPXCHG_DOUBLE
    assert twin.cpu_partial == twin.cpu_partial_slabs == 0
    assert sc.slab_ksize(twin) == 64
    plain = sc.calculate_sizes(100, 8, 0, False, 1)
    assert plain is not None
    assert (plain.size, plain.inuse, plain.offset, sc.slab_ksize(plain)) == (104, 104, 48, 104)
    for flags in (sc.SLAB_TYPESAFE_BY_RCU, sc.SLAB_TYPESAFE_BY_RCU | sc.SLAB_POISON):
        rcu = sc.calculate_sizes(100, 8, flags, False, 1)
        assert rcu is not None
        assert (rcu.size, rcu.offset) == (112, 104), "the pointer is behind the object"
        assert not rcu.flags & sc.OBJECT_POISON
    small = sc.calculate_sizes(4, 8, sc.SLAB_RED_ZONE, False, 1)
    assert small is not None
    assert (small.inuse, small.offset, small.size) == (8, 8, 32)


def test_no_debugging_where_it_needs_larger_pages() -> None:
    with_o = sc.calculate_sizes(4096, 4096, sc.SLAB_KMALLOC | sc.DEBUG_DEFAULT_FLAGS, False, 1, disable_higher_order_debug=True)
    assert with_o is not None
    assert with_o.flags & sc.SLAB_DEBUG_FLAGS == sc.SLAB_CONSISTENCY_CHECKS
    assert (with_o.size, with_o.red_left_pad, with_o.cpu_partial) == (4096, 0, 0)
    small = sc.calculate_sizes(64, 64, sc.DEBUG_DEFAULT_FLAGS, False, 1, disable_higher_order_debug=True)
    assert small == sc.calculate_sizes(64, 64, sc.DEBUG_DEFAULT_FLAGS, False, 1)


def test_gfp_flags_of_slabs() -> None:
    for flags, gfp in ((0, 0), (sc.SLAB_CACHE_DMA, 1), (sc.SLAB_CACHE_DMA32, 4), (sc.SLAB_RECLAIM_ACCOUNT, 0x10)):
        for size, comp in ((64, 0), (1024, 0x40000)):
            twin = sc.calculate_sizes(size, 8, flags, False, 1)
            assert twin is not None
            assert twin.allocflags == gfp | comp


def test_alignment() -> None:
    assert sc.calculate_alignment(0, 0, 100) == 8
    assert sc.calculate_alignment(0, 4, 100) == 8
    assert sc.calculate_alignment(0, 128, 100) == 128
    assert [sc.calculate_alignment(sc.SLAB_HWCACHE_ALIGN, 0, size) for size in (1, 8, 9, 16, 17, 32, 33, 64, 1000)] == [8, 8, 16, 16, 32, 32, 64, 64, 64]
    assert sc.calculate_alignment(sc.SLAB_HWCACHE_ALIGN, 256, 8) == 256


def test_without_cpu_partial_lists() -> None:
    twin = sc.calculate_sizes(64, 64, 0, False, 1, cpu_partial=False)
    assert twin is not None
    assert (twin.cpu_partial, twin.cpu_partial_slabs) == (0, 0)


def test_refused_arguments() -> None:
    assert sc.kmem_cache_sanity_check("x", 64, sc.SLAB_MEM_SPREAD) == 0
    assert sc.kmem_cache_sanity_check("x", 64, sc.SLAB_KMALLOC) == -22
    assert sc.kmem_cache_sanity_check(None, 64) == 0
    assert sc.kmem_cache_sanity_check(None, 64, debug_vm=True) == -22
    assert sc.kmem_cache_sanity_check("x", (4 << 20) + 1, debug_vm=True) == -22
    assert sc.new_cache("x", 64, flags=1) is None
    assert sc.new_cache("x", (4 << 20) + 1) is None
    for size, align in ((0, 8), (-8, 8), (64, 24)):
        with pytest.raises(RequestError, match="no cache of objects"):
            sc.calculate_sizes(size, align, 0, False, 1)
    assert sc.usercopy_region(64, 8, 0) == (0, 0)
    assert sc.usercopy_region(64, 0, 65) == (0, 0)
    assert sc.usercopy_region(64, 60, 8) == (0, 0)
    assert sc.usercopy_region(64, 56, 8) == (56, 8)


# --- names, options ---


def test_flag_names() -> None:
    assert sc.slab_flag_names(0) == "none"
    assert sc.slab_flag_names(sc.SLAB_ACCOUNT | sc.SLAB_HWCACHE_ALIGN | 1) == "SLAB_HWCACHE_ALIGN|SLAB_ACCOUNT|0x1"
    bits = [bit for _, bit in sc.SLAB_FLAG_NAMES]
    assert bits == sorted(set(bits))
    assert all(bit & (bit - 1) == 0 for bit in bits)


def test_sysfs_id() -> None:
    assert sc.sysfs_id(0, 64) == ":0000064"
    everything = sc.SLAB_ACCOUNT | sc.SLAB_CONSISTENCY_CHECKS | sc.SLAB_CACHE_DMA | sc.SLAB_CACHE_DMA32 | sc.SLAB_RECLAIM_ACCOUNT
    assert sc.sysfs_id(everything, 12345678) == ":dDaFA-12345678"


FZPU = sc.DEBUG_DEFAULT_FLAGS


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, sc.SlubDebug(FZPU)),
        ("", sc.SlubDebug(FZPU)),
        ("FZPU", sc.SlubDebug(FZPU)),
        ("z", sc.SlubDebug(sc.SLAB_RED_ZONE)),
        ("-", sc.SlubDebug(0)),
        ("oF?", sc.SlubDebug(sc.SLAB_CONSISTENCY_CHECKS, (), True)),
        ("P,dentry", sc.SlubDebug(0, ((sc.SLAB_POISON, ("dentry",)),))),
        (",dentry,kmalloc-*", sc.SlubDebug(0, ((FZPU, ("dentry", "kmalloc-*")),))),
        ("Z;U,dentry", sc.SlubDebug(sc.SLAB_RED_ZONE, ((sc.SLAB_STORE_USER, ("dentry",)),))),
        ("-;Z,kmalloc-64;T,a", sc.SlubDebug(0, ((sc.SLAB_RED_ZONE, ("kmalloc-64",)), (sc.SLAB_TRACE, ("a",))))),
    ],
)
def test_parse_slub_debug(value: str | None, expected: sc.SlubDebug) -> None:
    assert sc.parse_slub_debug(value) == expected


def test_flags_of_a_cache() -> None:
    debug = sc.parse_slub_debug("Z;U,dentry;P,kmalloc-*")
    assert sc.kmem_cache_flags(0, "inode_cache", debug) == sc.SLAB_RED_ZONE
    assert sc.kmem_cache_flags(0, "dentry", debug) == sc.SLAB_STORE_USER
    assert sc.kmem_cache_flags(0, "dentry2", debug) == sc.SLAB_RED_ZONE
    assert sc.kmem_cache_flags(0, "kmalloc-rcl-64", debug) == sc.SLAB_POISON
    assert sc.kmem_cache_flags(sc.SLAB_NO_USER_FLAGS, "dentry", debug) == sc.SLAB_NO_USER_FLAGS
    assert sc.kmem_cache_flags(sc.SLAB_NOLEAKTRACE, "x", sc.SlubDebug(FZPU)) == sc.SLAB_NOLEAKTRACE | FZPU & ~sc.SLAB_STORE_USER
    assert sc.cache_flags_for_merge(sc.SLAB_PANIC | sc.SLAB_MEM_SPREAD, "x") == sc.SLAB_PANIC


def test_config_from_the_command_line() -> None:
    config = sc.SlubConfig.from_cmdline(
        "quiet slub_min_order=1 slub_max_order=2 slub_min_objects=16 slab_nomerge slub_debug=P cgroup.memory=nosocket,nokmem", 4
    )
    assert config == sc.SlubConfig(4, 1, 2, 16, True, True, sc.SlubDebug(sc.SLAB_POISON))
    assert sc.SlubConfig.from_cmdline("slub_debug slub_nomerge slub_merge cgroup_disable=memory", 1) == sc.SlubConfig(nokmem=True, debug=sc.SlubDebug(FZPU))
    with pytest.raises(RequestError, match="slub_min_order=x"):
        sc.SlubConfig.from_cmdline("slub_min_order=x", 1)


def test_slub_cpus() -> None:
    assert (sc.slub_cpus(1, 8), sc.slub_cpus(2, 8), sc.slub_cpus(1, 1)) == (8, 2, 1)


# --- kmalloc's classes ---


def test_kmalloc_classes() -> None:
    assert [c.label for c in sc.KMALLOC_CLASSES] == ["0", "96", "192", "8", "16", "32", "64", "128", "256", "512", "1k", "2k", "4k", "8k"]
    assert sc.KMALLOC_CLASS_SIZES["linux-6.1"] == (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192)
    for size in range(1, 8193):
        assert sc.KMALLOC_CLASSES[sc.kmalloc_index(size)].size == sc.kmalloc_bytes(size) == sc.kmalloc_size_roundup(size)
    assert sc.kmalloc_index(0) == 0
    for size in (-1, 8193):
        with pytest.raises(RequestError, match="no cache"):
            sc.kmalloc_index(size)
    with pytest.raises(RequestError, match="size 0"):
        sc.kmalloc_name(0, 0)
    with pytest.raises(RequestError, match="expected one of"):
        sc.kmalloc_bytes(8, "linux-1.0")


def test_kmalloc_types_and_names() -> None:
    gfp_kernel = 0xCC0
    assert sc.kmalloc_name(sc.kmalloc_type(gfp_kernel), 1500) == "kmalloc-2k"
    assert sc.kmalloc_name(sc.kmalloc_type(gfp_kernel | 0x400000), 96) == "kmalloc-cg-96"
    assert sc.kmalloc_name(sc.kmalloc_type(gfp_kernel | 0x400010), 8192) == "kmalloc-rcl-8k"
    assert sc.kmalloc_name(sc.kmalloc_type(gfp_kernel | 0x400011), 1) == "dma-kmalloc-8"
    assert sc.kmalloc_type(gfp_kernel | 0x400000, memcg_kmem=False) == sc.KMALLOC_NORMAL
    assert sc.kmalloc_type(1, zone_dma=False) == sc.KMALLOC_NORMAL
    assert len(sc.create_kmalloc_caches()) == 52
    assert {c.kind for c in sc.create_kmalloc_caches(memcg_kmem=False, zone_dma=False)} == {sc.KMALLOC_NORMAL, sc.KMALLOC_RECLAIM}
    assert all(c.refcount == 1 for c in sc.create_kmalloc_caches(memcg_kmem=False))


TRACE_3X = {
    8: (841, 2, 8), 16: (572, 9, 16), 32: (403, 17, 32), 64: (82, 36, 64), 96: (122, 72, 88), 128: (40, 104, 128), 192: (105, 132, 184), 256: (13, 208, 224),
    512: (12, 272, 512), 1024: (7, 596, 1024), 2048: (3, 1320, 1320), 4096: (4, 4096, 4096), 8192: (2, 4098, 4098), 16384: (3, 8195, 8296), 32768: (1, 32768, 32768),
    65536: (1, 42284, 42284),
}  # fmt: skip
"""bytes_alloc: number, smallest and largest bytes_req of all 2211 kmalloc events of the public boot trace of a 3.x i386 kernel."""


def test_classes_of_a_3_x_kernel() -> None:
    assert sum(count for count, _, _ in TRACE_3X.values()) == 2211
    for allocated, (_, smallest, largest) in TRACE_3X.items():
        assert sc.kmalloc_bytes(smallest, "linux-3.x-i386") == sc.kmalloc_bytes(largest, "linux-3.x-i386") == allocated
    excerpt = (DATA / "linux-3.x-i386.ftrace.txt").read_text()
    events = [(int(r), int(a)) for r, a in re.findall(r" kmalloc: .*bytes_req=(\d+) bytes_alloc=(\d+)", excerpt)]
    assert events
    assert all(sc.kmalloc_bytes(r, "linux-3.x-i386") == a for r, a in events)
    assert sc.kmalloc_bytes(9, "linux-6.1-slab") == 32


# --- what holds for any cache ---


@given(
    size=st.integers(1, 20000),
    align=st.sampled_from([8, 16, 64, 256, 4096]),
    flags=st.sets(st.sampled_from([sc.SLAB_RED_ZONE, sc.SLAB_POISON, sc.SLAB_STORE_USER, sc.SLAB_TYPESAFE_BY_RCU, sc.SLAB_KMALLOC])).map(sum),
    ctor=st.booleans(),
    cpus=st.integers(1, 64),
    limits=st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 64)),
)
def test_any_geometry_is_possible(size: int, align: int, flags: int, ctor: bool, cpus: int, limits: tuple[int, int, int]) -> None:
    twin = sc.calculate_sizes(size, align, flags, ctor, cpus, *limits)
    assert twin is not None
    assert twin.size % align == twin.offset % 8 == twin.red_left_pad % align == 0
    assert twin.red_left_pad + max(twin.inuse, twin.offset + 8) <= twin.size
    assert twin.inuse >= size
    assert (twin.offset >= size) == (twin.offset == twin.inuse) or size < 8
    assert 1 <= twin.objects <= sc.MAX_OBJS_PER_PAGE
    assert twin.objects * twin.size <= 4096 << twin.order
    assert twin.min_order <= twin.order <= 10
    assert twin.min_objects >= 1
    assert 5 <= twin.min_partial <= 10
    assert sc.slab_ksize(twin) >= size


@given(size=st.integers(1, 1 << 22))
def test_kmalloc_size_roundup(size: int) -> None:
    rounded = sc.kmalloc_size_roundup(size)
    assert rounded >= size
    assert sc.kmalloc_size_roundup(rounded) == rounded
    assert rounded % sc.kmalloc_alignment(size) == 0
    assert rounded == sc.kmalloc_bytes(size)
