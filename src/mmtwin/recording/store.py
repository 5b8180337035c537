"""One recording in one file, ``.mmrec``: a ZIP archive of a manifest and Parquet tables, readable in pieces and by other tools.

Members, stored without further compression (Parquet compresses its columns with zstd)::

    manifest.json                    format, version, provenance, scalars, counts, and size and SHA-256 of every other member
    before/<table>.parquet           zones free pcp pcp_pages memory_map, and one-column tables pageblocks and pages;
                                     with SLUB's state also caches cache_cpus slabs free_objects random_seq,
                                     with virtual areas vmap_areas vmap_vms vmap_cpus vmap_blocks vmap_page_tables
    after/<table>.parquet            the same after the workload; imported text has neither
    events/00000.parquet ...         `CHUNK` events each

The archive's comment is the *seal*: the SHA-256 of every byte of the file that belongs to no member but the manifest (so of the ZIP
headers and the manifest), followed by nothing. A single changed or missing bit anywhere is therefore found: at opening if it is in the
skeleton, when the member is read if it is in a table. The seal protects against damage, not against forgery; what a forged file could do
to the replay is prevented by `mmtwin.recording.validate`.

Opening a file and reading its manifest imports neither polars nor numba.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TypeGuard

from mmtwin.errors import RecordingError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from mmtwin.recording.model import Provenance, Recording, Snapshot

FORMAT, VERSION = "mmrec", 1
CHUNK = 1 << 18
"""Events per member: the replay's step between two looks at the progress bar and at Ctrl-C."""
MANIFEST = "manifest.json"
SNAPSHOTS = ("before", "after")
TABLES = ("zones", "free", "pcp", "pcp_pages", "memory_map")
ARRAYS = ("pageblocks", "pages")
SLAB_TABLES = ("caches", "cache_cpus", "slabs", "free_objects", "random_seq")
"""SLUB's tables: all of them or none, with each snapshot."""
CLASSIC_TABLES = ("classic_caches", "classic_arrays", "classic_entries", "classic_slabs", "classic_indices")
"""The classic SLAB's; the same."""
VMAP_TABLES = ("vmap_areas", "vmap_vms", "vmap_cpus", "vmap_blocks", "vmap_page_tables")
"""Those of virtual areas; the same. In `Snapshot.vmaps` their names are without the prefix."""
VMAP_PREFIX = "vmap_"
SEAL = b"mmrec "
SEAL_SIZE = len(SEAL) + 64
LOCAL_HEADER = struct.Struct("<4s5H3L2H")  # APPNOTE.TXT 4.3.7
EPOCH = (1980, 1, 1, 0, 0, 0)  # no clock in the file: equal recordings make equal files
NOT_OURS = "expected a recording written by mmtwin (.mmrec)"
DAMAGED = "the file is damaged or was changed; make or copy it again"


def save(recording: Recording, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Writes a recording; the file appears whole or not at all.

    :param force: overwrite an existing file.
    :raises RecordingError: the file exists, cannot be written, or the recording holds values no kernel can produce.
    """
    from mmtwin.recording.validate import check

    target = Path(path)
    check(recording)
    _refuse_existing(target, force)
    content = _serialise(recording)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "xb+") as file:
                _write(file, content)
                file.flush()
                os.fsync(file.fileno())
            _refuse_existing(target, force)
            os.replace(temporary, target)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    except (OSError, ValueError) as error:
        raise RecordingError(f"{target}: cannot be written: {_reason(error)}") from error


def open_recording(path: str | os.PathLike[str]) -> RecordingFile:
    """Opens a file and reads its manifest; tables are read when asked for.

    :raises RecordingError: not a recording, damaged, or made by a newer version.
    """
    return RecordingFile(path)


def load(path: str | os.PathLike[str]) -> Recording:
    """Reads and checks a whole recording.

    :raises RecordingError: not a recording, damaged, made by a newer version, or with values no kernel can produce.
    """
    from mmtwin.recording.model import Recording
    from mmtwin.recording.validate import check

    with open_recording(path) as file:
        recording = Recording(file.provenance, file.before, file.after, file.events)
        with file._named():
            check(recording)
    return recording


class RecordingFile:
    """A recording on disk, read in pieces. A context manager; closing it leaves what was read usable.

    :ivar path: the file.
    :ivar manifest: the decoded manifest: format, version, provenance, scalars, events, chunks, kinds, cpus, members.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():  # opening a pipe would wait, reading a device might never end
            raise RecordingError(f"{self.path}: is no regular file; {NOT_OURS}")
        try:
            self._file: BinaryIO = open(self.path, "rb")  # noqa: SIM115 - closed by close()
        except (OSError, ValueError) as error:
            raise RecordingError(f"{self.path}: cannot be read: {_reason(error)}") from error
        try:
            with self._named():
                self._at, self.manifest = _open(self._file)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; tables not yet read can then no longer be read."""
        self._file.close()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Puts the file's name before the message of a RecordingError raised inside, and makes one of a read error."""
        try:
            yield
        except RecordingError as error:
            raise RecordingError(f"{self.path}: {error}") from error.__cause__
        except (OSError, ValueError, MemoryError) as error:
            raise RecordingError(f"{self.path}: cannot be read: {_reason(error)}") from error

    @cached_property
    def provenance(self) -> Provenance:
        """Where the recording comes from. (Without importing polars: ``manifest["provenance"]``, the same as a dict.)

        :raises RecordingError: an entry that this mmtwin does not know.
        """
        from mmtwin.recording.model import Provenance

        entries = self.manifest["provenance"]
        unknown = sorted(set(entries) - {field.name for field in fields(Provenance)})
        if unknown:
            raise RecordingError(f"{self.path}: provenance has an unknown entry {unknown[0][:60]!r}; a newer mmtwin may have written the file")
        return Provenance(**entries)

    @cached_property
    def before(self) -> Snapshot | None:
        """The state before the first event; None for imported text.

        :raises RecordingError: damaged, or wrong columns.
        """
        return self._snapshot("before")

    @cached_property
    def after(self) -> Snapshot | None:
        """The state after the last event; None for imported text.

        :raises RecordingError: damaged, or wrong columns.
        """
        return self._snapshot("after")

    def chunks(self) -> Iterator[pl.DataFrame]:
        """The events in order, `CHUNK` at a time, checked against the first snapshot.

        :raises RecordingError: damaged, wrong columns, or values no kernel can produce.
        """
        from mmtwin.recording.validate import check_events

        machine = self.before or self.after
        for number in range(self.manifest["chunks"]):
            table = self._chunk(number)
            with self._named():
                check_events(table, self.manifest["provenance"]["cpus"], machine, f"events chunk {number}")
            yield table

    @cached_property
    def events(self) -> pl.DataFrame:
        """All events in one table, with the columns of EVENTS_SCHEMA; their values are not checked (`load` does).

        :raises RecordingError: damaged, or wrong columns.
        """
        import polars as pl

        from mmtwin.recording.model import EVENTS_SCHEMA

        parts = [self._chunk(number) for number in range(self.manifest["chunks"])]
        with self._named():
            table = pl.concat(parts) if parts else pl.DataFrame(schema=EVENTS_SCHEMA)
            kinds = {str(kind): count for kind, count in table["kind"].value_counts().iter_rows()}
            cpus = {str(cpu): count for cpu, count in table["cpu"].value_counts().iter_rows()}
            if kinds != self.manifest["kinds"] or cpus != self.manifest["cpus"]:
                raise RecordingError("counts in the manifest do not agree with the events; the file was not written by mmtwin")
        return table

    def _chunk(self, number: int) -> pl.DataFrame:
        import polars as pl

        from mmtwin.recording.model import EVENTS_SCHEMA, KINDS
        from mmtwin.recording.validate import check_columns

        name, first = f"events/{number:05}.parquet", number * CHUNK
        table = self._table(name, min(CHUNK, self.manifest["events"] - first))
        with self._named():
            kind = table.schema.get("kind")
            if isinstance(kind, pl.Enum) and kind != EVENTS_SCHEMA["kind"]:  # KINDS may have grown since
                unknown = [k for k in kind.categories if k not in KINDS]
                if unknown:
                    raise RecordingError(f"{name}: unknown kind of event {unknown[0]!r}; a newer mmtwin wrote the file")
                table = table.with_columns(pl.col("kind").cast(pl.Enum(KINDS)))
            check_columns(table, EVENTS_SCHEMA, name)
            return table.select(list(EVENTS_SCHEMA))

    def _snapshot(self, label: str) -> Snapshot | None:
        from mmtwin.recording.model import Snapshot

        scalars = self.manifest["scalars"][label]
        if scalars is None:
            return None
        names = TABLES + SLAB_TABLES if f"{label}/{SLAB_TABLES[0]}.parquet" in self.manifest["members"] else TABLES
        tables = {name: self._table(f"{label}/{name}.parquet") for name in names}
        pageblocks, pages = (self._array(f"{label}/{name}.parquet", name) for name in ARRAYS)
        classic = None
        if f"{label}/{CLASSIC_TABLES[0]}.parquet" in self.manifest["members"]:
            classic = {name: self._table(f"{label}/{name}.parquet") for name in CLASSIC_TABLES}
        vmaps = None
        if f"{label}/{VMAP_TABLES[0]}.parquet" in self.manifest["members"]:
            vmaps = {name.removeprefix(VMAP_PREFIX): self._table(f"{label}/{name}.parquet") for name in VMAP_TABLES}
        snapshot = Snapshot(**tables, pageblocks=pageblocks, pages=pages, scalars=dict(scalars), classic=classic, vmaps=vmaps)
        from mmtwin.recording.validate import check_snapshot

        with self._named():
            check_snapshot(snapshot, self.manifest["provenance"]["cpus"], label)
        return snapshot

    def _array(self, name: str, column: str) -> npt.NDArray[np.uint8]:
        import polars as pl

        table = self._table(name)
        if table.columns != [column] or table.schema[column] != pl.UInt8 or table[column].null_count():
            raise RecordingError(f"{self.path}: {name}: expected one column {column} of unsigned bytes")
        return table[column].to_numpy(writable=True)

    def _table(self, name: str, rows: int | None = None) -> pl.DataFrame:
        """A member as a table; `rows`, or what the manifest says, is checked before anything is unpacked."""
        import polars as pl

        member = self.manifest["members"][name]
        rows = member["rows"] if rows is None else rows
        with self._named():
            try:
                self._file.seek(self._at[name])
                data = self._file.read(member["size"])
            except (OSError, ValueError) as error:
                raise RecordingError(f"{name} cannot be read: {_reason(error)}") from error
            if hashlib.sha256(data).hexdigest() != member["sha256"]:
                raise RecordingError(f"{name}: wrong SHA-256; {DAMAGED}")
            try:
                found = int(pl.scan_parquet(io.BytesIO(data)).select(pl.len()).collect().item())
                if found != rows or found != member["rows"]:
                    raise RecordingError(f"{name}: {found} rows; expected {rows}")
                return pl.read_parquet(io.BytesIO(data))
            except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, ArithmeticError) as error:
                raise RecordingError(f"{name}: not a Parquet table: {_reason(error)}") from error


def _refuse_existing(path: Path, force: bool) -> None:
    if not force and os.path.lexists(path):
        raise RecordingError(f"{path}: exists; choose another name or overwrite it with --force")


def _reason(error: BaseException) -> str:
    """One line of an exception of somebody else."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:200]


# Writing ------------------------------------------------------------------------------------------------------------------------------------


def _serialise(recording: Recording) -> dict[str, bytes]:
    """All members by name, the manifest first."""
    import polars as pl

    tables: dict[str, pl.DataFrame] = {}
    scalars: dict[str, dict[str, int] | None] = dict.fromkeys(SNAPSHOTS)
    for label in SNAPSHOTS:
        snapshot = getattr(recording, label)
        if snapshot is None:
            continue
        scalars[label] = dict(snapshot.scalars)
        tables |= {f"{label}/{name}.parquet": getattr(snapshot, name) for name in TABLES + SLAB_TABLES if getattr(snapshot, name) is not None}
        tables |= {f"{label}/{name}.parquet": pl.DataFrame({name: getattr(snapshot, name)}) for name in ARRAYS}
        tables |= {f"{label}/{name}.parquet": table for name, table in (snapshot.classic or {}).items()}
        tables |= {f"{label}/{VMAP_PREFIX}{name}.parquet": table for name, table in (snapshot.vmaps or {}).items()}
    events = recording.events
    chunks = -(-len(events) // CHUNK)
    tables |= {f"events/{number:05}.parquet": events.slice(number * CHUNK, CHUNK) for number in range(chunks)}
    members: dict[str, bytes] = {}
    for name, table in tables.items():
        buffer = io.BytesIO()
        table.write_parquet(buffer, compression="zstd", statistics=False)
        members[name] = buffer.getvalue()
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "provenance": asdict(recording.provenance),
        "scalars": scalars,
        "events": len(events),
        "chunks": chunks,
        "kinds": {str(kind): count for kind, count in events["kind"].value_counts(sort=True).iter_rows()},
        "cpus": {str(cpu): count for cpu, count in events["cpu"].value_counts().sort("cpu").iter_rows()},
        "members": {name: {"size": len(data), "rows": len(tables[name]), "sha256": hashlib.sha256(data).hexdigest()} for name, data in members.items()},
    }
    _check_manifest(manifest)
    return {MANIFEST: json.dumps(manifest, indent=1).encode()} | members


def _write(file: BinaryIO, members: Mapping[str, bytes]) -> None:
    """The archive with its seal, which is written last because it covers the directory."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
        archive.comment = b" " * SEAL_SIZE
    file.flush()
    _, seal, _ = _skeleton(file)
    file.seek(-SEAL_SIZE, os.SEEK_END)
    file.write(seal)


# Reading ------------------------------------------------------------------------------------------------------------------------------------


def _skeleton(file: BinaryIO) -> tuple[dict[str, tuple[int, int]], bytes, bytes]:
    """Follows the archive's structure.

    :returns: where each member's data begins and its size; the seal the file should have; the manifest's text.
    :raises RecordingError: no archive, or one that was not written by `_write`.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    # zipfile meets damaged numbers with quite different exceptions
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        struct.error,
        EOFError,
        OverflowError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        IndexError,
        MemoryError,
    ) as error:
        raise RecordingError(f"not a recording, or cut off: no archive directory; {NOT_OURS}") from error
    if not entries or entries[0].filename != MANIFEST:
        raise RecordingError(f"an archive without {MANIFEST} as its first member; {NOT_OURS}")
    size = file.seek(0, os.SEEK_END)
    digest, at, where, text = hashlib.sha256(), 0, {}, b""
    for entry in entries:
        if entry.header_offset != at or entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.filename in where:
            raise RecordingError(f"an archive that mmtwin has not written, or {DAMAGED}")
        file.seek(at)
        header = file.read(LOCAL_HEADER.size)
        if len(header) < LOCAL_HEADER.size:
            raise RecordingError(f"cut off; {DAMAGED}")
        header += file.read(sum(LOCAL_HEADER.unpack(header)[-2:]))
        digest.update(header)
        begin = at + len(header)
        where[entry.filename] = (begin, entry.file_size)
        at = begin + entry.file_size
        if at > size - SEAL_SIZE:
            raise RecordingError(f"cut off in {entry.filename[:60]!r}; {DAMAGED}")
        if entry.filename == MANIFEST:
            file.seek(begin)
            text = file.read(entry.file_size)
            digest.update(text)
    file.seek(at)
    digest.update(file.read(size - SEAL_SIZE - at))
    return where, SEAL + digest.hexdigest().encode(), text


def _open(file: BinaryIO) -> tuple[dict[str, int], dict[str, Any]]:
    """:returns: where each member's data begins, and the manifest."""
    where, seal, text = _skeleton(file)
    manifest = _decode(text)  # before the seal, so that a newer format or a foreign archive is called so
    file.seek(-SEAL_SIZE, os.SEEK_END)
    if file.read() != seal:
        raise RecordingError(f"wrong seal; {DAMAGED}")
    _check_manifest(manifest)
    members = manifest["members"]
    if {name: begin_size[1] for name, begin_size in where.items() if name != MANIFEST} != {name: member["size"] for name, member in members.items()}:
        raise RecordingError(f"members of the archive and of its manifest differ; {DAMAGED}")
    return {name: begin for name, (begin, _) in where.items()}, manifest


def _decode(text: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"{MANIFEST} is not JSON; {DAMAGED}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RecordingError(f"another kind of archive; {NOT_OURS}")
    version = manifest.get("version")
    if not _is_count(version) or version < 1:
        raise RecordingError(f"{MANIFEST}: version {str(version)[:40]} is impossible; {DAMAGED}")
    if version > VERSION:
        raise RecordingError(f"format version {version} is newer than this mmtwin reads ({VERSION}); update mmtwin")
    return manifest


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


PROVENANCE_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "kernel_release": str, "kernel_version": str, "kernel_config": dict, "cmdline": str, "ram_bytes": int, "initrd_bytes": int, "swap_bytes": int, "cpus": int, "how": str, "workload": str, "workload_name": str,
    "workload_seconds": (int, float), "lost_events": int, "missed_probes": int, "probes": list, "modules": dict, "procfs": dict, "notes": list, "scope": str, "tool": str,
}  # fmt: skip
"""Types of the provenance in JSON, written here because the model imports polars (a test compares them)."""
LATER_ENTRIES = ("modules", "swap_bytes", "scope")
"""Entries that recordings of older mmtwin do not have."""


def _need(good: object, what: str) -> None:
    if not good:
        raise RecordingError(f"{MANIFEST}: {what}; the file was not written by mmtwin")


def _check_manifest(manifest: dict[str, Any]) -> None:
    """Every key that the rest of this module relies on, with its type."""
    for key in ("kinds", "cpus", "scalars", "members", "provenance"):
        _need(isinstance(manifest.get(key), dict), f"{key} is no table")
    _need(_is_count(manifest.get("events")) and _is_count(manifest.get("chunks")), "events or chunks is no number")
    _need(manifest["chunks"] == -(-manifest["events"] // CHUNK), f"{manifest['events']} events cannot be in {manifest['chunks']} chunks")
    for key in ("kinds", "cpus"):
        counts = manifest[key].values()
        _need(all(map(_is_count, counts)) and sum(counts) == manifest["events"], f"{key} is not one count for each, together the events")
    scalars, members, provenance = manifest["scalars"], manifest["members"], manifest["provenance"]
    _need(set(scalars) == set(SNAPSHOTS) and all(s is None or isinstance(s, dict) for s in scalars.values()), "scalars is not one table for each snapshot")
    for name, member in members.items():
        good = isinstance(member, dict) and _is_count(member.get("size")) and _is_count(member.get("rows")) and isinstance(member.get("sha256"), str)
        _need(good, f"no size, rows and SHA-256 of {name[:60]!r}")
    wanted = {f"{label}/{name}.parquet" for label in SNAPSHOTS if scalars[label] is not None for name in TABLES + ARRAYS}
    for label in SNAPSHOTS:
        for slab in ({f"{label}/{name}.parquet" for name in names} for names in (SLAB_TABLES, CLASSIC_TABLES, VMAP_TABLES)):
            wanted |= slab if scalars[label] is not None and slab & set(members) else set()
    wanted |= {f"events/{number:05}.parquet" for number in range(min(manifest["chunks"], len(members) + 1))}
    for name in sorted(wanted ^ set(members)):
        _need(False, f"member {name[:60]!r} is {'missing' if name in wanted else 'unknown'}")
    for name, kind in PROVENANCE_TYPES.items():
        if name in LATER_ENTRIES and name not in provenance:
            continue
        value = provenance.get(name)
        _need(isinstance(value, kind) and not isinstance(value, bool), f"provenance: {name} is missing or of a wrong type")
        if isinstance(value, (list, dict)):
            _need(all(isinstance(v, str) for v in (value.values() if isinstance(value, dict) else value)), f"provenance: {name} must hold texts")
    _need(
        1 <= provenance["cpus"] <= 8192
        and all(provenance.get(name, 0) >= 0 for name in ("ram_bytes", "initrd_bytes", "swap_bytes", "lost_events", "missed_probes")),
        "provenance: cpus, ram_bytes, initrd_bytes, swap_bytes, lost_events or missed_probes is impossible",
    )
