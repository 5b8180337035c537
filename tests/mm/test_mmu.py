"""Translation: rights, faults, accessed and dirty bits, TLBs that go stale."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for plain `pytest`, which does not put the directory there

import mmtwin
from mmtwin.mm import pgtable
from mmtwin.mm.mmu import (
    AC,
    EXEC,
    GENERAL_PROTECTION,
    READ,
    TABLE_MARK,
    USER,
    WRITE,
    flush_tlb_kernel_range_entry,
    mmu_handle,
    translate,
    translate_entry,
    translate_pages,
    walk_entry,
)
from mmtwin.mm.pgtable_tables import PAGE_NX, counters, signed
from tests.mmu_box import KINDS, Box

FAULT = {name: -1 - code for name, code in (("none", 0), ("write", 2), ("ro", 3), ("user", 4), ("user ro", 5), ("nx", 0x11), ("smap", 1), ("smap write", 3))}


def compiled(box: Box, address: int, access: int = READ, cpu: int = 0) -> int:
    """`translate`, compiled."""
    table = mmu_handle(box.state, box.mmu)
    return int(translate_entry(table.ctypes.data, cpu, signed(address), access))


@pytest.mark.parametrize("kind", KINDS)
def test_rights(kind: str) -> None:
    box = Box(kind)
    start, nx = (box.space.vmalloc_start + (8 << 20)) & -4096, PAGE_NX
    box.map(start, 0x10, 0x163 | nx)
    box.map(start + 4096, 0x11, 0x161 | nx)
    box.map(start + 8192, 0x12, 0x161)
    has_nx = kind != "i386"
    for n, access, expected in (
        (0, READ, 0x10), (0, WRITE, 0x10), (0, EXEC, FAULT["nx"] if has_nx else 0x10), (1, READ, 0x11), (1, WRITE, FAULT["ro"]), (2, EXEC, 0x12),
        (2, WRITE, FAULT["ro"]), (3, READ, FAULT["none"]), (3, WRITE, FAULT["write"]), (0, USER, FAULT["user ro"]), (3, USER, FAULT["user"]),
    ):  # fmt: skip
        found = int(translate(box.mmu, 0, signed(start + n * 4096 + 5), access))
        assert found == (expected if expected < 0 else expected << 12 | 5), (n, access)
        assert compiled(box, start + n * 4096 + 5, access) == found, (n, access)


def test_users_pages() -> None:
    box = Box()
    root = box.process()
    box.map(0x400000, 0x10, 0x67, root)
    box.map(0x401000, 0x11, 0x65 | PAGE_NX, root)
    assert translate(box.mmu, 0, 0x400000, READ) == FAULT["none"]
    box.switch(root)
    for address, access, expected in (
        (0x400000, READ, FAULT["smap"]), (0x400000, WRITE, FAULT["smap write"]), (0x400000, READ | AC, 0x10000), (0x400000, WRITE | AC, 0x10000),
        (0x400000, USER | WRITE, 0x10000), (0x401000, USER | WRITE, -1 - 7), (0x400000, EXEC, FAULT["nx"]), (0x400000, USER | EXEC, 0x10000),
        (0x401000, USER | EXEC, -1 - 0x15), (0x401000, WRITE | AC, FAULT["ro"]),
    ):  # fmt: skip
        assert translate(box.mmu, 0, address, access) == expected, (hex(address), access)
    box.mmu.config[0]["smap"] = box.mmu.config[0]["smep"] = 0
    assert translate(box.mmu, 0, 0x400000, READ) == 0x10000
    assert translate(box.mmu, 0, 0x400000, EXEC) == 0x10000
    box.switch(int(box.mmu.config[0]["root"]))
    assert translate(box.mmu, 0, 0x400000, READ) == FAULT["none"]  # no global translation: gone with the address space


@pytest.mark.parametrize(("kind", "first_bad", "last_bad"), [("4-level", 1 << 47, (1 << 64) - (1 << 47) - 1), ("5-level", 1 << 56, (1 << 64) - (1 << 56) - 1)])
def test_canonical_addresses(kind: str, first_bad: int, last_bad: int) -> None:
    box = Box(kind)
    for address in (first_bad, last_bad, 0x8000000000000000, 0xDEAD000000000108):
        assert translate(box.mmu, 0, signed(address), READ) == GENERAL_PROTECTION
        assert translate(box.mmu, 0, signed(address), READ) == GENERAL_PROTECTION
    assert translate(box.mmu, 0, first_bad - 1, READ) == FAULT["none"]
    assert translate(box.mmu, 0, signed(last_bad + 1), READ) == FAULT["none"]


def test_no_alias_of_a_canonical_address_in_the_tlb() -> None:
    """An address that differs from a cached one only above the translated bits faults nonetheless."""
    box = Box()
    address = box.space.vmalloc_start
    box.map(address, 5)
    assert translate(box.mmu, 0, signed(address), READ) == 5 << 12
    assert translate(box.mmu, 0, signed(address ^ 1 << 60), READ) == GENERAL_PROTECTION
    assert translate(box.mmu, 0, signed(address ^ 1 << 50), READ) == GENERAL_PROTECTION


@pytest.mark.parametrize("kind", KINDS)
def test_direct_map(kind: str) -> None:
    box = Box(kind)
    offset = box.space.page_offset
    for pfn in (0x100, 0x1FF, 0x400, 0x2345):
        assert translate(box.mmu, 0, signed(offset + (pfn << 12) + 77), WRITE) == (pfn << 12) + 77
    assert translate(box.mmu, 0, signed(box.space.high_memory), READ) == FAULT["none"]


def test_accessed_and_dirty_bits() -> None:
    box = Box()
    address = box.space.vmalloc_start
    box.map(address, 5, 0x103 | PAGE_NX)

    def bits() -> int:
        return pgtable.walk(box.mmu, signed(address))[0] & 0x60

    assert bits() == 0
    translate(box.mmu, 0, signed(address), READ)
    assert bits() == 0x20
    misses = counters(box.mmu)["tlb_misses"]
    translate(box.mmu, 0, signed(address), READ)
    assert counters(box.mmu)["tlb_misses"] == misses
    translate(box.mmu, 0, signed(address), WRITE)  # the TLB's entry is clean: the tables are asked again
    assert bits() == 0x60
    assert counters(box.mmu)["accessed_writes"] == 2
    walks = counters(box.mmu)["walks"]
    translate(box.mmu, 0, signed(address), WRITE)
    assert counters(box.mmu)["walks"] == walks


def test_a_freed_page_stays_in_the_tlb_until_the_flush() -> None:
    """As on hardware, and in the emulated guest (case stale_read of oracle/module/faults.c): vfree clears the PTE, the lazy purge flushes."""
    box = Box(cpus=2)
    address = box.space.vmalloc_start
    box.map(address, 5)
    assert translate(box.mmu, 0, signed(address), READ) == 5 << 12
    box.unmap(address, address + 8192)
    assert translate(box.mmu, 0, signed(address), READ) == 5 << 12
    assert translate(box.mmu, 1, signed(address), READ) == FAULT["none"]  # the other CPU never saw it
    before = counters(box.mmu)
    flush_tlb_kernel_range_entry(box.mmu, signed(address), signed(address) + 8192)
    assert counters(box.mmu)["invlpg"] - before["invlpg"] == 4  # two pages on each CPU
    assert translate(box.mmu, 0, signed(address), READ) == FAULT["none"]


def test_rights_that_grew_are_seen() -> None:
    """A TLB's entry that forbids an access is dropped and the tables are asked: no stale refusal."""
    box = Box()
    address = box.space.vmalloc_start
    box.map(address, 5, 0x161 | PAGE_NX)
    assert translate(box.mmu, 0, signed(address), WRITE) == FAULT["ro"]
    box.unmap(address, address + 4096)
    box.map(address, 5)
    assert translate(box.mmu, 0, signed(address), WRITE) == 5 << 12


def test_vmalloc_fault_of_older_kernels() -> None:
    """Before 5.8 a process met a new area of i386 through a fault that copied the PGD's entry."""
    box = Box("i386")
    box.mmu.config[0]["lazy_sync"] = 1
    root = box.process()
    address = box.space.vmalloc_start + (8 << 20)
    box.map(address, 5)
    box.switch(root)
    assert counters(box.mmu)["sync_writes"] == 0
    assert translate(box.mmu, 0, address, READ) == 5 << 12
    assert counters(box.mmu)["vmalloc_faults"] == 1
    assert translate(box.mmu, 0, address + 4096, READ) == FAULT["none"]
    assert counters(box.mmu)["vmalloc_faults"] == 1


def test_entries_for_python() -> None:
    box = Box()
    address = box.space.vmalloc_start
    for n in range(3):
        box.map(address + n * 4096, 5 + 2 * n)
    table = mmu_handle(box.state, box.mmu)
    out = np.zeros(5, dtype=np.int64)
    assert translate_pages(table.ctypes.data, 0, signed(address) + 10, READ, out) == 4
    assert out.tolist() == [(5 << 12) + 10, 7 << 12, 9 << 12, FAULT["none"], 0]
    entry, level, row, i = walk_entry(table.ctypes.data, int(box.mmu.config[0]["root"]), signed(address) + 4096)
    assert (level, i, (entry & (1 << 52) - 1) >> 12) == (1, 1, 7)
    pte_table = int(box.mmu.table[row]["pfn"])
    assert translate_entry(table.ctypes.data, 0, signed(box.space.page_offset) + (pte_table << 12), READ) == pte_table << 12 | TABLE_MARK


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(list(KINDS)), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 300), st.integers(0, 1)), max_size=60))
def test_a_tlb_that_is_flushed_agrees_with_the_tables(kind: str, steps: list[tuple[int, int, int]]) -> None:
    """Whatever is mapped, unmapped and touched on two CPUs: with a flush after each unmapping a translation is what a walk gives."""
    box = Box(kind)
    start = box.space.vmalloc_start
    plain: dict[int, int] = {}
    for what, page, cpu in steps:
        at = start + page * 4096
        if what == 0 and page not in plain:
            plain[page] = page + 3
            box.map(at, page + 3)
        elif what == 1:
            plain.pop(page, None)
            box.unmap(at, at + 4096)
            flush_tlb_kernel_range_entry(box.mmu, signed(at), signed(at) + 4096)
        else:
            assert translate(box.mmu, cpu, signed(at), WRITE if what == 2 else READ) == (
                plain[page] << 12 if page in plain else FAULT["write" if what == 2 else "none"]
            )


DIGEST = """
import hashlib
import random
from mmtwin.mm.mmu import flush_tlb_kernel_range_entry, mmu_handle, translate_entry
from mmtwin.mm.pgtable_tables import counters, signed
from mmtwin.mm.validate_pgtable import validate_pgtable
from tests.mmu_box import KINDS, Box

for kind in KINDS:
    box, r, seen = Box(kind), random.Random(kind), []
    root = box.process()
    start = box.space.vmalloc_start + (8 << 20)
    mapped = set()
    for step in range(1200):
        page, cpu = r.randrange(900), r.randrange(2)
        at, what = start + page * 4096, r.random()
        if what < 0.35 and page not in mapped:
            mapped.add(page)
            box.map(at, page + 7, r.choice((0x163, 0x161, 0x103)))
        elif what < 0.45:
            n = r.randrange(1, 20)
            box.unmap(at, at + n * 4096)
            mapped -= set(range(page, page + n))
        elif what < 0.47:
            flush_tlb_kernel_range_entry(box.mmu, signed(at), signed(at) + r.choice((1, 5, 40)) * 4096)
        elif what < 0.49:
            box.switch(r.choice((root, int(box.mmu.config[0]["root"]))), cpu)
        else:
            table = mmu_handle(box.state, box.mmu)
            address = at if what < 0.9 else box.space.page_offset + page * 40960
            seen.append(translate_entry(table.ctypes.data, cpu, signed(address) + 5, r.choice((0, 2, 4, 16, 1 << 18))))
    validate_pgtable(box.mmu, box.state)
    used = int(box.mmu.config[0]["tables"])
    total = hashlib.sha256(repr((seen, counters(box.mmu))).encode())
    for table in (box.mmu.entry[:used], box.mmu.table[:used], box.mmu.tlb, box.mmu.cpu, box.mmu.config):
        total.update(table.tobytes())
    print(kind, total.hexdigest())
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
