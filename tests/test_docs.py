"""Documents whose tables are made from data: they are up to date, and say what the data says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def vmalloc_cost() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vmalloc_cost", DOCS / "vmalloc_cost.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_vmalloc_cost_is_up_to_date(vmalloc_cost: ModuleType) -> None:
    text = (DOCS / "vmalloc-cost.md").read_text()
    assert vmalloc_cost.filled(text) == text
    assert text.count("<!-- table ") == len(vmalloc_cost.tables()) == text.count("<!-- end -->")


def test_one_count_is_one_instruction(vmalloc_cost: ModuleType) -> None:
    for run in vmalloc_cost.runs().values():
        assert run["calibration"]["counted"] == run["calibration"]["expected"] == 200_000
        assert vmalloc_cost.sizes(run) == [1 << power for power in range(3, 23)]
        assert "failed" not in run


def test_the_steps_add_up(vmalloc_cost: ModuleType) -> None:
    """The rest that no step explains is small: the breakdown is of what was measured as a whole."""
    for (_, zeroing), run in vmalloc_cost.runs().items():
        if zeroing:
            continue
        for size in vmalloc_cost.whole_pages(run):
            whole = vmalloc_cost.cost(run, "vmalloc", size, "least")
            parts = sum(vmalloc_cost.cost(run, step, size, "least") for step in vmalloc_cost.ALLOC_STEPS)
            assert 0 <= whole - parts <= 0.14 * whole
            freed = sum(vmalloc_cost.cost(run, step, size, "least") for step in ("step_unmap_area_free", "step_pages_free", "step_array_free"))
            whole = vmalloc_cost.cost(run, "vfree", size, "least")
            assert 0 <= whole - freed <= 0.16 * whole


def test_what_the_text_claims(vmalloc_cost: ModuleType) -> None:
    for machine, pair, ratio in (("x86_64", 261, 14.6), ("i686", 232, 12.3)):
        run = vmalloc_cost.runs()[machine, False]
        kmalloc, vmalloc = (sum(vmalloc_cost.cost(run, name, 8) for name in names) for names in (("kmalloc", "kfree"), ("vmalloc", "vfree")))
        assert (kmalloc, round(vmalloc / kmalloc, 1)) == (pair, ratio)


def test_the_twins_columns(vmalloc_cost: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    twin = tmp_path / "twin.json"
    twin.write_text(json.dumps({"i686": {"columns": ["page-table writes"], "rows": {"8": [2], "4194304": [2048]}}}))
    monkeypatch.setattr(vmalloc_cost, "TWIN", twin)
    made = vmalloc_cost.tables()
    lines = made["pairs i386"].splitlines()
    assert lines[0].endswith("| page-table writes |")
    assert lines[2].endswith(" | 2 |") and lines[3].endswith(" |  |") and lines[-1].endswith(" | 2048 |")
    assert "page-table writes" not in made["pairs x86-64"]
