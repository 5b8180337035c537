"""An explanation for a terminal: the answer first, then the numbers to check it with, then what helps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mmtwin.diagnose.explain.common import where
from mmtwin.diagnose.explain.explain import Explanation
from mmtwin.diagnose.explain.model import VERDICTS, Report, Request, Verdict, size

if TYPE_CHECKING:
    from mmtwin.diagnose.explain.zone_rules import ZoneVerdict

IN_FULL = 3
"""Reports that are shown with all their numbers unless more are asked for."""
RULES = {"passes": "would be served", "not_eligible": "not for this request", "blocks_not_shown": "watermark passes; blocks not in the log", "empty": "empty"}
WHO = {"caller": "in the code that asks", "admin": "on this machine", "kernel": "another kernel", "look": "find out"}
LABEL = 12
NOT_READ = {
    "page": "page allocation failures", "vmalloc": "vmalloc failures", "percpu": "per-CPU failures", "oom": "of the OOM killer", "slab": "of a slab cache", "memory": "memory dumps without a head",
    "cma": "of CMA", "sleeping": "of sleeping", "misuse": "of memory misused", "warning": "warnings of the allocators", "dma": "of DMA", "fault": "faults injected", "stalled": "of file systems that ask again and again",
}  # fmt: skip
"""Kinds of `scan.ANCHORS`, for a sentence."""


def explanation_lines(explanation: Explanation, width: int, every: bool = False) -> Iterator[tuple[str, str]]:
    """All of it, as lines and their styles ("", "bold", "warn", "dim").

    :param width: columns.
    :param every: show every report in full.
    """
    reports = explanation.reports
    for n, report in enumerate(reports):
        if n >= IN_FULL and not every:
            break
        if n:
            yield "", ""
            yield "-" * min(width, 60), "dim"
            yield "", ""
        yield from report_lines(report, width)
    left = reports[IN_FULL:] if not every else ()
    if left:
        yield "", ""
        yield f"{len(left)} more report{'s' * (len(left) != 1)} (--all shows them in full):", "bold"
        for report in left[:12]:
            yield from _wrapped(f"line {report.line}:", f"{report.verdict.code} ({report.verdict.certainty}). {report.verdict.headline}", width, "")
        if len(left) > 12:
            yield f"  ... and {len(left) - 12:,} more", ""
    if explanation.unread:
        yield "", ""
        kinds = ", ".join(f"{count:,} {NOT_READ[kind]}" for kind, count in sorted(explanation.unread_kinds.items(), key=lambda item: -item[1]))
        text = f"{explanation.unread:,} more reports of the log were not read ({kinds}): the first of each sort was, told apart by the first line without its numbers, and then as many as time allows."
        yield from ((line, "warn") for line in _fill(text, width))


def report_lines(report: Report, width: int) -> Iterator[tuple[str, str]]:
    """One report."""
    v, request = report.verdict, report.request
    at = f"line {report.line}" + (f", {report.seconds:.3f} s" if report.seconds is not None else "")
    again = (
        f", {report.repeated} times (lines {', '.join(map(str, report.lines[:6]))}{', ...' if len(report.lines) > 6 else ''})" if report.repeated > 1 else ""
    )
    yield from ((line, "dim") for line in _fill(f"{report.title[0].upper()}{report.title[1:]}, {at}{again}. {report.kernel}.", width))
    yield "", ""
    yield from ((line, "bold") for line in _fill(v.headline, width))
    yield "", ""
    yield from _wrapped("verdict", f"{v.code}: {VERDICTS[v.code]}", width, "bold")
    certain = {"decided": "decided by the log's numbers", "probable": "probable; the log leaves some doubt (below)", "undecided": "not decided by the log"}[
        v.certainty
    ]
    yield from _wrapped("certainty", certain, width, "" if v.certainty == "decided" else "warn")
    if request is not None:
        yield from _request_lines(request, width)
    if v.zones:
        yield "", ""
        yield f"Zone by zone, in pages of {report.page_kb} kB:", "bold"
        for zone in v.zones:
            yield from _zone(zone, width)
    yield from _reasons(v, width)
    yield from _remedies(v, width)


def _reasons(v: Verdict, width: int) -> Iterator[tuple[str, str]]:
    for label, sentences in (("why", v.why), ("open", v.missing)):
        if sentences:
            yield "", ""
            for sentence in sentences:
                yield from _wrapped(label, sentence, width, "warn" if label == "open" else "")
                label = ""


def _remedies(v: Verdict, width: int) -> Iterator[tuple[str, str]]:
    if v.remedies:
        yield "", ""
        yield "What helps, the best first:", "bold"
        for rank, remedy in enumerate(v.remedies, 1):
            yield from _wrapped(f"{rank}.", f"{remedy.what} ({WHO[remedy.who]}): {remedy.changes}", width, "", 5)


def _request_lines(request: Request, width: int) -> Iterator[tuple[str, str]]:
    if request.comm:
        who = f"{request.comm}" + (f" (pid {request.pid})" if request.pid is not None else "") + (f" on CPU {request.cpu}" if request.cpu is not None else "")
        yield from _wrapped("process", who + (f", {where(request.place)}" if request.place else ""), width, "")
    flags = request.flags
    if request.order is not None and request.bytes is not None:
        sleep = {True: "; may wait for memory", False: "; cannot wait", None: ""}[request.may_sleep]
        exact = f" for {size(request.asked_bytes)} asked" if request.asked_bytes else ""
        yield from _wrapped(
            "request",
            f"order {request.order}, {1 << request.order} page{'s' * (request.order > 0)}, {size(request.bytes)}{'' if request.page_known else ' if a page has 4 kB'}{exact}{sleep}",
            width,
            "",
        )
    elif request.asked_bytes:
        yield from _wrapped("request", f"{size(request.asked_bytes)} ({request.asked_bytes} bytes)", width, "")
    if flags is not None and flags.value >= 0:
        printed = (
            ""
            if not flags.printed
            else "; the printed names agree"
            if flags.agree
            else "; from the printed names"
            if flags.agree is None
            else f"; but the log prints {flags.printed}"
        )
        yield from _wrapped(
            "flags", f"0x{flags.value:x} = {flags.names} (numbers of Linux {flags.era}{printed})", width, "" if flags.agree is not False else "warn"
        )
    if request.zones:
        yield from _wrapped(
            "zones",
            f"{', '.join(request.zones)} (highest {request.highest_zone})" + (f"; nodes {request.nodes}" if request.nodes not in ("", "(null)") else ""),
            width,
            "",
        )
    if request.caller:
        yield from _wrapped("caller", f"{request.caller}{f' [{request.module}]' if request.module else ''}", width, "")


def _zone(zone: ZoneVerdict, width: int) -> Iterator[tuple[str, str]]:
    rule = RULES.get(zone.rule, zone.rule)
    text = f"{zone.zone.label}: {rule}" if zone.eligible else f"{zone.zone.label}: {rule}; {zone.why_not} ({zone.free:,} pages free)"
    yield from ((f"  {line}", "" if zone.eligible else "dim") for line in _fill(text, width - 2))
    for step in zone.steps:
        yield from _wrapped("", step, width, "dim", 6)


def _wrapped(label: str, text: str, width: int, style: str, indent: int = LABEL) -> Iterator[tuple[str, str]]:
    first, *rest = _fill(text, max(20, width - indent - 2))
    yield f"  {label:<{indent}}"[: indent + 2] + first if len(label) <= indent else f"  {label} {first}", style
    yield from ((" " * (indent + 2) + line, style) for line in rest)


def _fill(text: str, width: int) -> list[str]:
    import textwrap

    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return textwrap.wrap(safe, width, break_on_hyphens=False) or [""]
