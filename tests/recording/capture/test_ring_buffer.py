"""The trace ring buffer: pages as the kernel writes them, followed while they are written."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmtwin.recording.capture.ring_buffer import DATA_OFFSET, RingBuffer, gather, parse_pages

OFFSETS = {
    "ring_buffer_per_cpu.entries": 0, "ring_buffer_per_cpu.head_page": 8, "ring_buffer_per_cpu.commit_page": 16,
    "buffer_page.list.next": 0, "buffer_page.page": 8,
}  # fmt: skip


def event(delta: int, payload: bytes) -> bytes:
    """A record: type_len counts words of payload; a long one has its length in a word of its own."""
    payload += bytes(-len(payload) % 4)
    words = len(payload) // 4
    if 1 <= words <= 28:
        return struct.pack("<I", delta << 5 | words) + payload
    return struct.pack("<II", delta << 5, len(payload) + 4) + payload


def extend(delta: int) -> bytes:
    return struct.pack("<II", (delta & 0x7FFFFFF) << 5 | 30, delta >> 27)


def stamp(absolute: int) -> bytes:
    return struct.pack("<II", (absolute & 0x7FFFFFF) << 5 | 31, absolute >> 27)


def discarded(delta: int, size: int) -> bytes:
    return struct.pack("<II", delta << 5 | 29, size - 4) + bytes(size - 8)


def page(start: int, *records: bytes) -> bytes:
    data = b"".join(records)
    return struct.pack("<QQ", start, len(data)) + data


def test_records_of_every_kind() -> None:
    first = page(1000, event(5, b"abcd"), extend(1 << 30), event(1, b"efgh"), discarded(2, 12), event(1, b"x" * 200), struct.pack("<I", 29))
    second = page(2 << 30, event(0, b"ijkl"), stamp(3 << 30), event(7, b"mnop"))
    times, offsets, data = parse_pages([first, second])
    assert times.tolist() == [1005, 1006 + (1 << 30), 1009 + (1 << 30), 2 << 30, (3 << 30) + 7]
    assert [bytes(data[o : o + 4]) for o in offsets] == [b"abcd", b"efgh", b"xxxx", b"ijkl", b"mnop"]


def test_nothing_recorded() -> None:
    times, offsets, _ = parse_pages([page(7)])
    assert len(times) == len(offsets) == 0


def test_gather() -> None:
    data = np.frombuffer(struct.pack("<bHiQ", -1, 65535, -2, 0xFFFF888000000000), dtype=np.uint8)
    at = np.array([0])
    assert gather(data, at, 1, True)[0] == -1
    assert gather(data, at + 1, 2, False)[0] == 65535
    assert gather(data, at + 3, 4, True)[0] == -2
    assert int(gather(data, at + 7, 8, False)[0]) & 0xFFFFFFFFFFFFFFFF == 0xFFFF888000000000


class Guest:
    """A ring of pages in a flat memory, and the kernel's writer."""

    def __init__(self, pages: int) -> None:
        self.memory = bytearray(64 + pages * 64 + pages * 4096)
        self.count, self.at, self.entries = pages, 0, 0
        for i in range(pages):
            struct.pack_into("<QQ", self.memory, self.node(i), self.node((i + 1) % pages) | (i + 1 == pages), self.data(i))
        self.clear(0)
        struct.pack_into("<QQQ", self.memory, 0, 0, self.node(0), self.node(0))

    def node(self, i: int) -> int:
        return 64 + i * 64

    def data(self, i: int) -> int:
        return 64 + self.count * 64 + i * 4096

    def clear(self, i: int) -> None:
        struct.pack_into("<QQ", self.memory, self.data(i), self.entries, 0)

    def write(self, record: bytes) -> None:
        used = struct.unpack_from("<Q", self.memory, self.data(self.at) + 8)[0]
        if used + len(record) > 4096 - DATA_OFFSET:
            self.at = (self.at + 1) % self.count
            self.clear(self.at)
            used = 0
        at = self.data(self.at) + DATA_OFFSET + used
        self.memory[at : at + len(record)] = record
        self.entries += 1
        struct.pack_into("<Q", self.memory, self.data(self.at) + 8, used + len(record))
        struct.pack_into("<Q", self.memory, 0, self.entries)
        struct.pack_into("<Q", self.memory, 16, self.node(self.at))

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.memory[address : address + size])


@given(st.lists(st.tuples(st.integers(4, 60), st.booleans()), max_size=400))
def test_following_the_writer_loses_nothing(writes: list[tuple[int, bool]]) -> None:
    """However often the host looks, as long as it is not lapped: every record once, in order."""
    guest = Guest(64)
    ring = RingBuffer(guest.read, [0], OFFSETS)
    written = []
    for i, (size, look) in enumerate(writes):
        payload = struct.pack("<I", i) + bytes(size)
        guest.write(event(1, payload))
        written.append(i)
        if look:
            ring.poll()
    ring.poll()
    _, offsets, data = parse_pages(ring.cpus[0].pages)
    assert gather(data, offsets, 4, False).tolist() == written
    assert ring.entries(0) == len(written)
    assert ring.cpus[0].lapped == 0


def test_being_lapped_shows_in_the_count() -> None:
    guest = Guest(3)
    ring = RingBuffer(guest.read, [0], OFFSETS)
    ring.poll()
    for i in range(2000):
        guest.write(event(1, struct.pack("<I", i) + bytes(40)))
    ring.poll()
    times, _, _ = parse_pages(ring.cpus[0].pages)
    assert len(times) < ring.entries(0) == 2000
