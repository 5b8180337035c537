"""Layouts of SLAB caches: Bonwick's worked example, known figures of old kernels, and every cache of real 6.1 kernels."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mmtwin.mm.slab_classic_geometry import (
    CFLGS_OBJFREELIST_SLAB,
    CFLGS_OFF_SLAB,
    IN_OBJECT,
    OFF_SLAB,
    ON_SLAB,
    SLAB_CACHE_DMA,
    SLAB_HWCACHE_ALIGN,
    SLAB_NOLEAKTRACE,
    SLAB_RECLAIM_ACCOUNT,
    SLAB_TYPESAFE_BY_RCU,
    Variant,
    array_limits,
    colour_offsets,
    free_limit,
    general_size,
    general_sizes,
    slab_geometry,
)

DATA = Path(__file__).parents[1] / "data" / "slab-classic-caches.json.gz"
KERNELS = json.loads(gzip.decompress(DATA.read_bytes()))["kernels"]


def caches(kernel: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(kernel["columns"], row, strict=True)) for row in kernel["caches"]]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k['cpus']}cpus {k['cmdline']}".strip())
def test_every_cache_of_a_real_kernel(kernel: dict[str, Any]) -> None:
    """Linux 6.1.192 with CONFIG_SLAB (oracle/slab-kernel.sh): layout, place of the indices, arrays, and the colours that its slabs really have."""
    found = caches(kernel)
    assert len(found) > 80
    for cache in found:
        flags = cache["flags"] & 0xFFFFFFFF
        g = slab_geometry(cache["object_size"], cache["align"], flags, ctor=bool(cache["ctor"]), max_order=kernel["slab_max_order"])
        limits = array_limits(g.size, kernel["cpus"])
        place = OFF_SLAB if flags & CFLGS_OFF_SLAB else IN_OBJECT if flags & CFLGS_OBJFREELIST_SLAB else ON_SLAB
        mine = (g.size, g.align, g.order, g.num, g.colour, g.colour_off, g.management_size, g.allocflags, g.management, *limits)
        names = ("size", "align", "gfporder", "num", "colour", "colour_off", "freelist_size", "allocflags")
        assert mine == (*(cache[n] for n in names), place, cache["limit"], cache["batchcount"], cache["shared"]), cache["name"]
        assert set(cache["offsets"]) <= set(colour_offsets(g, max(g.colour, 1))), cache["name"]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k['cpus']}cpus {k['cmdline']}".strip())
def test_free_limit_of_a_real_kernel(kernel: dict[str, Any]) -> None:
    """A CPU counts for its node only when it is up: caches older than the last CPU's start have one CPU less in their limit."""
    newest_first = [
        (c["free_limit"] == free_limit(kernel["cpus"], c["batchcount"], c["num"]), c["free_limit"] == free_limit(kernel["cpus"] - 1, c["batchcount"], c["num"]))
        for c in caches(kernel)
    ]
    assert all(all_cpus or but_one for all_cpus, but_one in newest_first)
    whole = [all_cpus for all_cpus, _ in newest_first]
    assert whole == sorted(whole, reverse=True)
    assert 0 < sum(whole) < len(whole)


def test_the_real_data_has_all_kinds() -> None:
    every = [c for k in KERNELS for c in caches(k)]
    flags = {c["flags"] for c in every}
    assert any(f & CFLGS_OFF_SLAB for f in flags) and any(f & SLAB_TYPESAFE_BY_RCU for f in flags) and any(f & SLAB_CACHE_DMA for f in flags)
    assert {c["gfporder"] for c in every} >= {0, 1, 2} and {c["shared"] for c in every} == {0, 8}
    assert max(len(c["offsets"]) for c in every) > 4


def test_bonwick() -> None:
    """The paper's example: 200-byte objects aligned to 8, slabs of 4 KiB with a 32-byte descriptor: 20 objects, colours 0, 8, ... 64."""
    g = slab_geometry(200, 8, variant="1994")
    assert (g.num, g.left_over, g.management_size) == (20, 64, 32)
    assert colour_offsets(g, 10, "1994") == [0, 8, 16, 24, 32, 40, 48, 56, 64, 0]
    with pytest.raises(ValueError, match="eighth"):
        slab_geometry(600, 8, variant="1994")


@pytest.mark.parametrize(
    ("size", "flags", "order", "num"),
    [
        (32, 0, 0, 112), (64, 0, 0, 59), (128, 0, 0, 30), (192, 0, 0, 20), (256, 0, 0, 15), (512, 0, 0, 8), (1024, 0, 0, 4), (2048, 0, 0, 2), (4096, 0, 0, 1),
        (8192, 0, 1, 1), (16384, 0, 2, 1), (131072, 0, 5, 1), (24, 0, 0, 144), (104, SLAB_RECLAIM_ACCOUNT, 0, 37), (144, 0, 0, 27), (200, 0, 0, 19),
        (560, SLAB_RECLAIM_ACCOUNT, 0, 7), (2656, 0, 1, 3), (1000, SLAB_RECLAIM_ACCOUNT, 0, 4),
    ],
)  # fmt: skip
@pytest.mark.parametrize("variant", ["2.6.24", "3.6"])
def test_old_kernels_x86_64(variant: Variant, size: int, flags: int, order: int, num: int) -> None:
    """Pages and objects per slab as /proc/slabinfo of 2.6 kernels on x86-64 shows them (size-32 112, buffer_head 37, radix_tree_node 7, task_struct 3)."""
    g = slab_geometry(size, flags=flags, variant=variant)
    assert (g.order, g.num) == (order, num)
    assert g.num * g.size + (g.header if g.management == ON_SLAB else 0) + g.left_over == 4096 << g.order


def test_old_kernels_i386() -> None:
    g = slab_geometry(128, variant="2.6.24", word=4, flags=SLAB_HWCACHE_ALIGN, cache_line=128)
    assert (g.num, g.left_over, g.colour, g.header) == (30, 0, 0, 256)
    assert [slab_geometry(s, variant="3.6", word=4).num for s in (32, 64, 96, 192, 256)] == [113, 59, 40, 20, 15]
    off = slab_geometry(2048, variant="3.6", word=4)
    assert (off.management, off.management_size, off.header) == (OFF_SLAB, 28 + 2 * 4, 0)
    assert slab_geometry(600, variant="3.6").management == ON_SLAB  # there is room on the slab after all
    assert slab_geometry(2048, variant="3.6", flags=SLAB_NOLEAKTRACE).management == ON_SLAB
    assert slab_geometry(2048, variant="2.6.24", flags=SLAB_NOLEAKTRACE).management == OFF_SLAB
    assert slab_geometry(2048, variant="2.6.24", early=True).management == ON_SLAB
    assert slab_geometry(2048, variant="2.6.24", flags=SLAB_CACHE_DMA).allocflags == 1


def test_6_1_indices() -> None:
    """One byte an object: at most 255, so objects of 16 bytes cannot have them inside an object."""
    assert slab_geometry(8)[:4] == (16, 8, 0, 240)
    assert slab_geometry(16).management == ON_SLAB
    assert slab_geometry(64).management == IN_OBJECT
    assert slab_geometry(64, ctor=True).management == slab_geometry(64, flags=SLAB_TYPESAFE_BY_RCU).management
    assert slab_geometry(256, flags=SLAB_TYPESAFE_BY_RCU).management == OFF_SLAB
    assert slab_geometry(256, flags=SLAB_TYPESAFE_BY_RCU | SLAB_NOLEAKTRACE).management == ON_SLAB


@pytest.mark.parametrize(
    ("size", "limit", "batchcount", "shared"), [(256, 120, 60, 8), (257, 54, 27, 8), (1025, 24, 12, 8), (4096, 24, 12, 8), (4097, 8, 4, 0), (131073, 1, 1, 0)]
)
def test_arrays(size: int, limit: int, batchcount: int, shared: int) -> None:
    assert array_limits(size, 2) == (limit, batchcount, shared)
    assert array_limits(size, 1) == (limit, batchcount, 0)
    assert array_limits(size, 1, debug=True).limit == min(limit, 32)


def test_general_caches() -> None:
    assert 96 in general_sizes("3.6", 32) and 96 not in general_sizes("3.6", 64) and 192 not in general_sizes("3.6", 128)
    assert [general_size(n, general_sizes("6.1")) for n in (1, 33, 97, 8192, 8193, 12289)] == [32, 64, 128, 8192, 12288 + 4096, 16384]


def test_colours_by_variant() -> None:
    """6.1 steps before it uses the colour, the others after."""
    g = slab_geometry(600, variant="6.1")
    assert g.colour > 2
    assert colour_offsets(g, 3, "6.1") == [64, 128, 192] and colour_offsets(g, 3, "3.6") == [0, 64, 128]


@pytest.mark.parametrize(("size", "align", "variant"), [(0, 0, "6.1"), (-1, 0, "3.6"), (8, 3, "6.1"), (8, 8, "2.4"), (5 << 20, 0, "6.1"), (5 << 20, 0, "3.6")])
def test_impossible(size: int, align: int, variant: Variant) -> None:
    with pytest.raises(ValueError, match=r"size|variant"):
        slab_geometry(size, align, variant=variant)
