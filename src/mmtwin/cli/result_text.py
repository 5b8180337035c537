"""A replay's result as text: heading, table, differences, verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from mmtwin.cli.terminal import printable
from mmtwin.units import format_size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mmtwin.recording.model import Provenance
    from mmtwin.replay.check import Result

INFERRED = {
    "late_allocations": "printed after something that came later; put where they happened",
    "unplaced_allocations": "their place is not known; taken where they were printed",
    "silent_bulk_pages": "pages of bulk requests, which no event announces; predicted",
    "contended_lists": "found the CPU's list locked, so went straight to the buddy lists",
    "retyped_frees": "freed with a type the kernel had read before the pageblock changed it",
    "isolated_blocks": "free blocks that compaction took",
    "turned_lists": "free lists that compaction turned to begin elsewhere",
    "highatomic_moves": "pageblocks reserved for or released from urgent requests",
    "zones_learnt": "the watermark test says different zones at two moments; the kernel's zone decided",
    "limits_learnt": "kswapd was just switching the limit of a per-CPU list; the kernel's free said which held",
    "ownership_learnt": "reclaim held pages off the LRU while a pageblock was stolen; the event said whether its type changed",
    "decisions_learnt": "another CPU or an interrupt changed the zone just then; the kernel's decision stands",
    "first_of_fresh_slabs": "first objects of new slabs: where the kernel began in the cache's permutation is its random number, and is learnt",
    "silent_slab_objects": "objects of bulk calls, which no event announces; predicted, and compared with what a probe saw",
    "slab_failed_exchanges": "marks of an exchange that failed and was done again",
    "vmap_migrated": "tasks moved to another CPU between asking for an area and looking into its pool; the kernel's node decided",
    "vmap_pool_paths": "pools that another CPU filled or emptied just then; whether the kernel looked into them is in the marks",
    "reserves_learnt": "no zone seemed above its watermark, but the kernel had one; answered without watermarks",
}
"""What each kind of inferred event is, in a few words."""
DECISIONS = {
    "walks": "watermark tests passed",
    "slow_paths": "requests to the slow path",
    "wakeups": "kswapd woken",
    "direct_reclaims": "direct reclaim begun",
    "compactions": "direct compaction tried",
    "failures": "requests refused",
    "oom_kills": "OOM kills",
}


def result_text(provenance: Provenance, result: Result) -> list[RenderableType]:
    """All of it, for `Terminal.show`."""
    shown: list[RenderableType] = [Text(machine(provenance), style="bold"), "", equality(result)]
    if result.decisions:
        shown += ["", Text("Decisions under memory pressure, at the same requests:"), decisions(result.decisions)]
    if result.decision_differences:
        shown += ["", Text(f"The first {len(result.decision_differences)} decisions that differ:"), _undecided(result.decision_differences)]
    if any(result.inferred.values()):
        shown += ["", Text("Inferred, as the events do not say it:"), _inferred(result)]
    if result.differences:
        shown += ["", Text(f"The first {len(result.differences)} differences:"), _differences(result.differences)]
    shown += [""] + [Text(f"WARNING: {text}", style="yellow") for text in warnings(result)]
    return [*shown, verdict(result)]


def machine(provenance: Provenance) -> str:
    """Kernel, memory, CPUs and workload in one line."""
    parts = [f"Linux {provenance.kernel_release}", f"{format_size(provenance.ram_bytes)} RAM", f"{provenance.cpus} CPU{'s' if provenance.cpus != 1 else ''}"]
    if provenance.workload_name:
        parts.append(f"workload {provenance.workload_name}")
    return printable(", ".join(parts))


def equality(result: Result) -> Table:
    """How much was equal."""
    table = _grid()
    for label, equal, total in (
        ("page frames", result.page_allocs_equal, result.page_allocs),
        ("requests refused", result.failed_allocs_equal, result.failed_allocs),
        ("slab objects", result.slab_allocs_equal, result.slab_allocs),
        ("virtual areas", result.vmap_allocs_equal, result.vmap_allocs),
    ):
        if total or (label not in ("slab objects", "virtual areas") and not only_areas(result)):
            table.add_row(label, _equal(equal, total))
    if not only_areas(result):
        table.add_row("silent bulk pages", f"{result.bulk_pages:,} predicted" if result.bulk_pages else "none")
        table.add_row("pages freed", f"{result.frees:,}")
    if result.vmap_allocs:
        table.add_row("virtual areas freed", f"{result.vmap['vmap_frees']:,}")
    for part in result.parts:
        table.add_row(part.name, _equal(part.equal, part.total) + Text(f"; first: {printable(part.first)}" if part.equal != part.total and part.first else ""))
    table.add_row("speed", f"{result.events:,} events in {result.seconds:.3g} s, {result.events_per_second / 1e6:.1f} million events/s")
    return table


def decisions(counts: dict[str, int]) -> Table:
    """How often the kernel decided what, and the twin with it."""
    table = _grid()
    first = counts["first_reclaim_event"]
    before = _equal(counts["frames_before_reclaim_equal"], counts["frames_before_reclaim"])
    table.add_row("  page frames until reclaim begins", before + Text(f"; it begins at event {first:,}" if first >= 0 else "; it never begins"))
    for name, label in DECISIONS.items():
        kernel, equal, twin = (counts[key] for key in (name, f"{name}_equal", f"{name}_twin"))
        more = Text(f"; {twin - equal:,} by the twin alone", style="red") if twin > equal else Text()
        table.add_row(f"  {label}", _equal(equal, kernel) + more)
    if counts["unfollowed"]:
        table.add_row("  requests not followed", Text(f"{counts['unfollowed']:,}: their events are in no order that the slow path has", style="red"))
    return table


def _undecided(differences: list[dict[str, Any]]) -> Table:
    columns = ("event", "what", "kernel", "twin", "order", "CPU", "cause")
    table = Table(*columns, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for d in differences:
        said = ("yes", "no") if d["kernel"] else ("no", "yes")
        table.add_row(f"{d['event']:,}", DECISIONS[d["what"]], *said, str(d["order"]), str(d["cpu"]), printable(d["cause"]))
    return table


def only_areas(result: Result) -> bool:
    """Whether the recording has virtual areas and no page events."""
    return bool(result.vmap_allocs) and not result.page_allocs and not result.failed_allocs and not result.frees


def warnings(result: Result) -> Iterator[str]:
    """What makes the figures less certain."""
    if result.lost_events:
        yield f"the trace buffer lost {result.lost_events:,} events. All counts, and every comparison after the first loss, are affected."
    if result.missed_probes:
        yield f"{result.missed_probes:,} probes did not fire. The order of those requests is not known, so page frames and lists may differ where they met others."


def verdict(result: Result) -> Text:
    """The last line."""
    different = result.page_allocs - result.page_allocs_equal + result.failed_allocs - result.failed_allocs_equal
    different += result.slab_allocs - result.slab_allocs_equal + result.vmap_allocs - result.vmap_allocs_equal
    if not result.page_allocs and not result.failed_allocs and not result.vmap_allocs:
        answers = "No request to compare"
    elif different:
        answers = f"{different:,} answers differ"
    elif result.differences:
        answers = "Frees or free lists differ on the way"
    else:
        answers = "Every answer is the kernel's"
    state = {True: "and the final state is the kernel's", False: "and the final state differs", None: "but the final state was not compared (--check does)"}
    others = [part.name for part in result.parts if part.equal != part.total]
    but = f"; different: {', '.join(others)}" if others and result.final_state_equal else ""
    text = f"{answers}, {state[result.final_state_equal]}{but}."
    return Text(("EQUAL: " if result.equal else "DIFFERENT: ") + text, style="bold green" if result.equal else "bold red")


def _grid(*right: int) -> Table:
    table = Table.grid(padding=(0, 2))
    for column in range(3):
        table.add_column(overflow="fold", justify="right" if column in right else "left")
    return table


def _equal(equal: int, total: int) -> Text:
    if not total:
        return Text("none")
    return Text(f"{equal:,} of {total:,} equal", style="green" if equal == total else "red")


def _inferred(result: Result) -> Table:
    table = _grid(1)
    for kind, count in result.inferred.items():
        if count:
            table.add_row(f"  {kind.replace('_', ' ')}", f"{count:,}", INFERRED.get(kind, ""))
    return table


def _differences(differences: list[dict[str, Any]]) -> Table:
    columns = ("event", "what", "kernel", "twin", "order", "CPU", "gfp")
    table = Table(*columns, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("event", "kernel", "twin", "order", "CPU"):
        table.columns[columns.index(column)].justify = "right"
    for d in differences:
        kernel, twin = (_value(d, side) for side in ("expected", "predicted"))
        what = printable(f"{d['what']} ({d['cache']})") if d.get("cache") else d["what"]
        table.add_row(f"{d['event']:,}", what, kernel, twin, str(d.get("order", "")), str(d["cpu"]), printable(d.get("gfp", "")))
    return table


def _value(difference: dict[str, Any], side: str) -> str:
    """A page frame number, or an address as the kernel prints it."""
    value = int(difference[side])
    if difference.get("addresses") is False:
        return f"{value:,}"
    if "cache" in difference or "addresses" in difference:
        return f"{value & (1 << 64) - 1:#x}" if value else "none"
    return f"{value:#x}" if value >= 0 else "none"
