"""The 28-byte experiment (oracle/module/exhaust28.c): on a real 686 kernel with 2 GiB, vmalloc(28) and kmalloc(28) until they fail.

The twin starts from the very dumps that were taken before each half and gives the same counts and the same last place.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mmtwin
from mmtwin._jit import kernel
from mmtwin.machine import Machine
from mmtwin.mm.kmalloc import kmalloc
from mmtwin.mm.slab_tables import reserve
from mmtwin.mm.validate_vmalloc import validate_vmalloc
from mmtwin.mm.vmalloc import OVERFLOW
from mmtwin.mm.vmap_entry import NO_OBJECT, address_table, alloc_area_entry, overflow_purge_entry
from mmtwin.mm.vmap_tables import NIL, reserve_areas, unbias
from mmtwin.recording import store, vmap_state
from mmtwin.units import PAGE_SIZE

DATA = Path(__file__).parent / "data"
REAL: dict[str, Any] = json.loads((DATA / "exhaust28-686.json").read_text())
BYTES = 28
SPARE_OBJECT = 0


@kernel
def kmalloc_to_the_end(b: Any, s: Any, size: int, gfp: int, cpu: int) -> tuple[int, int, int]:
    """How many requests succeeded, the last physical address, and the error that ended it."""
    count, last = 0, -1
    while True:
        address = kmalloc(b, s, size, gfp, cpu)
        if address < 0:
            return count, last, address
        count += 1
        last = address


@pytest.fixture(scope="module")
def lowmem() -> Machine:
    """The machine as it was before the first kmalloc(28)."""
    return mmtwin.load(DATA / "exhaust28-686.mmrec", "after")


def test_kmalloc_goes_on_to_the_end_of_the_direct_map(lowmem: Machine) -> None:
    machine = lowmem.copy()
    low_pages = int(machine.state.zone["managed_pages"][:2].sum())
    machine.slub = reserve(machine.slub, low_pages, low_pages * (PAGE_SIZE // 32))
    count, last, error = kmalloc_to_the_end(machine.state, machine.slub, BYTES, REAL["gfp_kmalloc"], 0)
    assert error == -12  # -ENOMEM, not that something must be reclaimed first
    assert count == REAL["kmalloc"]["count"]
    # where inside a new slab the kernel begins is its random number, so objects are compared by their page
    assert (machine.PAGE_OFFSET + last) // PAGE_SIZE == REAL["kmalloc"]["last"] // PAGE_SIZE
    assert int(machine.state.zone[2]["nr_free_pages"]) == int(lowmem.state.zone[2]["nr_free_pages"])  # HighMem is not touched
    assert last + machine.PAGE_OFFSET < machine.PAGE_OFFSET + (int(machine.state.zone[1]["end_pfn"]) << 12)
    machine.validate()


def test_vmalloc_ends_when_no_area_is_left_though_memory_is() -> None:
    recording = store.load(DATA / "exhaust28-686.mmrec")
    assert recording.before is not None
    state = reserve_areas(vmap_state.restore(recording.before, recording.provenance), 1 << 15)
    table = address_table(state)
    handle, config = table.ctypes.data, state.config[0]
    size = 2 * PAGE_SIZE  # one page, and the guard page behind it
    found: list[int] = []
    while True:
        spare = SPARE_OBJECT if int(state.cpu[0]["ne_fit_preload_node"]) == NIL else NO_OBJECT
        row = alloc_area_entry(handle, 0, size, 1, int(config["vmalloc_start"]), int(config["vmalloc_end"]), 0, SPARE_OBJECT, spare)
        if row == OVERFLOW and overflow_purge_entry(handle):
            continue
        if row < 0:
            break
        found.append(unbias(int(state.area[row]["va_start"])))
    assert row == OVERFLOW
    assert (len(found), found[0], found[-1]) == tuple(REAL["vmalloc"][name] for name in ("count", "first", "last"))
    assert REAL["log"][0] == f"vmap allocation for size {size} failed: use vmalloc=<size> to increase size"
    assert "vmalloc error: size 28, vm_struct allocation failed, mode:0xcc0(GFP_KERNEL)" in REAL["log"][1]
    validate_vmalloc(state)
