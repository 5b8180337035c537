from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest


def embedded(page: Path) -> object:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_holds_what_json_prints(mmtwin: Callable[..., tuple[int, str, str]], bundled: Path, tmp_path: Path) -> None:
    page = tmp_path / "demo.html"
    code, out, _ = mmtwin("report", bundled, "-o", page, "--steps", "5")
    assert (code, out) == (0, f"Wrote {page}\n")
    code, out, _ = mmtwin("report", bundled, "--json", "--steps", "5")
    assert code == 0
    printed = json.loads(out)
    assert embedded(page) == printed
    assert printed["schema"] == 1 and len(printed["steps"]["events"]) == 5
    code, replayed, _ = mmtwin("replay", bundled, "--json")
    assert printed["replay"] == {key: value for key, value in json.loads(replayed).items() if key in printed["replay"]}
    _, described, _ = mmtwin("info", bundled, "--json")
    assert printed["events_by_kind"] == json.loads(described)["events_by_kind"]
    _, sums, _ = mmtwin("stat", bundled, "--json")
    assert printed["objects"]["summary"] == json.loads(sums)["summary"]
    _, sums, _ = mmtwin("stat", bundled, "--page", "--json")
    assert printed["pages"]["summary"] == json.loads(sums)["summary"]


def test_default_name(mmtwin: Callable[..., tuple[int, str, str]], trace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = mmtwin("report", trace)
    assert (code, out) == (0, "Wrote linux-6.1.ftrace.html\n")
    assert embedded(tmp_path / "linux-6.1.ftrace.html")


def test_nothing_is_overwritten(mmtwin: Callable[..., tuple[int, str, str]], fails: Callable[..., str], trace: Path, tmp_path: Path) -> None:
    page = tmp_path / "mine.html"
    page.write_text("mine")
    assert "exists; choose another name with -o or overwrite it with --force" in fails(1, "report", trace, "-o", page)
    assert page.read_text() == "mine"
    assert mmtwin("report", trace, "-o", page, "--force")[0] == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert list(tmp_path.iterdir()) == [page]


def test_symbols(mmtwin: Callable[..., tuple[int, str, str]], bundled: Path, tmp_path: Path) -> None:
    symbols = tmp_path / "System.map"
    symbols.write_text("ffffffff81000000 T _text\nffffffff81371900 T shmem_alloc_inode\nffffffff81372000 T next\n")
    code, out, _ = mmtwin("report", bundled, "--json", "--steps", "2", "--symbols", symbols)
    assert code == 0 and any(row["label"] == "shmem_alloc_inode+0x79" for row in json.loads(out)["objects"]["rows"])


@pytest.mark.parametrize("steps", ["1", "0", "-5", "1001"])
def test_steps(fails: Callable[..., str], trace: Path, steps: str) -> None:
    assert fails(2, "report", trace, "--steps", steps) == f"--steps {steps}: expected 2 to 1,000 moments"


def test_json_goes_to_stdout(fails: Callable[..., str], trace: Path, tmp_path: Path) -> None:
    assert "contradict" in fails(2, "report", trace, "--json", "-o", tmp_path / "x.html")


def test_what_is_no_recording(fails: Callable[..., str], tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.mmrec"
    nothing.touch()
    fails(1, "report", nothing, "-o", tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_code(mmtwin: Callable[..., tuple[int, str, str]], trace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = mmtwin("report", trace, "--code", "-o", "it.html", "--steps", "4")
    assert code == 0
    exec(compile(out, "code", "exec"), {})
    assert len(embedded(tmp_path / "it.html")["steps"]["events"]) == 4  # type: ignore[index]
