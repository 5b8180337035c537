"""Devices of a machine and the bounce buffers that they share: `Devices` is the part of `Machine` that makes and owns them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from mmtwin.dma.debug import DmaDebug
from mmtwin.dma.iommu import IommuDomain
from mmtwin.dma.pools import Device
from mmtwin.dma.types import bit_mask
from mmtwin.errors import AllocationFailure
from mmtwin.gfp import GFP, GFP_KERNEL
from mmtwin.mm.mmu import TABLE_MARK
from mmtwin.mm.swiotlb import IO_TLB_DEFAULT_SIZE, IO_TLB_MIN_SLABS, IO_TLB_SEGSIZE, IO_TLB_SHIFT, Swiotlb, SwiotlbSettings, new_swiotlb
from mmtwin.mm.tables import PG_TABLE, Pgdat
from mmtwin.profiles import Profile
from mmtwin.profiles.physical import Frames
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE, get_order

if TYPE_CHECKING:
    from mmtwin.machine import Machine

SLOT_BYTES, AREA_BYTES = 24, 24
"""sizeof(struct io_tlb_slot), sizeof(struct io_tlb_area)."""


class Devices:
    """Devices of a machine, its bounce buffers, and the switch of DMA debugging; mixed into `Machine`."""

    state: Pgdat
    profile: Profile
    cpus: int
    ram: tuple[Frames, ...]
    reserved: tuple[Frames, ...]
    PAGE_OFFSET: int

    _io_tlb: Swiotlb | None = None
    _io_tlb_decided = False
    _dma_debug: DmaDebug | None = None
    _devices = 0
    _printed_once: frozenset[str] = frozenset()

    def device(self, name: str, dma_mask: int = 32, *, coherent_mask: int | None = None, iommu: bool | IommuDomain = False, driver: str = "platform") -> Device:
        """A device that can do DMA.

        :param name: as reports name it.
        :param dma_mask: address bits that it can drive, or a mask.
        :param coherent_mask: likewise for coherent memory; None: the same.
        :param iommu: an IOMMU translates its addresses: True for a domain of its own, or one that it shares.
        :param driver: the driver's name (the bus's as long as it has none).
        """
        self._devices += 1
        domain = IommuDomain(self.cpus) if iommu is True else iommu or None
        return Device(
            cast("Machine", self), name, bit_mask(dma_mask), bit_mask(dma_mask if coherent_mask is None else coherent_mask), domain, driver, self._devices
        )

    @property
    def dma_debug(self) -> DmaDebug | None:
        """CONFIG_DMA_API_DEBUG: what is mapped; None: not compiled in (the default, as in Debian's kernels)."""
        return self._dma_debug

    def dma_debug_init(self) -> DmaDebug:
        """From now on every mapping is checked, as with CONFIG_DMA_API_DEBUG."""
        if self._dma_debug is None:
            self._dma_debug = DmaDebug()
        return self._dma_debug

    # Bounce buffers

    @property
    def swiotlb(self) -> Swiotlb | None:
        """The bounce buffers, or None. A machine with memory above 4 GiB got 64 MiB of them at boot, from what the kernel keeps below 4 GiB."""
        if not self._io_tlb_decided:
            self._io_tlb_decided = True
            pages = self.profile.swiotlb_pages
            below = [(start, min(end, 1 << 20)) for start, end in self.reserved if start < 1 << 20 and min(end, 1 << 20) - start >= pages]
            if pages and self.ram and self.ram[-1][1] > 1 << 20 and below:
                nslabs, nareas = SwiotlbSettings(pages << PAGE_SHIFT >> IO_TLB_SHIFT).size(self.cpus)
                self._io_tlb = new_swiotlb((below[-1][1] - pages) << PAGE_SHIFT, nslabs, nareas)
        return self._io_tlb

    def swiotlb_attach(self, start: int, cmdline: str = "", *, size: int | None = None) -> Swiotlb | None:
        """Bounce buffers at a physical address that the caller keeps free for them, as ``swiotlb=`` on the command line asks; None with ``noforce``.

        :param size: bytes, instead of what the command line says.
        """
        asked = SwiotlbSettings.from_cmdline(cmdline)
        if size is not None:
            asked = asked._replace(nslabs=max(1, size >> IO_TLB_SHIFT))
        nslabs, nareas = asked.size(self.cpus)
        self._io_tlb_decided = True
        self._io_tlb = None if asked.disable else new_swiotlb(start, nslabs, nareas, asked.force)
        return self._io_tlb

    def swiotlb_init_late(self, size: int = IO_TLB_DEFAULT_SIZE, *, force: bool = False, cpu: int = 0) -> Swiotlb:
        """``swiotlb_init_late``: bounce buffers from the page allocator, so of 4 MiB at most; then the tables of areas and slots.

        :param force: every mapping is bounced.
        :raises AllocationFailure: not even 1 MiB could be had.
        """
        machine = cast("Machine", self)
        nslabs = -(-(size >> IO_TLB_SHIFT) // IO_TLB_SEGSIZE) * IO_TLB_SEGSIZE
        order, pfn = get_order(nslabs << IO_TLB_SHIFT), -1
        gfp = GFP_KERNEL | GFP.DMA32 | GFP.NOWARN
        while (PAGE_SIZE >> IO_TLB_SHIFT) << order > IO_TLB_MIN_SLABS and pfn < 0:
            try:
                pfn = machine.alloc_pages(order, gfp, cpu)
            except AllocationFailure:
                order -= 1
        if pfn < 0:
            raise AllocationFailure("swiotlb_init_late: -12 (ENOMEM): no free block above 1 MiB below 4 GiB", -12, order, gfp, "failed")
        nslabs = (PAGE_SIZE >> IO_TLB_SHIFT) << order
        nareas = min(1 << (self.cpus - 1).bit_length(), nslabs // IO_TLB_SEGSIZE)
        machine.alloc_pages(get_order(AREA_BYTES * nareas), GFP_KERNEL | GFP.ZERO, cpu)
        machine.alloc_pages(get_order(SLOT_BYTES * nslabs), GFP_KERNEL | GFP.ZERO, cpu)
        self._io_tlb_decided, self._io_tlb = True, new_swiotlb(pfn << PAGE_SHIFT, nslabs, nareas, force)
        return self._io_tlb

    # What the layers below need of the machine

    def _dma_read(self, physical: int, n: int) -> bytes:
        """Bytes as a device sees them: by physical address, with no regard to whose they are."""
        machine = cast("Machine", self)
        if self._is_table(physical):
            return machine._load_special(physical | TABLE_MARK, n)
        if machine._watch is None:
            return bytes(n)
        machine._watch._lay_out(physical, n)
        return machine._watch.memory.read(physical, n)

    def _dma_write(self, physical: int, data: bytes) -> None:
        """Bytes that a device, or a copy to or from a bounce buffer, puts into memory."""
        machine = cast("Machine", self)
        if self._is_table(physical):
            machine._store_special(physical | TABLE_MARK, data)
        elif machine._watch is not None or any(data):
            watch = machine._watched()
            watch._lay_out(physical, len(data))
            watch.memory.write(physical, data)

    def _dma_copy(self, source: int, target: int, size: int) -> None:
        """``memcpy`` between physical addresses, page by page; what was never written is not copied as long as nothing is written at all."""
        machine, done = cast("Machine", self), 0
        while machine._watch is not None and done < size:
            n = min(size - done, PAGE_SIZE - (source + done) % PAGE_SIZE, PAGE_SIZE - (target + done) % PAGE_SIZE)
            self._dma_write(target + done, self._dma_read(source + done, n))
            done += n

    def _is_table(self, physical: int) -> bool:
        return bool(int(self.state.page[physical >> PAGE_SHIFT]["flags"]) & PG_TABLE)

    def _once(self, key: str) -> bool:
        """Whether a message that comes only once per boot comes now."""
        first = key not in self._printed_once
        self._printed_once |= {key}
        return first
