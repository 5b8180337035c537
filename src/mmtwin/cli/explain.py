"""``mmtwin explain``: a kernel log's memory failures, or a moment of a recording, by the kernel's own rules and the log's or the twin's numbers."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mmtwin.cli.terminal import ForTerminal, Terminal, UsageError, printable
from mmtwin.errors import LogError, RecordingError, RequestError

NARROWEST, WIDEST, PLAIN = 60, 120, 100
STYLES = {"bold": "\033[1m", "warn": "\033[33m", "dim": "\033[2m"}
CODE = """\
from mmtwin.diagnose.explain import explain_log

explanation = explain_log({path!r})
for report in explanation.reports:
    print(report.line, report.verdict.code, report.verdict.certainty, report.verdict.headline)
"""
RECORDING_CODE = """\
from mmtwin.diagnose.explain import at
from mmtwin.recording import store

recording = store.load({path!r})
"""


def explain(
    log: Annotated[Path, Parameter(allow_leading_hyphen=True)] = Path("-"),
    /,
    *,
    at: str | None = None,
    order: int | None = None,
    gfp: str | None = None,
    cpu: int | None = None,
    symbols: Path | None = None,
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

    Of a recording it lists the requests for pages that failed; --at explains one of them, or any other, with the twin's state of that moment: the same arithmetic, which
    pageblocks could have held it, what pins each, and whether compaction could have made room. --order and --gfp ask for a request that was never made.

    :param log: A file; - or nothing is standard input. Or a recording (.mmrec).
    :param at: Of a recording: an event number, first-failure, failure:N, last (failure), or end (behind the last event).
    :param order: With --at: would a request of this order have been served there? With --gfp.
    :param gfp: With --at and --order: its flags, names as the kernel prints them (GFP_KERNEL|__GFP_NOWARN) or a number.
    :param cpu: With --at and --order: its CPU (default: that of the event).
    :param symbols: With --at: System.map, a copy of /proc/kallsyms or a vmlinux: names for call sites that are addresses.
    :param all: Show every report in full, not only the first three.
    :param json: One JSON document instead of text.
    :param code: Print the Python that does the same.
    """
    if str(log).startswith("--"):
        raise UsageError(f"unknown option: {printable(log)}; see mmtwin explain --help")
    if _is_recording(log):
        return _explain_recording(log, at, order, gfp, cpu, symbols, json, code, terminal)
    for given, option in ((at, "--at"), (order, "--order"), (gfp, "--gfp"), (cpu, "--cpu"), (symbols, "--symbols")):
        if given is not None:
            if str(log) != "-":
                log.stat()  # a file that is not there is told as such
            raise UsageError(f"{option} is for recordings, and {printable(log)} is none")
    if code:
        return terminal.write(CODE.format(path=str(log)))
    from mmtwin.diagnose.explain import explain_text
    from mmtwin.diagnose.explain.show import explanation_lines

    name, data = _read(log)
    with terminal.progress("reading"):
        explanation = explain_text(data, name)
    if json:
        return terminal.json(explanation.to_dict())
    return terminal.write(_styled(lambda width: explanation_lines(explanation, width, all)))


def _styled(lines_of: Callable[[int], Iterator[tuple[str, str]]]) -> str:
    """Lines and their styles as text for where stdout goes."""
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    width = max(NARROWEST, min(WIDEST, shutil.get_terminal_size().columns)) if on_terminal else PLAIN
    lines = (f"{STYLES[style]}{line}\033[0m" if on_terminal and style and line else line for line, style in lines_of(width))
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _is_recording(log: Path) -> bool:
    if str(log) == "-":
        return False
    try:
        if not log.is_file():
            return False
        with open(log, "rb") as opened:
            return opened.read(2) == b"PK"
    except (OSError, ValueError):
        return False


def _explain_recording(
    file: Path, at: str | None, order: int | None, gfp: str | None, cpu: int | None, symbols: Path | None, json: bool, code: bool, terminal: Terminal
) -> None:
    """Lists the failed requests, or explains one moment.

    :raises UsageError: options that do not go together.
    """
    from mmtwin.recording.readers.gfp_text import gfp_from_names

    if (order is None) != (gfp is None):
        raise UsageError("--order and --gfp go together: --order 4 --gfp GFP_KERNEL")
    if at is None and (order is not None or cpu is not None):
        raise UsageError("--order, --gfp and --cpu need --at: the event before which the request is made, or end")
    if cpu is not None and order is None:
        raise UsageError("--cpu is for a request that was never made: it needs --order and --gfp")
    try:
        flags = gfp_from_names(gfp) if gfp is not None else None
    except ValueError as error:
        raise UsageError(f"--gfp: {printable(error)}; expected names as the kernel prints them (GFP_KERNEL|__GFP_NOWARN) or a number") from None
    if code:
        return terminal.write(_recording_code(file, at, order, flags, cpu))
    from mmtwin.diagnose.explain import at as moment
    from mmtwin.diagnose.explain.at_show import at_lines, failure_lines
    from mmtwin.gfp import gfp_names
    from mmtwin.recording import store
    from mmtwin.recording.symbols import read_symbols

    with terminal.progress("reading"):
        recording = store.load(file)
    if at is None:
        failed = moment.failures(recording)
        requests = int((recording.events["kind"] == "mm_page_alloc").sum())
        if json:
            return terminal.json(
                {
                    "schema": 1,
                    "file": str(file),
                    "requests": requests,
                    "failures_total": len(failed),
                    "failures": [row | {"gfp_names": gfp_names(row["gfp"] & 0xFFFF_FFFF)} for row in failed.to_dicts()],
                }
            )
        return terminal.write(_styled(lambda width: failure_lines(failed, requests, printable(file), width)))
    names = read_symbols(symbols) if symbols is not None else None
    try:
        event = moment.event_of(recording, at)
        place = moment.place_of(recording, event) if order is None or flags is None else moment.hypothetical(recording, event, order, flags, cpu)
        terminal.note("replaying the recording (the first replay on a machine compiles for some minutes, once)")
        result = moment.explain_at(recording, place, names)
    except (RequestError, RecordingError) as error:
        raise type(error)(f"{file}: {error}") from error
    if json:
        return terminal.json({"file": str(file)} | result.to_dict())
    return terminal.write(_styled(lambda width: at_lines(result, len(recording.events), width)))


def _recording_code(file: Path, at: str | None, order: int | None, gfp: int | None, cpu: int | None) -> str:
    if at is None:
        return RECORDING_CODE.format(path=str(file)) + "print(at.failures(recording))\n"
    place = (
        "at.place_of(recording, event)" if order is None else f"at.hypothetical(recording, event, {order}, {gfp:#x}{f', cpu={cpu}' if cpu is not None else ''})"
    )
    return (
        RECORDING_CODE.format(path=str(file))
        + f"event = at.event_of(recording, {at!r})\nresult = at.explain_at(recording, {place})\nprint(result.verdict.headline, result.rooms)\n"
    )


def _read(log: Path) -> tuple[str, bytes]:
    """The log's name and bytes.

    :raises UsageError: standard input is a terminal.
    :raises LogError: it cannot be read.
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
    if data[:2] == b"\x1f\x8b":
        import gzip
        import zlib

        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise LogError(f"{log}: a damaged gzip file: {error}") from error
    return str(log), data
