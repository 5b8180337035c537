"""Reads ``perf.data``: files and pipes of perf record, also compressed ones, as a recording without snapshots.

A file is a header, the attributes of its events, the records as the kernel wrote them, and sections of features, one of which (HEADER_TRACING_DATA)
holds the recorded kernel's event formats. Layout: tools/perf/Documentation/perf.data-file-format.txt, include/uapi/linux/perf_event.h,
tools/perf/util/header.c and session.c. Records are found one after the other, as each says its length; everything else is done for all of
them at once.
"""

from __future__ import annotations

import gzip
import mmap
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.errors import TraceError
from mmtwin.recording.model import Provenance, Recording
from mmtwin.recording.readers.binary import Bytes
from mmtwin.recording.readers.ftrace_text import ALIASES, EVERY
from mmtwin.recording.readers.page_callers import page_sites
from mmtwin.recording.readers.raw_events import RawEvents, skipped
from mmtwin.recording.readers.tracing_data import Cursor, TracingData, read_formats, read_start, unpack
from mmtwin.recording.readers.zstd import decompress
from mmtwin.recording.symbols import Symbols, running_kernel

MAGIC, SWAPPED = b"PERFILE2", b"2ELIFREP"
Int = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

# enum perf_event_type (include/uapi/linux/perf_event.h) and enum perf_user_event_type (tools/lib/perf/include/perf/event.h)
MMAP, LOST, SAMPLE, MMAP2, LOST_SAMPLES = 1, 2, 9, 10, 13
USER_TYPES, HEADER_ATTR, TRACING_DATA, ID_INDEX, AUXTRACE, HEADER_FEATURE, COMPRESSED, COMPRESSED2 = 64, 64, 66, 69, 71, 80, 81, 83
PIECE = 1 << 16
"""Samples taken apart at a time, so that they are still in the processor's cache for the next field."""
STRIDE, WINDOW = 1 << 13, 256
"""How far apart walkers begin, and how far each looks for its first record, in words of 8 bytes."""

# enum perf_event_sample_format
IP, TID, TIME, ADDR, READ, CALLCHAIN, ID, CPU, PERIOD, STREAM_ID, RAW, IDENTIFIER = (1 << n for n in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16))
FORMAT_ENABLED, FORMAT_RUNNING, FORMAT_ID, FORMAT_GROUP, FORMAT_LOST = (1 << n for n in range(5))
TRACEPOINT = 2  # enum perf_type_id
FREQUENCY, ENABLE_ON_EXEC = 1 << 10, 1 << 12

# enum of features (tools/perf/util/header.h)
F_TRACING_DATA, F_BUILD_ID, F_OSRELEASE, F_NRCPUS, F_TOTAL_MEM, F_CMDLINE, F_DIR_FORMAT, F_COMPRESSED = 1, 2, 4, 7, 10, 11, 24, 27
KERNEL_MAP = "[kernel.kallsyms]"


@dataclass
class Attr:
    """``struct perf_event_attr`` as far as it matters here, with the ids of its events."""

    kind: int
    config: int
    period: int
    sample_type: int
    read_format: int
    flags: int
    ids: Int


@dataclass
class _File:
    """What has been read so far."""

    attrs: list[Attr] = field(default_factory=list)
    features: dict[int, bytes] = field(default_factory=dict)
    tracing: TracingData | None = None
    buffers: list[bytes | memoryview] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lost: int = 0
    lost_samples: int = 0
    by_task: bool | None = None
    kernel_text: int = 0


def read(path: str | os.PathLike[str], symbols: Symbols | None = None) -> Recording:
    """Reads a perf.data, also compressed with gzip.

    Times are nanoseconds of perf's clock. Call sites are addresses; their names are in ``provenance.procfs["symbols"]`` where they are known. Where the
    samples have call chains (``perf record -g``) and symbols are known, mm_page_alloc gets the first frame above the page allocator as its call site.

    :param symbols: the recorded kernel's; without them those of the running kernel are used if it is the recorded one.
    :raises TraceError: the file cannot be read, is damaged, or has no allocator event.
    """
    where = Path(path)
    try:
        with open(where, "rb") as file:
            if file.peek(2)[:2] == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=file) as packed:
                    return _read(memoryview(packed.read()), where.name, symbols)
            if os.fstat(file.fileno()).st_size < 16:
                raise TraceError("cut off: no header; expected a file of perf record")
            # closed when the last view of it is gone, which may be in the frames of an exception
            return _read(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), where.name, symbols)
    except TraceError as error:
        raise TraceError(f"{where}: {error}") from error.__cause__
    except (OSError, EOFError, zlib.error, ValueError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        raise TraceError(f"{where}: cannot be read: {reason}") from error


def _read(data: memoryview, name: str, symbols: Symbols | None) -> Recording:
    if data[:8] == SWAPPED:
        raise TraceError("recorded on a big-endian machine, which mmtwin does not read; turn it into text there: perf script")
    if data[:8] != MAGIC:
        raise TraceError("no perf.data of perf 2.6.32 or later")
    file = _File()
    (size,) = unpack("<Q", data, 8, "the header")
    if size == 16:
        _pipe(file, data[16:])
    else:
        _header(file, data, size)
    if file.tracing is None:
        raise TraceError(
            "no event formats in it, so its events cannot be decoded; was perf record stopped before it had finished, or were no tracepoints recorded?"
        )
    return _recording(file, name, symbols)


# The parts of a file -------------------------------------------------------------------------------------------------------------------------


def _header(file: _File, data: memoryview, size: int) -> None:
    """``struct perf_header``, attributes and features."""
    if size < 104:
        raise TraceError(f"damaged: a header of {size} bytes; expected 104")
    attr_size, attrs_at, attrs_size, data_at, data_size, _, _, *flags = unpack("<QQQQQQQ4Q", data, 16, "the header")
    if not data_size:
        raise TraceError("no records in it: perf record was killed before it had finished, or is still running")
    for what, at, length in (("attributes", attrs_at, attrs_size), ("records", data_at, data_size)):
        if at + length > len(data):
            raise TraceError(f"cut off: its {what} go to byte {at + length:,}, the file ends at {len(data):,}")
    if not 64 + 16 <= attr_size <= 4096 or attrs_size % attr_size:
        raise TraceError(f"damaged: attributes of {attr_size} bytes, {attrs_size} in all")
    for at in range(attrs_at, attrs_at + attrs_size, attr_size):
        ids_at, ids_size = unpack("<QQ", data, at + attr_size - 16, "an attribute")
        if ids_at + ids_size > len(data):
            raise TraceError(f"cut off: the ids of an event go to byte {ids_at + ids_size:,}, the file ends at {len(data):,}")
        file.attrs.append(_attr(data, at, bytes(data[ids_at : ids_at + ids_size // 8 * 8])))
    present = [number for number in range(256) if flags[number // 64] >> number % 64 & 1]
    for index, number in enumerate(present):
        at, length = unpack("<QQ", data, data_at + data_size + 16 * index, "the table of features")
        if at + length > len(data):
            raise TraceError(f"cut off: feature {number} goes to byte {at + length:,}, the file ends at {len(data):,}")
        if length < 1 << 28:
            file.features[number] = bytes(data[at : at + length])
    if F_DIR_FORMAT in file.features:
        raise TraceError("one part of a directory that perf record --threads wrote, which mmtwin does not read; record without --threads, or use perf script")
    if F_TRACING_DATA in file.features:
        file.tracing = _tracing(file.features[F_TRACING_DATA])
    if F_COMPRESSED in file.features:
        _split(file, data[data_at : data_at + data_size], in_pipe=False)
    else:
        file.buffers.append(data[data_at : data_at + data_size])


def _attr(data: bytes | memoryview, at: int, ids: bytes) -> Attr:
    kind, _, config, period, sample_type, read_format, flags = unpack("<IIQQQQQ", data, at, "an attribute")
    return Attr(kind, config, period, sample_type, read_format, flags, np.frombuffer(ids, dtype="<i8").astype(np.int64))


def _tracing(data: bytes) -> TracingData:
    cursor = Cursor(data)
    tracing = read_start(cursor)
    read_formats(cursor, tracing)
    return tracing


def _pipe(file: _File, data: memoryview) -> None:
    """What ``perf record -o -`` writes: no sections, but the same contents as records."""
    _split(file, data, in_pipe=True)
    if not file.attrs:
        raise TraceError("no attributes of events in it: cut off, or no output of perf record -o -")


def _split(file: _File, data: memoryview, *, in_pipe: bool) -> None:
    """Takes apart a stream that holds more than the kernel's records; these go to ``file.buffers``."""
    at, end, plain = 0, len(data), 0
    pieces: list[bytes] = []
    while at + 8 <= end:
        kind, _, size = struct.unpack_from("<IHH", data, at)
        if size < 8 or at + size > end:
            if not in_pipe:
                raise TraceError(f"damaged: a record of {size} bytes at byte {at:,} of the records")
            break
        if kind < USER_TYPES or kind not in (HEADER_ATTR, TRACING_DATA, HEADER_FEATURE, COMPRESSED, COMPRESSED2, AUXTRACE):
            if kind == SAMPLE:  # what follows are the kernel's records only
                at = end
                break
            at += size
            continue
        if plain < at:
            file.buffers.append(data[plain:at])
        body = data[at + 8 : at + size]
        at += size
        if kind == HEADER_ATTR:
            (length,) = unpack("<I", body, 4, "an attribute")
            if not 64 <= length <= len(body):
                raise TraceError(f"damaged: an attribute of {length} bytes")
            file.attrs.append(_attr(body, 0, bytes(body[length : length + (len(body) - length) // 8 * 8])))
        elif kind == TRACING_DATA:
            (length,) = unpack("<I", body, 0, "the event formats")
            if at + length > end:
                raise TraceError("cut off in the event formats")
            file.tracing = _tracing(bytes(data[at : at + length]))
            at += length + -length % 8
        elif kind == HEADER_FEATURE:
            (number,) = unpack("<Q", body, 0, "a feature")
            file.features[number] = bytes(body[8:])
        elif kind == COMPRESSED:
            pieces.append(bytes(body))
        elif kind == COMPRESSED2:
            (length,) = unpack("<Q", body, 0, "a compressed record")
            pieces.append(bytes(body[8 : 8 + length]))
        else:
            raise TraceError("it holds hardware traces (AUX area), which mmtwin does not read; record the kmem events alone")
        plain = at
    if at < end:
        file.notes.append(f"the data is cut off: its last {end - at:,} bytes are no whole record")
    if plain < min(at, end):
        file.buffers.append(data[plain : min(at, end)])
    if pieces:
        file.buffers.append(decompress(pieces))


# The records ---------------------------------------------------------------------------------------------------------------------------------


def _records(data: bytes | memoryview) -> tuple[Int, Int, Int]:
    """Offset, type and length of every record.

    :raises TraceError: a length that cannot be.
    """
    usable = len(data) // 8 * 8
    words = np.frombuffer(data[:usable], dtype="<u8")
    at_word, end = _walk_many(words)
    if at_word is None:
        at_word, end = _walk(words)
    if end != len(words) or usable != len(data):
        length = int(words[end] >> np.uint64(48)) if end < len(words) else len(data) - usable
        raise TraceError(f"damaged: a record of {length} bytes at byte {8 * end:,} of the records, where {len(data) - 8 * end:,} are left")
    header = words[at_word]
    return at_word * 8, (header & np.uint64(0xFFFF_FFFF)).astype(np.int64), (header >> np.uint64(48)).astype(np.int64)


def _walk(words: Words) -> tuple[Int, int]:
    """Record by record from the beginning: where each begins, in words of 8 bytes, and where that ended."""
    lengths = (words >> np.uint64(48)).astype(np.uint16)
    steps = np.where(lengths & 7 == 0, lengths >> 3, 0).tolist()
    at, end = 0, len(steps)
    found: list[int] = []
    while at < end:
        size = steps[at]
        if not size or at + size > end:
            break
        found.append(at)
        at += size
    return np.array(found, dtype=np.int64), at


def _walk_many(words: Words) -> tuple[Int | None, int]:
    """The same with many walkers at once, each from a place that looks like the beginning of a sample to the place where the next one began.

    If every walker ends exactly where its successor began, and the first one began at the beginning, then no place was wrong: the result is
    that of `_walk`. Otherwise, and for little data, there is none.
    """
    if len(words) < 4 * STRIDE:
        return None, 0
    places = np.arange(STRIDE, len(words) - 2 * STRIDE, STRIDE)
    near = places[:, None] + np.arange(WINDOW)
    fitting = np.ones(near.shape, dtype=bool)
    for _ in range(3):
        header = words[near]
        # a sample's type, no flags but the kernel's (PERF_RECORD_MISC_EXACT_IP and where it was), a length that samples have
        fitting &= (header & np.uint64(0x3FF8_FFFF_FFFF) == SAMPLE) & (header >> np.uint64(51) < np.uint64(STRIDE // 4))
        near = near + np.where(fitting, header >> np.uint64(51), 0).astype(np.int64)
    starts = (places + fitting.argmax(axis=1))[fitting.any(axis=1)]
    at = np.concatenate([[0], starts])
    limit = np.concatenate([starts, [len(words)]])
    begins = np.zeros(len(words), dtype=bool)
    while len(at):
        begins[at] = True
        length = (words[at] >> np.uint64(48)).astype(np.int64)
        at = at + (length >> 3)
        if ((length & 7 != 0) | (length == 0) | (at > limit)).any():
            return None, 0
        going = at < limit
        at, limit = at[going], limit[going]
    return np.flatnonzero(begins), len(words)


class _Layout:
    """Where the parts of an event's samples are, by its sample_type: up to the first part of variable length at fixed offsets."""

    ORDER = (IDENTIFIER, IP, TID, TIME, ADDR, ID, STREAM_ID, CPU, PERIOD)

    def __init__(self, attr: Attr) -> None:
        self.attr, at = attr, 8
        self.offset: dict[int, int] = {}
        for part in self.ORDER:
            if attr.sample_type & part:
                self.offset[part] = at
                at += 8
        self.end = at

    @property
    def id_offset(self) -> int:
        return self.offset.get(IDENTIFIER, self.offset.get(ID, -1))

    def rest(self, data: Bytes, at: Int, size: Int) -> tuple[Int, Int, Int, Int]:
        """Where the call chain and the raw record begin and how long they are (frames, bytes); -1 for a sample whose parts do not fit."""
        place, good, kind = at + self.end, at + self.end <= at + size, self.attr.sample_type

        def number(width: int) -> Int:
            nonlocal good
            good &= place + width <= at + size
            value = data.ints(np.where(good, place, at), width)
            good &= (value >= 0) & (value <= 0xFFFF)  # no record is longer
            return np.where(good, value, 0)

        if kind & READ:
            form = self.attr.read_format
            width = 8 * (1 + (form & FORMAT_ID != 0) + (form & FORMAT_LOST != 0))
            times = 8 * ((form & FORMAT_ENABLED != 0) + (form & FORMAT_RUNNING != 0))
            place = place + (8 + times + number(8) * width if form & FORMAT_GROUP else width + times)
        frames, chain = np.zeros(len(at), dtype=np.int64), np.full(len(at), -1, dtype=np.int64)
        if kind & CALLCHAIN:
            frames, chain = number(8), place + 8
            place = place + 8 + 8 * frames
        length = number(4) if kind & RAW else np.zeros(len(at), dtype=np.int64)
        raw = place + 4
        good &= raw + length <= at + size
        return chain, frames, np.where(good, raw, -1), length


@dataclass
class _Samples:
    """Samples of one event in one buffer: offsets and lengths of their records."""

    attr: Attr
    data: Bytes
    at: Int
    size: Int
    layout: _Layout
    rows: Int = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def _samples(file: _File, data: bytes | memoryview) -> Iterator[_Samples]:
    """Splits a buffer's samples by event; counts what was lost on the way."""
    at, kind, size = _records(data)
    every = Bytes(data)
    _others(file, every, at, kind, size)
    wanted = kind == SAMPLE
    at, size = at[wanted], size[wanted]
    layouts = [_Layout(attr) for attr in file.attrs]
    owners = _owners(file, layouts)
    for start in range(0, len(at), PIECE):
        yield from _by_event(file, layouts, owners, every, at[start : start + PIECE], size[start : start + PIECE])


def _owners(file: _File, layouts: list[_Layout]) -> tuple[int, Int, Int]:
    """Where samples have their id, all ids in ascending order, and which event each is of."""
    offsets = {layout.id_offset for layout in layouts}
    if len(layouts) == 1:
        return 0, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if len(offsets) != 1 or -1 in offsets:
        raise TraceError("its samples do not say of which event they are (no ids); record them in one call of perf record")
    known = np.concatenate([attr.ids for attr in file.attrs])
    owner = np.repeat(np.arange(len(file.attrs)), [len(attr.ids) for attr in file.attrs])
    in_order = np.argsort(known, kind="stable")
    return offsets.pop(), known[in_order], owner[in_order]


def _by_event(file: _File, layouts: list[_Layout], owners: tuple[int, Int, Int], every: Bytes, at: Int, size: Int) -> Iterator[_Samples]:
    if len(layouts) == 1:
        yield _Samples(file.attrs[0], every, at, size, layouts[0])
        return
    offset, known, owner = owners
    good = size >= offset + 8
    ids = np.where(good, every.ints(np.where(good, at + offset, at), 8), 0)
    place = np.minimum(np.searchsorted(known, ids), len(known) - 1) if len(known) else np.zeros(len(ids), dtype=np.int64)
    match = (known[place] == ids) & good if len(known) else np.zeros(len(ids), dtype=bool)
    if len(ids) and not match.all():
        raise TraceError(f"damaged: {int((~match).sum()):,} of {len(ids):,} samples belong to no event of this file")
    which = owner[place] if len(known) else place
    for number, attr in enumerate(file.attrs):
        mine = which == number
        if mine.any():
            yield _Samples(attr, every, at[mine], size[mine], layouts[number])


def _others(file: _File, data: Bytes, at: Int, kind: Int, size: Int) -> None:
    """Records that are no samples."""
    rest = np.flatnonzero(kind != SAMPLE)
    at, kind, size = at[rest], kind[rest], size[rest]
    if (strange := np.isin(kind, (HEADER_ATTR, TRACING_DATA, AUXTRACE, HEADER_FEATURE, COMPRESSED, COMPRESSED2))).any():
        raise TraceError(f"damaged, or of a kind mmtwin does not read: record type {int(kind[strange][0])} among the kernel's; turn it into text: perf script")
    for number, width in ((LOST, 24), (LOST_SAMPLES, 16)):
        some = (kind == number) & (size >= width)
        lost = int(np.clip(data.ints(at[some] + width - 8, 8), 0, 1 << 40).sum())
        if number == LOST:
            file.lost += lost
        else:
            file.lost_samples += lost
    text = data.data
    for place, length, number in zip(*(x[np.isin(kind, (MMAP, MMAP2))].tolist() for x in (at, size, kind)), strict=True):
        name = bytes(text[place + (40 if number == MMAP else 72) : place + length]).split(b"\0")[0].decode(errors="replace")
        if name.startswith(KERNEL_MAP + "_") and length >= 40:
            (file.kernel_text,) = struct.unpack_from("<Q", text[place + 32 : place + 40].tobytes())
            break
    for place, length in zip(*(x[kind == ID_INDEX].tolist() for x in (at, size)), strict=True):
        count = (length - 16) // 32
        if count > 0:
            tids = np.frombuffer(bytes(text[place + 16 : place + 16 + 32 * count]), dtype="<i8").reshape(count, 4)[:, 3]
            file.by_task = bool((tids != -1).any())


# The recording -------------------------------------------------------------------------------------------------------------------------------


def _recording(file: _File, name: str, symbols: Symbols | None) -> Recording:
    assert file.tracing is not None
    groups = [group for data in file.buffers for group in _samples(file, data)]
    others: Counter[str] = Counter()
    kept = []
    for group in groups:
        form = file.tracing.formats.get(group.attr.config) if group.attr.kind == TRACEPOINT else None
        if form is not None and ALIASES.get(form.name, form.name) in EVERY and group.attr.sample_type & RAW:
            kept.append(group)
        else:
            others[form.name if form is not None else f"type {group.attr.kind}"] += len(group.at)
    total = sum(len(group.at) for group in kept)
    if not total:
        seen = f"but {sum(others.values()):,} other events" if others else "but no events"
        raise TraceError(f"no allocator events, {seen}; record them: perf record -e kmem:kmalloc -e kmem:kfree -e kmem:mm_page_alloc ...")
    for group in kept:
        if TIME not in group.layout.offset:
            raise TraceError("its samples have no times, so their order is unknown; record with perf record -T")
        if (group.size < group.layout.end).any():
            raise TraceError("damaged: samples that are shorter than their own fields")
    times = np.concatenate([group.data.ints(group.at + group.layout.offset[TIME], 8) for group in kept])
    order = np.argsort(times, kind="stable")
    place = np.empty(total, dtype=np.int64)
    place[order] = np.arange(total)
    events, start = RawEvents(total), 0
    events.put("time", place, times)
    release = _string(file.features.get(F_OSRELEASE, b""))
    named = symbols if symbols is not None else _same_kernel(file, release)
    pages = chained = sited = broken = 0
    for group in kept:
        rows = place[start : start + len(group.at)]
        start += len(group.at)
        offset = group.layout.offset
        if TID in offset:
            events.put("pid", rows, group.data.ints(group.at + offset[TID] + 4, 4, True))
        if CPU in offset:
            events.put("cpu", rows, group.data.ints(group.at + offset[CPU], 4))
        chain, frames, raw, length = group.layout.rest(group.data, group.at, group.size)
        if (raw < 0).any():
            raise TraceError(f"damaged: {int((raw < 0).sum()):,} samples of {len(raw):,} whose parts do not fit into them")
        form = file.tracing.formats[group.attr.config]
        broken += events.add(form, file.tracing.texts[group.attr.config], group.data, rows, raw, length)
        if form.name == "mm_page_alloc":
            pages += len(rows)
            chained += int((frames > 0).sum())
            if named is not None and group.attr.sample_type & CALLCHAIN:
                site = page_sites(group.data, chain, frames, named)
                sited += int((site != 0).sum())
                events.put("call_site", rows, site)
    if any(group.attr.flags & FREQUENCY or group.attr.period > 1 for group in kept):
        file.notes.append("not every event was recorded, but a sample of them: all sums are too low; record without -c and -F")
    if any(CPU not in group.layout.offset for group in kept):
        file.notes.append("the samples do not say on which CPU they were taken; all count as CPU 0")
    broken += events.impossible()
    table = events.table()
    if not len(table):
        raise TraceError(f"damaged: none of its {total:,} allocator events has values that can be" if broken else "; ".join(events.notes))
    file.notes += events.notes
    return Recording(_provenance(file, name, release, table, named, others, (pages, chained, sited, broken), events.unknown_gfp), None, None, table)


def _provenance(
    file: _File,
    name: str,
    release: str,
    table: pl.DataFrame,
    symbols: Symbols | None,
    others: Counter[str],
    counts: tuple[int, int, int, int],
    unknown_gfp: set[str],
) -> Provenance:
    pages, chained, sited, broken = counts
    note = file.notes.append
    command = _strings(file.features.get(F_CMDLINE, b""))
    if file.by_task is None:
        file.by_task = any(attr.flags & ENABLE_ON_EXEC for attr in file.attrs) and not {"-a", "--all-cpus"} & set(command)
    lost = max(file.lost, file.lost_samples)
    file.notes += skipped(lost, broken, others, unknown_gfp)
    if chained and symbols is None:
        note("page events have call chains, but whose frames they are is unknown: give the recorded kernel's /proc/kallsyms or System.map with --symbols")
    elif chained and sited < pages:
        note(f"{pages - sited:,} of {pages:,} page requests have no call site: no call chain, or one that ends in the allocator")
    procfs = {}
    if symbols is not None:
        procfs["symbols"] = symbols.lines(table["call_site"].unique().sort().to_list())
    highest = table["cpu"].max()
    assert isinstance(highest, int)
    cpus = max(highest + 1, *(_unpacked("<II", file.features.get(F_NRCPUS, b"")) or (1,)))
    memory = _unpacked("<Q", file.features.get(F_TOTAL_MEM, b""))
    return Provenance(
        kernel_release=release or "unknown",
        ram_bytes=memory[0] << 10 if memory and memory[0] < 1 << 43 else 0,
        cpus=min(cpus, 8192),
        how="perf",
        workload=" ".join(command),
        workload_name=name,
        lost_events=lost,
        procfs=procfs,
        notes=file.notes,
        scope="tasks" if file.by_task else "machine",
    )


def _unpacked(layout: str, data: bytes) -> tuple[int, ...]:
    return struct.unpack_from(layout, data) if len(data) >= struct.calcsize(layout) else ()


def _string(data: bytes) -> str:
    """``struct perf_header_string``."""
    return data[4:].split(b"\0")[0].decode(errors="replace")[:200]


def _strings(data: bytes) -> list[str]:
    """``struct perf_header_string_list``."""
    found: list[str] = []
    at = 4
    while at + 4 <= len(data) and len(found) < 1000:
        length = int.from_bytes(data[at : at + 4], "little")
        found.append(data[at + 4 : at + 4 + length].split(b"\0")[0].decode(errors="replace"))
        at += 4 + length
    return found


def _same_kernel(file: _File, release: str) -> Symbols | None:
    """The running kernel's symbols, if the file was recorded on it and it is loaded at the same address."""
    return running_kernel(release, file.kernel_text) if file.kernel_text else None
