from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mmtwin.cli import blame as module
from tests.conftest import RECORDINGS

Run = Callable[..., tuple[int, str, str]]
FAILS = RECORDINGS / "pressure/fails-128m-1cpu.mmrec"
SLABS = RECORDINGS / "slabs-256m-1cpu-slab.mmrec"


def test_the_first_lines_say_who_and_how_much(mmtwin: Run) -> None:
    code, out, _ = mmtwin("blame", FAILS, "--lines", 3)
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines[:4]] == ["fragments", "grows", "leaks", "wastes"]
    assert "9,482 unmovable pages pin 25 of 45 movable pageblocks" in lines[0] and "38 fallback events" in lines[0]
    assert "NOT TOLD: no slab events were recorded" in out
    assert all(line == line.rstrip() for line in lines)
    assert "... and" in out and "(--lines 0 shows all)" in out


def test_sections(mmtwin: Run) -> None:
    code, out, _ = mmtwin("blame", SLABS, "--only", "wastes,leaks", "--by", "function", "--time", "10%,90%")
    assert code == 0 and [line.split()[0] for line in out.splitlines()[:2]] == ["wastes", "leaks"]
    assert "WHO LEAKS" in out and "SIZE CLASSES" in out and "WHO GROWS" not in out and "WHO FRAGMENTS" not in out


def test_json(mmtwin: Run) -> None:
    code, out, _ = mmtwin("blame", SLABS, "--json", "--steps", 4, "--lines", 2)
    document = json.loads(out)
    assert (code, document["schema"], document["cpus"], document["steps"], document["clock"]) == (0, 1, 1, 4, "events")
    assert len(document["times"]) == len(document["fragments"]["over_time"]["pinned"]) == 5
    assert document["fragments"]["unmovable_in_movable"] == document["fragments"]["over_time"]["pinned"][-1] > 0
    assert set(document["grows"]) == {"objects", "caches", "pages"} and set(document["leaks"]) == {"objects", "pages"}
    for table in (*document["grows"].values(), *document["leaks"].values()):
        assert len(table["rows"]) == 2 < table["rows_total"]
    assert len(document["grows"]["caches"]["rows"][0]["series"]) == 5
    everything = json.loads(mmtwin("blame", SLABS, "--json", "--only", "leaks")[1])
    assert len(everything["leaks"]["objects"]["rows"]) == everything["leaks"]["objects"]["rows_total"]
    assert everything["fragments"] is None and everything["wastes"] is None


def test_trace_text(mmtwin: Run, trace: Path) -> None:
    code, out, err = mmtwin("blame", trace)
    assert (code, err) == (0, "")
    assert "where pages lie is not known" in out and "NOT TOLD: no memory dump to start from" in out and "mm_page_alloc_extfrag: 1" in out


@pytest.mark.parametrize("words", [("--by", "pid", "--steps", "3", "--time", "0,50000"), ("--only", "leaks")])
def test_the_code_that_is_printed_runs(mmtwin: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    code, out, _ = mmtwin("blame", SLABS, *words, "--code")
    assert code == 0
    exec(compile(out, "printed", "exec"), {})
    assert "shape:" in capsys.readouterr().out


def test_usage(fails: Callable[..., str], tmp_path: Path) -> None:
    assert "--only: unknown section 'sleeps'; expected, separated by commas: fragments, grows, leaks, wastes" in fails(2, "blame", SLABS, "--only", "sleeps")
    assert "--by: unknown group 'ptr'; expected one of: callsite, function, cache, pid" in fails(2, "blame", SLABS, "--by", "ptr")
    assert "--steps 0: expected 1 to 1000" in fails(2, "blame", SLABS, "--steps", 0)
    assert "--lines -1" in fails(2, "blame", SLABS, "--lines", -1)
    assert "ends before it begins" in fails(2, "blame", SLABS, "--time", "5,2")
    assert "no events between" in fails(1, "--quiet", "blame", SLABS, "--time", "99999999999,")
    assert "none.mmrec" in fails(1, "blame", tmp_path / "none.mmrec")


def test_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        encoding = "utf-8"

    monkeypatch.setattr(module.sys, "stdout", Stream())
    assert module.spark([0, 1, 50, 100]) == "▁▂▅█"
    assert module.spark([]) == "" and module.spark([0, 0]) == "▁▁" and module.spark([-5, 7]) == "▁█"
    Stream.encoding = "ANSI_X3.4-1968"
    assert module.spark([0, 1, 50, 100]) == "_.+@"
