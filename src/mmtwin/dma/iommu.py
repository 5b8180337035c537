"""A device behind an IOMMU: I/O virtual addresses, and the table that leads from them to page frames (drivers/iommu/dma-iommu.c of Linux 6.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmtwin.dma.types import DMA_ATTR_FORCE_CONTIGUOUS, DMA_MAPPING_ERROR, Scatter
from mmtwin.errors import AllocationFailure, DmaError, DmaMappingError, RequestError
from mmtwin.gfp import GFP
from mmtwin.mm import iommu
from mmtwin.mm.iommu import IOMMU_READ, IOMMU_WRITE
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE, get_order

if TYPE_CHECKING:
    from mmtwin.dma.device import DmaDevice
    from mmtwin.machine import Machine

MASK32 = 0xFFFFFFFF
IOAPIC_RANGE = (0xFEE00000, 0xFEEFFFFF)
"""Where devices send their interrupts: never given out (drivers/iommu/intel/iommu.c)."""
VM_DMA_COHERENT = 0x10
HUGE_ORDER = 9
"""Coherent memory is taken in blocks of the sizes that the IOMMU has page-table entries for: 2 MiB, then 4 KiB."""
PROT = {0: IOMMU_READ | IOMMU_WRITE, 1: IOMMU_READ, 2: IOMMU_WRITE}


def _align(size: int) -> int:
    return -(-size // PAGE_SIZE) * PAGE_SIZE


class IommuDomain:
    """An address space for one or more devices.

    :ivar strict: ``iommu.strict=1``: an unmapped range is free at once. Otherwise it waits in its CPU's queue until 255 are waiting or 10 ms have gone by; this
        clock is `flush`. (What the IOMMU has cached of an unmapped range until then is not modelled: it faults at once.)
    :ivar aperture_end: the highest address that the IOMMU translates.
    :ivar forcedac: ``iommu.forcedac=1``: PCI devices are not given addresses below 4 GiB first.
    :ivar pci: the devices are PCI devices.
    :ivar table: page frame and permissions by I/O page.
    """

    def __init__(
        self,
        cpus: int = 1,
        *,
        strict: bool = False,
        windows: Sequence[tuple[int, int]] = (),
        aperture_end: int = (1 << 48) - 1,
        forcedac: bool = False,
        pci: bool = True,
    ) -> None:
        """An empty address space.

        :param windows: (first, last) address ranges of the host bridge's memory windows, which are never given out.
        """
        self.strict, self.aperture_end, self.forcedac, self.pci = strict, aperture_end, forcedac, pci
        self.iova = iommu.new_iova(cpus)
        self.table: dict[int, tuple[int, int]] = {}
        for first, last in (*windows, IOAPIC_RANGE):
            self.reserve(first, last)

    def reserve(self, first: int, last: int) -> None:
        """``reserve_iova``: addresses that are never given out."""
        while int(iommu.reserve_iova(self.iova, first >> PAGE_SHIFT, last >> PAGE_SHIFT)) == iommu.NO_ROOM:
            self.iova = iommu.grown(self.iova)

    def flush(self, cpu: int = 0) -> None:
        """The 10 ms timer of the flush queues, on CPU `cpu`."""
        iommu.fq_flush_timeout(self.iova, cpu)

    def alloc_iova(self, size: int, limit: int, cpu: int) -> int:
        """``iommu_dma_alloc_iova``: a range's first address, 0 if there is none; PCI devices get one below 4 GiB if there still is one."""
        limit, pages = min(limit, self.aperture_end), size >> PAGE_SHIFT
        if limit > MASK32 and self.pci and not self.forcedac:
            pfn = self._alloc(pages, MASK32 >> PAGE_SHIFT, cpu, False)
            if pfn:
                return pfn << PAGE_SHIFT
        return self._alloc(pages, limit >> PAGE_SHIFT, cpu, True) << PAGE_SHIFT

    def _alloc(self, pages: int, limit_pfn: int, cpu: int, flush: bool) -> int:
        pfn = iommu.NO_ROOM
        while pfn == iommu.NO_ROOM:
            pfn = int(iommu.alloc_iova_fast(self.iova, cpu, pages, limit_pfn, flush))
            if pfn == iommu.NO_ROOM:
                self.iova = iommu.grown(self.iova)
        return pfn

    def free_iova(self, dma: int, size: int, cpu: int, *, queued: bool) -> None:
        """``iommu_dma_free_iova``: at once, or through the flush queue."""
        if queued:
            iommu.queue_iova(self.iova, cpu, dma >> PAGE_SHIFT, size >> PAGE_SHIFT)
        else:
            iommu.free_iova_fast(self.iova, cpu, dma >> PAGE_SHIFT, size >> PAGE_SHIFT)

    def _enter(self, dma: int, physical: int, size: int, prot: int) -> None:
        for i in range(size >> PAGE_SHIFT):
            self.table[(dma >> PAGE_SHIFT) + i] = (physical >> PAGE_SHIFT) + i, prot

    def translate(self, dma: int, write: bool) -> int:
        """The physical address, -1: a fault."""
        entry = self.table.get(dma >> PAGE_SHIFT)
        if entry is None or not entry[1] & (IOMMU_WRITE if write else IOMMU_READ):
            return -1
        return entry[0] << PAGE_SHIFT | dma % PAGE_SIZE

    # Single mappings

    def map(self, dev: DmaDevice, physical: int, size: int, direction: int, cpu: int, limit: int | None = None) -> int:
        """``__iommu_dma_map``: whole pages, so that the device reaches all of the first and the last one.

        :raises DmaMappingError: no free range of this size below the device's mask.
        """
        offset = physical % PAGE_SIZE
        length = _align(size + offset)
        dma = self.alloc_iova(length, dev._limit(dev.dma_mask if limit is None else limit), cpu)
        if not dma:
            raise DmaMappingError(f"{dev.driver} {dev.name}: no free range of {length} bytes in its I/O address space: DMA_MAPPING_ERROR")
        self._enter(dma, physical - offset, length, PROT[direction])
        return dma + offset

    def unmap(self, dev: DmaDevice, dma: int, size: int, cpu: int) -> None:
        """``iommu_dma_unmap_page``.

        :raises DmaError: nothing is mapped there, or less than `size`: the kernel warns.
        """
        if dma >> PAGE_SHIFT not in self.table:
            text = f"{dev.driver} {dev.name}: iommu_dma_unmap_page: WARN_ON(!phys): nothing is mapped at 0x{dma:x}"
            raise DmaError(text, dev.machine.warning(cpu, "drivers/iommu/dma-iommu.c:1041", ""))
        self._unmap(dev, dma, size, cpu)

    def _unmap(self, dev: DmaDevice, dma: int, size: int, cpu: int) -> None:
        """``__iommu_dma_unmap``."""
        size = _align(size + dma % PAGE_SIZE)
        first = dma >> PAGE_SHIFT
        gone = 0
        while gone < size >> PAGE_SHIFT and self.table.pop(first + gone, None) is not None:
            gone += 1
        self.free_iova(first << PAGE_SHIFT, size, cpu, queued=not self.strict)
        if gone << PAGE_SHIFT != size:
            text = f"{dev.driver} {dev.name}: __iommu_dma_unmap: WARN_ON(unmapped != size): {gone << PAGE_SHIFT} of {size} bytes were mapped at 0x{dma:x}"
            raise DmaError(text, dev.machine.warning(cpu, "drivers/iommu/dma-iommu.c:691", ""))

    # Scatter-gather

    def map_sg(self, dev: DmaDevice, entries: Sequence[Scatter], direction: int, cpu: int) -> int:
        """``iommu_dma_map_sg``: one range for all; segments that meet at a page boundary become one, as far as the device's limits allow."""
        mask, total, lengths = dev.seg_boundary, 0, list[int]()
        for entry in entries:
            length = _align(entry.length + entry.offset % PAGE_SIZE)
            pad = (mask - total + 1) & mask
            if pad and pad < length - 1:
                lengths[-1] += pad
                total += pad
            lengths.append(length)
            total += length
        dma = self.alloc_iova(total, dev._limit(dev.dma_mask), cpu) if total else 0
        if not dma:
            raise DmaMappingError(f"{dev.driver} {dev.name}: dma_map_sg: -12 (ENOMEM): no free range of {total} bytes in its I/O address space")
        at = dma
        for entry, length in zip(entries, lengths, strict=True):
            self._enter(at, entry.physical & -PAGE_SIZE, length, PROT[direction])
            at += length
        return self._finalise_sg(dev, entries, lengths, dma)

    @staticmethod
    def _finalise_sg(dev: DmaDevice, entries: Sequence[Scatter], lengths: Sequence[int], dma: int) -> int:
        """``__finalise_sg``: the device's segments, in the first entries."""
        count = joined = 0
        for i, (entry, length) in enumerate(zip(entries, lengths, strict=True)):
            offset = entry.offset % PAGE_SIZE
            entry.dma_address, entry.dma_length = DMA_MAPPING_ERROR, 0
            if joined and not offset and dma & dev.seg_boundary and dev.max_segment_size - joined >= entry.length:
                joined += entry.length
            else:
                joined = entry.length
                entries[count].dma_address = dma + offset
                count += 1
            entries[count - 1].dma_length = joined
            dma += length
            if entry.length + offset < length:
                joined = 0
            assert i >= count - 1
        return count

    def unmap_sg(self, dev: DmaDevice, entries: Sequence[Scatter], cpu: int) -> None:
        """``iommu_dma_unmap_sg``: the whole range, from the first segment to the last."""
        used = [entry for entry in entries if entry.dma_length]
        if used:
            start = used[0].dma_address
            self._unmap(dev, start, used[-1].dma_address + used[-1].dma_length - start, cpu)

    # Coherent memory

    def alloc_coherent(self, dev: DmaDevice, size: int, gfp: int, cpu: int, attrs: int) -> tuple[int, int, int]:
        """``iommu_dma_alloc``: scattered pages behind one range and one vmap area; adjacent ones if the request must not wait.

        :returns: virtual address, the device's address, and the first page's physical one.
        """
        m = dev.machine
        pages = _align(size) >> PAGE_SHIFT
        gfp |= GFP.ZERO
        if not gfp & GFP.DIRECT_RECLAIM or attrs & DMA_ATTR_FORCE_CONTIGUOUS:
            pfn = m.alloc_pages(get_order(pages << PAGE_SHIFT), gfp, cpu)
            try:
                dma = self.map(dev, pfn << PAGE_SHIFT, size, 0, cpu, dev.coherent_dma_mask)
            except DmaMappingError as error:
                m.free_pages(pfn, get_order(pages << PAGE_SHIFT), cpu)
                raise AllocationFailure(f"{error}: Linux returns NULL", -12, 0, gfp, "failed") from None
            dev._clear(pfn << PAGE_SHIFT, pages << PAGE_SHIFT)
            return (pfn << PAGE_SHIFT) + m.PAGE_OFFSET, dma, pfn << PAGE_SHIFT
        pfns = self._alloc_pages(m, pages, gfp, cpu)
        dma = self.alloc_iova(pages << PAGE_SHIFT, dev._limit(dev.coherent_dma_mask), cpu)
        if not dma:
            self._free_pages(m, pfns, cpu)
            raise AllocationFailure(f"dma_alloc_coherent({size}): no free range in the I/O address space: Linux returns NULL", -12, 0, gfp, "failed")
        for i, pfn in enumerate(pfns):
            self._enter(dma + (i << PAGE_SHIFT), pfn << PAGE_SHIFT, PAGE_SIZE, PROT[0])
            dev._clear(pfn << PAGE_SHIFT, PAGE_SIZE)
        return int(m.vmap(pfns, VM_DMA_COHERENT, cpu=cpu)), dma, pfns[0] << PAGE_SHIFT

    @staticmethod
    def _alloc_pages(m: Machine, count: int, gfp: int, cpu: int) -> list[int]:
        """``__iommu_dma_alloc_pages``: the largest blocks that fit, without trying hard, down to single pages; each is split."""
        gfp = (gfp | GFP.NOWARN | GFP.HIGHMEM) & ~GFP.COMP
        pfns: list[int] = []
        try:
            while len(pfns) < count:
                huge = count - len(pfns) >= 1 << HUGE_ORDER
                try:
                    pfn = m.alloc_pages(HUGE_ORDER if huge else 0, gfp | GFP.NORETRY if huge else gfp, cpu)
                    order = HUGE_ORDER if huge else 0
                except AllocationFailure:
                    if not huge:
                        raise
                    pfn, order = m.alloc_pages(0, gfp, cpu), 0
                for i in range(1 << order):
                    m.state.page[pfn + i]["order"] = 0
                    m.state.page[pfn + i]["flags"] = m.state.page[pfn]["flags"]
                pfns.extend(range(pfn, pfn + (1 << order)))
        except AllocationFailure:
            IommuDomain._free_pages(m, pfns, cpu)
            raise
        return pfns

    @staticmethod
    def _free_pages(m: Machine, pfns: Sequence[int], cpu: int) -> None:
        for pfn in reversed(pfns):
            m.free_pages(pfn, 0, cpu)

    def free_coherent(self, dev: DmaDevice, size: int, address: int, dma: int, cpu: int) -> None:
        """``iommu_dma_free``."""
        m = dev.machine
        pfns = [self.table.get((dma >> PAGE_SHIFT) + i, (-1, 0))[0] for i in range(_align(size) >> PAGE_SHIFT)]
        if -1 in pfns:
            raise RequestError(f"dma_free_coherent: nothing of this size is mapped at 0x{dma:x}")
        self._unmap(dev, dma, size, cpu)
        if m.is_vmalloc_addr(address):
            m.vunmap(address, cpu=cpu)
            self._free_pages(m, pfns, cpu)
        else:
            m.free_pages(pfns[0], get_order(size), cpu)
