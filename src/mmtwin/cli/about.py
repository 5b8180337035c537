"""What every JSON document about a recording begins with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmtwin.recording.model import Recording


def about(file: Path, recording: Recording) -> dict[str, Any]:
    """Schema, file, kernel, CPUs, events and lost events."""
    source = recording.provenance
    return {
        "schema": 1, "file": str(file), "kernel_release": source.kernel_release, "cpus": source.cpus, "events": len(recording.events),
        "lost_events": source.lost_events,
    }  # fmt: skip
