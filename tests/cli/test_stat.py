from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmtwin.cli.stat import parse_window
from mmtwin.cli.terminal import UsageError
from mmtwin.diagnose.stat import stat
from mmtwin.recording import store
from mmtwin.recording.model import Recording

Run = Callable[..., tuple[int, str, str]]
DATA = Path(__file__).parent.parent / "data"
BOOT = DATA / "linux-3.x-i386-slub-boot.ftrace.txt.gz"


@pytest.fixture(scope="session")
def slab() -> Path:
    """A real recording with slab events."""
    return Path(os.environ.get("MMTWIN_TEST_RECORDINGS") or Path(__file__).parent.parent / "recordings") / "pipes-512m-1cpu-slab.mmrec"


def test_text(mmtwin: Run, slab: Path) -> None:
    code, out, err = mmtwin("stat", slab)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    for heading in ("Callsite", "Total_alloc/Per", "Total_req/Per", "Hit", "Ping-pong", "Frag", "Waste", "Live", "Live bytes", "Lifetime (events)"):
        assert heading in lines[0]
    assert all(line == line.rstrip() and "\x1b" not in line for line in lines)
    result = stat(store.load(slab))
    assert "SUMMARY (slab allocator)" in lines
    assert f"... and {len(result.rows) - 20} more rows (--lines 0 shows all)" in lines
    assert f"{result.summary.bytes_allocated:,}" in out
    assert any(line.split()[:2] == ["Net", "unknown"] for line in lines)
    assert any(line.split()[:2] == ["Unmatched", "frees"] for line in lines)
    first = result.rows.row(0, named=True)
    assert lines[1].split()[:2] == [first["label"], f"{first['bytes_alloc']:,}/{first['bytes_alloc'] // first['hits']:,}"]


def test_json(mmtwin: Run, slab: Path) -> None:
    code, out, err = mmtwin("stat", slab, "--json", "--by", "cache", "--sort", "hit,bytes", "--lines", "3")
    assert (code, err) == (0, "")
    document = json.loads(out)
    result = stat(store.load(slab), "cache", sort=("hit", "bytes"))
    assert document["schema"] == 1
    assert (document["what"], document["by"], document["sort"], document["clock"]) == ("slab", "cache", ["hit", "bytes"], "events")
    assert document["rows"] == result.rows.head(3).to_dicts()
    assert document["rows_total"] == len(result.rows)
    assert document["summary"]["net_bytes"] is None
    assert document["summary"]["bytes_allocated"] == result.summary.bytes_allocated
    assert len(json.loads(mmtwin("stat", slab, "--json")[1])["rows"]) == len(stat(store.load(slab)).rows)


def test_every_group_and_live(mmtwin: Run, slab: Path, bundled: Path) -> None:
    for by in ("callsite", "function", "cache", "ptr", "size", "pid", "cpu", "gfp", "node"):
        for extra in ((), ("--live",), ("--sort", by)):
            assert mmtwin("stat", slab, "--by", by, *extra).code == 0  # type: ignore[attr-defined]
    code, out, _ = mmtwin("stat", slab, "--live", "--by", "cache")
    assert code == 0
    assert "Oldest (events)" in out.splitlines()[0]
    for by in ("kind", "order", "migtype", "gfp", "pid", "cpu"):
        code, out, err = mmtwin("stat", bundled, "--page", "--by", by)
        assert (code, err) == (0, "")
        assert "SUMMARY (page allocator)" in out
        assert mmtwin("stat", bundled, "--page", "--live", "--by", by)[0] == 0


def test_pages(mmtwin: Run, bundled: Path) -> None:
    code, out, err = mmtwin("stat", bundled, "--page", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["what"] == "page"
    assert document["summary"]["requests"] == sum(row["hits"] for row in document["rows"])
    movable = {row["migtype"] for row in document["rows"] if "MOVABLE" in row["gfp"]}
    assert movable == {"Movable"}  # perf kmem: RECLAIM
    assert "Order  Unmovable  Movable  Reclaimable" in mmtwin("stat", bundled, "--page")[1]


def test_trace_text_is_read_too(mmtwin: Run, tmp_path: Path) -> None:
    code, out, err = mmtwin("stat", BOOT, "--json", "--by", "cache")
    assert (code, err) == (0, "")
    direct = json.loads(out)
    assert mmtwin("import", BOOT, "-o", tmp_path / "boot.mmrec")[0] == 0
    imported = json.loads(mmtwin("stat", tmp_path / "boot.mmrec", "--json", "--by", "cache")[1])
    assert direct["summary"] == imported["summary"]
    assert direct["rows"] == imported["rows"]
    assert (direct["summary"]["live_bytes_requested"], direct["summary"]["live_bytes"]) == (673_929, 703_264)
    assert mmtwin("stat", DATA / "linux-6.1.ftrace.txt")[0] == 0


def test_symbols(mmtwin: Run, slab: Path, tmp_path: Path) -> None:
    site = next(int(key) for key in stat(store.load(slab)).rows["key"] if key) & (1 << 64) - 1
    (tmp_path / "System.map").write_text(f"{site - 0x10:016x} T biggest_user\n{site + 1:016x} T next\n")
    assert "biggest_user+0x10 " in mmtwin("stat", slab, "--symbols", tmp_path / "System.map")[1]
    assert "biggest_user " in mmtwin("stat", slab, "--by", "function", "--symbols", tmp_path / "System.map")[1]
    assert f"{site:#x} " in mmtwin("stat", slab, "--raw-ip")[1]


def test_code_runs(mmtwin: Run, slab: Path, bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "map").write_text("ffffffff81000000 T start\n")
    for words in (
        (slab,),
        (slab, "--by", "cache", "--sort", "hit,frag", "--live"),
        (slab, "--time", ",50%", "--symbols", tmp_path / "map"),
        (slab, "--raw-ip"),
        (bundled, "--page", "--time", "10%,90%"),
    ):
        code, out, err = mmtwin("stat", *words, "--code")
        assert (code, err) == (0, "")
        exec(out, {})
        assert "Summary(" in capsys.readouterr().out


def test_options_are_refused_not_ignored(fails: Callable[..., str], slab: Path) -> None:
    """perf kmem silently ignores what stands behind ``stat``."""
    assert fails(2, "stat", slab, "--caller").startswith("unknown option")
    assert "expected one of: callsite, function, cache" in fails(2, "stat", slab, "--by", "caller")
    assert "mm_page_alloc names no caller" in fails(1, "stat", slab, "--page", "--by", "callsite")
    assert "that is about slab objects" in fails(2, "stat", slab, "--page", "--by", "cache")
    assert "or add --page" in fails(2, "stat", slab, "--by", "order")
    assert "unknown key 'fragg'; expected, separated by commas: bytes," in fails(2, "stat", slab, "--sort", "hit,fragg")
    assert "unknown key ''" in fails(2, "stat", slab, "--sort", "hit,")
    assert "unknown key 'frag'" in fails(2, "stat", slab, "--page", "--sort", "frag")
    assert "--lines -1: expected a number of rows" in fails(2, "stat", slab, "--lines", "-1")
    assert "does not go with --by kind" in fails(2, "stat", slab, "--page", "--raw-ip")
    assert "does not go with --by cache" in fails(2, "stat", slab, "--by", "cache", "--symbols", "x")
    assert "does not go with --by function" in fails(2, "stat", slab, "--by", "function", "--raw-ip")
    assert "contradict each other" in fails(2, "stat", slab, "--raw-ip", "--symbols", "x")
    assert "unexpected argument" in fails(2, "stat", slab, "more")


@pytest.mark.parametrize("text", ["1", "1,2,3", ",", "x,2", "5,1", "nan,2", "1.5,2", "1e99,"])
def test_bad_times(fails: Callable[..., str], slab: Path, text: str) -> None:
    assert fails(2, "stat", slab, "--time", text).startswith("--time")


def test_times(mmtwin: Run, fails: Callable[..., str], slab: Path, demo_recording: Recording) -> None:
    counts = stat(store.load(slab))
    half = json.loads(mmtwin("stat", slab, "--json", "--time", ",50%")[1])["summary"]
    assert 0 < half["allocations"] < counts.summary.allocations
    assert "no events between" in fails(1, "stat", slab, "--time", "900000000,900000001")
    text = replace(demo_recording, provenance=replace(demo_recording.provenance, how="synthetic"))
    assert parse_window("1.5,", text) == (1_500_000_000, None)
    assert parse_window(",0.000000001", text) == (None, 1)
    with pytest.raises(UsageError, match="expected an event number"):
        parse_window("1.5,", demo_recording)


def test_bad_files(fails: Callable[..., str], tmp_path: Path, slab: Path, bundled: Path) -> None:
    content = slab.read_bytes()
    (tmp_path / "empty").touch()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    (tmp_path / "noise").write_bytes(b"\x7fELF" + bytes(range(256)) * 20)
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(BOOT.read_bytes())[:1000])
    os.mkfifo(tmp_path / "pipe")
    for name in ("empty", "cut", "noise", "text", "cut.gz", "pipe"):
        assert fails(1, "stat", tmp_path / name).startswith(f"{tmp_path / name}: ")
    assert "No such file or directory" in fails(1, "stat", tmp_path / "none")
    assert "is no regular file" in fails(1, "stat", tmp_path)
    assert fails(1, "stat", "a\0b")
    pages = slab.parent / "files-256m-1cpu.mmrec"
    assert "no slab events" in fails(1, "stat", pages)
    assert f"{pages}: no slab events" in fails(1, "stat", pages, "--json")
    assert "no page events" in fails(1, "stat", BOOT, "--page")
    assert "names no function" in fails(1, "stat", slab, "--symbols", tmp_path / "text")


def test_hostile_names(mmtwin: Run, demo_recording: Recording, tmp_path: Path) -> None:
    text = "  sh-1 [000] ..... 1.000001: kmalloc: call_site=[red]x\x1b]0;y+0x1/0x2 ptr=ffff888100000008 bytes_req=1 bytes_alloc=8 gfp_flags=GFP_KERNEL\n"
    (tmp_path / "t.txt").write_text(text)
    code, out, _ = mmtwin("stat", tmp_path / "t.txt")
    assert code == 0
    assert "[red]x\\x1b]0;y+0x1/0x2" in out


def test_nothing_allocated_or_live(mmtwin: Run, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("  sh-1 [000] ..... 1.000001: kfree: call_site=f+0x1/0x2 ptr=ffff888100000008\n")
    assert "Nothing was allocated." in mmtwin("stat", tmp_path / "t.txt")[1]
    assert "Nothing is live" in mmtwin("stat", tmp_path / "t.txt", "--live")[1]


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_narrow_terminal_gets_fewer_columns(slab: Path, columns: int) -> None:
    """Numbers are never cut."""
    import pty
    import struct
    from fcntl import ioctl
    from termios import TIOCSWINSZ

    leader, follower = pty.openpty()
    ioctl(follower, TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment: dict[str, Any] = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    program = subprocess.Popen(
        [sys.executable, "-m", "mmtwin.cli", "--quiet", "stat", slab, "--lines", "5"], stdout=follower, stderr=subprocess.DEVNULL, env=environment
    )
    os.close(follower)
    out, began = b"", time.monotonic()
    while time.monotonic() - began < 60:
        try:
            data = os.read(leader, 4096)
        except OSError:
            break
        if not data:
            break
        out += data
    assert program.wait() == 0
    text = out.decode()
    assert "…" not in text
    assert ("Waste" in text.split("SUMMARY")[0]) == (columns == 200)
    assert "Total_alloc/Per" in text
