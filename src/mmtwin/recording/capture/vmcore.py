"""A recording from one memory dump: the machine's state at that moment, and no events."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mmtwin import profiles
from mmtwin.errors import MmtwinError
from mmtwin.recording.capture.snapshot import Dump
from mmtwin.recording.model import EVENTS_SCHEMA, Provenance, Recording, Snapshot
from mmtwin.recording.validate import check_slabs
from mmtwin.units import PAGE_SIZE


def _snapshot(dump: Dump) -> tuple[Snapshot, list[str]]:
    """The state in a dump, without the slab allocator's if the machine crashed in the middle of changing it; and a note that says so."""
    try:
        snapshot = dump.snapshot()
        check_slabs(snapshot, int(snapshot.pcp["cpu"].to_numpy().max(initial=0)) + 1, "dump")
    except MmtwinError as error:
        return dump.snapshot(slabs=False), [f"the slab allocator's state is left out: {error}"]
    return snapshot, []


def read(core: Path, vmlinux: Path) -> Recording:
    """Reads a dump (ELF core with VMCOREINFO: kdump, QEMU's dump-guest-memory) with the symbols of its kernel.

    :raises CaptureError: no dump, no VMCOREINFO, no symbols or those of another kernel.
    :raises ProfileError: the kernel is none that mmtwin knows.
    """
    with Dump(core, vmlinux) as dump:
        release, cmdline = dump.release(), dump.cmdline()
        profiles.for_release(release)
        snapshot, notes = _snapshot(dump)
    usable = snapshot.memory_map.filter(pl.col("type") == 1)["size"].sum()
    provenance = Provenance(
        kernel_release=release,
        cmdline=cmdline,
        ram_bytes=int(usable) // PAGE_SIZE * PAGE_SIZE,
        cpus=int(snapshot.pcp["cpu"].n_unique()),
        how="vmcore",
        workload_name=core.name,
        notes=notes,
    )
    return Recording(provenance, snapshot, None, pl.DataFrame(schema=EVENTS_SCHEMA))
