"""``mmtwin info``: what a recording holds, from its manifest alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtwin.cli.terminal import ForTerminal, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

SLAB = ("kmalloc", "kmalloc_node", "kmem_cache_alloc", "kmem_cache_alloc_node", "kfree", "kmem_cache_free")
HOW = {
    "vm": "a kernel in QEMU (mmtwin record --vm)", "ftrace": "imported trace text (mmtwin import)", "perf": "imported perf.data (mmtwin import)",
    "trace-cmd": "imported trace.dat (mmtwin import)", "synthetic": "made up, by a program",
}  # fmt: skip
PAGE_EVENTS_ONLY = "page events only: no kmalloc or kmem_cache events (mmtwin record --slab adds them)"
AREAS_ONLY = "virtual areas only: of this kernel neither page frames nor slabs are recorded"
CODE = """\
from mmtwin.recording.store import open_recording

with open_recording({path!r}) as file:
    print(file.manifest)
"""


def info(file: Path, /, *, json: bool = False, code: bool = False, terminal: ForTerminal) -> None:
    """Show what a recording holds: kernel, machine, events, losses.

    Only the head of the file is read, so this is quick however large it is.

    :param file: A recording (.mmrec).
    :param json: One JSON document instead of text.
    :param code: Print the Python that does the same.
    """
    if code:
        return terminal.write(CODE.format(path=str(file)))
    from mmtwin.recording.store import open_recording

    with open_recording(file) as opened:
        described = describe(opened.manifest, file)
    if json:
        return terminal.json(described)
    return terminal.show(table(described))


def describe(manifest: dict[str, Any], file: Path) -> dict[str, Any]:
    """The contents of a manifest as the document that ``--json`` prints."""
    provenance = manifest["provenance"]
    kinds = dict(sorted(manifest["kinds"].items(), key=lambda item: -item[1]))
    return {
        "schema": 1,
        "file": str(file),
        "file_bytes": file.stat().st_size,
        "format_version": manifest["version"],
        "kernel_release": provenance["kernel_release"],
        "how": provenance["how"],
        "scope": provenance.get("scope", ""),
        "ram_bytes": provenance["ram_bytes"],
        "cpus": provenance["cpus"],
        "cmdline": provenance["cmdline"],
        "workload_name": provenance["workload_name"],
        "workload_seconds": provenance["workload_seconds"],
        "events": manifest["events"],
        "events_by_kind": kinds,
        "events_by_cpu": dict(sorted(manifest["cpus"].items(), key=lambda item: int(item[0]))),
        "virtual_areas": virtual_areas(manifest),
        "page_state": any(manifest["members"].get(f"{name}/zones.parquet", {"rows": 0})["rows"] for name in ("before", "after")),
        "slab_events": any(kinds.get(kind) for kind in SLAB),
        "snapshots": [name for name in ("before", "after") if manifest["scalars"][name] is not None],
        "lost_events": provenance["lost_events"],
        "missed_probes": provenance.get("missed_probes", 0),
        "notes": provenance["notes"],
        "tool": provenance["tool"],
        "provenance": provenance,
    }


AREA_TABLES = {"areas": "vmap_areas", "vms": "vmap_vms", "blocks": "vmap_blocks"}


def virtual_areas(manifest: dict[str, Any]) -> dict[str, dict[str, int]]:
    """For each snapshot that has virtual areas how many: all of struct vmap_area (free ones too), vm_struct and vmap_block."""
    rows = {name: member["rows"] for name, member in manifest["members"].items()}
    return {
        label: {name: rows[f"{label}/{table}.parquet"] for name, table in AREA_TABLES.items()}
        for label in ("before", "after")
        if f"{label}/vmap_areas.parquet" in rows
    }


def table(described: dict[str, Any]) -> RenderableType:
    """That document as a table of two columns."""
    from rich.table import Table

    shown = Table.grid(padding=(0, 2))
    shown.add_column(no_wrap=True, style="bold")
    shown.add_column(overflow="fold")
    for label, value in _rows(described):
        shown.add_row(label, value)
    return shown


def _rows(d: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from mmtwin.units import format_size

    yield "file", f"{printable(d['file'])}, {d['file_bytes']:,} bytes"
    yield "kernel", printable(d["kernel_release"])
    yield "recorded", HOW.get(d["how"], printable(d["how"])) + (", of some tasks only" if d["scope"] == "tasks" else "")
    yield "by", printable(d["tool"])
    yield "RAM", format_size(d["ram_bytes"]) if d["ram_bytes"] else "unknown"
    yield "CPUs", str(d["cpus"])
    if d["cmdline"]:
        yield "command line", printable(d["cmdline"])
    if d["workload_name"]:
        yield "workload", printable(d["workload_name"]) + (f", {d['workload_seconds']:g} s" if d["workload_seconds"] else "")
    yield "snapshots", " and ".join(d["snapshots"]) or "none: it can be counted and analysed, not replayed"
    for label, counts in d["virtual_areas"].items():
        yield f"virtual areas {label}", f"{counts['areas']:,} areas in use or free, {counts['vms']:,} described, {counts['blocks']:,} blocks of vm_map_ram"
    yield "events", f"{d['events']:,}"
    for kind, count in d["events_by_kind"].items():
        yield "", f"{count:>12,}  {printable(kind)}"
    if d["cpus"] > 1:
        yield "events by CPU", ", ".join(f"{cpu}: {count:,}" for cpu, count in d["events_by_cpu"].items())
    yield "lost events", f"{d['lost_events']:,}" + (": counts after the first loss cannot be trusted" if d["lost_events"] else "")
    yield "missed probes", f"{d['missed_probes']:,}" + (": the order of those events is unknown" if d["missed_probes"] else "")
    notes = [printable(note) for note in d["notes"]]
    if d["virtual_areas"] and not d["page_state"]:
        notes.append(AREAS_ONLY)
    elif d["events"] and not d["slab_events"]:
        notes.append(PAGE_EVENTS_ONLY)
    for number, note in enumerate(notes):
        yield "" if number else "notes", note
