"""Derived constants: computed by the profile, equal in every dump."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from mmtwin.recording.constants import compare
from mmtwin.recording.model import Recording


def test_equal_in_every_dump(real: dict[str, Recording]) -> None:
    for name, recording in real.items():
        assert recording.before is not None
        pairs = list(compare(recording.before, recording.provenance))
        assert [p for p in pairs if p[1] != p[2]] == [], name
        assert len(pairs) > 40
        names = {p[0] for p in pairs}
        low = recording.before.zones["name"][1]  # the zone of the kernel's image: DMA32, on i386 Normal
        assert {
            "min_free_kbytes",
            "totalreserve_pages",
            f"{low} wmark_low",
            "DMA lowmem_reserve[3]",
            f"{low} CPU 0 high",
            f"{low} CPU 0 batch",
            f"{low} managed",
        } <= names


@pytest.mark.parametrize("column", ["wmark_min", "wmark_high", "lowmem_reserve_1", "managed_pages", "present_pages", "spanned_pages"])
def test_a_wrong_value_is_found(real: dict[str, Recording], column: str) -> None:
    recording = min(real.values(), key=lambda r: len(r.events))
    assert recording.before is not None
    spoilt = replace(recording.before, zones=recording.before.zones.with_columns(pl.col(column) + (pl.col("index") == 0)))
    assert [p for p in compare(spoilt, recording.provenance) if p[1] != p[2]]
