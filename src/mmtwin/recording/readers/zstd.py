"""Decompression of zstd streams (``perf record -z``, trace.dat version 7) with the system's libzstd, which those tools need themselves."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Iterable

from mmtwin.errors import TraceError

CHUNK = 1 << 17
LARGEST = 1 << 36
MISSING = "compressed with zstd, but this machine has no libzstd; install it (Debian: libzstd1), or record without compression"


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer (zstd.h)."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("at", ctypes.c_size_t))


def library() -> ctypes.CDLL:
    """:raises TraceError: there is none."""
    name = ctypes.util.find_library("zstd") or "libzstd.so.1"
    try:
        found = ctypes.CDLL(name)
    except OSError:
        raise TraceError(MISSING) from None
    found.ZSTD_createDStream.restype = ctypes.c_void_p
    found.ZSTD_freeDStream.argtypes = [ctypes.c_void_p]
    found.ZSTD_decompressStream.restype = ctypes.c_size_t
    found.ZSTD_decompressStream.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Buffer), ctypes.POINTER(_Buffer)]
    found.ZSTD_isError.argtypes = [ctypes.c_size_t]
    return found


def decompress(pieces: Iterable[bytes]) -> bytes:
    """The contents of one stream that is cut into pieces.

    :raises TraceError: it is damaged, or libzstd is missing.
    """
    lib = library()
    stream = lib.ZSTD_createDStream()
    room = ctypes.create_string_buffer(CHUNK)
    parts: list[bytes] = []
    total = 0
    try:
        for piece in pieces:
            held = ctypes.create_string_buffer(piece, len(piece))
            source = _Buffer(ctypes.cast(held, ctypes.c_void_p), len(piece), 0)
            while True:
                target = _Buffer(ctypes.cast(room, ctypes.c_void_p), CHUNK, 0)
                result = lib.ZSTD_decompressStream(stream, ctypes.byref(target), ctypes.byref(source))
                total += target.at
                if lib.ZSTD_isError(result) or total > LARGEST:
                    raise TraceError("damaged: its compressed records are no zstd stream")
                parts.append(room.raw[: target.at])
                if source.at == source.size and target.at < CHUNK:
                    break
    finally:
        lib.ZSTD_freeDStream(stream)
    return b"".join(parts)
