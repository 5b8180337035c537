"""What a real 6.1 answered to oracle/module/dma_probe.c, run by run."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).parent / "data" / "dma-6.1.txt.gz"


class Run(NamedTuple):
    """One boot: its words (mem, cpus, devices, cmdline) and lines."""

    words: dict[str, str]
    lines: list[str]

    @property
    def cmdline(self) -> str:
        return self.words["cmdline"]

    @property
    def log(self) -> list[str]:
        """The kernel's own lines."""
        return [line.removeprefix("log ") for line in self.lines if line.startswith("log ")]


def fields(line: str) -> dict[str, str]:
    """The ``key=value`` words of a line."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def runs() -> list[Run]:
    """All boots of the recording."""
    found: list[Run] = []
    with gzip.open(FILE, "rt") as file:
        for line in file.read().splitlines():
            if line.startswith("run "):
                head, _, cmdline = line.partition(" cmdline=")
                found.append(Run({**fields(head), "cmdline": cmdline}, []))
            else:
                found[-1].lines.append(line)
    return found
