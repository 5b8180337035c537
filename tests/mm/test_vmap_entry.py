"""What Python calls: compiled, with bounds checks and in the interpreter the same; descriptors; full tables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import mmtwin
from mmtwin.mm import vmap_entry as entry
from mmtwin.mm.vmap_tables import VM_ALLOC, bias, unbias
from mmtwin.mm.vmap_tree import NO_ROOM
from tests.vmalloc_machine import PAGE, VMALLOC_END, VMALLOC_START, VmallocMachine

DIGEST = """
import random
import numpy as np
from mmtwin.mm import vmap_entry as entry
from tests.mm.test_vmap_percpu import chunk
from tests.vmalloc_machine import PAGE, VMALLOC_START, VmallocMachine
for version, cpus, pages in ((601, 1, 3000), (601, 3, 1 << 30), (612, 1, 3000), (612, 3, 100000)):
    r = random.Random(version + cpus)
    m = VmallocMachine(version, cpus, end=VMALLOC_START + pages * PAGE - 1, compiled=True, config_nr_cpus=16384)
    held, ram = [], []
    for i in range(6000):
        what, cpu = r.random(), r.randrange(cpus)
        if what < 0.45:
            size, shift = min(300, 1 + int(r.expovariate(0.2))) * PAGE, r.choice((0, 0, 12, 14, 14, 16, 21))
            address = m.alloc(size, 1 << shift, cpu)
            if address:
                held.append(address)
        elif what < 0.8 and held:
            m.free(held.pop(r.randrange(len(held))))
        elif what < 0.88:
            pages = r.randrange(1, 65)
            address = m.map_ram(pages, cpu)
            if address:
                ram.append((address, pages))
        elif what < 0.96 and ram:
            m.unmap_ram(*ram.pop(r.randrange(len(ram))))
        elif what < 0.965:
            m.unmap_aliases()
        elif what < 0.97:
            m.call(entry.overflow_purge_entry)
        elif what < 0.975:
            m.call(entry.shrink_pools_entry)
        elif what < 0.98 and len(held) > 1:
            m.call(entry.give_back_entry, m.find(held.pop()))
        elif what < 0.99:
            held += chunk(m, [0, 3], [2, 1])
        elif held:
            row = m.call(entry.next_area_entry, int(m.v.area[m.find(held[0])]["va_end"]))
            assert row == 0 or m.v.area[row]["state"] == 3
    m.validate()
    print(version, cpus, m.digest(), m.number, m.v.config[0].tolist())
"""


def test_same_state_compiled_checked_and_interpreted() -> None:
    source = os.pathsep.join([str(Path(mmtwin.__file__).parents[1]), str(Path(__file__).parents[2])])
    found = {}
    for mode in ({}, {"NUMBA_BOUNDSCHECK": "1"}, {"NUMBA_DISABLE_JIT": "1"}):
        clean = {name: value for name, value in os.environ.items() if name not in ("NUMBA_BOUNDSCHECK", "NUMBA_DISABLE_JIT")}
        run = subprocess.run([sys.executable, "-c", DIGEST], env=clean | {"PYTHONPATH": source} | mode, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        found[next(iter(mode), "compiled")] = run.stdout
    assert len(set(found.values())) == 1 and found["compiled"].count("\n") == 4, found


def test_descriptors() -> None:
    machine = VmallocMachine(vms=1)
    row = machine.area(5 * PAGE)
    vm = machine.call(entry.bind_vm_entry, row, 77, VM_ALLOC, -5)
    assert vm == 1 and machine.v.area[row]["vm"] == 1
    found = machine.v.vm[vm]
    assert (unbias(found["addr"]), found["size"], found["flags"], found["caller"], found["object"], found["live"]) == (
        VMALLOC_START,
        5 * PAGE,
        VM_ALLOC,
        -5,
        77,
        1,
    )
    machine.validate()
    other = machine.area(PAGE)
    assert machine.call(entry.bind_vm_entry, other, 78, VM_ALLOC, 0) == NO_ROOM
    machine.call(entry.free_vm_entry, vm)
    assert machine.v.area[row]["vm"] == 0
    machine.validate()
    assert machine.call(entry.bind_vm_entry, other, 78, VM_ALLOC, 0) == vm
    machine.v.area[other]["vm"] = 0  # remove_vm_area clears it first
    machine.v.vm[vm]["area"] = 0
    machine.call(entry.free_vm_entry, vm)
    machine.validate()


def test_full_tables_change_nothing() -> None:
    machine = VmallocMachine(areas=2)
    before = machine.digest()
    arguments = (0, PAGE, 1, bias(VMALLOC_START), bias(VMALLOC_END), 0)
    assert machine.call(entry.alloc_area_entry, *arguments, 5, 6) == NO_ROOM
    numbers = np.zeros(2, dtype=np.int64)
    assert machine.call(entry.percpu_areas_entry, 0, numbers, numbers, PAGE, numbers.copy(), entry.NO_OBJECT, numbers.copy()) == NO_ROOM
    assert machine.digest() == before
    machine.validate()


def test_failed_allocation_keeps_the_spare() -> None:
    machine = VmallocMachine(end=VMALLOC_START + 2 * PAGE - 1)
    assert machine.alloc(4 * PAGE) == 0
    assert machine.v.cpu[0]["ne_fit_preload_node"] != 0
    machine.validate()
    assert machine.alloc(PAGE) == VMALLOC_START
