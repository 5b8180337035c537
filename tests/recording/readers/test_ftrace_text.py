from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmtwin.errors import MmtwinError, TraceError
from mmtwin.recording.model import EVENTS_SCHEMA, Recording
from mmtwin.recording.readers import ftrace_text
from mmtwin.recording.readers.ftrace_text import read
from mmtwin.recording.store import load, save
from mmtwin.recording.validate import check

DATA = Path(__file__).parents[2] / "data"
FUZZ = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
LINE = "  bash-12  [001] d..1.   5.25: mm_page_free: page=ffffea00 pfn=0x20 order=3\n"


def parse(tmp_path: Path, text: str | bytes, *, strict: bool = False) -> Recording:
    path = tmp_path / "trace.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    recording = read(path, strict=strict)
    check(recording)
    assert dict(recording.events.schema) == EVENTS_SCHEMA
    return recording


def row(recording: Recording, number: int) -> dict[str, Any]:
    """One event without the columns that have nothing to say."""
    return {
        k: v
        for k, v in recording.events.row(number, named=True).items()
        if v not in (None, 0) and (k, v) not in (("pfn", -1), ("order", -1), ("migratetype", -1))
    }


def has_note(recording: Recording, text: str) -> bool:
    return any(text in note for note in recording.provenance.notes)


def test_linux_3_on_i386() -> None:
    recording = read(DATA / "linux-3.x-i386.ftrace.txt", strict=True)
    check(recording)
    assert len(recording.events) == 49
    assert (recording.provenance.how, recording.provenance.cpus, recording.provenance.lost_events) == ("ftrace", 1, 0)
    assert recording.before is recording.after is None
    assert row(recording, 4) == {
        "time": 170_000_000,
        "pid": 1,
        "kind": "kmalloc",
        "gfp": 0xDC0,
        "call_site": 0xC10C2F99,
        "ptr": 0xC1614F40,
        "bytes_req": 36,
        "bytes_alloc": 64,
    }
    assert row(recording, 6) == {"time": 170_000_000, "pid": 1, "kind": "kfree", "call_site": 0xC10C283A}
    assert recording.provenance.notes == ["the text has 49 of the 11540 events that its header names: it was cut or filtered"]


def test_linux_6() -> None:
    recording = read(DATA / "linux-6.1.ftrace.txt", strict=True)
    check(recording)
    sites = dict(line.split(" ", 1) for line in recording.provenance.procfs["call_sites"].splitlines())
    assert sites == {"1": "do_it+0x10/0x20", "2": "getname+0x1/0x2", "3": "putname+0x3/0x4"}
    first = recording.events.row(0, named=True)
    assert (first["time"], first["cpu"], first["pid"], first["pfn"], first["order"], first["migratetype"], first["gfp"]) == (
        100_000_001_000,
        3,
        1234,
        0x48D0,
        0,
        1,
        0x100DCA,
    )
    failed = recording.events.row(1, named=True)
    assert (failed["pfn"], failed["order"], failed["context"]) == (-1, 4, 2)
    assert row(recording, 2) == {
        "time": 100_500_000_000,
        "cpu": 1,
        "pid": 77,
        "context": 1,
        "kind": "kmalloc",
        "gfp": 0xCC0,
        "call_site": 1,
        "ptr": 0xA1B2C3D4,
        "bytes_req": 10,
        "bytes_alloc": 16,
        "node": -1,
    }
    assert recording.events["name"].to_list()[3:6] == [None, "ext4 inode", "names_cache"]
    assert recording.events["arg"].to_list()[3:5] == [1, 0]
    extfrag = recording.events.row(10, named=True)
    assert (extfrag["order"], extfrag["migratetype"], extfrag["arg"], extfrag["bytes_req"], extfrag["bytes_alloc"]) == (0, 2, 10, 1, 1)
    assert (recording.provenance.cpus, recording.provenance.lost_events) == (4, 7)
    assert has_note(recording, "lost 7 events")
    assert has_note(recording, "pointers are hashed")
    assert has_note(recording, "1 other events skipped: ")


def test_trace_cmd_report() -> None:
    recording = read(DATA / "trace-cmd-report.txt", strict=True)
    check(recording)
    assert recording.provenance.cpus == 2
    assert recording.events["kind"].to_list() == ["kmalloc", "kmalloc_node", "mm_page_alloc", "mm_page_free", "mm_page_free_batched"]
    first = recording.events.row(0, named=True)
    assert (first["time"], first["call_site"], first["ptr"]) == (612_000_000_123, 0xFFFFFFFF8154D00E - (1 << 64), 0xFFFF8800B7F2A000 - (1 << 64))
    assert first["gfp"] == 0xCC0 | 0x2000 | 0x4000
    assert recording.events["pfn"].to_list()[2:] == [18640] * 3
    assert not has_note(recording, "hashed")


def test_a_recording_from_text_can_be_stored(tmp_path: Path) -> None:
    recording = read(DATA / "linux-6.1.ftrace.txt")
    save(recording, tmp_path / "x.mmrec")
    again = load(tmp_path / "x.mmrec")
    assert again.events.equals(recording.events)
    assert again.provenance == recording.provenance


def test_compressed_and_in_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DATA / "linux-3.x-i386.ftrace.txt").read_bytes()
    whole = parse(tmp_path, text)
    assert parse(tmp_path, gzip.compress(text)).events.equals(whole.events)
    assert parse(tmp_path, text.replace(b"\n", b"\r\n")).events.equals(whole.events)
    monkeypatch.setattr(ftrace_text, "BLOCK", 1000)
    assert parse(tmp_path, text.rstrip(b"\n")).events.equals(whole.events)


def test_clocks(tmp_path: Path) -> None:
    for text, nanoseconds in (
        ("5.25", 5_250_000_000),
        ("0.000000001", 1),
        ("123456", 123456),
        ("7.", None),
        ("9999999999.0", None),
        ("99999999999.0", None),
        ("1" * 30, None),
    ):
        lines = LINE + LINE.replace("5.25", text)
        assert parse(tmp_path, lines).events["time"].to_list() == [5_250_000_000] + ([] if nanoseconds is None else [nanoseconds])


def test_perf_script(tmp_path: Path) -> None:
    assert parse(tmp_path, "  sshd  991 [002]  101.0: kmem:mm_page_free: page=0xffffea00 pfn=0x20 order=3\n", strict=True).events["pid"].to_list() == [991]


@pytest.mark.parametrize(
    ("extra", "lost"),
    [
        ("CPU:1 [LOST 15 EVENTS]\nCPU:0 [LOST 2 EVENTS]\n", 17),
        ("CPU:0 [3 EVENTS DROPPED]\n", 3),
        ("CPU:0 [LOST EVENTS]\n", 1),
        ("# entries-in-buffer/entries-written: 1/4   #P:2\n", 3),
    ],
)
def test_lost_events(tmp_path: Path, extra: str, lost: int) -> None:
    recording = parse(tmp_path, extra + LINE, strict=True)
    assert recording.provenance.lost_events == lost
    assert has_note(recording, f"lost {lost} events")


def test_pointers(tmp_path: Path) -> None:
    def line(pointer: str) -> str:
        return f" a-1 [000] 1.0: kfree: call_site=c1000000 ptr={pointer}\n"

    assert parse(tmp_path, line("(____ptrval____)")).events["ptr"].to_list() == [0]
    assert has_note(parse(tmp_path, line("(____ptrval____)")), "1 pointers were withheld")
    assert parse(tmp_path, line("          (null)") + line("0000000000000000") + line("ffff888012345678")).provenance.notes == []
    assert has_note(parse(tmp_path, line("0000000012345678")), "hashed")
    assert parse(tmp_path, "".join(line(f"c1{n:06x}") for n in range(30))).provenance.notes == []
    assert has_note(parse(tmp_path, "".join(line(f"{n * 0x0800_0001:08x}") for n in range(1, 31))), "hashed")


def test_malformed_lines(tmp_path: Path) -> None:
    bad = [
        "nonsense",
        LINE.replace("order=3", "order=three"),
        LINE.replace("order=3", "order=99"),
        LINE.replace("pfn=0x20", ""),
        LINE.replace("pfn=0x20", "pfn=-5"),
        LINE.replace("pfn=0x20", "pfn=0x" + "f" * 17),
        LINE.replace("[001]", "[99999]"),
        LINE.replace("-12 ", "-9999999999 "),
        " a-1 [000] 1.0: kfree: call_site=1 ptr=zz",
        " a-1 [000] 1.0: kmalloc: call_site=1 ptr=1 bytes_req=1 bytes_alloc=1 gfp_flags=HELLO",
    ]
    for line in bad:
        text = LINE + line.rstrip("\n") + "\n"
        recording = parse(tmp_path, text)
        assert len(recording.events) == 1, line
        assert has_note(recording, "1 malformed lines skipped; first: line 2 "), line
        with pytest.raises(TraceError, match="line 2 is malformed"):
            parse(tmp_path, text, strict=True)
    recording = parse(tmp_path, LINE + " a-1 [000] 1.0: kmalloc: call_site=1 ptr=1 bytes_req=1 bytes_alloc=1 gfp_flags=GFP_KERNEL|__GFP_NEW\n")
    assert recording.events["gfp"].to_list() == [0, 0xCC0]
    assert has_note(recording, "unknown GFP flags left out: __GFP_NEW")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no trace line in it"),
        (b"Dear Sir,\nplease find\n" * 100, "no trace line in it"),
        (b"\x00\x01" * 100, "binary data"),
        (b"\x17\x08\x44tracing\x00", "mmtwin import reads it"),
        (b"PERFILE2" + bytes(100), "mmtwin import reads it"),
        (b"PK\x03\x04", "needs no import"),
        (b"\x1f\x8b\x08", "cannot be read"),
        (gzip.compress(LINE.encode() * 100)[:-9], "cannot be read"),
        (b"# tracer: nop\n", "no allocator events, but no events"),
        (b" a-1 [000] 1.0: sched_switch: a=b\n", "no allocator events, but 1 other events"),
        (b"x" * (1 << 20) + b"xx", "no line end"),
    ],
)
def test_what_is_no_trace(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(TraceError, match=says) as caught:
        parse(tmp_path, content)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "no", "No such file"), (tmp_path, "Is a directory"), (Path("a\0b"), "cannot be read")):
        with pytest.raises(TraceError, match=says):
            read(path)


def only_mmtwin_errors(tmp_path: Path, data: bytes) -> None:
    for strict in (False, True):
        try:
            parse(tmp_path, data, strict=strict)
        except MmtwinError as error:
            assert "\n" not in str(error)


WORDS = [
    "bash-1", "[000]", "[9999]", "(  12)", "d..1.", "1.5:", "1.0:", "7:", "kmalloc:", "kmem_cache_alloc:", "mm_page_alloc:", "kfree:", "call_site=", "ptr=",
    "ptr=(null)", "pfn=0x", "pfn=99999999999999999999", "order=-1", "order=3", "gfp_flags=GFP_KERNEL|", "gfp_flags=none", "bytes_req=-3", "name=",
    "node=99999999999", "#", "# entries-in-buffer/entries-written: 5/4 #P:0", "cpus=0", "CPU:0 [LOST 5 EVENTS]", "\n", "\r", "\t", "é", "\u2028", "=> x",
]  # fmt: skip


@FUZZ
@given(words=st.lists(st.sampled_from(WORDS), max_size=60))
def test_random_trace_words(tmp_path: Path, words: list[str]) -> None:
    only_mmtwin_errors(tmp_path, " ".join(words).encode())


@FUZZ
@given(data=st.binary(max_size=300), text=st.text(max_size=200))
def test_random_bytes_and_text(tmp_path: Path, data: bytes, text: str) -> None:
    only_mmtwin_errors(tmp_path, data)
    only_mmtwin_errors(tmp_path, text.encode("utf-8", errors="surrogatepass"))
    only_mmtwin_errors(tmp_path, LINE.encode() + data)


@FUZZ
@given(
    name=st.sampled_from(["linux-6.1.ftrace.txt", "trace-cmd-report.txt"]),
    where=st.floats(0, 1, exclude_max=True),
    byte=st.integers(0, 255),
    end=st.floats(0.1, 1),
)
def test_damaged_traces(tmp_path: Path, name: str, where: float, byte: int, end: float) -> None:
    data = bytearray((DATA / name).read_bytes())
    data[int(where * len(data))] = byte
    only_mmtwin_errors(tmp_path, bytes(data[: int(end * len(data))]))
