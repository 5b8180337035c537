"""What a process runs: the parts of an ELF file that become memory (fs/binfmt_elf.c)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mmtwin.errors import RequestError

PT_LOAD, PT_INTERP, PT_GNU_STACK = 1, 3, 0x6474E551
ET_EXEC, ET_DYN = 2, 3
READ, WRITE, EXEC = 1, 2, 4


class Segment(NamedTuple):
    """A PT_LOAD entry.

    :param offset: where in the file.
    :param vaddr: address; relative to the load bias in a position-independent program.
    :param filesz: bytes from the file.
    :param memsz: bytes in memory; those behind `filesz` are zeros.
    :param flags: READ, WRITE, EXEC.
    """

    offset: int
    vaddr: int
    filesz: int
    memsz: int
    flags: int


@dataclass(frozen=True)
class Program:
    """An executable.

    :ivar path: as /proc/PID/maps shows it.
    :ivar segments: in ascending order.
    :ivar entry: its first instruction.
    :ivar pie: position independent (ET_DYN).
    :ivar interpreter: the dynamic linker, None for a static program.
    :ivar size: of the file, bytes. `tmpfs`: it lies there, as in an initial RAM disk.
    :ivar inode: number and device of the file, as maps shows them.
    """

    path: str
    segments: tuple[Segment, ...]
    entry: int = 0
    pie: bool = False
    interpreter: Program | None = None
    inode: int = 0
    device: tuple[int, int] = (0, 2)
    size: int = field(default=0)
    tmpfs: bool = False

    @classmethod
    def from_elf(cls, path: str | Path, root: str | Path = "/", name: str = "") -> Program:
        """Reads a program's headers, and those of the dynamic linker that it names, below `root`.

        :raises RequestError: it is no ELF program.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise RequestError(f"program {path}: {error.strerror}") from None
        wide = data[4:5] == b"\x02"
        if data[:4] != b"\x7fELF" or data[5:6] != b"\x01" or len(data) < 64:
            raise RequestError(f"program {path}: expected a little-endian ELF file")
        kind = struct.unpack_from("<H", data, 16)[0]
        if kind not in (ET_EXEC, ET_DYN):
            raise RequestError(f"program {path}: ELF type {kind}: expected an executable or a shared object")
        if wide:
            entry, table, size, count = (*struct.unpack_from("<QQ", data, 24), *struct.unpack_from("<HH", data, 54))
        else:
            entry, table, size, count = (*struct.unpack_from("<II", data, 24), *struct.unpack_from("<HH", data, 42))
        segments, interpreter = list[Segment](), None
        for at in range(table, table + size * count, size):
            if at + size > len(data):
                raise RequestError(f"program {path}: its program headers reach behind its end")
            if wide:
                p_type, flags, offset, vaddr, _, filesz, memsz, _ = struct.unpack_from("<IIQQQQQQ", data, at)
            else:
                p_type, offset, vaddr, _, filesz, memsz, flags, _ = struct.unpack_from("<IIIIIIII", data, at)
            if p_type == PT_LOAD:
                segments.append(Segment(offset, vaddr, filesz, memsz, (flags >> 2 & 1) | (flags & 2) | (flags & 1) << 2))
            elif p_type == PT_INTERP and not interpreter:
                wanted = data[offset : offset + filesz].rstrip(b"\0").decode(errors="replace")
                interpreter = cls.from_elf(Path(root) / wanted.lstrip("/"), root, wanted)
        if not segments:
            raise RequestError(f"program {path}: no PT_LOAD segment")
        return cls(name or str(path), tuple(segments), entry, kind == ET_DYN, interpreter, size=len(data))

    @property
    def file_bytes(self) -> int:
        """Bytes of the file that are needed."""
        return max(self.size, max(segment.offset + segment.filesz for segment in self.segments))


def default_program(name: str, bits: int) -> Program:
    """A small static program, as a linker lays one out: read-only data, code, read-only data, data with some bss."""
    base = 0x400000 if bits == 64 else 0x8048000
    segments = (
        Segment(0, base, 0x528, 0x528, READ),
        Segment(0x1000, base + 0x1000, 0x4A1D, 0x4A1D, READ | EXEC),
        Segment(0x6000, base + 0x6000, 0x1E20, 0x1E20, READ),
        Segment(0x7DE0, base + 0x8DE0, 0x230, 0x2A8, READ | WRITE),
    )
    return Program(f"/bin/{name}", segments, base + 0x1140)
