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
    force: bool = False,
    terminal: ForTerminal,
) -> None:
    """Turn a kernel's trace text, or recorded calls of malloc, into a recording.

    Reads what tracefs' trace and trace_pipe print and what trace-cmd report writes, also compressed with gzip. Such a recording can be counted
    and analysed; it has no snapshots, so it cannot be replayed. What oracle/malloc's recorder of malloc calls writes is read as well.

    :param file: The text, or the file of malloc calls.
    :param output: The recording to write (default: the text's name with .mmrec, in this directory).
    :param strict: A malformed line is an error; otherwise it is skipped and counted.
    :param force: Overwrite an existing file.
    """
    path = output_path(output, file, force)
    from mmtwin.recording import store
    from mmtwin.recording.readers.any import import_ as read_foreign

    with terminal.progress("reading"):
        recording = read_foreign(file, strict=strict)
        store.save(recording, path, force=force)
    counts = recording.events["kind"].value_counts(sort=True).iter_rows()
    lines = [f"{count:>12,}  {kind}" for kind, count in counts]
    lines += [f"{len(recording.events):>12,}  events", f"{recording.provenance.lost_events:>12,}  lost events"]
    lines += [f"note: {printable(note)}" for note in recording.provenance.notes]
    terminal.write("\n".join([*lines, f"Wrote {printable(path)}"]) + "\n")
