"""Small recordings made by hand, and naive sums to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from mmtwin.recording.model import EVENTS_SCHEMA, Provenance, Recording


def make(*rows: dict[str, Any], how: str = "synthetic", **provenance: Any) -> Recording:
    """A recording of these events; times count up from 1 where none is given."""
    absent: dict[str, Any] = dict.fromkeys(EVENTS_SCHEMA, 0) | {"pfn": -1, "order": -1, "migratetype": -1, "name": None}
    events = pl.DataFrame([absent | {"time": at} | row for at, row in enumerate(rows, 1)], schema=EVENTS_SCHEMA)
    return Recording(Provenance(how=how, cpus=8, **provenance), None, None, events)


@pytest.fixture
def recording() -> Callable[..., Recording]:
    """`make`."""
    return make
