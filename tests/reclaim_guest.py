"""What real kernels counted while a process touched more memory than there was (tests/data/reclaim-6.1.txt, made by oracle/reclaim.sh), and the same on the twin.

Run as a program it prints the table of docs/reclaim.md: ``python -m tests.reclaim_guest``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mmtwin
from mmtwin.gfp import GFP_KERNEL

GFP_HIGHUSER_MOVABLE = 0x100CCA
DATA = Path(__file__).parent / "data" / "reclaim-6.1.txt"
COUNTS = ("pswpout", "pswpin", "pgmajfault", "pgsteal", "pgscan_anon", "pgactivate", "nr_active_anon")


class Guest(NamedTuple):
    """One guest: its settings, and what it counted in each step, the first being the beginning."""

    settings: dict[str, str]
    pages: int
    steps: list[dict[str, int]]

    @property
    def name(self) -> str:
        """RAM, CPUs, disk and order."""
        s = self.settings
        return f"{s['memory']} MiB, {s['cpus']} CPU, {'disk' if s['rotational'] == '1' else 'SSD'}, {s['order']}"


def guests() -> list[Guest]:
    """All of the file."""
    found = list[Guest]()
    for line in DATA.read_text().splitlines():
        numbers = dict(pair.split("=") for pair in line.split() if "=" in pair)
        if line.startswith("@guest"):
            found.append(Guest(numbers, 0, []))
        elif "pages" in numbers:
            found[-1] = found[-1]._replace(pages=int(numbers["pages"]))
        elif "pswpout" in numbers:
            found[-1].steps.append({name: int(value) for name, value in numbers.items()})
    return found


def accesses(pages: int, random: bool) -> Callable[[int], int]:
    """The program's order: the i-th page of a round."""
    state = 1

    def following(i: int) -> int:
        nonlocal state
        if not random:
            return i
        state = (state * 6364136223846793005 + 1442695040888963407) & (1 << 64) - 1
        return (state >> 33) % pages

    return following


def twin(guest: Guest) -> list[dict[str, int]]:
    """The same on a machine that begins with as many free pages: what it counts in each step."""
    settings, free = guest.settings, guest.steps[0]["nr_free_pages"]
    m = mmtwin.boot("linux-6.1", ram=settings["memory"] + "MiB", cpus=int(settings["cpus"]))
    task = m.spawn("reclaim-user")
    m.users.config[0]["thp"] = 0
    m.swapon(256 << 20, rotational=settings["rotational"] == "1")
    while m.free > free + 512:
        m.alloc_pages(9, GFP_KERNEL)
    while m.free > free:
        m.alloc_pages(0, GFP_HIGHUSER_MOVABLE)
    a, steps, before = task.mmap(guest.pages * 4096), list[dict[str, int]](), m.vm_events()

    def step() -> None:
        nonlocal before
        now = m.vm_events()
        steps.append({name: now[name] - before[name] for name in now} | m.lru_sizes() | {"nr_free_pages": m.free})
        before = now

    task.touch(a, guest.pages * 4096)
    step()
    following = accesses(guest.pages, settings["order"] == "random")
    for _ in range(int(settings["rounds"])):
        if settings["order"] == "random":
            for i in range(guest.pages):
                task.touch(a + following(i) * 4096, 1, write=False)
        else:
            task.touch(a, guest.pages * 4096, write=False)
        step()
    m.validate()
    return steps


def count(step: dict[str, int], name: str) -> int:
    """One of `COUNTS`; pgsteal is kswapd's and the process's own together."""
    return step["pgsteal_kswapd"] + step["pgsteal_direct"] if name == "pgsteal" else step[name]


def table() -> str:
    """Markdown: Linux / twin."""
    lines = ["| guest | step | " + " | ".join(COUNTS) + " |", "|---" * (len(COUNTS) + 2) + "|"]
    for guest in guests():
        for number, (real, ours) in enumerate(zip(guest.steps[1:], twin(guest), strict=True)):
            cells = " | ".join(f"{count(real, name):,} / {count(ours, name):,}" for name in COUNTS)
            lines.append(f"| {guest.name if not number else ''} | {'first touch' if not number else f'round {number}'} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
