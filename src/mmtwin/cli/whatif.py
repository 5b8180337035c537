"""``mmtwin whatif``: a recording's requests under other settings, beside what the kernel did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mmtwin.cli.terminal import ForTerminal, UsageError, printable
from mmtwin.errors import RequestError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mmtwin.diagnose.whatif.whatif import Case, WhatIf

CACHES = 12
"""Slab caches shown: those that differ most."""
CODE = """\
from mmtwin.diagnose.whatif import {names}
from mmtwin.recording import store

result = whatif(store.load({path!r}), {cases}{policy})
print(result.frame())
"""


def whatif(
    file: Path,
    /,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set", metavar="KEY=VALUE", consume_multiple=True)] = None,
    against: Annotated[list[str] | None, Parameter(metavar="'KEY=VALUE ...'")] = None,
    policy: Annotated[Path | None, Parameter(metavar="FILE.py")] = None,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"), metavar="FILE.svg")] = None,
    force: bool = False,
    json: bool = False,
    code: bool = False,
    terminal: ForTerminal,
) -> None:
    """Answer a recording's requests under other settings, and show what would have been different: failures, fragmentation, memory held, steps taken.

    The first two columns are the kernel itself and the twin under the recording's own settings: as far as these agree, the others can be believed.
    docs/whatif.md compares predictions with real kernels.

    :param file: A recording (.mmrec) made with mmtwin record --vm --slab.
    :param set_: min_free_kbytes, watermark_scale_factor, watermark_boost_factor, percpu_pagelist_high_fraction, slub_min_order, slub_max_order,
        slub_min_objects, cpu_partial, merge (on, off), size_classes (SIZE,...), kvmalloc (all, or call sites), cpus, ram,
        pageblock_order, profile, allocator (slab, slub). Several are all set at once.
    :param against: A further case with its own settings, in one word; may be given several times.
    :param policy: A file with the Python functions alloc and free, or size_class, which then stand in for the kernel's.
    :param output: Draw free memory's fragmentation and slab pages over time (SVG).
    :param force: Overwrite an existing file.
    :param json: One JSON document instead of text.
    :param code: Print the Python that does the same.
    """
    from mmtwin.diagnose.whatif.settings import parse_settings

    try:
        cases = [parse_settings(set_)] if set_ else []
        cases += [parse_settings([words]) for words in against or []]
    except RequestError as error:
        raise UsageError(str(error)) from None
    if not cases and policy is None:
        raise UsageError("nothing to try: give --set KEY=VALUE or --policy FILE.py; see mmtwin whatif --help")
    if output is not None:
        _check_output(output, force)
    if code:
        return terminal.write(_code(file, cases, policy))
    from mmtwin.diagnose.whatif import load_policy
    from mmtwin.diagnose.whatif import whatif as run
    from mmtwin.recording import store

    rules = load_policy(policy) if policy is not None else None
    with terminal.progress("reading"):
        recording = store.load(file)
    result = run(recording, cases, policy=rules, progress=terminal.note)
    if output is not None:
        from mmtwin.report.whatif_svg import render

        output.write_text(render(result))
        terminal.note(f"Wrote {printable(output)}")
    if json:
        return terminal.json({"schema": 1, "file": str(file), "kernel_release": recording.provenance.kernel_release} | result.to_dict())
    return terminal.show(*text(result))


def _check_output(output: Path, force: bool) -> None:
    """:raises UsageError: it exists, or is no file."""
    if output.exists() and not (force and output.is_file()):
        raise UsageError(f"{output}: {'is no regular file' if not output.is_file() else 'exists; choose another name with -o or overwrite it with --force'}")


def _code(file: Path, cases: list[Any], policy: Path | None) -> str:
    names = ["Settings", *(["load_policy"] if policy is not None else []), "whatif"]
    extra = f", policy=load_policy({str(policy)!r})" if policy is not None else ""
    shown = []
    for case in cases:
        given = ", ".join(f"{k}={v!r}" for k, v in case.__dict__.items() if (v is not None and v != ()) or (k == "kvmalloc" and v == ()))
        shown.append(f"Settings({given})")
    return CODE.format(names=", ".join(names), path=str(file), cases=f"[{', '.join(shown)}]", policy=extra)


def text(result: WhatIf) -> list[RenderableType]:
    """All of it, for `Terminal.show`."""
    from rich.table import Table
    from rich.text import Text

    shown: list[RenderableType] = []
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for case in result.cases:
        table.add_column(printable(case.name), justify="right", overflow="fold")
    for label, values in _rows(result.cases):
        table.add_row(label, *values)
    shown.append(table)
    caches = _caches(result.cases)
    if caches:
        other = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        other.add_column("Pages of slab caches (those that differ most)")
        for case in result.cases:
            other.add_column(printable(case.name), justify="right", overflow="fold")
        for name in caches:
            other.add_row(printable(name), *(f"{case.caches.get(name, 0):,}" for case in result.cases))
        shown += ["", other]
    notes = [note for case in result.cases for note in case.notes]
    notes += [f"{printable(case.name)}: the run broke an invariant: {case.broken}" for case in result.cases if case.broken]
    notes += [f"not known: {count:,} {kind.replace('_', ' ')}" for kind, count in result.unknown.items()]
    shown += ([""] if notes else []) + [Text(f"NOTE: {printable(note)}", style="yellow") for note in dict.fromkeys(notes)]
    return shown


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _rows(cases: list[Case]) -> list[tuple[str, list[str]]]:
    rows = [
        ("FAILURES", ["" for _ in cases]),
        ("page requests", [_number(c.page_requests) for c in cases]),
        ("refused", [_number(c.failures) for c in cases]),
        ("  granted by the kernel", ["" if i == 0 and not c.looks else _number(c.new_failures) for i, c in enumerate(cases)]),
        ("granted, refused by the kernel", ["" if i == 0 and not c.looks else _number(c.new_successes) for i, c in enumerate(cases)]),
        ("slab objects refused", [_number(c.slab_failures) for c in cases]),
        ("would wait for reclaim", [_number(c.reclaim_waits) for c in cases]),
    ]
    for order in range(len(cases[0].failures_by_order)):
        if any(c.failures_by_order[order] for c in cases):
            rows.append((f"  refused, order {order}", [_number(c.failures_by_order[order]) for c in cases]))
    rows += [("", ["" for _ in cases]), ("FRAGMENTATION at the end", ["" for _ in cases]), ("blocks stolen (extfrag)", [_number(c.extfrag) for c in cases])]
    rows += [(f"unusable for order {o}", [f"{c.unusable[o]:.1%}" for c in cases]) for o in cases[0].unusable]
    rows += [(f"free blocks, order {o}", [_number(c.free_blocks[o]) for c in cases]) for o in range(len(cases[0].free_blocks))]
    rows += [
        ("", ["" for _ in cases]),
        ("MEMORY in pages", ["" for _ in cases]),
        ("free", [_number(c.free_pages) for c in cases]),
        ("on per-CPU lists", [_number(c.listed_pages) for c in cases]),
        ("in use", [_number(c.used_pages) for c in cases]),
        ("  at the most", [_number(c.used_pages_peak) for c in cases]),
        ("in slabs", [_number(c.slab_pages) for c in cases]),
        ("  at the most", [_number(c.slab_pages_peak) for c in cases]),
        ("  not in objects, KiB", [_number(None if c.slab_object_bytes is None else 4 * c.slab_pages - c.slab_object_bytes // 1024) for c in cases]),
        ("", ["" for _ in cases]),
        ("STEPS", ["" for _ in cases]),
        ("slabs made", [_number(c.slabs_made) for c in cases]),
        ("slabs given back", [_number(c.slabs_freed) for c in cases]),
        ("slabs of the minimum order", [_number(c.small_slabs) for c in cases]),
        ("slow paths of the slab allocator", [_number(c.slow_paths) for c in cases]),
    ]
    return rows


def _caches(cases: list[Case]) -> list[str]:
    """Names of the caches that differ most between the twin's own run and the others."""
    base = next((c for c in cases if c.looks), cases[0])
    spread = {name: max(abs(c.caches.get(name, 0) - base.caches.get(name, 0)) for c in cases) for case in cases for name in case.caches}
    return [name for name, by in sorted(spread.items(), key=lambda item: (-item[1], item[0])) if by][:CACHES]
