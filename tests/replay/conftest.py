"""Builds small event tables by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from mmtwin.recording.model import EVENTS_SCHEMA

DEFAULTS: dict[str, Any] = {"pfn": -1, "order": -1, "migratetype": -1, "name": None, "pid": 7}


@pytest.fixture
def events() -> Callable[..., pl.DataFrame]:
    """``events(("mm_page_alloc", {"pfn": 5}), ...)``: a table with these rows; time counts up."""

    def make(*rows: tuple[str, dict[str, Any]]) -> pl.DataFrame:
        full = [{**{c: DEFAULTS.get(c, 0) for c in EVENTS_SCHEMA}, "time": i, "kind": kind, **values} for i, (kind, values) in enumerate(rows)]
        return pl.DataFrame(full, schema=EVENTS_SCHEMA)

    return make
