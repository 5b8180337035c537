"""A crash behind a report: a NULL pointer, a wild one, a panic. It is not judged, but it is often what a refused request led to."""

from __future__ import annotations

import re
from dataclasses import replace

from mmtwin.diagnose.explain.anchored import Anchored
from mmtwin.diagnose.explain.model import Report, Segment

CRASH = Anchored(re.compile(
    r"(?:BUG:\s+)?[Uu]nable\s+to\s+handle\s+kernel\s+(?P<null>NULL\s+pointer\s+dereference|paging\s+request|access\s+to\s+user\s+memory[^\n]{0,40}?)(?:\s+(?:for\s+data\s+)?at\s+(?:virtual\s+address\s+|address:?\s+)?(?:0x)?(?P<address>[0-9a-f]{1,16}))?"
    r"|BUG:\s+kernel\s+(?P<new>NULL\s+pointer\s+dereference),\s+address:\s+(?P<at>[0-9a-f]{1,16})|[Gg]eneral\s+protection\s+fault|Internal\s+error:\s+Oops|Kernel\s+panic\s+-\s+not\s+syncing:\s*(?P<panic>[^\n]{0,80})"
), "Kernel", "Unable", "unable", "BUG:", "General", "general", "Internal")  # fmt: skip
PLACE = re.compile(r"\b(?:[RE]?IP|PC|pc|epc)\s*(?::|is\s+at)\s*(?:[0-9a-f]{2,4}:)?(?:\[<?[0-9a-f]+>?\]\s*)?([A-Za-z_][\w.]*)\+0x")
BEHIND = "Behind it in the log the kernel crashed"
"""Begins the sentence, by which equal reports are known to differ in it alone."""
KINDS = ("page", "oom", "killed", "slab", "vmalloc", "mem_info", "percpu", "dma", "oversize")
"""Reports of which a crash is not itself a part."""
NEAR = 4_000
"""Characters behind the crash's first line, within which it says where."""


def with_crash(report: Report, segment: Segment) -> Report:
    """The report, with a sentence on the crash that follows it in the log, if one does."""
    match = CRASH.search(segment.text) if segment.kind in KINDS and segment.crash is not None else None
    if match is None:
        return report
    if match["panic"] is not None:
        return replace(report, verdict=replace(report.verdict, why=(*report.verdict.why, f"{BEHIND}: panic, {match['panic'].strip()}.")))
    place = PLACE.search(segment.text, match.end(), match.end() + NEAR)
    what = match["null"] or match["new"] or "a bad access"
    address = match["address"] or match["at"]
    said = f"{BEHIND}: {' '.join(what.split())}{f' at 0x{int(address, 16):x}' if address else ''}{f' in {place[1]}' if place else ''}."
    if "NULL" in what:
        said += " If that function asked for the memory, it did not check that it got none."
    return replace(report, verdict=replace(report.verdict, why=(*report.verdict.why, said)))
