from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
PIPES = Path(__file__).parents[1] / "recordings" / "pipes-512m-1cpu-slab.mmrec"
pytestmark = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="whole recordings take minutes in the interpreter")


def test_table_and_drawing(mmtwin: Run, tmp_path: Path) -> None:
    drawing = tmp_path / "out.svg"
    code, out, err = mmtwin("whatif", PIPES, "--set", "slub_max_order=0", "--against", "min_free_kbytes=16384 cpus=2", "-o", drawing)
    assert code == 0 and "Wrote" in err
    lines = out.splitlines()
    assert "kernel" in lines[0] and "twin" in lines[0] and "slub_max_order=0" in lines[0]
    for heading in ("FAILURES", "FRAGMENTATION at the end", "MEMORY in pages", "STEPS", "NOTE: CPUs"):
        assert any(line.startswith(heading) for line in lines)
    assert drawing.read_text().startswith("<svg")
    code, _, err = mmtwin("whatif", PIPES, "--set", "slub_max_order=0", "-o", drawing)
    assert code == 2 and "--force" in err


def test_json(mmtwin: Run) -> None:
    code, out, _ = mmtwin("whatif", PIPES, "--set", "cpu_partial=0", "--json")
    document = json.loads(out)
    assert code == 0 and document["schema"] == 1 and [case["name"] for case in document["cases"]] == ["kernel", "twin", "cpu_partial=0"]


def test_code_runs(mmtwin: Run) -> None:
    code, out, _ = mmtwin("whatif", PIPES, "--set", "merge=on", "--code")
    assert code == 0 and "Settings(merge=True)" in out
    compile(out, "code", "exec")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "nothing to try"), (("--set", "slub_maxorder=1"), "did you mean slub_max_order"), (("--set", "profile=linux-6.12"), "only its virtual areas")],
)
def test_usage(mmtwin: Run, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = mmtwin("whatif", PIPES, *arguments)
    assert code == 2 and out == "" and said in err and err.count("\n") == 1
