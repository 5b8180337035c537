"""``mmtwin blame``: who fragments, who grows, who leaks, who wastes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtwin.cli.about import about
from mmtwin.cli.stat import _duration, parse_window
from mmtwin.cli.terminal import ForTerminal, UsageError, printable
from mmtwin.errors import RequestError
from mmtwin.recording.readers import read

if TYPE_CHECKING:
    import polars as pl
    from rich.console import RenderableType

    from mmtwin.diagnose.blame.blame import Blame
    from mmtwin.recording.model import Recording

LINES = 8
MOST_LABEL = 72
"""Columns for a name in text; the rest of it is in --json."""
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
LEFT = ("Over time", "Born", "Verdict", "Wanted", "Got")
"""Columns of words, not of numbers."""
CODE = """\
from mmtwin.diagnose.blame import blame
from mmtwin.recording.readers import read
{more}
recording = read({path!r})
result = blame(recording, {by!r}{arguments})
print(result.fragments)
for table in (*result.grows, *result.leaks):
    print(table.what, table.rows)
print(result.wastes)
"""


def blame(
    file: Path,
    /,
    *,
    only: str | None = None,
    by: str = "callsite",
    steps: int = 20,
    lines: int | None = None,
    time: str | None = None,
    symbols: Path | None = None,
    json: bool = False,
    code: bool = False,
    terminal: ForTerminal,
) -> None:
    """Say who fragments, grows, leaks and wastes, and how much.

    Fragments: pages that cannot be moved in pageblocks of movable type, by who holds them, and the fallback events (mm_page_alloc_extfrag). Grows: live bytes
    over time and their slope in the second half. Leaks: what is live and older than anything its site has freed. Wastes: size classes, slabs at most half used, guard
    pages, page tables. Where pages lie needs a recording with a memory dump; the rest works on trace text too.

    :param file: A recording (.mmrec), perf.data, trace.dat, or a kernel's trace text as for mmtwin import.
    :param only: Of fragments, grows, leaks, wastes, separated by commas (default: all).
    :param by: One row for each callsite, function, cache or pid (default: callsite).
    :param steps: Equal steps on the trace clock for what is told over time (default: 20).
    :param lines: Rows of each table; 0 is all (default: 8; with --json all).
    :param time: FROM,TO: only that part; either may be missing. Seconds as in the trace, event numbers if its clock is a counter, or percent (10%,50%).
    :param symbols: System.map, a copy of /proc/kallsyms or a vmlinux: names for call sites that are addresses.
    :param json: One JSON document instead of text.
    :param code: Print the Python that does the same.
    """
    sections = _check(only, by, steps, lines)
    if code:
        return terminal.write(_code(file, by, sections, steps, time, symbols))
    from mmtwin import _jit
    from mmtwin.diagnose.blame import blame as run
    from mmtwin.recording.symbols import read_symbols

    names = read_symbols(symbols) if symbols is not None else None
    with terminal.progress("reading"):
        recording = read(file, symbols=names)
    window = parse_window(time, recording) if time is not None else (None, None)
    if recording.before is not None and recording.before.has_pages and not _jit.is_compiled("replay_ops"):
        terminal.note("compiling the replay, about 30 s, once")
    try:
        result = run(recording, by, sections=sections, steps=steps, window=window, symbols=names)
    except RequestError as error:
        raise RequestError(f"{file}: {error}") from error
    if json:
        return terminal.json(about(file, recording) | result.to_dict(lines or 0))
    return terminal.show(*text(result, recording, LINES if lines is None else lines))


def _check(only: str | None, by: str, steps: int, lines: int | None) -> tuple[str, ...]:
    """The sections.

    :raises UsageError: what makes no sense, before anything is read.
    """
    from mmtwin.diagnose.blame.blame import SECTIONS
    from mmtwin.diagnose.blame.lives import BY
    from mmtwin.diagnose.blame.steps import MOST_STEPS

    sections = tuple(dict.fromkeys(part.strip() for part in only.split(","))) if only is not None else tuple(SECTIONS)
    for section in sections:
        if section not in SECTIONS:
            raise UsageError(f"--only: unknown section {printable(section)!r}; expected, separated by commas: {', '.join(SECTIONS)}")
    if by not in BY:
        raise UsageError(f"--by: unknown group {printable(by)!r}; expected one of: {', '.join(BY)}")
    if not 1 <= steps <= MOST_STEPS:
        raise UsageError(f"--steps {steps}: expected 1 to {MOST_STEPS}")
    if lines is not None and lines < 0:
        raise UsageError(f"--lines {lines}: expected a number of rows, 0 for all")
    return sections


def _code(file: Path, by: str, sections: tuple[str, ...], steps: int, time: str | None, symbols: Path | None) -> str:
    from mmtwin.diagnose.blame.blame import SECTIONS

    arguments = (f", sections={sections!r}" if sections != tuple(SECTIONS) else "") + (f", steps={steps}" if steps != 20 else "")
    arguments += f", window=parse_window({time!r}, recording)" if time is not None else ""
    arguments += f", symbols=read_symbols({str(symbols)!r})" if symbols is not None else ""
    more = "from mmtwin.cli.stat import parse_window\n" if time is not None else ""
    more += "from mmtwin.recording.symbols import read_symbols\n" if symbols is not None else ""
    return CODE.format(more=more, path=str(file), by=by, arguments=arguments)


# Text


def spark(series: Sequence[int]) -> str:
    """A line of bars, the lowest for 0 and the highest for the largest; plain letters where the terminal's encoding has no bars."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    bars = BARS if encoding.startswith("utf") else PLAIN_BARS
    top = max(series, default=0)
    return "".join(bars[0] if top <= 0 or value <= 0 else bars[min(len(bars) - 1, 1 + (value * (len(bars) - 2)) // top)] for value in series)


def text(result: Blame, recording: Recording, lines: int) -> Iterator[RenderableType]:
    """All of it, for `Terminal.show`: who and how much first, then a table for each question."""
    from rich.text import Text

    from mmtwin.diagnose.blame.headlines import headlines

    for section, sentence in headlines(result):
        yield Text.assemble((f"{section:<10}", "bold"), printable(sentence))
    for section in result.sections:
        yield from {"fragments": _fragments, "grows": _grows, "leaks": _leaks, "wastes": _wastes}[section](result, lines)
    told = [*(f"NOT TOLD: {reason}" for reason in result.untold), *(f"NOTE: {note}" for note in result.notes)]
    yield from ([""] if told else []) + [Text(printable(line), style="yellow") for line in told]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int, dropped: int) -> Iterator[RenderableType]:
    """A table.

    :param left: rows that are not shown.
    :param dropped: index of the column with names, which are cut off where they are long.
    """
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for at, heading in enumerate(headings):
        shown.add_column(heading, justify="left" if at == dropped or heading in LEFT else "right", no_wrap=at != dropped, overflow="fold")
    if not rows:
        yield Text("nothing" if left <= 0 else f"nobody; {left:,} rows in all (--lines 0 shows them)")
        return
    for row in rows:
        shown.add_row(*(Text(_short(cell) if at == dropped else cell) for at, cell in enumerate(row)))
    yield shown
    if left > 0:
        yield Text(f"... and {left:,} more rows (--lines 0 shows all)")


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= MOST_LABEL else f"{name[: MOST_LABEL - 3]}..."


def _title(words: str, more: str) -> Iterator[RenderableType]:
    from rich.text import Text

    yield ""
    yield Text.assemble((words, "bold"), f"  {more}" if more else "")


def _head(table: pl.DataFrame, lines: int, positive: str = "") -> list[dict[str, Any]]:
    """The first rows; unless all are asked for, only those that have something in a column."""
    if lines and positive:
        table = table.filter(table[positive] > 0)
    return (table.head(lines) if lines else table).to_dicts()


def _fragments(result: Blame, lines: int) -> Iterator[RenderableType]:
    f = result.fragments
    assert f is not None
    if f.samples:
        last = f.samples[-1]
        pinned = f"blocks pinned by 1 page: {last.few[0]:,}, by up to 8: {last.few[1]:,}, by up to 64: {last.few[2]:,}; wholly free blocks: {last.whole:,}"
        yield from _title("WHO FRAGMENTS", f"unmovable pages in movable blocks at the end: {last.pinned:,}; {pinned}")
        yield f"           over time {spark([s.pinned for s in f.samples])} pages, {spark([s.mixed for s in f.samples])} pinned blocks, {spark([s.free for s in f.samples])} free pages"
        rows = [
            [row["label"], f"{row['pages']:,}", f"{row['blocks']:,}", f"{row['pages'] - row['pages_start']:+,}", spark(row["series"])]
            for row in _head(f.rows, lines, "pages")
        ]
        if len(f.rows):
            yield from _table(("Held by", "Pages", "Blocks", "Change", "Over time"), rows, len(f.rows) - len(rows), 0)
    if f.events:
        yield from _title("FALLBACKS", f"mm_page_alloc_extfrag: {f.events:,}; blocks that changed their type: {int(f.fallbacks['taken_over'].sum()):,}")
        rows = [
            [row["label"], f"{row['order']}", row["wanted"], row["got"], f"{row['events']:,}", f"{row['taken_over']:,}", spark(row["series"])]
            for row in _head(f.fallbacks, lines)
        ]
        yield from _table(("Asked by", "Order", "Wanted", "Got", "Events", "Taken over", "Over time"), rows, len(f.fallbacks) - len(rows), 0)


def _grows(result: Blame, lines: int) -> Iterator[RenderableType]:
    from mmtwin.diagnose.explain.model import size

    titles = {
        "objects": "objects allocated in the recording",
        "caches": "all objects of a cache, by the twin's tables",
        "pages": "pages allocated in the recording",
    }
    for one in result.grows:
        yield from _title("WHO GROWS", f"{titles[one.what]}; slope of the second half")
        rows = []
        for row in _head(one.rows, lines, "slope"):
            rate = f"{'-' * (row['slope'] < 0)}{size(round(abs(row['slope'])))}/{result.steps.unit}"
            rows.append([row["label"], rate, size(row["live_start"]), size(row["live_end"]), size(row["peak"]), spark(row["series"])])
        yield from _table(("Who", "Slope", "Live at first", "Live at last", "Peak", "Over time"), rows, len(one.rows) - len(rows), 0)


def _leaks(result: Blame, lines: int) -> Iterator[RenderableType]:
    from mmtwin.diagnose.explain.model import size

    duration: Callable[[float | None], str] = _duration(result.steps.clock)
    unit = " (events)" if result.steps.clock == "events" else ""
    for one in result.leaks:
        yield from _title("WHO LEAKS", f"live {one.what} that are older than anything their site has freed (overdue); of sites that freed nothing: all")
        rows = []
        for row in _head(one.rows, lines, "overdue"):
            rows.append([
                row["label"], row["verdict"], f"{row['overdue']:,}", size(row["overdue_bytes"]), f"{row['live']:,}", f"{row['freed']:,}", duration(row["lifetime_median"]),
                duration(row["lifetime_longest"]), duration(row["age_oldest"]), spark(row["born"]),
            ])  # fmt: skip
        headings = ("Who", "Verdict", "Overdue", "Bytes", "Live", "Freed", f"Usual life{unit}", "Longest", "Oldest live", "Born")
        yield from _table(headings, rows, len(one.rows) - len(rows), 0)


def _wastes(result: Blame, lines: int) -> Iterator[RenderableType]:
    from mmtwin.diagnose.explain.model import size

    w = result.wastes
    assert w is not None
    if w.slabs is not None:
        yield from _title("WHO WASTES", f"slabs {w.when}: bytes of pages that hold no live object, and slabs with at most half of their objects in use")
        rows = [
            [
                row["cache"],
                f"{row['half_empty']:,} of {row['slabs']:,}",
                size(row["half_empty_bytes"]),
                size(row["idle_bytes"]),
                size(row["bytes"]),
                f"{row['in_use']:,} of {row['objects']:,}",
            ]
            for row in _head(w.slabs, lines)
        ]
        yield from _table(("Cache", "Half empty", "Bytes", "Idle", "Of", "Objects in use"), rows, len(w.slabs) - len(rows), 0)
    if w.classes is not None and len(w.classes):
        yield from _title("SIZE CLASSES", "bytes handed out that nobody asked for")
        rows = [
            [row["label"], size(row["live_waste_bytes"]), size(row["waste_bytes"]), f"{100 * row['waste_bytes'] / row['bytes']:.1f}%", f"{row['hits']:,}"]
            for row in _head(w.classes, lines)
        ]
        yield from _table(("Cache", "Live waste", "Waste in all", "Of bytes", "Allocations"), rows, len(w.classes) - len(rows), 0)
    if w.guards is not None or w.page_tables is not None:
        yield from _title("PAGES FOR OTHERS", "")
    if w.guards is not None:
        g = w.guards
        yield f"guard pages   {g['areas']:,} areas of vmalloc, {size(g['guard_bytes'])} of addresses (no memory) beside {size(g['area_bytes'])}; {g['lazy_areas']:,} freed areas wait for a purge ({size(g['lazy_bytes'])})"
    if w.page_tables is not None:
        most = ", ".join(f"pid {pid}: {pages:,}" for pid, pages in w.page_tables["by_pid"])
        yield f"page tables   {w.page_tables['pages']:,} pages, {size(w.page_tables['bytes'])}, told by the request's flags{f'; most: {most}' if most else ''}"
