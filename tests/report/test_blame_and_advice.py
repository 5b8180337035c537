"""The report's blame and advice are those of mmtwin blame and mmtwin advise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmtwin.cli.main import main
from mmtwin.recording import store
from mmtwin.report import sections
from mmtwin.report.document import document
from mmtwin.report.page import html

from .conftest import Made

SITES = Path(__file__).parent.parent / "data" / "advise-640-256m-1cpu-slab.mmrec"


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    """What a command prints with --json."""
    capsys.readouterr()
    assert not main([*args, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("name", ["demo", "refusing"])
def test_blame(name: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    made: Made = request.getfixturevalue(name)
    mine = json.loads(json.dumps(made.data["blame"]))
    command = printed(capsys, "blame", str(made.path), "--lines", str(sections.BLAMED))
    heads = mine.pop("headlines")
    assert mine == {key: command[key] for key in mine} and mine["fragments"]["rows"] and mine["wastes"]["slabs"]
    assert [head["section"] for head in heads] == command["sections"] and all(head["text"] for head in heads)
    assert f"{command['fragments']['unmovable_in_movable']:,} unmovable pages" in heads[0]["text"]


def test_advice(capsys: pytest.CaptureFixture[str]) -> None:
    data = document(store.load(SITES), SITES, steps=2)
    mine = json.loads(json.dumps(data["advice"]))
    command = printed(capsys, "advise", str(SITES), "--untried")
    assert (mine["sites_total"], mine["sites_advised"], mine["notes"]) == (command["sites_total"], command["sites_advised"], command["notes"])
    theirs = [site for site in command["sites"] if site["advice"]]
    assert len(mine["sites"]) == min(len(theirs), sections.ADVISED) > 0
    for site, other in zip(mine["sites"], theirs, strict=False):
        assert [{key: value for key, value in found.items() if key != "effect"} for found in site["advice"]] == other["advice"]
        assert all(site[key] == other[key] for key in site if key != "advice")
        assert all(found["trial"] is None and found["effect"] for found in site["advice"])
    assert [found["suggestion"] if "suggestion" in found else found["rule"] for found in mine["others"]] == [found["rule"] for found in command["others"]]
    text = html(data)
    assert "nothing was tried" in text and mine["sites"][0]["site"] in text


def test_nothing_to_advise(refusing: Made) -> None:
    """Without slab events it is said, and nothing else is missing."""
    assert refusing.data["advice"] is None
    assert any(text.startswith("what to change: no slab events") for text in refusing.data["missing"])
