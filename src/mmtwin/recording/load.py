"""A recording's file as a machine that can be asked and changed."""

from __future__ import annotations

import re
from pathlib import Path

from mmtwin import profiles
from mmtwin.errors import RecordingError
from mmtwin.machine import Machine
from mmtwin.mm.init_mm import restore_page_tables
from mmtwin.mm.slab_common import SlubConfig, slub_cpus
from mmtwin.mm.vmap_tables import Vmalloc, unbias
from mmtwin.profiles import physical
from mmtwin.profiles.layout import address_space
from mmtwin.profiles.physical import MemoryRange
from mmtwin.recording import slab_state, vmap_state
from mmtwin.recording.model import Provenance, Recording, Snapshot
from mmtwin.recording.state import restore

MASK = (1 << 64) - 1
PAGE_OFFSET_5_LEVELS = 0xFF11_0000_0000_0000
"""Where the direct map begins with five levels of page tables: recorded kernels run with ``nokaslr``."""

LINE = re.compile(r"^0x([0-9a-f]+)-0x([0-9a-f]+) +\d+ (\S+\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[\w+\])?)", re.M)
"""An area with its caller in /proc/vmallocinfo."""


def load(path: str | Path, which: str = "before") -> Machine:
    """The machine that a recording was made on, as it was before or after the recorded events.

    :param path: a recording's file (``.mmrec``).
    :param which: "before" or "after".
    :raises RecordingError: the file cannot be read, or has no snapshots (imported trace text).
    :raises ProfileError: no profile covers the recorded kernel.
    """
    from mmtwin.recording import store

    return machine(store.load(Path(path)), which, str(path))


def machine(recording: Recording, which: str = "before", name: str = "recording") -> Machine:
    """As `load`, from a recording in memory; `name` is for messages."""
    if which not in ("before", "after"):
        raise RecordingError(f"{name}: no snapshot {which!r}; there are: before, after")
    snapshot = recording.before if which == "before" else recording.after
    if snapshot is not None and not snapshot.has_pages:
        raise RecordingError(f"{name}: it holds virtual areas only, without the page allocator's state; make one of Linux 6.1")
    if snapshot is None:
        raise RecordingError(f"{name}: it has no snapshot of the machine's state, only events; make one with: mmtwin record")
    return from_snapshot(snapshot, recording.provenance)


def from_snapshot(snapshot: Snapshot, provenance: Provenance) -> Machine:
    """The machine that a snapshot shows."""
    profile = profiles.for_release(provenance.kernel_release)
    config = provenance.kernel_config
    state = restore(
        snapshot, int(config.get("PCP_BATCH_SCALE_MAX", profile.pcp_batch_scale_max)), config.get("TRANSPARENT_HUGEPAGE", "y" if profile.thp else "n") == "y"
    )
    slub, names = slab_state.restore(snapshot, state, int(state.config[0]["nr_cpus"])) if slab_state.has_slabs(snapshot) else (None, [])
    present = int(snapshot.scalars.get("present_cpus", provenance.cpus))
    options = SlubConfig.from_cmdline(provenance.cmdline, slub_cpus(present, int(snapshot.scalars.get("possible_cpus", present))), profile.slab)
    ram = physical.ram_frames(MemoryRange(*row) for row in snapshot.memory_map.select("start", "size", "type").iter_rows())
    frames = physical.clip(ram, 0, int(state.config[0]["nr_frames"]))
    space = address_space(profile, frames, provenance.cmdline, int(snapshot.scalars.get("page_offset_base", 0)) & MASK == PAGE_OFFSET_5_LEVELS)
    areas = vmap_state.restore(snapshot, provenance) if snapshot.vmaps is not None else None
    if areas is not None:
        areas.vm["first_pfn"] = -1  # a snapshot does not hold the areas' page frames
    callers = {} if areas is None else caller_names(areas, provenance.procfs.get("vmallocinfo", ""))
    machine = Machine(state, profile, frames, slub=slub, cache_names=names, slab_config=options, space=space, areas=areas, callers=callers)
    if snapshot.vmaps is not None:
        machine.mmu = restore_page_tables(machine.state, machine.mmu, snapshot.vmaps["page_tables"].select("level", "pfn", "index", "value").iter_rows())
    return machine


def caller_names(areas: Vmalloc, text: str) -> dict[int, str]:
    """What the guest's /proc/vmallocinfo called the callers of areas, by ``vm_struct.caller``: a dump has their addresses only."""
    shown = {(int(start, 16), int(end, 16)): name for start, end, name in LINE.findall(text)}
    found = {}
    for vm in areas.vm[areas.vm["live"] == 1]:
        start = unbias(int(vm["addr"]))
        name = shown.get((start, start + int(vm["size"])))
        if name:
            found[int(vm["caller"])] = name
    return found
