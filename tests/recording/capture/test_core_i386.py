"""Dumps of 32-bit machines: an ELF file of either class, made here, with a few page tables in it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from mmtwin.errors import CaptureError
from mmtwin.recording.capture import core_i386
from mmtwin.recording.capture.core_i386 import PAGE_OFFSET, Core, KernelView, is_i386

NOTE = b"OSRELEASE=6.1.0-50-686\nPAGESIZE=4096\n"
LOW = 0x8000
"""Bytes of direct map in these dumps; memory goes on behind."""


def dump(path: Path, memory: dict[int, bytes], wide: bool, note: bytes = NOTE, machine: int = 3) -> Path:
    """An ELF core with these runs of physical memory."""
    parts = [(4, 0, note), *((1, address, data) for address, data in memory.items())]
    header, entry = (64, 56) if wide else (52, 32)
    at = header + entry * len(parts)
    headers, body = b"", b""
    for kind, address, data in parts:
        offset = at + len(body)
        if wide:
            headers += struct.pack("<IIQQQQQQ", kind, 0, offset, 0, address, len(data), len(data), 0)
        else:
            headers += struct.pack("<IIIIIIII", kind, offset, 0, address, len(data), len(data), 0, 0)
        body += data
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    if wide:
        head = ident + struct.pack("<HHIQQQIHHHHHH", 4, machine, 1, 0, header, 0, 0, header, entry, len(parts), 0, 0, 0)
    else:
        head = ident + struct.pack("<HHIIIIIHHHHHH", 4, machine, 1, 0, header, 0, 0, header, entry, len(parts), 0, 0, 0)
    path.write_bytes(head + headers + body)
    return path


def tables(pae: bool) -> dict[int, bytes]:
    """Memory of 64 KiB whose tables at 0x1000 map 0xF8000000 to the page at 0xC000, and a huge page at 0xF8400000 (PAE: 0xF8200000) to 0."""
    memory = bytearray(0x10000)
    address = 0xF800_0000
    memory[0xC000:0xC006] = b"mapped"
    if pae:
        struct.pack_into("<Q", memory, 0x1000 + 8 * (address >> 30), 0x2001)
        struct.pack_into("<Q", memory, 0x2000 + 8 * (address >> 21 & 511), 0x3003)
        struct.pack_into("<Q", memory, 0x2000 + 8 * ((address >> 21 & 511) + 1), 0x83)
        struct.pack_into("<Q", memory, 0x3000 + 8 * (address >> 12 & 511), 0xC003)
    else:
        struct.pack_into("<I", memory, 0x1000 + 4 * (address >> 22), 0x3003)
        struct.pack_into("<I", memory, 0x1000 + 4 * ((address >> 22) + 1), 0x83)
        struct.pack_into("<I", memory, 0x3000 + 4 * (address >> 12 & 1023), 0xC003)
    return {0: bytes(memory[:0x9000]), 0x9000: bytes(memory[0x9000:])}


@pytest.mark.parametrize("wide", [False, True])
def test_which_dumps_are_of_32_bit_machines(tmp_path: Path, wide: bool) -> None:
    assert is_i386(dump(tmp_path / "a", {0: bytes(4096)}, wide))
    assert not is_i386(dump(tmp_path / "b", {0: bytes(4096)}, wide, machine=62))
    (tmp_path / "c").write_bytes(b"\x7fELF")
    assert not is_i386(tmp_path / "c")


@pytest.mark.parametrize("wide", [False, True])
def test_physical_memory(tmp_path: Path, wide: bool) -> None:
    core = Core(dump(tmp_path / "core", {0x1000: b"a" * 0x1000, 0x2000: b"b" * 0x1000, 0x8000: b"c" * 16}, wide))
    assert core.release == "6.1.0-50-686"
    assert core.physical(0x1FFE, 4) == b"aabb"
    assert core.physical(0x8000, 16) == b"c" * 16
    assert core.physical(0, 4) is None and core.physical(0x2FFF, 2) is None and core.physical(0x8008, 16) is None


@pytest.mark.parametrize("pae", [False, True])
def test_the_kernels_view(tmp_path: Path, pae: bool) -> None:
    drgn = pytest.importorskip("drgn")
    view = KernelView(Core(dump(tmp_path / "core", tables(pae), True)), LOW, 0x1000, pae)
    huge = 0x20_0000 if pae else 0x40_0000
    assert view.read(PAGE_OFFSET + 0x1000, 4, 0, False) == tables(pae)[0][0x1000:0x1004]
    assert view.read(0xF800_0000, 6, 0, False) == b"mapped"
    assert view.translate(0xF800_0000 + huge + 0x1234) == 0x1234
    assert view.translate(0xF800_1000) is None and view.translate(0xFF00_0000) is None
    for address in (0xF800_1000, PAGE_OFFSET + LOW, 0xF800_0FFF):
        with pytest.raises(drgn.FaultError):
            view.read(address, 2, 0, False)


def test_dumps_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="has no VMCOREINFO"):
        Core(dump(tmp_path / "a", {0: bytes(16)}, True, note=b""))
    with pytest.raises(CaptureError, match="random address"):
        Core(dump(tmp_path / "b", {0: bytes(16)}, True, note=NOTE + b"KERNELOFFSET=1000000\n"))
    pytest.importorskip("drgn")
    with pytest.raises(CaptureError, match="not the symbols of the kernel"):
        core_i386.open_i386(dump(tmp_path / "c", {0: bytes(16)}, True), tmp_path / "no-vmlinux")
