"""Reads the kernel's trace text: tracefs ``trace`` and ``trace_pipe``, and what ``trace-cmd report`` makes of a trace.dat.

All kernels since 2.6.31 print ``comm-pid [cpu] flags time: event: name=value ...`` with variations: no flags before 3.2, a ``(tgid)``
column on demand, page frame numbers in decimal until 5.x, call sites as plain hex until 5.15 and as ``symbol+0x1/0x2`` since, pointers hashed
since 4.15. Call chains below mm_page_alloc say who asked for the page. Whole columns are taken apart at once with polars, `BLOCK` bytes of text at a time.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import polars as pl

from mmtwin.errors import TraceError
from mmtwin.recording.model import EVENTS_SCHEMA, KINDS, Provenance, Recording
from mmtwin.recording.readers.gfp_text import gfp_from_names
from mmtwin.recording.readers.page_callers import is_allocator

BLOCK = 1 << 24
LONGEST_LINE = 1 << 20
"""A text without a line end in so many bytes is no trace."""

ALIASES = {"mm_page_free_direct": "mm_page_free", "mm_pagevec_free": "mm_page_free_batched"}
"""Names of events before Linux 3.3."""
HEADER = (
    r"^[ \t]*[^ \t].*?[- \t][ \t]*(?P<pid>[0-9]+)[ \t]+"  # the command may hold anything, also blanks, brackets and dashes
    r"(?:\([ \t]*[-0-9]+\)[ \t]+)?"  # option record-tgid
    r"\[(?P<cpu>[0-9]+)\][ \t]+"
    r"(?:(?P<flags>[^ \t:]+)[ \t]+)?"  # option irq-info
    r"(?P<time>[0-9]+(?:\.[0-9]+)?):[ \t]+"
    r"(?:(?:kmem:|pagemap:)?(?P<event>[0-9A-Za-z_]+):)?(?P<payload>.*)$"
)
"""ASCII classes and few counted repetitions: that makes it half as fast again."""
NUMBER = r"(-?\d{1,18}|0x[0-9a-fA-F]{1,16})\b"
SITE = r"(\S+)"
POINTER = r"\s*(\S+)"
FLAGS = r"(\S*)"

FIELDS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "mm_page_alloc": {"pfn": ("pfn", NUMBER), "order": ("order", NUMBER), "migratetype": ("migratetype", NUMBER), "gfp": ("gfp_flags", FLAGS)},
    "mm_page_free": {"pfn": ("pfn", NUMBER), "order": ("order", NUMBER)},
    "mm_page_free_batched": {"pfn": ("pfn", NUMBER)},
    "mm_page_alloc_zone_locked": {
        "pfn": ("pfn", NUMBER), "order": ("order", NUMBER), "migratetype": ("migratetype", NUMBER), "arg?": ("percpu_refill", NUMBER),
    },
    "mm_page_pcpu_drain": {"pfn": ("pfn", NUMBER), "order": ("order", NUMBER), "migratetype": ("migratetype", NUMBER)},
    "mm_page_alloc_extfrag": {
        "pfn": ("pfn", NUMBER), "order": ("alloc_order", NUMBER), "migratetype": ("alloc_migratetype", NUMBER), "arg": ("fallback_order", NUMBER),
        "bytes_req": ("fallback_migratetype", NUMBER), "bytes_alloc": ("change_ownership", NUMBER),
    },
    "mm_lru_insertion": {"pfn": ("pfn", NUMBER), "arg": ("lru", NUMBER)},
    "kmalloc": {
        "call_site": ("call_site", SITE), "ptr": ("ptr", POINTER), "bytes_req": ("bytes_req", NUMBER), "bytes_alloc": ("bytes_alloc", NUMBER),
        "gfp": ("gfp_flags", FLAGS), "node?": ("node", NUMBER),
    },
    "kfree": {"call_site": ("call_site", SITE), "ptr": ("ptr", POINTER)},
    "kmem_cache_free": {"call_site": ("call_site", SITE), "ptr": ("ptr", POINTER), "name?": ("name", r"(.*?)\s*(?:bytes_req=.*)?$")},
}  # fmt: skip
"""Per kind: column, field of the text and its pattern; the columns are those of recording/convert.py. A ``?`` marks fields that not every kernel prints."""
CACHE_ALLOC = {**FIELDS["kmalloc"], "arg?": ("accounted", r"(true|false)"), "name?": FIELDS["kmem_cache_free"]["name?"]}
EVERY = {**FIELDS, "kmalloc_node": FIELDS["kmalloc"], "kmem_cache_alloc": CACHE_ALLOC, "kmem_cache_alloc_node": CACHE_ALLOC}

LOST = re.compile(r"^\s*CPU:\s*(\d+) \[(?:LOST (\d+) EVENTS|LOST EVENTS|(\d+) EVENTS DROPPED|EVENTS DROPPED)\]\s*$")
IN_BUFFER = re.compile(r"^#\s*entries-in-buffer/entries-written:\s*(\d{1,18})/(\d{1,18})(?:\s+#P:(\d{1,4}))?")
CPUS = re.compile(r"^cpus=(\d{1,4})\s*$")
OTHER = re.compile(r"^(?:##### CPU \d+ buffer started ####.*|CPU \d+ is empty|version = \d+)\s*$")
"""Lines that say nothing about events: buffer starts, trace-cmd's preamble."""
FRAME = (
    r"^(?:[ \t]+(?P<address>[0-9a-f]{1,16})[ ]+(?P<symbol>\S.*?)[ ]+\((?P<dso>[^()]*(?:\([^()]*\))?)\)"
    r"|[ \t]*=>[ ]*(?P<function>[^ \t].*?)(?:[ ]+[<(][0-9a-f]+[>)])?)[ \t]*$"
)
"""A frame of a call chain, below the line of its event: as perf script prints it, or as tracefs does (option stacktrace), or trace-cmd report (record -T)."""
STACK = pl.col("payload").is_in(["<stack trace>", "<stack trace >"]) | (pl.col("event") == "kernel_stack").fill_null(False)
"""The line of a stack itself, which belongs to the event before it."""
USER_PARTS = ("[vdso]", "[vsyscall]", "[stack]", "[heap]", "[unknown]")
KERNEL_PART = r"^\[|\.ko(?:\.\w+)?$"
FOREIGN = {
    b"\x17\x08\x44tracing": "a binary trace.dat, which is no text; mmtwin import reads it as it is",
    b"PERFILE2": "a perf.data file, which is no text; mmtwin import reads it as it is",
    b"PK\x03\x04": "a ZIP archive; a recording (.mmrec) needs no import",
}
HASHED_BITS = 32
LOWEST_KERNEL_ADDRESS = 0x4000_0000
"""The lowest PAGE_OFFSET that a 32-bit kernel can be configured with (VMSPLIT_1G)."""


def read(path: str | os.PathLike[str], *, strict: bool = False) -> Recording:
    """Reads trace text, also compressed with gzip, as a recording without snapshots.

    Times are nanoseconds, or plain counts if the text has no decimal point (clock "counter"). Call sites printed as symbols get the numbers
    1, 2, 3 and so on; ``provenance.procfs["call_sites"]`` lists number and symbol. What the text lacks is told in ``provenance.notes``.

    :param strict: a malformed line is an error; otherwise it is skipped, counted and noted.
    :raises TraceError: the file cannot be read, is no trace or has no allocator event; with `strict`, the first malformed line.
    """
    where = Path(path)
    text = _Text(strict)
    try:
        with open(where, "rb") as file:
            for first, lines in _blocks(file):
                text.add(lines, first)
        return text.recording(where.name)
    except TraceError as error:
        raise TraceError(f"{where}: {error}") from error.__cause__
    except (OSError, EOFError, zlib.error, ValueError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        raise TraceError(f"{where}: cannot be read: {reason}") from error


def _blocks(file: io.BufferedReader) -> Iterator[tuple[int, list[str]]]:
    """Lines in blocks, with the number of each block's first line."""
    start = file.peek(2)[:2]
    if start == b"\x1f\x8b":
        file = cast(io.BufferedReader, gzip.GzipFile(fileobj=file))
    number, rest = 1, b""
    while True:
        data = file.read(BLOCK)
        if number == 1 and not rest:
            for magic, what in FOREIGN.items():
                if data.startswith(magic):
                    raise TraceError(what)
            if b"\0" in data[:4096]:
                raise TraceError("binary data; expected the text of tracefs' trace file or of trace-cmd report")
        block, end, rest = (rest + data).rpartition(b"\n") if data else (rest, b"", b"")
        if len(rest) > LONGEST_LINE:
            raise TraceError(f"no line end in {LONGEST_LINE} bytes; expected the text of tracefs' trace file or of trace-cmd report")
        if block or end:
            lines = block.decode("utf-8", errors="replace").split("\n")
            yield number, lines
            number += len(lines)
        if not data:
            return


@dataclass
class _Text:
    """What has been read so far."""

    strict: bool
    tables: list[pl.DataFrame] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)  # events of other subsystems, by name
    malformed: int = 0
    first_malformed: str = ""
    is_trace: bool = False
    lost: int = 0
    lost_unknown: int = 0
    in_buffer: int = 0
    written: int = 0
    cpus: int = 1
    sites: dict[str, int] = field(default_factory=dict)
    in_task: dict[int, list[int]] = field(default_factory=dict)  # by call site: requests in task context, atomic ones, atomic ones that may sleep
    depth_seen: bool = False
    gfp_numbers: bool = False
    unknown_gfp: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    without_text: int = 0  # events whose pointers were withheld: (____ptrval____)
    pointers: int = 0
    hashed: int = 0
    low: int = 0
    last_event: int = 0  # number of the last event's line, to which the frames below it belong
    chains: list[pl.DataFrame] = field(default_factory=list)

    def add(self, lines: list[str], first: int) -> None:
        """One block of lines, the first of which has the number `first`."""
        table = pl.DataFrame({"line": pl.Series(lines, dtype=pl.String)}).with_row_index("number", first).filter(pl.col("line").str.contains(r"\S"))
        is_comment = pl.col("line").str.starts_with("#")
        for line in table.filter(is_comment)["line"]:
            self._comment(line)
        table = table.filter(~is_comment)
        # unnest as a method of the table: as an expression it would search once for each group
        table = table.with_columns(pl.col("line").str.extract_groups(HEADER).alias("groups")).unnest("groups")
        self._frames(table)
        for number, line in table.filter(pl.col("payload").is_null()).filter(~pl.col("line").str.contains(FRAME)).select("number", "line").iter_rows():
            self._odd(number, line)
        table = table.filter(pl.col("payload").is_not_null() & ~STACK)
        if not len(table):
            return
        self.is_trace = True
        table = table.with_columns(pl.col("event").replace(ALIASES))
        known = pl.col("event").is_in(list(EVERY)).fill_null(False)
        for event, count in table.filter(~known)["event"].fill_null("(functions and marks)").value_counts().iter_rows():
            self.others[event] += count
        parts = []
        for (event,), part in table.filter(known).group_by("event", maintain_order=True):
            parts.append(self._events(str(event), part))
        if parts:
            self.tables.append(pl.concat(parts).sort("number"))

    def _frames(self, table: pl.DataFrame) -> None:
        """Remembers, for each event with a call chain below it, the first frames of this block that are not the page allocator's."""
        rows = table.with_columns(pl.col("number").cast(pl.Int64))
        events = rows.filter(pl.col("payload").is_not_null())
        same = (pl.col("pid") == pl.col("pid").shift(1)).fill_null(len(events) == 0)
        own = pl.when(~STACK).then("number").when(same).then(pl.col("number").shift(1)).otherwise(-1)
        owners = events.select("number", own.alias("owner"))
        frames = rows.filter(pl.col("payload").is_null()).select("number", pl.col("line").str.extract_groups(FRAME).alias("groups")).unnest("groups")
        frames = frames.filter(pl.col("address").is_not_null() | pl.col("function").is_not_null())
        if len(frames):
            frames = frames.join_asof(owners, on="number", strategy="backward").with_columns(pl.col("owner").fill_null(self.last_event))
            in_kernel = pl.col("function").is_not_null() | (pl.col("dso").str.contains(KERNEL_PART) & ~pl.col("dso").is_in(USER_PARTS))
            unknown = pl.when(pl.col("symbol") == "[unknown]").then(pl.concat_str(pl.lit("0x"), "address")).otherwise("symbol")
            frames = frames.filter(in_kernel & (pl.col("owner") > 0) & (pl.col("function") != "0x0").fill_null(True)).select(
                "number", "owner", pl.coalesce("function", unknown).alias("site")
            )
            own_functions = [site for site in frames["site"].unique() if is_allocator(site)]
            self.chains.append(frames.filter(~pl.col("site").is_in(own_functions)).unique("owner", keep="first", maintain_order=True))
        if len(owners):
            self.last_event = int(owners["owner"][-1])

    def _page_sites(self, table: pl.DataFrame) -> pl.DataFrame:
        """The call sites of page requests, by their call chains."""
        found = pl.concat(self.chains).sort("number").unique("owner", keep="first", maintain_order=True)
        numbers = {site: self.sites.setdefault(site, len(self.sites) + 1) for site in self._page_owners(table, found)["site"].unique(maintain_order=True)}
        found = found.with_columns(pl.col("site").replace_strict(numbers, default=0, return_dtype=pl.Int64).alias("chain"))
        table = table.with_columns(pl.col("number").cast(pl.Int64)).join(found.select("owner", "chain"), left_on="number", right_on="owner", how="left")
        is_page = pl.col("kind") == "mm_page_alloc"
        return table.with_columns(pl.when(is_page).then(pl.col("chain").fill_null(0)).otherwise("call_site").alias("call_site")).drop("chain").sort("number")

    @staticmethod
    def _page_owners(table: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
        pages = table.filter(pl.col("kind") == "mm_page_alloc").select(pl.col("number").cast(pl.Int64))
        return found.join(pages, left_on="owner", right_on="number", how="semi", maintain_order="left")

    def _comment(self, line: str) -> None:
        if line.startswith("# tracer:"):
            self.is_trace = True
        elif found := IN_BUFFER.match(line):
            self.in_buffer += int(found[1])
            self.written += int(found[2])
            self.cpus = max(self.cpus, int(found[3] or 1))

    def _odd(self, number: int, line: str) -> None:
        line = line[:1000]
        if found := LOST.match(line):
            self.is_trace = True
            self.lost += int(found[2] or found[3] or 1)
            self.lost_unknown += not (found[2] or found[3])
        elif found := CPUS.match(line):
            self.is_trace = True
            self.cpus = max(self.cpus, int(found[1]))
        elif not OTHER.match(line):
            self._bad(number, line)

    def _bad(self, number: int, line: str) -> None:
        shown = line.strip()[:80]
        if self.strict:
            raise TraceError(f"line {number} is malformed: {shown!r}; expected: comm-pid [cpu] flags time: event: name=value ...")
        if not self.malformed or number < int(self.first_malformed.split()[1]):
            self.first_malformed = f"line {number} {shown!r}"
        self.malformed += 1

    def _events(self, event: str, part: pl.DataFrame) -> pl.DataFrame:
        """The columns of all lines of one event."""
        payload = pl.col("payload")
        raw = {column: payload.str.extract(rf"(?:^|\s){name}={pattern}") for column, (name, pattern) in EVERY[event].items()}
        part = part.with_columns(**{f"raw {column}": expression for column, expression in raw.items()})
        values: dict[str, pl.Expr] = {"time": _time(pl.col("time")), "pid": _integer(pl.col("pid")), "cpu": _integer(pl.col("cpu"))}
        flags = pl.col("flags").fill_null("")
        # h, H: in a hard interrupt, z, Z: in an NMI, s: in a soft one; no other column of the flags has these letters
        values["context"] = pl.when(flags.str.contains("[hHzZ]")).then(2).when(flags.str.contains("s", literal=True)).then(1).otherwise(0)
        required = ["time", "pid", "cpu"]
        for marked in raw:
            column, source = marked.rstrip("?"), pl.col(f"raw {marked}")
            if column == "name":
                values[column] = pl.when(source != "").then(source)
            elif column == "gfp":
                values[column] = self._translate(part[f"raw {marked}"], self._gfp)
            elif column == "call_site":
                values[column] = self._translate(part[f"raw {marked}"], self._call_site)
            elif column == "ptr":
                values[column] = self._pointers(part[f"raw {marked}"])
            elif marked == "arg?" and event.startswith("kmem_cache"):
                values[column] = (source == "true").fill_null(False).cast(pl.Int64)
            else:
                values[column] = _integer(source)
                if marked.endswith("?"):
                    values[column] = values[column].fill_null(0)
            if not marked.endswith("?"):
                required.append(column)
        if event == "mm_page_alloc":  # a failed request prints page frame 0, which is never handed out
            values["pfn"] = pl.when(values["pfn"] <= 0).then(-1).otherwise(values["pfn"])
        absent = {"pfn": -1, "order": -1, "migratetype": -1, "name": None}
        columns = [pl.col("number"), pl.col("line"), flags.alias("flags")]
        for column, dtype in EVENTS_SCHEMA.items():
            if column == "kind":
                columns.append(pl.lit(event).cast(pl.Enum(KINDS)).alias(column))
            else:
                columns.append(values.get(column, pl.lit(absent.get(column, 0))).cast(dtype, strict=False).alias(column))
        table = part.select(columns)
        good = pl.all_horizontal([pl.col(c).is_not_null() for c in EVENTS_SCHEMA if c != "name"])
        for column, high in (
            ("pfn", (1 << 52) - 1),
            ("order", 63),
            ("migratetype", 15),
            ("bytes_req", (1 << 62) - 1),
            ("bytes_alloc", (1 << 62) - 1),
            ("cpu", 8191),
        ):
            may_lack = column not in required or (event == "mm_page_alloc" and column == "pfn")
            good = good & pl.col(column).is_between(-1 if may_lack else 0, high)
        for number, line in table.filter(~good).sort("number").select("number", "line").iter_rows():
            self._bad(number, line)
        table = table.filter(good)
        if "bytes_alloc" in raw:
            self._atomic(table)
        return table.drop("line", "flags")

    def _atomic(self, table: pl.DataFrame) -> None:
        """Counts the requests of tasks, and which of them came with preemption, interrupts or bottom halves off: no column of a recording says so.

        The flags are irqs-off (d; b: bottom halves; D: both), need-resched, the context, and the preemption depth as a hexadecimal digit.
        """
        some = table.filter((pl.col("context") == 0) & (pl.col("flags").str.len_bytes() >= 4))
        off = pl.col("flags").str.contains("^[dDbB]")
        deep = pl.col("flags").str.contains("^...[1-9a-f]")
        counted = some.group_by("call_site").agg(
            pl.len(), (off | deep).sum().alias("atomic"), ((off | deep) & (pl.col("gfp") & 0x400 != 0)).sum().alias("may_sleep"), deep.any().alias("deep")
        )
        for site, requests, atomic, may_sleep, seen in counted.iter_rows():
            sums = self.in_task.setdefault(site, [0, 0, 0])
            for at, number in enumerate((requests, atomic, may_sleep)):
                sums[at] += number
            self.depth_seen |= seen

    def _translate(self, texts: pl.Series, rule: Callable[[str], int | None]) -> pl.Expr:
        """Few different texts occur, so each is looked at once."""
        unique = texts.drop_nulls().unique(maintain_order=True)
        known = pl.DataFrame({"text": unique, "value": pl.Series([rule(t) for t in unique], dtype=pl.Int64)})
        found = pl.DataFrame({"text": texts}).join(known, on="text", how="left", maintain_order="left")["value"]
        return pl.lit(found)

    def _gfp(self, text: str) -> int | None:
        """The flags; names that a newer kernel has added are left out and noted."""
        words = text.split("|")
        self.gfp_numbers = self.gfp_numbers or text[:1].isdigit()
        value = 0
        for word in words:
            try:
                value |= gfp_from_names(word)
            except ValueError:
                if self.strict or not re.fullmatch(r"_*GFP_\w+", word):
                    return None
                self.unknown_gfp.add(word)
        return value

    def _call_site(self, text: str) -> int | None:
        """An address, or the number given to a symbol."""
        if re.fullmatch(r"(?:0x)?[0-9a-fA-F]{1,16}", text):
            value = int(text, 16)
            return value - (1 << 64) if value >> 63 else value
        if text.startswith("("):  # (null), (____ptrval____)
            return 0
        return self.sites.setdefault(text, len(self.sites) + 1)

    def _pointers(self, texts: pl.Series) -> pl.Expr:
        """Addresses; (null) and withheld ones are 0. Counts what does not look like a kernel address."""
        digits = texts.str.strip_prefix("0x")
        value = digits.str.to_integer(base=16, dtype=pl.UInt64, strict=False)
        withheld = texts.str.starts_with("(____")
        self.without_text += int(withheld.sum())
        self.pointers += int((value > 0).sum())
        wide = digits.str.len_bytes() == 16  # as 64-bit kernels print hashed pointers
        self.hashed += int(((value > 0) & (value < 1 << HASHED_BITS) & wide).sum())
        self.low += int(((value > 0) & (value < LOWEST_KERNEL_ADDRESS)).sum())
        nothing = texts.str.starts_with("(")
        return pl.lit(value.reinterpret(signed=True).set(nothing.fill_null(False), 0))

    def recording(self, name: str) -> Recording:
        """:raises TraceError: nothing in the text was an allocator event."""
        events = sum(map(len, self.tables))
        if not events and not self.is_trace:
            raise TraceError("no trace line in it; expected the text of tracefs' trace file or of trace-cmd report: comm-pid [cpu] flags time: event: ...")
        if not events:
            seen = f"{sum(self.others.values())} other events" if self.others else "no events"
            skipped = f", {self.malformed} malformed lines (first: {self.first_malformed})" if self.malformed else ""
            raise TraceError(f"no allocator events, but {seen}{skipped}; record with the kmem events on: echo 1 > /sys/kernel/tracing/events/kmem/enable")
        table = pl.concat(self.tables)
        table = (self._page_sites(table) if self.chains else table).drop("number")
        highest = table["cpu"].max()
        assert isinstance(highest, int)
        lost = max(self.lost, self.written - self.in_buffer)
        self._describe(events, lost)
        procfs = {"call_sites": "".join(f"{number} {symbol}\n" for symbol, number in self.sites.items())} if self.sites else {}
        cpus = min(max(self.cpus, highest + 1), 8192)
        if self.depth_seen and any(requests > atomic for requests, atomic, _ in self.in_task.values()):  # else this kernel does not count, or counts the tracer
            procfs["in_task"] = "".join(f"{site} {' '.join(map(str, sums))}\n" for site, sums in self.in_task.items())
        return Recording(Provenance(how="ftrace", workload_name=name, cpus=cpus, lost_events=lost, procfs=procfs, notes=self.notes), None, None, table)

    def _describe(self, events: int, lost: int) -> None:
        note = self.notes.append
        if lost:
            unknown = f"; gaps of unknown size ({self.lost_unknown}) count as one event each" if self.lost_unknown else ""
            note(f"the trace buffer lost {lost} events: counts are too low, and pairs of allocation and free are incomplete after the first loss{unknown}")
        lines = events + sum(self.others.values())
        if self.in_buffer > lines + self.malformed:
            note(f"the text has {lines} of the {self.in_buffer} events that its header names: it was cut or filtered")
        if self.malformed:
            note(f"{self.malformed} malformed lines skipped; first: {self.first_malformed}")
        if self.others:
            names = ", ".join(f"{n} ({c})" for n, c in self.others.most_common(5))
            note(f"{sum(self.others.values())} other events skipped: {names}")
        if self.without_text:
            note(f"{self.without_text} pointers were withheld, (____ptrval____): allocations cannot be paired with frees; trace with no_hash_pointers")
        if self.hashed or (self.pointers >= 20 and self.low * 20 > self.pointers):
            note("pointers are hashed: equal ones are still equal, so pairs hold, but an object's slab and page cannot be known; trace with no_hash_pointers")
        if self.sites:
            note(f"call sites are {len(self.sites)} symbols, numbered from 1 (procfs call_sites)")
        if self.unknown_gfp:
            note(f"unknown GFP flags left out: {', '.join(sorted(self.unknown_gfp)[:5])}")
        if self.gfp_numbers:
            note("gfp flags are printed as numbers; they are read as the bits of Linux 6.1, which older kernels number differently")


def _integer(text: pl.Expr) -> pl.Expr:
    """Decimal or 0x hex; all ones (no page) is -1."""
    digits = text.str.strip_prefix("0x").str.to_integer(base=16, dtype=pl.UInt64, strict=False).reinterpret(signed=True)
    return pl.when(text.str.starts_with("0x")).then(digits).otherwise(text.cast(pl.Int64, strict=False))


def _time(text: pl.Expr) -> pl.Expr:
    """Nanoseconds of seconds with a fraction; a plain number stays as it is."""
    parts = text.str.splitn(".", 2).struct
    whole, fraction = parts.field("field_0").cast(pl.Int64, strict=False), parts.field("field_1")
    nanoseconds = fraction.str.pad_end(9, "0").cast(pl.Int64, strict=False)
    seconds = pl.when(whole < 9_000_000_000).then(whole)
    return pl.when(fraction.is_null()).then(whole).otherwise(seconds * 1_000_000_000 + nanoseconds)
