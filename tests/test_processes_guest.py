"""Address spaces as a real kernel lays them out: random mmap, munmap, mprotect, mremap, brk, madvise and touches, and /proc/self/maps after each (oracle/module/run-maps.sh)."""

from __future__ import annotations

import gzip
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import mmtwin
from mmtwin.errors import SegmentationFault, SyscallError
from mmtwin.process import Process
from mmtwin.program import Program, Segment
from mmtwin.recording.store import load

DATA = Path(__file__).parent / "data"
STEP = re.compile(r"step (\d+): (\w+)\((.*)\) = (.*)")


def runs(name: str) -> Iterator[list[str]]:
    """The lines of each run."""
    run: list[str] = []
    for line in gzip.decompress((DATA / name).read_bytes()).decode().splitlines():
        if line.startswith("seed "):
            run = [line]
        elif line == "end":
            yield run
        else:
            run.append(line)


RUNS = [("512MiB", run) for run in runs("maps-6.1.txt.gz")] + [("1GiB", run) for run in runs("maps-6.1-thp.txt.gz")]
"""Without and with transparent huge pages."""


def start(ram: str, run: list[str]) -> tuple[mmtwin.Machine, Process, int]:
    """The twin's process as the guest's was when it began, and how many lines that took."""
    loads = [[int(word, 16) for word in line.split()[1:]] for line in run if line.startswith("load ")]
    segments = tuple(Segment(o, v, f, s, (p >> 2 & 1) | (p & 2) | (p & 1) << 2) for o, v, f, s, p in loads)
    m = mmtwin.boot("linux-6.1", ram=ram, cpus=1)
    program = Program("/bin/maps_probe", segments, segments[1].vaddr, inode=8, tmpfs=True)
    p = m.spawn("maps_probe", program)
    at = next(i for i, line in enumerate(run) if line.startswith("execfn"))
    heap = int(run[at].split()[-1], 16)
    relro = next(line for line in run[at:] if " r--p " in line and int(line.split("-")[0], 16) == segments[-1].vaddr & -4096)
    low, high = (int(word, 16) for word in relro.split()[0].split("-"))
    p.brk(heap)  # what the C library does before main
    p.mprotect(low, high - low, 1)
    p.read(0x7FFFF7FFD000, 4)  # and it looks for functions in the vdso
    return m, p, at + 1


def call(p: Process, name: str, text: str) -> int:
    """Makes one of the probe's calls; a result below 0 is an error number."""
    try:
        if name == "mmap":
            address, length, prot, flags = (int(word, base) for word, base in zip(text.split(", "), (16, 16, 10, 16), strict=True))
            return p.mmap(length, prot, flags, address)
        words = text.split(", ")
        if name == "munmap":
            p.munmap(int(words[0], 16), int(words[1], 16))
        elif name == "mprotect":
            p.mprotect(int(words[0], 16), int(words[1], 16), int(words[2]))
        elif name == "mremap":
            return p.mremap(int(words[0], 16), int(words[1], 16), int(words[2], 16), 1)
        elif name == "brk":
            return p.brk(int(words[0], 16))
        elif name == "madvise":
            p.madvise(int(words[0], 16), int(words[1], 16), int(words[2]))
        else:
            p.touch(int(words[0], 16), 1)
            return 1
    except SyscallError as error:
        return -error.errno
    except SegmentationFault:
        return -14
    return 0


def plain(maps: str) -> list[str]:
    """Without what numbers shared memory."""
    return [re.sub(r" 00:01 \d+ +/dev/zero", " 00:01 N /dev/zero", line) for line in maps.splitlines()]


def figures(lines: list[str]) -> dict[str, int]:
    """Lines of /proc/PID/status and smaps, kB; those of several areas added up."""
    found = dict[str, int]()
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and value.endswith(" kB"):
            found[name] = found.get(name, 0) + int(value.split()[0])
    return found


@pytest.mark.parametrize(("ram", "run"), RUNS, ids=[f"{ram} {run[0]}" for ram, run in RUNS])
def test_maps_after_every_step(ram: str, run: list[str]) -> None:
    m, p, at = start(ram, run)
    shown, steps, first = list[str](), 0, list[str]()
    while run[at].endswith(" kB"):
        first.append(run[at])
        at += 1
    while at < len(run) and not run[at].startswith("step "):
        shown.append(run[at])
        at += 1
    assert plain(p.maps()) == plain("\n".join(shown))
    at_start = figures((p.status() + p.smaps()).splitlines())
    while at < len(run) and (step := STEP.match(run[at])):
        at += 1
        number, name, arguments, result = step.groups()
        hexadecimal = name in ("mmap", "mremap", "brk")
        want = int(result, 16 if hexadecimal else 10)
        want = want - (1 << 64) if hexadecimal and want >> 63 else want
        assert call(p, name, arguments) == want, f"step {number}: {name}({arguments})"
        changed = list[str]()
        while at < len(run) and not run[at].startswith(("step ", "Vm")):
            changed.append(run[at])
            at += 1
        shown = changed or shown
        assert plain(p.maps()) == plain("\n".join(shown)), f"after step {number}: {name}({arguments})"
        steps += 1
        if steps % 100 == 0:
            m.validate()
    assert steps >= 100
    twin, guest, before = figures((p.status() + p.smaps()).splitlines()), figures(run[at:]), figures(first)
    for name in ("VmPeak", "VmSize", "VmLck", "VmData", "VmStk", "VmExe", "VmLib"):
        assert twin[name] == guest[name], name
    for name in ("Anonymous", "AnonHugePages", "LazyFree", "Locked", "VmPTE"):  # what the steps added: the probe's own pages and tables were there before
        assert twin[name] - at_start[name] == guest[name] - before[name], name
    p.exit()
    m.validate()


def by_task(name: str) -> dict[int, list[tuple[int, int]]]:
    """Page requests (order, gfp) of each task of a recording."""
    events = load(Path(__file__).parent / "recordings" / name).events.filter(pl.col("kind") == "mm_page_alloc")
    tasks = dict[int, list[tuple[int, int]]]()
    for pid, order, gfp in events.select("pid", "order", "gfp").iter_rows():
        tasks.setdefault(pid, []).append((order, gfp))
    return tasks


def test_recorded_huge_faults_take_the_page_then_the_table_in_reserve() -> None:
    huge = (9, 0x3D20CA)
    followed = [after for task in by_task("mmap-1g-1cpu.mmrec").values() for request, after in itertools.pairwise(task) if request == huge]
    assert len(followed) == 18 and set(followed) == {(0, 0x400DC0)}
    p = mmtwin.boot("linux-6.1", ram="1GiB", cpus=1).spawn("app")
    a = p.mmap(4 << 20)
    p.touch(a + (2 << 20), 1)
    assert [tuple(request[:2]) for request in p.machine.user_requests().tolist()][-2:] == [huge, (0, 0x400DC0)]


def test_recorded_programs_begin_with_an_order_1_pgd_and_tables_from_the_top_down() -> None:
    """execve: PGD, then the tables and the page of the arguments; the recorded guest has 5 levels of page tables, the twin here 4."""
    tasks = by_task("mmap-1g-1cpu.mmrec")
    begins = [task[at : at + 6] for pid, task in tasks.items() if pid != 1 for at, request in enumerate(task) if request == (1, 0x400DC0)]
    assert begins.count([(1, 0x400DC0), *[(0, 0x400DC0)] * 4, (0, 0x140DCA)]) >= 2
    m = mmtwin.boot("linux-6.1", ram="256MiB", cpus=1)
    took = list[tuple[int, int]]()
    plain_pgd, plain_touch = m._new_mm, m.touch

    def new_mm(*arguments: Any) -> None:
        m.users.config[0]["taken"] = 0
        plain_pgd(*arguments)
        took.extend(tuple(request[:2]) for request in m.user_requests().tolist())

    def touch(*arguments: Any) -> None:
        plain_touch(*arguments)
        took.extend(tuple(request[:2]) for request in m.user_requests().tolist())

    m._new_mm, m.touch = new_mm, touch  # type: ignore[method-assign]
    m.spawn("app")
    assert took[:5] == [(1, 0x400DC0), *[(0, 0x400DC0)] * 3, (0, 0x140DCA)]
