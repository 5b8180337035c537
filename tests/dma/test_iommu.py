"""Devices behind an IOMMU, against a real kernel and a real (QEMU's) device."""

from __future__ import annotations

import pytest

import mmtwin
from mmtwin import GFP_ATOMIC, GFP_KERNEL, Machine
from mmtwin.dma import DMA_BIDIRECTIONAL, DMA_FROM_DEVICE, DMA_TO_DEVICE, IommuDomain, Scatter
from mmtwin.errors import DmaError, DmaFault, DmaMappingError, RequestError
from mmtwin.units import PAGE_SIZE
from tests.dma_fixture import fields, runs

EDU = {run.cmdline: run for run in runs() if any(line.startswith("edu id") for line in run.lines)}


@pytest.fixture
def m() -> Machine:
    return mmtwin.boot(ram="64MiB", cpus=1)


def line_of(cmdline: str, start: str) -> dict[str, str]:
    return fields(next(line for line in EDU[cmdline].lines if line.startswith(start)))


@pytest.mark.parametrize("cmdline", list(EDU))
def test_scattered_frames_become_contiguous_for_the_device(m: Machine, cmdline: str) -> None:
    """Eight frames that are no neighbours: eight segments without an IOMMU, one with it; QEMU's device read across two of them what the twin's reads."""
    said = line_of(cmdline, "sg ")
    assert said["adjacent_frames"] == "0"
    translated = "intel_iommu" in cmdline
    dev = m.device("edu", 32, iommu=translated)
    frames = [m.alloc_pages(0, GFP_KERNEL) for _ in range(16)][::2]
    entries = [Scatter(pfn, 0, PAGE_SIZE) for pfn in frames]
    for i, pfn in enumerate(frames):
        m.write(m.phys_to_virt(pfn << 12), bytes((ord("a") + i,)) * PAGE_SIZE)
    assert dev.dma_map_sg(entries) == int(said["nents"])
    assert entries[0].dma_length == int(said["len"], 16)
    if translated:
        across = dev.read(entries[0].dma_address + 2 * PAGE_SIZE - 8, 16)
        dev.write(entries[0].dma_address + 100, across)
        read = next(line for line in EDU[cmdline].lines if line.startswith("edu read "))
        assert m.read(m.phys_to_virt(frames[0] << 12) + 100, 16).decode() == read.removeprefix("edu read ")
        assert entries[0].dma_address % (8 * PAGE_SIZE) == int(said["first"], 16) % (8 * PAGE_SIZE) == 0
    dev.dma_unmap_sg(entries)


def test_an_unmapped_address_faults_with_the_kernels_line(m: Machine) -> None:
    log = EDU["intel_iommu=on iommu.strict=1"].log
    theirs = [line for line in log if line.startswith("DMAR: [DMA ")]
    dev = m.device("edu", 32, iommu=True)
    address = int(theirs[0].split("fault addr 0x")[1].split()[0], 16)
    for call, line in ((lambda: dev.write(address + 100, b"x"), theirs[0]), (lambda: dev.read(address + 100, 16), theirs[1])):
        with pytest.raises(DmaFault) as caught:
            call()
        assert str(caught.value) == line


def test_a_mapping_allows_only_its_direction(m: Machine) -> None:
    dev = m.device("edu", 32, iommu=True)
    p = m.kmalloc(64)
    m.write(p, b"secret")
    dma = dev.dma_map_single(p, 64, DMA_TO_DEVICE)
    assert dev.read(dma, 6) == b"secret"
    with pytest.raises(DmaFault, match=r"\[DMA Write NO_PASID\] .*\[fault reason 0x05\] PTE Write access is not set"):
        dev.write(dma, b"x")
    dev.dma_unmap_single(dma, 64, DMA_TO_DEVICE)
    dma = dev.dma_map_single(p, 64, DMA_FROM_DEVICE)
    with pytest.raises(DmaFault, match=r"\[DMA Read NO_PASID\] .*\[fault reason 0x06\] PTE Read access is not set"):
        dev.read(dma, 1)


def test_whole_pages_are_mapped(m: Machine) -> None:
    """The device reaches what else is in the page: protection ends at page boundaries."""
    dev = m.device("edu", 32, iommu=True)
    p = m.kmalloc(64)
    dma = dev.dma_map_single(p, 64)
    assert dma % PAGE_SIZE == p % PAGE_SIZE
    assert len(dev.read(dma & -PAGE_SIZE, PAGE_SIZE)) == PAGE_SIZE
    with pytest.raises(DmaFault):
        dev.read((dma & -PAGE_SIZE) + PAGE_SIZE, 1)


@pytest.mark.parametrize("gfp", [GFP_KERNEL, GFP_ATOMIC])
def test_coherent_memory(m: Machine, gfp: int) -> None:
    """What may wait is put together from single frames with vmap, what may not is adjacent: as the kernel did."""
    said = line_of("intel_iommu=on iommu.strict=1", "coherent iova" if gfp == GFP_KERNEL else "coherent atomic")
    dev = m.device("edu", 32, iommu=True)
    m.drain()
    free = m.free
    memory = dev.dma_alloc_coherent(5 * PAGE_SIZE, gfp)
    assert m.is_vmalloc_addr(memory.address) == (said["vmalloc"] == "1")
    m.write(memory.address + 4 * PAGE_SIZE, b"end")
    assert dev.read(memory.dma + 4 * PAGE_SIZE, 3) == b"end"
    dev.write(memory.dma, b"start")
    assert m.read(memory.address, 5) == b"start"
    dev.dma_free_coherent(5 * PAGE_SIZE, memory.address, memory.dma)
    m.drain()
    if gfp == GFP_ATOMIC:
        assert m.free == free
    with pytest.raises(DmaFault):
        dev.read(memory.dma, 1)
    with pytest.raises(RequestError):
        dev.dma_free_coherent(5 * PAGE_SIZE, memory.address, memory.dma)


def test_unmapping_what_is_not_mapped(m: Machine) -> None:
    dev = m.device("edu", 32, iommu=IommuDomain(1, strict=True))
    p = m.kmalloc(4096)
    dma = dev.dma_map_single(p, 4096)
    with pytest.raises(DmaError, match="4096 of 8192 bytes were mapped"):
        dev.dma_unmap_single(dma, 8192)
    with pytest.raises(DmaError, match=r"WARN_ON\(!phys\)") as caught:
        dev.dma_unmap_single(dma, 4096)
    assert "drivers/iommu/dma-iommu.c" in caught.value.report


def test_an_unmapped_range_waits_for_the_flush(m: Machine) -> None:
    """Lazily, the range is given out again only after the queue is flushed; strictly, at once."""
    p = m.kmalloc(4096)
    lazy, strict = m.device("lazy", iommu=True), m.device("strict", iommu=IommuDomain(1, strict=True))
    for dev in (lazy, strict):
        first = dev.dma_map_single(p, 4096)
        dev.dma_unmap_single(first, 4096)
        second = dev.dma_map_single(p, 4096)
        assert (second == first) == (dev is strict)
        dev.dma_unmap_single(second, 4096)
    assert lazy.iommu is not None
    lazy.iommu.flush()
    assert lazy.dma_map_single(p, 4096) == second - PAGE_SIZE


def test_a_full_address_space(m: Machine) -> None:
    """A device with 24 bits has 16 MiB of I/O addresses."""
    dev = m.device("old", 24, iommu=True)
    page = m.alloc_pages(10, GFP_KERNEL)
    for _ in range(3):
        assert dev.dma_map_page(page, 0, 4 << 20) < 1 << 24
    with pytest.raises(DmaMappingError, match="no free range of 4194304 bytes"):
        dev.dma_map_page(page, 0, 4 << 20)
    with pytest.raises(DmaMappingError, match="dma_map_sg: -12"):
        dev.dma_map_sg([Scatter(page, 0, 4 << 20)])


def test_pci_devices_get_addresses_below_4_gib_first(m: Machine) -> None:
    page = m.alloc_pages(0, GFP_KERNEL)
    assert m.device("pci", 64, iommu=True).dma_map_page(page, 0, 4096) < 1 << 32
    assert m.device("platform", 64, iommu=IommuDomain(1, pci=False)).dma_map_page(page, 0, 4096) == (1 << 48) - PAGE_SIZE
    assert m.device("dac", 64, iommu=IommuDomain(1, forcedac=True)).dma_map_page(page, 0, 4096) == (1 << 48) - PAGE_SIZE


def test_segments_are_joined_as_far_as_the_device_allows(m: Machine) -> None:
    dev = m.device("edu", 32, iommu=True)
    frames = [m.alloc_pages(0, GFP_KERNEL) for _ in range(40)][::2]
    entries = [Scatter(pfn, 0, PAGE_SIZE) for pfn in frames]
    assert dev.dma_map_sg(entries) == 2, "64 KiB is the longest segment"
    assert [e.dma_length for e in entries[:3]] == [1 << 16, 1 << 14, 0]
    dev.dma_unmap_sg(entries)
    entries = [Scatter(frames[0], 100, PAGE_SIZE - 100), Scatter(frames[1], 0, 50), Scatter(frames[2], 0, PAGE_SIZE)]
    assert dev.dma_map_sg(entries, DMA_BIDIRECTIONAL) == 2, "a segment that ends inside a page ends the run"
    assert entries[0].dma_length == PAGE_SIZE - 50
    dev.dma_unmap_sg(entries)
    dev.seg_boundary = 2 * PAGE_SIZE - 1
    entries = [Scatter(pfn, 0, PAGE_SIZE) for pfn in frames[:4]]
    assert dev.dma_map_sg(entries) == 2
    assert all(e.dma_address // (2 * PAGE_SIZE) == (e.dma_address + e.dma_length - 1) // (2 * PAGE_SIZE) for e in entries[:2])


def test_two_devices_in_one_domain(m: Machine) -> None:
    domain = IommuDomain(1)
    one, two = m.device("a", iommu=domain), m.device("b", iommu=domain)
    p = m.kmalloc(64)
    dma = one.dma_map_single(p, 64)
    two.write(dma, b"shared")
    assert m.read(p, 6) == b"shared"
    assert one.dma_get_required_mask() == 0xFFFFFFFF
