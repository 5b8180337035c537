"""Recordings as machines."""

from __future__ import annotations

from pathlib import Path

import pytest

import mmtwin
from mmtwin.errors import MmtwinError, ProfileError, RecordingError
from mmtwin.gfp import GFP_KERNEL
from mmtwin.recording import store
from mmtwin.recording.load import load, machine
from mmtwin.recording.model import EVENTS_SCHEMA, Provenance, Recording


def test_real_machines_go_on(real: dict[str, Recording]) -> None:
    for recording in real.values():
        for which in ("before", "after"):
            twin = machine(recording, which)
            twin.validate()
            pages = [twin.alloc_pages(order, GFP_KERNEL) for order in (0, 0, 1, 3)]
            for pfn, order in zip(pages, (0, 0, 1, 3), strict=True):
                twin.free_pages(pfn, order)
            twin.drain()
            twin.validate()


def test_from_a_file(real: dict[str, Recording], tmp_path: Path) -> None:
    recording = min(real.values(), key=lambda r: r.provenance.ram_bytes)
    store.save(recording, tmp_path / "x.mmrec")
    assert mmtwin.load(tmp_path / "x.mmrec").digest() == machine(recording).digest()


def test_errors(tmp_path: Path) -> None:
    import polars as pl

    events = pl.DataFrame(schema=EVENTS_SCHEMA)
    imported = Recording(Provenance(kernel_release="6.1.0"), None, None, events)
    with pytest.raises(RecordingError, match="no snapshot of the machine"):
        machine(imported)
    with pytest.raises(RecordingError, match="no snapshot 'middle'"):
        machine(imported, "middle")
    with pytest.raises(MmtwinError):
        load(tmp_path / "missing.mmrec")


def test_unknown_kernel(real: dict[str, Recording]) -> None:
    from dataclasses import replace

    recording = next(iter(real.values()))
    with pytest.raises(ProfileError, match=r"no profile for kernel release '5\.4\.0'"):
        machine(replace(recording, provenance=replace(recording.provenance, kernel_release="5.4.0")))
