"""One function that reads whatever mmtwin can read, whichever tool wrote it: what a file is, is seen from its first bytes."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmtwin.recording.model import Recording
    from mmtwin.recording.symbols import Symbols

RECORDING, EMPTY, MALLOC = b"PK", b"", b"MMTWMALC"
GZIP = b"\x1f\x8b"
PERF_DATA = (b"PERFILE2", b"2ELIFREP")
TRACE_DAT = b"\x17\x08\x44tracing"


def read(path: str | os.PathLike[str], *, strict: bool = False, symbols: Symbols | None = None) -> Recording:
    """A recording's file, or what another tool wrote, as a recording.

    :param path: a recording (``.mmrec``); calls of malloc; a perf.data; a trace.dat; or a kernel's trace text, also of ``perf script``.
    :param strict: a malformed line of trace text is an error; otherwise it is skipped, counted and noted.
    :param symbols: the recorded kernel's, for the call sites of pages: which frame of a call chain is above the page allocator is known by name only.
    :raises RecordingError: the file is a damaged recording, or is empty, missing or no regular file.
    :raises TraceError: it is none of these, or is damaged.
    """
    where = Path(path)
    start = _start(where)
    if start is None or start == EMPTY or start.startswith(RECORDING):  # what cannot be read either is refused there, in one line
        from mmtwin.recording import store

        return store.load(where)
    return _foreign(where, start, strict, symbols)


def import_(path: str | os.PathLike[str], *, strict: bool = False, symbols: Symbols | None = None) -> Recording:
    """As `read`, of what other tools wrote alone: a recording needs no import.

    :raises TraceError: it is a recording, or nothing mmtwin reads, or is damaged or cannot be read.
    """
    where = Path(path)
    return _foreign(where, _start(where) or EMPTY, strict, symbols)


def _start(path: Path) -> bytes | None:
    """The file's first bytes, unpacked; None if it is no regular file or cannot be read."""
    try:
        if not path.is_file():
            return None
        with open(path, "rb") as file:
            start = file.read(16)
            if not start.startswith(GZIP):
                return start
            file.seek(0)
            with gzip.GzipFile(fileobj=file) as packed:
                return packed.read(16)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return GZIP
    except (OSError, ValueError):
        return None


def _foreign(path: Path, start: bytes, strict: bool, symbols: Symbols | None) -> Recording:
    if start.startswith(MALLOC):
        from mmtwin.recording.readers import malloc_trace

        return malloc_trace.to_recording(malloc_trace.read(path))
    if start.startswith(PERF_DATA):
        from mmtwin.recording.readers import perf_data

        return perf_data.read(path, symbols)
    if start.startswith(TRACE_DAT):
        from mmtwin.recording.readers import trace_dat

        return trace_dat.read(path, symbols)
    from mmtwin.recording.readers import ftrace_text

    return ftrace_text.read(path, strict=strict)
