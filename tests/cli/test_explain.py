from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

LOG = Path(__file__).parent.parent / "data" / "kernel-logs" / "p05-x86-md5sum-order4-nofs.txt"


def test_text(mmtwin: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = mmtwin("explain", LOG)
    assert (code, err) == (0, "")
    assert "15858 <= min 889 + 14975 lowmem_reserve = 15864: refused by 6" in " ".join(out.split())
    assert all(len(line) <= 100 and line == line.rstrip() for line in out.splitlines())


def test_json(mmtwin: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = mmtwin("explain", LOG, "--json")
    document = json.loads(out)
    assert (code, document["schema"], document["verdict"], document["certainty"], document["reports_total"]) == (0, 1, "no_block", "decided", 2)
    assert [zone["rule"] for zone in document["zones"]] == ["lowmem_reserve", "lowmem_reserve", "no_block"]
    assert document["request"]["order"] == 4
    assert document["remedies"][0]["rank"] == 1


def test_errors(fails: Callable[..., str], tmp_path: Path) -> None:
    assert "cannot be read" in fails(1, "explain", tmp_path / "none.log")
    assert "directory" in fails(1, "explain", tmp_path)
    (tmp_path / "empty.log").write_bytes(b"")
    assert "empty" in fails(1, "explain", tmp_path / "empty.log")
    (tmp_path / "other.log").write_bytes(b"nothing here\n")
    assert "no memory failure found" in fails(1, "explain", tmp_path / "other.log")


def test_code(mmtwin: Callable[..., tuple[int, str, str]]) -> None:
    assert "explain_log" in mmtwin("explain", LOG, "--code")[1]


def test_standard_input(mmtwin: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (("explain", "-", "--json"), ("explain", "--json")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LOG.read_bytes())))
        code, out, _ = mmtwin(*words)
        assert (code, json.loads(out)["file"]) == (0, "standard input")


def test_unknown_option(fails: Callable[..., str]) -> None:
    assert "unknown option" in fails(2, "explain", LOG, "--jsn")
    assert "unknown option" in fails(2, "explain", "--jsn")
