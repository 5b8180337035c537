"""The OOM killer: which process dies when memory is used up, and what the kernel prints (mm/oom_kill.c of Linux 6.1).

The rules (`oom_badness`, `select_bad_process`) work on `Task`, what the kernel's task table shows of a process; `task_of` makes one of a process of a machine. `OutOfMemory` is the part of
`Machine` that has the sysctls and lets it strike.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mmtwin.errors import KernelPanic, OomKilled, RequestError
from mmtwin.gfp import GFP
from mmtwin.show_mem import MemInfo, excessive_slab, format_mem_info, format_unreclaimable_slab, hex_flags, mem_info, show_mem
from mmtwin.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from mmtwin.machine import Machine
    from mmtwin.process import Process

OOM_SCORE_ADJ_MIN, OOM_SCORE_ADJ_MAX = -1000, 1000
LONG_MIN = -(1 << 63)
"""``oom_badness`` of a process that may not be killed."""
PAGE_ALLOC_COSTLY_ORDER = 3
SYSRQ_ORDER = -1
"""The order of an OOM kill that somebody asked for (``echo f > /proc/sysrq-trigger``)."""
OTHER_UID = 1000
"""Printed for processes without root's rights: a machine keeps no user numbers."""


class Task(NamedTuple):
    """A process as the OOM killer sees it; sizes in pages.

    :ivar pgtables_bytes: ``mm_pgtables_bytes``: page tables below the PGD.
    :ivar swapents: pages in swap.
    :ivar unkillable: pid 1, a kernel thread, or a process without an address space: neither listed nor killed.
    :ivar skip: MMF_OOM_SKIP (its memory was taken back already), or in the middle of a vfork: listed, not killed.
    """

    pid: int
    comm: str
    total_vm: int
    rss_anon: int
    rss_file: int
    rss_shmem: int
    pgtables_bytes: int
    swapents: int = 0
    oom_score_adj: int = 0
    uid: int = 0
    unkillable: bool = False
    skip: bool = False

    @property
    def rss(self) -> int:
        """``get_mm_rss``."""
        return self.rss_anon + self.rss_file + self.rss_shmem


@dataclass(frozen=True)
class OomKill:
    """A strike.

    :ivar victim: who was killed.
    :ivar points: its badness, in pages.
    :ivar report: what the kernel prints, without the stack trace.
    """

    victim: Task
    points: int
    report: str


def task_of(process: Process) -> Task:
    """What the OOM killer knows of a process."""
    uid = 0 if process.root else OTHER_UID
    if process.mm < 0 or not process.alive or process.pid == 1:
        return Task(process.pid, process.name, 0, 0, 0, 0, 0, 0, process.oom_score_adj, uid, unkillable=True)
    mm = process.users.mm[process.mm]
    total, anon, file, shmem = (int(mm[name]) for name in ("total_vm", "rss_anon", "rss_file", "rss_shmem"))
    return Task(process.pid, process.name, total, anon, file, shmem, process.table_bytes, int(mm["rss_swap"]), process.oom_score_adj, uid)


def oom_badness(process: Process | Task, totalpages: int) -> int:
    """``oom_badness``: pages in memory, in swap and in page tables, shifted by oom_score_adj in thousandths of all memory.

    :param totalpages: managed pages of RAM, and pages of swap.
    :returns: `LONG_MIN` for a process that may not be killed; may be negative otherwise.
    """
    task = process if isinstance(process, Task) else task_of(process)
    if task.unkillable or task.skip or task.oom_score_adj == OOM_SCORE_ADJ_MIN:
        return LONG_MIN
    return task.rss + task.swapents + task.pgtables_bytes // PAGE_SIZE + task.oom_score_adj * (totalpages // 1000)


def oom_score(badness: int, totalpages: int) -> int:
    """/proc/PID/oom_score: 0 to 2000, 667 for a process without memory and adjustment."""
    if badness == LONG_MIN:
        return 0
    part = abs(badness) * 1000 // totalpages  # C divides towards zero
    return max((1000 + (part if badness >= 0 else -part)) * 2, 0) // 3


def select_bad_process(tasks: Iterable[Task], totalpages: int) -> tuple[Task, int] | None:
    """``select_bad_process``: the worst task and its points; of equals the last in the list, which is the youngest.

    :param tasks: in the order of the kernel's list: as they began.
    """
    chosen: Task | None = None
    most = LONG_MIN
    for task in tasks:
        points = oom_badness(task, totalpages)
        if points != LONG_MIN and points >= most:
            chosen, most = task, points
    return None if chosen is None else (chosen, most)


# What it prints


def invoked_line(comm: str, gfp: int, order: int, oom_score_adj: int) -> str:
    """The first line of ``dump_header``."""
    return f"{comm} invoked oom-killer: gfp_mask={hex_flags(gfp)}, order={order}, oom_score_adj={oom_score_adj}\n"


def dump_tasks(tasks: Iterable[Task]) -> str:
    """``dump_tasks``: one line a process."""
    lines = ["Tasks state (memory values in pages):", "[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name"]
    lines += [
        f"[{t.pid:7}] {t.uid:5} {t.pid:5} {t.total_vm:8} {t.rss:8} {t.pgtables_bytes:8} {t.swapents:8}         {t.oom_score_adj:5} {t.comm}"
        for t in tasks
        if not t.unkillable
    ]
    return "".join(f"{line}\n" for line in lines)


def summary_line(victim: Task) -> str:
    """``dump_oom_summary`` on a machine with one node, one cpuset and no memory cgroups."""
    where = "constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/"
    return f"oom-kill:{where},task={victim.comm},pid={victim.pid},uid={victim.uid}\n"


def killed_line(victim: Task, message: str = "Out of memory") -> str:
    """What ``__oom_kill_process`` prints."""
    k = PAGE_SHIFT - 10
    return (
        f"{message}: Killed process {victim.pid} ({victim.comm}) total-vm:{victim.total_vm << k}kB, anon-rss:{victim.rss_anon << k}kB, file-rss:{victim.rss_file << k}kB, "
        f"shmem-rss:{victim.rss_shmem << k}kB, UID:{victim.uid} pgtables:{victim.pgtables_bytes >> 10}kB oom_score_adj:{victim.oom_score_adj}\n"
    )


def oom_report(
    comm: str, gfp: int, order: int, oom_score_adj: int, info: MemInfo, tasks: Iterable[Task] | None, victim: Task | None, message: str = "Out of memory"
) -> str:
    """The whole report of a strike, without the stack trace.

    :param tasks: the processes; None: vm.oom_dump_tasks is 0.
    :param victim: None: the kernel panics instead, and this is what it prints before.
    """
    text = invoked_line(comm, gfp, order, oom_score_adj) + format_mem_info(info)
    if excessive_slab(info):
        text += format_unreclaimable_slab(info.unreclaimable_slab)
    if tasks is not None:
        text += dump_tasks(tasks)
    return text + (summary_line(victim) + killed_line(victim, message) if victim is not None else "")


# A machine's


def out_of_memory(
    machine: Machine, order: int, gfp: int, cpu: int = 0, process: Process | None = None, oom_kill_allocating_task: int | None = None, panic_on_oom: int | None = None
) -> OomKill | None:  # fmt: skip
    """``out_of_memory``: kills a process, whose memory is free when this returns (in Linux soon after: it dies by itself, or the OOM reaper takes its memory after 2 s).

    :param process: who asks for memory; None: the kernel itself, under the name of the CPU's task.
    :param oom_kill_allocating_task: and `panic_on_oom`: instead of the machine's sysctls.
    :returns: the strike, also appended to `Machine.oom_kills`; None for a request without __GFP_FS, which kills nobody and is expected to try again.
    :raises OomKilled: the victim is `process`.
    :raises KernelPanic: nobody may be killed, or panic_on_oom is set.
    :raises RequestError: an order for which the page allocator never comes here.
    """
    order, gfp = operator.index(order), operator.index(gfp)
    if not SYSRQ_ORDER <= order <= PAGE_ALLOC_COSTLY_ORDER:
        raise RequestError(f"out_of_memory for order {order}: the OOM killer is for orders 0 to {PAGE_ALLOC_COSTLY_ORDER}; -1 when it is asked for (sysrq)")
    if gfp and not gfp & GFP.FS:
        return None
    sysrq = order == SYSRQ_ORDER
    comm, adjust = (machine.context(cpu).task.comm, 0) if process is None else (process.name, process.oom_score_adj)
    totalpages = machine.totalpages()
    tasks = [task_of(p) for p in machine.processes().values()]
    listed = tasks if machine.oom_dump_tasks else None
    panic = machine.panic_on_oom if panic_on_oom is None else panic_on_oom
    if panic and not sysrq:
        kind = "compulsory" if panic == 2 else "system-wide"
        raise _panic(oom_report(comm, gfp, order, adjust, mem_info(machine, cpu, gfp), listed, None), f"Out of memory: {kind} panic_on_oom is enabled")
    own = machine.oom_kill_allocating_task if oom_kill_allocating_task is None else oom_kill_allocating_task
    message, chosen = "Out of memory", None
    if own and process is not None and process.oom_score_adj != OOM_SCORE_ADJ_MIN and not task_of(process).unkillable:
        task = task_of(process)
        message, chosen = "Out of memory (oom_kill_allocating_task)", (task, oom_badness(task, totalpages))
    else:
        chosen = select_bad_process(tasks, totalpages)
    if chosen is None:
        report = oom_report(comm, gfp, order, adjust, mem_info(machine, cpu, gfp), listed, None) + "Out of memory and no killable processes...\n"
        if sysrq:
            machine.reports.append(report)
            return None
        raise _panic(report, "System is deadlocked on memory")
    victim, points = chosen
    kill = OomKill(victim, points, oom_report(comm, gfp, order, adjust, mem_info(machine, cpu, gfp), listed, victim, message))
    machine.oom_kills.append(kill)
    machine.process(victim.pid).exit(cpu)
    if process is not None and victim.pid == process.pid:
        raise OomKilled(f"{message}: Killed process {victim.pid} ({victim.comm}), which was asking for memory: {points} points", kill.report, victim.pid)
    return kill


def _panic(report: str, why: str) -> KernelPanic:
    return KernelPanic(f"Kernel panic - not syncing: {why}", report + f"Kernel panic - not syncing: {why}\n")


def check_oom_score_adj(value: int) -> int:
    """:raises RequestError: what /proc/PID/oom_score_adj refuses (EINVAL)."""
    value = operator.index(value)
    if not OOM_SCORE_ADJ_MIN <= value <= OOM_SCORE_ADJ_MAX:
        raise RequestError(f"oom_score_adj {value}: expected {OOM_SCORE_ADJ_MIN} to {OOM_SCORE_ADJ_MAX}")
    return value


class OutOfMemory:
    """The OOM killer of a machine; mixed into `Machine`.

    :ivar oom_kill_allocating_task: vm.oom_kill_allocating_task: who asks is killed, not the worst.
    :ivar oom_dump_tasks: vm.oom_dump_tasks: the report lists the processes.
    :ivar panic_on_oom: vm.panic_on_oom: 0 never; 1, 2 (also where only a part of the memory is used up, which is not modelled).
    """

    oom_kill_allocating_task = 0
    oom_dump_tasks = 1
    panic_on_oom = 0
    _oom_kills: list[OomKill] | None = None

    if TYPE_CHECKING:  # of the machine's other parts
        swap_pages: int

        @property
        def managed(self) -> int:
            """Pages of the page allocator."""
            return 0

        processes: Callable[[], Mapping[int, Process]]

    @property
    def oom_kills(self) -> list[OomKill]:
        """What the OOM killer has done, in order."""
        if self._oom_kills is None:
            self._oom_kills = []
        return self._oom_kills

    def totalpages(self) -> int:
        """Pages of memory and of swap: what oom_score_adj is a part of."""
        return int(self.managed) + int(getattr(self, "swap_pages", 0))

    def out_of_memory(self, order: int = SYSRQ_ORDER, gfp: int = 0xCC0, cpu: int = 0, process: Process | None = None) -> OomKill | None:
        """Lets the OOM killer strike: see `oom.out_of_memory`. Without arguments as ``echo f > /proc/sysrq-trigger``."""
        return out_of_memory(self, order, gfp, cpu, process)  # type: ignore[arg-type]

    def show_mem(self, cpu: int = 0) -> str:
        """``echo m > /proc/sysrq-trigger``: all counts of memory in the kernel's text (`show_mem`)."""
        return show_mem(self, cpu)  # type: ignore[arg-type]

    def _copy_oom(self, source: OutOfMemory) -> None:
        self.oom_kill_allocating_task, self.oom_dump_tasks, self.panic_on_oom = source.oom_kill_allocating_task, source.oom_dump_tasks, source.panic_on_oom
        self._oom_kills = None if source._oom_kills is None else list(source._oom_kills)


__all__ = ("OomKill", "OutOfMemory", "Task", "oom_badness", "oom_report", "oom_score", "out_of_memory", "select_bad_process", "task_of")
