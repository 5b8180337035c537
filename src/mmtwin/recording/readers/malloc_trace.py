"""Reads what the recorder of malloc calls writes (oracle/malloc/recorder.c), and turns it into a recording and back.

In a recording's events a call's kind is the function's name, `pid` the thread (numbered from 1), `ptr` the address that it returned or was given to free,
`bytes_req` the size (of calloc the product), and `arg` the other argument: realloc's old address, an alignment, calloc's count.
"""

from __future__ import annotations

import gzip
import json
import lzma
import os
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.errors import RecordingError, TraceError
from mmtwin.recording import store
from mmtwin.recording.model import EVENTS_SCHEMA, Provenance, Recording
from mmtwin.user.ptmalloc import (
    CALL_BRK,
    CALL_CALLOC,
    CALL_FREE,
    CALL_MAPS,
    CALL_POSIX_MEMALIGN,
    CALL_REALLOC,
)
from mmtwin.user.ptmalloc_entry import CALL
from mmtwin.user.ptmalloc_tables import Ptmalloc, new_ptmalloc

MAGIC = b"MMTWMALC"
HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "u4"),
        ("record_size", "u4"),
        ("records", "u8"),
        ("mmap_base", "u8"),
        ("start_brk", "u8"),
        ("main_arena", "u8"),
        ("commit_limit", "u8"),
        ("cpus", "u4"),
        ("overcommit", "u4"),
        ("release", "S64"),
        ("comm", "S16"),
        ("libc", "S40"),
    ]
)
FUNCTIONS = (
    "", "malloc", "free", "calloc", "realloc", "memalign", "posix_memalign", "valloc", "pvalloc", "mallopt", "malloc_trim", "thread_exit", "user_maps",
    "user_brk", "thread_create",
)  # fmt: skip
"""Kinds of records by number, and the names that they have as events."""
USER_END = 1 << 47
MAX_THREADS, MAX_CPUS = 4096, 8192
KEY = "malloc"
"""Where a recording's provenance keeps the process's layout (among the texts of /proc files)."""


@dataclass(frozen=True)
class Layout:
    """The process that was recorded.

    :ivar commit_limit: pages of RAM and swap.
    :ivar overcommit: vm.overcommit_memory.
    :ivar release: of the kernel.
    """

    mmap_base: int
    start_brk: int
    main_arena: int
    commit_limit: int
    cpus: int
    overcommit: int
    release: str
    comm: str
    libc: str

    @property
    def thp_align(self) -> bool:
        """Whether the kernel aligns mappings of whole 2 MiB (since 6.7)."""
        numbers = self.release.split("-")[0].split(".")
        return tuple(int(n) for n in numbers[:2] if n.isdecimal()) >= (6, 7)

    def new_state(self, threads: int) -> Ptmalloc:
        """The process before its first call."""
        return new_ptmalloc(
            start_brk=self.start_brk, mmap_base=self.mmap_base, main_arena=self.main_arena, maps=(), threads=threads, nprocs=self.cpus,
            thp_align=self.thp_align, commit_limit=self.commit_limit, overcommit=self.overcommit,
        )  # fmt: skip


@dataclass(frozen=True)
class MallocTrace:
    """Recorded calls, in their true order (`CALL` records)."""

    layout: Layout
    calls: npt.NDArray[np.void]

    @property
    def threads(self) -> int:
        """How many threads called."""
        return int(self.calls["thread"].max(initial=1))


def read(path: str | os.PathLike[str]) -> MallocTrace:
    """Reads a recorder's file, also compressed with gzip or xz, or a recording (.mmrec) made from one.

    :raises TraceError: it is neither, or damaged.
    """
    name = Path(path)
    try:
        data = _recorded(name)
        if data[:2] == b"PK":
            return from_recording(store.load(name))
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        elif data[:6] == b"\xfd7zXZ\x00":
            data = lzma.decompress(data)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise TraceError(f"{name}: cannot be read: {error}") from None
    except RecordingError as error:
        raise TraceError(str(error)) from None
    return parse(data, str(name))


def _recorded(name: Path) -> bytes:
    """The file; of a recorder's own, which is as large as it might have become, the part that was written."""
    with open(name, "rb") as file:
        start = file.read(HEADER.itemsize)
        if start[:8] != MAGIC or len(start) < HEADER.itemsize:
            return start + file.read()
        return start + file.read(min(int(np.frombuffer(start, HEADER)[0]["records"]) * CALL.itemsize, 1 << 40))


def parse(data: bytes, name: str = "malloc trace") -> MallocTrace:
    """:raises TraceError: with the reason."""
    if len(data) < HEADER.itemsize or data[:8] != MAGIC:
        raise TraceError(f"{name}: not a malloc trace; expected a file written by oracle/malloc/recorder.c, or an .mmrec made from one")
    head = np.frombuffer(data, HEADER, 1)[0]
    if int(head["version"]) != 1 or int(head["record_size"]) != CALL.itemsize:
        raise TraceError(f"{name}: malloc trace of version {int(head['version'])}; this mmtwin reads version 1")
    count = int(head["records"])
    if count > (len(data) - HEADER.itemsize) // CALL.itemsize:
        raise TraceError(f"{name}: ends after {(len(data) - HEADER.itemsize) // CALL.itemsize:,} of {count:,} records")
    calls = np.frombuffer(data, CALL, count, HEADER.itemsize).copy()
    values: dict[str, Any] = {field: int(head[field]) for field in ("mmap_base", "start_brk", "main_arena", "commit_limit", "cpus", "overcommit")}
    values |= {field: bytes(head[field]).split(b"\0")[0].decode("ascii", "replace").strip() for field in ("release", "comm", "libc")}
    trace = MallocTrace(Layout(**values), calls)
    check(trace, name)
    return trace


def check(trace: MallocTrace, name: str = "malloc trace") -> None:
    """Whether a process could have done this, as far as the twin relies on it.

    :raises TraceError: the first record that is impossible.
    """
    layout, calls = trace.layout, trace.calls
    for field, value in (("mmap_base", layout.mmap_base), ("start_brk", layout.start_brk), ("main_arena", layout.main_arena)):
        if not 1 << 16 <= value < USER_END or value % (16 if field == "main_arena" else 4096):
            raise TraceError(f"{name}: {field} 0x{value:x} is no such address of a process")
    if not 1 <= layout.cpus <= MAX_CPUS or not 0 < layout.commit_limit < 1 << 50:
        raise TraceError(f"{name}: {layout.cpus} CPUs and {layout.commit_limit} pages of memory are not possible")
    kind, thread, result = calls["kind"].astype(np.int64), calls["thread"].astype(np.int64), calls["result"]

    def first(bad: npt.NDArray[np.bool_], why: str) -> None:
        if bad.any():
            raise TraceError(f"{name}: record {int(bad.argmax())}: {why}")

    first((kind < 1) | (kind >= len(FUNCTIONS)), "unknown kind of call")
    first((kind != CALL_MAPS) & ((thread < 1) | (thread > MAX_THREADS)), f"no such thread; they are numbered from 1 to {MAX_THREADS}")
    first((result < 0) | (result >= USER_END), "a result that is no address of a process")
    a = calls["a"]
    first((kind == CALL_BRK) & ((a < layout.start_brk) | (a > layout.start_brk + (1 << 31))), "a break far from the heap")
    maps = np.flatnonzero(kind == CALL_MAPS)
    if len(maps):
        firsts = np.flatnonzero((kind == CALL_MAPS) & (calls["first"] == 1))
        lengths = np.diff(np.append(np.searchsorted(maps, firsts), len(maps)))
        good = len(firsts) > 0 and firsts[0] == maps[0] and (calls["count"][firsts] == lengths).all()
        runs = np.repeat(firsts, lengths) + (np.arange(len(maps)) - np.repeat(np.cumsum(lengths) - lengths, lengths)) if good else maps * 0
        if not good or (runs != maps).any():
            raise TraceError(f"{name}: record {int(maps[0])}: a list of mappings is not complete")


def arguments(calls: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """The calls as `replay_entry` wants them: calloc with its product, -1 if that overflows."""
    ready = calls.copy()
    rows = np.flatnonzero(calls["kind"] == CALL_CALLOC)
    a, b = calls["a"][rows].view("u8"), calls["b"][rows].view("u8")
    small = (a < 1 << 31) & (b < 1 << 31)
    product = np.where(small, a * b, 0).astype(np.int64)
    for i in np.flatnonzero(~small):
        exact = int(a[i]) * int(b[i])
        product[i] = exact if exact < 1 << 63 else -1
    ready["b"][rows] = product
    return ready


def to_recording(trace: MallocTrace) -> Recording:
    """The trace as a recording without snapshots."""
    calls, kind = trace.calls, trace.calls["kind"]
    a, b, result = calls["a"], calls["b"], calls["result"]
    frees = kind == CALL_FREE
    sized = np.isin(kind, (CALL_REALLOC, CALL_POSIX_MEMALIGN, FUNCTIONS.index("memalign"), FUNCTIONS.index("mallopt"), CALL_MAPS))
    product = arguments(calls)["b"]
    columns: dict[str, Any] = {
        "time": np.arange(len(calls), dtype=np.int64),
        "pid": calls["thread"].astype(np.int32),
        "ptr": np.where(frees, a, result),
        "bytes_req": np.where(kind == CALL_CALLOC, product, np.where(sized, b, np.where(frees, 0, a))),
        "arg": np.where(sized | (kind == CALL_CALLOC), a, 0),
        "gfp": np.where(kind == CALL_CALLOC, b, np.where(kind == CALL_MAPS, calls["count"] * 2 + calls["first"], 0)),
    }
    default = {"pfn": -1, "order": -1, "migratetype": -1, "name": None}
    length = len(calls)
    data = {
        name: pl.Series(name, columns[name]) if name in columns
        else pl.Series(name, [FUNCTIONS[number] for number in kind.tolist()]) if name == "kind"
        else pl.repeat(default.get(name, 0), length, dtype=dtype, eager=True).alias(name)
        for name, dtype in EVENTS_SCHEMA.items()
    }  # fmt: skip
    events = pl.DataFrame(data).cast(dict(EVENTS_SCHEMA.items()))
    layout = trace.layout
    provenance = Provenance(
        kernel_release=layout.release or "unknown", ram_bytes=layout.commit_limit * 4096, cpus=1, how="malloc", workload_name=layout.comm,
        procfs={KEY: json.dumps(asdict(layout))},
        notes=[f"calls of malloc and its family by {layout.comm or 'a process'}, glibc {layout.libc or 'unknown'}; pid is the thread"],
    )  # fmt: skip
    return Recording(provenance, None, None, events)


def from_recording(recording: Recording) -> MallocTrace:
    """The trace that `to_recording` was given.

    :raises TraceError: the recording is of something else.
    """
    try:
        layout = Layout(**json.loads(recording.provenance.procfs[KEY]))
        if not all(isinstance(value, str if field in ("release", "comm", "libc") else int) for field, value in asdict(layout).items()):
            raise TypeError
    except (KeyError, TypeError, ValueError):
        raise TraceError("the recording is not of malloc calls") from None
    events = recording.events
    numbers = {name: number for number, name in enumerate(FUNCTIONS)}
    kind = np.array([numbers.get(name, 0) for name in events["kind"].cast(pl.String).to_list()], dtype=np.int64)
    calls = np.zeros(len(events), dtype=CALL)
    ptr, size, arg, gfp = (events[name].to_numpy() for name in ("ptr", "bytes_req", "arg", "gfp"))
    frees, maps, clear = kind == CALL_FREE, kind == CALL_MAPS, kind == CALL_CALLOC
    two = np.isin(kind, (CALL_REALLOC, CALL_POSIX_MEMALIGN, numbers["memalign"], numbers["mallopt"])) | maps
    calls["kind"], calls["thread"] = kind, events["pid"].to_numpy() & 0xFFFF
    calls["a"] = np.where(frees, ptr, np.where(two | clear, arg, size))
    calls["b"] = np.where(clear, gfp, np.where(two, size, 0))
    calls["result"] = np.where(frees, 0, ptr)
    calls["count"] = np.where(maps, gfp >> 1, 0)
    calls["first"] = np.where(maps, gfp & 1, 0)
    trace = MallocTrace(layout, calls)
    check(trace)
    return trace
