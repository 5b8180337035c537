"""Files of malloc calls: reading, the round trip through a recording, and one clear line for whatever is wrong."""

from __future__ import annotations

import gzip
import lzma
import random
from pathlib import Path

import numpy as np
import pytest

from mmtwin.errors import MmtwinError, TraceError
from mmtwin.recording import store
from mmtwin.recording.readers import malloc_trace
from mmtwin.replay.mallocs import replay
from mmtwin.user.ptmalloc import CALL_BRK, CALL_CALLOC, CALL_FREE, CALL_MALLOC, CALL_MALLOPT, CALL_MAPS, CALL_REALLOC
from mmtwin.user.ptmalloc_entry import CALL

DATA = Path(__file__).parents[2] / "data"
HEAP, BASE = 0x555555559000, 0x7FFFF7FFF000


def raw(calls: list[tuple[int, ...]], **fields: object) -> bytes:
    """A recorder's file."""
    head = np.zeros(1, dtype=malloc_trace.HEADER)
    values = {"magic": b"MMTWMALC", "version": 1, "record_size": 32, "records": len(calls), "mmap_base": BASE, "start_brk": HEAP, "main_arena": BASE - 0x1000}
    for name, value in {**values, "commit_limit": 1 << 20, "cpus": 2, "release": b"6.1.0", "comm": b"test", "libc": b"2.36", **fields}.items():
        head[name] = value
    return head.tobytes() + np.array(calls, dtype=CALL).tobytes()


MAPS = [(CALL_MAPS, 1, 0, 2, 0x555555554000, 0x555555559000, 0), (CALL_MAPS, 0, 0, 2, 0x7FFFF7DC7000, BASE, 0)]
GOOD = [
    *MAPS, (CALL_MALLOC, 0, 1, 0, 100, 0, HEAP + 0x2A0), (CALL_CALLOC, 0, 1, 0, 3, 50, HEAP + 0x310), (CALL_REALLOC, 0, 1, 0, HEAP + 0x310, 20, HEAP + 0x310),
    (CALL_FREE, 0, 1, 0, HEAP + 0x2A0, 0, 0), (CALL_MALLOPT, 0, 1, 0, -3, -5, 1), (CALL_BRK, 0, 1, 0, HEAP + 0x30000, 0, 0),
]  # fmt: skip


def test_read_plain_and_compressed(tmp_path: Path) -> None:
    data = raw(GOOD)
    for name, content in (("a", data), ("b", data + bytes(4096)), ("c", gzip.compress(data)), ("d", lzma.compress(data))):
        (tmp_path / name).write_bytes(content)
        trace = malloc_trace.read(tmp_path / name)
        assert trace.layout.start_brk == HEAP and trace.layout.comm == "test" and trace.threads == 1 and len(trace.calls) == len(GOOD)
        assert replay(trace, validate=True)[0].all_equal


def test_round_trip_through_a_recording(tmp_path: Path) -> None:
    trace = malloc_trace.parse(raw(GOOD))
    recording = malloc_trace.to_recording(trace)
    store.save(recording, tmp_path / "x.mmrec")
    again = malloc_trace.read(tmp_path / "x.mmrec")
    assert again.layout == trace.layout and (again.calls == trace.calls).all()
    assert recording.events["kind"].to_list()[2:6] == ["malloc", "calloc", "realloc", "free"]
    assert recording.events["bytes_req"].to_list()[2:5] == [100, 150, 20]
    assert recording.events["ptr"][5] == HEAP + 0x2A0


def test_alignment_of_huge_mappings_depends_on_the_kernel() -> None:
    for release, aligned in (("6.1.0-56-amd64", False), ("6.7.0", True), ("6.18.44-x", True), ("5.10", False), ("odd", False), ("", False)):
        trace = malloc_trace.parse(raw(MAPS, release=release.encode()))
        assert trace.layout.thp_align is aligned


def test_product_of_calloc() -> None:
    calls = np.array([(CALL_CALLOC, 0, 1, 0, a, b, 0) for a, b in ((3, 4), (1 << 40, 1 << 40), (1 << 32, 1 << 20), (-1, 1), (-1, 0))], dtype=CALL)
    assert malloc_trace.arguments(calls)["b"].tolist() == [12, -1, 1 << 52, -1, 0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a malloc trace"),
        (b"MMTWMALC", "not a malloc trace"),
        (b"x" * 500, "not a malloc trace"),
        (raw(GOOD, version=2), "version 2"),
        (raw(GOOD, record_size=40), "version 1"),
        (raw(GOOD, records=99), "ends after 8 of 99 records"),
        (raw(GOOD, mmap_base=5), "mmap_base 0x5"),
        (raw(GOOD, start_brk=1 << 50), "start_brk"),
        (raw(GOOD, main_arena=BASE + 4), "main_arena"),
        (raw(GOOD, cpus=0), "0 CPUs"),
        (raw(GOOD, commit_limit=0), "0 pages"),
        (raw([(0, 0, 1, 0, 0, 0, 0)]), "record 0: unknown kind"),
        (raw([(99, 0, 1, 0, 0, 0, 0)]), "record 0: unknown kind"),
        (raw([(CALL_MALLOC, 0, 0, 0, 0, 0, 0)]), "record 0: no such thread"),
        (raw([(CALL_MALLOC, 0, 5000, 0, 0, 0, 0)]), "record 0: no such thread"),
        (raw([(CALL_MALLOC, 0, 1, 0, 0, 0, -1)]), "record 0: a result"),
        (raw([(CALL_BRK, 0, 1, 0, 5, 0, 0)]), "record 0: a break"),
        (raw(MAPS[:1]), "record 0: a list of mappings"),
        (raw(MAPS[1:]), "record 0: a list of mappings"),
        (raw([MAPS[0], GOOD[2], MAPS[1]]), "record 0: a list of mappings"),
    ],
)
def test_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        malloc_trace.parse(data)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content in (("gz", gzip.compress(raw(GOOD))[:100]), ("xz", lzma.compress(raw(GOOD))[:100]), ("zip", b"PK\x03\x04...")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TraceError):
            malloc_trace.read(tmp_path / name)
    with pytest.raises(TraceError, match="cannot be read"):
        malloc_trace.read(tmp_path / "missing")
    with pytest.raises(TraceError, match="not of malloc calls"):
        malloc_trace.from_recording(store.load(DATA.parent / "recordings" / "mmap-1g-1cpu.mmrec"))


def test_damaged_files_give_one_line_or_an_answer() -> None:
    trace = malloc_trace.read(DATA / "malloc-random-threads-1.mmrec")
    head = raw([], records=len(trace.calls), mmap_base=trace.layout.mmap_base, start_brk=trace.layout.start_brk, main_arena=trace.layout.main_arena)
    data, r, refused = head + trace.calls.tobytes(), random.Random(3), 0
    for _ in range(120):
        changed = bytearray(data)
        for _ in range(r.choice((1, 1, 3, 30))):
            at = r.randrange(len(changed))
            changed[at] ^= 1 << r.randrange(8) if r.random() < 0.7 else 255
        try:
            found, _, _ = replay(malloc_trace.parse(bytes(changed)))
            assert found.equal <= found.answers
        except MmtwinError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 5
