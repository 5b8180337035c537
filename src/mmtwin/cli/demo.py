"""``mmtwin demo``: the bundled recording of a real kernel, replayed and compared, and its report written."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
import textwrap
from importlib.resources import as_file, files
from pathlib import Path

from mmtwin.cli.replay import CHECK_FAILED, read, run
from mmtwin.cli.report import gather, write
from mmtwin.cli.terminal import ForTerminal, printable
from mmtwin.errors import RecordingError

PAGE = "mmtwin-demo.html"
STEPS = 60
"""Moments that the demo's report looks at: half the usual number, as somebody is waiting."""


def demo(*, json: bool = False, terminal: ForTerminal) -> int:
    """Replay the bundled recording of a real kernel, say how much was equal, and write its report.

    The report is mmtwin-demo.html in this directory, or in a temporary one if that name is taken or nothing can be written here.

    :param json: One JSON document instead of text; no report is written.
    """
    bundled = files("mmtwin") / "data" / "demo.mmrec"
    if not bundled.is_file():
        raise RecordingError("the bundled recording is missing; install mmtwin again")
    with as_file(bundled) as path:
        recording = read(path, terminal)
        result = run(recording, path, True, terminal)
    if json:
        terminal.json(result.to_dict())
        return 0 if result.equal else CHECK_FAILED
    from rich.text import Text

    from mmtwin.cli import result_text

    provenance = recording.provenance
    cpus = f"{provenance.cpus} CPUs" if provenance.cpus != 1 else "1 CPU"
    about = (
        f"A real Linux {provenance.kernel_release} ran {provenance.workload_name} in QEMU on {cpus} for {provenance.workload_seconds:g} s. Its memory was "
        f"dumped before and after, and {result.events:,} events were recorded in between. mmtwin started from the first dump, was given the same requests, "
        "and answered each before the kernel's answer was looked at."
    )
    terminal.show(Text(textwrap.fill(printable(about), 79)), "", *result_text.result_text(provenance, result), "")
    terminal.write(next_steps(Path(str(bundled))))  # as it is: commands are to be pasted
    page = page_path()
    write(gather(recording, Path(str(bundled)), STEPS, None, terminal), page, force=True)
    terminal.write(f"Wrote {printable(page)}: the same recording to look at, in any browser\n")
    return 0 if result.equal else CHECK_FAILED


def page_path() -> Path:
    """Where the demo's report goes: this directory, or a new one where something else has its name, or nothing can be written."""
    here = Path.cwd() / PAGE
    if os.access(here.parent, os.W_OK) and (not os.path.lexists(here) or _is_ours(here)):
        return here
    return Path(tempfile.mkdtemp(prefix="mmtwin-")) / PAGE


def _is_ours(page: Path) -> bool:
    """Whether it is a report that an earlier demo wrote."""
    try:
        with open(page, "rb") as file:
            return page.is_file() and not page.is_symlink() and b"mmtwin report</title>" in file.read(2000)
    except OSError:
        return False


def next_steps(recording: Path) -> str:
    """Commands that go on from here, ready to be pasted."""
    program, file = _program(), shlex.quote(str(recording))
    python = f'import mmtwin; print(mmtwin.load("{recording}").buddyinfo())'
    commands = (
        f"{program} info {file}",
        f"{program} replay {file} --check",
        f"{shlex.quote(sys.executable)} -c {shlex.quote(python)}",
        f"{program} record --help",
    )
    return "What next:\n" + "".join(f"  {command}\n" for command in commands)


def _program() -> str:
    """How this program was called, as it can be called again."""
    called = Path(sys.argv[0])
    if called.name != "mmtwin":
        return f"{shlex.quote(sys.executable)} -m mmtwin.cli"
    found = shutil.which("mmtwin")
    return "mmtwin" if found and Path(found).samefile(called) else shlex.quote(str(called))
