"""The kernel's trace ring buffer, read out of the guest's memory while it runs.

The guest never reads its own trace: the host looks at the buffer's pages through the file that backs the guest's RAM, so
recording costs the guest no allocation of its own and a recording may be much longer than the buffer.

Layout: kernel/trace/ring_buffer.c (``struct ring_buffer_per_cpu``, ``struct buffer_page``, ``struct buffer_data_page``) and
include/linux/ring_buffer.h (event headers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

PAGE_SIZE = 4096
DATA_OFFSET = 16
"""Bytes of ``struct buffer_data_page`` before its data: time_stamp (8 bytes) and commit (a word)."""

PADDING, TIME_EXTEND, TIME_STAMP = 29, 30, 31
TIME_MASK = (1 << 64) - 1
COMMIT_MASK = (1 << 20) - 1
"""The bits of ``commit`` above are flags for readers."""


@dataclass
class CpuBuffer:
    """One CPU's ring buffer and how far it has been read."""

    address: int
    page: int = 0
    """virtual address of the ``struct buffer_page`` that is being read"""
    stamp: int = -1
    """the time stamp of that page when it was first seen: another one means that the writer has lapped the reader"""
    done: list[bytes] = field(default_factory=list)
    partial: bytes = b""
    lapped: int = 0

    @property
    def pages(self) -> list[bytes]:
        return [*self.done, self.partial] if self.partial else self.done


class RingBuffer:
    """Follows the per-CPU buffers of ``global_trace`` in a guest whose memory is readable by virtual address.

    :param read: ``read(address, size) -> bytes`` of direct-mapped guest memory; the guest must be stopped while it is called.
    :param cpus: address of ``struct ring_buffer_per_cpu`` for each CPU.
    :param offsets: byte offsets of the fields used, by ``"struct.field"`` (from DWARF).
    """

    def __init__(self, read: Callable[[int, int], bytes], cpus: list[int], offsets: Mapping[str, int]) -> None:
        self._read, self._offset = read, offsets
        self.data_offset = offsets.get("buffer_data_page.data", DATA_OFFSET)
        self._word = self.data_offset - 8
        self.cpus = [CpuBuffer(address) for address in cpus]

    def _long(self, address: int) -> int:
        return int.from_bytes(self._read(address, self._word), "little")

    def entries(self, cpu: int) -> int:
        """Events ever written on `cpu`."""
        return self._long(self.cpus[cpu].address + self._offset["ring_buffer_per_cpu.entries"])

    def poll(self) -> int:
        """Copies what was written since the last call; returns the number of bytes copied."""
        copied = 0
        for buffer in self.cpus:
            commit = self._long(buffer.address + self._offset["ring_buffer_per_cpu.commit_page"])
            if not buffer.page:
                buffer.page = self._long(buffer.address + self._offset["ring_buffer_per_cpu.head_page"])
            while True:
                data = self._long(buffer.page + self._offset["buffer_page.page"])
                head = self._read(data, self.data_offset)
                stamp, length = (int.from_bytes(part, "little") for part in (head[:8], head[8:]))
                if buffer.stamp not in (-1, stamp):
                    buffer.lapped += 1
                length &= COMMIT_MASK
                buffer.stamp = stamp
                buffer.partial = self._read(data, self.data_offset + length)
                copied += length
                if buffer.page == commit:
                    break
                buffer.done.append(buffer.partial)
                buffer.partial, buffer.stamp = b"", -1
                buffer.page = self._long(buffer.page + self._offset["buffer_page.list.next"]) & ~3
        return copied


def parse_pages(pages: list[bytes], data_offset: int = DATA_OFFSET) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Splits ring-buffer pages into events.

    :returns: time stamps, offsets of each event's payload in the joined bytes, and the joined bytes (with 32 spare bytes at the end,
        so that fields of the last event may be gathered without a length check).
    """
    stamps, offsets, _ = split_pages(pages, data_offset)
    return stamps, offsets, np.frombuffer(b"".join(pages) + bytes(32), dtype=np.uint8)


def split_pages(pages: list[bytes], data_offset: int = DATA_OFFSET) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """As `parse_pages`: time stamps, offsets in the joined pages, and how many bytes of its page an event may have at most.

    Pages of a damaged file end where an event does not fit.
    """
    stamps: list[int] = []
    offsets: list[int] = []
    sizes: list[int] = []
    base = 0
    for page in pages:
        stamp = int.from_bytes(page[:8], "little")
        words = memoryview(page[: len(page) // 4 * 4]).cast("I")
        i, end = data_offset // 4, len(words)
        while i < end:
            header = words[i]
            kind, delta = header & 31, header >> 5
            if not 0 < kind < PADDING and i + 1 >= end:
                break
            if kind == TIME_EXTEND:
                stamp += (words[i + 1] << 27) + delta
                i += 2
            elif kind == TIME_STAMP:
                stamp = (stamp & ~((1 << 59) - 1)) | (words[i + 1] << 27) | delta
                i += 2
            elif kind == PADDING:
                if not delta:
                    break
                stamp += delta
                i += 1 + words[i + 1] // 4
            else:
                stamp += delta
                step = 1 + (words[i + 1] // 4 if kind == 0 else kind)
                start = i + (2 if kind == 0 else 1)
                i += step
                if i > end:
                    break
                stamps.append(stamp & TIME_MASK)
                offsets.append(base + 4 * start)
                sizes.append(4 * (i - start))
        base += len(page)
    return np.array(stamps, dtype=np.uint64), np.array(offsets, dtype=np.int64), np.array(sizes, dtype=np.int64)


def gather(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], size: int, signed: bool) -> npt.NDArray[np.int64]:
    """Reads an integer of `size` bytes at each of `offsets`, as int64 (unsigned 64-bit values keep their bits)."""
    raw = data[offsets[:, None] + np.arange(size)]
    return np.ascontiguousarray(raw).view(f"<{'i' if signed else 'u'}{size}").ravel().astype(np.int64)
