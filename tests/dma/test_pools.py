"""DMA pools of a device: what they take from the machine, and the kernel's refusals."""

from __future__ import annotations

import re

import pytest

import mmtwin
from mmtwin import GFP_ATOMIC, Machine
from mmtwin.errors import AllocationFailure, DmaPoolError, RequestError, SleepingInAtomic
from tests.dma_fixture import runs


@pytest.fixture
def m() -> Machine:
    return mmtwin.boot(ram="64MiB", cpus=1)


def test_blocks_and_pages(m: Machine) -> None:
    dev = m.device("dma_probe")
    pool = dev.dma_pool_create("probe", 1000, 8)
    blocks = [dev.dma_pool_alloc(pool) for _ in range(9)]
    assert len({block.dma // 4096 for block in blocks}) == 3
    assert [block.dma % 4096 for block in blocks[:4]] == [0, 1000, 2000, 3000]
    assert all(m.virt_to_phys(block.address) == block.dma for block in blocks)
    assert dev.pools_show() == "poolinfo - 0.1\nprobe               9   12 1000  3\n"
    dev.dma_pool_free(pool, *blocks[1])
    assert dev.dma_pool_alloc(pool).dma % 4096 == 1000, "the newest page is looked at first"
    for block in blocks:
        dev.write(block.dma, b"x" * 1000)
    zeroed = dev.dma_pool_zalloc(pool)
    assert dev.read(zeroed.dma, 1000) == bytes(1000)


def test_what_a_pool_takes_and_gives_back(m: Machine) -> None:
    """A kmalloc-128 for the pool, a kmalloc-64 and a page per page of blocks; all of it comes back."""
    for size in (100, 40):
        m.kmalloc(size)
    dev = m.device("dma_probe")
    before = m.frame("objects").sort("address")
    pool = dev.dma_pool_create("probe", 512)
    blocks = [dev.dma_pool_alloc(pool) for _ in range(20)]
    taken = m.frame("objects").join(before, on="address", how="anti")
    assert sorted(taken["cache"].to_list()) == ["kmalloc-128", *["kmalloc-64"] * 3]
    for block in blocks:
        dev.dma_pool_free(pool, *block)
    dev.dma_pool_destroy(pool)
    assert m.frame("objects").sort("address").equals(before)
    m.validate()
    with pytest.raises(RequestError, match="destroyed"):
        dev.dma_pool_alloc(pool)


def test_the_kernels_refusals(m: Machine) -> None:
    """Its lines, but for the addresses, which it hides."""
    log = next(run.log for run in runs() if "dma_probe: case busy" in run.log)
    hide = re.compile(r"(0x)?[0-9a-f]{16}")
    theirs = [hide.sub("ADDR", line.replace("platform dma_probe: ", "")) for line in log if line.startswith("platform dma_probe: dma_pool")]
    dev = m.device("dma_probe")
    pool = dev.dma_pool_create("probe", 64)
    block = dev.dma_pool_alloc(pool)
    mine = []
    with pytest.raises(DmaPoolError) as caught:
        dev.dma_pool_free(pool, block.address, block.dma + (1 << 20))
    mine.append(str(caught.value))
    with pytest.raises(DmaPoolError) as caught:
        dev.dma_pool_destroy(pool)
    mine.append(str(caught.value))
    assert [hide.sub("ADDR", line.replace("platform dma_probe: ", "")) for line in mine] == theirs


def test_a_double_free_is_handed_out_twice(m: Machine) -> None:
    """As the kernel does without DMAPOOL_DEBUG; with it, it says so."""
    assert any("twice same=1" in run.lines for run in runs())
    dev = m.device("dma_probe")
    pool = dev.dma_pool_create("probe", 64)
    block = dev.dma_pool_alloc(pool)
    dev.dma_pool_free(pool, *block)
    with pytest.raises(DmaPoolError, match=r"dma_pool_free probe, dma 0x[0-9a-f]{16} already free$"):
        dev.dma_pool_free(pool, *block, debug=True)
    dev.dma_pool_free(pool, *block)
    assert dev.dma_pool_alloc(pool) == dev.dma_pool_alloc(pool) == block
    with pytest.raises(DmaPoolError, match=r"\(bad vaddr\)/0x"):
        dev.dma_pool_free(pool, block.address + 64, block.dma, debug=True)


def test_contexts(m: Machine) -> None:
    dev = m.device("dma_probe")
    pool = dev.dma_pool_create("probe", 64)
    with m.softirq():
        assert dev.dma_pool_alloc(pool, GFP_ATOMIC)
        with pytest.raises(SleepingInAtomic, match="dma_pool_alloc\\('probe'\\)"):
            dev.dma_pool_alloc(pool)


def test_no_memory(m: Machine) -> None:
    dev = m.device("dma_probe")
    pool = dev.dma_pool_create("probe", 1 << 22)
    header = m.kmalloc(40)
    m.kfree(header)
    with pytest.raises(AllocationFailure):
        while True:
            dev.dma_pool_alloc(pool)
    m.validate()
    with pytest.raises(RequestError, match="the kernel returns NULL"):
        dev.dma_pool_create("probe", 64, 3)
