"""``mmtwin claims``: sentences about kmalloc, vmalloc and malloc, each run as an experiment."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mmtwin.cli.terminal import ForTerminal

if TYPE_CHECKING:
    from mmtwin.claims import Measured

NARROWEST, WIDEST, PLAIN = 50, 120, 100
FAILED = 3
COLOURS = {"true": "32", "true then, not now": "33", "wrong": "31"}


def claims(
    *,
    only: Annotated[tuple[str, ...], Parameter(metavar="ID", consume_multiple=False)] = (),
    show: bool = False,
    json: bool = False,
    terminal: ForTerminal,
) -> int | None:
    """Put what texts say about kmalloc, vmalloc and malloc to the test.

    Each sentence is an experiment: it is run now, on the twin, and beside it is what the same experiment measured in a real kernel. The kernel's measurement
    decides whether the sentence is true. The exit code is 3 if the twin measures anything else than the kernel.

    :param only: Only this claim; may be given several times.
    :param show: Print each experiment's Python, too.
    :param json: One JSON document instead of text.
    """
    from mmtwin import claims as table

    rows = table.select(only)
    measured = []
    with terminal.progress("measuring") as moved:
        for done, row in enumerate(rows):
            moved(done, len(rows))
            measured.append(table.measure(row))
    if json:
        terminal.json(document(measured))
    else:
        on_terminal = sys.stdout is not None and sys.stdout.isatty()
        width = max(NARROWEST, min(WIDEST, shutil.get_terminal_size().columns)) if on_terminal else PLAIN
        terminal.write("\n".join([*text(measured, width, show, on_terminal), ""]))
    return FAILED if any(m.differences for m in measured) else None


def document(measured: list[Measured]) -> dict[str, Any]:
    """The JSON document."""
    return {"schema": 1, "claims": [m.to_dict() for m in measured]}


def text(measured: list[Measured], width: int, show: bool = False, colour: bool = False) -> Iterator[str]:
    """The table: for each row the verdict and the sentence, what was measured, and what is true."""
    for m in measured:
        yield from block(m, width, show, colour)
        yield ""
    yield from textwrap.wrap(summary(measured), width)


def block(m: Measured, width: int, show: bool, colour: bool) -> Iterator[str]:
    """One row."""
    verdict = m.verdict.upper() + (f" ({m.claim.then})" if m.claim.then and m.verdict == "true then, not now" else "")
    yield from textwrap.wrap(f"{m.claim.claim} [{m.claim.id}]", width, break_on_hyphens=False)
    yield from entry("verdict", verdict, width, COLOURS[m.verdict] if colour else "")
    if m.twin_says == m.kernel_says:
        yield from entry("measured", m.twin_says, width)
        yield from entry("", f"(the twin now, and Linux {m.kernel_version}: the same)", width)
    else:
        yield from entry("twin", m.twin_says, width)
        yield from entry("kernel", f"{m.kernel_says} (Linux {m.kernel_version})", width)
    yield from entry("in truth", m.claim.truth, width)
    for difference in m.differences:
        yield from entry("DIFFERENT", difference, width, "31" if colour else "")
    if show:
        yield ""
        yield from textwrap.indent(m.claim.code(), "      ").split("\n")


def entry(label: str, words: str, width: int, colour: str = "") -> Iterator[str]:
    """A label in a column, and the words beside it."""
    first, *rest = textwrap.wrap(words, width - 14) or [""]
    yield f"  {label:<12}" + (f"\033[{colour}m{first}\033[0m" if colour else first)
    yield from (" " * 14 + line for line in rest)


def summary(measured: list[Measured]) -> str:
    """How many of which kind, and whether twin and kernel agree."""
    kinds = Counter(m.verdict for m in measured)
    counts = [f"{kinds['true']} true", f"{kinds['true then, not now']} true then but not now", f"{kinds['wrong']} wrong"]
    differ = sum(bool(m.differences) for m in measured)
    equal = "the twin and the kernel agree in all of them" if not differ else f"in {differ} of them the twin and the kernel DIFFER"
    return f"{len(measured)} claim{'s' * (len(measured) != 1)}: {', '.join(counts)}; {equal}. --show prints the experiments, --only ID runs one."
