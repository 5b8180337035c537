"""Readers of what other tools recorded; each gives a `Recording` without snapshots."""
