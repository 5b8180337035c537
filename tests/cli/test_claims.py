"""mmtwin claims: text, JSON, one row, the experiments' Python, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mmtwin import claims
from mmtwin.claims import CLAIMS, Measured, select
from mmtwin.cli.claims import block, summary, text
from mmtwin.machine import Machine


@pytest.fixture(scope="module")
def two() -> list[Measured]:
    return list(claims.run(["kmalloc-contiguous", "dma-vmalloc"]))


def test_text(mmtwin: Callable[..., Any]) -> None:
    got = mmtwin("claims", "--only", "kmalloc-contiguous")
    assert got.code == 0
    assert got.out.startswith("kmalloc's memory is physically contiguous. [kmalloc-contiguous]\n  verdict     TRUE\n")
    assert "4 MiB in 1 stretch of adjacent page frames" in got.out
    assert "Linux 6.1" in got.out
    assert "1 claim: 1 true" in got.out
    assert "m.kmalloc" not in got.out
    assert "\033" not in got.out


def test_show_prints_the_experiment(mmtwin: Callable[..., Any]) -> None:
    out = mmtwin("claims", "--only", "kmalloc-contiguous", "--show").out
    assert 'm = mmtwin.boot("linux-6.1", ram="512MiB", cpus=1)' in out
    assert "p = m.kmalloc(4 << 20)" in out


def test_json(mmtwin: Callable[..., Any]) -> None:
    got = mmtwin("claims", "--json", "--only", "pairs", "--only", "dma-vmalloc")
    document = json.loads(got.out)
    assert document["schema"] == 1
    assert [row["id"] for row in document["claims"]] == ["pairs", "dma-vmalloc"]
    for row in document["claims"]:
        assert {"id", "claim", "verdict", "truth", "twin", "kernel", "kernel_version"} <= set(row)
        assert row["twin"]["figures"] and row["kernel"]["text"]
        assert row["equal"] is True and row["differences"] == []


def test_unknown(fails: Callable[..., str]) -> None:
    assert fails(2, "claims", "--only", "nonsense!").startswith("no claim 'nonsense!'")
    assert "did you mean pairs?" in fails(2, "claims", "--only", "pear")
    fails(2, "claims", "--only")
    fails(2, "claims", "surplus")


def test_a_difference_is_exit_code_3(mmtwin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def scattered(m: Machine) -> dict[str, Any]:
        return {"bytes": 4 << 20, "runs": 2}

    row = select(["kmalloc-contiguous"])[0]
    monkeypatch.setitem(CLAIMS, row.id, replace(row, experiment=scattered))
    got = mmtwin("claims", "--only", row.id, "--json")
    assert got.code == 3
    assert json.loads(got.out)["claims"][0]["differences"] == ["runs: 2, 1", "verdict: False, True"]


@pytest.mark.parametrize("width", [50, 72, 120])
def test_no_line_is_wider_than_the_terminal(two: list[Measured], width: int) -> None:
    lines = list(text(two, width))
    assert max(map(len, lines)) <= width
    assert "2 claims: 1 true, 0 true then but not now, 1 wrong" in " ".join(lines)


def test_colour_and_differences(two: list[Measured]) -> None:
    assert any("\033[31mWRONG\033[0m" in line for line in text(two, 80, colour=True))
    wrong = replace(two[0], twin={**two[0].twin, "runs": 3})
    assert any("DIFFERENT" in line for line in block(wrong, 80, False, False))
    assert "in 1 of them the twin and the kernel DIFFER" in summary([wrong])
