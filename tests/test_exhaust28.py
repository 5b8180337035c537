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
from mmtwin.units import PAGE_SIZE

DATA = Path(__file__).parent / "data"
REAL: dict[str, Any] = json.loads((DATA / "exhaust28-686.json").read_text())
BYTES = 28


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
    m = mmtwin.load(DATA / "exhaust28-686.mmrec")
    found: list[int] = []
    with m.task("busybox", 83), pytest.raises(mmtwin.VmallocFailure) as error:
        while True:
            found.append(m.vmalloc(BYTES))
    assert (len(found), found[0], found[-1]) == tuple(REAL["vmalloc"][name] for name in ("count", "first", "last"))
    assert error.value.report.splitlines() == REAL["log"][:2]
    assert m.free > 400_000  # pages
    m.validate()
    assert m.kmalloc(BYTES)
