"""/proc/PID/smaps, every figure of every mapping, beside a real 6.1's: random reads, writes, advice, huge pages, children that share and copy (oracle/module/run-maps.sh with SMAPS)."""

from __future__ import annotations

import re

import pytest

from mmtwin.errors import BusError, SegmentationFault, SyscallError
from mmtwin.process import Process
from tests.test_processes_guest import STEP, call, runs, start

HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) [r-][w-][x-][ps] ")


def blocks(lines: list[str], skip: set[int]) -> dict[str, list[str]]:
    """The lines of each mapping, but those that begin at the addresses in `skip` or are the program's, the stack's, the kernel's."""
    found, block = dict[str, list[str]](), list[str]()
    for line in lines:
        if match := HEAD.match(line):
            block = []
            own = int(match[1], 16) not in skip and not re.search(r"\[(v|stack)|/bin/", line)
            if own:
                found[match[0]] = block
        block.append(re.sub(r" 00:01 \d+ +/dev/zero", " 00:01 N /dev/zero", line).rstrip())
    return found


def pages(p: Process, a: int, n: int, write: bool) -> int:
    """How many pages in a row the process may access."""
    for i in range(n):
        try:
            p.touch(a + 4096 * i, 1, write)
        except (SegmentationFault, BusError):
            return i
    return n


class Wild:
    """A run of the probe with what only its wild mode does."""

    def __init__(self, ram: str, run: list[str]) -> None:
        self.m, self.p, self.at = start(ram, run)
        self.run, self.children = run, dict[int, Process]()
        self.compared, self.figures, self.differences = 0, 0, list[str]()
        while not run[self.at].startswith("step "):
            self.at += 1
        self.skip = {int(line.split("-")[0], 16) for line in self.p.maps().splitlines()}

    def step(self, name: str, text: str) -> int:
        words = text.split(", ")
        p, a = self.p, int(words[0], 16)
        if name in ("write", "read"):
            return pages(p, a, int(words[1], 16), name == "write")
        if name == "kill":
            self.children.pop(a).exit()
            return 0
        if name == "fork":
            child = self.children[a] = p.fork()
            return pages(child, int(words[1], 16), int(words[2], 16), True)
        if name == "madvise":
            try:
                p.madvise(a, int(words[1], 16), int(words[2]))
            except SyscallError as error:
                return -error.errno
            return 0
        return call(p, name, text)

    def follow(self) -> None:
        while self.at < len(self.run) and not self.run[self.at].startswith("Vm"):
            line = self.run[self.at]
            self.at += 1
            if line == "smaps":
                end = self.run.index("end of smaps", self.at)
                self.compare(self.run[self.at : end])
                self.at = end + 1
            elif step := STEP.match(line):
                number, name, arguments, result = step.groups()
                hexadecimal = name in ("mmap", "mremap", "brk")
                want = int(result, 16 if hexadecimal else 10)
                want = want - (1 << 64) if hexadecimal and want >> 63 else want
                got = self.step(name, arguments)
                assert got == want, f"step {number}: {name}({arguments}) = {got:x}, the kernel says {want:x}"
                self.last = number

    def compare(self, lines: list[str]) -> None:
        guest, twin = blocks(lines, self.skip), blocks(self.p.smaps().splitlines(), self.skip)
        assert list(guest) == list(twin), f"step {self.last}"
        for head, want in guest.items():
            self.compared += 1
            self.figures += len(want) - 1
            if want != twin[head]:
                self.differences += [f"step {self.last}: {want[0]}: {w} | twin {t}" for w, t in zip(want, twin[head], strict=True) if w != t]


WILD_RUNS = [("256MiB", run) for run in runs("smaps-6.1.txt.gz")] + [("1GiB", run) for run in runs("smaps-6.1-thp.txt.gz")]


@pytest.mark.parametrize(("ram", "run"), WILD_RUNS, ids=[f"{ram} {run[0]}" for ram, run in WILD_RUNS])
def test_every_figure_of_smaps(ram: str, run: list[str]) -> None:
    wild = Wild(ram, run)
    wild.follow()
    assert not wild.differences, "\n".join([f"{len(wild.differences)} of {wild.figures}", *wild.differences[:40]])
    assert wild.compared > 50
    wild.m.validate()
