"""Writes small perf.data files, for what no kernel at hand records."""

from __future__ import annotations

import struct

IP, TID, TIME, READ, CALLCHAIN, ID, CPU, PERIOD, RAW, IDENTIFIER = (1 << n for n in (0, 1, 2, 4, 5, 6, 7, 8, 10, 16))
USUAL = IP | TID | TIME | ID | CPU | PERIOD | RAW
COMMON = """\
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;
"""


def event_format(name: str, number: int, fields: list[tuple[str, int, int, int]], fmt: str = "") -> str:
    """Text of a format file; a field is its declaration, offset, size and signedness."""
    lines = "".join(f"\tfield:{text};\toffset:{at};\tsize:{size};\tsigned:{signed};\n" for text, at, size, signed in fields)
    return f"name: {name}\nID: {number}\nformat:\n{COMMON}\n{lines}\nprint fmt: {fmt}\n"


KFREE = event_format("kfree", 7, [("unsigned long call_site", 8, 8, 0), ("const void * ptr", 16, 8, 0)])
PAGE = event_format(
    "mm_page_alloc",
    8,
    [("unsigned long pfn", 8, 8, 0), ("unsigned int order", 16, 4, 0), ("gfp_t gfp_flags", 20, 4, 0), ("int migratetype", 24, 4, 1)],
    '"...", (REC->gfp_flags) ? __print_flags(REC->gfp_flags, "|", {(unsigned long)(((( gfp_t)0x10u) | (( gfp_t)0x40u))), "GFP_NOFS"}, '
    '{(unsigned long)(( gfp_t)0x20u), "GFP_HIGH"}) : "GFP_NOWAIT"',
)


def tracing_data(*formats: str, big: int = 0) -> bytes:
    """HEADER_TRACING_DATA."""
    data = b"\x17\x08\x44tracing0.6\0" + bytes([big, 8]) + struct.pack("<I", 4096)
    data += b"header_page\0" + struct.pack("<Q", 0) + b"header_event\0" + struct.pack("<Q", 0) + struct.pack("<I", 0)
    data += struct.pack("<I", 1) + b"kmem\0" + struct.pack("<I", len(formats))
    for text in formats:
        data += struct.pack("<Q", len(text)) + text.encode()
    return data + struct.pack("<IIQ", 0, 0, 0)


def record(kind: int, body: bytes, misc: int = 0) -> bytes:
    body += bytes(-len(body) % 8)
    return struct.pack("<IHH", kind, misc, 8 + len(body)) + body


def sample(number: int, time: int, raw: bytes, *, tid: int = 5, cpu: int = 1, before_raw: bytes = b"", sample_type: int = USUAL) -> bytes:
    """PERF_RECORD_SAMPLE; the raw record's length is such that the sample ends on 8 bytes, as the kernel does it."""
    parts = (
        (IDENTIFIER, struct.pack("<Q", number)), (IP, bytes(8)), (TID, struct.pack("<ii", tid, tid)), (TIME, struct.pack("<Q", time)), (ID, struct.pack("<Q", number)),
        (CPU, struct.pack("<II", cpu, 0)), (PERIOD, struct.pack("<Q", 1)),
    )  # fmt: skip
    body = b"".join(data for bit, data in parts if sample_type & bit) + before_raw
    raw += bytes(-(len(raw) + 4) % 8)
    return record(9, body + struct.pack("<I", len(raw)) + raw)


def kfree(ptr: int, site: int = 0xFFFF_FFFF_8100_0010, flags: int = 0) -> bytes:
    return struct.pack("<HBBiQQ", 7, flags, 0, 5, site, ptr)


def page(pfn: int, order: int = 0, gfp: int = 0, migratetype: int = 0) -> bytes:
    return struct.pack("<HBBiQIIi", 8, 0, 0, 5, pfn & (1 << 64) - 1, order, gfp, migratetype)


def attr(config: int, sample_type: int = USUAL, read_format: int = 0, flags: int = 0, kind: int = 2, period: int = 1) -> bytes:
    return struct.pack("<IIQQQQQ", kind, 128, config, period, sample_type, read_format, flags).ljust(128, b"\0")


def string(text: str) -> bytes:
    data = text.encode().ljust(len(text) + 1 + (-len(text) - 1) % 64, b"\0")
    return struct.pack("<I", len(data)) + data


def perf_data(records: bytes, attrs: dict[int, bytes], tracing: bytes, *, release: str = "6.1.0", command: tuple[str, ...] = ("perf", "record", "-a")) -> bytes:
    """A whole file; `attrs` by the id of their samples."""
    features = {1: tracing, 4: string(release), 7: struct.pack("<II", 4, 4), 11: struct.pack("<I", len(command)) + b"".join(map(string, command))}
    ids_at = 104
    ids = b"".join(struct.pack("<Q", number) for number in attrs)
    attrs_at = ids_at + len(ids)
    section = b"".join(data + struct.pack("<QQ", ids_at + 8 * i, 8) for i, data in enumerate(attrs.values()))
    data_at = attrs_at + len(section)
    at = data_at + len(records) + 16 * len(features)
    table, bodies = b"", b""
    for data in features.values():
        table += struct.pack("<QQ", at + len(bodies), len(data))
        bodies += data
    flags = sum(1 << number for number in features)
    header = b"PERFILE2" + struct.pack("<QQQQQQQQ4Q", 104, 144, attrs_at, len(section), data_at, len(records), 0, 0, flags, 0, 0, 0)
    return header + ids + section + records + table + bodies
