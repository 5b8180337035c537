"""The tables: their layout, growth and copies."""

from __future__ import annotations

import numpy as np

from mmtwin.mm.validate_vmalloc import validate_vmalloc
from mmtwin.mm.vmap_tables import NIL, RB_BLACK, VMAP_AREA, ZERO_BYTES, bias, copy_vmalloc, reserve_areas, unbias
from tests.vmalloc_machine import PAGE, VMALLOC_END, VMALLOC_START, VmallocMachine


def test_bias_keeps_order() -> None:
    addresses = [0, 1, 0xC0000000, 0xFFFFFFFF, (1 << 63) - 1, 1 << 63, VMALLOC_START, VMALLOC_END, (1 << 64) - 1]
    biased = [bias(a) for a in addresses]
    assert biased == sorted(biased) and [unbias(b) for b in biased] == addresses
    assert np.array(biased, dtype=np.int64).tolist() == biased
    assert bias(VMALLOC_START - (1 << 64)) == bias(VMALLOC_START)  # two's complement


def test_layout() -> None:
    assert VMAP_AREA.itemsize == 64
    for version, cpus, nodes, pools in ((601, 4, 1, 0), (612, 1, 1, 256), (612, 4, 4, 1024)):
        v = VmallocMachine(version, cpus).v
        config = v.config[0]
        assert config["nr_nodes"] == nodes and config["lazy_tree"] == 1 + nodes and config["purge_tree"] == 1 + 2 * nodes
        assert config["local_tree"] == 1 + 3 * nodes and config["heads"] - config["pool_base"] == pools and len(v.tree) == config["heads"]
        assert v.area[NIL]["rb_color"] == RB_BLACK and v.area[NIL]["subtree_max_size"] == ZERO_BYTES


def test_growth_keeps_everything() -> None:
    machine = VmallocMachine(areas=2, vms=0, blocks=0)
    before = machine.digest()
    assert reserve_areas(machine.v, 1) is machine.v
    grown = reserve_areas(machine.v, 100, 3, 5)
    assert len(grown.area) >= len(machine.v.area) + 99 and len(grown.freed) == len(grown.area) and len(grown.vm) == 4 and len(grown.block) == 7
    assert reserve_areas(grown, 100, 3, 5) is grown
    machine.v = grown
    machine.renew()
    assert machine.digest() == before
    for _ in range(80):
        machine.alloc(PAGE)
    machine.validate()
    assert len(machine.v.area) == len(grown.area)


def test_copies_are_independent() -> None:
    machine = VmallocMachine(612, 2)
    machine.alloc(PAGE)
    other = copy_vmalloc(machine.v)
    before = machine.digest()
    machine.alloc(PAGE)
    assert machine.digest() != before
    machine.v = other
    machine.renew()
    assert machine.digest() == before
    validate_vmalloc(other)
