"""The OOM killer beside a real kernel's: every recorded strike's victim, points and report; /proc/PID/oom_score; and what happens to a machine."""

from __future__ import annotations

import dataclasses
import pickle
import re
from typing import Any

import pytest

import mmtwin
from mmtwin.errors import KernelPanic, OomKilled, RequestError
from mmtwin.oom import LONG_MIN, OomKill, Task, oom_badness, oom_report, oom_score, out_of_memory, select_bad_process, task_of
from tests.oom_strikes import GUESTS, NAMES, STRIKES, parse

ROW = re.compile(r"^\[ *(\d+)\] +(\d+) +(\d+) +(\d+) +(\d+) +(\d+) +(\d+) +(-?\d+) (.*)$", re.M)
KILLED = re.compile(
    r"^(.*): Killed process (\d+) .* anon-rss:(\d+)kB, file-rss:(\d+)kB, shmem-rss:(\d+)kB, UID:(\d+) pgtables:(\d+)kB oom_score_adj:(-?\d+)$", re.M
)
FIRST = re.compile(r"^(.*) invoked oom-killer: gfp_mask=(\w+)\(.*\), order=(-?\d+), oom_score_adj=(-?\d+)$", re.M)


def table(report: str) -> list[Task]:
    """The report's processes. How rss is made up is known of the victim only; the rules need the sum."""
    tasks = [
        Task(int(pid), comm, int(vm), int(rss), 0, 0, int(tables), int(swap), int(adjust), int(uid), skip=comm == "in-vfork")
        for pid, uid, _, vm, rss, tables, swap, adjust, comm in ROW.findall(report)
    ]
    killed = KILLED.search(report)
    if killed is None:
        return tasks
    anon, file, shmem = (int(killed[i]) >> 2 for i in (3, 4, 5))
    return [t._replace(rss_anon=anon, rss_file=file, rss_shmem=shmem) if t.pid == int(killed[2]) and t.rss == anon + file + shmem else t for t in tasks]


def totalpages(guest: dict[str, Any], strike: dict[str, str]) -> int:
    return sum(guest["memory"][strike["scenario"]]) // 4


def test_what_is_recorded() -> None:
    assert sum(1 for _, strike in STRIKES if KILLED.search(strike["report"]) and ROW.search(strike["report"])) >= 25
    assert {"tie", "adjust", "kinds", "family", "allocating", "protected", "silent", "share", "swapped", "tables", "asked", "mixed"} <= {
        s["scenario"] for _, s in STRIKES
    }


@pytest.mark.parametrize(("guest", "strike"), STRIKES, ids=NAMES)
def test_a_strike(guest: dict[str, Any], strike: dict[str, str]) -> None:
    """The twin chooses the kernel's victim, and writes its report from its counts."""
    report, total = strike["report"], totalpages(guest, strike)
    comm, gfp, order, adjust = FIRST.search(report).groups()  # type: ignore[union-attr]
    tasks, killed = table(report), KILLED.search(report)
    own = [t for t in tasks if t.comm == comm]
    listed = tasks if "Tasks state" in report else None
    if killed is None:
        assert "Kernel panic" in report
        assert ("no killable" in report) == (select_bad_process(tasks, total) is None)
        assert report.startswith(oom_report(comm, int(gfp, 16), int(order), int(adjust), parse(report), listed, None))
        return
    message, pid = killed[1], int(killed[2])
    if message.endswith("(oom_kill_allocating_task)"):
        assert [t.pid for t in own] == [pid] and own[0].oom_score_adj > -1000
        victim = own[0]
    elif listed is None:
        uid, tables, adj = int(killed[6]), int(killed[7]) << 10, int(killed[8])
        vm = int(re.search(r"total-vm:(\d+)kB", report).group(1)) >> 2  # type: ignore[union-attr]
        name = re.search(r"Killed process \d+ \((.*)\) total", report).group(1)  # type: ignore[union-attr]
        victim = Task(pid, name, vm, *(int(killed[i]) >> 2 for i in (3, 4, 5)), tables, 0, adj, uid)
    else:
        chosen = select_bad_process(tasks, total)
        assert chosen is not None
        victim, points = chosen
        assert victim.pid == pid
        assert all(oom_badness(t, total) <= points for t in tasks)
    text = oom_report(comm, int(gfp, 16), int(order), int(adjust), parse(report), listed, victim, message)
    assert text == report


def test_a_tie_goes_to_the_youngest() -> None:
    victims = [s["report"] for _, s in STRIKES if s["scenario"] == "tie"]
    tasks = table(victims[0])
    most = max(t.rss + t.pgtables_bytes // 4096 for t in tasks if t.comm in "abc")
    assert [t.comm for t in tasks if t.rss + t.pgtables_bytes // 4096 == most] == ["a", "b", "c"]
    assert re.search(r"Killed process \d+ \(c\)", victims[0])


@pytest.mark.parametrize("guest", GUESTS, ids=[f"{g['mem_mib']}m-{g['cpus']}cpu-{i}" for i, g in enumerate(GUESTS)])
def test_oom_score_as_proc_prints_it(guest: dict[str, Any]) -> None:
    compared = 0
    for scenario, rows in guest["scores"].items():
        total = sum(guest["memory"][scenario]) // 4
        for comm, pid, adjust, score, rss, swap, tables in rows:
            task = Task(pid, comm, 0, rss >> 2, 0, 0, tables << 10, swap >> 2, adjust, unkillable=pid == 1, skip=comm == "in-vfork")
            assert oom_score(oom_badness(task, total), total) == score, (scenario, comm)
            compared += 1
    assert compared >= 3


def test_badness_of_the_unkillable() -> None:
    task = Task(5, "x", 1000, 100, 20, 3, 40960, 7)
    assert oom_badness(task, 20000) == 140 and oom_badness(task._replace(oom_score_adj=-999), 20000) == 140 - 999 * 20
    assert oom_badness(task, 999) == oom_badness(task._replace(oom_score_adj=900), 999)  # less than 1000 pages: the adjustment is nothing
    for change in ({"oom_score_adj": -1000}, {"unkillable": True}, {"skip": True}):
        assert oom_badness(task._replace(**change), 20000) == LONG_MIN
    assert oom_score(LONG_MIN, 20000) == 0 and oom_score(-1, 20000) == 666 and oom_score(0, 20000) == 666 and oom_score(20000, 20000) == 1333
    assert select_bad_process([], 20000) is None


def small() -> tuple[mmtwin.Machine, list[Any]]:
    machine = mmtwin.boot("linux-6.1", ram="128MiB", cpus=1)
    found = []
    for name, mib in (("small", 1), ("large", 8), ("medium", 4)):
        process = machine.spawn(name)
        process.touch(process.mmap(mib << 20), mib << 20)
        found.append(process)
    return machine, found


def test_a_machine_kills_the_worst_and_has_its_memory_back() -> None:
    machine, (few, large, medium) = small()
    free, frames = machine.free, sum(large.rss().values())
    what_if = machine.copy()
    kill = out_of_memory(machine, 0, 0x140CCA, 0, few)
    assert kill is not None and kill.victim.comm == "large" and kill.points == frames + kill.victim.pgtables_bytes // 4096
    assert machine.oom_kills == [kill] and not large.alive and machine.free > free + 2000
    assert kill.report.startswith("small invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0, oom_score_adj=0\nMem-Info:\n")
    assert kill.report.splitlines()[-1].startswith(f"Out of memory: Killed process {large.pid} (large) total-vm:")
    assert [t.comm for t in table(kill.report)] == ["small", "large", "medium"]
    machine.validate()
    assert what_if.oom_kills == [] and len(what_if.processes()) == 3
    what_if.process(large.pid).oom_score_adj = -1000
    asked = what_if.out_of_memory()
    assert asked is not None and asked.victim.pid == medium.pid and "order=-1" in asked.report


def test_the_settings() -> None:
    machine, (few, large, medium) = small()
    machine.oom_dump_tasks = 0
    machine.oom_kill_allocating_task = 1
    copy = machine.copy()
    with pytest.raises(OomKilled, match="Killed process") as killed:
        out_of_memory(copy, 0, 0x140CCA, 0, copy.process(few.pid))
    assert killed.value.victim == few.pid and "Tasks state" not in killed.value.report and few.pid not in copy.processes()
    assert killed.value.report.splitlines()[-1].startswith("Out of memory (oom_kill_allocating_task): Killed process ")
    assert pickle.loads(pickle.dumps(killed.value)).victim == few.pid
    few.oom_score_adj = -1000  # then the worst dies all the same
    kill = out_of_memory(machine, 0, 0x140CCA, 0, few)
    assert kill is not None and kill.victim.pid == large.pid
    machine.panic_on_oom = 1
    with pytest.raises(KernelPanic, match="system-wide panic_on_oom is enabled") as panic:
        out_of_memory(machine, 0, 0x140CCA, 0, medium)
    assert panic.value.report.endswith("Kernel panic - not syncing: Out of memory: system-wide panic_on_oom is enabled\n")
    machine.panic_on_oom, medium.oom_score_adj = 0, -1000
    with pytest.raises(KernelPanic, match="System is deadlocked on memory") as panic:
        out_of_memory(machine, 0, 0x140CCA, 0, few)
    assert "Out of memory and no killable processes...\n" in panic.value.report
    assert machine.out_of_memory() is None and machine.reports  # asked for by sysrq: no panic


def test_who_does_not_kill() -> None:
    machine, (few, *_) = small()
    assert out_of_memory(machine, 0, 0xC40, 0, few) is None and not machine.oom_kills  # without __GFP_FS
    with pytest.raises(RequestError, match="orders 0 to 3"):
        out_of_memory(machine, 4, 0xCC0, 0, few)


def test_oom_score_adj_of_a_process() -> None:
    machine, (few, *_) = small()
    for wrong in (-1001, 1001):
        with pytest.raises(RequestError, match="expected -1000 to 1000"):
            few.oom_score_adj = wrong
    few.oom_score_adj = 300
    child = few.fork()
    assert child.oom_score_adj == 300 and machine.copy().process(child.pid).oom_score_adj == 300
    total = machine.totalpages()
    assert few.oom_score() == oom_score(oom_badness(few, total), total) > 666
    assert dataclasses.is_dataclass(OomKill) and task_of(few).oom_score_adj == 300
