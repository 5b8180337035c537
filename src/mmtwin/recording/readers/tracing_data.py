"""The block with which trace.dat files begin and which perf.data files keep as HEADER_TRACING_DATA: the recorded kernel's own event formats.

Layout: tools/perf/util/trace-event-read.c, and trace-cmd's Documentation/trace-cmd/trace-cmd.dat.v6.5.txt.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from mmtwin.errors import TraceError
from mmtwin.recording.convert import EventFormat, parse_format

MAGIC = b"\x17\x08\x44tracing"


class Cursor:
    """Reads a run of bytes from front to back; every read says what it was for if there is not enough."""

    def __init__(self, data: bytes | memoryview, at: int = 0) -> None:
        self.data, self.at = memoryview(data), at

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes.

        :raises TraceError: there are not so many.
        """
        if size < 0 or size > len(self.data) - self.at:
            raise TraceError(f"cut off or damaged in {what}, at byte {self.at}")
        self.at += size
        return bytes(self.data[self.at - size : self.at])

    def u16(self, what: str) -> int:
        return int.from_bytes(self.take(2, what), "little")

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def string(self, what: str) -> str:
        """Up to the next 0 byte."""
        rest = bytes(self.data[self.at : self.at + 4096])
        end = rest.find(0)
        if end < 0:
            raise TraceError(f"cut off or damaged in {what}, at byte {self.at}")
        self.at += end + 1
        return rest[:end].decode(errors="replace")

    @property
    def left(self) -> int:
        return len(self.data) - self.at


@dataclass
class TracingData:
    """What the block says.

    :ivar version: of the format: 6, or 7 (trace-cmd since 3.0).
    :ivar page_size: of the recorded machine, in bytes.
    :ivar header_page: tracefs ``events/header_page``, the layout of a ring buffer's page.
    :ivar formats: by event id.
    :ivar texts: text of each format file, by event id.
    """

    version: int = 6
    long_size: int = 8
    page_size: int = 4096
    header_page: str = ""
    formats: dict[int, EventFormat] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)

    def add(self, text: str) -> None:
        """One ``format`` file; what is none is left out."""
        try:
            form = parse_format(text)
        except ValueError:
            return
        self.formats[form.id], self.texts[form.id] = form, text


def read_start(cursor: Cursor) -> TracingData:
    """Magic, version, endianness, sizes.

    :raises TraceError: another format, another version, or a big-endian machine's.
    """
    if cursor.take(len(MAGIC), "the tracing data") != MAGIC:
        raise TraceError("damaged: the event formats do not begin as such; expected a file of perf record or trace-cmd record")
    version = cursor.string("the version")
    big, long_size = cursor.take(2, "the byte order")
    if big:
        raise TraceError("recorded on a big-endian machine, which mmtwin does not read; turn it into text there: perf script, or trace-cmd report -t")
    if not version[:1].isdigit() or version.split(".")[0] not in ("0", "6", "7"):  # perf writes the version of its tool: 0.5 or 0.6
        raise TraceError(f"version {version[:20]!r} of trace data is unknown; turn it into text: trace-cmd report -t FILE")
    return TracingData(int(version.split(".")[0]) or 6, long_size, cursor.u32("the page size"))


def read_formats(cursor: Cursor, data: TracingData) -> None:
    """The header page and all event formats.

    :raises TraceError: cut off or damaged.
    """
    read_header_info(cursor, data)
    read_ftrace(cursor, data)
    read_systems(cursor, data)


def read_header_info(cursor: Cursor, data: TracingData) -> None:
    """The layouts of a page and of an event's header."""
    if cursor.take(12, "header_page") != b"header_page\0":
        raise TraceError("damaged: no header_page where it should be")
    data.header_page = cursor.take(cursor.u64("header_page"), "header_page").decode(errors="replace")
    if cursor.take(13, "header_event") != b"header_event\0":
        raise TraceError("damaged: no header_event where it should be")
    cursor.take(cursor.u64("header_event"), "header_event")


def read_ftrace(cursor: Cursor, data: TracingData) -> None:
    """The formats of ftrace's own events."""
    for _ in range(cursor.u32("the ftrace formats")):
        data.add(cursor.take(cursor.u64("an ftrace format"), "an ftrace format").decode(errors="replace"))


def read_systems(cursor: Cursor, data: TracingData) -> None:
    """The event formats of every subsystem."""
    for _ in range(cursor.u32("the event formats")):
        system = cursor.string("the name of a subsystem")
        for _ in range(cursor.u32(f"the formats of {system[:40]}")):
            data.add(cursor.take(cursor.u64(f"the formats of {system[:40]}"), f"the formats of {system[:40]}").decode(errors="replace"))


def unpack(layout: str, data: bytes | memoryview, at: int, what: str) -> tuple[int, ...]:
    """As `struct.unpack_from`.

    :raises TraceError: the data ends before.
    """
    try:
        return struct.unpack_from(layout, data, at)
    except (struct.error, ValueError, OverflowError) as error:
        raise TraceError(f"cut off or damaged in {what}, at byte {at}") from error
