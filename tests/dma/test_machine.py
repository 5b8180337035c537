"""Devices and bounce buffers of a machine."""

from __future__ import annotations

import doctest
import pickle
from pathlib import Path

import pytest

import mmtwin
from mmtwin.dma import IommuDomain
from mmtwin.errors import RequestError
from mmtwin.mm import swiotlb
from tests.dma_fixture import runs


def test_a_machine_with_memory_above_4_gib_has_bounce_buffers() -> None:
    """64 MiB, as many areas as CPUs, below 4 GiB, in memory that the kernel keeps: as the recorded guest's log says."""
    log = next(run.log for run in runs() if run.words["mem"] == "5G" and not run.cmdline)
    assert any("(64MB)" in line for line in log)
    assert "software IO TLB: area num 2." in log
    m = mmtwin.boot(ram="5GiB", cpus=2)
    pool = m.swiotlb
    assert pool is not None
    config = pool.config[0]
    assert (int(config["nslabs"]), int(config["nareas"])) == (32768, 2)
    start, end = int(config["start"]) >> 12, (int(config["start"]) >> 12) + (1 << 14)
    assert end <= 1 << 20
    assert any(low <= start and end <= high for low, high in m.reserved)
    assert m.swiotlb is pool


def test_a_small_machine_has_none() -> None:
    m = mmtwin.boot(ram="512MiB", cpus=1)
    assert m.swiotlb is None
    assert not swiotlb.is_swiotlb_buffer(m.swiotlb, 0x1000000)


def test_asked_for_on_the_command_line() -> None:
    m = mmtwin.boot(ram="512MiB", cpus=3)
    pool = m.swiotlb_attach(0x10000000, "quiet swiotlb=512,force")
    assert pool is not None
    assert (len(pool.slot), len(pool.area), int(pool.config[0]["force_bounce"])) == (512, 4, 1)
    pool = m.swiotlb_attach(0x10000000, size=1 << 20)
    assert pool is not None
    assert len(pool.slot) == 512
    assert m.swiotlb_attach(0x10000000, "swiotlb=noforce") is None


def test_devices() -> None:
    m = mmtwin.boot(ram="64MiB", cpus=1)
    eth, usb = m.device("eth0", 64, coherent_mask=32), m.device("usb1", 0xFFFFFFFFFF, iommu=IommuDomain(1))
    assert (eth.dma_mask, eth.coherent_dma_mask, eth.slot) == ((1 << 64) - 1, 0xFFFFFFFF, 1)
    assert (usb.dma_mask, usb.slot, repr(usb)) == (0xFFFFFFFFFF, 2, "<Device usb1: mask 0xffffffffff, IOMMU>")
    with pytest.raises(RequestError, match="DMA mask -1"):
        m.device("no", -1)


def test_a_copy_has_its_own_state() -> None:
    m = mmtwin.boot(ram="64MiB", cpus=1)
    m.swiotlb_attach(0x1000000, "swiotlb=512,force")
    m.dma_debug_init()
    other = m.copy()
    assert other.dma_debug is None
    assert pickle.loads(pickle.dumps(m)).swiotlb is not None


def test_the_examples_in_the_documentation() -> None:
    file = Path(__file__).parent.parent.parent / "docs" / "dma.md"
    failed, tried = doctest.testfile(str(file), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried > 10
    assert not failed
