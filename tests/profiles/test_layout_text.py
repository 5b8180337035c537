"""How address spaces look: against the kernel's documentation and against boot logs."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

import mmtwin
from mmtwin.profiles.layout import RULES, address_space, rules_for, x86_64_space
from mmtwin.profiles.layout_text import format_binary, layout_dict, layout_picture, layout_svg, layout_text, picture_lines

FOUR = [
    "0000000000000000|0|00007fffffffffff|128 TB",
    "0000800000000000|+128 TB|ffff7fffffffffff|~16M TB",
    "ffff800000000000|-128 TB|ffff87ffffffffff|8 TB",
    "ffff880000000000|-120 TB|ffff887fffffffff|0.5 TB",
    "ffff888000000000|-119.5 TB|ffffc87fffffffff|64 TB",
    "ffffc88000000000|-55.5 TB|ffffc8ffffffffff|0.5 TB",
    "ffffc90000000000|-55 TB|ffffe8ffffffffff|32 TB",
    "ffffe90000000000|-23 TB|ffffe9ffffffffff|1 TB",
    "ffffea0000000000|-22 TB|ffffeaffffffffff|1 TB",
    "ffffeb0000000000|-21 TB|ffffebffffffffff|1 TB",
    "ffffec0000000000|-20 TB|fffffbffffffffff|16 TB",
]
FIVE = [
    "0000000000000000|0|00ffffffffffffff|64 PB",
    "0100000000000000|+64 PB|feffffffffffffff|~16K PB",
    "ff00000000000000|-64 PB|ff0fffffffffffff|4 PB",
    "ff10000000000000|-60 PB|ff10ffffffffffff|0.25 PB",
    "ff11000000000000|-59.75 PB|ff90ffffffffffff|32 PB",
    "ff91000000000000|-27.75 PB|ff9fffffffffffff|3.75 PB",
    "ffa0000000000000|-24 PB|ffd1ffffffffffff|12.5 PB",
    "ffd2000000000000|-11.5 PB|ffd3ffffffffffff|0.5 PB",
    "ffd4000000000000|-11 PB|ffd5ffffffffffff|0.5 PB",
    "ffd6000000000000|-10.5 PB|ffdeffffffffffff|2.25 PB",
    "ffdf000000000000|-8.25 PB|fffffbffffffffff|~8 PB",
]
BOTH = [
    "fffffc0000000000|-4 TB|fffffdffffffffff|2 TB",
    "fffffe0000000000|-2 TB|fffffe7fffffffff|0.5 TB",
    "fffffe8000000000|-1.5 TB|fffffeffffffffff|0.5 TB",
    "ffffff0000000000|-1 TB|ffffff7fffffffff|0.5 TB",
    "ffffff8000000000|-512 GB|ffffffeeffffffff|444 GB",
    "ffffffef00000000|-68 GB|fffffffeffffffff|64 GB",
    "ffffffff00000000|-4 GB|ffffffff7fffffff|2 GB",
    "ffffffff80000000|-2 GB|ffffffff9fffffff|512 MB",
    "ffffffffa0000000|-1536 MB|fffffffffeffffff|1520 MB",
]
"""The numbers of Documentation/x86/x86_64/mm.rst in 6.1, up to where the fixmap makes them depend on the configuration."""


@pytest.mark.parametrize(("five_level", "head"), [(False, FOUR), (True, FIVE)])
def test_the_numbers_of_mm_rst(five_level: bool, head: list[str]) -> None:
    rules = replace(rules_for("linux-6.1"), image_size=512 << 20)  # as without CONFIG_RANDOMIZE_BASE
    rows = [
        line.split("|")[:4]
        for line in layout_text(x86_64_space(rules, 1 << 18, five_level)).splitlines()
        if line.count("|") == 4 and line[1] in "0123456789abcdef"
    ]
    found = ["|".join(" ".join(column.split()) for column in row) for row in rows]
    assert found[: len(head) + len(BOTH)] == head + BOTH
    assert [row.split("|")[1] for row in found[len(head) + len(BOTH) :]] == ["-16 MB", "~-11 MB", "-10 MB", "~-10 MB"]
    assert [row.split("|")[3] for row in found[-4:]] == ["5604 kB", "540 kB", "4 kB", "~10 MB"]
    assert found[-2] == "ffffffffff600000|-10 MB|ffffffffff600fff|4 kB"


@pytest.mark.parametrize(
    ("name", "end_pfn", "log"),
    [
        (
            "linux-2.6.24-i386",
            0x7F66D,
            """\
1142MB HIGHMEM available.
896MB LOWMEM available.
virtual kernel memory layout:
    fixmap  : 0xfff4b000 - 0xfffff000   ( 720 kB)
    pkmap   : 0xff800000 - 0xffc00000   (4096 kB)
    vmalloc : 0xf8800000 - 0xff7fe000   ( 111 MB)
    lowmem  : 0xc0000000 - 0xf8000000   ( 896 MB)
""",
        ),
        (
            "linux-3.6-i386",
            0x7FEE0,
            """\
1158MB HIGHMEM available.
887MB LOWMEM available.
  mapped low ram: 0 - 377fe000
  low ram: 0 - 377fe000
virtual kernel memory layout:
    fixmap  : 0xfff16000 - 0xfffff000   ( 932 kB)
    pkmap   : 0xff800000 - 0xffc00000   (4096 kB)
    vmalloc : 0xf7ffe000 - 0xff7fe000   ( 120 MB)
    lowmem  : 0xc0000000 - 0xf77fe000   ( 887 MB)
""",
        ),
    ],
)
def test_boot_logs(name: str, end_pfn: int, log: str) -> None:
    assert layout_text(address_space(name, [(1, end_pfn)])) == log


def test_the_entry_area_has_a_line() -> None:
    lines = layout_text(address_space("linux-6.1-i386", [(1, 0x7FFE0)])).splitlines()
    assert "  cpu_entry : 0xff400000 - 0xff961000   (5508 kB)" in lines
    assert [line.index(":") for line in lines if " : 0x" in line] == [12] * 5


@pytest.mark.parametrize("name", [rules.name for rules in RULES])
def test_pictures(name: str) -> None:
    space = address_space(name, [(1, 0x7FFE0)])
    lines = layout_picture(space).splitlines()
    digits = space.bits // 4
    assert [int(line[:digits], 16) for line in lines if line[:1] != " "] == [region.start for region in reversed(space.regions)]
    assert len({len(line) for line in lines[:-1]}) == 1
    assert len(lines) < 90
    rows = {name: sum(line.region == name for line in picture_lines(space)) for name in ("user", "vmalloc", "fixmap")}
    assert rows["user"] >= rows["vmalloc"] >= rows["fixmap"] >= 1
    svg = ElementTree.fromstring(layout_svg(space))
    boxes = svg.findall("{http://www.w3.org/2000/svg}rect")
    assert len(boxes) == len(space.regions)
    heights = {region.size: float(box.get("height", "0")) for region, box in zip(reversed(space.regions), boxes, strict=True)}
    assert [heights[size] for size in sorted(heights)] == sorted(heights.values())
    assert "http" not in layout_svg(space).replace("http://www.w3.org/2000/svg", "")


def test_the_direct_map_says_how_much_is_memory() -> None:
    assert "direct map (2 GiB of memory)" in layout_picture(address_space("linux-6.1", [(1, 1 << 19)]))


def test_a_machines_layout() -> None:
    machine = mmtwin.boot("linux-6.1", ram="256MiB")
    assert machine.layout() == layout_text(machine.space)
    assert machine.layout(picture=True) == layout_picture(machine.space)
    assert "direct map (256 MiB of memory)" in machine.layout(picture=True)


def test_as_data() -> None:
    space = address_space("linux-6.1-i386", [(1, 0x7FFE0)], "vmalloc=64M")
    data = layout_dict(space)
    assert (int(data["vmalloc_start"], 16), data["vmalloc_total_kb"], data["max_low_pfn"]) == (space.vmalloc_start, 65536, space.max_low_pfn)
    assert data["messages"][0].endswith("MB HIGHMEM available.")
    assert [int(region["last"], 16) - int(region["start"], 16) + 1 for region in data["regions"]] == [region.size for region in space.regions]


def test_sizes() -> None:
    sizes = (1, 4096, 2332 << 10, 875 << 20, 1008 << 20, 64 << 40, 16 << 60)
    assert [format_binary(size) for size in sizes] == ["1 B", "4 KiB", "2.28 MiB", "875 MiB", "1008 MiB", "64 TiB", "16 EiB"]
