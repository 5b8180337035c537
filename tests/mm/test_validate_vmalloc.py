"""Damage is found, named, and never a crash."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtwin.errors import InvariantError
from mmtwin.mm import vmap_entry as entry
from mmtwin.mm.validate_vmalloc import check_indices, digest, listed, validate_vmalloc
from mmtwin.mm.vmap_tables import AREA_BUSY, AREA_FREE, AREA_HELD, AREA_LAZY, AREA_POOL, VM_ALLOC, Vmalloc, bias, copy_vmalloc
from mmtwin.mm.vmap_tree import free_area_row, new_area
from tests.mm.test_vmap_node import purge
from tests.vmalloc_machine import PAGE, VMALLOC_START, VmallocMachine


def used(version: int) -> VmallocMachine:
    """A machine with something of everything."""
    machine = VmallocMachine(version, 2, config_nr_cpus=16384)
    areas = [machine.alloc(pages * PAGE, cpu=pages % 2) for pages in (1, 2, 3, 2, 1, 1, 2, 5, 2, 9, 2, 2, 2, 2)]
    for address in areas[1:9:2]:
        machine.free(address)
    purge(machine)
    for address in areas[2:10:4]:
        machine.free(address)
    for row in (machine.find(areas[0]), machine.find(areas[11])):
        machine.call(entry.bind_vm_entry, row, 500 + row, VM_ALLOC, 0)
    machine.call(entry.free_vm_entry, int(machine.v.area[machine.find(areas[0])]["vm"]))
    for pages in (3, 64, 64, 61):
        machine.map_ram(pages)
    rows = [new_area(machine.v, 0) for _ in range(3)]
    for row in rows:
        free_area_row(machine.v, row)
    machine.validate()
    return machine


MACHINES = {version: used(version).v for version in (601, 612)}


def some(v: Vmalloc, state: int, which: int = 0) -> int:
    return int(np.flatnonzero(v.area["state"] == state)[which])


def child(v: Vmalloc, state: int) -> int:
    """An area of the free or busy tree that has a parent."""
    return int(np.flatnonzero((v.area["state"] == state) & (v.area["rb_parent"] != 0))[0])


DAMAGE: list[tuple[str, Callable[[Vmalloc], Any], str]] = [
    ("color", lambda v: v.area["rb_color"].__setitem__(child(v, AREA_BUSY), 1 - v.area["rb_color"][child(v, AREA_BUSY)]), "black heights|red below red"),
    ("root", lambda v: v.area["rb_color"].__setitem__(int(v.tree[0]["rb_root"]), 0), "a red root|red below red"),
    ("parent", lambda v: v.area["rb_parent"].__setitem__(child(v, AREA_BUSY), some(v, AREA_LAZY)), "another parent"),
    ("no root", lambda v: v.tree["rb_root"].__setitem__(0, 0), "not the root"),
    ("empty tree", lambda v: v.tree["rb_root"].__setitem__(int(v.config[0]["purge_tree"]) - 1, some(v, AREA_BUSY)), "root|parent"),
    ("maximum", lambda v: v.area["subtree_max_size"].__setitem__(some(v, AREA_FREE), bias(PAGE * 77)), "subtree_max_size"),
    ("next", lambda v: v.area["next"].__setitem__(some(v, AREA_FREE), some(v, AREA_BUSY)), "point back"),
    ("unlisted", lambda v: v.area["next"].__setitem__(some(v, AREA_FREE), int(v.config[0]["free_area"])), "on no list"),
    ("order", lambda v: v.area["va_end"].__setitem__(some(v, AREA_BUSY), v.area["va_end"][some(v, AREA_BUSY)] + 64 * PAGE), "in front of|reaches|gap|overlap"),
    ("bytes", lambda v: v.area["va_end"].__setitem__(some(v, AREA_BUSY), v.area["va_start"][some(v, AREA_BUSY)]), "no bytes"),
    ("pages", lambda v: v.area["va_end"].__setitem__(some(v, AREA_BUSY), v.area["va_end"][some(v, AREA_BUSY)] - 5), "whole pages"),
    ("gap", lambda v: v.area["va_end"].__setitem__(some(v, AREA_BUSY, 5), v.area["va_end"][some(v, AREA_BUSY, 5)] - PAGE), "a gap|not the pool|no bytes|not its area"),
    ("state", lambda v: v.area["state"].__setitem__(some(v, AREA_LAZY), AREA_BUSY), "its state is"),
    ("head", lambda v: v.area["state"].__setitem__(0, AREA_FREE), "head of a list"),
    ("count", lambda v: v.tree["nr"].__setitem__(0, 99), r"tree\[0\].nr is 99"),
    ("lazy_nr", lambda v: v.config["lazy_nr"].__setitem__(0, 99), "lazy_nr is 99"),
    ("in use", lambda v: v.config["areas_in_use"].__setitem__(0, 99), "areas_in_use is 99"),
    ("vms in use", lambda v: v.config["vms_in_use"].__setitem__(0, 99), "vms_in_use is 99"),
    ("blocks in use", lambda v: v.config["blocks_in_use"].__setitem__(0, 99), "blocks_in_use is 99"),
    ("chain", lambda v: v.area["next"].__setitem__(int(v.config[0]["free_area"]), int(v.config[0]["free_area"])), "ring|chain of unused"),
    ("chained", lambda v: v.config["free_area"].__setitem__(0, 0), "chain of unused"),
    ("spare", lambda v: v.cpu["ne_fit_preload_node"].__setitem__(0, some(v, AREA_FREE)), "spares"),
    ("vm", lambda v: v.vm["area"].__setitem__(int(np.flatnonzero(v.vm["live"])[0]), some(v, AREA_FREE)), r"vm\["),
    ("vm's area", lambda v: v.area["vm"].__setitem__(some(v, AREA_BUSY), int(np.flatnonzero(v.vm["live"])[0])), "its vm"),
    ("block's area", lambda v: v.block["area"].__setitem__(int(v.config[0]["block_heads"]), some(v, AREA_FREE)), "not its area"),
    ("block's pages", lambda v: v.block["dirty"].__setitem__(int(v.config[0]["block_heads"]), 128), "dirty of 128"),
    ("block's state", lambda v: v.block["state"].__setitem__(int(v.config[0]["block_heads"]), 2), "on the queue|state 2"),
    ("block's list", lambda v: v.block["next"].__setitem__(0, 0), "it comes after"),
    ("block's address", lambda v: v.block["xa_next"].__setitem__(int(v.config[0]["block_heads"]) - 1, int(v.config[0]["block_heads"]) - 1), "it comes after"),
    ("local", lambda v: v.tree["nr"].__setitem__(int(v.config[0]["local_tree"]), 1), "for use within"),
]  # fmt: skip


@pytest.mark.parametrize("version", [601, 612])
@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE, ids=[name for name, _, _ in DAMAGE])
def test_damage_is_named(version: int, name: str, damage: Callable[[Vmalloc], Any], message: str) -> None:
    v = copy_vmalloc(MACHINES[version])
    damage(v)
    with pytest.raises(InvariantError, match=message):
        validate_vmalloc(v)


def test_nodes() -> None:
    v = copy_vmalloc(MACHINES[612])
    v.area["flags"][some(v, AREA_LAZY)] ^= 0x300
    with pytest.raises(InvariantError, match="belongs to"):
        validate_vmalloc(v)
    v = copy_vmalloc(MACHINES[612])
    v.area["flags"][some(v, AREA_POOL)] ^= 0x300
    with pytest.raises(InvariantError, match="not the pool"):
        validate_vmalloc(v)
    machine = VmallocMachine(612, 2)
    machine.alloc(PAGE)
    machine.v.area["va_start"][machine.find(VMALLOC_START)] = bias(VMALLOC_START + 16 * PAGE)
    machine.v.area["va_end"][some(machine.v, AREA_BUSY)] = bias(VMALLOC_START + 17 * PAGE)
    with pytest.raises(InvariantError, match="begins in"):
        validate_vmalloc(machine.v)


def test_neighbours_are_joined() -> None:
    machine = VmallocMachine()
    machine.alloc(PAGE)
    row = some(machine.v, AREA_FREE)
    machine.v.area["va_start"][machine.find(VMALLOC_START)] += 0
    low, high = sorted(np.flatnonzero(machine.v.area["state"] == AREA_FREE), key=lambda r: int(machine.v.area["va_start"][r]))
    machine.v.area["va_end"][low] = machine.v.area["va_start"][high]
    assert row in (low, high)
    with pytest.raises(InvariantError, match="not joined"):
        validate_vmalloc(machine.v)


def test_in_flight() -> None:
    machine = VmallocMachine()
    new_area(machine.v, 5)
    with pytest.raises(InvariantError, match="held by a request"):
        validate_vmalloc(machine.v)
    validate_vmalloc(machine.v, allow_in_flight=True)
    machine.v.area["state"][some(machine.v, AREA_HELD)] = 0


def test_ring_without_a_head() -> None:
    v = copy_vmalloc(MACHINES[601])
    row = some(v, AREA_BUSY, 3)
    before, after = int(v.area["prev"][row]), int(v.area["next"][row])
    v.area["next"][before], v.area["prev"][after] = after, before
    v.area["next"][row] = v.area["prev"][row] = row
    with pytest.raises(InvariantError, match="without a head"):
        listed(v)


INDICES = [("area", name) for name in ("rb_left", "rb_right", "rb_parent", "next", "prev", "vm", "rb_color", "state")]
INDICES += [("tree", "rb_root"), ("cpu", "ne_fit_preload_node"), ("cpu", "deferred"), ("vm", "area"), ("vm", "deferred")]
INDICES += [("block", name) for name in ("next", "prev", "xa_next", "xa_prev", "purge", "area", "cpu", "free", "dirty", "dirty_min", "dirty_max")]
INDICES += [
    ("config", name)
    for name in ("nr_cpus", "online_cpus", "nr_nodes", "zone_shift", "lazy_tree", "purge_tree", "local_tree", "pool_base", "heads", "block_pages")
]
INDICES += [("config", name) for name in ("block_heads", "areas", "free_area", "vms", "free_vm", "blocks", "free_block", "freed")]


@pytest.mark.parametrize("version", [601, 612])
@pytest.mark.parametrize(("table", "name"), INDICES)
def test_indices(version: int, table: str, name: str) -> None:
    for value in (-30_000, 30_000):
        v = copy_vmalloc(MACHINES[version])
        column = getattr(v, table)[name]
        column[-1] = max(value, -128) if value < 0 and column.itemsize == 1 else min(value, 127) if column.itemsize == 1 else value
        with pytest.raises(InvariantError):
            check_indices(v)


def test_tables() -> None:
    v = MACHINES[601]
    for broken in (
        v._replace(area=v.vm),
        v._replace(config=np.concatenate([v.config, v.config])),
        v._replace(tree=v.tree[:-1]),
        v._replace(cpu=v.cpu[:1]),
        v._replace(area=v.area[:2]),
    ):
        with pytest.raises(InvariantError):
            check_indices(broken)
    leaf = copy_vmalloc(v)
    leaf.area["subtree_max_size"][0] = 0
    with pytest.raises(InvariantError, match="leaf"):
        check_indices(leaf)


@given(
    st.sampled_from([601, 612]), st.lists(st.tuples(st.sampled_from(INDICES[:24]), st.integers(0, 1 << 20), st.integers(-2, 1 << 20)), min_size=1, max_size=6)
)
def test_garbage_never_crashes(version: int, changes: list[tuple[tuple[str, str], int, int]]) -> None:
    """Whatever is in the links: an answer, in finite time."""
    v = copy_vmalloc(MACHINES[version])
    for (table, name), at, value in changes:
        column = getattr(v, table)[name]
        column[at % len(column)] = value % (len(v.area) if column.itemsize > 1 else 6)
    for look in (validate_vmalloc, digest):
        with contextlib.suppress(InvariantError):
            look(v)


def test_digest_does_not_depend_on_rows() -> None:
    """The same areas in other rows: the same digest; one more word in one of them: another."""
    digests = []
    for first in (False, True):
        machine = VmallocMachine()
        if first:
            row = new_area(machine.v, 0)
            other = new_area(machine.v, 0)
            for r in (row, other):
                machine.v.area[r]["state"] = 0
            machine.v.area[row]["next"], machine.v.area[other]["next"] = 0, row
            machine.v.config["free_area"], machine.v.config["areas_in_use"] = other, 1
        for _ in range(4):
            machine.alloc(PAGE)
        machine.validate()
        digests.append(machine.digest())
        machine.v.area["object"][machine.find(VMALLOC_START)] += 1
        assert machine.digest() != digests[-1]
    assert digests[0] == digests[1]
