"""Physical memory: the firmware's memory map of a QEMU pc machine, and the zones that Linux makes of a memory map (x86-64).

Ranges are page frames, end exclusive, unless they are called bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mmtwin.profiles.profile import Profile
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE

RAM, RESERVED = 1, 2
"""E820 types."""
GIB = 1 << 30
BELOW_4G_SPLIT = 0xE0000000
BELOW_4G_RAM = 0xC0000000
"""QEMU's pc machine: from 3.5 GiB of RAM on, 3 GiB are below 4 GiB and the rest above (hw/i386/pc_piix.c, max-ram-below-4g)."""
ACPI_BYTES = 0x20000
"""Tables that the firmware keeps at the end of the memory below 4 GiB."""
HYPERTRANSPORT = (0xFD00000000, 0x300000000)
"""Start and size in bytes of the range that AMD processors reserve (QEMU's default processor models report it)."""
DMA_END, DMA32_END = 1 << 12, 1 << 20
"""Page frames at 16 MiB and 4 GiB."""

INITRD_MAX = 1 << 19
"""Page frame at 2 GiB: boot loaders put the initial RAM disk below (initrd_addr_max of the x86 boot protocol)."""

Frames = tuple[int, int]


class MemoryRange(NamedTuple):
    """One entry of a firmware memory map: bytes, and `RAM` or `RESERVED`."""

    start: int
    size: int
    type: int


class ZoneSpan(NamedTuple):
    """A zone's frames: `start`, `end` (exclusive) and how many of them are memory."""

    start: int
    end: int
    present: int


def qemu_pc_memory_map(ram_bytes: int) -> tuple[MemoryRange, ...]:
    """The memory map that Linux has after its own corrections (page 0 reserved, 640 KiB to 1 MiB removed) on a QEMU pc machine.

    Below 1012 GiB of addresses it is the map of QEMU 7 with its default processor. A larger machine is laid out as with an Intel
    processor: without the HyperTransport range, memory goes on without a hole.
    """
    low = ram_bytes if ram_bytes < BELOW_4G_SPLIT else BELOW_4G_RAM
    high = ram_bytes - low
    found = [
        MemoryRange(0, PAGE_SIZE, RESERVED),
        MemoryRange(PAGE_SIZE, 0x9FC00 - PAGE_SIZE, RAM),
        MemoryRange(0x9FC00, 0x400, RESERVED),
        MemoryRange(0xF0000, 0x10000, RESERVED),
        MemoryRange(0x100000, low - ACPI_BYTES - 0x100000, RAM),
        MemoryRange(low - ACPI_BYTES, ACPI_BYTES, RESERVED),
        MemoryRange(0xFFFC0000, 0x40000, RESERVED),
    ]
    if high:
        found.append(MemoryRange(4 * GIB, high, RAM))
    if 4 * GIB + high <= HYPERTRANSPORT[0]:
        found.append(MemoryRange(*HYPERTRANSPORT, RESERVED))
    return tuple(found)


def ram_frames(memory_map: Iterable[MemoryRange]) -> list[Frames]:
    """Whole page frames of memory, ascending, neighbours joined."""
    found: list[Frames] = []
    for start, size, kind in sorted(memory_map):
        first, end = (start + PAGE_SIZE - 1) >> PAGE_SHIFT, (start + size) >> PAGE_SHIFT
        if kind == RAM and first < end:
            found.append((first, end))
    return join(found)


def join(ranges: Iterable[Frames]) -> list[Frames]:
    """Sorted ranges without overlaps; ranges that touch become one."""
    found: list[Frames] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def subtract(ranges: Iterable[Frames], holes: Iterable[Frames]) -> list[Frames]:
    """What is in `ranges` but not in `holes`."""
    found, without = [], join(holes)
    for start, end in join(ranges):
        for low, high in without:
            if high <= start or low >= end:
                continue
            if start < low:
                found.append((start, low))
            start = max(start, high)
        if start < end:
            found.append((start, end))
    return found


def clip(ranges: Iterable[Frames], start: int, end: int) -> list[Frames]:
    """The parts of `ranges` between `start` and `end`."""
    return [(max(low, start), min(high, end)) for low, high in ranges if max(low, start) < min(high, end)]


def count(ranges: Iterable[Frames]) -> int:
    """Page frames in `ranges`."""
    return sum(end - start for start, end in ranges)


def take_top(ranges: Iterable[Frames], pages: int) -> list[Frames]:
    """The highest `pages` frames of `ranges`, as memblock allocates: from the top down. Fewer if there are not that many."""
    found = []
    for start, end in sorted(ranges, reverse=True):
        if pages <= 0:
            break
        taken = min(pages, end - start)
        found.append((end - taken, end))
        pages -= taken
    return sorted(found)


def zone_spans(ram: Sequence[Frames], limits: Sequence[int | None], zones: int) -> list[ZoneSpan]:
    """The zones of one node: each spans from the later of its lower limit and the first frame to the earlier of its upper limit and the end of memory.

    Holes inside are spanned but not present (mm/page_alloc.c, calculate_node_totalpages).

    :param limits: frame at which each zone ends, None for no limit; zones beyond are not populated.
    :param zones: how many zones to return; the rest is (0, 0, 0).
    """
    first, last = (ram[0][0], ram[-1][1]) if ram else (0, 0)
    found, lower = [], 0
    for limit in limits:
        upper = last if limit is None else limit
        start, end = max(lower, first), min(upper, last)
        found.append(ZoneSpan(start, end, count(clip(ram, start, end))) if start < end else ZoneSpan(0, 0, 0))
        lower = upper
    return found + [ZoneSpan(0, 0, 0)] * (zones - len(found))


def sections(ram: Iterable[Frames], section_order: int) -> list[Frames]:
    """Frames of the sparse-memory sections that hold any memory: the ones that have a ``struct page``."""
    size = 1 << section_order
    return join((start & -size, (end + size - 1) & -size) for start, end in ram)


def estimated_kernel_pages(spans: Iterable[ZoneSpan], struct_page_size: int) -> int:
    """``nr_kernel_pages``: present pages less the size of their memory map, as estimated early in boot (free_area_init_core)."""
    total = 0
    for start, end, present in spans:
        spanned = end - start
        mapped = present if spanned > present + (present >> 4) else spanned
        memmap = -(-mapped * struct_page_size // PAGE_SIZE)
        total += present - memmap if present >= memmap else present
    return total


def hash_table_pages(kernel_pages: int, scale: int) -> int:
    """Pages of a large system hash table of 8-byte buckets, one bucket per 2^scale bytes of memory (alloc_large_system_hash)."""
    entries = -(-kernel_pages // 256) * 256
    adapt = 1 << (36 - PAGE_SHIFT)
    while adapt < entries:
        adapt <<= 2
        scale += 1
    entries = max(entries >> (scale - PAGE_SHIFT), PAGE_SIZE // 8)
    return max(1, (1 << (entries - 1).bit_length()) * 8 // PAGE_SIZE)


class BootReserve(NamedTuple):
    """Frames that a boot takes before the buddy allocator has them: for good, or until late in boot."""

    kept: list[Frames]
    freed: list[Frames]


def boot_reserve(profile: Profile, ram: Sequence[Frames], spans: Sequence[ZoneSpan], cpus: int, initrd_pages: int = 0) -> BootReserve:
    """What the kernel reserves on a machine with this memory.

    The amounts are the kernel's: the first MiB, the image, the memory map (64 bytes a page in whole sections), the dentry and inode
    hash tables, the bounce buffer of machines with memory above 4 GiB, and a constant for the rest (per-CPU areas, node data, early
    page tables). With them `managed_pages` of every zone equals that of the recorded Debian guests with 128 MiB to 4 GiB and 1 to 4
    CPUs. The places inside memory are simpler than the kernel's: each kind is one run, from the top of memory down.
    """
    image = profile.image
    end = image.kept[-1][1]
    kept = [(0, 256), *image.kept, (end, end + image.near)]
    busy = [*kept, *image.freed]
    limit = 1 << 20
    if ram[-1][1] > limit:
        bounce = take_top(subtract(clip(ram, 0, limit), busy), profile.swiotlb_pages)
        kept += bounce
        busy += bounce
    kernel_pages = estimated_kernel_pages(spans, profile.struct_page_size)
    memmap = sum((e - s) * profile.struct_page_size for s, e in sections(ram, profile.section_order)) // PAGE_SIZE
    pages = memmap + hash_table_pages(kernel_pages, 13) + hash_table_pages(kernel_pages, 14) + image.top + image.top_per_cpu * (cpus - 1)
    if ram[-1][1] > limit:
        pages += profile.swiotlb_table_pages
    top = take_top(subtract(ram, busy), pages)
    initrd = take_top(subtract(clip(ram, 0, INITRD_MAX), [*busy, *top]), initrd_pages)
    return BootReserve(join([*kept, *top]), join([*image.freed, *initrd]))


def first_deferred(ram: Sequence[Frames], start: int, section_order: int) -> int | None:
    """The frame from which on the last zone's pages are initialised only after all CPUs are up, or None (mm/page_alloc.c, defer_init).

    It is the first section boundary by which more than a section of pages was initialised.
    """
    section = 1 << section_order
    initialised = 0
    for low, high in clip(ram, start, ram[-1][1]):
        boundary = (low + section - 1) & -section
        while boundary < high:
            if initialised + boundary - low + 1 > section:
                return boundary
            boundary += section
        initialised += high - low
    return None
