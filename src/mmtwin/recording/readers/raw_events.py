"""Binary trace records as columns of the events table, by the formats that came with them; whole kinds of events at once.

The layout of a record differs between kernels (fields come and go, ``__data_loc`` strings, padding), so nothing here knows an offset: the recorded
kernel's own ``format`` files say where a field is and how wide. Only the names of events and fields are known (recording/convert.py, `COLUMNS`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.recording.convert import COLUMNS, EventFormat, _context
from mmtwin.recording.model import EVENTS_SCHEMA, KIND, KINDS
from mmtwin.recording.readers.binary import Bytes, Numbers, Texts
from mmtwin.recording.readers.ftrace_text import ALIASES, EVERY
from mmtwin.recording.readers.gfp_table import flag_names, parse_table
from mmtwin.recording.readers.gfp_text import gfp_from_names

Int = npt.NDArray[np.int64]

ABSENT = {"pfn": -1, "order": -1, "migratetype": -1}
OPTIONAL = ("node", "accounted", "name", "percpu_refill")
"""Fields that not every kernel has; an event without one of the others cannot be read."""
NAME = {"name": "name"}
FIELDS: Mapping[str, Mapping[str, str]] = {
    kind: {**COLUMNS["kmalloc" if kind == "kmalloc_node" else kind.removesuffix("_node")], **(NAME if kind.startswith("kmem_cache") else {})} for kind in EVERY
}
"""For each kind that is read: field of the record and column of the table."""
LONGEST_NAME = 256
RANGES = {
    "pfn": (-1, (1 << 52) - 1), "order": (-1, 63), "migratetype": (-1, 15), "cpu": (0, 8191), "bytes_req": (0, (1 << 62) - 1), "bytes_alloc": (0, (1 << 62) - 1),
}  # fmt: skip
"""What the columns can hold in a trace that is not damaged."""


@dataclass
class RawEvents:
    """The table as it grows: each row has its place from the beginning, so that nothing is sorted twice.

    :param rows: how many there will be at most; rows that nothing fills are left out.
    """

    rows: int
    columns: dict[str, npt.NDArray[np.signedinteger[Any]]] = field(default_factory=dict)
    kinds: npt.NDArray[np.uint8] = field(init=False)
    names: Texts = field(default_factory=Texts)
    name_of: npt.NDArray[np.int32] | None = None
    gfp_of: dict[int, Numbers] = field(default_factory=dict)
    unknown_gfp: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kinds = np.full(self.rows, 255, dtype=np.uint8)

    def put(self, column: str, rows: Int, values: Int | int) -> None:
        """Writes a column of some rows."""
        if column not in self.columns:
            kind = np.dtype(str(EVENTS_SCHEMA[column]).lower())
            self.columns[column] = np.full(self.rows, ABSENT.get(column, 0), dtype=kind)
        target = self.columns[column]
        limits = np.iinfo(target.dtype)
        target[rows] = values if target.itemsize == 8 else np.clip(values, limits.min, limits.max)

    def add(self, form: EventFormat, text: str, data: Bytes, rows: Int, at: Int, size: Int) -> int:
        """Events of one kind.

        :param form: the event's format, `text` the file it is from.
        :param rows: their places in the table.
        :param at: where each record begins in `data`; `size` is how long it is.
        :returns: how many were too short for their format and were left out.
        """
        kind = ALIASES.get(form.name, form.name)
        wanted = {source: column for source, column in FIELDS[kind].items() if source in form.fields}
        if missing := [source for source in FIELDS[kind] if source not in form.fields and source not in OPTIONAL]:
            self.notes.append(f"{len(rows):,} {kind} events skipped: their format has no {missing[0]} (a kernel before 4.0?); turn them into text for import")
            return 0
        needed = max([form.fields[source].offset + form.fields[source].size for source in wanted] + [8])
        good = size >= needed
        short = int((~good).sum())
        if short:
            rows, at, size = rows[good], at[good], size[good]
        if not len(rows):
            return short
        self.kinds[rows] = KIND[kind]
        if "common_flags" in form.fields:
            self.put("context", rows, _context(data.ints(at + form.fields["common_flags"].offset, 1)).astype(np.int64))
        for source, column in wanted.items():
            place = form.fields[source]
            value = data.ints(at + place.offset, place.size, place.signed)
            if column == "name":
                offset, length = value & 0xFFFF, value >> 16 & 0xFFFF
                inside = (offset + length <= size) & (length <= LONGEST_NAME)
                length = np.where(inside, length, 0)
                if self.name_of is None:
                    self.name_of = np.full(self.rows, -1, dtype=np.int32)
                self.name_of[rows] = data.texts(at + np.where(inside, offset, 0), length, self.names)
            elif column == "gfp":
                self.put(column, rows, self._gfp(value & 0xFFFF_FFFF_FFFF, text, form.id))
            else:
                self.put(column, rows, value)
        return short

    def _gfp(self, values: Int, text: str, number: int) -> Int:
        """The flags with mmtwin's bits (those of Linux 6.1), by the names that this kernel's table gives them."""
        known = self.gfp_of.setdefault(number, Numbers())
        bits, missing = known.find(values)
        if len(missing):
            table = parse_table(text)
            for value in np.unique(values[missing]).tolist():
                known.set(value, self._bits(flag_names(value, table)) if table else value)
            bits, _ = known.find(values)
        return bits

    def _bits(self, names: str) -> int:
        bits = 0
        for word in names.split("|"):
            try:
                bits |= gfp_from_names(word)
            except ValueError:
                self.unknown_gfp.add(word)
        return bits

    def impossible(self) -> int:
        """Takes out the events whose numbers cannot be, and says how many there were."""
        bad = np.zeros(self.rows, dtype=bool)
        for column, (low, high) in RANGES.items():
            if column in self.columns:
                bad |= (self.columns[column] < low) | (self.columns[column] > high)
        bad &= self.kinds != 255
        self.kinds[bad] = 255
        return int(bad.sum())

    def table(self) -> pl.DataFrame:
        """The events in the order of their rows."""
        kept = self.kinds != 255
        everything = bool(kept.all())
        count = self.rows if everything else int(kept.sum())
        name = pl.Series("name", [None], dtype=pl.String).extend_constant(None, max(count - 1, 0)).head(count)
        if self.name_of is not None:
            texts = pl.Series("name", [text or None for text in self.names.texts] + [None], dtype=pl.String)
            which = self.name_of if everything else self.name_of[kept]
            name = texts.gather(pl.Series(np.where(which < 0, len(texts) - 1, which)))
        series = []
        for column, dtype in EVENTS_SCHEMA.items():
            if column == "name":
                series.append(name)
            elif column == "kind":
                series.append(pl.Series("kind", self.kinds if everything else self.kinds[kept]).cat.to(pl.Enum(KINDS)))
            elif column in self.columns:
                array = self.columns[column]
                series.append(pl.Series(column, array if everything else array[kept]))
            else:
                series.append(pl.Series(column, np.full(count, ABSENT.get(column, 0), dtype=np.dtype(str(dtype).lower()))))
        return pl.DataFrame(series)


def skipped(lost: int, broken: int, others: Counter[str], unknown_gfp: set[str]) -> list[str]:
    """Notes on what of a file is not in the table."""
    notes = []
    if lost:
        notes.append(f"the trace buffer lost {lost:,} events: counts are too low, and pairs of allocation and free are incomplete after the first loss")
    if broken:
        notes.append(f"{broken:,} events skipped: shorter than their formats say, or with values that cannot be")
    if others:
        notes.append(f"{sum(others.values()):,} other events skipped: {', '.join(f'{n} ({c:,})' for n, c in others.most_common(5))}")
    if unknown_gfp:
        notes.append(f"unknown GFP flags left out: {', '.join(sorted(unknown_gfp)[:5])}")
    return notes
