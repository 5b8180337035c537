"""Raw trace records become rows, by the formats the kernel publishes."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest

from mmtwin.recording.convert import events_table, parse_format
from mmtwin.recording.model import EVENTS_SCHEMA

COMMON = "".join(
    f"\tfield:{kind} common_{name};\toffset:{offset};\tsize:{size};\tsigned:{signed};\n"
    for kind, name, offset, size, signed in (
        ("unsigned short", "type", 0, 2, 0),
        ("unsigned char", "flags", 2, 1, 0),
        ("unsigned char", "preempt_count", 3, 1, 0),
        ("int", "pid", 4, 4, 1),
    )
)
PAGE_FREE = f"name: mm_page_free\nID: 400\nformat:\n{COMMON}\n\tfield:unsigned long pfn;\toffset:8;\tsize:8;\tsigned:0;\n\tfield:unsigned int order;\toffset:16;\tsize:4;\tsigned:0;\n\nprint fmt: x\n"
CACHE_FREE = (
    f"name: kmem_cache_free\nID: 401\nformat:\n{COMMON}\n\tfield:unsigned long call_site;\toffset:8;\tsize:8;\tsigned:0;\n"
    "\tfield:const void * ptr;\toffset:16;\tsize:8;\tsigned:0;\n\tfield:__data_loc char[] name;\toffset:24;\tsize:4;\tsigned:1;\n\nprint fmt: x\n"
)
PCP_FREE = (
    f"name: pcp_free1\nID: 402\nformat:\n{COMMON}\n\tfield:unsigned long __probe_ip;\toffset:8;\tsize:8;\tsigned:0;\n\tfield:u64 page;\toffset:16;\tsize:8;\tsigned:0;\n"
    "\tfield:s32 migratetype;\toffset:24;\tsize:4;\tsigned:1;\n\tfield:s32 order;\toffset:28;\tsize:4;\tsigned:1;\n\nprint fmt: x\n"
)
VMEMMAP = 0xFFFFEA0000000000


def snapshot(*entries: int) -> Any:
    scalars = {f"trace_entries_{i}": n for i, n in enumerate(entries)}
    return SimpleNamespace(scalars=scalars | {"vmemmap_base": VMEMMAP, "page_size_bytes": 64, "pressure_threshold_function": 1 << 63}, zones=[])


def header(number: int, flags: int = 0, pid: int = 7) -> bytes:
    return struct.pack("<HBBi", number, flags, 0, pid)


def ring_page(start: int, *payloads: bytes) -> bytes:
    data = b"".join(struct.pack("<I", 1 << 5 | len(p) // 4) + p for p in payloads)
    return struct.pack("<QQ", start, len(data)) + data


def test_parse_format() -> None:
    form = parse_format(CACHE_FREE)
    assert (form.name, form.id) == ("kmem_cache_free", 401)
    assert (form.fields["ptr"].offset, form.fields["ptr"].size, form.fields["ptr"].signed) == (16, 8, False)
    assert form.fields["name"].dynamic
    assert parse_format(PCP_FREE).name == "pcp_free", "several probes of one kind are numbered"


@pytest.mark.parametrize("text", ["", "name: x\n", "ID: 5\n", "no such file"])
def test_text_that_is_no_format(text: str) -> None:
    with pytest.raises(ValueError, match="no name or ID"):
        parse_format(text)


def test_rows_in_the_order_of_the_clock_and_between_the_dumps() -> None:
    """CPU 0 wrote one event before the first dump; the second dump was taken before CPU 1's last event."""
    forms = {f.id: f for f in map(parse_format, (PAGE_FREE, CACHE_FREE, PCP_FREE))}
    free = [header(400, pid=i) + struct.pack("<QI", 100 + i, i) for i in range(3)]
    name = header(401, 0x10) + struct.pack("<QQI", 0xFFFFFFFF81000000, 0xFFFF888000001000, 28 | 7 << 16) + b"dentry\0\0"
    commit = header(402, 0x48) + struct.pack("<QQii", 0, VMEMMAP + 64 * 321, 2, 1)
    late = header(400) + struct.pack("<QI", 999, 0)
    pages = [[ring_page(10, *free)], [ring_page(11, name, commit, late)]]
    table, lost = events_table(pages, forms, snapshot(1, 0), snapshot(3, 2))
    assert lost == -0
    assert dict(table.schema) == {k: v if not isinstance(v, type) else v() for k, v in EVENTS_SCHEMA.items()}
    assert table["kind"].to_list() == ["mm_page_free", "kmem_cache_free", "mm_page_free", "pcp_free"]
    assert table["pfn"].to_list() == [101, -1, 102, 321]
    assert table["cpu"].to_list() == [0, 1, 0, 1]
    assert table["context"].to_list() == [0, 1, 0, 0], "a breakpoint's handler counts as NMI; it says nothing of a hard interrupt"
    assert table["name"].to_list() == [None, "dentry", None, None]
    assert int(table["ptr"][1]) & (1 << 64) - 1 == 0xFFFF888000001000
    assert (table["order"][3], table["migratetype"][3]) == (1, 2)


def test_lost_events_are_counted() -> None:
    forms = {400: parse_format(PAGE_FREE)}
    table, lost = events_table([[ring_page(10, header(400) + struct.pack("<QI", 1, 0))]], forms, snapshot(0), snapshot(5))
    assert (len(table), lost) == (1, 4)


def chunk(number: int, name: str, fields: str) -> str:
    return f"name: {name}\nID: {number}\nformat:\n{COMMON}\n\tfield:unsigned long __probe_ip;\toffset:8;\tsize:8;\tsigned:0;\n{fields}\nprint fmt: x\n"


def field(kind: str, name: str, offset: int, size: int) -> str:
    return f"\tfield:{kind} {name};\toffset:{offset};\tsize:{size};\tsigned:{int(kind.startswith('s'))};\n"


def test_arrays_become_rows_behind_their_record() -> None:
    """An array too long for one record comes in several; a filter lets the later ones through only if they are needed."""
    same = field("u64", "ptr", 16, 8) + field("s64", "n", 24, 8)
    texts = [chunk(500 + k, f"slab_bulk_free{k}", same + field("u64", f"p{2 * k}[2]", 32, 16)) for k in (1, 0)]
    forms = {f.id: f for f in map(parse_format, [*texts, PAGE_FREE])}
    assert {f.name for f in forms.values()} == {"slab_bulk_free", "mm_page_free"}

    def bulk(k: int, n: int, *objects: int) -> bytes:
        return header(500 + k, 0x48, pid=9) + struct.pack("<QQqQQ", 0, 0xFFFF888000000100, n, *(*objects, 77, 77)[:2])

    other = header(400) + struct.pack("<QI", 5, 0)
    pages = [[ring_page(10, bulk(0, 3, 1 << 63 | 1, 2), bulk(1, 3, 3), other, bulk(0, 1, 4), bulk(0, 0))], [ring_page(11, other)]]
    table, _ = events_table(pages, forms, snapshot(0, 0), snapshot(5, 1))
    rows = table.select("time", "cpu", "pid", "kind", "ptr", "arg", "pfn").rows()
    first, second = -(1 << 64) + 0xFFFF888000000100, (0, 9)
    assert [r[3:6] for r in rows] == [
        ("slab_bulk_free", first, 3), ("slab_bulk_object", -(1 << 63) + 1, 0), ("slab_bulk_object", 2, 1), ("slab_bulk_object", 3, 2), ("mm_page_free", 0, 0),
        ("mm_page_free", 0, 0), ("slab_bulk_free", first, 1), ("slab_bulk_object", 4, 0), ("slab_bulk_free", first, 0),
    ]  # fmt: skip
    assert {r[0] for r in rows[:4]} == {11}, "the time of the first record"
    assert all(r[1:3] == second and r[6] == -1 for r in rows if r[3].startswith("slab"))
    assert dict(table.schema) == {k: v if not isinstance(v, type) else v() for k, v in EVENTS_SCHEMA.items()}


def test_a_new_cache_and_its_random_sequence() -> None:
    fields = field("u64", "ptr", 16, 8) + field("u16", "objects", 24, 2) + field("u64", "seq", 32, 8) + field("u32", "r0[2]", 40, 8)
    columns = ("cpu_slab", "object_size", "size", "gfp", "align", "oo", "min_partial")
    fields += "".join(field("u32", name, 48 + 4 * i, 4) for i, name in enumerate(columns)) + field("__data_loc char[]", "name", 76, 4)
    form = parse_format(chunk(600, "slab_create0", fields))

    def create(seq: int) -> bytes:
        return header(600) + struct.pack("<QQHxxxxxxQ2I7II", 0, 64, 2, seq, 96, 0, 1000, 90, 96, 0x2000, 8, 42, 5, 80 | 6 << 16) + b"inode\0\0\0"

    table, _ = events_table([[ring_page(10, create(1), create(0))]], {600: form}, snapshot(0), snapshot(2))
    names = ["ptr", "call_site", "bytes_req", "bytes_alloc", "gfp", "node", "arg", "pfn", "name"]
    assert table.filter(table["kind"] == "slab_create").select(names).rows() == [(64, 1000, 90, 96, 0x2000, 8, 42, 5, "inode")] * 2
    assert table.filter(table["kind"] == "slab_random").select("time", "arg", "ptr").rows() == [(11, 0, 96), (11, 1, 0)], (
        "a cache without a sequence has no rows"
    )


def test_a_slab_that_could_not_be_made() -> None:
    form = parse_format(chunk(700, "slab_new0", field("u64", "slab", 16, 8) + field("u64", "ptr", 24, 8)))
    records = [header(700) + struct.pack("<QQQ", 0, slab, ptr) for slab, ptr in ((VMEMMAP + 64 * 9, 4096), (0, 0xDEAD))]
    table, _ = events_table([[ring_page(10, *records)]], {700: form}, snapshot(0), snapshot(2))
    assert table.select("pfn", "ptr").rows() == [(9, 4096), (-1, 0)]
