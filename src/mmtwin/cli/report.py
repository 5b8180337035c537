"""``mmtwin report``: a recording as one HTML page to look at and pass on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mmtwin.cli.output_file import output_path
from mmtwin.cli.terminal import ForTerminal, Terminal, UsageError, printable
from mmtwin.recording.readers import read

if TYPE_CHECKING:
    from mmtwin.recording.model import Recording
    from mmtwin.recording.symbols import Symbols

SUFFIX = ".html"
MOST_STEPS = 1000
CODE = """\
from pathlib import Path
from mmtwin.recording.readers import read
from mmtwin.report.document import document
from mmtwin.report.page import render

path = Path({path!r})
data = document(read(path), path, steps={steps})
render(data, Path({output!r}))
"""


def report(
    file: Path,
    /,
    *,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    steps: int = 120,
    symbols: Path | None = None,
    force: bool = False,
    json: bool = False,
    code: bool = False,
    terminal: ForTerminal,
) -> None:
    """Write a recording's report: one HTML page that needs no network.

    It shows what the memory held over time, the map of page frames, free blocks by order, slab caches, who asked for what, and refused requests with the reason. Trace
    text and other recordings without snapshots give the parts that need only events. Refused requests are explained as by mmtwin explain --at, who is to blame is told as by mmtwin
    blame, and what to change as by mmtwin advise --untried: nothing is tried on the twin.

    :param file: A recording (.mmrec), perf.data, trace.dat, or a kernel's trace text as for mmtwin import.
    :param output: The page to write (default: the recording's name with .html, in this directory).
    :param steps: How many moments of the recording to look at (default: 120).
    :param symbols: System.map, a copy of /proc/kallsyms or a vmlinux: names for call sites that are addresses.
    :param force: Overwrite an existing file.
    :param json: The page's data as one JSON document on stdout; no page is written.
    :param code: Print the Python that does the same.
    """
    if not 2 <= steps <= MOST_STEPS:
        raise UsageError(f"--steps {steps}: expected 2 to {MOST_STEPS:,} moments")
    if json and output is not None:
        raise UsageError("--json and --output contradict each other: JSON goes to stdout")
    if code:
        return terminal.write(CODE.format(path=str(file), steps=steps, output=str(output or Path(file.name).with_suffix(SUFFIX))))
    path = None if json else output_path(output, file, force, SUFFIX)
    from mmtwin.recording.symbols import read_symbols

    names = None if symbols is None else read_symbols(symbols)
    with terminal.progress("reading"):
        recording = read(file, symbols=names)
    data = gather(recording, file, steps, names, terminal)
    if path is None:
        return terminal.json(data)
    write(data, path, force)
    return terminal.write(f"Wrote {printable(path)}\n")


def gather(recording: Recording, file: Path, steps: int, names: Symbols | None, terminal: Terminal) -> dict[str, Any]:
    """The report's data, with progress on stderr."""
    from mmtwin import _jit
    from mmtwin.report.document import document

    if recording.before is not None and not _jit.is_compiled("replay_ops"):
        terminal.note("compiling the replay, about 30 s, once")
    with terminal.progress("replaying") as progress:
        return document(recording, file, steps=steps, symbols=names, progress=progress)


def write(data: dict[str, Any], path: Path, force: bool) -> None:
    """The page itself."""
    from mmtwin.report.page import render

    render(data, path, force)
