"""What a replay starts from: the first snapshot as tables, and the events as operations."""

from __future__ import annotations

from typing import NamedTuple

from mmtwin.errors import RecordingError
from mmtwin.mm.slab_tables import Slub
from mmtwin.mm.tables import Pgdat
from mmtwin.recording import slab_state
from mmtwin.recording.model import Recording
from mmtwin.recording.state import restore
from mmtwin.replay.placement import Placement, SlabNames, place
from mmtwin.replay.slab_names import slab_names


class Start(NamedTuple):
    """A machine before its first operation.

    :param slub: None where slab events or SLUB's state were not recorded.
    :param cache_names: names of the caches by their row; empty without `slub`.
    :param meanings: what the addresses in slab events stand for; None without `slub`.
    """

    state: Pgdat
    slub: Slub | None
    cache_names: list[str]
    meanings: SlabNames | None
    placement: Placement


def start(recording: Recording) -> Start:
    """The machine before a recording's first operation.

    :raises RecordingError: there is no snapshot of the page allocator to start from.
    """
    before = recording.before
    if before is None or not before.has_pages:
        raise RecordingError("the recording has no snapshot of the page allocator, so there is no state to start from; make one with mmtwin record --vm")
    state = first_state(recording)
    slub, meanings = None, None
    names: list[str] = []
    if slab_state.has_slabs(before) and any(p.startswith("slab_take") for p in recording.provenance.probes):
        slub, names = slab_state.restore(before, state, int(state.config[0]["nr_cpus"]))
        meanings, slub = slab_names(recording.events, before, recording.after, slub, names)
    return Start(state, slub, names, meanings, place(recording.events, before, batch_scale_max(recording), meanings))


def first_state(recording: Recording) -> Pgdat:
    """The page allocator in the first snapshot."""
    assert recording.before is not None
    thp = recording.provenance.kernel_config.get("TRANSPARENT_HUGEPAGE", "y") == "y"
    return restore(recording.before, batch_scale_max(recording), thp, recording.provenance.cpus)


def batch_scale_max(recording: Recording) -> int:
    """The kernel's CONFIG_PCP_BATCH_SCALE_MAX."""
    return int(recording.provenance.kernel_config.get("PCP_BATCH_SCALE_MAX", 5))
