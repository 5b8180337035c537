from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmtwin.cli import demo
from mmtwin.recording.model import Recording


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The demo writes into the current directory."""
    monkeypatch.chdir(tmp_path)


def test_text(mmtwin: Callable[..., tuple[int, str, str]], demo_recording: Recording) -> None:
    code, out, _ = mmtwin("demo")
    assert code == 0
    assert out.startswith(f"A real Linux {demo_recording.provenance.kernel_release} ran {demo_recording.provenance.workload_name}")
    assert "\nEQUAL: Every answer is the kernel's, and the final state is the kernel's.\n" in out
    assert "What next:\n" in out
    page = Path.cwd() / "mmtwin-demo.html"
    assert out.endswith(f"Wrote {page}: the same recording to look at, in any browser\n")
    assert page.stat().st_size > 100_000


def test_only_its_own_page_is_overwritten(tmp_path: Path) -> None:
    page = tmp_path / "mmtwin-demo.html"
    assert demo.page_path() == page
    page.write_text("<!DOCTYPE html><title>x on y · mmtwin report</title>")
    assert demo.page_path() == page
    page.write_text("mine")
    other = demo.page_path()
    assert other.name == page.name and other.parent != tmp_path and not other.exists()
    other.parent.rmdir()
    page.unlink()
    page.mkdir()
    assert demo.page_path().parent != tmp_path


def test_what_next_can_be_pasted(mmtwin: Callable[..., tuple[int, str, str]], bundled: Path) -> None:
    commands = [shlex.split(line) for line in demo.next_steps(bundled).splitlines()[1:]]
    for words in commands:
        words = [*words[words.index("-m") + 2 :]] if "-m" in words else []
        if words:
            assert mmtwin(*words)[0] == 0
    assert sum("-m" in words for words in commands) == 3


def test_how_the_program_is_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "bin dir" / "mmtwin"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", "")
    assert demo._program() == f"'{program}'"
    monkeypatch.setenv("PATH", str(program.parent))
    assert demo._program() == "mmtwin"


def test_json(mmtwin: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = mmtwin("demo", "--json")
    assert code == 0
    assert json.loads(out)["equal"] is True


def test_missing(fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "files", lambda package: tmp_path)
    assert fails(1, "demo") == "the bundled recording is missing; install mmtwin again"
