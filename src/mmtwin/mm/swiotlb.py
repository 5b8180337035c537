"""Bounce buffers: memory that every device reaches, lent out in slots of 2 KiB (kernel/dma/swiotlb.c of Linux 6.1).

The pool is cut into areas, one per CPU rounded up to a power of two, each with its own place where the next search begins. A request gets adjacent slots
that do not cross a segment of 128 slots, which is why a single mapping is at most 256 KiB.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmtwin._jit import inner, kernel
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE

IO_TLB_SHIFT = 11
IO_TLB_SIZE = 1 << IO_TLB_SHIFT
IO_TLB_SEGSIZE = 128
"""Slots of a segment."""
IO_TLB_DEFAULT_SIZE = 64 << 20
IO_TLB_MIN_SLABS = (1 << 20) >> IO_TLB_SHIFT
INVALID_PHYS_ADDR = -1
FULL, ENDLESS = -1, -2
"""No slots; and: the kernel's search never ends (`do_find_slots`)."""
ALL_ONES = -1
"""A boundary mask of ~0UL: no boundary."""

SLOT = np.dtype(
    [
        ("orig_addr", "i8"),  # the memory that this slot stands for, INVALID_PHYS_ADDR if none
        ("alloc_size", "i8"),  # bytes of the mapping from this slot on
        ("list", "i4"),  # free slots from here to the end of the segment; 0 in use
    ]
)
"""``struct io_tlb_slot``."""
AREA = np.dtype([("used", "i8"), ("index", "i8")])
"""``struct io_tlb_area``."""
SWIOTLB_CONFIG = np.dtype([("start", "i8"), ("nslabs", "i8"), ("nareas", "i8"), ("area_nslabs", "i8"), ("force_bounce", "i8")])
"""The rest of ``struct io_tlb_mem``."""


class Swiotlb(NamedTuple):
    """``struct io_tlb_mem``."""

    slot: npt.NDArray[np.void]
    area: npt.NDArray[np.void]
    config: npt.NDArray[np.void]


class SwiotlbSettings(NamedTuple):
    """What ``swiotlb=`` says, as ``setup_io_tlb_npages`` reads it.

    :param nslabs: slots of the pool.
    :param nareas: areas, 0 for as many as CPUs.
    """

    nslabs: int = IO_TLB_DEFAULT_SIZE >> IO_TLB_SHIFT
    nareas: int = 0
    force: bool = False
    disable: bool = False

    @classmethod
    def from_cmdline(cls, cmdline: str) -> SwiotlbSettings:
        """The last ``swiotlb=SLOTS,AREAS,force|noforce`` of a command line; each part may be missing."""
        found = cls()
        for word in cmdline.split():
            if not word.startswith("swiotlb="):
                continue
            parts = word.removeprefix("swiotlb=").split(",")
            if parts[0].isdigit():
                found = found._replace(nslabs=_align(int(parts.pop(0)), IO_TLB_SEGSIZE))
            elif not parts[0]:
                parts.pop(0)
            if parts and parts[0].isdigit():
                found = found._replace(nareas=int(parts.pop(0)))
            elif parts and not parts[0]:
                parts.pop(0)
            found = found._replace(force=found.force or parts == ["force"], disable=found.disable or parts == ["noforce"])
        return found

    def size(self, cpus: int) -> tuple[int, int]:
        """Slots and areas on a machine with `cpus` possible CPUs (``swiotlb_adjust_nareas``, ``round_up_default_nslabs``)."""
        nareas = 1 << (max(1, self.nareas or cpus) - 1).bit_length()
        nslabs = max(self.nslabs, IO_TLB_SEGSIZE * nareas)
        return 1 << (nslabs - 1).bit_length(), nareas


def _align(value: int, to: int) -> int:
    return -(-value // to) * to


def new_swiotlb(start: int, nslabs: int = IO_TLB_DEFAULT_SIZE >> IO_TLB_SHIFT, nareas: int = 1, force_bounce: bool = False) -> Swiotlb:
    """``swiotlb_init_io_tlb_mem``: an empty pool.

    :param start: physical address.
    :param nareas: a power of two.
    """
    nareas = min(nareas, max(1, nslabs // IO_TLB_SEGSIZE))
    slot = np.zeros(nslabs, dtype=SLOT)
    slot["orig_addr"] = INVALID_PHYS_ADDR
    slot["list"] = IO_TLB_SEGSIZE - np.arange(nslabs) % IO_TLB_SEGSIZE
    config = np.zeros(1, dtype=SWIOTLB_CONFIG)
    config[0] = (start, nslabs, nareas, nslabs // nareas, force_bounce)
    return Swiotlb(slot, np.zeros(nareas, dtype=AREA), config)


@inner
def nr_slots(size: int) -> int:
    """Slots for so many bytes."""
    return (size + IO_TLB_SIZE - 1) >> IO_TLB_SHIFT


@inner
def wrap_area_index(t: Any, index: int) -> int:
    """The index, or the area's first slot if it is beyond its end."""
    return 0 if index >= int(t.config[0]["area_nslabs"]) else index


@inner
def is_span_boundary(index: int, nr: int, shift: int, boundary_size: int) -> bool:
    """``iommu_is_span_boundary`` (include/linux/iommu-helper.h): the slots would cross a boundary that the device cannot."""
    return ((shift + index) & (boundary_size - 1)) + nr > boundary_size


@inner
def do_find_slots(t: Any, area_index: int, orig_addr: int, alloc_size: int, alloc_align_mask: int, min_align_mask: int, boundary_mask: int) -> int:
    """``swiotlb_do_find_slots``: adjacent free slots of one area, from where its last search ended; their first one, or FULL, or ENDLESS.

    The search ends where it began. It looks at every slot until the first that has the wanted address bits, and goes on in strides from there: if it began
    between two of those, it comes by its beginning only when it wraps to a slot that is on the way. 6.1 then searches for ever, with the area's lock held
    and interrupts off, unless slots are found (mended in 6.3, "swiotlb: fix the deadlock in swiotlb_do_find_slots").
    """
    config, area = t.config[0], t.area[area_index]
    area_nslabs = int(config["area_nslabs"])
    tbl_dma_addr = int(config["start"]) & boundary_mask
    max_slots = 1 << (64 - IO_TLB_SHIFT) if boundary_mask == ALL_ONES else nr_slots(boundary_mask + 1)
    nslots = nr_slots(alloc_size)
    offset = orig_addr & min_align_mask & (IO_TLB_SIZE - 1)
    alloc_align_mask |= IO_TLB_SIZE - 1
    iotlb_align_mask = min_align_mask & ~alloc_align_mask
    stride = (iotlb_align_mask >> IO_TLB_SHIFT) + 1
    if alloc_size >= PAGE_SIZE:
        stride = max(stride, stride << (PAGE_SHIFT - IO_TLB_SHIFT))
    stride = max(stride, (alloc_align_mask >> IO_TLB_SHIFT) + 1)
    if nslots > area_nslabs - int(area["used"]):
        return FULL
    slot_base = area_index * area_nslabs
    index = wrap_area_index(t, (int(area["index"]) + stride - 1) & -stride)
    wrap = index
    looked = 0
    while True:
        if looked > area_nslabs:
            return ENDLESS
        looked += 1
        slot_index = slot_base + index
        if orig_addr and (tbl_dma_addr + (slot_index << IO_TLB_SHIFT)) & iotlb_align_mask != orig_addr & iotlb_align_mask:
            index = wrap_area_index(t, index + 1)
        else:
            if not is_span_boundary(slot_index, nslots, nr_slots(tbl_dma_addr), max_slots) and int(t.slot[slot_index]["list"]) >= nslots:
                break
            index = wrap_area_index(t, index + stride)
        if index == wrap:
            return FULL
    for i in range(nslots):
        slot = t.slot[slot_index + i]
        slot["list"] = 0
        slot["alloc_size"] = alloc_size - (offset + (i << IO_TLB_SHIFT))
    count = 0
    i = slot_index - 1
    while i >= 0 and i % IO_TLB_SEGSIZE != IO_TLB_SEGSIZE - 1 and int(t.slot[i]["list"]):
        count += 1
        t.slot[i]["list"] = count
        i -= 1
    area["index"] = index + nslots if index + nslots < area_nslabs else 0
    area["used"] = int(area["used"]) + nslots
    return slot_index


@kernel
def swiotlb_find_slots(t: Any, cpu: int, orig_addr: int, alloc_size: int, alloc_align_mask: int, min_align_mask: int, boundary_mask: int) -> int:
    """``swiotlb_find_slots``: tries the CPU's own area, then the others in turn; remembers what the slots stand for.

    :param orig_addr: the memory to be bounced.
    :param alloc_size: bytes, without the offset that the device's alignment keeps.
    :param alloc_align_mask: alignment of the buffer's start beyond a slot, less one.
    :param min_align_mask: address bits that the device wants preserved.
    :param boundary_mask: a boundary that the device cannot cross, less one; ALL_ONES for none.
    :returns: the first slot, FULL or ENDLESS.
    """
    offset = orig_addr & min_align_mask & (IO_TLB_SIZE - 1)
    nareas = int(t.config[0]["nareas"])
    start = cpu & (nareas - 1)
    i = start
    while True:
        index = do_find_slots(t, i, orig_addr, alloc_size + offset, alloc_align_mask, min_align_mask, boundary_mask)
        if index >= 0:
            for k in range(nr_slots(alloc_size + offset)):
                t.slot[index + k]["orig_addr"] = orig_addr + (k << IO_TLB_SHIFT)
        if index != FULL:
            return index
        i = i + 1 if i + 1 < nareas else 0
        if i == start:
            return FULL


@kernel
def swiotlb_release_slots(t: Any, tlb_addr: int, min_align_mask: int) -> int:
    """``swiotlb_release_slots``: gives the slots of a mapping back and joins them with free neighbours of the segment. Returns how many slots.

    A mapping that was given back already has size 0, so that a second time does nothing; with an offset it frees a slot too many, as the kernel does.
    """
    config = t.config[0]
    offset = tlb_addr & min_align_mask & (IO_TLB_SIZE - 1)
    index = (tlb_addr - offset - int(config["start"])) >> IO_TLB_SHIFT
    nslots = nr_slots(int(t.slot[index]["alloc_size"]) + offset)
    area = t.area[index // int(config["area_nslabs"])]
    count = 0
    if index + nslots < (index + IO_TLB_SEGSIZE) // IO_TLB_SEGSIZE * IO_TLB_SEGSIZE:
        count = int(t.slot[index + nslots]["list"])
    i = index + nslots - 1
    while i >= index:
        count += 1
        slot = t.slot[i]
        slot["list"] = count
        slot["orig_addr"] = INVALID_PHYS_ADDR
        slot["alloc_size"] = 0
        i -= 1
    while i >= 0 and i % IO_TLB_SEGSIZE != IO_TLB_SEGSIZE - 1 and int(t.slot[i]["list"]):
        count += 1
        t.slot[i]["list"] = count
        i -= 1
    area["used"] = int(area["used"]) - nslots
    return nslots


def mem_used(t: Swiotlb) -> int:
    """Slots in use (``io_tlb_used`` in debugfs)."""
    return int(t.area["used"].sum())


def is_swiotlb_buffer(t: Swiotlb | None, physical: int) -> bool:
    """Whether an address lies in the pool."""
    if t is None:
        return False
    config = t.config[0]
    return int(config["start"]) <= physical < int(config["start"]) + (int(config["nslabs"]) << IO_TLB_SHIFT)


def slot_addr(t: Swiotlb, index: int) -> int:
    """Physical address of a slot."""
    return int(t.config[0]["start"]) + (index << IO_TLB_SHIFT)


def max_mapping_size(min_align_mask: int) -> int:
    """``swiotlb_max_mapping_size``: bytes of the largest mapping for a device that wants these address bits preserved."""
    return IO_TLB_SIZE * IO_TLB_SEGSIZE - (_align(min_align_mask, IO_TLB_SIZE) if min_align_mask else 0)


def validate_swiotlb(t: Swiotlb) -> str:
    """The first broken invariant, "" if there is none: each free slot counts the free slots up to the next used one or the segment's end."""
    lists, used = t.slot["list"], t.slot["orig_addr"] != INVALID_PHYS_ADDR
    expected = 0
    for i in range(len(lists) - 1, -1, -1):
        if i % IO_TLB_SEGSIZE == IO_TLB_SEGSIZE - 1:
            expected = 0
        expected = 0 if used[i] else expected + 1
        if int(lists[i]) != expected:
            return f"slot {i}: list {int(lists[i])}, expected {expected}"
    size = int(t.config[0]["area_nslabs"])
    for a, area in enumerate(t.area):
        count = int(used[a * size : (a + 1) * size].sum())
        if int(area["used"]) != count:
            return f"area {a}: {int(area['used'])} used, but {count} slots are"
    return ""
