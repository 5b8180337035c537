"""Advice for a whole recording: every site's suggestions, tried on the twin and ranked, and the best size classes for its kmalloc traffic.

A suggestion that is about memory or failures is tried: the site's own requests, both ways, on equal machines (`trial`). If the twin does not see the memory saved, or requests
fail that did not before, the suggestion is not given, and the site's verdict says so.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl

from mmtwin.diagnose.advise import areas, page_kinds, rules, sites, trial
from mmtwin.diagnose.advise.rules import KINDS, THRESHOLDS, Case, Suggestion, Thresholds
from mmtwin.diagnose.advise.sites import Site, Traffic
from mmtwin.diagnose.advise.size_classes import KERNEL_CLASSES, Classes, best_classes, evaluate
from mmtwin.diagnose.stat import SlabSummary, clock
from mmtwin.errors import AllocationFailure, MmtwinError, RequestError
from mmtwin.mm.slab_common import slub_cpus
from mmtwin.notebook import Card, InNotebook, Table
from mmtwin.recording.model import Recording
from mmtwin.recording.symbols import Symbols
from mmtwin.units import PAGE_SIZE

MORE_CLASSES = 3
"""Classes added to the kernel's own at most, in the table of what one more would save."""
MOST_HELD = 50_000
"""Objects that the twin is given at most to try the size classes."""
Progress = Callable[[int, int], None]
KIND_WORDS = {
    "bug": "the kernel forbids this", "failure": "requests fail", "memory": "saves memory", "order": "needs smaller blocks", "cost": "same memory, less work",
    "check": "look at the code",
}  # fmt: skip


@dataclass(frozen=True)
class Advice:
    """A suggestion and what the twin did with it.

    :ivar trial: None if there was nothing to try, or nothing was tried; `not_tried` says why if it could not be.
    """

    suggestion: Suggestion
    trial: trial.Trial | None = None
    not_tried: str = ""

    @property
    def saved_bytes(self) -> int:
        """At the site's peak: by the twin, times the objects that each tried one stands for; without a trial by arithmetic. 0 if it is not about memory."""
        if self.trial is None or not self.suggestion.saves_bytes:
            return self.suggestion.saves_bytes
        return self.trial.pages_saved * self.trial.every * PAGE_SIZE

    @property
    def effect(self) -> str:
        """What following it changes, in a few words."""
        return f"saves {self.saved_bytes:,} bytes at the peak" if self.suggestion.kind == "memory" else KIND_WORDS[self.suggestion.kind]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        tried = self.trial.to_dict() if self.trial is not None else None
        return self.suggestion.to_dict() | {"saved_bytes": self.saved_bytes, "trial": tried, "not_tried": self.not_tried}


@dataclass(frozen=True)
class SiteAdvice:
    """A site, what to change there (the most urgent first), and why nothing else.

    :ivar dropped: suggestions that the twin did not bear out.
    """

    site: Site
    advice: tuple[Advice, ...]
    verdict: str
    dropped: tuple[Advice, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return self.site.to_dict() | {
            "advice": [a.to_dict() for a in self.advice], "dropped": [a.to_dict() for a in self.dropped], "verdict": self.verdict,
        }  # fmt: skip


@dataclass(frozen=True)
class ClassAdvice:
    """The kernel's size classes and better ones, for what kmalloc's caches held at the peak of the recording.

    :ivar objects: what was held. `requests`: all that were made.
    :ivar kernel: the kernel's own classes. `best`: as many or fewer, the optimum for each number. `added`: the kernel's own, and the best one, two ... more.
    :ivar twin_kernel, twin_best: bytes of slabs when the twin holds these objects; None if that was not tried, as there are more than `MOST_HELD` of them.
    """

    objects: int
    bytes_requested: int
    kernel: Classes
    best: tuple[Classes, ...]
    added: tuple[Classes, ...]
    twin_kernel: int | None = None
    twin_best: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class AdviceResult(InNotebook):
    """What `advise` found.

    :ivar sites: those with advice first, by urgency and effect; then by bytes.
    :ivar others: advice for requests to the page allocator, whose events name no caller, and for users of vmalloc that /proc/vmallocinfo names.
    :ivar classes: None if kmalloc's caches held nothing.
    :ivar machine: what the trials ran on; "" if there were none.
    """

    sites: tuple[SiteAdvice, ...]
    others: tuple[Advice, ...]
    classes: ClassAdvice | None
    summary: SlabSummary
    clock: str
    thresholds: Thresholds
    machine: str
    notes: list[str] = field(default_factory=list)

    @property
    def advised(self) -> int:
        """Sites with at least one suggestion."""
        return sum(bool(site.advice) for site in self.sites)

    def _card(self) -> Card:
        rows = [(site.site.name, a.suggestion.suggested, a.suggestion.why, a.effect) for site in self.sites for a in site.advice]
        rows += [(a.suggestion.present, a.suggestion.suggested, a.suggestion.why, a.effect) for a in self.others]
        about = [
            ("call sites", f"{len(self.sites):,}"),
            ("with a suggestion", f"{self.advised:,}"),
            ("tried on", self.machine or "nothing: effects are by arithmetic alone"),
        ]
        return Card("What to change", about, [Table(("where", "better", "why", "effect"), rows)], self.notes)

    def to_dict(self, lines: int = 0) -> dict[str, Any]:
        """Plain data; `lines` limits the sites, 0 means all."""
        return {
            "clock": self.clock, "thresholds": self.thresholds.to_dict(), "machine": self.machine, "summary": asdict(self.summary), "sites_total": len(self.sites),
            "sites_advised": self.advised, "sites": [site.to_dict() for site in (self.sites[:lines] if lines else self.sites)],
            "others": [a.to_dict() for a in self.others], "size_classes": self.classes.to_dict() if self.classes else None, "notes": self.notes,
        }  # fmt: skip


def advise(
    recording: Recording,
    *,
    symbols: Symbols | None = None,
    site: str | None = None,
    tries: bool = True,
    classes: bool = True,
    thresholds: Thresholds = THRESHOLDS,
    progress: Progress = lambda done, total: None,
) -> AdviceResult:
    """Advice for each call site of a recording.

    :param symbols: names for call sites that are addresses.
    :param site: only the sites whose name, or whose function, is this.
    :param tries: try suggestions on the twin (compiled code: the first run takes minutes); otherwise effects are by arithmetic alone.
    :param classes: also look for better size classes, which takes about half a second.
    :param progress: called with the number of sites done and in all.
    :raises RequestError: no slab events, a program's malloc, or no such site.
    """
    traffic = sites.traffic(recording, symbols)
    chosen = _chosen(traffic, site)
    cpus = slub_cpus(recording.provenance.cpus, recording.provenance.cpus)
    config = recording.provenance.kernel_config
    bench = trial.Bench(recording) if tries else None
    notes = list(traffic.notes)
    if config.get("SLAB") == "y":
        notes.append("this kernel has the classic SLAB; sizes of slabs and the twin's trials are SLUB's")
    found = []
    requests_of = sites.by_site(traffic.table) if site is None else {}
    for number, one in enumerate(chosen):
        progress(number, len(chosen))
        requests = requests_of.pop((one.key, one.kmalloc)) if (one.key, one.kmalloc) in requests_of else sites.requests_of(traffic.table, one)
        case = Case(one, sites.held_by(requests), cpus, traffic.accounted, thresholds)
        found.append(_site_advice(case, requests, bench))
    found.sort(key=_rank)
    kinds = () if site is not None else (*page_kinds.suggestions(recording), *areas.suggestions(recording, thresholds))
    others = tuple(_tried(s, areas.requests(s.weight), bench) if s.rule == "small-vmalloc" else Advice(s) for s in kinds)
    better = _classes(traffic, cpus, tries) if classes and site is None and config.get("SLAB") != "y" else None
    return AdviceResult(tuple(found), others, better, traffic.summary, clock(recording), thresholds, bench.text if bench is not None else "", notes)


def _chosen(traffic: Traffic, wanted: str | None) -> list[Site]:
    if wanted is None:
        return list(traffic.sites)
    found = [s for s in traffic.sites if wanted in (s.name, s.name.partition("+")[0], s.name.partition("/")[0])]
    if not found:
        close = [s.name for s in traffic.sites if wanted.lower() in s.name.lower()]
        raise RequestError(
            f"no site {wanted!r}" + (f"; there are: {', '.join(close[:5])}" if close else f"; the {len(traffic.sites)} sites are listed without --site")
        )
    return found


def _site_advice(case: Case, requests: pl.DataFrame, bench: trial.Bench | None) -> SiteAdvice:
    given: list[Advice] = []
    dropped: list[Advice] = []
    for suggestion in rules.suggestions(case):
        advice = _tried(suggestion, requests, bench)
        (given if _stands(advice, case.limits) else dropped).append(advice)
    verdict = rules.verdict(case)
    if dropped and not given:
        verdict += "".join(f"; {a.suggestion.rule} was tried on the twin and does not help" for a in dropped)
    given.sort(key=_urgency)
    return SiteAdvice(case.site, tuple(given), verdict, tuple(dropped))


def _tried(suggestion: Suggestion, requests: pl.DataFrame, bench: trial.Bench | None) -> Advice:
    if bench is None or suggestion.now is None or suggestion.then is None or not len(requests):
        return Advice(suggestion)
    try:
        return Advice(suggestion, bench.compare(requests, suggestion.now, suggestion.then))
    except MmtwinError as error:
        return Advice(suggestion, None, trial.impossible(error))


def _stands(advice: Advice, limits: Thresholds) -> bool:
    """Whether the twin bears a suggestion out: one about memory must save some, and none may make requests fail."""
    tried = advice.trial
    if tried is None:
        return True
    if tried.then.failed > tried.now.failed or tried.then.refused > tried.now.refused:
        return False
    return advice.suggestion.kind != "memory" or advice.saved_bytes >= limits.saving_bytes


def _urgency(advice: Advice) -> tuple[int, int, str]:
    weight = advice.saved_bytes if advice.suggestion.kind == "memory" else advice.suggestion.weight
    return KINDS.index(advice.suggestion.kind), -weight, advice.suggestion.rule


def _rank(site: SiteAdvice) -> tuple[Any, ...]:
    if site.advice:
        return (0, *_urgency(site.advice[0]), site.site.name)
    return (1, -site.site.bytes_alloc, -site.site.failed, site.site.name, site.site.kmalloc)


def _classes(traffic: Traffic, cpus: int, tries: bool) -> ClassAdvice | None:
    objects = traffic.peak_kmalloc
    if not objects.number:
        return None
    kernel = evaluate(objects, KERNEL_CLASSES, cpus=cpus)
    best = best_classes(objects, len(KERNEL_CLASSES), cpus=cpus)
    added = best_classes(objects, len(KERNEL_CLASSES) + MORE_CLASSES, cpus=cpus, keep=KERNEL_CLASSES)
    twin: list[int | None] = [None, None]
    if tries and objects.number <= MOST_HELD:
        with suppress(AllocationFailure):  # more than the machine has
            twin = [trial.hold(objects, c.sizes, cpus) for c in (kernel, best[-1])]
    return ClassAdvice(objects.number, objects.bytes_requested, kernel, tuple(best), tuple(c for c in added if len(c.sizes) > len(KERNEL_CLASSES)), *twin)
