"""Names for kernel addresses, from System.map, /proc/kallsyms or a vmlinux with its symbol table.

Only functions count (types t, T, w and W; STT_FUNC), as call sites are in functions. The ELF reader is a few lines of its own, so that analysing a
recording needs no package for it.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from mmtwin.errors import RecordingError

MASK = (1 << 64) - 1
FARTHEST = 1 << 20
"""No kernel function is longer; an address farther from the last symbol is not in it."""
LINE = re.compile(rb"^([0-9a-fA-F]{8,16}) ([a-zA-Z]) ([^\s]+)(?:\s+\[([^\]\s]+)\])?\s*$", re.MULTILINE)
SHT_SYMTAB, STT_FUNC = 2, 2
LARGEST = 1 << 32
EXPECTED = "expected System.map, a copy of /proc/kallsyms, or a vmlinux with symbols"


@dataclass(frozen=True)
class Symbols:
    """Functions by ascending address.

    :ivar address: first address of each, as an unsigned 64-bit number.
    :ivar name: its name, with the module in brackets if it is in one.
    """

    address: npt.NDArray[np.uint64]
    name: Sequence[str]

    def resolve(self, address: int) -> str | None:
        """``name+0x1c`` as the kernel's %pS prints it without the size; None if the address is in no function.

        :param address: signed or unsigned, as recordings keep it.
        """
        wanted = address & MASK
        at = int(np.searchsorted(self.address, np.uint64(wanted), side="right")) - 1
        if at < 0 or wanted - int(self.address[at]) >= FARTHEST:
            return None
        name, space, module = self.name[at].partition(" ")
        return f"{name}+{wanted - int(self.address[at]):#x}{space}{module}"

    def lines(self, addresses: Iterable[int]) -> str:
        """Lines "address symbol" for a recording's provenance; addresses without a name are left out."""
        found = ((address, self.resolve(address)) for address in addresses if address)
        return "".join(f"{address & MASK:x} {symbol}\n" for address, symbol in found if symbol)


def read_symbols(path: str | os.PathLike[str]) -> Symbols:
    """Reads a symbol file.

    :raises RecordingError: it cannot be read, is no such file, or names no function.
    """
    where = Path(path)
    try:
        if where.exists() and not where.is_file() and where != Path("/proc/kallsyms"):
            raise RecordingError(f"{where}: is no regular file; {EXPECTED}")
        with open(where, "rb") as file:
            data = file.read(LARGEST)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RecordingError(f"{where}: cannot be read: {reason}") from error
    try:
        found = sorted(_elf(data) if data.startswith(b"\x7fELF") else _map(data))
    except (struct.error, IndexError, ValueError) as error:
        raise RecordingError(f"{where}: a damaged ELF file; {EXPECTED}") from error
    if found and not any(address for address, _ in found):
        raise RecordingError(f"{where}: every address is 0, as the kernel shows them without permission; copy it as root, with kernel.kptr_restrict=0")
    if not found:
        raise RecordingError(f"{where}: names no function; {EXPECTED}")
    return Symbols(np.array([address for address, _ in found], dtype=np.uint64), [name for _, name in found])


def _map(data: bytes) -> Iterator[tuple[int, str]]:
    for address, kind, name, module in LINE.findall(data):
        if kind in b"tTwW":
            yield int(address, 16), name.decode(errors="replace") + (f" [{module.decode(errors='replace')}]" if module else "")


def _elf(data: bytes) -> Iterator[tuple[int, str]]:
    """Functions of the symbol table (System V ABI, chapter 4)."""
    wide, order = data[4] == 2, "<" if data[5] == 1 else ">"
    at = struct.unpack_from(order + ("Q" if wide else "I"), data, 0x28 if wide else 0x20)[0]
    size, count = struct.unpack_from(order + "HH", data, 0x3A if wide else 0x2E)
    header = struct.Struct(order + ("IIQQQQIIQQ" if wide else "IIIIIIIIII"))
    sections = [header.unpack_from(data, at + size * number) for number in range(count)]
    for section in sections:
        if section[1] != SHT_SYMTAB:
            continue
        start, length, link = section[4], section[5], section[6]
        names = sections[link][4]
        entry = struct.Struct(order + ("IBBHQQ" if wide else "IIIBBH"))
        if start + length > len(data):
            raise ValueError("cut off")
        for fields in entry.iter_unpack(data[start : start + length - length % entry.size]):
            name, info, value = (fields[0], fields[1], fields[4]) if wide else (fields[0], fields[3], fields[1])
            if info & 15 == STT_FUNC and value:
                yield value, data[names + name : data.index(b"\0", names + name)].decode(errors="replace")


def running_kernel(release: str, text: int) -> Symbols | None:
    """The running kernel's functions, if it is the one that was recorded.

    :param release: the recorded kernel's release; `text` is the address of its first symbol, ``_text`` or ``_stext``, which tells boots with KASLR apart.
    :returns: None if it is another one, or its symbols may not be read.
    """
    if os.uname().release != release or not text:
        return None
    try:
        with open("/proc/kallsyms", "rb") as file:
            data = file.read(LARGEST)
        if not re.search(rb"^%016x [tT] _s?text$" % (text & MASK), data, re.MULTILINE):
            return None
    except OSError:
        return None
    return symbols_of(data)


def symbols_of(text: bytes) -> Symbols | None:
    """The functions that a copy of /proc/kallsyms names; None if it names none, or hides the addresses.

    There are 200,000 of them, and few are asked for: only the addresses are read here, names when they are wanted.
    """
    if not re.match(rb"[0-9a-f]{16} ", text):  # a 32-bit kernel prints 8 digits
        return _all_of(text)
    data = np.frombuffer(text, dtype=np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    begins = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    whole = ends - begins >= FIRST_OF_NAME
    begins, ends = begins[whole], ends[whole]
    wanted = np.isin(data[begins + WIDTH + 1], np.frombuffer(b"tTwW", dtype=np.uint8))
    begins, ends = begins[wanted], ends[wanted]
    address = np.zeros(len(begins), dtype=np.uint64)
    for digit in range(WIDTH):
        value = HEX_DIGITS[data[begins + digit]]
        if (value > 15).any():
            return _all_of(text)
        address = address << np.uint64(4) | value
    if not address.any():
        return None
    order = np.argsort(address, kind="stable")
    return Symbols(address[order], _Names(text, begins[order] + FIRST_OF_NAME, ends[order]))


def _all_of(text: bytes) -> Symbols | None:
    found = sorted(_map(text))
    if not found or not found[-1][0]:
        return None
    return Symbols(np.array([address for address, _ in found], dtype=np.uint64), [name for _, name in found])


WIDTH, FIRST_OF_NAME = 16, 19
"""Of a line of /proc/kallsyms: 16 digits, a type, a name, with blanks between; in modules a tab and the module in brackets follow."""
HEX_DIGITS = np.full(256, 255, dtype=np.uint64)
HEX_DIGITS[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16)


class _Names(Sequence[str]):
    """Names out of the text itself."""

    def __init__(self, text: bytes, begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> None:
        self._text, self._begins, self._ends = text, begins, ends

    def __len__(self) -> int:
        return len(self._begins)

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...

    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        return " ".join(self._text[self._begins[at] : self._ends[at]].decode(errors="replace").split())
