"""What DMA debugging reports: the kernel's own sentences, and a published report."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

import mmtwin
from mmtwin import GFP_KERNEL, Machine
from mmtwin.dma import DMA_BIDIRECTIONAL, DMA_FROM_DEVICE, DMA_TO_DEVICE, Device, Scatter
from mmtwin.dma.debug import COHERENT, SG, SINGLE, DmaDebug
from mmtwin.errors import DmaApiError

REPORT_P16 = "xhci_hcd 0000:00:14.0: DMA-API: device driver maps memory from stack [addr=ffff88004c68b998]"
"""From a report of 4.3 (https://lore.kernel.org/linux-media/B5783C39-A66C-477E-95BA-3D8B92726E1F@gmail.com/); since 4.15 "DMA-API: " comes first."""


@pytest.fixture
def m() -> Machine:
    machine = mmtwin.boot(ram="64MiB", cpus=1)
    machine.dma_debug_init()
    return machine


@pytest.fixture
def dev(m: Machine) -> Device:
    return m.device("0000:00:14.0", 32, driver="xhci_hcd")


def found(call: Callable[[], object]) -> str:
    with pytest.raises(DmaApiError) as caught:
        call()
    start = "DMA-API: xhci_hcd 0000:00:14.0: device driver "
    assert str(caught.value).startswith(start)
    assert f"\n{caught.value}" in caught.value.report
    return str(caught.value).removeprefix(start)


def checked(dev: Device, address: int, size: int, direction: int = DMA_BIDIRECTIONAL) -> int:
    dma = dev.dma_map_single(address, size, direction)
    assert not dev.dma_mapping_error(dma)
    return dma


def test_a_clean_driver_hears_nothing(m: Machine, dev: Device) -> None:
    p = m.kmalloc(4096)
    for direction in (DMA_BIDIRECTIONAL, DMA_TO_DEVICE, DMA_FROM_DEVICE):
        dma = checked(dev, p, 4096, direction)
        if direction != DMA_TO_DEVICE:
            dev.dma_sync_single_for_cpu(dma + 100, 100, direction)
        dev.dma_unmap_single(dma, 4096, direction)
    memory = dev.dma_alloc_coherent(10000)
    dev.dma_free_coherent(10000, memory.address, memory.dma)
    entries = [Scatter(m.alloc_pages(0, GFP_KERNEL), 0, 4096) for _ in range(3)]
    dev.dma_map_sg(entries)
    dev.dma_sync_sg_for_device(entries)
    dev.dma_sync_sg_for_cpu(entries)
    dev.dma_unmap_sg(entries)
    dev.remove()
    debug = m.dma_debug
    assert debug is not None
    assert debug.error_count == 0
    assert debug.entries() == []
    assert debug.lines == {}


def test_memory_from_the_stack(m: Machine, dev: Device) -> None:
    """The published report, but for the address and the order of the first words; the mapping is made all the same."""
    stack = m.kmalloc(16384)
    with m.task("modprobe", 19330, stack=stack), pytest.raises(DmaApiError) as caught:
        dev.dma_map_single(stack + 0x3998, 16, DMA_TO_DEVICE)
    mine = str(caught.value).removeprefix("DMA-API: ")
    theirs = REPORT_P16.replace("DMA-API: ", "")
    assert re.sub("addr=[0-9a-f]{16}", "addr=ADDR", mine) == re.sub("addr=[0-9a-f]{16}", "addr=ADDR", theirs)
    assert f"addr={stack + 0x3998:016x}" in mine
    assert caught.value.address == m.virt_to_phys(stack) + 0x3998
    assert "PID: 19330 Comm: modprobe" in caught.value.report
    checked(dev, stack + 16384 - 8192, 16, DMA_TO_DEVICE)
    with m.task("other", 5, stack=m.kmalloc(16384)):
        checked(dev, stack, 16, DMA_TO_DEVICE)


def test_a_vmalloced_stack() -> None:
    """CONFIG_VMAP_STACK: an address on it is refused like all vmalloc memory; its pages, mapped by frame, are recognised."""
    m = mmtwin.boot(ram="64MiB", cpus=1)
    m.dma_debug_init()
    dev = m.device("0000:00:14.0", driver="xhci_hcd")
    frames = {m.space.vmalloc_start + i * 4096: m.alloc_pages(0, GFP_KERNEL) for i in range(4)}
    m.vmalloc_to_pfn = lambda address: frames[address]  # type: ignore[method-assign]
    with m.task("insmod", 80, stack=m.space.vmalloc_start):
        text = found(lambda: dev.dma_map_page(frames[m.space.vmalloc_start + 8192], 24, 100))
    assert text == f"maps memory from stack [probable addr={m.space.vmalloc_start + 8192 + 24:016x}]"


def test_what_does_not_agree_at_the_end(m: Machine, dev: Device) -> None:
    p = m.kmalloc(4096)
    dma = checked(dev, p, 100, DMA_TO_DEVICE)
    where = f"[device address=0x{dma:016x}]"
    assert (
        found(lambda: dev.dma_unmap_single(dma, 50, DMA_TO_DEVICE))
        == f"frees DMA memory with different size {where} [map size=100 bytes] [unmap size=50 bytes]"
    )
    twice = f"tries to free DMA memory it has not allocated {where} [size=100 bytes]"
    assert found(lambda: dev.dma_unmap_single(dma, 100, DMA_TO_DEVICE)) == twice
    checked(dev, p, 100, DMA_TO_DEVICE)
    text = f"frees DMA memory with different direction {where} [size=100 bytes] [mapped with DMA_TO_DEVICE] [unmapped with DMA_FROM_DEVICE]"
    assert found(lambda: dev.dma_unmap_single(dma, 100, DMA_FROM_DEVICE)) == text
    dev.dma_map_single(p, 100, DMA_TO_DEVICE)
    assert found(lambda: dev.dma_unmap_single(dma, 100, DMA_TO_DEVICE)) == f"failed to check map error{where} [size=100 bytes] [mapped as {SINGLE}]"
    assert found(lambda: dev.dma_unmap_single((1 << 64) - 1, 100)) == "tries to free an invalid DMA memory address"


def test_a_wrong_function(m: Machine, dev: Device) -> None:
    memory = dev.dma_alloc_coherent(4096)
    where = f"[device address=0x{memory.dma:016x}]"
    text = f"frees DMA memory with wrong function {where} [size=4096 bytes] [mapped as {COHERENT}] [unmapped as {SINGLE}]"
    assert found(lambda: dev.dma_unmap_single(memory.dma, 4096)) == text
    m.free_pages(memory.dma >> 12, 0)
    memory = dev.dma_alloc_coherent(4096)
    text = f"frees DMA memory with different CPU address {where} [size=4096 bytes] [cpu alloc address=0x{memory.dma:016x}] [cpu free address=0x{memory.dma + 64:016x}]"
    assert found(lambda: dev.dma_free_coherent(4096, memory.address + 64, memory.dma)) == text


def test_a_wrong_sync(m: Machine, dev: Device) -> None:
    p = m.kmalloc(4096)
    dma = checked(dev, p, 100, DMA_TO_DEVICE)
    end = f"[device address=0x{dma:016x}] [size=100 bytes] [mapped with DMA_TO_DEVICE] [synced with DMA_FROM_DEVICE]"
    assert found(lambda: dev.dma_sync_single_for_cpu(dma, 100, DMA_FROM_DEVICE)) == f"syncs DMA memory with different direction {end}"
    text = f"tries to sync DMA memory it has not allocated [device address=0x{dma + 4096:016x}] [size=8 bytes]"
    assert found(lambda: dev.dma_sync_single_for_cpu(dma + 4096, 8)) == text
    assert found(lambda: dev.dma_sync_single_for_cpu(dma, 200, DMA_TO_DEVICE)).startswith("tries to sync DMA memory it has not allocated")
    other = checked(dev, p + 2048, 100, DMA_FROM_DEVICE)
    assert found(lambda: dev.dma_sync_single_for_device(other, 8, DMA_TO_DEVICE)).startswith("syncs DMA memory with different direction")


def test_several_findings_of_one_call(m: Machine, dev: Device) -> None:
    dma = dev.dma_map_single(m.kmalloc(4096), 100, DMA_TO_DEVICE)
    with pytest.raises(DmaApiError) as caught:
        dev.dma_unmap_single(dma, 50, DMA_FROM_DEVICE)
    assert len(re.findall("^DMA-API: ", caught.value.report, re.M)) == 3
    assert caught.value.report.count("Mapped at:\n test_several_findings_of_one_call") == 3


def test_overlapping_mappings(m: Machine, dev: Device) -> None:
    """Two at once in one cache line, of which a device may write: reported; reading alone does not matter."""
    p = m.kmalloc(4096)
    checked(dev, p, 8, DMA_TO_DEVICE)
    checked(dev, p + 8, 8, DMA_TO_DEVICE)
    first = checked(dev, p + 16, 8, DMA_FROM_DEVICE)
    with pytest.raises(DmaApiError, match="cacheline tracking EEXIST, overlapping mappings aren't supported") as caught:
        dev.dma_map_single(p + 32, 8, DMA_FROM_DEVICE)
    second = caught.value.address
    assert second == m.virt_to_phys(p) + 32
    dev.dma_mapping_error(second)
    dev.dma_unmap_single(first, 8, DMA_FROM_DEVICE)
    dev.dma_unmap_single(second, 8, DMA_FROM_DEVICE)
    checked(dev, p + 16, 8, DMA_FROM_DEVICE)


def test_scatter_lists(m: Machine, dev: Device) -> None:
    entries = [Scatter(m.alloc_pages(0, GFP_KERNEL), 0, 4096) for _ in range(3)]
    dev.dma_map_sg(entries, DMA_FROM_DEVICE)
    assert found(lambda: dev.dma_unmap_sg(entries[:2], DMA_FROM_DEVICE)) == "frees DMA sg list with different entry count [map count=3] [unmap count=2]"
    debug = m.dma_debug
    assert debug is not None
    assert [entry.type for entry in debug.entries()] == [SG]
    with pytest.raises(DmaApiError, match=r"different entry count \[map count=3\] \[sync count=1\]"):
        dev.dma_sync_sg_for_cpu(entries[2:], DMA_FROM_DEVICE)


def test_invalid_areas(m: Machine, dev: Device) -> None:
    with pytest.raises(DmaApiError, match=r"maps memory from invalid area \[addr=0000000000400000\] \[len=16\]"):
        dev.dma_map_single(0x400000, 16)
    checked(dev, m.kmalloc(64), 16)


def test_a_driver_that_leaves(m: Machine, dev: Device) -> None:
    p = m.kmalloc(4096)
    dma = checked(dev, p, 100, DMA_TO_DEVICE)
    other = m.device("other")
    checked(other, p + 512, 100, DMA_TO_DEVICE)
    with pytest.raises(DmaApiError) as caught:
        dev.remove()
    assert (
        "DMA-API: xhci_hcd 0000:00:14.0: device driver has pending DMA allocations while released from device [count=1]\n"
        f"One of leaked entries details: [device address=0x{dma:016x}] [size=100 bytes] [mapped with DMA_TO_DEVICE] [mapped as single]\n"
    ) in caught.value.report
    assert "\n" not in str(caught.value)


def test_only_the_first_finding_is_printed(m: Machine, dev: Device) -> None:
    printed = []
    for _ in range(2):
        with pytest.raises(DmaApiError) as caught:
            dev.dma_unmap_single(0x1000, 8)
        printed.append(caught.value.printed)
    assert printed == [True, False]
    debug = m.dma_debug
    assert isinstance(debug, DmaDebug)
    assert debug.error_count == 2
    debug.show_all_errors = True
    with pytest.raises(DmaApiError) as caught:
        dev.dma_unmap_single(0x1000, 8)
    assert caught.value.printed


def test_the_dump(m: Machine, dev: Device) -> None:
    p = m.kmalloc(4096)
    dma = checked(dev, p, 100, DMA_TO_DEVICE)
    debug = m.dma_debug
    assert debug is not None
    assert debug.dump() == (f"0000:00:14.0 xhci_hcd single idx {dma >> 13} P={dma:x} N={dma >> 12:x} D={dma:x} L=64 DMA_TO_DEVICE dma map error checked\n")
