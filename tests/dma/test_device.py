"""The DMA API of a device against a real kernel's answers, and the bytes that it moves."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmtwin
from mmtwin import GFP_ATOMIC, GFP_KERNEL, Machine
from mmtwin.dma import DMA_BIDIRECTIONAL, DMA_FROM_DEVICE, DMA_TO_DEVICE, Direction, Scatter
from mmtwin.dma.device import DmaDevice
from mmtwin.errors import AllocationFailure, DmaError, DmaFault, DmaOverflow, PoisonOverwritten, RequestError, SwiotlbDeadlock, SwiotlbFull, VmallocMapped
from mmtwin.mm import swiotlb
from mmtwin.mm.tables import PG_TABLE
from mmtwin.units import PAGE_SIZE
from tests.dma_fixture import Run, fields, runs

GIB = 1 << 30
DIRECTIONS = {"both": DMA_BIDIRECTIONAL, "to": DMA_TO_DEVICE, "from": DMA_FROM_DEVICE}


@pytest.fixture
def m() -> Machine:
    return mmtwin.boot(ram="512MiB", cpus=1)


@pytest.fixture
def big() -> Machine:
    """Memory above 4 GiB, and so bounce buffers."""
    return mmtwin.boot(ram="5GiB", cpus=2)


def machine_of(run: Run) -> Machine:
    machine = mmtwin.boot(ram=f"{run.words['mem']}iB", cpus=int(run.words["cpus"]))
    if "force" in run.cmdline:
        machine.swiotlb_attach(0x1D000000, run.cmdline)
    elif run.cmdline == "swiotlb=noforce":
        machine.swiotlb_attach(0, run.cmdline)
    return machine


ASKED = [run for run in runs() if any(line.startswith("mask ") for line in run.lines)]


@pytest.mark.parametrize("run", ASKED, ids=lambda run: f"{run.words['mem']}-{run.words['cpus']}cpu-{run.cmdline}")
def test_masks(run: Run) -> None:
    """Whether a mask is accepted, what would be needed, and the largest mapping: as the kernel says."""
    dev = machine_of(run).device("dma_probe")
    for line in run.lines:
        if line.startswith("mask "):
            f = fields(line)
            assert f["error"] == "0"
            dev.dma_set_mask_and_coherent(int(f["bits"]))
            assert f"{dev.dma_get_required_mask():x}" == f["required"]
            assert f"{dev.dma_max_mapping_size():x}" == f["max_mapping"], line


@pytest.mark.parametrize(
    "run", [run for run in runs() if any(line.startswith("coherent bits") for line in run.lines)], ids=lambda run: run.words["mem"] + run.cmdline
)
def test_coherent_memory_comes_from_the_kernels_zone(run: Run) -> None:
    """Six masks, ten sizes: the zone, the alignment of a whole block, cleared, and NULL above 4 MiB."""
    m, seen = machine_of(run), 0
    dev = m.device("dma_probe")
    for line in run.lines:
        if not line.startswith("coherent bits"):
            continue
        f, seen = fields(line), seen + 1
        dev.dma_set_mask_and_coherent(int(f["bits"]))
        if line.endswith("null"):
            with pytest.raises(AllocationFailure):
                dev.dma_alloc_coherent(int(f["size"]))
            continue
        size = int(f["size"])
        address, dma = dev.dma_alloc_coherent(size)
        assert m.virt_to_phys(address) == dma
        zone = next(z for z, row in enumerate(m.state.zone) if int(row["start_pfn"]) <= dma >> 12 < int(row["end_pfn"]))
        if f["bits"] != "28":  # whose zone depends on whether the first free block of DMA32 lies below 256 MiB
            assert zone == int(f["zone"]), line
        block = PAGE_SIZE << (-(-size // PAGE_SIZE) - 1).bit_length()
        assert dma % block == int(f["dma"], 16) % block == 0
        assert m.read(address, size) == bytes(size)
        m.write(address, b"\x5a" * 64)
        dev.dma_free_coherent(size, address, dma)
    assert seen == 60


def test_which_way_bytes_go_and_when() -> None:
    """The kernel's own trace of a mapping, both syncs and the unmap, for three directions."""
    for run in (run for run in ASKED if any(line.startswith("copies") for line in run.lines)):
        m = machine_of(run)
        dev = m.device("dma_probe", 64)
        p = m.kmalloc(4096) + 100
        for line in run.lines:
            if not line.startswith("copies "):
                continue
            f = fields(line)
            direction = DIRECTIONS[f["dir"]]
            m.write(p, b"cpu1")
            dma = dev.dma_map_single(p, 16, direction)
            assert dma != m.virt_to_phys(p)
            assert dev.read(dma, 4).decode() == f["mapped"]
            dev.write(dma, b"dev1")
            dev.dma_sync_single_for_cpu(dma, 16, direction)
            assert m.read(p, 4).decode() == f["for_cpu"]
            m.write(p, b"cpu2")
            dev.write(dma, b"dev2")
            dev.dma_sync_single_for_device(dma, 16, direction)
            assert dev.read(dma, 4).decode() == f["for_device"]
            m.write(p, b"cpu3")
            dev.write(dma, b"dev3")
            dev.dma_sync_single_for_cpu(dma + 8, 4, direction)
            dev.dma_unmap_single(dma, 16, direction)
            assert m.read(p, 4).decode() == f["unmapped"], line


def warned(run: Run, case: str) -> list[str]:
    """The kernel's lines of a case, without what is a machine's own: addresses, the place inside functions, the task."""
    log = run.log
    start = log.index(f"dma_probe: case {case}")
    end = next(i for i in range(start + 1, len(log)) if log[i].startswith("dma_probe: case"))
    return log[start + 1 : end]


def test_vmalloc_memory_is_refused(m: Machine) -> None:
    run = next(run for run in ASKED if "dma_probe: case vmalloc" in run.log)
    said = warned(run, "vmalloc")
    dev = m.device("dma_probe")
    with pytest.raises(VmallocMapped) as caught:
        dev.dma_map_single(m.space.vmalloc_start + PAGE_SIZE, 100, DMA_TO_DEVICE)
    report = caught.value.report.splitlines()
    assert report[1] == said[0] == "platform dma_probe: rejecting DMA map of vmalloc memory"
    assert said[1].split(" at ")[1].startswith(report[2].split(" at ")[1])
    assert str(caught.value).startswith(said[0])
    assert caught.value.printed
    with pytest.raises(VmallocMapped) as caught:
        dev.dma_map_single(m.space.vmalloc_start, 100)
    assert not caught.value.printed, "a warning that comes once"


@pytest.mark.parametrize("run", [run for run in ASKED if "dma_probe: case 24 bits" in run.log], ids=lambda run: run.words["mem"] + run.cmdline)
def test_memory_that_a_24_bit_device_cannot_reach(run: Run) -> None:
    """Without bounce buffers it is refused, with them the bounce buffer itself is out of reach: the kernel's lines, but for the address."""
    m = machine_of(run)
    dev = m.device("dma_probe", 24)
    address = m.kmalloc(4096)
    with pytest.raises(DmaOverflow) as caught:
        dev.dma_map_single(address, 100, DMA_TO_DEVICE)
    said, mine = warned(run, "24 bits"), caught.value.report.splitlines()
    hide = re.compile(r"0x[0-9a-f]{16}")
    assert hide.sub("ADDR", mine[1]) == hide.sub("ADDR", said[0])
    assert said[1].split(" at ")[1].startswith(mine[2].split(" at ")[1])
    assert str(caught.value) == mine[1]
    if m.swiotlb is not None:
        assert swiotlb.mem_used(m.swiotlb) == 0


def test_high_memory_for_a_32_bit_device(big: Machine) -> None:
    """Bounced with the boot's buffers; refused without. The distances between the bounce buffers are the kernel's."""
    with_pool, without = (run for run in ASKED if any(line.startswith("high phys") for line in run.lines))
    theirs = [int(fields(line)["dma"], 16) for line in with_pool.lines if line.startswith("high dma")]
    dev = big.device("dma_probe", 32)
    page = big.alloc_pages(8, GFP_KERNEL)
    assert page << 12 >= 4 * GIB
    mine = [dev.dma_map_page(page, 512 * i, 5000, DMA_TO_DEVICE) for i in range(4)]
    assert [dma - mine[0] for dma in mine] == [dma - theirs[0] for dma in theirs]
    assert all(dma < 4 * GIB for dma in mine)
    big.swiotlb_attach(0, "swiotlb=noforce")
    assert without.cmdline == "swiotlb=noforce"
    assert without.lines.count("high error") == 4
    with pytest.raises(DmaOverflow, match=r"^platform dma_probe: DMA addr 0x[0-9a-f]{16}\+5000 overflow \(mask ffffffff, bus limit 0\)\.$"):
        dev.dma_map_page(page, 0, 5000, DMA_TO_DEVICE)


def test_a_full_pool_says_so(m: Machine) -> None:
    dev = m.device("sda", 64, driver="ahci")
    m.swiotlb_attach(0x1000000, "swiotlb=512,force")
    address = m.kmalloc(1 << 20)
    taken = [dev.dma_map_single(address, 1 << 18, DMA_TO_DEVICE) for _ in range(4)]
    with pytest.raises(SwiotlbFull, match=r"^ahci sda: swiotlb buffer is full \(sz: 4096 bytes\), total 512 \(slots\), used 512 \(slots\)$"):
        dev.dma_map_single(address, 4096, DMA_TO_DEVICE)
    for dma in taken:
        dev.dma_unmap_single(dma, 1 << 18, DMA_TO_DEVICE)
    with pytest.raises(SwiotlbFull, match=r"sz: 262145 bytes\), total 512 \(slots\), used 0 \(slots\)"):
        dev.dma_map_single(address, (1 << 18) + 1, DMA_TO_DEVICE)


def test_vmalloc_memory_by_force_hits_another_frame() -> None:
    """``__pa`` of an address that is not in the direct map is another frame's address: behind the end of memory on x86-64, where nothing answers."""
    m = mmtwin.boot(ram="64MiB", cpus=1)
    dev = m.device("dma_probe", 64)
    address = m.space.vmalloc_start + PAGE_SIZE
    dma = dev.dma_map_single(address, 100, DMA_TO_DEVICE, force=True)
    assert dma == address - m.PAGE_OFFSET
    with pytest.raises(DmaFault, match="nothing answers at 0x"):
        dev.write(dma, b"lost")
    victim = m.kmalloc(4096)
    m.write(victim, b"not yours")
    narrow = m.device("old", 26)
    wrong = (dma & (1 << 26) - 1) // PAGE_SIZE
    narrow.write(dma, b"overwritten")
    assert m.read(m.phys_to_virt(wrong * PAGE_SIZE), 11) == b"overwritten", "address lines that the device does not have: a frame of someone else"


def test_a_device_with_forced_address_overwrites_whoever_is_there(m: Machine) -> None:
    """32-bit devices lose the upper bits: data for a frame above 4 GiB lands in the frame 4 GiB below it."""
    big = mmtwin.boot(ram="5GiB", cpus=1)
    dev = big.device("nic", 32)
    high = big.alloc_pages(0, GFP_KERNEL)
    assert high >= 1 << 20
    dma = dev.dma_map_single(big.phys_to_virt(high << 12), 64, force=True)
    dev.write(dma, b"packet")
    assert big.read(big.phys_to_virt(high << 12), 6) == bytes(6)
    assert big.read(big.phys_to_virt((high << 12) - 4 * GIB), 6) == b"packet"


def test_on_i386_it_hits_memory() -> None:
    """With the vmalloc area just behind the direct map, ``__pa`` gives a frame of high memory: the device's bytes land there, and not where they belong."""
    m = mmtwin.boot("linux-6.1-686", ram="2GiB", cpus=1)
    dev = m.device("old", 32)
    address = m.vmalloc(4096)
    dma = dev.dma_map_single(address, 100, DMA_FROM_DEVICE, force=True)
    assert dma == address - 0xC0000000
    assert dma >> 12 != m.vmalloc_to_pfn(address)
    dev.write(dma, b"gone astray")
    assert m.read(address, 11) == bytes(11)
    assert m.read(m.kmap(dma >> 12) + dma % PAGE_SIZE, 11) == b"gone astray"
    assert dev.dma_alloc_coherent(8192).dma + 8192 <= 896 << 20
    assert m.swiotlb is None


@pytest.mark.parametrize("translated", [False, True])
def test_scatter_gather_over_vmalloc_memory(m: Machine, translated: bool) -> None:
    """Page by page, with ``vmalloc_to_page``, the device reaches what is scattered."""
    dev = m.device("dma_probe", 32, iommu=translated)
    holes = [m.alloc_pages(0, GFP_KERNEL) for _ in range(64)]
    for pfn in holes[::2]:
        m.free_pages(pfn, 0)
    address, text = m.vmalloc(8 * PAGE_SIZE), bytes(range(250)) * 100
    m.write(address + 100, text)
    entries = dev.scatterlist(address + 100, len(text))
    assert len(entries) == 7
    assert [e.pfn for e in entries] == m.phys_pages(address, 7 * PAGE_SIZE)
    assert any(b.pfn != a.pfn + 1 for a, b in itertools.pairwise(entries))
    mapped = dev.dma_map_sg(entries, DMA_BIDIRECTIONAL)
    assert mapped == (1 if translated else 7)
    assert b"".join(dev.read(e.dma_address, e.dma_length) for e in entries[:mapped]) == text
    dev.write(entries[0].dma_address, b"from the device")
    dev.dma_unmap_sg(entries, DMA_BIDIRECTIONAL)
    assert m.read(address + 100, 15) == b"from the device"
    with pytest.raises(VmallocMapped):
        dev.dma_map_single(address, 100)
    p = m.kmalloc(8192)
    assert [e.pfn for e in dev.scatterlist(p, 8192)] == [m.virt_to_page(p), m.virt_to_page(p) + 1]


def test_a_list_is_mapped_wholly_or_not_at_all(big: Machine) -> None:
    dev = big.device("dma_probe", 32)
    tlb = big.swiotlb_attach(0x10000000, "swiotlb=256")
    assert tlb is not None
    high = big.alloc_pages(10, GFP_KERNEL)
    entries = [Scatter(high + 64 * i, 0, 1 << 18) for i in range(3)]
    with pytest.raises(SwiotlbFull):
        dev.dma_map_sg(entries, DMA_TO_DEVICE)
    assert swiotlb.mem_used(tlb) == 0
    assert dev.dma_map_sg(entries[:2], DMA_TO_DEVICE) == 2
    dev.dma_unmap_sg(entries[:2], DMA_TO_DEVICE)
    assert swiotlb.mem_used(tlb) == 0


def test_coherent_memory_falls_back_to_lower_zones(big: Machine) -> None:
    """33 bits reach Normal memory; for 25 bits DMA32 memory is tried first, is too high (the kernel's image lies below 32 MiB), and ZONE_DMA gives it."""
    dev = big.device("dma_probe", 33)
    assert dev.dma_alloc_coherent(4096).dma >= 4 * GIB
    dev.dma_set_coherent_mask(25)
    low = dev.dma_alloc_coherent(4096).dma
    assert low + 4095 < 1 << 25
    taken = []
    with pytest.raises(AllocationFailure):
        while True:
            taken.append(dev.dma_alloc_coherent(1 << 20))
    assert all(memory.dma + (1 << 20) <= 1 << 25 for memory in taken)
    assert {memory.dma >> 24 for memory in taken} == {0}


def test_a_mask_that_no_memory_fits(m: Machine) -> None:
    dev = m.device("dma_probe")
    with pytest.raises(DmaError, match=r"dma_set_mask\(0x7fffff\): -5 \(EIO\)"):
        dev.dma_set_mask(23)
    with pytest.raises(RequestError):
        dev.dma_set_mask(0)
    assert dev.dma_mask == 0xFFFFFFFF
    dev.bus_dma_limit = 0xFFFFFF
    with pytest.raises(DmaOverflow, match=r"\(mask ffffffff, bus limit ffffff\)"):
        dev.dma_map_single(m.kmalloc(4096), 64)
    assert dev.dma_alloc_coherent(100).dma < 1 << 24


def test_atomic_requests(m: Machine) -> None:
    """On x86 coherent memory needs no atomic pool (that is for memory encryption): GFP_ATOMIC goes to the page allocator."""
    dev = m.device("dma_probe")
    with m.hardirq():
        memory = dev.dma_alloc_coherent(4096, GFP_ATOMIC)
        assert dev.dma_map_single(m.kmalloc(100, GFP_ATOMIC), 100)
        with pytest.raises(DmaError, match="irqs_disabled"):
            dev.dma_free_coherent(4096, memory.address, memory.dma)
    with pytest.raises(mmtwin.DoubleFree):
        dev.dma_free_coherent(4096, memory.address, memory.dma)


def test_writing_memory_that_was_freed_is_found_by_poison() -> None:
    """The API has no check for freed memory: the mapping is given. What the device then writes is found when the object is next handed out."""
    m = mmtwin.boot(ram="64MiB", cpus=1, cmdline="slub_debug=FP")
    dev = m.device("cdc-acm")
    p = m.kmalloc(64)
    dma = dev.dma_map_single(p, 64, DMA_FROM_DEVICE)
    m.kfree(p)
    dev.write(dma + 8, b"late")
    with pytest.raises(PoisonOverwritten):
        while True:
            m.kmalloc(64)


def test_page_tables_are_not_safe_from_devices(m: Machine) -> None:
    """A device that writes to a page table's frame changes the mapping behind it."""
    tables = np.flatnonzero(m.state.page["flags"][: int(m.state.config[0]["nr_frames"])] & PG_TABLE)
    dev = m.device("dma_probe", 64)
    entry = dev.read(int(tables[0]) << 12, 8)
    assert int.from_bytes(entry, "little") == int(m.mmu.entry[int(m.state.page[int(tables[0])]["next"])][0]) % (1 << 64)


def test_bouncing_checks_sizes(m: Machine) -> None:
    dev = m.device("dma_probe", 64)
    m.swiotlb_attach(0x1000000, "swiotlb=512,force")
    p = m.kmalloc(4096)
    m.write(p, b"x" * 200)
    dma = dev.dma_map_single(p, 100, DMA_FROM_DEVICE)
    with pytest.raises(DmaError, match=r"Buffer overflow detected\. Allocation size: 100\. Mapping size: 200\."):
        dev.dma_sync_single_for_cpu(dma, 200, DMA_FROM_DEVICE)
    with pytest.raises(DmaError, match=r"Buffer overflow detected\. Allocation size: 100\. Mapping size: 8\+101\."):
        dev.dma_sync_single_for_cpu(dma + 101, 8, DMA_FROM_DEVICE)
    dev.dma_unmap_single(dma, 100, DMA_FROM_DEVICE)
    dev.dma_sync_single_for_cpu(dma, 100, DMA_FROM_DEVICE)
    dev.min_align_mask = 0xFFF
    dma = dev.dma_map_single(p + 300, 100, DMA_TO_DEVICE)
    assert dma % PAGE_SIZE == (p + 300) % PAGE_SIZE
    with pytest.raises(DmaError, match=r"Access before mapping start detected\. orig offset 300, requested offset 0\."):
        dev.dma_sync_single_for_device(dma - 300, 8, DMA_TO_DEVICE)


def test_a_search_that_hangs_the_kernel(m: Machine) -> None:
    dev = m.device("nvme0", 64, driver="nvme")
    dev.min_align_mask = 0xFFF
    m.swiotlb_attach(0x1000000, "swiotlb=512,force")
    page = m.alloc_pages(9, GFP_KERNEL)
    for _ in range(3):
        dev.dma_map_page(page, 0, 0x3F000)
    dev.dma_map_page(page, 0, 4096)
    with pytest.raises(SwiotlbDeadlock, match=r"^nvme nvme0: swiotlb_do_find_slots never returns"):
        dev.dma_map_page(page, 2048, 0x3F000)


def test_a_late_pool_has_4_mib_at_most(m: Machine) -> None:
    tlb = m.swiotlb_init_late(force=True)
    assert int(tlb.config[0]["nslabs"]) == 2048
    dev = m.device("dma_probe", 64)
    p = m.kmalloc(64)
    m.write(p, b"hello")
    dma = dev.dma_map_single(p, 64, DMA_TO_DEVICE)
    assert swiotlb.is_swiotlb_buffer(m.swiotlb, dma)
    assert dev.read(dma, 5) == b"hello"
    m.validate()


def test_requests_that_no_driver_can_make(m: Machine) -> None:
    dev = m.device("dma_probe")
    p = m.kmalloc(64)
    with pytest.raises(RequestError, match="BUG_ON"):
        dev.dma_map_single(p, 64, 3)
    with pytest.raises(RequestError):
        dev.dma_map_single(p, 0)
    with pytest.raises(RequestError):
        dev.dma_alloc_coherent(0)
    with pytest.raises(RequestError):
        dev.dma_map_single(0x1000, 64)
    with pytest.raises(DmaFault):
        dev.read(1 << 31, 4)
    assert repr(dev) == "<Device dma_probe: mask 0xffffffff>"
    assert isinstance(dev, DmaDevice)
    assert Direction(1).name == "DMA_TO_DEVICE"


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20000), st.binary(min_size=1, max_size=300), st.sampled_from([24, 32, 64]), st.booleans()), min_size=1, max_size=8),
)
def test_bytes_round_trip_whatever_stands_between(todo: list[tuple[int, bytes, int, bool]]) -> None:
    """Written by the device, read by the CPU, and the other way round: directly, bounced, or through an IOMMU."""
    m = mmtwin.boot(ram="64MiB", cpus=1, reserved=())
    m.swiotlb_attach(0x200000, "swiotlb=1024,force")
    buffer = m.kmalloc(32768)
    for offset, data, bits, translated in todo:
        dev = m.device("d", bits, iommu=translated)
        if bits == 24 and not translated:
            continue
        m.write(buffer + offset, bytes(len(data)))
        dma = dev.dma_map_single(buffer + offset, len(data), DMA_FROM_DEVICE)
        assert (dma == m.virt_to_phys(buffer + offset)) is False
        dev.write(dma, data)
        dev.dma_unmap_single(dma, len(data), DMA_FROM_DEVICE)
        assert m.read(buffer + offset, len(data)) == data
        dma = dev.dma_map_single(buffer + offset, len(data), DMA_TO_DEVICE)
        assert dev.read(dma, len(data)) == data
        dev.dma_unmap_single(dma, len(data), DMA_TO_DEVICE)
    assert swiotlb.mem_used(m.swiotlb) == 0  # type: ignore[arg-type]
