"""``mmtwin explain``: a kernel log's memory failures, by the kernel's own rules and the log's own numbers."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mmtwin.cli.terminal import ForTerminal, UsageError, printable
from mmtwin.errors import LogError

NARROWEST, WIDEST, PLAIN = 60, 120, 100
STYLES = {"bold": "\033[1m", "warn": "\033[33m", "dim": "\033[2m"}
CODE = """\
from mmtwin.diagnose.explain import explain_log

explanation = explain_log({path!r})
for report in explanation.reports:
    print(report.line, report.verdict.code, report.verdict.certainty, report.verdict.headline)
"""


def explain(
    log: Annotated[Path, Parameter(allow_leading_hyphen=True)] = Path("-"),
    /,
    *,
    all: bool = False,
    json: bool = False,
    code: bool = False,
    terminal: ForTerminal,
) -> None:
    """Say why a kernel log's memory failure happened, and what would have helped.

    Reads what dmesg, journalctl -k or syslog gives, as pasted (wrapped, quoted, of any kernel from 2.6 to 6.x, 32 or 64 bit): page allocation failures, reports of
    the OOM killer, failures of vmalloc, SLUB and SLAB, reports of slub_debug and KASAN, sleeping in atomic context, requests above the largest order, DMA errors.
    It decodes the request, does the kernel's arithmetic again with the log's numbers, zone by zone, and names the rule that refused. What the log does not decide,
    it says.

    :param log: A file; - or nothing is standard input.
    :param all: Show every report in full, not only the first three.
    :param json: One JSON document instead of text.
    :param code: Print the Python that does the same.
    """
    if str(log).startswith("--"):
        raise UsageError(f"unknown option: {printable(log)}; see mmtwin explain --help")
    if code:
        return terminal.write(CODE.format(path=str(log)))
    from mmtwin.diagnose.explain import explain_text
    from mmtwin.diagnose.explain.show import explanation_lines

    name, data = _read(log)
    with terminal.progress("reading"):
        explanation = explain_text(data, name)
    if json:
        return terminal.json(explanation.to_dict())
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    width = max(NARROWEST, min(WIDEST, shutil.get_terminal_size().columns)) if on_terminal else PLAIN
    lines = (f"{STYLES[style]}{line}\033[0m" if on_terminal and style and line else line for line, style in explanation_lines(explanation, width, all))
    return terminal.write("".join(f"{line.rstrip()}\n" for line in lines))


def _read(log: Path) -> tuple[str, bytes]:
    """The log's name and bytes.

    :raises UsageError: standard input is a terminal.
    :raises LogError: it cannot be read, or is a recording.
    """
    if str(log) == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("nothing to read: give a log's name, or pipe one in (dmesg | mmtwin explain)")
        return "standard input", sys.stdin.buffer.read()
    try:
        if log.is_dir():
            raise LogError(f"{log}: is a directory; expected a kernel log")
        data = log.read_bytes()
    except (OSError, ValueError) as error:
        raise LogError(f"{log}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if data[:2] == b"PK":
        raise LogError(f"{log}: is a recording, not a kernel log; mmtwin info says what is in it")
    if data[:2] == b"\x1f\x8b":
        import gzip
        import zlib

        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise LogError(f"{log}: a damaged gzip file: {error}") from error
    return str(log), data
