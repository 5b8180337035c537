"""``mmtwin import``: trace text of any machine becomes a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mmtwin.cli.output_file import output_path
from mmtwin.cli.terminal import ForTerminal, printable


def import_(
    file: Path,
    /,
    *,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    strict: bool = False,
    symbols: Path | None = None,
    force: bool = False,
    terminal: ForTerminal,
) -> None:
    """Turn what other tools recorded into a recording: perf.data, trace.dat, a kernel's trace text, or calls of malloc.

    Text is what tracefs' trace and trace_pipe, trace-cmd report and perf script print, also compressed with gzip. Such a recording can be counted
    and analysed; it has no snapshots, so it cannot be replayed. What oracle/malloc's recorder of malloc calls writes is read as well.

    :param file: The file to read.
    :param output: The recording to write (default: the file's name with .mmrec, in this directory).
    :param strict: A malformed line is an error; otherwise it is skipped and counted.
    :param symbols: The recorded kernel's System.map, /proc/kallsyms or vmlinux: with call chains (perf record -g) they tell who asked for a page.
    :param force: Overwrite an existing file.
    """
    path = output_path(output, file, force)
    from mmtwin.recording import store
    from mmtwin.recording.readers.any import import_ as read_foreign
    from mmtwin.recording.symbols import read_symbols

    names = read_symbols(symbols) if symbols is not None else None
    with terminal.progress("reading"):
        recording = read_foreign(file, strict=strict, symbols=names)
        store.save(recording, path, force=force)
    counts = recording.events["kind"].value_counts(sort=True).iter_rows()
    lines = [f"{count:>12,}  {kind}" for kind, count in counts]
    lines += [f"{len(recording.events):>12,}  events", f"{recording.provenance.lost_events:>12,}  lost events"]
    lines += [f"note: {printable(note)}" for note in recording.provenance.notes]
    terminal.write("\n".join([*lines, f"Wrote {printable(path)}"]) + "\n")
