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


def estimated_kernel_pages(spans: Iterable[ZoneSpan], profile: Profile, highmem: bool = False) -> int:
    """``nr_kernel_pages``: present pages less the size of their memory map, as estimated early in boot (free_area_init_core).

    Memory outside the direct map does not count, but its memory map does, if it leaves half.

    :param highmem: count HighMem too: ``nr_all_pages``.
    """
    total = 0
    for z, (start, end, present) in enumerate(spans):
        spanned = end - start
        mapped = present if not profile.flatmem and spanned > present + (present >> 4) else spanned
        memmap = -(-mapped * profile.struct_page_size // PAGE_SIZE)
        if profile.highmem_zone < 0 or z < profile.highmem_zone:
            total += present - memmap if present >= memmap else present
        elif highmem:
            total += present
        elif total > 2 * memmap:
            total -= memmap
    return total


def memory_map_pages(profile: Profile, ram: Sequence[Frames]) -> int:
    """Pages of all ``struct page``: of whole sections, or without sparse memory of one run of whole blocks of the largest order (alloc_node_mem_map)."""
    if profile.flatmem:
        block = 1 << profile.max_order
        return -(-((ram[-1][1] + block - 1 & -block) - (ram[0][0] & -block)) * profile.struct_page_size // PAGE_SIZE)
    return sum((e - s) * profile.struct_page_size for s, e in sections(ram, profile.section_order)) // PAGE_SIZE


def is_highmem(profile: Profile, spans: Sequence[ZoneSpan]) -> list[bool]:
    """Which zones lie outside the direct map (is_highmem_idx): HighMem, and the movable zone if it would be cut from HighMem."""
    high = profile.highmem_zone
    if high < 0:
        return [False] * len(spans)
    return [z == high or (z > high and spans[high].present > 0 and profile.zone_names[z : z + 1] == ("Movable",)) for z in range(len(spans))]


def hash_table_pages(kernel_pages: int, scale: int, word: int = 8) -> int:
    """Pages of a large system hash table, one bucket (a pointer of `word` bytes) per 2^scale bytes of memory (alloc_large_system_hash).

    From 64 GiB on 64-bit kernels make them grow more slowly.
    """
    entries = -(-kernel_pages // 256) * 256
    adapt = 1 << (36 - PAGE_SHIFT)
    while word == 8 and adapt < entries:
        adapt <<= 2
        scale += 1
    entries = max(entries >> (scale - PAGE_SHIFT), PAGE_SIZE // word)
    return max(1, (1 << (entries - 1).bit_length()) * word // PAGE_SIZE)


class BootReserve(NamedTuple):
    """Frames that a boot takes before the buddy allocator has them: for good, or until late in boot."""

    kept: list[Frames]
    freed: list[Frames]


def boot_reserve(profile: Profile, ram: Sequence[Frames], spans: Sequence[ZoneSpan], cpus: int, initrd_pages: int = 0) -> BootReserve:
    """What the kernel reserves on a machine with this memory.

    The amounts are the kernel's: the first MiB, the image, the memory map (64 bytes a page in whole sections), the dentry and inode
    hash tables, the bounce buffer of machines with memory above 4 GiB, and a constant for the rest (per-CPU areas, node data, early
    page tables). With them `managed_pages` of every zone equals that of the recorded Debian guests with 128 MiB to 4 GiB and 1 to 4
    CPUs. All of it must be in the direct map. The places inside memory are simpler than the kernel's: each kind is one run, from the top of memory down.
    """
    image = profile.image
    end = image.kept[-1][1]
    kept = [(0, 256), *image.kept, (end, end + image.near)]
    busy = [*kept, *image.freed]
    limit = 1 << 20
    if ram[-1][1] > limit:
        direct = limit if profile.highmem_zone < 0 else spans[profile.highmem_zone - 1].end
        bounce = take_top(subtract(clip(ram, 0, direct), busy), profile.swiotlb_pages)
        kept += bounce
        busy += bounce
    kernel_pages = estimated_kernel_pages(spans, profile)
    word = profile.slab.word
    tables = hash_table_pages(kernel_pages, 13, word) + hash_table_pages(kernel_pages, 14, word)
    pages = memory_map_pages(profile, ram) + tables + image.top + image.top_per_cpu * (cpus - 1)
    if ram[-1][1] > limit:
        pages += profile.swiotlb_table_pages
    low = ram if profile.highmem_zone < 0 else clip(ram, 0, spans[profile.highmem_zone - 1].end)
    top = take_top(subtract(low, busy), pages)
    initrd = take_top(subtract(clip(low, 0, INITRD_MAX), [*busy, *top]), initrd_pages)
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
