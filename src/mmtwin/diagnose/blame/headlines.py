"""The answers in one sentence each: who, and how much."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from mmtwin.diagnose.blame.blame import Blame
from mmtwin.diagnose.blame.leaks import NEVER_FREED
from mmtwin.diagnose.explain.model import size

OLDER = "(before the recording)"


def headlines(result: Blame) -> Iterator[tuple[str, str]]:
    """Section and sentence, for each section asked for."""
    found = {"fragments": _fragments, "grows": _grows, "leaks": _leaks, "wastes": _wastes}
    for section in result.sections:
        yield section, found[section](result)


def _fragments(result: Blame) -> str:
    f = result.fragments
    assert f is not None
    events = f"{f.events:,} fallback event{'s' * (f.events != 1)}"
    if not len(f.samples):
        first = f", most by {f.fallbacks['label'][0]} ({f.fallbacks['wanted'][0]} from {f.fallbacks['got'][0]})" if f.events else ""
        return f"{events}{first}; where pages lie is not known"
    last = f.samples[-1]
    text = f"{last.pinned:,} unmovable pages pin {last.mixed:,} of {last.blocks:,} movable pageblocks"
    known = f.rows.filter((pl.col("label") != OLDER) & (pl.col("pages") > 0))
    older = last.pinned - int(known["pages"].sum())
    text += f", {older:,} of them from before the recording (the kernel keeps {f.reserved:,} pages for itself since boot)" if older else ""
    if len(known):
        text += f"; since then most by {known['label'][0]}: {known['pages'][0]:,} in {known['blocks'][0]:,} block{'s' * (known['blocks'][0] != 1)}"
    return f"{text}; {events}"


def _grows(result: Blame) -> str:
    best = None
    for one in result.grows:
        rising = one.rows.filter(pl.col("slope") > 0)
        if len(rising) and (best is None or rising["slope"][0] > best[1]["slope"][0]) and (best is None or one.what != "pages"):
            best = one.what, rising
    if best is None:
        return "nobody in the recording's second half" if result.grows else "not known"
    row = best[1].row(0, named=True)
    gained = row["live_end"] - row["live_start"]
    change = f"+{size(gained)}" if gained >= 0 else f"-{size(-gained)}"
    return f"{row['label']}: {change} to {size(row['live_end'])} live, of late {size(round(row['slope']))} per {result.steps.unit}"


def _leaks(result: Blame) -> str:
    for one in result.leaks:
        suspects = one.rows.filter(pl.col("overdue_bytes") > 0)
        if len(suspects):
            row = suspects.row(0, named=True)
            thing = "object" if one.what == "objects" else "block"
            count = f"{row['overdue']:,} {thing}{'s' * (row['overdue'] != 1)}, {size(row['overdue_bytes'])}"
            why = "and it has freed none" if row["verdict"] == NEVER_FREED else f"older than any of the {row['freed']:,} that it has freed"
            return f"perhaps {row['label']}: {count} live, {why}"
    return "nobody: nothing live is older than what its site has freed" if result.leaks else "not known"


def _wastes(result: Blame) -> str:
    w = result.wastes
    assert w is not None
    said = []
    if w.slabs is not None and len(w.slabs):
        half, total = int(w.slabs["half_empty_bytes"].sum()), int(w.slabs["bytes"].sum())
        row = w.slabs.row(0, named=True)
        said.append(
            f"slabs that are at most half used hold {size(half)} of {size(total)}"
            + (f", most in {row['cache']} ({size(row['half_empty_bytes'])})" if half else "")
        )
    if w.classes is not None and len(w.classes):
        said.append(f"{size(int(w.classes['live_waste_bytes'].sum()))} of live objects nobody asked for, most in {w.classes['label'][0]}")
    if w.page_tables is not None and w.page_tables["pages"]:
        said.append(f"{size(w.page_tables['bytes'])} of page tables")
    return "; ".join(said) or "not known"
