"""trace.dat of a real 6.1 kernel, versions 6 and 7, judged by what trace-cmd report prints."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmtwin.diagnose.page_stat import page_stat
from mmtwin.diagnose.stat import clock
from mmtwin.errors import MmtwinError, TraceError
from mmtwin.recording.model import EVENTS_SCHEMA
from mmtwin.recording.readers import ftrace_text, read, trace_dat
from mmtwin.recording.readers.tracing_data import TracingData
from mmtwin.recording.validate import check
from tests import perf_file as made

DATA = Path(__file__).parents[2] / "data" / "trace-cmd"
VERSION_6, VERSION_7 = DATA / "stacks-v6.dat.gz", DATA / "counter-v7.dat"
FUZZ = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("path", [VERSION_6, VERSION_7])
def test_every_column_is_what_trace_cmd_prints(path: Path) -> None:
    mine, text = read(path), ftrace_text.read(DATA / f"{path.name.split('.')[0]}.report.txt.gz", strict=True)
    check(mine)
    assert dict(mine.events.schema) == EVENTS_SCHEMA
    columns = [column for column in EVENTS_SCHEMA if column not in ("context", "call_site")]  # report prints no context with these options
    keys = ["time", "cpu", "kind", "ptr", "pfn"]
    assert mine.events.sort(keys).select(columns).equals(text.events.sort(keys).select(columns))
    assert mine.provenance.how == "trace-cmd"
    assert (mine.provenance.kernel_release, mine.provenance.cpus, mine.provenance.lost_events) == ("6.1.0-56-cloud-amd64", 2, 0)
    symbols = {int(number, 16): name for number, name in (line.split(" ", 1) for line in mine.provenance.procfs["symbols"].splitlines())}
    printed = dict(line.split(" ", 1) for line in text.provenance.procfs["call_sites"].splitlines())
    slabs = pl.col("kind") != "mm_page_alloc"
    names = [symbols[site & (1 << 64) - 1] if site else "" for site in mine.events.filter(slabs).sort(keys)["call_site"]]
    assert names == [printed[str(site)] if site else "" for site in text.events.filter(slabs).sort(keys)["call_site"]]


def test_stacks_say_who_asked_for_pages() -> None:
    """record -T: the event behind a request is its stack. Text names functions without offsets."""
    mine = dict(page_stat(read(VERSION_6), "function").rows.select("label", "hits").iter_rows())
    text = dict(page_stat(ftrace_text.read(DATA / "stacks-v6.report.txt.gz"), "function").rows.select("label", "hits").iter_rows())
    assert mine == text
    assert mine["pte_alloc_one"] == 4
    assert "alloc_pages" not in mine


def test_clocks() -> None:
    assert clock(read(VERSION_6)) == "ns"
    assert clock(read(VERSION_7)) == "events"
    assert read(VERSION_7).provenance.procfs["trace_clock"] == "counter"


def page(events: bytes, *, flags: int = 0, after: bytes = b"") -> bytes:
    return (struct.pack("<QQ", 1000, len(events) | flags) + events + after).ljust(4096, b"\0")


def event(raw: bytes, delta: int = 5) -> bytes:
    raw += bytes(-len(raw) % 4)
    return struct.pack("<I", delta << 5 | len(raw) // 4) + raw


def version_6(*pages: bytes, tag: bytes = b"flyrecord\0", options: tuple[tuple[int, bytes], ...] = (), cpus: int = 1) -> bytes:
    """A file of one CPU."""
    data = made.tracing_data(made.KFREE, made.PAGE).replace(b"tracing0.6\0", b"tracing6\0")
    data += struct.pack("<I", cpus) + b"options  \0" + b"".join(struct.pack("<HI", number, len(body)) + body for number, body in options) + bytes(2) + tag
    body = b"".join(pages)
    table = b"".join(struct.pack("<QQ", len(data) + 16 * cpus, len(body)) for _ in range(cpus))
    return data + table + body


def write(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "trace.dat").write_bytes(data)
    return tmp_path / "trace.dat"


def test_losses(tmp_path: Path) -> None:
    """A page says that events are missing before it, and if there is room how many; the kernel's own statistics know better."""
    kfrees = event(made.kfree(16)) + event(made.page(3, 1))
    pages = (page(kfrees), page(kfrees, flags=1 << 31 | 1 << 30, after=struct.pack("<Q", 40)), page(kfrees, flags=1 << 31))
    recording = read(write(tmp_path, version_6(*pages)))
    check(recording)
    assert len(recording.events) == 6
    assert recording.provenance.lost_events == 41
    assert recording.events["time"].to_list() == [1005] * 3 + [1010] * 3
    stats = b"CPU: 0\nentries: 6\noverrun: 100\ncommit overrun: 0\ndropped events: 7\n\0"
    assert read(write(tmp_path, version_6(*pages, options=((2, stats),)))).provenance.lost_events == 107


def test_time_extensions(tmp_path: Path) -> None:
    extended = struct.pack("<II", 3 << 5 | 30, 2) + event(made.kfree(16)) + struct.pack("<II", 29 | 1 << 5, 4) + event(made.kfree(32), 0)
    large = struct.pack("<II", 1 << 5, 4 + 24) + made.kfree(48)  # type_len 0: the length stands in a word of its own
    assert read(write(tmp_path, version_6(page(extended + large)))).events["time"].to_list() == [1008 + (2 << 27), 1009 + (2 << 27), 1010 + (2 << 27)]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (version_6(page(event(made.kfree(16))), tag=b"latency  \0"), "text of a latency tracer"),
        (version_6(page(event(made.kfree(16))), tag=b"nonsense \0"), "no data of CPUs"),
        (version_6(page(event(made.kfree(16))))[:-4000], "cut off: the data of CPU 0"),
        (version_6(page(event(made.kfree(16))))[:200], "cut off or damaged"),
        (version_6(page(event(struct.pack("<HHI", 99, 0, 0)))), "no allocator events, but 1 other events"),
        (version_6(page(b"")), "no allocator events, but no events"),
        (version_6(page(event(made.page(1, 99)))), "none of its 1 allocator events"),
        (b"\x17\x08\x44tracing9\0" + bytes(6), "version '9' of trace data is unknown"),
        (b"\x17\x08\x44tracing6\0\x01" + bytes(6), "big-endian"),
        (b"\x17\x08\x44tracing7\0\0\x08\0\x10\0\0lz4\0x\0" + struct.pack("<QHHIQII", 32, 0, 1, 0, 8, 0, 4), "compressed with 'lz4'"),
        (b"\x17\x08\x44tracing7\0\0\x08\0\x10\0\0none\0\0" + struct.pack("<QHHIQ", 32, 5, 0, 0, 0), "section 5 at byte 32, where section 0"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(TraceError, match=says) as caught:
        read(write(tmp_path, data))
    assert "\n" not in str(caught.value)


def test_zlib(monkeypatch: pytest.MonkeyPatch) -> None:
    file = trace_dat._File(memoryview(b""), TracingData(), compression="zlib")
    assert trace_dat._unpack(file, zlib.compress(b"abc" * 100), 300) == b"abc" * 100
    with pytest.raises(TraceError, match="expected 299"):
        trace_dat._unpack(file, zlib.compress(b"ab"), 299)


@FUZZ
@given(data=st.data())
def test_damage_is_one_clear_line(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["6", "7", "made"]))
    if kind == "made":
        pages = [page(event(made.kfree(16)) * 9 + event(made.page(3, 1)) * 3, flags=1 << 31) for _ in range(2)]
        content = bytearray(version_6(*pages, options=((4, b"local [mono]\0"), (3, struct.pack("<Q", 700) + b"x\0"))))
    else:
        content = bytearray(gzip.decompress(VERSION_6.read_bytes()) if kind == "6" else VERSION_7.read_bytes())
        if kind == "6":  # without the megabytes of blank lines that stand for symbols
            content = content[:60_000] + content[-70_000:] if data.draw(st.booleans()) else content
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, min(len(content), 3000) - 1) | st.integers(0, len(content) - 1))
        content[at : at + 1] = data.draw(st.binary(min_size=0, max_size=9))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    try:
        check(read(write(tmp_path, bytes(content))))
    except MmtwinError as error:
        assert "\n" not in str(error)
