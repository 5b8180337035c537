"""A recording's report as one document of plain data: what ``mmtwin report --json`` prints and the page holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmtwin import __version__
from mmtwin.diagnose import pins, stat
from mmtwin.diagnose.blame import Watch
from mmtwin.diagnose.blame.steps import cut
from mmtwin.recording.model import Recording
from mmtwin.recording.symbols import Symbols
from mmtwin.report import failures
from mmtwin.report.findings import findings
from mmtwin.report.sections import SECTIONS, Context
from mmtwin.report.timeline import Look, follow, spread

STEPS = 120
"""Moments looked at, unless asked otherwise."""


def document(
    recording: Recording,
    file: Path,
    *,
    steps: int = STEPS,
    symbols: Symbols | None = None,
    explain: failures.Explain | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """All numbers of a report.

    :param file: where the recording is from; only its name is told.
    :param steps: moments to look at, equally far apart in events.
    :param symbols: names for call sites that are addresses.
    :param explain: says why a request was refused; else it is what ``mmtwin explain --at`` says.
    :param progress: called with the moments done and their number.
    """
    provenance, events = recording.provenance, recording.events
    context = Context(recording, spread(len(events), steps), symbols=symbols)
    if recording.before is not None and recording.before.has_pages:
        context.timeline = follow(recording, steps, _looks(context, explain), progress)
    else:
        context.missing.append(
            "memory over time, the map, free blocks and caches: the recording has no snapshot of the page allocator, so what was in memory is not known "
            "(mmtwin record --vm makes recordings with one)"
        )
    sections = {section.name: section.gather(context) for section in SECTIONS}
    times = events["time"].gather([min(step, len(events) - 1) for step in context.steps]).to_list() if len(events) else [0] * len(context.steps)
    kinds = events["kind"].value_counts(sort=True)
    made: dict[str, Any] = {
        "schema": 1,
        "mmtwin": __version__,
        "file": file.name,
        "kernel_release": provenance.kernel_release,
        "how": provenance.how,
        "ram_bytes": provenance.ram_bytes,
        "cpus": provenance.cpus,
        "cmdline": provenance.cmdline,
        "workload_name": provenance.workload_name,
        "workload_seconds": provenance.workload_seconds,
        "events": len(events),
        "events_by_kind": {str(kind): int(count) for kind, count in kinds.iter_rows()},
        "lost_events": provenance.lost_events,
        "missed_probes": provenance.missed_probes,
        "notes": list(provenance.notes),
        "clock": stat.clock(recording),
        "steps": {"events": context.steps, "times": times},
        "replay": None if context.timeline is None else context.timeline.replay,
        **sections,
    }
    return made | {"missing": context.missing, "findings": findings(made)}


def _looks(context: Context, explain: failures.Explain | None) -> list[tuple[int, Look]]:
    """What to look at besides the steps, in the same replay: the refused requests, and what blame is told by."""
    recording = context.recording
    groups = pins.owners(recording, "callsite", context.symbols)
    found = list(failures.looks(recording, explain or failures.explainer(recording, context.symbols, groups), context.explained))
    if len(recording.events):
        context.watch = Watch(recording, cut(recording), groups)
        found += [(event, context.watch.look) for event in context.watch.when.rows.tolist()]
    return found
