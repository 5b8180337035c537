"""A device that moves bytes by itself: the DMA API as drivers see it (kernel/dma/mapping.c, direct.c, direct.h of Linux 6.1).

It knows nothing of virtual addresses. What it is given is a physical address, or an I/O virtual one if an IOMMU stands between it and memory; `Device.read`
and `Device.write` are what its DMA engine does with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmtwin.dma.iommu import IommuDomain
from mmtwin.dma.types import (
    DMA_ATTR_NO_WARN,
    DMA_ATTR_SKIP_CPU_SYNC,
    DMA_BIDIRECTIONAL,
    DMA_FROM_DEVICE,
    DMA_MAPPING_ERROR,
    DMA_TO_DEVICE,
    U64,
    Coherent,
    Scatter,
    bit_mask,
)
from mmtwin.errors import AllocationFailure, DmaError, DmaFault, DmaMappingError, DmaOverflow, RequestError, SwiotlbDeadlock, SwiotlbFull, VmallocMapped
from mmtwin.gfp import GFP, GFP_KERNEL
from mmtwin.mm import swiotlb
from mmtwin.mm.swiotlb import IO_TLB_SHIFT, IO_TLB_SIZE
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE, get_order

if TYPE_CHECKING:
    from mmtwin.machine import Machine

ZONE_DMA_BITS = 24
START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
"""x86-64's second mapping of the first 512 MiB, from which the kernel's image is linked."""


class DmaDevice:
    """``struct device``, as far as DMA is concerned.

    :ivar dma_mask: highest address of streaming mappings, all ones below.
    :ivar coherent_dma_mask: likewise of coherent memory.
    :ivar bus_dma_limit: highest address that the bus between it and memory passes on; 0: no limit.
    :ivar min_align_mask: address bits that bouncing must preserve (``dma_set_min_align_mask``).
    :ivar seg_boundary: no segment crosses a multiple of this plus one.
    :ivar max_segment_size: bytes of the longest segment that joining makes.
    :ivar iommu: its IOMMU domain, or None.
    """

    def __init__(self, machine: Machine, name: str, dma_mask: int, coherent_mask: int, iommu: IommuDomain | None, driver: str, slot: int) -> None:
        self.machine, self.name, self.driver, self.iommu, self.slot = machine, name, driver, iommu, slot
        self.dma_mask = self.coherent_dma_mask = U64
        self.bus_dma_limit = 0
        self.min_align_mask, self.seg_boundary, self.max_segment_size = 0, 0xFFFFFFFF, 1 << 16
        self.dma_set_mask(dma_mask)
        self.dma_set_coherent_mask(coherent_mask)

    def __repr__(self) -> str:
        return f"<Device {self.name}: mask 0x{self.dma_mask:x}{', IOMMU' if self.iommu else ''}>"

    # Masks

    def _max_address(self) -> int:
        return (int(self.machine.state.config[0]["nr_frames"]) - 1) << PAGE_SHIFT

    def _limit(self, mask: int) -> int:
        """``min_not_zero(mask, bus_dma_limit)``."""
        return min(mask, self.bus_dma_limit) if self.bus_dma_limit and mask else mask or self.bus_dma_limit

    def dma_supported(self, mask: int) -> bool:
        """``dma_direct_supported``: a mask below 32 bits must cover all memory, or the first 16 MiB."""
        return self.iommu is not None or mask >= 0xFFFFFFFF or mask >= min(self._max_address(), (1 << ZONE_DMA_BITS) - 1)

    def dma_set_mask(self, mask: int) -> None:
        """``dma_set_mask``, in bits or as a mask. :raises DmaError: -EIO: no memory that this machine has could ever be given to such a device."""
        mask = bit_mask(mask)
        if not self.dma_supported(mask):
            raise DmaError(f"{self.driver} {self.name}: dma_set_mask(0x{mask:x}): -5 (EIO): it must reach ZONE_DMA, the first 16 MiB")
        self.dma_mask = mask

    def dma_set_coherent_mask(self, mask: int) -> None:
        """``dma_set_coherent_mask``. :raises DmaError: as `dma_set_mask`."""
        mask = bit_mask(mask)
        if not self.dma_supported(mask):
            raise DmaError(f"{self.driver} {self.name}: dma_set_coherent_mask(0x{mask:x}): -5 (EIO): it must reach ZONE_DMA, the first 16 MiB")
        self.coherent_dma_mask = mask

    def dma_set_mask_and_coherent(self, mask: int) -> None:
        """``dma_set_mask_and_coherent``. :raises DmaError: as `dma_set_mask`."""
        self.dma_set_mask(mask)
        self.dma_set_coherent_mask(mask)

    def dma_get_required_mask(self) -> int:
        """``dma_get_required_mask``: what would reach all memory without bouncing."""
        if self.iommu is not None:
            return 0xFFFFFFFF
        return (1 << self._max_address().bit_length()) - 1

    def dma_max_mapping_size(self) -> int:
        """``dma_max_mapping_size``: limited if mappings may have to be bounced."""
        tlb = self.machine.swiotlb
        if self.iommu is None and tlb is not None and (self._force_bounce() or self._limit(self.dma_mask) < self.dma_get_required_mask()):
            return swiotlb.max_mapping_size(self.min_align_mask)
        return U64

    # Coherent memory

    def dma_alloc_coherent(self, size: int, gfp: int = GFP_KERNEL, cpu: int = 0, attrs: int = 0) -> Coherent:
        """``dma_alloc_coherent``: whole pages that CPU and device see alike, cleared.

        Without an IOMMU they are adjacent page frames from the zone that the coherent mask names, and from lower ones if those given are too high. With one
        they may be scattered and are mapped with vmap, unless the request must not wait.

        :returns: the address, and the device's.
        :raises AllocationFailure: Linux returns NULL.
        """
        if size < 1:
            raise RequestError(f"dma_alloc_coherent({size}): expected at least 1 byte")
        gfp &= ~(GFP.DMA | GFP.DMA32 | GFP.HIGHMEM)
        m = self.machine
        if self.iommu is None:
            pages = -(-size // PAGE_SIZE)
            pfn = self._direct_alloc_pages(pages << PAGE_SHIFT, gfp & ~GFP.ZERO, cpu)
            self._clear(pfn << PAGE_SHIFT, pages << PAGE_SHIFT)
            found, physical = Coherent((pfn << PAGE_SHIFT) + m.PAGE_OFFSET, pfn << PAGE_SHIFT), pfn << PAGE_SHIFT
        else:
            address, dma, physical = self.iommu.alloc_coherent(self, size, gfp, cpu, attrs)
            found = Coherent(address, dma)
        if m.dma_debug is not None:
            m.dma_debug.alloc_coherent(self, size, found.dma, physical, cpu)
            m.dma_debug.raise_found(found.dma)
        return found

    def _direct_alloc_pages(self, size: int, gfp: int, cpu: int) -> int:
        """``__dma_direct_alloc_pages``: the mask's own zone first (``dma_direct_optimal_gfp_mask``), then GFP_DMA32, then GFP_DMA."""
        m, limit = self.machine, self._limit(self.coherent_dma_mask)
        gfp |= GFP.DMA if limit < 1 << ZONE_DMA_BITS else GFP.DMA32 if limit < 1 << 32 else 0
        order = get_order(size)
        while True:
            pfn = m.alloc_pages(order, int(gfp), cpu)
            if (pfn << PAGE_SHIFT) + size - 1 <= limit:
                return pfn
            m.free_pages(pfn, order, cpu)
            if "DMA32" in m.profile.zone_names and limit < U64 and not gfp & (GFP.DMA32 | GFP.DMA):
                gfp |= GFP.DMA32
            elif not gfp & GFP.DMA:
                gfp = gfp & ~GFP.DMA32 | GFP.DMA
            else:
                text = f"dma_alloc_coherent({size}): even ZONE_DMA gave 0x{pfn << PAGE_SHIFT:x}, above the coherent mask 0x{limit:x}: Linux returns NULL"
                raise AllocationFailure(text, -12, order, int(gfp), "failed")

    def _clear(self, physical: int, size: int) -> None:
        if self.machine._watch is not None:
            self.machine._watch.memory.fill(physical, size)

    def dma_free_coherent(self, size: int, address: int, dma: int, cpu: int = 0) -> None:
        """``dma_free_coherent``.

        :raises DmaError: interrupts are off on this CPU: the kernel warns, and frees.
        :raises BadFree: no such block.
        """
        m = self.machine
        warning = m._contexts and m.irqs_disabled(cpu)
        if m.dma_debug is not None:
            physical = m.vmalloc_to_pfn(address) << PAGE_SHIFT if m.is_vmalloc_addr(address) else address - m.PAGE_OFFSET
            m.dma_debug.free_coherent(self, size, dma, physical, cpu)
        if self.iommu is None:
            m.free_pages(dma >> PAGE_SHIFT, get_order(size), cpu)
        else:
            self.iommu.free_coherent(self, size, address, dma, cpu)
        if m.dma_debug is not None:
            m.dma_debug.raise_found()
        if warning:
            text = "dma_free_coherent: WARN_ON(irqs_disabled()): not for interrupts, or with interrupts off"
            raise DmaError(text, m.warning(cpu, "kernel/dma/mapping.c:527", ""))

    # Streaming mappings

    def dma_map_single(self, address: int, size: int, direction: int = DMA_BIDIRECTIONAL, cpu: int = 0, attrs: int = 0, *, force: bool = False) -> int:
        """``dma_map_single``: memory that is contiguous, by its address in the direct map, is the device's until it is unmapped.

        :param force: leave the checks out and do the arithmetic of ``__pa`` on whatever address it is: a vmalloc address gives a frame that is not its own.
        :returns: the address for the device.
        :raises VmallocMapped: a vmalloc address.
        :raises DmaMappingError: DMA_MAPPING_ERROR: the device does not reach it and it cannot be bounced.
        """
        m = self.machine
        self._check(size, direction)
        if force:
            return self._pa(address)
        if m.is_vmalloc_addr(address):
            line = f"{self.driver} {self.name}: rejecting DMA map of vmalloc memory"
            error = VmallocMapped(f"{line}: 0x{address:x}: its frames are scattered; map them one by one with dma_map_sg", self._warn(cpu, "dma-mapping", line))
            error.printed = m._once("vmalloc")
            raise error
        if m.dma_debug is not None:
            m.dma_debug.map_single(self, address, size, cpu)
        physical = self._pa(address) if m.dma_debug is not None else m.virt_to_phys(address)
        return self.dma_map_page(physical >> PAGE_SHIFT, physical % PAGE_SIZE, size, direction, cpu, attrs)

    def _pa(self, address: int) -> int:
        """``__pa``: arithmetic, without a look at what the address is (arch/x86/include/asm/page_64.h, page_32.h)."""
        offset = self.machine.PAGE_OFFSET
        if offset >> 32 == 0:
            return (address - offset) & 0xFFFFFFFF
        return (address - START_KERNEL_MAP if address >= START_KERNEL_MAP else address - offset) & U64

    def _check(self, size: int, direction: int) -> None:
        if size < 1:
            raise RequestError(f"mapping of {size} bytes: expected at least 1")
        if direction not in (0, 1, 2):
            raise RequestError(f"direction {direction}: BUG_ON(!valid_dma_direction(dir)); expected DMA_BIDIRECTIONAL, DMA_TO_DEVICE or DMA_FROM_DEVICE")

    def _warn(self, cpu: int, where: str, line: str) -> str:
        site = {"dma-mapping": "include/linux/dma-mapping.h:332", "direct": "kernel/dma/direct.h:103", "swiotlb": "kernel/dma/swiotlb.c:949"}[where]
        return self.machine.warning(cpu, site, line)

    def dma_map_page(self, pfn: int, offset: int, size: int, direction: int = DMA_BIDIRECTIONAL, cpu: int = 0, attrs: int = 0) -> int:
        """``dma_map_page``: as `dma_map_single`, by page frame, so also for high memory. `offset` may be beyond the first page."""
        self._check(size, direction)
        m, physical = self.machine, (pfn << PAGE_SHIFT) + offset
        try:
            dma = self._map_physical(physical, size, direction, cpu, attrs)
        except DmaMappingError:
            if m.dma_debug is not None:
                m.dma_debug.raise_found(DMA_MAPPING_ERROR)
            raise
        if m.dma_debug is not None:
            m.dma_debug.map_page(self, physical, size, direction, dma, bool(attrs & DMA_ATTR_SKIP_CPU_SYNC), cpu)
            m.dma_debug.raise_found(dma)
        return dma

    def _map_physical(self, physical: int, size: int, direction: int, cpu: int, attrs: int) -> int:
        if self.iommu is not None:
            return self.iommu.map(self, physical, size, direction, cpu)
        if self._force_bounce():
            return self._swiotlb_map(physical, size, cpu, attrs)
        if physical + size - 1 <= self._limit(self.dma_mask):
            return physical
        if self.machine.swiotlb is not None:
            return self._swiotlb_map(physical, size, cpu, attrs)
        line = f"{self.driver} {self.name}: DMA addr 0x{physical:016x}+{size} overflow (mask {self.dma_mask:x}, bus limit {self.bus_dma_limit:x})."
        error = DmaOverflow(line, self._warn(cpu, "direct", line))
        error.printed = self.machine._once("overflow")
        raise error

    def dma_mapping_error(self, dma: int) -> bool:
        """``dma_mapping_error``: with DMA debugging a driver must ask, or its unmap is reported."""
        if self.machine.dma_debug is not None:
            self.machine.dma_debug.mapping_error(self, dma)
        return dma == DMA_MAPPING_ERROR

    def dma_unmap_single(self, dma: int, size: int, direction: int = DMA_BIDIRECTIONAL, cpu: int = 0, attrs: int = 0) -> None:
        """``dma_unmap_single`` and ``dma_unmap_page``: the memory is the CPU's again; what was bounced from the device is copied back.

        :raises DmaApiError: with DMA debugging, it does not agree with the mapping.
        """
        self._check(size, direction)
        m = self.machine
        self._unmap(dma, size, direction, cpu, attrs)
        if m.dma_debug is not None:
            m.dma_debug.unmap_page(self, dma, size, direction, cpu)
            m.dma_debug.raise_found()

    dma_unmap_page = dma_unmap_single

    def _unmap(self, dma: int, size: int, direction: int, cpu: int, attrs: int) -> None:
        if self.iommu is not None:
            self.iommu.unmap(self, dma, size, cpu)
            return
        tlb = self.machine.swiotlb
        if tlb is not None and swiotlb.is_swiotlb_buffer(tlb, dma):
            if not attrs & DMA_ATTR_SKIP_CPU_SYNC and direction != DMA_TO_DEVICE:
                self._bounce(dma, size, to_device=False)
            swiotlb.swiotlb_release_slots(tlb, dma, self.min_align_mask)

    def dma_sync_single_for_cpu(self, dma: int, size: int, direction: int = DMA_BIDIRECTIONAL, cpu: int = 0) -> None:
        """``dma_sync_single_for_cpu``: the CPU may look at what the device wrote, without unmapping."""
        self._check(size, direction)
        self._sync(dma, size, direction, to_cpu=True)
        if self.machine.dma_debug is not None:
            self.machine.dma_debug.sync(self, dma, size, direction, True, cpu=cpu)
            self.machine.dma_debug.raise_found()

    def dma_sync_single_for_device(self, dma: int, size: int, direction: int = DMA_BIDIRECTIONAL, cpu: int = 0) -> None:
        """``dma_sync_single_for_device``: the device may look at what the CPU wrote."""
        self._check(size, direction)
        self._sync(dma, size, direction, to_cpu=False)
        if self.machine.dma_debug is not None:
            self.machine.dma_debug.sync(self, dma, size, direction, False, cpu=cpu)
            self.machine.dma_debug.raise_found()

    def _sync(self, dma: int, size: int, direction: int, to_cpu: bool) -> None:
        if self.iommu is None and swiotlb.is_swiotlb_buffer(self.machine.swiotlb, dma) and direction != (DMA_TO_DEVICE if to_cpu else DMA_FROM_DEVICE):
            self._bounce(dma, size, to_device=not to_cpu)

    # Scatter-gather

    def scatterlist(self, address: int, size: int) -> list[Scatter]:
        """The page frames behind a range of the vmalloc area or the direct map, one entry per page, as drivers build it with ``vmalloc_to_page``."""
        m, entries = self.machine, list[Scatter]()
        while size > 0:
            length = min(size, PAGE_SIZE - address % PAGE_SIZE)
            pfn = m.vmalloc_to_pfn(address) if m.is_vmalloc_addr(address) else m.virt_to_page(address)
            entries.append(Scatter(pfn, address % PAGE_SIZE, length))
            address, size = address + length, size - length
        return entries

    def dma_map_sg(self, entries: Sequence[Scatter], direction: int = DMA_BIDIRECTIONAL, cpu: int = 0, attrs: int = 0) -> int:
        """``dma_map_sg``: all entries or none. Their `dma_address` and `dma_length` are filled in; an IOMMU makes neighbours of them and joins them.

        :returns: how many segments the device is to use; the first of `entries` hold them.
        :raises DmaMappingError: one could not be mapped; Linux returns 0.
        """
        for entry in entries:
            self._check(entry.length, direction)
        if self.iommu is not None:
            mapped = self.iommu.map_sg(self, entries, direction, cpu)
        else:
            for i, entry in enumerate(entries):
                try:
                    entry.dma_address, entry.dma_length = self._map_physical(entry.physical, entry.length, direction, cpu, attrs), entry.length
                except DmaMappingError:
                    for done in entries[:i]:
                        self._unmap(done.dma_address, done.dma_length, direction, cpu, attrs | DMA_ATTR_SKIP_CPU_SYNC)
                    raise
            mapped = len(entries)
        debug = self.machine.dma_debug
        if debug is not None:
            segments = [(e.physical, e.dma_address, e.length) for e in entries]
            given = [(e.physical, e.dma_address, e.dma_length) for e in entries[:mapped]]
            debug.map_sg(self, segments, given, direction, bool(attrs & DMA_ATTR_SKIP_CPU_SYNC), cpu)
            debug.raise_found()
        return mapped

    def dma_unmap_sg(self, entries: Sequence[Scatter], direction: int = DMA_BIDIRECTIONAL, cpu: int = 0, attrs: int = 0) -> None:
        """``dma_unmap_sg``, with the entries that were mapped. :raises DmaApiError: with DMA debugging, they do not agree."""
        debug = self.machine.dma_debug
        if debug is not None:
            debug.unmap_sg(self, [(e.physical, e.dma_address, e.dma_length) for e in entries], direction, cpu)
        if self.iommu is not None:
            self.iommu.unmap_sg(self, entries, cpu)
        else:
            for entry in entries:
                self._unmap(entry.dma_address, entry.dma_length, direction, cpu, attrs)
        if debug is not None:
            debug.raise_found()

    def dma_sync_sg_for_cpu(self, entries: Sequence[Scatter], direction: int = DMA_BIDIRECTIONAL, cpu: int = 0) -> None:
        """``dma_sync_sg_for_cpu``."""
        self._sync_sg(entries, direction, cpu, to_cpu=True)

    def dma_sync_sg_for_device(self, entries: Sequence[Scatter], direction: int = DMA_BIDIRECTIONAL, cpu: int = 0) -> None:
        """``dma_sync_sg_for_device``."""
        self._sync_sg(entries, direction, cpu, to_cpu=False)

    def _sync_sg(self, entries: Sequence[Scatter], direction: int, cpu: int, *, to_cpu: bool) -> None:
        debug = self.machine.dma_debug
        for entry in entries:
            if entry.dma_length:
                self._sync(entry.dma_address, entry.length, direction, to_cpu)
                if debug is not None:
                    debug.sync(self, entry.dma_address, entry.dma_length, direction, to_cpu, len(entries), cpu)
        if debug is not None:
            debug.raise_found()

    # Bouncing

    def _force_bounce(self) -> bool:
        tlb = self.machine.swiotlb
        return tlb is not None and bool(tlb.config[0]["force_bounce"])

    def _swiotlb_map(self, physical: int, size: int, cpu: int, attrs: int) -> int:
        """``swiotlb_map``: the device gets a copy, in memory that it reaches."""
        tlb = self.machine.swiotlb
        assert tlb is not None
        index = int(swiotlb.swiotlb_find_slots(tlb, cpu, physical, size, 0, self.min_align_mask, self.seg_boundary))
        if index == swiotlb.ENDLESS:
            raise SwiotlbDeadlock(
                f"{self.driver} {self.name}: swiotlb_do_find_slots never returns: no free slots for {size} bytes whose address agrees with 0x{physical:x} in the "
                f"bits 0x{self.min_align_mask:x}: Linux 6.1 goes round for ever, with the lock held and interrupts off"
            )
        if index < 0:
            total, used = int(tlb.config[0]["nslabs"]), swiotlb.mem_used(tlb)
            line = f"{self.driver} {self.name}: swiotlb buffer is full (sz: {size} bytes), total {total} (slots), used {used} (slots)"
            error = SwiotlbFull(line, "" if attrs & DMA_ATTR_NO_WARN else line)
            error.printed = not attrs & DMA_ATTR_NO_WARN
            raise error
        dma = swiotlb.slot_addr(tlb, index) + (physical & self.min_align_mask & IO_TLB_SIZE - 1)
        self._bounce(dma, size, to_device=True)
        if dma + size - 1 > self._limit(self.dma_mask):
            swiotlb.swiotlb_release_slots(tlb, dma, self.min_align_mask)
            line = f"{self.driver} {self.name}: swiotlb addr 0x{dma:016x}+{size} overflow (mask {self.dma_mask:x}, bus limit {self.bus_dma_limit:x})."
            overflow = DmaOverflow(line, self._warn(cpu, "swiotlb", line))
            overflow.printed = self.machine._once("swiotlb overflow")
            raise overflow
        return dma

    def _bounce(self, dma: int, size: int, *, to_device: bool) -> None:
        """``swiotlb_bounce``: copies between a mapping's memory and its slots, never more than the mapping has."""
        m = self.machine
        tlb = m.swiotlb
        assert tlb is not None
        slot = tlb.slot[(dma - int(tlb.config[0]["start"])) >> IO_TLB_SHIFT]
        origin, room = int(slot["orig_addr"]), int(slot["alloc_size"])
        if origin == swiotlb.INVALID_PHYS_ADDR:
            return
        offset, kept = dma & IO_TLB_SIZE - 1, origin & self.min_align_mask & IO_TLB_SIZE - 1
        if offset < kept:
            raise DmaError(f"{self.driver} {self.name}: Access before mapping start detected. orig offset {kept}, requested offset {offset}.")
        offset -= kept
        text = ""
        if offset > room:
            raise DmaError(f"{self.driver} {self.name}: Buffer overflow detected. Allocation size: {room}. Mapping size: {size}+{offset}.")
        if size > room - offset:
            text = f"{self.driver} {self.name}: Buffer overflow detected. Allocation size: {room - offset}. Mapping size: {size}."
            size = room - offset
        if origin + offset + size <= m._memory_end:
            m._dma_copy(*((origin + offset, dma) if to_device else (dma, origin + offset)), size)
        if text:
            raise DmaError(text, text)

    # What the device does

    def write(self, dma: int, data: bytes) -> None:
        """The device writes memory, by the address that it was given; nobody checks whose memory it is.

        :raises DmaFault: its IOMMU has no such mapping, or nothing answers at this address. What came before was written.
        """
        done = 0
        for physical, n in self._translated(dma, len(data), write=True):
            self.machine._dma_write(physical, data[done : done + n])
            done += n

    def read(self, dma: int, n: int) -> bytes:
        """The device reads memory. :raises DmaFault: as `write`."""
        return b"".join([self.machine._dma_read(physical, length) for physical, length in self._translated(dma, n, write=False)])

    def _translated(self, dma: int, n: int, *, write: bool) -> list[tuple[int, int]]:
        """Physical pieces, page by page. A device has no address lines above its mask: higher bits are lost on the way."""
        found = list[tuple[int, int]]()
        end = self.machine._memory_end
        while n > 0:
            bus = dma & self.dma_mask
            length = min(n, PAGE_SIZE - bus % PAGE_SIZE)
            physical = bus if self.iommu is None else self.iommu.translate(bus, write)
            if physical < 0:
                reason = "0x05] PTE Write access is not set" if write else "0x06] PTE Read access is not set"
                fault = f"fault addr 0x{bus & -PAGE_SIZE:x} [fault reason {reason}"
                line = f"DMAR: [DMA {'Write' if write else 'Read'} NO_PASID] Request device [00:{self.slot:02x}.0] {fault}"
                raise DmaFault(line, line)
            if physical + length > end:
                raise DmaFault(f"{self.driver} {self.name}: nothing answers at 0x{physical:x}: memory ends at 0x{end:x}; reads give ones, writes are lost")
            found.append((physical, length))
            dma, n = dma + length, n - length
        return found

    def remove(self) -> None:
        """The driver lets go of the device. :raises DmaApiError: with DMA debugging, it left mappings behind."""
        if self.machine.dma_debug is not None:
            self.machine.dma_debug.device_released(self)
            self.machine.dma_debug.raise_found()
