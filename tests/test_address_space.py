"""Addresses, reads and writes through page tables, high memory."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for plain `pytest`, which does not put the directory there

import mmtwin
from mmtwin.errors import GuardPage, KmapError, NotDirectMapped, PageFault, RequestError, SlabOutOfBounds, UnmappedArea, UserAccess, WriteToReadOnly
from mmtwin.machine import Machine
from mmtwin.mm.pgtable_tables import PAGE_KERNEL_RO, PAGE_NX, counters
from tests.mmu_box import KINDS, Box

PAGE = 4096


@pytest.fixture(scope="module")
def m() -> Machine:
    """A machine that the tests of this module share."""
    return mmtwin.boot(ram="128MiB", cpus=2)


def test_what_an_address_is(m: Machine) -> None:
    p, v = m.kmalloc(100), m.vmalloc(3 * PAGE)
    assert (m.is_vmalloc_addr(p), m.is_vmalloc_addr(v)) == (False, True)
    assert (m.virt_addr_valid(p), m.virt_addr_valid(v), m.virt_addr_valid(0), m.virt_addr_valid(m.PAGE_OFFSET + (1 << 40))) == (True, False, False, False)
    assert m.virt_addr_valid(m.space.kernel_map + 0x1000000)
    assert not m.virt_addr_valid(m.space.kernel_map + (1 << 30))
    assert m.virt_to_phys(p) == p - m.PAGE_OFFSET == m.translate(p)
    assert m.phys_to_virt(m.virt_to_phys(p)) == p
    assert m.page_address(m.virt_to_page(p)) == p & -PAGE
    assert m.virt_to_phys(m.space.kernel_map + 0x1234567) == 0x1234567
    pages = [m.vmalloc_to_pfn(v + n * PAGE) for n in range(3)]
    assert pages == m.phys_pages(v, 3 * PAGE) == [m.translate(v + n * PAGE) >> 12 for n in range(3)]
    assert m.vmalloc_to_page(v + 5) == pages[0]
    for address in (v + 3 * PAGE, p):
        with pytest.raises(RequestError):
            m.vmalloc_to_pfn(address)
    assert m.space.modules_vaddr <= (module := m.module_alloc(PAGE)) < m.space.modules_end
    assert (m.is_vmalloc_addr(module), m.is_vmalloc_or_module_addr(module)) == (False, True)


def test_virt_to_phys_of_vmalloc_memory_is_refused(m: Machine) -> None:
    v = m.vmalloc(PAGE)
    with pytest.raises(NotDirectMapped, match="use vmalloc_to_pfn") as caught:
        m.virt_to_phys(v)
    assert caught.value.wrong == v - m.PAGE_OFFSET != m.translate(v)
    assert pickle.loads(pickle.dumps(caught.value)).wrong == caught.value.wrong
    for address in (0, 0x400000, m.space.high_memory, (1 << 64) - PAGE, 1 << 64):
        with pytest.raises(NotDirectMapped):
            m.virt_to_page(address)
    with pytest.raises(RequestError):
        m.phys_to_virt(1 << 40)


def test_vmalloc_memory_is_one_range_and_scattered_frames(m: Machine) -> None:
    between = [m.vmalloc(PAGE) for _ in range(2)]
    m.vfree(between[0])
    v = m.vmalloc(5 * PAGE)
    data = bytes(range(256)) * 72
    m.write(v + 100, data)
    assert m.read(v + 100, len(data)) == data
    pfns = m.phys_pages(v, 5 * PAGE)
    assert len(set(pfns)) == 5
    whole = b"".join(m.read(m.phys_to_virt(pfn << 12), PAGE) for pfn in pfns)  # the same bytes through the direct map
    assert whole[100 : 100 + len(data)] == data
    alias = m.vmap(pfns[::-1])
    assert m.read(alias, PAGE) == whole[4 * PAGE :]
    m.write(alias, b"ALIAS")
    assert m.read(v + 4 * PAGE, 5) == b"ALIAS"


def test_faults_of_areas(m: Machine) -> None:
    v = m.vmalloc(2 * PAGE)
    with pytest.raises(GuardPage, match="the guard page behind the area") as caught:
        m.read(v + 2 * PAGE, 1)
    assert (caught.value.cr2, caught.value.error_code) == (v + 2 * PAGE, 0)
    m.write(v, b"a" * 2 * PAGE)
    with pytest.raises(GuardPage):
        m.write(v + 2 * PAGE - 4, b"overflow")
    assert m.read(v + 2 * PAGE - 4, 4) == b"over"  # written until the fault, as a memcpy is
    with pytest.raises(GuardPage):
        m.read(v, 2 * PAGE + 1)
    pfn = m.vmalloc_to_pfn(v)
    read_only = m.vmap([pfn], prot=PAGE_KERNEL_RO)
    assert m.read(read_only, 1) == b"a"
    with pytest.raises(WriteToReadOnly):
        m.write(read_only, b"b")
    with pytest.raises(PageFault, match="not executable"):
        m.translate(v, "exec")
    assert m.read(v, 1) == b"a"  # the fault had dropped the TLB's entry
    m.vunmap(read_only)
    m.stale_tlb = True
    m.vfree(v)
    assert m.read(v, 1) == b"a"  # still in CPU 0's TLB: the purge is lazy
    with pytest.raises(UnmappedArea):
        m.read(v, 1, cpu=1)
    m.vm_unmap_aliases()
    with pytest.raises(UnmappedArea):
        m.read(v, 1)


def test_buffer(m: Machine) -> None:
    v = m.vzalloc(2 * PAGE)
    buffer = m.memory(v + PAGE - 8, 16)
    assert len(buffer) == 16
    buffer[4:12] = b"12345678"
    assert bytes(buffer) == buffer.tobytes() == b"\0\0\0\x0012345678\0\0\0\0"
    assert (buffer[4], buffer[-5], buffer[7:9], buffer[4:12:2], buffer[12:4]) == (0x31, 0x38, b"45", b"1357", b"")
    buffer[0], buffer[-1] = 1, 255
    buffer[1:5:2] = b"xy"
    assert (
        buffer.hex(
            " ",
        )
        == "01 78 00 79 31 32 33 34 35 36 37 38 00 00 00 ff"
    )
    assert buffer == m.read(v + PAGE - 8, 16)
    assert list(buffer)[:2] == [1, 0x78]
    assert buffer != b"other"
    assert "16 bytes of memory at 0x" in repr(buffer)
    for wrong in (16, -17):
        with pytest.raises(IndexError):
            buffer[wrong]
    with pytest.raises(ValueError, match="does not change its size"):
        buffer[0:4] = b"12345"
    with pytest.raises(GuardPage):
        bytes(m.memory(v, 2 * PAGE + 1))
    with pytest.raises(RequestError):
        m.memory(v, -1)


def test_page_tables_can_be_read(m: Machine) -> None:
    """A page-table page is memory: its entries stand in the direct map."""
    v = m.vmalloc(PAGE)
    pte = next(pfn for pfn in range(int(m.state.config[0]["nr_frames"])) if m.state.page[pfn]["flags"] < 0 and m.mmu.table[m.state.page[pfn]["next"]]["level"] == 1
               and not m.mmu.table[m.state.page[pfn]["next"]]["boot"] and m.mmu.entry[m.state.page[pfn]["next"], (v >> 12) & 511])  # fmt: skip
    where = m.phys_to_virt(pte << 12) + (v >> 12 & 511) * 8
    entry = int.from_bytes(m.read(where, 8), "little")
    assert entry == m.vmalloc_to_pfn(v) << 12 | 0x8000000000000163
    m.write(where, (entry & ~2).to_bytes(8, "little"))  # read-only from now on
    with pytest.raises(WriteToReadOnly):
        m.write(v, b"x")
    m.write(where, entry.to_bytes(8, "little"))
    m.write(v, b"x")
    pgd = m.phys_to_virt(int(m.mmu.table[0]["pfn"]) << 12)
    assert int.from_bytes(m.read(pgd + 0xC90, 8), "little") & 0xFFF == 0x67  # the vmalloc range's first entry
    with pytest.raises(RequestError, match="only PTEs"):
        m.write(pgd, b"x")


def test_contents_of_devices(m: Machine) -> None:
    """Nobody answers behind the end of memory: all bits are 1, writes are lost."""
    v = m.ioremap(0xFE000000, PAGE)
    assert m.read(v + 4, 4) == b"\xff" * 4
    m.write(v, b"abc")
    assert m.read(v, 3) == b"\xff" * 3


def test_copies_and_pickles() -> None:
    m = mmtwin.boot(ram="128MiB", cpus=1)
    v = m.vmalloc(2 * PAGE)
    m.write(v + PAGE - 1, b"ab")
    other, again = m.copy(), pickle.loads(pickle.dumps(m))
    m.write(v + PAGE - 1, b"xy")
    m.vfree(v)
    m.vm_unmap_aliases()
    assert other.read(v + PAGE - 1, 2) == again.read(v + PAGE - 1, 2) == b"ab"
    with pytest.raises(UnmappedArea):
        m.read(v, 1)
    for machine in (m, other, again):
        machine.validate()


def test_kasan_sees_accesses_through_any_address() -> None:
    m = mmtwin.boot(ram="128MiB", cpus=1, kasan=True)
    p = m.kmalloc(28)
    m.write(p, b"x" * 28)
    with pytest.raises(SlabOutOfBounds):
        m.write(p, b"x" * 29)
    v = m.vmap([m.virt_to_page(p)])
    with pytest.raises(SlabOutOfBounds):
        m.read(v + p % PAGE, 29)


def test_counters_of_a_machine(m: Machine) -> None:
    v = m.vmalloc(PAGE)
    before = m.mmu_counters()
    m.read(v, 8)
    m.read(v + 8, 8)
    found = m.mmu_counters()
    assert (found["walks"] - before["walks"], found["tlb_misses"] - before["tlb_misses"], found["tlb_hits"] - before["tlb_hits"]) == (1, 1, 1)


@pytest.mark.parametrize("pages", [1, 5, 100, 600])
def test_writes_of_a_vmalloc(pages: int) -> None:
    """n PTEs, one entry for each new table; the next one beside it none; vfree n and one for the guard page; kmalloc none at all."""
    m = mmtwin.boot(ram="128MiB", cpus=1)
    names = ("pte_writes", "table_writes", "table_pages", "tlb_flushes", "tlb_range_flushes", "sync_writes")

    def counted() -> list[int]:
        found = m.mmu_counters()
        return [found[name] for name in names]

    def change(before: list[int]) -> list[int]:
        return [b - a for a, b in zip(before, counted(), strict=True)]

    array = 2 if pages > 512 else 0  # the page array is then a vmalloc of its own, of 2 pages
    before = counted()
    v = m.vmalloc(pages * PAGE)
    tables = 1 + (1 if pages < 512 else 2)
    assert change(before) == [pages + array, tables, tables, 0, 0, 0]
    before = counted()
    w = m.vmalloc(5 * PAGE)
    assert change(before) == [5, 0, 0, 0, 0, 0]
    before = counted()
    m.vfree(v)
    assert change(before) == [pages + 1 + (array + 1 if array else 0), 0, 0, 0, 0, 0]
    before = counted()
    m.kfree(m.kmalloc(pages))
    assert change(before) == [0] * 6
    m.vfree(w)
    m.validate()


def test_requests_that_make_no_sense(m: Machine) -> None:
    p = m.kmalloc(8)
    for call in (
        lambda: m.read(-1, 1), lambda: m.read(1 << 64, 1), lambda: m.read(p, -1), lambda: m.read("p", 1), lambda: m.read(p, 1.5), lambda: m.read(p, 1, cpu=2),
        lambda: m.page_address(1 << 40), lambda: m.translate(p, "jump"), lambda: m.memory(p, 8, cpu=9), lambda: m.write(1 << 64, b"x"),
    ):  # fmt: skip
        with pytest.raises(RequestError):
            call()
    assert m.read(0, 0) == b""
    m.write(0, b"")


def test_high_memory() -> None:
    """i386 with more memory than the direct map reaches: kmap, contents through it, and what page_address says."""
    box = Box("i386", ram="1GiB", cpus=2)
    high = box.space.max_low_pfn + 5
    assert box.page_address(high) == 0
    with pytest.raises(NotDirectMapped, match="high memory"):
        box.phys_to_virt(high << 12)
    at = box.kmap(high)
    assert box.space.pkmap_base <= at < box.space.pkmap_base + 1024 * PAGE
    assert box.page_address(high) == box.kmap(high) == at
    box.write(at + 10, b"high")
    local = box.kmap_local_page(high, cpu=1)
    assert local == box.space.fixaddr_top - (68 + 16) * PAGE
    assert box.read(local + 10, 4, cpu=1) == b"high"
    box.kunmap_local(local, 1)
    with pytest.raises(PageFault):
        box.read(local + 10, 4, cpu=1)
    with pytest.raises(NotDirectMapped):
        box.virt_to_phys(at)
    for _ in range(2):
        box.kunmap(high)
    with pytest.raises(KmapError):
        box.kunmap(high)
    assert box.read(at + 10, 4) == b"high"  # mapped until the table wraps
    low = box.frame()
    assert box.kmap(low) == box.kmap_local_page(low) == box.page_address(low) == box.PAGE_OFFSET + low * PAGE
    box.kunmap(low)
    box.kunmap_local(box.page_address(low))
    assert box.virt_addr_valid(box.PAGE_OFFSET)
    assert not any(box.virt_addr_valid(address) for address in (0x1000, box.space.vmalloc_start, box.space.fixaddr_top - 8))
    v = box.space.vmalloc_start
    with pytest.raises(NotDirectMapped) as caught:
        box.virt_to_phys(v)
    assert caught.value.wrong == v - box.PAGE_OFFSET


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(list(KINDS)),
    st.lists(st.tuples(st.sampled_from(["direct", "map", "alias", "user", "high"]), st.integers(0, 6 * PAGE - 1), st.binary(max_size=2 * PAGE + 50), st.integers(0, 1)), max_size=10),
)  # fmt: skip
def test_reads_and_writes_round_trip(kind: str, steps: list[tuple[str, int, bytes, int]]) -> None:
    """Eight frames seen in the direct map, through a mapping in another order, an alias, a process's address space and kmap: always the same bytes."""
    box = Box(kind, ram="1GiB" if kind.startswith("i386") else "64MiB")
    box.mmu.config[0]["smap"] = 0
    frames = [box.frame() for _ in range(8)]
    order = [3, 1, 7, 0, 2, 6, 5, 4]
    high = box.space.max_low_pfn + 9 if box.space.bits == 32 else frames[7]
    root = box.process()
    start = box.space.vmalloc_start + (16 << 20)
    for n, which in enumerate(order):
        box.map(start + n * PAGE, frames[which])
        box.map(start + (100 + n) * PAGE, frames[which])
        box.map(0x400000 + n * PAGE, frames[which], 0x67 | (PAGE_NX if kind != "i386" else 0), root)
    for cpu in range(2):
        box.switch(root, cpu)
    plain, highs = bytearray(8 * PAGE), bytearray(PAGE)
    for where, at, data, cpu in steps:
        data = data[: 8 * PAGE - at]
        if where == "high":
            at, data = at % PAGE, data[: PAGE - at % PAGE]
            mapped = box.kmap(high, cpu)
            box.write(mapped + at, data, cpu)
            highs[at : at + len(data)] = data
            assert box.read(mapped, PAGE, 1 - cpu) == (highs if high not in frames else box.read(mapped, PAGE))
            box.kunmap(high)
            if high in frames:
                n = order.index(7)
                plain[n * PAGE + at : n * PAGE + at + len(data)] = data
        elif where == "direct":
            page, data = at // PAGE, data[: PAGE - at % PAGE]
            box.write(box.PAGE_OFFSET + frames[order[page]] * PAGE + at % PAGE, data, cpu)
            plain[at : at + len(data)] = data
        else:
            base = {"map": start, "alias": start + 100 * PAGE, "user": 0x400000}[where]
            box.write(base + at, data, cpu)
            plain[at : at + len(data)] = data
        for base in (start, start + 100 * PAGE, 0x400000):
            assert box.read(base, 8 * PAGE, cpu) == plain
            assert bytes(box.memory(base + at, 7 * PAGE - at, cpu)) == plain[at : 7 * PAGE]
    box.mmu.config[0]["smap"] = 1
    with pytest.raises(UserAccess):
        box.read(0x400000, 1)
    assert counters(box.mmu)["accessed_writes"] >= 0
