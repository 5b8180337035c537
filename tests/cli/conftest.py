"""Runs the program inside this process, as a user would from a shell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from mmtwin.cli.main import main
from mmtwin.recording import store
from mmtwin.recording.model import Recording

DATA = Path(__file__).parent.parent / "data"


class Run(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def mmtwin(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """``mmtwin("info", path)``: exit code, stdout and stderr."""

    def run(*words: object) -> Run:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Run(code, *capsys.readouterr())

    return run


@pytest.fixture
def fails(mmtwin: Callable[..., Run]) -> Callable[..., str]:
    """``fails(1, "info", path)``: asserts that exit code, nothing on stdout and one line on stderr, and returns its text."""

    def run(code: int, *words: object) -> str:
        got = mmtwin(*words)
        assert got.code == code, got
        assert got.out == ""
        assert got.err.startswith("mmtwin: ")
        assert got.err.endswith("\n")
        assert got.err.count("\n") == 1, got.err
        assert "Traceback" not in got.err
        return got.err.removeprefix("mmtwin: ").rstrip("\n")

    return run


@pytest.fixture(scope="session")
def bundled() -> Path:
    """The recording that ``mmtwin demo`` replays."""
    import mmtwin

    return Path(mmtwin.__file__).parent / "data" / "demo.mmrec"


@pytest.fixture(scope="session")
def demo_recording(bundled: Path) -> Recording:
    return store.load(bundled)


@pytest.fixture
def trace() -> Path:
    """Trace text of a real kernel."""
    return DATA / "linux-6.1.ftrace.txt"
