"""The report's sections, in the order of the page. Another kind of result becomes part of the report by one more `Section` in `SECTIONS`.

A section's function gathers plain data (what JSON can hold) from the recording and the timeline; its template, if it has one, shows what can be read without a script; what is
drawn and moves is up to ``templates/report.js``, which finds the data under the section's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mmtwin.diagnose import call_tree
from mmtwin.diagnose.advise.advise import Advice, advise
from mmtwin.diagnose.blame import SECTIONS as QUESTIONS
from mmtwin.diagnose.blame import Watch, blame
from mmtwin.diagnose.blame.headlines import headlines
from mmtwin.errors import RequestError
from mmtwin.recording.model import Recording
from mmtwin.recording.symbols import Symbols
from mmtwin.report import failures
from mmtwin.report.activity import activity
from mmtwin.report.holders import CLASSES
from mmtwin.report.timeline import Timeline, filled, type_names

SITES = 100
"""Call sites in the table; the sums are over all."""
BLAMED = 8
"""Rows of each of blame's tables."""
ADVISED = 20
"""Call sites with suggestions that are shown."""


@dataclass
class Context:
    """What sections are made of.

    :ivar timeline: the twin's states; None where the recording has no snapshot of the page allocator.
    :ivar explained: why requests were refused, by their event.
    :ivar watch: what blame needs of the twin's states; None as `timeline`.
    :ivar missing: what the report cannot show, and why; sections add to it.
    """

    recording: Recording
    steps: list[int]
    timeline: Timeline | None = None
    symbols: Symbols | None = None
    explained: dict[int, dict[str, Any]] = field(default_factory=dict)
    watch: Watch | None = None
    missing: list[str] = field(default_factory=list)


class Section(NamedTuple):
    """One section.

    :param name: its key in the document and its anchor in the page.
    :param title: its heading.
    :param gather: its data, or None where there is nothing to show.
    :param template: file in templates/; "" for a section that has no place of its own.
    """

    name: str
    title: str
    gather: Callable[[Context], Any]
    template: str = ""


def memory(context: Context) -> dict[str, Any] | None:
    """Page frames by class at each step, and the zones' free pages."""
    line = context.timeline
    if line is None:
        return None
    classes = [{"key": key, "name": name, "meaning": meaning} for key, name, meaning in CLASSES]
    return {"classes": classes, "pages": line.pages, "zones": line.zones}


def page_map(context: Context) -> dict[str, Any] | None:
    """What every page frame holds at each step, encoded (`page_map`)."""
    line = context.timeline
    return None if line is None else line.page_map | {"pageblock_types": line.pageblocks, "type_names": type_names()}


def free(context: Context) -> dict[str, Any] | None:
    """Free blocks by step, zone, migrate type and order."""
    line = context.timeline
    return None if line is None else {"zones": [zone["name"] for zone in line.zones], "types": type_names(), "blocks": line.blocks}


def caches(context: Context) -> list[dict[str, Any]] | None:
    """The slab caches at each step."""
    line = context.timeline
    if line is None:
        return None
    if line.caches is None:
        context.missing.append(
            "slab caches over time: slab events were not recorded (mmtwin record --slab adds them); the map shows their pages as their requests"
        )
        return None
    return filled(line.caches, len(line.steps))


def objects(context: Context) -> dict[str, Any] | None:
    """Objects by cache and call site."""
    try:
        result, leaves = call_tree.object_tree(context.recording, context.symbols)
    except RequestError as error:
        context.missing.append(f"objects by call site: {error}")
        return None
    found = result.to_dict(SITES)
    return found | {"tree": call_tree.nested(leaves, ("cache", "function", "site"))}


def pages(context: Context) -> dict[str, Any] | None:
    """Pages by migrate type, flags and process."""
    try:
        result, leaves = call_tree.page_tree(context.recording)
    except RequestError as error:
        context.missing.append(f"pages by flags and process: {error}")
        return None
    found = result.to_dict(SITES)
    return found | {"tree": call_tree.nested(leaves, ("type", "gfp", "process"))}


def refusals(context: Context) -> dict[str, Any]:
    """Requests that were refused, and OOM kills."""
    return failures.failures(failures.refused(context.recording), context.explained, context.recording)


def blamed(context: Context) -> dict[str, Any] | None:
    """Who fragments, grows, leaks and wastes: the first rows of ``mmtwin blame --json``, and its headlines."""
    try:
        result = blame(context.recording, symbols=context.symbols, watch=context.watch)
    except RequestError as error:
        context.missing.append(f"who is to blame: {error}")
        return None
    heads = [{"section": section, "question": QUESTIONS[section], "text": text} for section, text in headlines(result)]
    return {"headlines": heads} | result.to_dict(BLAMED)


def advice(context: Context) -> dict[str, Any] | None:
    """The suggestions of ``mmtwin advise --untried --json``: nothing is tried on the twin, effects are by arithmetic alone."""
    try:
        result = advise(context.recording, symbols=context.symbols, tries=False, classes=False)
    except RequestError as error:
        context.missing.append(f"what to change: {error}")
        return None

    def plain(found: Advice) -> dict[str, Any]:
        return found.to_dict() | {"effect": found.effect}

    kept = ("site", "call_site", "kmalloc", "hits", "failed", "bytes_alloc", "peak_bytes")
    advised = [site for site in result.sites if site.advice]
    sites = [{key: site.site.to_dict()[key] for key in kept} | {"advice": [plain(found) for found in site.advice]} for site in advised[:ADVISED]]
    return {
        "sites_total": len(result.sites), "sites_advised": result.advised, "sites": sites, "others": [plain(found) for found in result.others[:ADVISED]],
        "others_total": len(result.others), "tried": False, "notes": result.notes,
    }  # fmt: skip


SECTIONS: list[Section] = [
    Section("activity", "Activity", lambda context: activity(context.recording, context.steps)),
    Section("memory", "Memory over time", memory, "memory.html"),
    Section("map", "Map of page frames", page_map, "map.html"),
    Section("failures", "Refused requests", refusals, "failures.html"),
    Section("blame", "Who is to blame", blamed, "blame.html"),
    Section("advice", "What to change", advice, "advice.html"),
    Section("free", "Free blocks by order", free, "free.html"),
    Section("caches", "Slab caches", caches, "caches.html"),
    Section("objects", "Objects by cache and call site", objects, "objects.html"),
    Section("pages", "Pages by type, flags and process", pages, "pages.html"),
]
