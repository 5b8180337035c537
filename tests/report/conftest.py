"""Reports of real recordings, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

import mmtwin
from mmtwin.recording import store
from mmtwin.recording.model import Recording
from mmtwin.report.document import document

DEMO = Path(mmtwin.__file__).parent / "data" / "demo.mmrec"
PRESSURE = Path(__file__).parent.parent / "recordings" / "pressure"
STEPS = 21


class Made(NamedTuple):
    """A recording and its report's data."""

    path: Path
    recording: Recording
    data: dict[str, Any]


def make(path: Path) -> Made:
    recording = store.load(path)
    return Made(path, recording, document(recording, path, steps=STEPS))


@pytest.fixture(scope="session")
def demo() -> Made:
    """Slabs, four CPUs, nothing refused."""
    return make(DEMO)


@pytest.fixture(scope="session")
def refusing() -> Made:
    """Page events, one CPU, 380 requests refused and two processes killed."""
    return make(PRESSURE / "fails-128m-1cpu.mmrec")
