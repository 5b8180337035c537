"""A recording's file as a machine that can be asked and changed."""

from __future__ import annotations

from pathlib import Path

from mmtwin import profiles
from mmtwin.errors import RecordingError
from mmtwin.machine import Machine
from mmtwin.mm.slab_common import SlubConfig, slub_cpus
from mmtwin.profiles import physical
from mmtwin.profiles.physical import MemoryRange
from mmtwin.recording import slab_state
from mmtwin.recording.model import Provenance, Recording, Snapshot
from mmtwin.recording.state import restore


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
    return Machine(state, profile, frames, slub=slub, cache_names=names, slab_config=options)
