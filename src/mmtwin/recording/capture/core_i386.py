"""Memory dumps of 32-bit machines for drgn, which knows no page tables of i386: its view of the direct map and of what the kernel's page tables map."""

from __future__ import annotations

import mmap
import struct
from bisect import bisect_right
from pathlib import Path
from typing import Any, NamedTuple

from mmtwin.errors import CaptureError
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE

EM_386 = 3
PT_LOAD, PT_NOTE = 1, 4
PAGE_OFFSET = 0xC000_0000
ADDRESS_END = 1 << 32
PRESENT, HUGE = 0x1, 0x80
FRAME = 0xF_FFFF_FFFF_F000
"""The address bits of a page-table entry; an entry without PAE has 32 bits."""


class Segment(NamedTuple):
    """A run of physical memory in the file."""

    physical: int
    size: int
    offset: int


def is_i386(core: Path) -> bool:
    """Whether a file is an ELF core of a 32-bit x86 machine (QEMU writes them in either class)."""
    with open(core, "rb") as file:
        head = file.read(20)
    return len(head) == 20 and head[:4] == b"\x7fELF" and head[5] == 1 and struct.unpack_from("<H", head, 18)[0] == EM_386


class Core:
    """The physical memory in a dump, and the kernel's view of it.

    :raises CaptureError: no VMCOREINFO, or a kernel at a random address.
    """

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self._segments: list[Segment] = []
        info = b""
        for kind, offset, physical, size in self._headers():
            if kind == PT_LOAD and size:
                self._segments.append(Segment(physical, size, offset))
            elif kind == PT_NOTE:
                info += self._map[offset : offset + size]
        self._segments.sort()
        self._starts = [s.physical for s in self._segments]
        if b"OSRELEASE=" not in info:
            raise CaptureError(
                f"{path}: has no VMCOREINFO, so its kernel cannot be known; start QEMU with -device vmcoreinfo and load qemu_fw_cfg in the guest"
            )
        if b"KERNELOFFSET=" in info and int(info.partition(b"KERNELOFFSET=")[2].split(b"\n")[0], 16):
            raise CaptureError(f"{path}: its kernel lies at a random address; boot 32-bit kernels with nokaslr")
        self.release = info.partition(b"OSRELEASE=")[2].split(b"\n")[0].decode(errors="replace")

    def _headers(self) -> list[tuple[int, int, int, int]]:
        """Type, file offset, physical address and size of each program header."""
        data, wide = self._map, self._map[4] == 2
        start, size, count = (
            (*struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54))
            if wide
            else (*struct.unpack_from("<I", data, 28), *struct.unpack_from("<HH", data, 42))
        )
        found = []
        for i in range(count):
            at = start + i * size
            if wide:
                kind, _flags, offset, _virtual, physical, length = struct.unpack_from("<IIQQQQ", data, at)
            else:
                kind, offset, _virtual, physical, length = struct.unpack_from("<IIIII", data, at)
            found.append((kind, offset, physical, length))
        return found

    def physical(self, address: int, size: int) -> bytes | None:
        """Bytes of physical memory; None if they are not all in the dump."""
        found = b""
        while size:
            at = bisect_right(self._starts, address) - 1
            if at < 0:
                return None
            segment = self._segments[at]
            inside = address - segment.physical
            if inside >= segment.size:
                return None
            piece = min(size, segment.size - inside)
            found += self._map[segment.offset + inside : segment.offset + inside + piece]
            address, size = address + piece, size - piece
        return found


class KernelView:
    """Kernel addresses from PAGE_OFFSET on: the direct map, and behind it what the page tables map.

    :param root: physical address of ``swapper_pg_dir``.
    :param pae: entries have 64 bits and the tables three levels.
    """

    def __init__(self, core: Core, low_bytes: int, root: int, pae: bool) -> None:
        self._core, self._low, self._root, self._pae = core, low_bytes, root, pae

    def read(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        """As drgn calls it. :raises drgn.FaultError: not mapped, or not in the dump."""
        found = b""
        while len(found) < count:
            at = address + len(found)
            inside = at - PAGE_OFFSET
            piece = min(count - len(found), self._low - inside if inside < self._low else PAGE_SIZE - at % PAGE_SIZE)
            where = inside if inside < self._low else self.translate(at)
            data = None if where is None else self._core.physical(where, piece)
            if data is None:
                import drgn

                raise drgn.FaultError("not mapped, or not in the dump", at)
            found += data
        return found

    def _entry(self, table: int, index: int) -> int:
        width = 8 if self._pae else 4
        return int.from_bytes(self._core.physical(table + width * index, width) or b"", "little")

    def translate(self, address: int) -> int | None:
        """The physical address behind a kernel address, by the page tables; None if there is none."""
        bits = 9 if self._pae else 10
        table, shift = self._root, PAGE_SHIFT + bits
        if self._pae:
            top = self._entry(table, address >> 30)
            if not top & PRESENT:
                return None
            table = top & FRAME
        entry = self._entry(table, address >> shift & ((1 << bits) - 1))
        if not entry & PRESENT:
            return None
        if entry & HUGE:
            return (entry & FRAME & -(1 << shift)) + (address & ((1 << shift) - 1))
        entry = self._entry(entry & FRAME, address >> PAGE_SHIFT & ((1 << bits) - 1))
        return (entry & FRAME) + address % PAGE_SIZE if entry & PRESENT else None


def open_i386(core: Path, vmlinux: Path) -> tuple[Any, KernelView]:
    """A drgn program of the kernel in a dump of a 32-bit machine, and its view of memory.

    :raises CaptureError: see `Core`; no symbols, or those of another kernel.
    """
    import drgn

    memory = Core(core)
    prog = drgn.Program(drgn.Platform(drgn.Architecture.I386, drgn.PlatformFlags.IS_LITTLE_ENDIAN))
    try:
        prog.extra_module("vmlinux", 0, create=True).try_file(str(vmlinux), force=True)
        # the kernel's variables are in the direct map; how far it goes, one of them says
        first = KernelView(memory, ADDRESS_END - PAGE_OFFSET, 0, False)
        prog.add_memory_segment(PAGE_OFFSET, ADDRESS_END - PAGE_OFFSET, first.read, False)
        pae = drgn.sizeof(prog.type("pte_t")) == 8
        view = KernelView(memory, int(prog["max_low_pfn"]) << PAGE_SHIFT, prog.symbol("swapper_pg_dir").address - PAGE_OFFSET, pae)
        prog.add_memory_segment(PAGE_OFFSET, ADDRESS_END - PAGE_OFFSET, view.read, False)
        if prog["init_uts_ns"].name.release.string_().decode() != memory.release:
            raise LookupError("another release")
    except Exception as error:  # drgn raises several kinds
        raise CaptureError(f"{vmlinux}: not the symbols of the kernel in {core} ({str(error).splitlines()[0]})") from None
    return prog, view
