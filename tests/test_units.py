"""Sizes and orders."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtwin.units import PAGE_SIZE, format_size, get_order, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256MiB", 256 << 20),
        ("256M", 256 << 20),
        ("4G", 4 << 30),
        ("1TiB", 1 << 40),
        ("65536", 65536),
        (" 64 KB ", 65536),
        ("1.5g", 3 << 29),
        (4096, 4096),
        ("7B", 7),
    ],
)
def test_parse_size(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "12X", "-1M", "1 M M", "0x10"])
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@given(st.integers(0, 1 << 50))
def test_format_parse_round_trip(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(1, 1 << 40))
def test_get_order_is_smallest(size: int) -> None:
    order = get_order(size)
    assert PAGE_SIZE << order >= size
    assert order == 0 or PAGE_SIZE << (order - 1) < size
