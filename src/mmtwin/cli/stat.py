"""``mmtwin stat``: who asks for kernel memory, who wastes it, who keeps it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmtwin.cli.about import about
from mmtwin.cli.terminal import ForTerminal, UsageError, printable
from mmtwin.errors import RequestError
from mmtwin.recording.readers import read

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mmtwin.diagnose.stat import StatResult
    from mmtwin.recording.model import Recording
    from mmtwin.recording.symbols import Symbols

LINES = 20
LABEL_WIDTH = 34
"""The first column gets at least so much of a narrow terminal; the least important columns are left out for it."""
BY_SITE = ("callsite", "ptr")
CODE = """\
from mmtwin.recording.readers import read
from mmtwin.diagnose.{module} import {module}
{more}
recording = read({path!r}{names})
result = {module}(recording{arguments})
print(result.summary)
print(result.rows)
"""


def stat(
    file: Path,
    /,
    *,
    by: str | None = None,
    sort: str | None = None,
    lines: int | None = None,
    page: bool = False,
    live: bool = False,
    time: str | None = None,
    symbols: Path | None = None,
    raw_ip: bool = False,
    json: bool = False,
    code: bool = False,
    terminal: ForTerminal,
) -> None:
    """Add up who asks for kernel memory, who wastes it and who keeps it.

    The columns are those of perf kmem stat: bytes allocated and requested, in all and per object; objects (Hit); objects freed on another CPU
    (Ping-pong); waste in percent (Frag). Beside them: wasted bytes, and what is live at the end. Sums that a trace cannot give, because frees
    or allocations are not in it, are said to be unknown.

    :param file: A recording (.mmrec), or what mmtwin import reads: perf.data, trace.dat, a kernel's trace text.
    :param by: One row for each callsite, function, cache, ptr, size, pid, cpu, gfp or node (default: callsite); with --page: kind,
        callsite, function, order, migtype, gfp, pid or cpu (default: kind, which is order, migrate type and flags together).
    :param sort: Keys, the first is the most important one: bytes, requested, hit, frag, waste, pingpong, live, reused, failed, lifetime, age, or what --by
        names (default: bytes); with --page: bytes, hit, failed, live, reused, freed, age.
    :param lines: Rows to show; 0 is all (default: 20; with --json all).
    :param page: Pages from the page allocator instead of objects from slabs.
    :param live: Only what was allocated in the recording and is live at its end, with ages: what may leak.
    :param time: FROM,TO: only that part; either may be missing. Seconds as in the trace, event numbers if its clock is a counter, or percent (10%,50%).
    :param symbols: System.map, a copy of /proc/kallsyms or a vmlinux: names for call sites that are addresses.
    :param raw_ip: Call sites as recorded, without names.
    :param json: One JSON document instead of text.
    :param code: Print the Python that does the same.
    """
    sort_by = tuple(sort.split(",")) if sort is not None else ()
    by = by if by is not None else "kind" if page else "callsite"
    _check(by, sort_by, lines, page, symbols, raw_ip)
    if code:
        return terminal.write(_code(file, by, sort_by, page, live, time, symbols, raw_ip))
    from mmtwin.recording.symbols import read_symbols

    names = read_symbols(symbols) if symbols is not None else None
    with terminal.progress("reading"):
        recording = read(file, symbols=names)
    try:
        result = _run(recording, by, sort_by, page, live, time, names, raw_ip)
    except RequestError as error:
        raise RequestError(f"{file}: {error}") from error
    if json:
        return terminal.json(about(file, recording) | result.to_dict(lines or 0))
    return terminal.show(*text(result, LINES if lines is None else lines))


def _check(by: str, sort: tuple[str, ...], lines: int | None, page: bool, symbols: Path | None, raw_ip: bool) -> None:
    """Refuses what makes no sense before anything is read.

    :raises UsageError: naming the option and what was expected.
    """
    from mmtwin.diagnose import page_stat, stat

    groups, keys = (page_stat.GROUPS, page_stat.SORT) if page else (stat.GROUPS, stat.SORT)
    if page and by in stat.GROUPS and by not in groups:
        raise UsageError(f"--by {by} does not go with --page: that is about slab objects; expected one of: {', '.join(groups)}")
    if by not in groups:
        raise UsageError(
            f"--by: unknown group {printable(by)!r}; expected one of: {', '.join(groups)}" + ("" if page or by not in page_stat.GROUPS else "; or add --page")
        )
    for key in sort:
        if key not in keys and key != by:
            raise UsageError(f"--sort: unknown key {printable(key)!r}; expected, separated by commas: {', '.join([*keys, by])}")
    if lines is not None and lines < 0:
        raise UsageError(f"--lines {lines}: expected a number of rows, 0 for all")
    for given, option in ((raw_ip, "--raw-ip"), (symbols is not None, "--symbols")):
        fitting = (*BY_SITE, "function") if option == "--symbols" else BY_SITE
        if given and by not in fitting:
            raise UsageError(f"{option} is about call sites, so it does not go with --by {by}")
    if raw_ip and symbols is not None:
        raise UsageError("--raw-ip and --symbols contradict each other; give one of them")


def _run(recording: Recording, by: str, sort: tuple[str, ...], page: bool, live: bool, time: str | None, symbols: Symbols | None, raw_ip: bool) -> StatResult:
    from mmtwin.diagnose import page_stat, stat

    window = parse_window(time, recording) if time is not None else (None, None)
    if page:
        return page_stat.page_stat(recording, by, sort=sort, live=live, window=window, symbols=symbols, raw_ip=raw_ip)
    return stat.stat(recording, by, sort=sort, live=live, window=window, symbols=symbols, raw_ip=raw_ip)


def parse_window(text: str, recording: Recording) -> tuple[int | None, int | None]:
    """``FROM,TO`` on the recording's clock.

    :raises UsageError: it is not that.
    """
    from mmtwin.diagnose.stat import clock

    unit = clock(recording)
    parts = text.split(",")
    if len(parts) != 2 or not any(part.strip() for part in parts):
        raise UsageError(f"--time {printable(text)!r}: expected FROM,TO, one of which may be missing, as in 1.5,2 or ,50%")
    times = recording.events["time"]
    first, last = (int(times.min()), int(times.max())) if len(times) else (0, 0)  # type: ignore[arg-type]

    def point(part: str) -> int | None:
        part = part.strip()
        if not part:
            return None
        try:
            value = Decimal(part.removesuffix("%"))
            if not value.is_finite() or abs(value) > 10**12:
                raise InvalidOperation
        except InvalidOperation:
            raise UsageError(f"--time: {printable(part)!r} is no time; expected {'seconds' if unit == 'ns' else 'an event number'} or a percentage") from None
        if part.endswith("%"):
            return first + int((last - first) * value / 100)
        if unit == "ns":
            return int(value * 1_000_000_000)
        if value != int(value):
            raise UsageError(f"--time: {part}: this recording's clock counts events; expected an event number from {first} to {last}, or a percentage")
        return int(value)

    start, end = point(parts[0]), point(parts[1])
    if start is not None and end is not None and start > end:
        raise UsageError(f"--time {printable(text)!r}: it ends before it begins")
    return start, end


def _code(file: Path, by: str, sort: tuple[str, ...], page: bool, live: bool, time: str | None, symbols: Path | None, raw_ip: bool) -> str:
    arguments = f", {by!r}" + (f", sort={sort!r}" if sort else "") + (", live=True" if live else "")
    arguments += (", symbols=symbols" if symbols is not None else "") + (", raw_ip=True" if raw_ip else "")
    arguments += f", window=parse_window({time!r}, recording)" if time is not None else ""
    more = "from mmtwin.cli.stat import parse_window\n" if time is not None else ""
    more += f"from mmtwin.recording.symbols import read_symbols\n\nsymbols = read_symbols({str(symbols)!r})\n" if symbols is not None else ""
    names = ", symbols=symbols" if symbols is not None else ""
    return CODE.format(module="page_stat" if page else "stat", more=more, path=str(file), names=names, arguments=arguments)


class Column(NamedTuple):
    """A column of the table: its heading, its text for a row, and how soon it goes when the terminal is narrow (0: never)."""

    heading: str
    text: Callable[[dict[str, Any]], str]
    rank: int = 0


def text(result: StatResult, lines: int) -> list[RenderableType]:
    """All of it, for `Terminal.show`."""
    from rich.text import Text

    from mmtwin.diagnose import page_stat, stat

    rows = (result.rows.head(lines) if lines else result.rows).to_dicts()
    heading = (page_stat.GROUPS if result.what == "page" else stat.GROUPS)[result.by]
    shown: list[RenderableType] = []
    if rows:
        shown.append(table(heading, rows, _columns(result), result))
    else:
        shown.append(Text("Nothing is live at the end that was allocated in the recording." if result.live else "Nothing was allocated."))
    if len(rows) < len(result.rows):
        shown.append(Text(f"... and {len(result.rows) - len(rows):,} more rows (--lines 0 shows all)"))
    shown += ["", Text(f"SUMMARY ({'page allocator' if result.what == 'page' else 'slab allocator'})", style="bold")]
    shown.append(_grid(_page_summary(result) if result.what == "page" else _slab_summary(result)))
    if result.what == "page" and result.summary.orders:
        shown += ["", _orders(result.summary.orders)]
    shown += ([""] if result.notes else []) + [Text(f"NOTE: {printable(note)}", style="yellow") for note in result.notes]
    return shown


def table(heading: str, rows: list[dict[str, Any]], columns: list[Column], result: StatResult) -> RenderableType:
    """The rows, numbers to the right; as many columns as the terminal is wide."""
    from rich.table import Table
    from rich.text import Text

    cells = [[column.text(row) for row in rows] for column in columns]
    widths = [max(len(column.heading), *map(len, texts)) + 2 for column, texts in zip(columns, cells, strict=True)]
    label = "label" if result.by != "kind" else "gfp"
    lead = min(LABEL_WIDTH, max(len(heading), *(len(row[label]) for row in rows))) + 2
    kept = set(range(len(columns)))
    if sys.stdout is not None and sys.stdout.isatty():
        room = shutil.get_terminal_size().columns
        for at in sorted((i for i in kept if columns[i].rank), key=lambda i: -columns[i].rank):
            if lead + sum(widths[i] for i in kept) > room:
                kept.discard(at)
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    shown.add_column(heading if label == "label" else "GFP flags", overflow="fold")
    for at in sorted(kept):
        shown.add_column(columns[at].heading, justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        shown.add_row(Text(printable(row[label])), *(cells[at][number] for at in sorted(kept)))
    return shown


def _columns(result: StatResult) -> list[Column]:
    duration = _duration(result.clock)
    unit = " (events)" if result.clock == "events" else ""
    live = [Column("Oldest" + unit, lambda r: duration(r["age_oldest"])), Column("Youngest" + unit, lambda r: duration(r["age_youngest"]), 2)]
    if result.what == "page":
        kind = [Column("Order", lambda r: str(r["order"])), Column("Mig.type", lambda r: r["migtype"])] if result.by == "kind" else []
        if result.live:
            return [*kind, Column("Live pages", lambda r: _number(r["live_pages"])), Column("Live bytes", lambda r: _number(r["live_bytes"]), 1), *live]
        return [
            *kind,
            Column("Total_alloc", lambda r: _number(r["bytes"])),
            Column("Hit", lambda r: _number(r["hits"])),
            Column("Failed", lambda r: _number(r["failed"])),
            Column("Pages", lambda r: _number(r["pages"]), 3),
            Column("Freed", lambda r: _number(r["pages_freed"]), 2),
            Column("Live pages", lambda r: _number(r["live_pages"]), 1),
        ]
    if result.live:
        columns = [
            Column("Live", lambda r: _number(r["live"])),
            Column("Live bytes", lambda r: _number(r["live_bytes"])),
            Column("Requested", lambda r: _number(r["live_bytes_requested"]), 3),
            *live,
            Column("Hit", lambda r: _number(r["hits"]), 4),
        ]
    else:
        columns = [
            Column("Total_alloc/Per", lambda r: _per(r["bytes_alloc"], r["hits"])),
            Column("Total_req/Per", lambda r: _per(r["bytes_req"], r["hits"]), 3),
            Column("Hit", lambda r: _number(r["hits"])),
            Column("Ping-pong", lambda r: _number(r["pingpong"]), 1),
            Column("Frag", lambda r: f"{r['frag_percent']:.3f}%"),
            Column("Waste", lambda r: _number(r["waste_bytes"]), 4),
            Column("Live", lambda r: _number(r["live"])),
            Column("Live bytes", lambda r: _number(r["live_bytes"]), 2),
            Column("Lifetime" + unit, lambda r: duration(r["lifetime_mean"]), 5),
        ]
        if result.summary.failed:
            columns.append(Column("Failed", lambda r: _number(r["failed"])))
    if result.by == "ptr":
        columns.append(Column("Last callsite", lambda r: printable(r["last_call_site"]), 6))
    return columns


def _number(value: int) -> str:
    return f"{value:,}"


def _per(total: int, hits: int) -> str:
    return f"{total:,}/{total // hits if hits else 0:<6,}"


def _duration(clock: str) -> Callable[[float | None], str]:
    """Times for people: a count of events, or the unit that leaves one to three digits before the point."""

    def text(value: float | None) -> str:
        if value is None:
            return "-"
        if clock == "events":
            return f"{value:,.0f}"
        for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
            if value >= size:
                return f"{value / size:.3g} {unit}" if value < 1000 * size else f"{value / size:,.0f} {unit}"
        return f"{value:.0f} ns"

    return text


def _slab_summary(result: StatResult) -> Iterator[tuple[str, str, str]]:
    s = result.summary
    yield "Bytes requested", _number(s.bytes_requested), f"in {s.allocations:,} allocations"
    yield "Bytes allocated", _number(s.bytes_allocated), ""
    yield "Bytes wasted", _number(s.waste_bytes), f"internal fragmentation {s.frag_percent:.6f}%"
    yield "Bytes freed", _number(s.bytes_freed), f"by {s.frees_matched:,} frees of these objects" + (", sizes of others unknown" if s.frees_unmatched else "")
    yield "Live at the end", _number(s.live_bytes), f"in {s.live:,} objects allocated here and not freed by a recorded event"
    if s.reused:
        yield "Freed silently", _number(s.reused_bytes), f"in {s.reused:,} objects: no free recorded, but their addresses were handed out again (bulk, RCU)"
    if s.net_bytes is None:
        other = f", and {s.live:,} may have been freed by tasks that were not recorded" if s.tasks_only and s.live else ""
        freed = f"{s.frees_unmatched + s.frees_of_earlier:,} frees are of objects allocated elsewhere, {s.reused:,} objects were freed silently{other}"
        yield "Net", "unknown", freed
    else:
        yield "Net", _number(s.net_bytes), "every recorded free has its allocation; silent ones would show here as live"
    if s.frees_of_earlier:
        yield "Frees of earlier objects", _number(s.frees_of_earlier), "allocated in the recording, but before --time"
    if s.frees_unmatched:
        again = f"; {s.frees_unmatched_again:,} of them freed twice in a row: allocated silently in between" if s.frees_unmatched_again else ""
        yield "Unmatched frees", _number(s.frees_unmatched), f"their allocation is not in the recording{again}"
    yield "Cross-CPU frees", _number(s.cross_cpu_frees), f"of {s.frees_matched:,}"
    if s.failed:
        yield "Failed allocations", _number(s.failed), "answered with NULL; not counted above"
    if s.zero_size:
        yield "Of no bytes", _number(s.zero_size), "allocations of size 0 (ZERO_SIZE_PTR); not counted above"
    if s.frees_of_null or s.frees_of_zero_size:
        yield "Frees of nothing", _number(s.frees_of_null + s.frees_of_zero_size), "kfree(NULL) and kfree(ZERO_SIZE_PTR)"
    if s.bulk_allocations or s.bulk_frees:
        yield "Bulk", _number(s.bulk_allocations + s.bulk_frees), f"{s.bulk_allocations:,} allocated and {s.bulk_frees:,} freed, which no tracepoint tells"


def _page_summary(result: StatResult) -> Iterator[tuple[str, str, str]]:
    s = result.summary
    yield "Requests", _number(s.requests), f"{s.pages:,} pages, {s.bytes:,} bytes"
    yield "Failed requests", _number(s.failed), ""
    yield "Frees", _number(s.free_requests), f"{s.pages_freed + s.pages_freed_earlier + s.pages_freed_unmatched:,} pages"
    yield "Pages freed", _number(s.pages_freed), "allocated in the recording"
    if s.pages_freed_earlier:
        yield "Pages freed of earlier", _number(s.pages_freed_earlier), "allocated in the recording, but before --time"
    if s.pages_freed_unmatched:
        yield "Pages freed unmatched", _number(s.pages_freed_unmatched), "their allocation is not in the recording: older, or by the silent bulk allocator"
    if s.pages_reused:
        yield "Pages freed silently", _number(s.pages_reused), "no free recorded, but handed out again"
    yield "Live pages", _number(s.pages_live), f"{s.live_bytes:,} bytes allocated here and not freed by a recorded event"
    why = "some frees and allocations have no partner" + (", and only some tasks were recorded" if s.tasks_only else "")
    yield "Net bytes", "unknown" if s.net_bytes is None else _number(s.net_bytes), why if s.net_bytes is None else ""


def _grid(rows: Iterator[tuple[str, str, str]]) -> RenderableType:
    from rich.table import Table

    shown = Table.grid(padding=(0, 2))
    shown.add_column(no_wrap=True)
    shown.add_column(justify="right", no_wrap=True)
    shown.add_column(overflow="fold")
    for row in rows:
        shown.add_row(*row)
    return shown


def _orders(orders: dict[int, dict[str, int]]) -> RenderableType:
    """Requests by order and migrate type."""
    from rich.table import Table

    kinds = list(dict.fromkeys(["Unmovable", "Movable", "Reclaimable", *(kind for counts in orders.values() for kind in counts)]))
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("Order", *kinds):
        shown.add_column(name, justify="right")
    for order, counts in orders.items():
        shown.add_row(str(order), *(_number(counts[kind]) if kind in counts else "." for kind in kinds))
    return shown
