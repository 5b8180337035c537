"""perf.data of a real 6.18 kernel, judged by perf script and perf kmem; and made ones, for what no kernel at hand records."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmtwin.errors import MmtwinError, TraceError
from mmtwin.recording import store
from mmtwin.recording.model import EVENTS_SCHEMA, Recording
from mmtwin.recording.readers import ftrace_text, perf_data, read, zstd
from mmtwin.recording.readers.page_callers import is_allocator
from mmtwin.recording.symbols import Symbols, read_symbols
from mmtwin.recording.validate import check
from tests import perf_file as made

DATA = Path(__file__).parents[2] / "data" / "perf"
FUZZ = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def no_running_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names come from the fixture's symbols alone, also on the very machine that recorded it."""
    monkeypatch.setattr(perf_data, "running_kernel", lambda release, text: None)


@pytest.fixture(scope="session")
def symbols() -> Symbols:
    return read_symbols(DATA / "kallsyms.txt")


def named(recording: Recording) -> list[str]:
    """The names of call sites, event by event."""
    procfs = recording.provenance.procfs
    names = {int(number, 16): name for number, name in (line.split(" ", 1) for line in procfs.get("symbols", "").splitlines())}
    numbers = {int(number): name for number, name in (line.split(" ", 1) for line in procfs.get("call_sites", "").splitlines())}
    return ["" if not site else numbers.get(site, names.get(site & (1 << 64) - 1, hex(site))) for site in recording.events["call_site"]]


@pytest.mark.parametrize("name", ["task", "chains"])
def test_every_column_is_what_perf_script_prints(name: str, symbols: Symbols) -> None:
    mine, text = read(DATA / f"{name}.data.gz", symbols=symbols), ftrace_text.read(DATA / f"{name}.script.txt.gz", strict=True)
    check(mine)
    assert dict(mine.events.schema) == EVENTS_SCHEMA
    columns = [column for column in EVENTS_SCHEMA if column not in ("context", "call_site")]  # perf script prints no context
    keys = ["time", "cpu", "kind", "ptr", "pfn"]
    sites = [recording.events.select(*keys, pl.Series("site", named(recording))).sort(keys) for recording in (mine, text)]
    assert mine.events.sort(keys).select(columns).equals(text.events.sort(keys).select(columns))
    assert sites[0].equals(sites[1])
    assert mine.events["time"].is_sorted()
    assert mine.events["name"].n_unique() > (5 if name == "task" else 0)


def test_provenance(symbols: Symbols) -> None:
    task, machine = read(DATA / "task.data.gz"), read(DATA / "machine.data.gz", symbols=symbols)
    assert (task.provenance.how, task.provenance.kernel_release, task.provenance.cpus) == ("perf", "6.18.44-fc-v657", 2)
    assert (task.provenance.scope, machine.provenance.scope) == ("tasks", "machine")
    assert "cat /etc/passwd" in task.provenance.workload
    assert task.provenance.procfs == {}
    assert "getname_flags.part.0+0x24\n" in machine.provenance.procfs["symbols"]
    assert task.provenance.lost_events == machine.provenance.lost_events == 0


def test_compressed_and_piped(symbols: Symbols, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, piped = read(DATA / "zstd.data.gz"), read(DATA / "pipe.data.gz", symbols=symbols)
    assert 50 < len(packed.events) < 200
    assert 50 < len(piped.events) < 200
    assert packed.provenance.kernel_release == piped.provenance.kernel_release == "6.18.44-fc-v657"
    for recording in (packed, piped):
        check(recording)
        assert recording.events["pid"].n_unique() == 1
    monkeypatch.setattr(zstd.ctypes.util, "find_library", lambda name: "no-such-library.so")
    with pytest.raises(TraceError, match="no libzstd; install it"):
        read(DATA / "zstd.data.gz")


def test_saved_and_loaded(symbols: Symbols, tmp_path: Path) -> None:
    recording = read(DATA / "task.data.gz", symbols=symbols)
    store.save(recording, tmp_path / "t.mmrec")
    again = store.load(tmp_path / "t.mmrec")
    assert again.events.equals(recording.events)
    assert again.provenance == recording.provenance


def test_pages_without_symbols_have_no_call_site() -> None:
    recording = read(DATA / "chains.data.gz")
    assert recording.events.filter(pl.col("kind") == "mm_page_alloc")["call_site"].unique().to_list() == [0]
    assert any("page events have call chains, but" in note for note in recording.provenance.notes)


def test_what_is_the_page_allocator() -> None:
    for name in (
        "__alloc_frozen_pages_noprof+0x26b",
        "alloc_pages_mpol+0x86",
        "alloc_pages_noprof",
        "__alloc_pages+0x1/0x2",
        "vma_alloc_folio.isra.0+0x5",
        "get_page_from_freelist.constprop.0.isra.1",
    ):
        assert is_allocator(name), name
    for name in ("__pmd_alloc+0x2e", "allocate_slab+0x1", "filemap_alloc_folio_noprof", "pte_alloc_one", "do_wp_page", "", "0xffffffff81000000"):
        assert not is_allocator(name), name


def write(tmp_path: Path, records: bytes, attrs: dict[int, bytes] | None = None, **options: object) -> Path:
    path = tmp_path / "perf.data"
    attrs = attrs if attrs is not None else {1: made.attr(7), 2: made.attr(8)}
    path.write_bytes(made.perf_data(records, attrs, options.pop("tracing", made.tracing_data(made.KFREE, made.PAGE)), **options))  # type: ignore[arg-type]
    return path


def test_formats_are_the_files_own(tmp_path: Path) -> None:
    """Fields where no kernel has them, a gfp_t of four bytes with bits of its own, samples out of order."""
    moved = made.event_format("kfree", 7, [("const void * ptr", 24, 8, 0), ("int other", 8, 4, 1), ("unsigned long call_site", 12, 8, 0)])
    raw = struct.pack("<HBBiiQIQ", 7, 0x10, 0, 5, 1, 0x1234, 0, 0xFFFF_8880_0000_0040)
    records = made.sample(1, 30, raw) + made.sample(2, 20, made.page(0x99, 3, 0x70, 2), cpu=3) + made.sample(2, 20, made.page(-1, 4, 0x2000))
    recording = read(write(tmp_path, records, tracing=made.tracing_data(moved, made.PAGE)))
    check(recording)
    assert recording.events["kind"].to_list() == ["mm_page_alloc", "mm_page_alloc", "kfree"]
    assert recording.events["pfn"].to_list() == [0x99, -1, -1]
    assert recording.events["gfp"].to_list() == [0xC40 | 0x20, 0x2000, 0]  # this kernel's 0x50 is GFP_NOFS, 0x20 GFP_HIGH; what it has no name for stays
    assert recording.events.row(2, named=True)["ptr"] == 0x40 - (1 << 64) + 0xFFFF_8880_0000_0000
    assert recording.events["call_site"].to_list() == [0, 0, 0x1234]
    assert recording.events["context"].to_list() == [0, 0, 1]
    assert recording.provenance.cpus == 4


def test_sample_types(tmp_path: Path) -> None:
    """Identifier in front, counts that were read with the sample, in a group and alone, and call chains of different lengths."""
    kind = made.IDENTIFIER | made.TID | made.TIME | made.CPU | made.READ | made.CALLCHAIN | made.RAW
    group = struct.pack("<QQQQQQ", 2, 9, 1, 11, 2, 12)  # nr, time_enabled, then value and id twice
    chain = struct.pack("<QQQ", 2, (1 << 64) - 128, 0xFFFF_FFFF_8100_0000)
    alone = struct.pack("<QQQ", 5, 2, 0)  # value, id, lost
    attrs = {1: made.attr(7, kind, 0b1101), 2: made.attr(8, kind, 0b10100)}
    records = made.sample(1, 10, made.kfree(0x10), before_raw=group + chain, sample_type=kind)
    records += made.sample(2, 11, made.page(5), before_raw=alone + struct.pack("<Q", 0), sample_type=kind)
    recording = read(write(tmp_path, records, attrs))
    assert recording.events.select("ptr", "pfn").rows() == [(0x10, -1), (0, 5)]


def test_lost_and_other_records(tmp_path: Path) -> None:
    records = made.record(2, struct.pack("<QQ", 1, 17)) + made.record(13, struct.pack("<Q", 12)) + made.record(68, b"") + made.record(3, bytes(500 * 8))
    recording = read(write(tmp_path, records + made.sample(1, 5, made.kfree(0x20)) + made.record(2, struct.pack("<QQ", 1, 3)), {1: made.attr(7)}))
    assert recording.provenance.lost_events == 20
    assert any("lost 20 events" in note for note in recording.provenance.notes)


def test_other_events_are_counted(tmp_path: Path) -> None:
    attrs = {1: made.attr(7), 2: made.attr(99), 3: made.attr(0, kind=1)}
    records = b"".join(made.sample(number, 5, made.kfree(0x20)) for number in (1, 2, 2, 3))
    assert read(write(tmp_path, records, attrs)).provenance.notes == ["3 other events skipped: type 2 (2), type 1 (1)"]


@pytest.mark.parametrize("command", [("perf", "record", "-e", "kmem:kfree", "ls"), ("perf", "record", "-a", "ls")])
def test_scope_without_an_index_of_ids(tmp_path: Path, command: tuple[str, ...]) -> None:
    attrs = {1: made.attr(7, flags=1 << 1 | 1 << 12)}
    assert read(write(tmp_path, made.sample(1, 5, made.kfree(16)), attrs, command=command)).provenance.scope == ("machine" if "-a" in command else "tasks")


@pytest.mark.parametrize("options", [{"period": 100}, {"flags": 1 << 10, "period": 4000}])
def test_a_sample_of_the_events_is_called_so(tmp_path: Path, options: dict[str, int]) -> None:
    recording = read(write(tmp_path, made.sample(1, 5, made.kfree(16)), {1: made.attr(7, **options)}))
    assert any("not every event was recorded" in note for note in recording.provenance.notes)


def test_records_are_found_by_many_walkers_as_by_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Enough records for several walkers; what looks like a sample inside others must not mislead them, and damage is found where it is."""
    trap = struct.pack("<QQQ", 7, 3 << 48 | 9, 3 << 48 | 9) * 4  # headers of samples of 24 bytes, one after the other
    parts = [made.sample(1, n, made.kfree(16 * n) + (trap if n % 7 == 0 else b"")) for n in range(1, 3000)]
    path = write(tmp_path, b"".join(parts) + made.record(10, bytes(4000)) + parts[0], {1: made.attr(7)})
    assert len(read(path).events) == 3000
    monkeypatch.setattr(perf_data, "STRIDE", 1 << 9)
    for window in (8, 64, 256):
        monkeypatch.setattr(perf_data, "WINDOW", window)
        assert len(read(path).events) == 3000
    at = sum(map(len, parts[:2000]))
    broken = b"".join(parts[:2000]) + struct.pack("<IHH", 9, 1, 8 * 5000) + b"".join(parts[2000:2010])
    with pytest.raises(TraceError, match=f"a record of 40000 bytes at byte {at:,}"):
        read(write(tmp_path, broken, {1: made.attr(7)}))


def test_old_kernels_page_pointers(tmp_path: Path) -> None:
    old = made.event_format(
        "mm_page_alloc", 8, [("struct page * page", 8, 8, 0), ("unsigned int order", 16, 4, 0), ("gfp_t gfp_flags", 20, 4, 0), ("int migratetype", 24, 4, 1)]
    )
    recording = read(write(tmp_path, made.sample(2, 5, made.page(1)) + made.sample(1, 6, made.kfree(16)), tracing=made.tracing_data(made.KFREE, old)))
    assert len(recording.events) == 1
    assert any("1 mm_page_alloc events skipped: their format has no pfn" in note for note in recording.provenance.notes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: b"2ELIFREP" + data[8:], "big-endian machine"),
        (lambda data: data[:12], "cut off: no header"),
        (lambda data: data[:60], "cut off or damaged in the header"),
        (lambda data: data[:-50_000], "cut off"),
        (lambda data: data[:48] + bytes(8) + data[56:], "killed before it had finished"),
        (lambda data: data[:16] + struct.pack("<Q", 7) + data[24:], "damaged: attributes of 7 bytes"),
        (lambda data: data[:72] + bytes(8) + data[80:], "no event formats in it"),
    ],
)
def test_damaged_headers(tmp_path: Path, change: object, says: str) -> None:
    (tmp_path / "perf.data").write_bytes(change(gzip.decompress((DATA / "task.data.gz").read_bytes())))  # type: ignore[operator]
    with pytest.raises(TraceError, match=says) as caught:
        read(tmp_path / "perf.data")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("records", "says"),
    [
        (made.sample(1, 5, made.kfree(16)) + struct.pack("<IHH", 9, 0, 0) + bytes(8), "a record of 0 bytes at byte"),
        (made.sample(1, 5, made.kfree(16)) + struct.pack("<IHH", 9, 0, 4096), "a record of 4096 bytes"),
        (made.sample(77, 5, made.kfree(16)), "1 of 1 samples belong to no event"),
        (made.sample(1, 5, made.kfree(16)).replace(struct.pack("<I", 28), struct.pack("<I", 60)), "whose parts do not fit"),
        (made.sample(1, 5, bytes(8)), "none of its 1 allocator events"),
        (made.sample(2, 5, made.page(1, 200)), "none of its 1 allocator events"),
        (made.record(71, bytes(40)), "record type 71 among the kernel's"),
        (made.record(1, bytes(40)), "no allocator events"),
    ],
)
def test_damaged_records(tmp_path: Path, records: bytes, says: str) -> None:
    with pytest.raises(TraceError, match=says):
        read(write(tmp_path, records))


def test_big_endian_formats(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="big-endian"):
        read(write(tmp_path, made.sample(1, 5, made.kfree(16)), tracing=made.tracing_data(made.KFREE, big=1)))


@FUZZ
@given(data=st.data())
def test_damage_is_one_clear_line(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed, cut off or doubled anywhere: a recording that holds together, or one line."""
    name = data.draw(st.sampled_from(["chains", "zstd", "pipe", "made"]))
    if name == "made":
        records = b"".join(made.sample(1 + n % 2, n, made.kfree(16 * n) if not n % 2 else made.page(n)) for n in range(20))
        content = bytearray(made.perf_data(records, {1: made.attr(7), 2: made.attr(8)}, made.tracing_data(made.KFREE, made.PAGE)))
    else:
        content = bytearray(gzip.decompress((DATA / f"{name}.data.gz").read_bytes()))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, min(len(content), 4000) - 1) | st.integers(0, len(content) - 1))
        content[at : at + 1] = data.draw(st.binary(min_size=0, max_size=9))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path = tmp_path / "fuzzed"
    path.write_bytes(content)
    try:
        check(read(path))
    except MmtwinError as error:
        assert "\n" not in str(error)
