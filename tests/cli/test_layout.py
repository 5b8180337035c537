from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from mmtwin.profiles.layout import RULES

Mmtwin = Callable[..., tuple[int, str, str]]


def test_i386(mmtwin: Mmtwin) -> None:
    code, out, err = mmtwin("layout", "linux-6.1-i386", "--ram", "1GiB", "--cmdline", "vmalloc=256M")
    assert (code, err) == (0, "")
    assert out.splitlines()[:2] == ["283MB HIGHMEM available.", "739MB LOWMEM available."]
    assert "    vmalloc : 0xeebfe000 - 0xfebfe000   ( 256 MB)" in out.splitlines()


def test_x86_64(mmtwin: Mmtwin) -> None:
    code, out, err = mmtwin("layout")
    assert (code, err) == (0, "")
    assert " ffffc90000000000 |  -55    TB | ffffe8ffffffffff |   32 TB | vmalloc/ioremap space (vmalloc_base)" in out.splitlines()
    assert " ffa0000000000000 |  -24    PB |" in mmtwin("layout", "--la57")[1]
    assert mmtwin("layout", "--la57", "--cmdline", "no5lvl")[1] == out


@pytest.mark.parametrize("name", [rules.name for rules in RULES])
def test_json(mmtwin: Mmtwin, name: str) -> None:
    code, out, err = mmtwin("layout", name, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert (document["schema"], document["name"], document["ram_bytes"]) == (1, name, 2 << 30)
    ends = [(int(region["start"], 16), int(region["last"], 16) + 1, region["bytes"]) for region in document["regions"]]
    assert all(end - start == size for start, end, size in ends)
    assert [start for start, _, _ in ends] == [0, *(end for _, end, _ in ends[:-1])]
    assert ends[-1][1] == 1 << document["bits"]


def test_picture_and_svg(mmtwin: Mmtwin, fails: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "a.svg"
    code, out, err = mmtwin("layout", "linux-6.1-i386-pae", "--picture", "--svg", file)
    assert (code, err) == (0, f"Wrote {file}\n")
    assert "c0000000 ├" in out
    assert ElementTree.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert fails(1, "layout", "--svg", file) == f"{file}: exists; choose another name or overwrite it with --force"
    before = file.read_text()
    assert mmtwin("--quiet", "layout", "--svg", file, "--force").err == ""  # type: ignore[attr-defined]
    assert file.read_text() != before
    assert fails(1, "layout", "--svg", tmp_path / "none" / "a.svg").endswith("cannot be written: No such file or directory")
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]


def test_code_runs(mmtwin: Mmtwin, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("linux-6.1-i386", "--ram", "512M", "--cmdline", "vmalloc=64M")
    code, out, _ = mmtwin("layout", *words, "--code")
    assert code == 0
    exec(out, {})
    assert capsys.readouterr().out.rstrip("\n") == mmtwin("layout", *words)[1].rstrip("\n")


def test_errors(fails: Callable[..., str]) -> None:
    assert fails(1, "layout", "linux-1.0").startswith("no address space for 'linux-1.0'; known: linux-6.1, ")
    assert fails(2, "layout", "--ram", "much").startswith("--ram: 'much' is not a size")
    assert fails(1, "layout", "linux-6.1-i386", "--cmdline", "vmalloc=1G").startswith("linux-6.1-i386 does not boot: low memory ends at ")
    assert fails(2, "layout", "--ram", "0") == "--ram: 0 is too little for any of these kernels; give at least 16 MiB"
