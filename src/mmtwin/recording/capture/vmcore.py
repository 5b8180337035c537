"""A recording from one memory dump: the machine's state at that moment, and no events."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl

from mmtwin import profiles
from mmtwin.errors import MmtwinError
from mmtwin.recording.capture.snapshot import Dump
from mmtwin.recording.model import EVENTS_SCHEMA, Provenance, Recording, Snapshot
from mmtwin.recording.validate import check_slabs
from mmtwin.recording.vmaps import check_vmaps
from mmtwin.units import PAGE_SIZE


def _snapshot(dump: Dump) -> tuple[Snapshot, list[str]]:
    """The state in a dump, without that of the slabs or the virtual areas if the machine crashed in the middle of changing it; and notes that say so."""
    notes = []
    try:
        snapshot = dump.snapshot(vmaps=False)
        check_slabs(snapshot, _cpus(snapshot), "dump")
    except MmtwinError as error:
        snapshot = dump.snapshot(slabs=False, vmaps=False)
        notes.append(f"the slab allocator's state is left out: {error}")
    try:
        areas = dump.vmap_snapshot()
        assert areas.vmaps is not None
        check_vmaps(areas.vmaps, areas.scalars, _cpus(snapshot), "dump")
    except MmtwinError as error:
        return snapshot, [*notes, f"virtual areas are left out: {error}"]
    return replace(snapshot, vmaps=areas.vmaps, scalars=areas.scalars | snapshot.scalars), notes


def _cpus(snapshot: Snapshot) -> int:
    return int(snapshot.pcp["cpu"].to_numpy().max(initial=0)) + 1


def read(core: Path, vmlinux: Path) -> Recording:
    """Reads a dump (ELF core with VMCOREINFO: kdump, QEMU's dump-guest-memory) with the symbols of its kernel.

    :raises CaptureError: no dump, no VMCOREINFO, no symbols or those of another kernel.
    :raises ProfileError: the kernel is none that mmtwin knows.
    """
    with Dump(core, vmlinux) as dump:
        release, cmdline = dump.release(), dump.cmdline()
        snapshot, notes = _snapshot(dump) if profiles.for_release(release).page_allocator else (dump.vmap_snapshot(), [])
    usable = snapshot.memory_map.filter(pl.col("type") == 1)["size"].sum()
    provenance = Provenance(
        kernel_release=release,
        cmdline=cmdline,
        ram_bytes=int(usable) // PAGE_SIZE * PAGE_SIZE,
        cpus=max(int(snapshot.pcp["cpu"].n_unique()), sum(name.startswith("trace_entries_") for name in snapshot.scalars)),
        how="vmcore",
        workload_name=core.name,
        notes=notes,
    )
    return Recording(provenance, snapshot, None, pl.DataFrame(schema=EVENTS_SCHEMA))
