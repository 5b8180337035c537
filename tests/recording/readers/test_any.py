"""One function reads everything: what a file is, is seen from its first bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmtwin.errors import RecordingError, TraceError
from mmtwin.recording import store
from mmtwin.recording.readers import read
from mmtwin.recording.readers.any import import_

DATA = Path(__file__).parents[2] / "data"


@pytest.mark.parametrize(
    ("name", "how"), [("malloc-gcc.mmrec", "malloc"), ("linux-6.1.ftrace.txt", "ftrace"), ("linux-3.x-i386-slub-boot.ftrace.txt.gz", "ftrace")]
)
def test_every_kind_of_file(name: str, how: str) -> None:
    recording = read(DATA / name)
    assert recording.provenance.how == how
    assert len(recording.events)


def test_a_saved_import_is_read_again(tmp_path: Path) -> None:
    recording = import_(DATA / "linux-6.1.ftrace.txt")
    store.save(recording, tmp_path / "t.mmrec")
    assert read(tmp_path / "t.mmrec").events.equals(recording.events)


def test_nothing_and_nowhere(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "zeros").write_bytes(bytes(100))
    for name in ("empty", "absent", "."):
        with pytest.raises(RecordingError):
            read(tmp_path / name)
    with pytest.raises(TraceError, match="binary data"):
        read(tmp_path / "zeros")


def test_a_recording_needs_no_import(tmp_path: Path) -> None:
    store.save(read(DATA / "linux-6.1.ftrace.txt"), tmp_path / "t.mmrec")
    with pytest.raises(TraceError, match="needs no import"):
        import_(tmp_path / "t.mmrec")
