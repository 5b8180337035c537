from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import polars as pl
import pytest

from mmtwin import _jit
from mmtwin.cli import result_text
from mmtwin.recording import store
from mmtwin.recording.model import Recording
from mmtwin.replay import check

CONTRACT = [
    "cpus",
    "events",
    "page_allocs",
    "page_allocs_equal",
    "slab_allocs",
    "slab_allocs_equal",
    "vmap_allocs",
    "vmap_allocs_equal",
    "final_state_equal",
    "differences",
    "inferred_events",
    "seconds",
    "events_per_second",
]


@pytest.fixture
def changed(demo_recording: Recording, tmp_path: Path) -> Path:
    """The bundled recording as if the kernel had given another page once, and had ended as it began."""
    row = demo_recording.events.with_row_index().filter((pl.col("kind") == "mm_page_alloc") & (pl.col("pfn") >= 0) & (pl.col("order") == 0))["index"][-1]
    free = demo_recording.events["pfn"].max()
    assert isinstance(free, int)
    events = (
        demo_recording.events.with_row_index().with_columns(pfn=pl.when(pl.col("index") == row).then(pl.col("pfn") ^ 1).otherwise(pl.col("pfn"))).drop("index")
    )
    path = tmp_path / "changed.mmrec"
    store.save(replace(demo_recording, events=events, after=demo_recording.before), path)
    return path


def test_text(mmtwin: Callable[..., tuple[int, str, str]], bundled: Path) -> None:
    code, out, _ = mmtwin("replay", bundled)
    assert code == 0
    assert "but the final state was not compared (--check does)" in out
    assert "free lists" not in out
    code, out, _ = mmtwin("replay", bundled, "--check")
    assert code == 0
    assert "free lists, in order" in out
    assert out.splitlines()[-1] == "EQUAL: Every answer is the kernel's, and the final state is the kernel's."
    assert "WARNING" not in out
    assert "\x1b" not in out


def test_json(mmtwin: Callable[..., tuple[int, str, str]], bundled: Path, demo_recording: Recording) -> None:
    code, out, _ = mmtwin("--quiet", "replay", bundled, "--check", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["schema"] == 1
    assert set(CONTRACT) <= set(document)
    assert {field.name for field in fields(check.Result)} <= set(document)
    assert document["events"] == len(demo_recording.events)
    assert document["page_allocs_equal"] == document["page_allocs"] > 0
    assert document["final_state_equal"] is document["equal"] is True
    assert document["differences"] == []


def test_a_difference(mmtwin: Callable[..., tuple[int, str, str]], changed: Path) -> None:
    code, out, _ = mmtwin("replay", changed, "--check")
    assert code == 3
    assert "The first " in out
    assert "; first: " in out
    assert out.splitlines()[-1].startswith("DIFFERENT: ")
    code, out, _ = mmtwin("replay", changed, "--check", "--json")
    document = json.loads(out)
    assert code == 3
    assert document["final_state_equal"] is document["equal"] is False
    assert document["differences"][0].keys() >= {"event", "expected", "predicted", "order", "gfp", "cpu"}
    code, out, _ = mmtwin("replay", changed)  # a replay, not a check
    assert code == 0
    assert "DIFFERENT" in out


def test_losses_are_told(mmtwin: Callable[..., tuple[int, str, str]], demo_recording: Recording, tmp_path: Path) -> None:
    store.save(replace(demo_recording, provenance=replace(demo_recording.provenance, lost_events=1234, missed_probes=5)), tmp_path / "x.mmrec")
    code, out, _ = mmtwin("replay", tmp_path / "x.mmrec", "--check")
    assert code == 0
    assert "WARNING: the trace buffer lost 1,234 events." in out
    assert "WARNING: 5 probes did not fire." in out


def test_without_snapshots(fails: Callable[..., str], demo_recording: Recording, tmp_path: Path) -> None:
    store.save(replace(demo_recording, before=None, after=None), tmp_path / "none.mmrec")
    store.save(replace(demo_recording, after=None), tmp_path / "one.mmrec")
    for words in ((), ("--check",), ("--json",)):
        assert "none.mmrec: has no snapshots, so there is no state to start from" in fails(1, "replay", tmp_path / "none.mmrec", *words)
    assert "one.mmrec: has no second snapshot" in fails(1, "replay", tmp_path / "one.mmrec", "--check")


def test_without_after_it_can_be_replayed(mmtwin: Callable[..., tuple[int, str, str]], demo_recording: Recording, tmp_path: Path) -> None:
    store.save(replace(demo_recording, after=None), tmp_path / "one.mmrec")
    assert mmtwin("replay", tmp_path / "one.mmrec")[0] == 0


def test_compiling_is_announced_once(mmtwin: Callable[..., tuple[int, str, str]], bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_jit, "is_compiled", lambda name: False)
    assert mmtwin("replay", bundled)[2] == "compiling the replay, about 30 s, once\n"
    assert mmtwin("replay", bundled, "--quiet")[2] == ""
    monkeypatch.setattr(_jit, "is_compiled", lambda name: True)
    assert mmtwin("replay", bundled)[2] == ""


def test_code_runs(mmtwin: Callable[..., tuple[int, str, str]], bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = mmtwin("replay", bundled, "--check", "--code")
    assert code == 0
    exec(out, {})
    assert "final_state_equal=True" in capsys.readouterr().out


def test_every_inferred_kind_is_explained(demo_recording: Recording) -> None:
    result, _ = check.replay(demo_recording)
    assert set(result.inferred) == set(result_text.INFERRED)


def test_verdicts(demo_recording: Recording) -> None:
    result, _ = check.replay(demo_recording)
    part, difference = check.Part("odd things", 1, 2, "this one"), {"event": 1}
    for changes, words in (
        ({}, "EQUAL: Every answer is the kernel's, and the final state is the kernel's."),
        ({"parts": [], "final_state_equal": None}, "EQUAL: Every answer is the kernel's, but the final state was not compared (--check does)."),
        ({"page_allocs_equal": result.page_allocs - 3}, "DIFFERENT: 3 answers differ, and the final state is the kernel's."),
        ({"differences": [difference]}, "DIFFERENT: Frees or free lists differ on the way, and the final state is the kernel's."),
        ({"parts": [part], "final_state_equal": False}, "DIFFERENT: Every answer is the kernel's, and the final state differs."),
        ({"parts": [part]}, "DIFFERENT: Every answer is the kernel's, and the final state is the kernel's; different: odd things."),
        (
            {"page_allocs": 0, "page_allocs_equal": 0, "failed_allocs": 0, "failed_allocs_equal": 0},
            "EQUAL: No request to compare, and the final state is the kernel's.",
        ),
    ):
        assert result_text.verdict(replace(result, **changes)).plain == words  # type: ignore[arg-type]


def test_a_bar_and_colour_only_on_a_terminal(mmtwin: Callable[..., tuple[int, str, str]], bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for quiet in (False, True):
        out, err = Tty(), Tty()
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", err)
        from mmtwin.cli.main import main

        assert main(["replay", str(bundled), *(["--quiet"] if quiet else [])]) == 0
        assert "\x1b[32m" in out.getvalue()
        assert ("reading" in err.getvalue()) is not quiet
    monkeypatch.setenv("NO_COLOR", "1")
    out = Tty()
    monkeypatch.setattr("sys.stdout", out)
    assert main(["replay", str(bundled), "--quiet"]) == 0
    assert "\x1b[32m" not in out.getvalue()


def test_recordings_of_malloc(mmtwin: Callable[..., tuple[int, str, str]]) -> None:
    path = Path(__file__).parent.parent / "data" / "malloc-sqlite3.mmrec"
    code, out, _ = mmtwin("replay", path, "--check")
    assert code == 0 and "EQUAL: Every answer is the C library's." in out
    found = json.loads(mmtwin("replay", path, "--json")[1])
    assert found["equal"] == found["answers"] > 1000 and found["differences"] == []
