"""What CONFIG_DMA_API_DEBUG checks: every mapping is written down, and each unmap and sync is compared with what was mapped (kernel/dma/debug.c of Linux 6.1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmtwin.contexts import callers
from mmtwin.dma.types import DMA_BIDIRECTIONAL, DMA_FROM_DEVICE, DMA_TO_DEVICE
from mmtwin.errors import DmaApiError
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from mmtwin.dma.device import DmaDevice

HASH_SIZE, HASH_FN_SHIFT = 16384, 13
L1_CACHE_SHIFT = 6
ACTIVE_CACHELINE_MAX_OVERLAP = 7
STACKTRACE_ENTRIES = 5
THREAD_SIZE = 16384
DIRECTIONS = ("DMA_BIDIRECTIONAL", "DMA_TO_DEVICE", "DMA_FROM_DEVICE", "DMA_NONE")
SINGLE, SG, COHERENT = "single", "scather-gather", "coherent"
"""The kernel's own words (and spelling)."""
NOT_APPLICABLE, NOT_CHECKED, CHECKED = "dma map error check not applicable", "dma map error not checked", "dma map error checked"


@dataclass(eq=False)
class Entry:
    """``struct dma_debug_entry``."""

    dev: DmaDevice
    type: str
    dev_addr: int
    size: int
    direction: int
    physical: int = 0
    sg_call_ents: int = 0
    sg_mapped_ents: int = 0
    map_err: str = NOT_APPLICABLE
    stack: list[str] = field(default_factory=list)

    def fits(self, ref: Entry) -> int:
        """How many of the four properties agree with `ref` (best-fit search)."""
        return sum((self.size == ref.size, self.type == ref.type, self.direction == ref.direction, self.sg_call_ents == ref.sg_call_ents))


class DmaDebug:
    """The table of mappings of one machine.

    :ivar error_count: findings, printed or not.
    :ivar show_all_errors: ``all_errors`` of debugfs; by default the kernel prints only the first.
    :ivar show_num_errors: ``num_errors``: how many more it prints.
    """

    def __init__(self) -> None:
        self.error_count = 0
        self.show_all_errors = False
        self.show_num_errors = 1
        self.buckets: dict[int, list[Entry]] = {}
        self.lines: dict[int, int] = {}
        self.found: list[DmaApiError] = []

    def entries(self) -> list[Entry]:
        """All mappings in the order of the hash table."""
        return [entry for number in sorted(self.buckets) for entry in self.buckets[number]]

    def dump(self) -> str:
        """``dump`` of /sys/kernel/debug/dma-api."""
        return "".join(
            f"{e.dev.name} {e.dev.driver} {e.type} idx {self._hash(e.dev_addr)} P={e.physical:x} N={e.physical >> PAGE_SHIFT:x} D={e.dev_addr:x} "
            f"L={e.size:x} {DIRECTIONS[e.direction]} {e.map_err}\n"
            for e in self.entries()
        )

    def error(self, dev: DmaDevice, entry: Entry | None, text: str, cpu: int = 0) -> None:
        """``err_printk``: a warning with the device's name, and where the mapping was made."""
        self.error_count += 1
        line = f"DMA-API: {dev.driver} {dev.name}: {text}"
        report = dev.machine.warning(cpu, "kernel/dma/debug.c", line)
        if entry is not None:
            report = "\n".join([report, "Mapped at:", *(f" {caller}" for caller in entry.stack)])
        error = DmaApiError(line.splitlines()[0], report)
        error.printed = self.show_all_errors or self.show_num_errors > 0
        if not self.show_all_errors and self.show_num_errors > 0:
            self.show_num_errors -= 1
        self.found.append(error)

    def raise_found(self, address: int | None = None) -> None:
        """Raises what the checks of one call found; the first one's text, all reports. :raises DmaApiError: something was found."""
        found, self.found = self.found, []
        if found:
            found[0].report = "\n".join(error.report for error in found)
            found[0].address = address
            raise found[0]

    # The hash table

    @staticmethod
    def _hash(address: int) -> int:
        return address >> HASH_FN_SHIFT & HASH_SIZE - 1

    @staticmethod
    def _best(candidates: list[Entry], ref: Entry) -> Entry | None:
        """The best fit; None if several fit and none perfectly (``__hash_bucket_find``)."""
        perfect = next((entry for entry in candidates if entry.fits(ref) == 4), None)
        return perfect if perfect is not None else candidates[0] if len(candidates) == 1 else None

    def _exact(self, ref: Entry) -> Entry | None:
        bucket = self.buckets.get(self._hash(ref.dev_addr), [])
        return self._best([entry for entry in bucket if entry.dev is ref.dev and entry.dev_addr == ref.dev_addr], ref)

    def _containing(self, ref: Entry) -> Entry | None:
        """The entry that contains a range, looked for from its bucket downwards (``bucket_find_contain``)."""
        address = ref.dev_addr
        for _ in range(min(HASH_SIZE, (ref.dev_addr >> HASH_FN_SHIFT) + 1)):
            bucket = self.buckets.get(self._hash(address), [])
            fits = [e for e in bucket if e.dev is ref.dev and e.dev_addr <= ref.dev_addr and e.dev_addr + e.size >= ref.dev_addr + ref.size]
            entry = self._best(fits, ref)
            if entry is not None:
                return entry
            address -= 1 << HASH_FN_SHIFT
        return None

    def _add(self, entry: Entry, skip_cpu_sync: bool, cpu: int) -> None:
        entry.stack = callers(STACKTRACE_ENTRIES)
        self.buckets.setdefault(self._hash(entry.dev_addr), []).append(entry)
        if entry.direction == DMA_TO_DEVICE:
            return
        line = entry.physical >> L1_CACHE_SHIFT
        if line in self.lines:
            self.lines[line] = min(self.lines[line] + 1, ACTIVE_CACHELINE_MAX_OVERLAP)
            if not skip_cpu_sync:
                self.error(entry.dev, entry, "cacheline tracking EEXIST, overlapping mappings aren't supported", cpu)
        else:
            self.lines[line] = 0

    def _remove(self, entry: Entry) -> None:
        self.buckets[self._hash(entry.dev_addr)].remove(entry)
        if not self.buckets[self._hash(entry.dev_addr)]:
            del self.buckets[self._hash(entry.dev_addr)]
        line = entry.physical >> L1_CACHE_SHIFT
        if entry.direction != DMA_TO_DEVICE and line in self.lines:
            self.lines[line] -= 1
            if self.lines[line] < 0:
                del self.lines[line]

    # The hooks

    def map_single(self, dev: DmaDevice, address: int, size: int, cpu: int) -> None:
        """``debug_dma_map_single``: the address must be in the direct map."""
        machine = dev.machine
        if machine.is_vmalloc_addr(address):
            self.error(dev, None, f"device driver maps memory from invalid area [addr={address:016x}] [len={size}]", cpu)
            self.error(dev, None, f"device driver maps memory from vmalloc area [addr={address:016x}] [len={size}]", cpu)
        elif not machine.virt_addr_valid(address):
            self.error(dev, None, f"device driver maps memory from invalid area [addr={address:016x}] [len={size}]", cpu)

    def map_page(self, dev: DmaDevice, physical: int, size: int, direction: int, dev_addr: int, skip_cpu_sync: bool, cpu: int) -> None:
        """``debug_dma_map_page``."""
        self._check_stack(dev, physical, cpu)
        self._check_illegal_area(dev, physical, size, cpu)
        self._add(Entry(dev, SINGLE, dev_addr, size, direction, physical, map_err=NOT_CHECKED), skip_cpu_sync, cpu)

    def unmap_page(self, dev: DmaDevice, dev_addr: int, size: int, direction: int, cpu: int) -> None:
        """``debug_dma_unmap_page``."""
        self._check_unmap(Entry(dev, SINGLE, dev_addr, size, direction), cpu)

    def map_sg(self, dev: DmaDevice, segments: list[tuple[int, int, int]], mapped: list[tuple[int, int, int]], direction: int, skip: bool, cpu: int) -> None:
        """``debug_dma_map_sg``: (physical, length) of all segments; (physical, device address, length) of the mapped ones."""
        for physical, _, length in segments:
            self._check_stack(dev, physical, cpu)
            self._check_illegal_area(dev, physical, length, cpu)
        for physical, dev_addr, length in mapped:
            self._add(Entry(dev, SG, dev_addr, length, direction, physical, len(segments), len(mapped)), skip, cpu)

    def unmap_sg(self, dev: DmaDevice, segments: list[tuple[int, int, int]], direction: int, cpu: int) -> None:
        """``debug_dma_unmap_sg``: (physical, device address, length) of each segment."""
        mapped = 0
        for i, (physical, dev_addr, length) in enumerate(segments):
            if mapped and i >= mapped:
                break
            ref = Entry(dev, SG, dev_addr, length, direction, physical, len(segments))
            if i == 0:
                entry = self._exact(ref)
                mapped = entry.sg_mapped_ents if entry is not None else 0
            self._check_unmap(ref, cpu)

    def alloc_coherent(self, dev: DmaDevice, size: int, dev_addr: int, physical: int, cpu: int) -> None:
        """``debug_dma_alloc_coherent``."""
        self._add(Entry(dev, COHERENT, dev_addr, size, DMA_BIDIRECTIONAL, physical), False, cpu)

    def free_coherent(self, dev: DmaDevice, size: int, dev_addr: int, physical: int, cpu: int) -> None:
        """``debug_dma_free_coherent``."""
        self._check_unmap(Entry(dev, COHERENT, dev_addr, size, DMA_BIDIRECTIONAL, physical), cpu)

    def mapping_error(self, dev: DmaDevice, dev_addr: int) -> None:
        """``debug_dma_mapping_error``: the driver looked whether the mapping failed."""
        for entry in self.buckets.get(self._hash(dev_addr), []):
            if entry.dev is dev and entry.dev_addr == dev_addr and entry.map_err == NOT_CHECKED:
                entry.map_err = CHECKED
                return

    def device_released(self, dev: DmaDevice) -> None:
        """``dma_debug_device_change``: the driver lets go of the device."""
        left = [entry for entry in self.entries() if entry.dev is dev]
        if left:
            last = left[-1]
            self.error(
                dev, last,
                f"device driver has pending DMA allocations while released from device [count={len(left)}]\n"
                f"One of leaked entries details: [device address=0x{last.dev_addr:016x}] [size={last.size} bytes] "
                f"[mapped with {DIRECTIONS[last.direction]}] [mapped as {last.type}]",
            )  # fmt: skip

    # The checks

    def _check_stack(self, dev: DmaDevice, physical: int, cpu: int) -> None:
        """``check_for_stack``: the task's stack is 16 KiB, in the vmalloc area (CONFIG_VMAP_STACK) or in the direct map."""
        machine = dev.machine
        stack = machine.context(cpu).task.stack
        if not stack:
            return
        if not machine.is_vmalloc_addr(stack):
            address = physical + machine.PAGE_OFFSET
            if stack <= address < stack + THREAD_SIZE:
                self.error(dev, None, f"device driver maps memory from stack [addr={address:016x}]", cpu)
            return
        for i in range(THREAD_SIZE // PAGE_SIZE):
            if machine.vmalloc_to_pfn(stack + i * PAGE_SIZE) == physical >> PAGE_SHIFT:
                address = stack + i * PAGE_SIZE + physical % PAGE_SIZE
                self.error(dev, None, f"device driver maps memory from stack [probable addr={address:016x}]", cpu)
                return

    def _check_illegal_area(self, dev: DmaDevice, physical: int, size: int, cpu: int) -> None:
        """``check_for_illegal_area``: text and read-only data of the kernel's image.

        The page's address in the direct map is compared with the image's: on x86-64 these are different mappings, so that the check never fires there.
        """
        if dev.machine.PAGE_OFFSET >> 32:
            return
        for start, end in dev.machine.profile.image.kept[:2]:
            if physical < end << PAGE_SHIFT and physical + size > start << PAGE_SHIFT:
                address = physical + dev.machine.PAGE_OFFSET
                self.error(dev, None, f"device driver maps memory from kernel text or rodata [addr={address:016x}] [len={size}]", cpu)
                return

    def _check_unmap(self, ref: Entry, cpu: int) -> None:
        """``check_unmap``."""
        dev, where = ref.dev, f"[device address=0x{ref.dev_addr:016x}]"
        entry = self._exact(ref)
        if entry is None:
            if ref.dev_addr == (1 << 64) - 1:
                self.error(dev, None, "device driver tries to free an invalid DMA memory address", cpu)
            else:
                self.error(dev, None, f"device driver tries to free DMA memory it has not allocated {where} [size={ref.size} bytes]", cpu)
            return
        start = "device driver frees DMA"
        if ref.size != entry.size:
            self.error(dev, entry, f"{start} memory with different size {where} [map size={entry.size} bytes] [unmap size={ref.size} bytes]", cpu)
        if ref.type != entry.type:
            text = f"{start} memory with wrong function {where} [size={ref.size} bytes] [mapped as {entry.type}] [unmapped as {ref.type}]"
            self.error(dev, entry, text, cpu)
        elif entry.type == COHERENT and ref.physical != entry.physical:
            text = (
                f"{start} memory with different CPU address {where} [size={ref.size} bytes] "
                f"[cpu alloc address=0x{entry.physical:016x}] [cpu free address=0x{ref.physical:016x}]"
            )
            self.error(dev, entry, text, cpu)
        if ref.sg_call_ents and ref.type == SG and ref.sg_call_ents != entry.sg_call_ents:
            self.error(dev, entry, f"{start} sg list with different entry count [map count={entry.sg_call_ents}] [unmap count={ref.sg_call_ents}]", cpu)
        if ref.direction != entry.direction:
            text = (
                f"{start} memory with different direction {where} [size={ref.size} bytes] "
                f"[mapped with {DIRECTIONS[entry.direction]}] [unmapped with {DIRECTIONS[ref.direction]}]"
            )
            self.error(dev, entry, text, cpu)
        if entry.map_err == NOT_CHECKED:
            self.error(dev, entry, f"device driver failed to check map error{where} [size={ref.size} bytes] [mapped as {entry.type}]", cpu)
        self._remove(entry)

    def sync(self, dev: DmaDevice, dev_addr: int, size: int, direction: int, to_cpu: bool, sg_call_ents: int = 0, cpu: int = 0) -> None:
        """``check_sync``."""
        ref = Entry(dev, SG if sg_call_ents else SINGLE, dev_addr, size, direction, sg_call_ents=sg_call_ents)
        entry = self._containing(ref)
        where = f"[device address=0x{dev_addr:016x}]"
        if entry is None:
            self.error(dev, None, f"device driver tries to sync DMA memory it has not allocated {where} [size={size} bytes]", cpu)
            return
        if entry.direction == DMA_BIDIRECTIONAL:
            return
        end = f"{where} [size={entry.size} bytes] [mapped with {DIRECTIONS[entry.direction]}] [synced with {DIRECTIONS[direction]}]"
        if direction != entry.direction:
            self.error(dev, entry, f"device driver syncs DMA memory with different direction {end}", cpu)
        if to_cpu and entry.direction != DMA_FROM_DEVICE and direction != DMA_TO_DEVICE:
            self.error(dev, entry, f"device driver syncs device read-only DMA memory for cpu {end}", cpu)
        if not to_cpu and entry.direction != DMA_TO_DEVICE and direction != DMA_FROM_DEVICE:
            self.error(dev, entry, f"device driver syncs device write-only DMA memory to device {end}", cpu)
        if sg_call_ents and entry.sg_call_ents != sg_call_ents:
            self.error(
                dev, entry, f"device driver syncs DMA sg list with different entry count [map count={entry.sg_call_ents}] [sync count={sg_call_ents}]", cpu
            )
