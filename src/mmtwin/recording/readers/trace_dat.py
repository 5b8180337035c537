"""Reads ``trace.dat``, versions 6 and 7, as trace-cmd record and extract write it: a recording without snapshots.

A file holds the recorded kernel's event formats and symbols, and each CPU's ring buffer, page by page as the kernel wrote it. Layout:
trace-cmd's Documentation/trace-cmd/trace-cmd.dat.v6.5.txt and trace-cmd.dat.v7.5.txt; a page: kernel/trace/ring_buffer.c.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmtwin.errors import TraceError
from mmtwin.recording.capture.ring_buffer import COMMIT_MASK, split_pages
from mmtwin.recording.model import Provenance, Recording
from mmtwin.recording.readers.binary import Bytes
from mmtwin.recording.readers.ftrace_text import ALIASES, EVERY
from mmtwin.recording.readers.page_callers import page_sites
from mmtwin.recording.readers.raw_events import RawEvents, skipped
from mmtwin.recording.readers.tracing_data import Cursor, TracingData, read_formats, read_ftrace, read_header_info, read_start, read_systems
from mmtwin.recording.readers.zstd import decompress
from mmtwin.recording.symbols import Symbols, symbols_of

Int = npt.NDArray[np.int64]

# Options and sections by number (trace-cmd.dat.v7)
DONE, CPUSTAT, BUFFER, TRACECLOCK, UNAME, CPUCOUNT, HEADER_INFO, FTRACE_EVENTS, EVENT_FORMATS, KALLSYMS = 0, 2, 3, 4, 5, 8, 16, 17, 18, 19
COMPRESSED = 1
MISSED_EVENTS, MISSED_STORED = 1 << 31, 1 << 30  # kernel/trace/ring_buffer.c: RB_MISSED_EVENTS and RB_MISSED_STORED of a page's commit
LARGEST = 1 << 32
"""No section or buffer of a CPU is longer when unpacked."""
OVERRUN = re.compile(r"^(?:overrun|dropped events):\s*(\d{1,15})", re.MULTILINE)
COUNTING_CLOCKS = ("counter",)
CLOCK = re.compile(r"\[(\S+)\]")
AS_TEXT = "turn it into text first: trace-cmd report -t FILE"


@dataclass
class _File:
    """What has been read so far."""

    data: memoryview
    tracing: TracingData
    compression: str = "none"
    cpus: int = 0
    buffers: list[tuple[int, bytes]] = field(default_factory=list)  # of each CPU: its number and its pages
    clock: str = ""
    release: str = ""
    kallsyms: bytes = b""
    overrun: int = 0
    missed: int = 0
    gaps: int = 0
    notes: list[str] = field(default_factory=list)


def read(path: str | os.PathLike[str], symbols: Symbols | None = None) -> Recording:
    """Reads a trace.dat, also compressed with gzip.

    Times are those of the trace clock. Call sites are addresses; their names are in ``provenance.procfs["symbols"]``. Where stacks were recorded
    (``trace-cmd record -T``) mm_page_alloc gets the first function above the page allocator as its call site.

    :param symbols: the recorded kernel's; without them those in the file are used.
    :raises TraceError: the file cannot be read, is damaged, or has no allocator event.
    """
    where = Path(path)
    try:
        with open(where, "rb") as opened:
            data = opened.read()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        cursor = Cursor(data)
        file = _File(memoryview(data), read_start(cursor))
        (_version_7 if file.tracing.version == 7 else _version_6)(file, cursor)
        return _recording(file, where.name, symbols)
    except TraceError as error:
        raise TraceError(f"{where}: {error}") from error.__cause__
    except (OSError, EOFError, zlib.error, ValueError, MemoryError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        raise TraceError(f"{where}: cannot be read: {reason}") from error


# The two formats -----------------------------------------------------------------------------------------------------------------------------


def _version_6(file: _File, cursor: Cursor) -> None:
    """Everything stands in one fixed order."""
    read_formats(cursor, file.tracing)
    file.kallsyms = cursor.take(cursor.u32("kallsyms"), "kallsyms")
    cursor.take(cursor.u32("the printk formats"), "the printk formats")
    cursor.take(cursor.u64("the command lines"), "the command lines")
    file.cpus = cursor.u32("the number of CPUs")
    more = [cursor.at]
    while more:
        cursor.at = more.pop()
        tag = cursor.take(10, "the data of the CPUs")
        if tag == b"options  \0":
            while option := cursor.u16("the options"):
                body = cursor.take(cursor.u32("an option"), "an option")
                if option == BUFFER and len(body) >= 8 and len(more) < 64:  # of another tracing instance
                    more.append(int.from_bytes(body[:8], "little"))
                else:
                    _option(file, option, body)
            tag = cursor.take(10, "the data of the CPUs")
        if tag == b"latency  \0":
            raise TraceError(f"it holds the text of a latency tracer, not events; {AS_TEXT}")
        if tag != b"flyrecord\0":
            raise TraceError("damaged: no data of CPUs where it should be")
        for cpu in range(min(file.cpus, 8192)):
            at, size = cursor.u64("the data of the CPUs"), cursor.u64("the data of the CPUs")
            file.buffers.append((cpu, _piece(file, at, size, f"the data of CPU {cpu}")))


def _version_7(file: _File, cursor: Cursor) -> None:
    """Sections anywhere in the file, which options point to."""
    file.compression = cursor.string("the compression")
    cursor.string("the compression's version")
    at, seen = cursor.u64("the first options"), set()
    buffers: list[bytes] = []
    while at and at not in seen:
        seen.add(at)
        options, at = _section(file, at, DONE), 0
        while options.left >= 6:
            number, size = options.u16("an option"), options.u32("an option")
            body = options.take(size, "an option")
            if number == DONE:
                at = int.from_bytes(body[:8], "little")
                break
            place = int.from_bytes(body[:8], "little")
            if number == HEADER_INFO:
                read_header_info(_section(file, place, HEADER_INFO), file.tracing)
            elif number == FTRACE_EVENTS:
                read_ftrace(_section(file, place, FTRACE_EVENTS), file.tracing)
            elif number == EVENT_FORMATS:
                read_systems(_section(file, place, EVENT_FORMATS), file.tracing)
            elif number == KALLSYMS:
                text = _section(file, place, KALLSYMS)
                file.kallsyms = text.take(text.u32("kallsyms"), "kallsyms")
            elif number == BUFFER:
                buffers.append(body)
            else:
                _option(file, number, body)
    for body in buffers:
        _buffer(file, Cursor(body))


def _option(file: _File, number: int, body: bytes) -> None:
    """What both formats tell in the same words."""
    text = body.split(b"\0")[0].decode(errors="replace")
    if number == CPUSTAT:
        file.overrun += sum(map(int, OVERRUN.findall(text)))
    elif number == TRACECLOCK:
        file.clock = found[1] if (found := CLOCK.search(text)) else text.strip()
    elif number == UNAME:
        words = text.split()
        file.release = words[2] if len(words) > 2 and words[0] == "Linux" else ""
    elif number == CPUCOUNT and len(body) >= 4:
        file.cpus = int.from_bytes(body[:4], "little")


def _section(file: _File, at: int, kind: int) -> Cursor:
    """The contents of a section, unpacked."""
    cursor = Cursor(file.data, at) if 0 < at < len(file.data) else Cursor(b"")
    found, flags = cursor.u16("a section"), cursor.u16("a section")
    cursor.u32("a section")
    size = cursor.u64("a section")
    if found != kind:
        raise TraceError(f"damaged: section {found} at byte {at:,}, where section {kind} should be")
    if not flags & COMPRESSED:
        return Cursor(cursor.take(size, f"section {kind}"))
    packed, whole = cursor.u32("a section"), cursor.u32("a section")
    return Cursor(_unpack(file, cursor.take(packed, f"section {kind}"), whole))


def _unpack(file: _File, data: bytes, whole: int) -> bytes:
    if file.compression == "zstd":
        found = decompress([data])
    elif file.compression == "zlib":
        unpacker = zlib.decompressobj()
        found = unpacker.decompress(data, max(whole, 1))
    else:
        raise TraceError(f"compressed with {file.compression[:20]!r}, which mmtwin does not read; {AS_TEXT}")
    if len(found) != whole:
        raise TraceError(f"damaged: a compressed part has {len(found):,} bytes; expected {whole:,}")
    return found


def _buffer(file: _File, option: Cursor) -> None:
    """One tracing instance's data."""
    place = option.u64("a buffer")
    option.string("a buffer's name")
    clock = option.string("a buffer's clock")
    file.clock = file.clock or clock
    file.tracing.page_size = option.u32("a buffer")
    count = option.u32("a buffer")
    flags = int.from_bytes(file.data[place + 2 : place + 4], "little")
    for _ in range(min(count, 8192)):
        cpu, at, size = option.u32("a CPU's data"), option.u64("a CPU's data"), option.u64("a CPU's data")
        piece = _piece(file, at, size, f"the data of CPU {cpu}")
        if flags & COMPRESSED and size:  # the size leaves out the number of chunks before them
            chunks = Cursor(file.data, at)
            parts, total = [], 0
            for _ in range(chunks.u32("a CPU's data")):
                packed, whole = chunks.u32("a CPU's data"), chunks.u32("a CPU's data")
                total += whole
                if total > LARGEST:
                    raise TraceError("damaged: the compressed data of a CPU would have more than 4 GiB")
                parts.append(_unpack(file, chunks.take(packed, "a CPU's data"), whole))
            piece = b"".join(parts)
        file.buffers.append((cpu, piece))


def _piece(file: _File, at: int, size: int, what: str) -> bytes:
    if size and at + size > len(file.data):
        raise TraceError(f"cut off: {what} goes to byte {at + size:,}, the file ends at {len(file.data):,}")
    return bytes(file.data[at : at + size])


# The events ----------------------------------------------------------------------------------------------------------------------------------


def _pages(file: _File, data: bytes) -> tuple[list[bytes], int]:
    """A CPU's pages, each up to what was written of it; the offset of the data in a page. Counts the gaps before them."""
    size = file.tracing.page_size
    if not 1 << 12 <= size <= 1 << 24 or size & size - 1:
        raise TraceError(f"damaged: pages of {size} bytes")
    commit = re.search(r"commit;\s*offset:(\d+);\s*size:([48]);", file.tracing.header_page)
    start = re.search(r"data;\s*offset:(\d{1,4});", file.tracing.header_page)
    at, width = (int(commit[1]), int(commit[2])) if commit else (8, 8)
    data_at = int(start[1]) if start else at + width
    if data_at % 4 or not 8 <= at < at + width <= data_at < size:
        raise TraceError("damaged: the header page has its data where it cannot be")
    pages = []
    for place in range(0, len(data) - size + 1, size):
        word = int.from_bytes(data[place + at : place + at + 4], "little")
        length = min(word & COMMIT_MASK, size - data_at)
        if word & MISSED_EVENTS:
            file.gaps += 1
            end = data_at + length
            stored = word & MISSED_STORED and end + width <= size
            file.missed += int.from_bytes(data[place + end : place + end + min(width, 4)], "little") if stored else 1
        pages.append(data[place : place + data_at + length])
    return pages, data_at


@dataclass
class _Cpu:
    """One CPU's events: times, where the records are, how long they are at most, and their event ids."""

    cpu: int
    data: Bytes
    times: Int
    at: Int
    size: Int
    ids: Int


def _cpus(file: _File) -> Iterator[_Cpu]:
    for cpu, buffer in file.buffers:
        pages, data_at = _pages(file, buffer)
        times, at, size = split_pages(pages, data_at)
        if len(at):
            data = Bytes(b"".join(pages))
            whole = size >= 8
            yield _Cpu(cpu, data, times.astype(np.int64)[whole], at[whole], size[whole], data.ints(at[whole], 2))


def _recording(file: _File, name: str, symbols: Symbols | None) -> Recording:
    formats = file.tracing.formats
    cpus = list(_cpus(file))
    wanted = {number for number, form in formats.items() if ALIASES.get(form.name, form.name) in EVERY}
    stack = next((number for number, form in formats.items() if form.name == "kernel_stack"), -1)
    others: Counter[str] = Counter()
    for one in cpus:
        for number, count in zip(*np.unique(one.ids, return_counts=True), strict=True):
            if int(number) not in wanted and int(number) != stack:
                others[formats[int(number)].name if int(number) in formats else f"id {number}"] += int(count)
    kept = [np.isin(one.ids, list(wanted)) for one in cpus]
    times = np.concatenate([one.times[mine] for one, mine in zip(cpus, kept, strict=True)] or [np.zeros(0, dtype=np.int64)])
    if not len(times):
        seen = f"but {sum(others.values()):,} other events" if others else "but no events"
        raise TraceError(f"no allocator events, {seen}; record them: trace-cmd record -e kmem")
    order = np.argsort(times, kind="stable")
    place = np.empty(len(times), dtype=np.int64)
    place[order] = np.arange(len(times))
    events, start, broken = RawEvents(len(times)), 0, 0
    events.put("time", place, times)
    named = symbols if symbols is not None else symbols_of(file.kallsyms)
    for one, mine in zip(cpus, kept, strict=True):
        rows = np.full(len(one.at), -1, dtype=np.int64)
        rows[mine] = place[start : start + int(mine.sum())]
        start += int(mine.sum())
        events.put("cpu", rows[mine], one.cpu)
        events.put("pid", rows[mine], one.data.ints(one.at[mine] + 4, 4, True))
        for number in wanted:
            chosen = one.ids == number
            if chosen.any():
                broken += events.add(formats[number], file.tracing.texts[number], one.data, rows[chosen], one.at[chosen], one.size[chosen])
        if named is not None and stack in formats:
            _stacks(file, one, rows, stack, named, events)
    broken += events.impossible()
    table = events.table()
    if not len(table):
        raise TraceError(f"damaged: none of its {len(times):,} allocator events has values that can be" if broken else "; ".join(events.notes))
    file.notes += events.notes
    lost = max(file.overrun, file.missed)
    note = file.notes.append
    file.notes += skipped(lost, broken, others, events.unknown_gfp)
    if file.clock == "x86-tsc":
        note("the trace clock counts cycles (x86-tsc), so times are cycles, not nanoseconds")
    procfs = {"trace_clock": file.clock} if file.clock else {}
    if named is not None:
        procfs["symbols"] = named.lines(table["call_site"].unique().sort().to_list())
    highest = table["cpu"].max()
    assert isinstance(highest, int)
    return Recording(
        Provenance(
            kernel_release=file.release[:200] or "unknown", cpus=min(max(file.cpus, highest + 1), 8192), how="trace-cmd", workload_name=name, lost_events=lost,
            procfs=procfs, notes=file.notes,
        ),
        None, None, table,
    )  # fmt: skip


def _stacks(file: _File, one: _Cpu, rows: Int, stack: int, symbols: Symbols, events: RawEvents) -> None:
    """The stack of an event is the record behind it on its CPU: gives page requests their call sites."""
    form = file.tracing.formats[stack]
    if "size" not in form.fields or "caller" not in form.fields:
        return
    size, caller = form.fields["size"], form.fields["caller"]
    pages = [number for number, other in file.tracing.formats.items() if other.name == "mm_page_alloc"]
    found = np.flatnonzero((one.ids[1:] == stack) & np.isin(one.ids[:-1], pages)) + 1
    found = found[one.size[found] >= max(caller.offset, size.offset + size.size)]
    if len(found):
        room = (one.size[found] - caller.offset) // 8
        frames = np.clip(one.data.ints(one.at[found] + size.offset, size.size), 0, room)
        events.put("call_site", rows[found - 1], page_sites(one.data, one.at[found] + caller.offset, frames, symbols))
