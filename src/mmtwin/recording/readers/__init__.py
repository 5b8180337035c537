"""Readers of what other tools recorded; each gives a `Recording` without snapshots. `read` takes any of them, and recordings too."""

from mmtwin.recording.readers.any import read

__all__ = ("read",)
