"""``mmtwin advise``: which allocator and flags each call site should use, why, and what that would change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtwin.cli.about import about
from mmtwin.cli.stat import LINES
from mmtwin.cli.terminal import ForTerminal, UsageError, printable
from mmtwin.errors import RequestError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mmtwin.diagnose.advise.advise import Advice, AdviceResult, ClassAdvice, SiteAdvice
    from mmtwin.diagnose.advise.trial import Outcome

MOST_SIZES = 12
COUNTS = (
    ("pages at the peak", "pages_peak"), ("pages at the end", "pages_end"), ("slab pages at the peak", "slab_pages_peak"), ("highest order asked for", "highest_order"),
    ("requests that failed", "failed"), ("requests that the kernel forbids", "refused"), ("page-table writes", "page_table_writes"), ("TLB flushes", "tlb_flushes"),
    ("steps in trees and lists", "steps"),
)  # fmt: skip
CODE = """\
from mmtwin.diagnose.advise.advise import advise
from mmtwin.recording.readers import read
{more}
result = advise(read({path!r}){arguments})
for site in result.sites:
    for advice in site.advice:
        print(site.site.name, advice.suggestion.suggested, advice.saved_bytes, advice.trial)
print(result.classes)
"""


def advise(
    file: Path,
    /,
    *,
    site: str | None = None,
    lines: int | None = None,
    symbols: Path | None = None,
    untried: bool = False,
    json: bool = False,
    code: bool = False,
    terminal: ForTerminal,
) -> None:
    """Say which allocator and flags each call site should use, and why.

    Each suggestion rests on numbers of the recording, is tried on the twin with the site's own requests, and is dropped if it does not help there. Most sites are right as they
    are, and that is said too. Below stand the best size classes for this traffic.

    :param file: A recording (.mmrec), perf.data, trace.dat, or a kernel's trace text as for mmtwin import.
    :param site: One site in full: its name as shown, or its function.
    :param lines: Rows of sites without advice to show; 0 is all (default: 20; with --json all sites).
    :param symbols: System.map, a copy of /proc/kallsyms or a vmlinux: names for call sites that are addresses.
    :param untried: Effects by arithmetic alone, nothing is tried on the twin: at once, and needs no compiled code.
    :param json: One JSON document instead of text.
    :param code: Print the Python that does the same.
    """
    if lines is not None and lines < 0:
        raise UsageError(f"--lines {lines}: expected a number of rows, 0 for all")
    if code:
        return terminal.write(_code(file, site, symbols, untried))
    from mmtwin.diagnose.advise import advise as whole
    from mmtwin.recording.readers import read
    from mmtwin.recording.symbols import read_symbols

    names = read_symbols(symbols) if symbols is not None else None
    with terminal.progress("reading"):
        recording = read(file, symbols=names)
    try:
        with terminal.progress("trying on the twin" if not untried else "adding up") as moved:
            result = whole.advise(recording, symbols=names, site=site, tries=not untried, progress=moved)
    except RequestError as error:
        raise RequestError(f"{file}: {error}") from error
    if json:
        return terminal.json(about(file, recording) | result.to_dict(lines or 0))
    return terminal.show(*(text(result, LINES if lines is None else lines) if site is None else in_full(result)))


def _code(file: Path, site: str | None, symbols: Path | None, untried: bool) -> str:
    arguments = (f", symbols=read_symbols({str(symbols)!r})" if symbols is not None else "") + (f", site={site!r}" if site is not None else "")
    more = "from mmtwin.recording.symbols import read_symbols\n" if symbols is not None else ""
    return CODE.format(path=str(file), arguments=arguments + (", tries=False" if untried else ""), more=more)


def text(result: AdviceResult, lines: int) -> list[RenderableType]:
    """All of it, for `Terminal.show`."""
    from rich.text import Text

    advised = [site for site in result.sites if site.advice]
    number = sum(len(site.advice) for site in advised) + len(result.others)
    where = f"; tried on {result.machine}" if result.machine else ""
    head = f"{_count(number, 'suggestion')} for {len(advised):,} of {_count(len(result.sites), 'call site')}{where}"
    shown: list[RenderableType] = [Text(head if number else f"No suggestion: {_all(len(result.sites))}{where}", style="bold")]
    for one in advised:
        shown += ["", *_site(one)]
    for other in result.others:
        shown += ["", *_advice(other, other.suggestion.present)]
    right = [site for site in result.sites if not site.advice]
    if right:
        shown += ["", Text("SITES WITHOUT ADVICE, most bytes first", style="bold"), _table(right[:lines] if lines else right)]
        if lines and len(right) > lines:
            shown.append(Text(f"... and {len(right) - lines:,} more rows (--lines 0 shows all, --site NAME one in full)"))
    if result.classes is not None:
        shown += ["", Text("SIZE CLASSES OF KMALLOC", style="bold"), *_classes(result.classes)]
    return shown + _notes(result)


def in_full(result: AdviceResult) -> list[RenderableType]:
    """One site, everything that is known of it."""
    from rich.text import Text

    shown: list[RenderableType] = []
    for one in result.sites:
        shown += ["", *_site(one)] if shown else _site(one)
        if not one.advice:
            shown.append(Text(f"  {one.verdict}"))
        for dropped in one.dropped:
            shown += ["", Text("Not suggested, as the twin does not bear it out:", style="bold"), *_advice(dropped, "")]
        shown += ["", _grid(_facts(one, result.clock))]
    return shown + _notes(result)


def _notes(result: AdviceResult) -> list[RenderableType]:
    from rich.text import Text

    notes = [f"NOTE: {printable(note)}" for note in result.notes]
    if result.summary.frees_unmatched or result.summary.reused:
        notes.append(
            f"NOTE: {result.summary.frees_unmatched:,} frees are of objects allocated elsewhere and {result.summary.reused:,} objects were freed silently: "
            "what is held at once is only as well known as these are few"
        )
    shown: list[RenderableType] = [Text(note, style="yellow") for note in notes]
    return ["", *shown] if shown else shown


def _site(one: SiteAdvice) -> list[RenderableType]:
    from rich.text import Text

    shown: list[RenderableType] = []
    for number, advice in enumerate(one.advice):
        shown += [""] if number else []
        shown += _advice(advice, one.site.name)
    return shown or [Text(printable(one.site.name), style="bold")]


def _advice(advice: Advice, name: str) -> list[RenderableType]:
    """A suggestion with its numbers and what the twin did."""
    from rich.padding import Padding
    from rich.text import Text

    s = advice.suggestion
    lines: list[RenderableType] = [Text.assemble((printable(name or s.present), "bold"), f"  [{s.rule}]  {advice.effect}")]
    rows = [("now", s.present), ("better", s.suggested), ("why", s.why), ("limit", s.threshold)]
    rows += [("not in the trace", "; ".join(s.unknown))] if s.unknown else []
    rows += [("not tried", advice.not_tried)] if advice.not_tried else []
    lines.append(Padding(_grid(iter(rows)), (0, 0, 0, 2)))
    if advice.trial is not None:
        lines.append(Padding(_trial(advice), (0, 0, 0, 2)))
    return lines


def _trial(advice: Advice) -> RenderableType:
    from rich.table import Table

    tried = advice.trial
    assert tried is not None
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    sample = "" if tried.every == 1 else f", every {tried.every:,}th object"
    shown.add_column(f"on the twin: {_count(tried.now.requests, 'request')}{sample}", no_wrap=True)
    for heading in ("now", "better"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in trial_rows(tried.now, tried.then):
        shown.add_row(*row)
    pairs = (
        ("free memory in single pages only", tried.now_fragmented, tried.then_fragmented),
        ("no free memory but the reserves", tried.now_short, tried.then_short),
    )
    for words, now, then in pairs:
        if now is not None and then is not None:
            shown.add_row(f"failed, {words}", _failed(now), _failed(then))
    if tried.then.merged_with and advice.suggestion.rule == "own-cache":
        shown.add_row(f"merged with the cache {tried.then.merged_with}", "", "")
    return shown


def _failed(outcome: Outcome) -> str:
    return _number(outcome.failed) + (f" ({_number(outcome.waits)} would reclaim)" if outcome.waits else "")


def trial_rows(now: Outcome, then: Outcome) -> Iterator[tuple[str, str, str]]:
    """What is worth a line: pages at the peak, and all that differs or is not 0."""
    for words, name in COUNTS:
        a, b = getattr(now, name), getattr(then, name)
        if name == "pages_peak" or a != b:
            yield words, _number(a), _number(b)


def _table(sites: list[SiteAdvice]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    shown.add_column("Callsite", overflow="fold")
    for heading in ("Hit", "Total_alloc", "Frag", "Held"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("Verdict", overflow="fold")
    for one in sites:
        s = one.site
        frag = 100 * s.waste_bytes / s.bytes_alloc if s.bytes_alloc else 0.0
        shown.add_row(Text(printable(s.name)), _number(s.hits), _number(s.bytes_alloc), f"{frag:.1f}%", _number(s.peak), Text(one.verdict))
    return shown


def _classes(found: ClassAdvice) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    kernel = found.kernel
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("Classes", "Slabs", "In objects", "In slabs", "Saved"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("", overflow="fold")
    rows = [(kernel, "the kernel's own: " + " ".join(map(str, kernel.sizes)))]
    rows += [(c, "with " + " ".join(map(str, sorted(set(c.sizes) - set(kernel.sizes)))) + " added") for c in found.added]
    rows += [(found.best[-1], "best: " + " ".join(map(str, found.best[-1].sizes)))]
    for c, words in rows:
        saved = f"{_number(kernel.slab_bytes - c.slab_bytes)} ({100 * (kernel.slab_bytes - c.slab_bytes) / kernel.slab_bytes:.1f}%)" if c is not kernel else ""
        shown.add_row(str(len(c.sizes)), _number(c.slab_bytes), _number(c.object_waste_bytes), _number(c.slab_waste_bytes), saved, words)
    twin = ""
    if found.twin_kernel is not None and found.twin_best is not None:
        twin = f" Held in slabs of the twin they take {_number(found.twin_kernel)} bytes in the kernel's classes, and {_number(found.twin_best)} in the best."
    what = f"At the peak {_count(found.objects, 'object')} of {_number(found.bytes_requested)} bytes were held. Bytes of slabs that they need, and of these unused inside objects and in slabs:"
    return [
        Text(what),
        shown,
        Text("Best of all sets of as many classes, or fewer where more save nothing, that keep kmalloc's alignment; docs/advise.md has the rules." + twin),
    ]


def _facts(one: SiteAdvice, clock: str) -> Iterator[tuple[str, str]]:
    from mmtwin.diagnose.advise.sites import CONTEXTS
    from mmtwin.gfp import gfp_names

    s = one.site
    yield (
        "Asked by size" if s.kmalloc else "From",
        "kmalloc" if s.kmalloc else ", ".join(f"{name} ({_number(n)})" for name, n in s.cache.items()) or "a cache, its name unknown",
    )
    yield "Requests", f"{_number(s.hits)} successful, {_number(s.failed)} failed" + (f", {_number(s.zero_size)} of no bytes" if s.zero_size else "")
    yield "Bytes", f"{_number(s.bytes_req)} asked for, {_number(s.bytes_alloc)} given, {_number(s.waste_bytes)} of them unused"
    yield "Held at most", f"{_count(s.peak, 'object')}; {_number(s.peak_bytes)} bytes"
    yield "At the end", f"{_count(s.live, 'object')}, {_number(s.live_bytes)} bytes"
    shown = list(s.sizes.items())[:MOST_SIZES]
    more = f" and {len(s.sizes) - MOST_SIZES:,} more sizes" if len(s.sizes) > MOST_SIZES else ""
    yield "Sizes", ", ".join(f"{_number(size)} ({_number(n)} times)" for size, n in shown) + more
    for use in s.uses:
        yield "Flags", f"{gfp_names(use.gfp)} in {CONTEXTS[use.context]}: {_number(use.requests)}" + (f", {_number(use.failed)} failed" if use.failed else "")
    if s.in_task is not None:
        yield (
            "In tasks",
            f"{_count(s.in_task[0], 'request')} of this call site, {_number(s.in_task[1])} of them with preemption, interrupts or bottom halves off",
        )
    ends = f"{_number(s.freed)} by a recorded free" + (f", {_number(s.reused)} silently" if s.reused else "")
    yield (
        "Freed",
        ends
        + "".join(f"; {_number(n)} by {kind}" for kind, n in s.freed_by.items())
        + "".join(f"; {_number(n)} in {CONTEXTS[c]}" for c, n in s.freed_in.items() if c),
    )
    if s.lifetime_mean is not None:
        yield "Lifetime", f"{s.lifetime_mean:,.0f} {clock} on average"


def _grid(rows: Iterator[tuple[str, Any]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    shown = Table.grid(padding=(0, 2))
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in rows:
        shown.add_row(name, Text(printable(value)))
    return shown


def _number(value: int) -> str:
    return f"{value:,}"


def _all(sites: int) -> str:
    return f"all {sites:,} call sites are right as they are" if sites != 1 else "the only call site is right as it is"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' if number != 1 else ''}"
