from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from mmtwin.errors import RecordingError
from mmtwin.recording.symbols import read_symbols, symbols_of


def elf(functions: dict[str, int], wide: bool, order: str = "<") -> bytes:
    """A minimal ELF file: header, names, symbols, and three section headers."""
    names, entries = b"\0", b""
    for name, value in {"data_object": 0x50, **functions}.items():
        info = 2 if name != "data_object" else 1
        fields = (len(names), info, 0, 1, value, 0) if wide else (len(names), value, 0, info, 0, 1)
        entries += struct.pack(order + ("IBBHQQ" if wide else "IIIBBH"), *fields)
        names += name.encode() + b"\0"
    start = 64 if wide else 52
    header = struct.Struct(order + ("IIQQQQIIQQ" if wide else "IIIIIIIIII"))
    sections = header.pack(*[0] * 10) + header.pack(0, 3, 0, 0, start, len(names), 0, 0, 1, 0)
    sections += header.pack(0, 2, 0, 0, start + len(names), len(entries), 1, 0, 1, 24 if wide else 16)
    at = start + len(names) + len(entries)
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    rest = struct.pack(order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"), 2, 62, 1, 0, 0, at, 0, start, 0, 0, header.size, 3, 0)
    return ident + rest + names + entries + sections


@pytest.mark.parametrize(("wide", "order"), [(True, "<"), (False, "<"), (True, ">"), (False, ">")])
def test_elf(tmp_path: Path, wide: bool, order: str) -> None:
    (tmp_path / "vmlinux").write_bytes(elf({"second": 0x2000, "first": 0x1000}, wide, order))
    symbols = read_symbols(tmp_path / "vmlinux")
    assert symbols.name == ["first", "second"]
    assert symbols.resolve(0x1004) == "first+0x4"
    assert symbols.resolve(0x2000) == "second+0x0"
    assert symbols.resolve(0xFFF) is None
    assert symbols.resolve(0x2000 + (1 << 20)) is None
    content = elf({"f": 0x1000}, wide, order)
    for cut in (10, 50, len(content) - 5):
        (tmp_path / "cut").write_bytes(content[:cut])
        with pytest.raises(RecordingError, match=r"damaged ELF|names no function"):
            read_symbols(tmp_path / "cut")


def test_maps(tmp_path: Path) -> None:
    (tmp_path / "kallsyms").write_text("ffffffff81000000 T _text\nffffffff81000000 D some_data\nffffffff81000200 t local\nffffffffc0001000 t probe\t[e1000]\n")
    symbols = read_symbols(tmp_path / "kallsyms")
    assert symbols.resolve(0xFFFFFFFF81000201) == symbols.resolve(0xFFFFFFFF81000201 - (1 << 64)) == "local+0x1"
    assert symbols.resolve(0xFFFFFFFFC0001010) == "probe+0x10 [e1000]"
    (tmp_path / "i386").write_text("c1000000 T startup_32\r\n")
    assert read_symbols(tmp_path / "i386").resolve(0xC1000010) == "startup_32+0x10"


def test_no_symbols(tmp_path: Path) -> None:
    def refused(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        with pytest.raises(RecordingError) as caught:
            read_symbols(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        return str(caught.value)

    assert "names no function" in refused("empty", "")
    assert "names no function" in refused("stub", "ffffffffffffffff B The real System.map is in the linux-image-dbg package\n")
    assert "every address is 0" in refused("zero", "0000000000000000 T _text\n0000000000000000 T other\n")
    with pytest.raises(RecordingError, match="No such file"):
        read_symbols(tmp_path / "none")
    with pytest.raises(RecordingError, match="no regular file"):
        read_symbols(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecordingError, match="no regular file"):
        read_symbols(tmp_path / "pipe")
    with pytest.raises(RecordingError):
        read_symbols("a\0b")


def test_kallsyms_of_both_widths() -> None:
    wide = b"ffffffff81000000 T _text\nffffffff81000100 d data\nffffffffc0000010 t f\t[mod]\nffffffff81000020 W g\n0000000000000000 A zero\n"
    for text, base in ((wide, 0xFFFFFFFF00000000), (wide.replace(b"\nffffffff", b"\n").replace(b"ffffffff", b"", 1).replace(b"00000000 A", b" A"), 0)):
        symbols = symbols_of(text)
        assert symbols is not None
        assert symbols.resolve(base + 0x81000024) == "g+0x4"
        assert symbols.resolve(base + 0xC0000011) == "f+0x1 [mod]"
        assert symbols.lines([base + 0x81000001, 0, 5]) == f"{base + 0x81000001:x} _text+0x1\n"
    for nothing in (b"", b"\n\n", b"0000000000000000 T f\n", b"rubbish"):
        assert symbols_of(nothing) is None
