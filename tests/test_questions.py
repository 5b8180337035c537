"""docs/questions: what the pages show is what the commands print, and their Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from mmtwin import errors
from mmtwin.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "questions").glob("*.md"))
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.M | re.S)
RAISES = re.compile(r"^( *)(\S.*?) +# raises (\w+)[^\n]*", re.M)


def blocks(kind: str) -> list[tuple[str, str]]:
    """Page and text of each block of a kind."""
    return [(page.stem, text) for page in PAGES for found, text in BLOCK.findall(page.read_text()) if found == kind]


@pytest.mark.parametrize(("page", "text"), blocks("console"))
def test_commands_print_what_the_page_shows(page: str, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line shown, in this order; "..." and empty lines stand for what is left out."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "110")
    command, *shown = text.splitlines()
    assert command.startswith("$ mmtwin ")
    assert main(shlex.split(command)[2:]) == 0
    printed = iter([line.rstrip() for line in capsys.readouterr().out.splitlines()])
    for line in shown:
        assert line in ("...", "") or line in printed, f"{page}: not printed, or not there: {line}"  # `in` goes on where it stopped


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_python_runs(page: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line with "# raises NAME" raises that error."""
    monkeypatch.chdir(ROOT)
    code = RAISES.sub(r"\1with pytest.raises(errors.\3): \2", text)
    exec(compile(code, f"{page}.md", "exec"), {"pytest": pytest, "errors": errors})


def test_pages_are_found_from_the_readme() -> None:
    assert len(PAGES) >= 9
    readme = (ROOT / "README.md").read_text()
    for page in PAGES:
        assert f"docs/questions/{page.name}" in readme
        for target in re.findall(r"\]\(([^)#]+\.md)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
