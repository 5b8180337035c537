"""The scripts in examples/ run, and print what they are there to show."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SHOWN = {
    "choose_for_a_driver": ["DMA: page by page", "no block of 1 MiB in one piece", "kvmalloc  vmalloc      256 stretches"],
    "watch_page_tables": [
        "maps 2 MiB of the direct map",
        "(16 stretches)",
        "CPU 0 still reads b'still here'",
        "CPU 0 after the purge:\n\n    BUG: unable to handle page fault",
    ],
    "fragmentation": ["kmalloc(256 KiB): served", "CPU 0: no block of 256 KiB in one piece", "neighbours merge"],
    "twenty_eight_bytes": ["32 bytes each", "vmalloc number 15361 returns NULL", "vmap allocation for size 8192 failed", "kmalloc goes on"],
}


@pytest.mark.parametrize("name", SHOWN)
def test_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    out = capsys.readouterr().out
    for text in SHOWN[name]:
        assert text in out, out
    assert max(map(len, out.splitlines())) <= 180


def test_all_are_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SHOWN, "pictures"}
