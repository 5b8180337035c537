from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmtwin.errors import MmtwinError, RecordingError
from mmtwin.recording import store
from mmtwin.recording.model import EVENTS_SCHEMA, Provenance, Recording
from mmtwin.recording.store import load, open_recording, save
from mmtwin.recording.validate import SLAB_TABLES

FUZZ = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(small: Recording, tmp_path: Path) -> Path:
    target = tmp_path / "small.mmrec"
    save(small, target)
    return target


def refused(path: Path, says: str = ".") -> None:
    """Exactly one line, whichever way the file is read."""
    with pytest.raises(RecordingError, match=says) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def rewrite(path: Path, change: Callable[[dict[str, bytes], dict[str, Any]], object]) -> None:
    """Changes members and manifest, and makes digests and seal agree again: a forged file, or one from other software."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(members[store.MANIFEST])
    change(members, manifest)
    for name, data in members.items():
        if name in manifest["members"]:
            manifest["members"][name] |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    members = {store.MANIFEST: json.dumps(manifest).encode()} | {name: data for name, data in members.items() if name != store.MANIFEST}
    with open(path, "wb+") as file:
        store._write(file, members)


def put_member(path: Path, name: str, content: bytes) -> None:
    rewrite(path, lambda members, _: members.update({name: content}))


def parquet(table: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    return buffer.getvalue()


def equal(a: Recording, b: Recording) -> bool:
    for one, two in ((a.before, b.before), (a.after, b.after)):
        assert (one is None) == (two is None)
        if one and two:
            assert all(getattr(one, name).equals(getattr(two, name)) for name in store.TABLES)
            assert all((getattr(one, name) == getattr(two, name)).all() for name in store.ARRAYS)
            assert one.scalars == two.scalars
    return a.provenance == b.provenance and a.events.equals(b.events) and dict(a.events.schema) == EVENTS_SCHEMA


def test_what_is_saved_is_loaded(small: Recording, path: Path) -> None:
    assert equal(load(path), small)
    with open_recording(path) as file:
        assert file.manifest["kinds"]["mm_page_alloc"] == 2
        assert file.manifest["cpus"] == {"0": 6, "1": 2}
        assert file.provenance == small.provenance


def test_slab_tables_are_stored_if_there_are_any(small: Recording, slabs: Recording, tmp_path: Path) -> None:
    assert slabs.before
    mixed = replace(slabs, after=small.after)
    save(mixed, tmp_path / "slabs.mmrec")
    again = load(tmp_path / "slabs.mmrec")
    assert equal(again, mixed)
    assert again.before
    assert again.after
    assert all(getattr(again.before, name).equals(getattr(slabs.before, name)) for name in store.SLAB_TABLES)
    assert all(getattr(again.after, name) is None for name in store.SLAB_TABLES)
    assert set(store.SLAB_TABLES) == set(SLAB_TABLES)


def test_one_slab_table_alone_is_refused(slabs: Recording, tmp_path: Path) -> None:
    path = tmp_path / "slabs.mmrec"
    save(slabs, path)

    def drop(members: dict[str, bytes], manifest: dict[str, Any]) -> None:
        del members["before/slabs.parquet"], manifest["members"]["before/slabs.parquet"]

    rewrite(path, drop)
    refused(path, "member 'before/slabs.parquet' is missing")


def test_imported_text_and_nothing_at_all(small: Recording, tmp_path: Path) -> None:
    for number, recording in enumerate((replace(small, before=None, after=None), replace(small, after=None), replace(small, events=small.events.clear()))):
        save(recording, tmp_path / f"{number}.mmrec")
        assert equal(load(tmp_path / f"{number}.mmrec"), recording)


def test_chunks(small: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK", 3)
    save(small, tmp_path / "x.mmrec")
    with open_recording(tmp_path / "x.mmrec") as file:
        assert [len(chunk) for chunk in file.chunks()] == [3, 3, 2]
        assert pl.concat(file.chunks()).equals(small.events)
        assert file.events.equals(small.events)


def test_equal_recordings_make_equal_files(small: Recording, path: Path, tmp_path: Path) -> None:
    save(small, tmp_path / "again.mmrec")
    assert (tmp_path / "again.mmrec").read_bytes() == path.read_bytes()


def test_it_is_a_zip_archive_of_parquet_tables(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist()[0] == "manifest.json"
        assert archive.testzip() is None
        assert len(pl.read_parquet(archive.read("events/00000.parquet"))) == 8


def test_nothing_is_overwritten_or_left_behind(small: Recording, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    with pytest.raises(RecordingError, match="exists; choose another name or overwrite it with --force"):
        save(small, path)
    save(replace(small, after=None), path, force=True)
    assert load(path).after is None
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    now = path.read_bytes()
    with pytest.raises(RecordingError, match="cannot be written: No space left on device"):
        save(small, path, force=True)
    assert path.read_bytes() == now != before
    assert os.listdir(path.parent) == [path.name]


def test_impossible_recordings_are_not_written(small: Recording, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="cpu 1"):
        save(replace(small, provenance=replace(small.provenance, cpus=1), before=None, after=None), tmp_path / "x.mmrec")
    with pytest.raises(RecordingError, match="cannot be written: No such file or directory"):
        save(small, tmp_path / "no" / "x.mmrec")
    assert os.listdir(tmp_path) == []


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "x"
    refused(path, "cannot be read: No such file")
    refused(tmp_path, "is no regular file")
    for content in (b"", b"\0", b"hello\n" * 1000, os.urandom(5000)):
        path.write_bytes(content)
        refused(path, "expected a recording written by mmtwin")
    for name, content in (("a.txt", b"x"), ("manifest.json", b"{}"), ("manifest.json", b'{"format": "mmrec"'), ("manifest.json", b"[" * 100_000)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)
        refused(path, "expected a recording|not JSON")
    with zipfile.ZipFile(path, "w"):
        pass
    refused(path, "an archive without manifest.json")


def test_repacked_by_another_program(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in members:
                archive.writestr(name, data)
        refused(path, "damaged or was changed")


def forged(path: Path, says: str, **entries: Any) -> None:
    data = path.read_bytes()
    rewrite(path, lambda _, manifest: manifest.update(entries))
    refused(path, says)
    path.write_bytes(data)


def test_wrong_manifests(path: Path) -> None:
    forged(path, "format version 2 is newer than this mmtwin reads", version=2)
    forged(path, "version None is impossible", version=None)
    forged(path, "version True is impossible", version=True)
    forged(path, "another kind of archive", format="zip")
    forged(path, "events or chunks is no number", events=-1)
    forged(path, "cannot be in 10000000000 chunks", chunks=10**10)
    forged(path, "kinds is not one count for each", kinds={"kfree": "8"})
    forged(path, "counts in the manifest do not agree", kinds={"kfree": 8})
    forged(path, "counts in the manifest do not agree", cpus={"0": 8})
    forged(path, "member 'after/free.parquet' is unknown", scalars={"before": {}, "after": None})
    forged(path, "no scalar min_free_kbytes", scalars={"before": {}, "after": {}})
    forged(path, "scalars is no table", scalars=None)
    forged(path, "provenance is no table", provenance=[])
    entries = json.loads(zipfile.ZipFile(path).read(store.MANIFEST))["provenance"]
    forged(path, "provenance: cpus is missing or of a wrong type", provenance={**entries, "cpus": "2"})
    forged(path, "notes must hold texts", provenance={**entries, "notes": [1]})
    forged(path, "unknown entry 'weather'", provenance={**entries, "weather": "fine"})
    forged(path, "cpus, ram_bytes, initrd_bytes, swap_bytes, lost_events or missed_probes is impossible", provenance={**entries, "cpus": 10**6})


def test_wrong_members(small: Recording, path: Path) -> None:
    data = path.read_bytes()
    free = "before/free.parquet"
    assert small.before
    for name, content, says in (
        (free, b"PAR1 nonsense PAR1", "not a Parquet table"),
        (free, parquet(small.before.free.slice(1)), "2 rows; expected 3"),
        (free, parquet(small.before.free.rename({"pfn": "frame"})), "no column pfn"),
        (free, parquet(small.before.free.with_columns(pl.col("pfn").cast(pl.String))), "column pfn is String; expected Int64"),
        (free, parquet(small.before.free.with_columns(pfn=pl.lit(5000, dtype=pl.Int64))), "pfn 5000 is impossible"),
        ("after/pages.parquet", parquet(pl.DataFrame({"pages": [1] * 4096})), "expected one column pages of unsigned bytes"),
        ("events/00000.parquet", parquet(small.events.with_columns(cpu=pl.lit(7, dtype=pl.Int16))), "counts in the manifest do not agree"),
        ("events/00000.parquet", parquet(small.events.with_columns(pl.col("kind").cast(pl.String))), "column kind is String"),
        ("events/00000.parquet", parquet(small.events.with_columns(kind=pl.Series(["new"] * 8, dtype=pl.Enum(["new"])))), "unknown kind of event 'new'"),
        ("events/00000.parquet", parquet(small.events.with_columns(order=pl.lit(11, dtype=pl.Int8))), "order 11 is impossible"),
    ):
        put_member(path, name, content)
        refused(path, says)
        path.write_bytes(data)
    rewrite(path, lambda members, _: members.pop(free))
    refused(path, "members of the archive and of its manifest differ")
    path.write_bytes(data)
    rewrite(path, lambda members, manifest: (members.pop(free), manifest["members"].pop(free)))
    refused(path, "member 'before/free.parquet' is missing")


def test_files_with_fewer_kinds_stay_readable(small: Recording, path: Path) -> None:
    kinds = sorted(set(small.events["kind"].cast(pl.String)))
    old = small.events.with_columns(pl.col("kind").cast(pl.String).cast(pl.Enum(kinds)))
    put_member(path, "events/00000.parquet", parquet(old))
    assert equal(load(path), small)


def test_chunks_are_checked(path: Path, small: Recording) -> None:
    bad = small.events.with_columns(order=pl.lit(11, dtype=pl.Int8))
    put_member(path, "events/00000.parquet", parquet(bad))
    with open_recording(path) as file, pytest.raises(RecordingError, match="events chunk 0 row 0: order 11"):
        list(file.chunks())


def test_the_provenance_types_are_those_of_the_model() -> None:
    defaults = Provenance()
    assert set(store.PROVENANCE_TYPES) == {field.name for field in fields(Provenance)}
    assert all(isinstance(getattr(defaults, name), kind) for name, kind in store.PROVENANCE_TYPES.items())


def test_the_manifest_is_read_without_polars_and_numba(path: Path) -> None:
    code = (
        "import sys; from mmtwin.recording.store import open_recording; f = open_recording(sys.argv[1]); assert f.manifest['events'] == 8;"
        "assert not {'polars', 'numba', 'numpy'} & set(sys.modules); f.provenance, f.before, f.events; assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True)


def test_every_header_bit_counts(small: Recording, path: Path) -> None:
    """All of the first headers and of the end of the directory, where a ZIP reader would overlook most of them."""
    data = path.read_bytes()
    places = [*range(45), *range(len(data) - 170, len(data))]
    for at in places:
        for bit in (1, 128):
            path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            with pytest.raises(RecordingError):
                load(path)


@FUZZ
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(path: Path, where: float, bit: int) -> None:
    data = path.read_bytes()
    at = int(where * len(data))
    damaged = path.parent / "damaged.mmrec"
    damaged.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
    refused(damaged)


@FUZZ
@given(where=st.floats(0, 1, exclude_max=True), extra=st.binary(max_size=30))
def test_any_cut_or_lengthened_file_is_found(path: Path, where: float, extra: bytes) -> None:
    data = path.read_bytes()
    damaged = path.parent / "damaged.mmrec"
    damaged.write_bytes(data[: int(where * len(data))] + extra)
    refused(damaged)
    damaged.write_bytes(data + extra + b"x")
    refused(damaged)
    damaged.write_bytes(extra + b"x" + data)
    refused(damaged)


@FUZZ
@given(content=st.one_of(st.binary(max_size=500), st.binary(max_size=100).map(lambda b: b"PK\x03\x04" + b + b"PK\x05\x06" + b)))
def test_random_bytes_are_no_recording(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(MmtwinError):
        load(tmp_path / "x")


@FUZZ
@given(where=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_forged_tables_raise_nothing_else(path: Path, small: Recording, where: float, byte: int) -> None:
    """Bytes of a Parquet member changed and all digests made to agree."""
    good = path.read_bytes()

    def change(members: dict[str, bytes], _: dict[str, Any]) -> None:
        data = members["before/free.parquet"]
        at = int(where * len(data))
        members["before/free.parquet"] = data[:at] + bytes([byte]) + data[at + 1 :]

    forged_path = path.parent / "forged.mmrec"
    forged_path.write_bytes(good)
    rewrite(forged_path, change)
    try:
        load(forged_path)
    except MmtwinError as error:
        assert "\n" not in str(error)
