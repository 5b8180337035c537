"""How an address space looks: as kernels printed it, as the kernel's documentation prints it, as a picture for a terminal, and as SVG.

The text of i386 is what arch/x86/mm/init_32.c printed while booting, until its authors no longer wanted kernel addresses in logs; 6.1 prints nothing.
That of x86-64, which no kernel prints, has the form of Documentation/x86/x86_64/mm.rst.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

from mmtwin.profiles.layout import TOP_64, AddressSpace, Region
from mmtwin.units import PAGE_SIZE, format_size

__all__ = ("PictureLine", "layout_dict", "layout_picture", "layout_svg", "layout_text", "picture_lines")

UNITS = (("PB", 50), ("TB", 40), ("GB", 30), ("MB", 20), ("kB", 10))
RULE = "_" * 18 + "|" + "_" * 12 + "|" + "_" * 18 + "|" + "_" * 9 + "|" + "_" * 59
HOLES = ("hole", "non-canonical", "guard")
BOX = 46
"""Characters inside a box of the picture."""
LABEL_HEIGHT, SVG_WIDTH = 17, 960
COLOURS = {
    "user": "#4c78a8", "direct": "#59a14f", "vmalloc": "#e15759", "vmemmap": "#b07aa1", "modules": "#f28e2b", "text": "#edc948", "fixmap": "#9c755f",
    "early_ioremap": "#bab0ac", "pkmap": "#ff9da7", "cpu_entry_area": "#76b7b2", "ldt": "#76b7b2", "espfix": "#76b7b2", "efi": "#76b7b2", "vsyscall": "#76b7b2",
}  # fmt: skip


def layout_text(space: AddressSpace) -> str:
    """The map of an address space, as a kernel would print it."""
    return _documentation(space) if space.bits == 64 else _boot_log(space)


def _boot_log(space: AddressSpace) -> str:
    """What is said of low and high memory, and then the map as ``mem_init`` printed it, without the lines about the kernel image."""
    found = [*space.messages, "virtual kernel memory layout:", _log_line("fixmap", space.fixaddr_start, space.fixaddr_top, 10)]
    if space.cpu_entry_area:
        found.append(_log_line("cpu_entry", space.cpu_entry_area, _named(space, "cpu_entry_area").end, 10))
    if space.pkmap_base:
        found.append(_log_line("pkmap", space.pkmap_base, space.pkmap_base + space.last_pkmap * PAGE_SIZE, 10))
    found.append(_log_line("vmalloc", space.vmalloc_start, space.vmalloc_end, 20))
    found.append(_log_line("lowmem", space.page_offset, space.high_memory, 20))
    return "".join(f"{line}\n" for line in found)


def _log_line(name: str, start: int, end: int, shift: int) -> str:
    return f"{name if len(name) > 7 else f'  {name:7}':>11} : 0x{start:08x} - 0x{end:08x}   ({(end - start) >> shift:4} {'kB' if shift == 10 else 'MB'})"


def _named(space: AddressSpace, name: str) -> Region:
    return next(region for region in space.regions if region.name == name)


def _documentation(space: AddressSpace) -> str:
    """The table of mm.rst: start, distance from the nearer end of the address space, last address, size, what it is."""
    bar = "=" * 120
    found = [bar, "    Start addr    |   Offset   |     End addr     |  Size   | VM area description", bar]
    for region in space.regions:
        note = region.note if region.name not in HOLES else f"... {region.note}"
        found.append(f" {region.start:016x} | {_offset(region.start):>10} | {region.end - 1:016x} | {_size(region.size):>7} | {note}")
        if region.name in ("user", "non-canonical"):
            found.append(RULE)
    return "".join(f"{line}\n" for line in (*found, bar))


def _offset(address: int) -> str:
    """The distance in the largest unit, in quarters from TB on: ``-119.5  TB``."""
    if not address:
        return "0       "
    sign, distance = ("+", address) if address < TOP_64 >> 1 else ("-", TOP_64 - address)
    unit, shift = next((unit, shift) for unit, shift in UNITS if distance >> shift and not distance % _quantum(shift))
    number = f"{distance / (1 << shift):g}"
    whole, _, fraction = number.partition(".")
    if len(whole) > 4:
        return f"~{sign}{round(distance / (1 << 20))}    MB"
    return f"{sign + whole:>4}{('.' + fraction if fraction else ''):<3} {unit}"


def _quantum(shift: int) -> int:
    """What sizes are written in multiples of: from TB on quarters."""
    return 1 << (shift - 2 if shift >= 40 else shift)


def _size(size: int) -> str:
    """In a unit of which it is a whole number, or quarters from TB on; else rounded, after a tilde. ``16M TB`` is mm.rst's way to say 16 EB."""
    if size > 1 << 63:
        return f"~{round(size / (1 << 60)):g}M TB" if size > TOP_64 - (1 << 50) else f"~{round(size / (1 << 60)):g}K PB"
    for unit, shift in UNITS:
        exact = f"{size / (1 << shift):g} {unit}"
        if size >= _quantum(shift) and not size % _quantum(shift) and len(exact) <= 7:
            return exact
        if shift >= 40 and size >> shift:
            return f"~{round(size / (1 << shift)):g} {unit}"
    return f"~{round(size / (1 << 20))} MB"


class PictureLine(NamedTuple):
    """A line of the picture.

    :param text: the line.
    :param region: name of the region it is about; empty between two.
    """

    text: str
    region: str


def picture_lines(space: AddressSpace) -> Iterator[PictureLine]:
    """The picture, from the highest address down: a box for every region, with the address it begins at on its lower edge."""
    digits = space.bits // 4
    yield PictureLine(f"{'':{digits}} ┌{'─' * BOX}┐", "")
    for position, region in enumerate(reversed(space.regions)):
        rows = 1 + int(_weight(region.size) / (4 if space.bits == 64 else 1))
        name, size = _title(space, region), format_binary(region.size)
        for row in range(rows):
            if row == (rows - 1) // 2:
                inside = f" {name}{size:>{BOX - 2 - len(name)}} "
            else:
                inside = ("·" if region.name in HOLES else " ") * BOX
            yield PictureLine(f"{'':{digits}} │{inside}│", region.name)
        left, right = "├┤" if position < len(space.regions) - 1 else "└┘"
        yield PictureLine(f"{region.start:0{digits}x} {left}{'─' * BOX}{right}", "")
    yield PictureLine(f"{'':{digits}}  {space.name}, {space.levels} levels of page tables; a line is a factor of {65536 if space.bits == 64 else 16}", "")


def layout_picture(space: AddressSpace) -> str:
    """The address space as a column of boxes, to a log scale."""
    return "".join(f"{line.text}\n" for line in picture_lines(space))


def _weight(size: int) -> float:
    return math.log(max(size, PAGE_SIZE) / PAGE_SIZE, 16)


def _title(space: AddressSpace, region: Region) -> str:
    """The region's name, and for the direct map how much of it is memory."""
    if region.name == "direct" and space.bits == 64:
        return f"direct map ({format_binary(space.high_memory - space.page_offset)} of memory)"
    return {"direct": "direct map", "text": "kernel text", "guard": "guard hole"}.get(region.name, region.name.replace("_", " "))


def format_binary(size: int) -> str:
    """A size with three digits: ``2.28 MiB``; whole ones as they are."""
    for suffix, shift in (("EiB", 60), ("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >> shift:
            return f"{size / (1 << shift):.3g} {suffix}" if size >> shift < 1000 else f"{size >> shift} {suffix}"
    return format_size(size)


def layout_svg(space: AddressSpace) -> str:
    """The picture as a self-contained SVG: no scripts, no fonts, light and dark."""
    digits = space.bits // 4
    regions = list(reversed(space.regions))
    heights = [LABEL_HEIGHT + 7 * _weight(region.size) for region in regions]
    top = 44
    height = top + sum(heights) + 24
    left, width = 12 + digits * 8, 300
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SVG_WIDTH} {height:.0f}" width="{SVG_WIDTH}" height="{height:.0f}" role="img">',
        f"<title>{escape(space.name)}: address space</title>",
        "<style>text{font:12px ui-monospace,'DejaVu Sans Mono',monospace;fill:#222}.n{font-weight:bold}.h{fill:none;stroke:#888;stroke-dasharray:3 3}.r{stroke:#fff}.g{fill:#666}"
        "@media(prefers-color-scheme:dark){svg{background:#111}text{fill:#ddd}.b{fill:#111}.r{stroke:#111}.g{fill:#999}}</style>",
        f'<text class="n" x="12" y="20">{escape(space.name)}, {space.levels} levels of page tables, {format_binary(space.max_pfn * PAGE_SIZE)} of memory</text>',
        f'<text class="g" x="12" y="{top - 6}">{space.top - 1:0{digits}x}</text>',
    ]
    y = float(top)
    for region, tall in zip(regions, heights, strict=True):
        colour = COLOURS.get(region.name)
        shape = f'class="r" fill="{colour}"' if colour else 'class="h"'
        middle = y + tall / 2 + 4
        parts.append(f'<rect x="{left}" y="{y:.1f}" width="{width}" height="{tall:.1f}" {shape}><title>{escape(region.note)}</title></rect>')
        parts.append(f'<text class="{"n b" if colour else "g"}" x="{left + 8}" y="{middle:.1f}">{escape(_title(space, region))}</text>')
        parts.append(f'<text x="{left + width + 10}" y="{middle:.1f}">{format_binary(region.size)}</text>')
        if colour:
            parts.append(f'<text class="g" x="{left + width + 90}" y="{middle:.1f}">{escape(region.note)}</text>')
        y += tall
        parts.append(f'<text class="g" x="12" y="{y - 3:.1f}">{region.start:0{digits}x}</text>')
    parts.append(f'<text class="g" x="{left}" y="{y + 18:.1f}">heights are logarithms of sizes</text></svg>')
    return "\n".join(parts) + "\n"


def layout_dict(space: AddressSpace) -> dict[str, Any]:
    """The address space as plain data; addresses are hexadecimal text, as many readers of JSON have no integers of 64 bits."""
    addresses = (
        "page_offset", "high_memory", "vmalloc_start", "vmalloc_end", "modules_vaddr", "modules_end", "vmemmap_start", "pkmap_base", "fixaddr_start",
        "fixaddr_top", "cpu_entry_area", "ldt_base", "user_end", "kernel_map", "text_end",
    )  # fmt: skip
    numbers = ("bits", "levels", "max_low_pfn", "max_pfn", "last_pkmap", "phys_bits", "vmalloc_reserve")
    return {
        "name": space.name,
        **{name: getattr(space, name) for name in numbers},
        **{name: f"{getattr(space, name):#x}" for name in addresses},
        "vmalloc_total_kb": space.vmalloc_total >> 10,
        "messages": list(space.messages),
        "regions": [
            {"name": region.name, "start": f"{region.start:#x}", "last": f"{region.end - 1:#x}", "bytes": region.size, "note": region.note}
            for region in space.regions
        ],
    }
