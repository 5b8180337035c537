from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from mmtwin.recording import store


def test_counts_and_file(mmtwin: Callable[..., tuple[int, str, str]], trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    source = tmp_path / "text" / "my.trace.txt.gz"
    source.write_bytes(gzip.compress(trace.read_bytes()))
    code, out, err = mmtwin("import", source)
    assert (code, err) == (0, "")
    recording = store.load(tmp_path / "my.trace.mmrec")
    lines = out.splitlines()
    assert lines[-1] == "Wrote my.trace.mmrec"
    assert f"{len(recording.events):>12,}  events" in lines
    assert f"{recording.provenance.lost_events:>12,}  lost events" in lines
    for kind, count in recording.events["kind"].value_counts().iter_rows():
        assert f"{count:>12,}  {kind}" in lines
    assert [line.removeprefix("note: ") for line in lines if line.startswith("note: ")] == recording.provenance.notes


def test_output(mmtwin: Callable[..., tuple[int, str, str]], fails: Callable[..., str], trace: Path, tmp_path: Path) -> None:
    target, text = tmp_path / "x.mmrec", tmp_path / "trace.txt"
    text.write_bytes(trace.read_bytes())
    target.write_text("mine")
    assert fails(1, "import", text, "-o", target) == f"{target}: exists; choose another name with -o or overwrite it with --force"
    assert target.read_text() == "mine"
    assert fails(1, "import", text, "-o", tmp_path, "--force") == f"{tmp_path}: is a directory; name a file in it with -o"
    assert "is what it is made from" in fails(1, "import", text, "-o", text, "--force")
    assert "is no regular file" in fails(1, "import", text, "-o", "/dev/null", "--force")
    assert "cannot be written: No such file or directory" in fails(1, "import", text, "-o", tmp_path / "no" / "x.mmrec")
    assert "cannot be written: Not a directory" in fails(1, "import", text, "-o", text / "x.mmrec")
    assert mmtwin("import", text, "--output", target, "--force")[0] == 0
    assert store.load(target).before is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace.txt", "x.mmrec"]


def test_bad_text(fails: Callable[..., str], mmtwin: Callable[..., tuple[int, str, str]], trace: Path, bundled: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.mmrec"
    torn = tmp_path / "torn"
    torn.write_text(trace.read_text() + "sh-1 [000] garbage\n")
    assert "cannot be read: No such file or directory" in fails(1, "import", tmp_path / "none", "-o", target)
    assert "cannot be read: Is a directory" in fails(1, "import", tmp_path, "-o", target)
    assert "a recording (.mmrec) needs no import" in fails(1, "import", bundled, "-o", target)
    assert "no trace line in it" in fails(1, "import", __file__, "-o", target)
    assert "is malformed" in fails(1, "import", torn, "-o", target, "--strict")
    assert not target.exists()
    code, out, _ = mmtwin("import", torn, "-o", target)
    assert code == 0
    assert "note: 1 malformed lines skipped" in out


def test_calls_of_malloc(mmtwin: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    from mmtwin.recording.readers.malloc_trace import read
    from tests.recording.readers.test_malloc_trace import GOOD, raw

    (tmp_path / "trace.1").write_bytes(raw(GOOD))
    code, out, _ = mmtwin("import", tmp_path / "trace.1", "-o", tmp_path / "x.mmrec")
    assert code == 0 and "2  user_maps" in out
    assert len(read(tmp_path / "x.mmrec").calls) == len(GOOD)
