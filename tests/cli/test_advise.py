from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmtwin.diagnose.advise import trial
from mmtwin.diagnose.advise.advise import advise
from mmtwin.diagnose.stat import stat
from mmtwin.recording import store
from mmtwin.recording.readers import ftrace_text

Run = Callable[..., tuple[int, str, str]]
DATA = Path(__file__).parent.parent / "data"
PERF = DATA / "advise-6.18.perf.txt.gz"


@pytest.fixture(scope="session")
def slab() -> Path:
    """A real recording with slab events."""
    return Path(os.environ.get("MMTWIN_TEST_RECORDINGS") or Path(__file__).parent.parent / "recordings") / "pipes-512m-1cpu-slab.mmrec"


@pytest.fixture(scope="session")
def areas(slab: Path) -> Path:
    """One with vmalloc."""
    return slab.parent / "areas-256m-2cpu-slab.mmrec"


def test_text_of_a_trace(mmtwin: Run) -> None:
    code, out, err = mmtwin("advise", PERF)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert all(line == line.rstrip() and "\x1b" not in line for line in lines)
    first = next(i for i, line in enumerate(lines) if "[own-cache]" in line)
    assert lines[first].startswith("alloc_pipe_info+0xd7  [own-cache]  saves ")
    shown = "\n".join(lines[first : first + 12])
    for words in ("now ", "better ", "why ", "limit ", "not in the trace ", "on the twin: ", "pages at the peak "):
        assert words in shown
    assert 'kmem_cache_create("alloc_pipe_info", 640, 0, SLAB_ACCOUNT)' in shown
    assert "SITES WITHOUT ADVICE, most bytes first" in lines
    assert "SIZE CLASSES OF KMALLOC" in lines
    assert "Held in slabs of the twin they take 258,048 bytes in the kernel's classes, and 192,512 in the best." in out
    assert any("the kernel's own: 8 16 32 64 96 128 192 256 512 1024 2048 4096 8192" in line for line in lines)
    assert lines[0].endswith("a freshly booted linux-6.1 with 512 MiB and 2 CPUs, as the file has no snapshot of the machine")


def test_json(mmtwin: Run, areas: Path) -> None:
    code, out, err = mmtwin("advise", areas, "--json", "--lines", "3")
    assert (code, err) == (0, "")
    document: dict[str, Any] = json.loads(out)
    assert document["schema"] == 1
    assert len(document["sites"]) == 3 < document["sites_total"]
    assert document["thresholds"]["saving_bytes"] == 4096
    assert document["machine"].startswith("the recorded machine before the events (6.1.0")
    found = document["sites"][0]["advice"][0]
    assert (found["rule"], found["kind"]) == ("whole-pages", "memory")
    tried = found["trial"]
    assert found["saved_bytes"] == 4096 * (tried["now"]["pages_peak"] - tried["then"]["pages_peak"]) > 1 << 20
    assert tried["then"]["page_table_writes"] > 1000 > tried["now"]["page_table_writes"]
    assert tried["now_fragmented"]["failed"] > tried["then_fragmented"]["failed"] == 0
    assert {other["rule"] for other in document["others"]} == {"small-vmalloc"}
    total = stat(store.load(areas)).summary
    everything = json.loads(mmtwin("advise", areas, "--json", "--untried")[1])
    assert sum(site["bytes_alloc"] for site in everything["sites"]) == total.bytes_allocated == everything["summary"]["bytes_allocated"]
    assert sum(site["hits"] for site in everything["sites"]) == total.allocations
    assert all(advice["trial"] is None for site in everything["sites"] for advice in site["advice"])


def test_one_site(mmtwin: Run, fails: Callable[..., str]) -> None:
    code, out, err = mmtwin("advise", PERF, "--site", "ext4_htree_store_dirent", "--untried")
    assert (code, err) == (0, "")
    assert out.startswith("ext4_htree_store_dirent+0x34\n  ")
    for fact in ("Asked by size  kmalloc", "Requests ", "Bytes ", "Held at most ", "Sizes ", "Flags ", "Freed ", "Lifetime "):
        assert fact in out
    assert "more sizes" in out
    assert fails(1, "advise", PERF, "--site", "nothing").startswith(f"{PERF}: no site 'nothing'; the ")


def test_dropped_is_shown(mmtwin: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = trial.Outcome(200, 0, 0, 0, 52, 52, 52, 52, 2, 0, 0, 0)
    monkeypatch.setattr(trial.Bench, "compare", lambda *_: trial.Trial("a machine", 1, outcome, outcome, outcome, outcome))
    code, out, _ = mmtwin("advise", PERF, "--site", "alloc_pipe_info")
    assert code == 0
    assert "Not suggested, as the twin does not bear it out:" in out
    assert "own-cache was tried on the twin and does not help" in out


def test_no_suggestion(mmtwin: Run, tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("  a-1  [000]  1.000001: kmalloc: call_site=f+0x1/0x9 ptr=ffff888000001000 bytes_req=64 bytes_alloc=64 gfp_flags=GFP_KERNEL\n")
    code, out, err = mmtwin("advise", trace)
    assert (code, err) == (0, "")
    assert out.startswith("No suggestion: the only call site is right as it is")
    assert "right: 0 of 64 bytes unused at its peak of 1 object, less than a page" in out


def test_symbols(mmtwin: Run, slab: Path, tmp_path: Path) -> None:
    site = next(s.site.key for s in advise(store.load(slab), tries=False).sites if s.site.key) & (1 << 64) - 1
    (tmp_path / "System.map").write_text(f"{site - 0x10:016x} T biggest_user\n{site + 1:016x} T next\n")
    assert "biggest_user+0x10 " in mmtwin("advise", slab, "--symbols", tmp_path / "System.map", "--untried", "--lines", "0")[1]


def test_code_runs(mmtwin: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "map").write_text("ffffffff81000000 T start\n")
    for more in ((), ("--site", "alloc_pipe_info", "--symbols", tmp_path / "map")):
        code, out, err = mmtwin("advise", PERF, "--untried", "--code", *more)
        assert (code, err) == (0, "")
        exec(out, {})
        assert "alloc_pipe_info+0xd7 kmem_cache_create" in capsys.readouterr().out


def test_refused(fails: Callable[..., str], tmp_path: Path, slab: Path) -> None:
    pages = slab.parent / "settings-256m-2cpu.mmrec"
    assert fails(2, "advise", PERF, "--lines", "-1") == "--lines -1: expected a number of rows, 0 for all"
    assert "No such file" in fails(1, "advise", tmp_path / "no")
    assert "no slab events" in fails(1, "advise", pages)
    assert "calls of malloc" in fails(1, "advise", DATA / "malloc-shell.mmrec")
    (tmp_path / "text").write_text("nothing\n")
    fails(1, "advise", tmp_path / "text")


def test_the_same_twice() -> None:
    recording = ftrace_text.read(PERF)
    assert advise(recording, tries=False).to_dict() == advise(recording, tries=False).to_dict()
