from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from mmtwin.recording import store
from mmtwin.recording.model import Recording


def test_text(mmtwin: Callable[..., tuple[int, str, str]], bundled: Path, demo_recording: Recording) -> None:
    code, out, err = mmtwin("info", bundled)
    assert (code, err) == (0, "")
    provenance = demo_recording.provenance
    for words in (
        provenance.kernel_release,
        provenance.cmdline,
        provenance.workload_name,
        "before and after",
        f"{len(demo_recording.events):,}",
        "mm_page_alloc",
    ):
        assert words in out
    assert all(line == line.rstrip() and "\x1b" not in line for line in out.splitlines())


def test_json(mmtwin: Callable[..., tuple[int, str, str]], bundled: Path, demo_recording: Recording) -> None:
    code, out, err = mmtwin("info", bundled, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["schema"] == 1
    assert document["events"] == len(demo_recording.events) == sum(document["events_by_kind"].values()) == sum(document["events_by_cpu"].values())
    assert document["cpus"] == demo_recording.provenance.cpus == len(document["events_by_cpu"])
    assert document["snapshots"] == ["before", "after"]
    assert document["file_bytes"] == bundled.stat().st_size
    assert document["provenance"]["kernel_release"] == document["kernel_release"] == demo_recording.provenance.kernel_release


def test_losses_notes_and_hostile_names(mmtwin: Callable[..., tuple[int, str, str]], demo_recording: Recording, tmp_path: Path) -> None:
    odd = replace(
        demo_recording.provenance, lost_events=1234, missed_probes=5, notes=["a [bold]note[/]"], workload_name="x\x1b]0;owned\x07[red]", how="elsewhere"
    )
    pages = demo_recording.events.filter(pl.col("kind").cast(pl.String).str.starts_with("mm_page")).head(100)
    store.save(Recording(odd, None, None, pages), tmp_path / "x.mmrec")
    code, out, _ = mmtwin("info", tmp_path / "x.mmrec")
    assert code == 0
    assert "1,234: counts after the first loss cannot be trusted" in out
    assert "5: the order of those events is unknown" in out
    assert "a [bold]note[/]" in out
    assert "x\\x1b]0;owned\\x07[red]" in out
    assert "none: it can be counted and analysed, not replayed" in out
    assert "page events only" in out


def test_code_runs(mmtwin: Callable[..., tuple[int, str, str]], bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = mmtwin("info", bundled, "--code")
    assert code == 0
    exec(out, {})
    assert "'format': 'mmrec'" in capsys.readouterr().out


def test_bad_files(fails: Callable[..., str], tmp_path: Path, bundled: Path, trace: Path) -> None:
    """What a damaged file says is tested with `store`; here only that each ends with one line, for both reading verbs."""
    content = bundled.read_bytes()
    (tmp_path / "empty").touch()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    (tmp_path / "cut by one").write_bytes(content[:-1])
    manifest, middle = content.index(b"manifest.json"), len(content) // 2
    (tmp_path / "flipped head").write_bytes(content[: manifest + 40] + bytes([content[manifest + 40] ^ 4]) + content[manifest + 41 :])
    (tmp_path / "flipped table").write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    for verb in ("info", "replay"):
        assert "No such file or directory" in fails(1, verb, tmp_path / "none")
        assert "is no regular file" in fails(1, verb, tmp_path)
        for name in ("empty", "cut", "cut by one", "flipped head"):
            assert fails(1, verb, tmp_path / name).startswith(f"{tmp_path / name}: ")
        assert "expected a recording written by mmtwin (.mmrec)" in fails(1, verb, trace)
        assert fails(1, verb, "")
        assert fails(1, verb, "a\0b")
    assert "damaged" in fails(1, "replay", tmp_path / "flipped table")


def test_virtual_areas(mmtwin: Callable[..., tuple[int, str, str]], areas: dict[str, Recording], tmp_path: Path) -> None:
    for name, only in (("areas-6.12-1cpu", True), ("areas-256m-1cpu", False)):
        store.save(areas[name], tmp_path / f"{name}.mmrec")
        code, out, err = mmtwin("info", tmp_path / f"{name}.mmrec", "--json")
        document = json.loads(out)
        after = areas[name].after
        assert (code, err) == (0, "") and after is not None and after.vmaps is not None
        assert document["virtual_areas"]["after"] == {table: len(after.vmaps[table]) for table in ("areas", "vms", "blocks")}
        assert document["page_state"] is not only
        assert list(document["provenance"]["modules"]) == ["vmalloc_probe"]
        _, out, _ = mmtwin("info", tmp_path / f"{name}.mmrec")
        assert ("virtual areas only" in out) is only and f"{len(after.vmaps['areas']):,} areas in use or free" in out


def test_of_some_tasks_only(mmtwin: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    data = Path(__file__).parents[1] / "data" / "perf" / "task.data.gz"
    assert mmtwin("import", data, "-o", tmp_path / "t.mmrec")[0] == 0
    assert "imported perf.data (mmtwin import), of some tasks only" in mmtwin("info", tmp_path / "t.mmrec")[1]
    assert json.loads(mmtwin("info", tmp_path / "t.mmrec", "--json")[1])["scope"] == "tasks"
