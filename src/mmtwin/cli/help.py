"""How help looks: plain text in aligned columns, the same on a terminal and in a pipe."""

from __future__ import annotations

import io
import re
import shutil
import textwrap
from typing import TYPE_CHECKING, Any

from cyclopts.help import PlainFormatter

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console, ConsoleOptions

LABELS = 28
"""Widest column of labels; a longer one gets a line of its own."""


class ColumnFormatter(PlainFormatter):
    """Usage and description as plain text, then each group of arguments, options or commands in two columns."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """One group."""
        rows = []
        for entry in panel.entries:
            labels = entry.display_labels_with_metavar if panel.format == "parameter" else entry.display_labels
            default = f"[default: {entry.default}]" if entry.default is not None else ""
            rows.append((", ".join(labels), " ".join(part for part in (_plain(entry.description), default) if part)))
        if not rows:
            return
        width = min(LABELS, max(len(label) for label, _ in rows)) + 4
        lines = [f"{panel.title}:"]
        for label, text in rows:
            wrapped = textwrap.wrap(text, _columns() - width) or [""]
            if len(label) > width - 4:
                lines.append(f"  {label}")
                label = ""
            lines.append(f"  {label}".ljust(width) + wrapped[0])
            lines += [" " * width + line for line in wrapped[1:]]
        _write(console, lines)

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        """The paragraphs before the groups; line ends inside a paragraph are those of the source and mean nothing."""
        paragraphs = re.split(r"\n\s*\n", _plain(description))
        if text := "\n\n".join("\n".join(textwrap.wrap(" ".join(p.split()), _columns())) for p in paragraphs):
            _write(console, text.split("\n"))


def _plain(text: Any) -> str:
    """What rich would show, without wrapping and colour."""
    if text is None or isinstance(text, str):
        return text or ""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=100_000, no_color=True, highlight=False, markup=False, emoji=False, force_terminal=False)
    with console.capture() as captured:
        console.print(text)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip()


def _columns() -> int:
    return max(50, min(100, shutil.get_terminal_size().columns))


def _write(console: Console, lines: list[str]) -> None:
    console.print("\n".join(line.rstrip() for line in lines), markup=False, highlight=False, soft_wrap=True)
    console.print()
