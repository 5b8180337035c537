"""SLUB with 32-bit words: every cache of a real 686 kernel with 1 to 8 CPUs and many slab options (oracle/sys-slab.sh)."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from mmtwin import boot, profiles
from mmtwin.mm import slab_common as sc
from mmtwin.profiles import SLAB_32_BIT
from tests.mm.test_slab_common import DEBUG_COLUMNS, asked_flags, sys_kernel_slab

RUNS = range(21)


@cache
def runs() -> list[dict[str, Any]]:
    return sys_kernel_slab("sys-kernel-slab-686.json.gz")


def config_of(run: dict[str, Any]) -> sc.SlubConfig:
    return sc.SlubConfig.from_cmdline(run["cmdline"], sc.slub_cpus(run["present"], run["possible"]), SLAB_32_BIT)


@pytest.mark.parametrize("run", RUNS)
def test_geometry_of_all_real_caches(run: int) -> None:
    found = runs()[run]
    config, wrong = config_of(found), []
    for real in found["caches"]:
        twin = sc.open_cache(real["name"], real["object_size"], real["align"], asked_flags(real), bool(real["ctor"]), config)
        assert twin is not None, real["name"]
        expected = tuple(real[c] for c in ("slab_size", "order", "objs_per_slab", "align", "min_partial", "cpu_partial", *DEBUG_COLUMNS))
        debug = tuple(int(bool(twin.flags & bit)) for bit in DEBUG_COLUMNS.values())
        if (twin.size, twin.order, twin.objects, twin.align, twin.min_partial, twin.cpu_partial, *debug) != expected:
            wrong.append((real["name"], expected, twin))
    assert not wrong, f"{found['cmdline']}: {wrong[:3]}"
    assert len(found["caches"]) >= 120


@pytest.mark.parametrize("run", RUNS)
def test_kmalloc_caches_of_a_booted_machine(run: int) -> None:
    found = runs()[run]
    real = {row["name"]: row for row in found["caches"]}
    machine = boot("linux-6.1-i386", ram="256MiB", cpus=found["cpus"], cmdline=found["cmdline"])
    columns = {"slab_size": "size", "order": "order", "objs_per_slab": "objects", "align": "align", "object_size": "object_size", "usersize": "usersize"}
    mine = {row["cache"]: row for row in machine.frame("caches").iter_rows(named=True)}
    assert {name: mine[name]["object_size"] for name in ("kmem_cache", "kmem_cache_node")} == {"kmem_cache": 140, "kmem_cache_node": 32}
    for name, row in mine.items():
        assert {theirs: row[ours] for theirs, ours in columns.items()} == {theirs: real[name][theirs] for theirs in columns}, name


def test_words_decide_where_things_lie() -> None:
    """The free pointer in the middle of an object is aligned to a word, and a constructor's objects have it in one word more."""
    narrow, wide = sc.SlubConfig(arch=SLAB_32_BIT), sc.SlubConfig()
    small = [sc.new_cache("x", 20, ctor=True, config=config) for config in (narrow, wide)]
    assert [(one.size, one.offset, one.inuse) for one in small if one] == [(24, 20, 20), (32, 24, 24)]
    assert sc.find_mergeable([sc.Mergeable(0, 24)], 20, 0, 0, "x", arch=SLAB_32_BIT) == 0  # aligned to 8 all the same
    assert sc.find_mergeable([sc.Mergeable(0, 24)], 16, 0, 0, "x", arch=SLAB_32_BIT) is None
    assert profiles.get("i386").slab == SLAB_32_BIT and sc.size_max(SLAB_32_BIT) == (1 << 32) - 1
