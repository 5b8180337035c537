"""One part of a comparison."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One part of the state: how many of its items are equal to the second dump's, and the first that are not."""

    name: str
    equal: int
    total: int
    first: str = ""
