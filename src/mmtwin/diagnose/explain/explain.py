"""Reads a log, finds its reports, judges each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmtwin.diagnose.explain import alloc_failure, context_log, debug_log, dma_log, oom_log, other_log, oversize_log, scan, slab_log, vmalloc_log
from mmtwin.diagnose.explain.aftermath import BEHIND, with_crash
from mmtwin.diagnose.explain.log_lines import LogText, read_lines, streams
from mmtwin.diagnose.explain.model import UNDECIDED, Report, Segment
from mmtwin.diagnose.explain.segments import cut
from mmtwin.errors import LogError
from mmtwin.notebook import Card, InNotebook, Table


@dataclass(frozen=True)
class Explanation(InNotebook):
    """Every report of a log.

    :ivar reports: in order, equal ones together.
    :ivar unread: further reports, as far as their first words tell, that were not read because the log has too many; `unread_kinds` by kind.
    """

    source: str
    bytes: int
    lines: int
    reports: tuple[Report, ...]
    unread: int = 0
    unread_kinds: dict[str, int] = field(default_factory=dict)

    @property
    def main(self) -> Report:
        """The report that the summary is about: the first that the log decides, else the first that it has evidence for."""
        told = [report for report in self.reports if report.verdict.code != "evidence_missing"]
        sure = [report for report in told if report.verdict.certainty != UNDECIDED]
        return next(iter([*sure, *told, *self.reports]))

    def _card(self) -> Card:
        first = self.main
        rows = [("verdict", f"{first.verdict.code} ({first.verdict.certainty})"), ("why", first.verdict.headline)]
        rows += [(f"remedy {rank} ({remedy.who})", remedy.what) for rank, remedy in enumerate(first.verdict.remedies, 1)]
        reports = [(report.title, str(report.line), report.verdict.code, str(report.repeated)) for report in self.reports]
        return Card(first.title, rows, [Table(("report", "line", "verdict", "times"), reports)] if len(reports) > 1 else [])

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the first report's verdict at the top, all of them in "reports"."""
        first = self.main.to_dict()
        top = {key: first[key] for key in ("verdict", "meaning", "certainty", "headline", "request", "zones", "missing", "remedies", "kernel")}
        return {
            "schema": 1, "file": self.source, "bytes": self.bytes, "lines": self.lines, **top,
            "reports_total": sum(report.repeated for report in self.reports), "reports_not_read": self.unread, "not_read": self.unread_kinds,
            "verdicts": dict(Counter(code for report in self.reports for code in [report.verdict.code] * report.repeated)),
            "reports": [report.to_dict() for report in self.reports],
        }  # fmt: skip


def explain_log(file: Path | str) -> Explanation:
    """Explains a log file.

    :raises LogError: it cannot be read, is empty, or holds no report.
    """
    try:
        data = Path(file).read_bytes()
    except (OSError, ValueError) as error:
        raise LogError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return explain_text(data, str(file))


def explain_text(data: bytes | str, source: str = "-") -> Explanation:
    """Explains a log.

    :param source: what to call it in messages.
    :raises LogError: it is empty, or holds no report.
    """
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogateescape")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        data = data.decode("utf-16", "replace").encode()
    if not data or data.isspace():
        raise LogError(f"{source}: empty; expected a kernel log (dmesg, journalctl -k or /var/log/kern.log)")
    found = scan.find(data)
    reports: list[Report] = []
    for window in found.windows:
        reports += _window(window)
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    if not reports:
        raise LogError(
            f"{source}: no memory failure found in {lines:,} line{'s' * (lines != 1)}; expected a kernel log with a page allocation failure, an OOM report or another report "
            "that mmtwin explain --help names"
        )
    return Explanation(source, len(data), lines, tuple(_together(reports)), sum(found.unread.values()), found.unread)


def _window(window: scan.Window) -> list[Report]:
    reports: list[Report] = []
    all_lines = read_lines(window.data, window.lines_before)
    for lines in streams(all_lines):
        log = LogText(lines)
        segments = list(cut(log, log.text))
        reports += _stream([one for one in segments if len(segments) == 1 or not _prose(one)])
    return sorted((report for report in reports if report.line >= window.first_line), key=lambda report: report.line)


def _prose(segment: Segment) -> bool:
    """Whether it only speaks of a page allocation failure: a title, a sentence, a command line."""
    return segment.kind == "page" and not re.search(r"order|mode:|CPU:|Pid:|Call [Tt]race|Mem-[Ii]nfo|\bfree:", segment.said[:3_000])


def _stream(segments: list[Segment]) -> Iterator[Report]:
    segments = vmalloc_log.with_neighbours_stack(segments)
    killed: frozenset[tuple[int, str]] = frozenset()
    n = 0
    while n < len(segments):
        one = segments[n]
        following = segments[n + 1] if n + 1 < len(segments) else None
        if one.kind in ("page", "oom") and following is not None and following.kind == "slab" and slab_log.caused_by(following, one):
            yield with_crash(with_crash(alloc_failure.read(one, following, killed=killed) if one.kind == "page" else read(one), one), following)
            n += 2
            continue
        if one.kind == "mem_info" and following is not None and following.kind == "slab" and (report := alloc_failure.headless(one, following)) is not None:
            yield with_crash(report, following)
            n += 2
            continue
        if one.kind == "page" and n and segments[n - 1].kind == "fault" and one.line - segments[n - 1].line < 80:
            yield alloc_failure.read(one, injected=True)
        else:
            yield with_crash(alloc_failure.read(one, killed=killed) if one.kind == "page" else read(one), one)
        if one.kind in ("oom", "killed", "mem_info"):
            killed |= frozenset(oom_log.killed_in(one.text))
        n += 1


def read(segment: Segment) -> Report:
    """A report by its kind's reader; page allocation failures are read by `_stream`, which knows who was killed before."""
    match segment.kind:
        case "oom" | "killed":
            return oom_log.read(segment)
        case "vmalloc":
            return vmalloc_log.read(segment)
        case "slab":
            return slab_log.read(segment)
        case "slub_debug" | "kasan" | "slab_debug" | "usercopy":
            return debug_log.read(segment)
        case "context":
            return context_log.read(segment)
        case "oversize":
            return oversize_log.read(segment)
        case "dma":
            return dma_log.read(segment)
        case "percpu":
            return other_log.percpu(segment)
        case "deadlock":
            return other_log.deadlock(segment)
        case "fault":
            return other_log.fault(segment)
    return other_log.mem_info(segment)


def _together(reports: list[Report]) -> Iterator[Report]:
    """Reports that say the same, word for word but for the place, become one; the order of the first ones stays."""
    same: dict[Any, Report] = {}
    for report in reports:
        asked = report.request and replace(report.request, pid=None, cpu=None)
        key = (
            report.kind,
            report.verdict.code,
            report.verdict.certainty,
            report.verdict.headline,
            asked,
            tuple((z.zone.label, z.steps) for z in report.verdict.zones),
        )
        first = same.get(key)
        if first is None:
            same[key] = report
        else:
            crash = tuple(why for why in report.verdict.why if why.startswith(BEHIND) and why not in first.verdict.why)
            if crash:
                first = replace(first, verdict=replace(first.verdict, why=(*first.verdict.why, *crash)))
            same[key] = replace(first, repeated=first.repeated + 1, lines=(*(first.lines or (first.line,)), report.line))
    return iter(same.values())
