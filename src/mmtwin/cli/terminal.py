"""Where output goes: data to stdout in one piece, notes and progress to stderr, colour and bars only on a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from cyclopts import Parameter

from mmtwin.errors import MmtwinError

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDE = 1000
"""Columns when stdout is no terminal: nothing is wrapped that a program may want to read."""


class UsageError(MmtwinError):
    """Options or arguments that make no sense, whatever the data."""

    exit_code = 2


class OutputError(MmtwinError):
    """The results could not be written to stdout."""


def printable(text: object) -> str:
    """One line without control characters: names come from files, and a terminal obeys what it is shown."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


@dataclass(frozen=True)
class Terminal:
    """The streams of one run.

    :param quiet: no progress and no notes on stderr.
    """

    quiet: bool = False

    def show(self, *parts: RenderableType) -> None:
        """Renders tables and texts to stdout."""
        from rich.console import Console

        on_terminal = sys.stdout is not None and sys.stdout.isatty()
        page = io.StringIO()
        console = Console(file=page, force_terminal=on_terminal or None, width=None if on_terminal else WIDE, highlight=False, markup=False, emoji=False)
        for part in parts:
            console.print(part)
        self.write("".join(f"{line.rstrip()}\n" for line in page.getvalue().split("\n")[:-1]))

    def json(self, document: dict[str, Any]) -> None:
        """One JSON document on stdout."""
        import json

        self.write(json.dumps(document, indent=2) + "\n")

    def write(self, text: str) -> None:
        """Text to stdout. A reader that has left (``| head``) is no error.

        :raises OutputError: the text cannot be written, for instance because the disk is full.
        """
        if sys.stdout is None:  # closed by the caller: nobody wants it
            return
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            silence(sys.stdout)
        except OSError as error:
            silence(sys.stdout)
            raise OutputError(f"cannot write to standard output: {error.strerror}") from error

    def note(self, text: str) -> None:
        """A line on stderr about what is going on."""
        if not self.quiet:
            complain(text)

    @contextlib.contextmanager
    def progress(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """A bar on stderr while the block runs; it moves when what this yields is called with (done, total)."""
        if self.quiet or sys.stderr is None or not sys.stderr.isatty():
            yield lambda done, total: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
        with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
            task = bar.add_task(text, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def complain(text: str) -> None:
    """One line on stderr, whatever happens to stderr."""
    if sys.stderr is not None:
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:
            silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Sends what is still in the stream's buffer nowhere, so that Python does not complain about it at exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


ForTerminal = Annotated[Terminal, Parameter(parse=False)]
"""A command's parameter that `main` fills in."""
