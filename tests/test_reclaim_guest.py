"""A process touches more memory than there is, in real guests and on the twin: reclaim's counts (docs/reclaim.md lists all, with the causes of what differs)."""

from __future__ import annotations

import pytest

from tests.reclaim_guest import Guest, count, guests, twin

CLOSE = {"pswpout": 0.3, "pswpin": 0.15, "pgmajfault": 0.15, "pgsteal": 0.25}
"""How far the twin may be from the guest, as a part: the guest's processes reclaim while kswapd waits for a CPU, and its memory holds more than the twin's."""


@pytest.mark.parametrize("guest", guests(), ids=lambda guest: guest.name)
def test_counts_are_those_of_the_guest(guest: Guest) -> None:
    assert len(guest.steps) == 2 + int(guest.settings["rounds"]) and guest.pages > 20_000
    for number, (real, ours) in enumerate(zip(guest.steps[1:], twin(guest), strict=True)):
        assert ours["oom_kill"] == real["oom_kill"] == 0
        if number and guest.settings["memory"] == "128" and guest.settings["order"] == "up":
            continue  # which zone kswapd was woken for first decides where the walk begins: see docs/reclaim.md
        for name, part in CLOSE.items():
            assert abs(count(ours, name) - count(real, name)) <= part * count(real, name) + 64, f"{guest.name}, step {number}: {name}"
