"""The context that code runs in: preemption, interrupts, RCU, and the scopes that change what an allocation may do (include/linux/preempt.h, sched/mm.h).

`Contexts` is the part of `Machine` that knows, for each CPU, what the kernel keeps in ``preempt_count``, the interrupt flag and ``current``. A machine in
plain process context pays one comparison per request (`_contexts` is 0); everything else happens only inside a ``with`` block of this module.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from mmtwin.errors import KernelBug, RequestError, SchedulingWhileAtomic, SleepingInAtomic
from mmtwin.gfp import GFP
from mmtwin.profiles import Profile

PREEMPT_MASK, SOFTIRQ_MASK, HARDIRQ_MASK, NMI_MASK = 0xFF, 0xFF00, 0xF0000, 0xF00000
PREEMPT_OFFSET, SOFTIRQ_OFFSET, HARDIRQ_OFFSET, NMI_OFFSET = 1, 1 << 8, 1 << 16, 1 << 20
SOFTIRQ_DISABLE_OFFSET = 2 * SOFTIRQ_OFFSET
"""What local_bh_disable adds: bit 8 alone means that a softirq is being served."""
IRQ_MASK = NMI_MASK | HARDIRQ_MASK | SOFTIRQ_MASK

PF_MEMALLOC, PF_MEMALLOC_NOFS, PF_MEMALLOC_NOIO, PF_MEMALLOC_PIN = 0x800, 0x40000, 0x80000, 0x10000000
"""``current->flags`` of 6.1 (include/linux/sched.h)."""

HZ = 250
STACK_DEPTH = 16
ENOMEM, EAGAIN = 12, 11
CUT_HERE = "------------[ cut here ]------------"

SITES: dict[str, dict[str, tuple[str, int]]] = {
    "6.1": {
        "alloc": ("include/linux/sched/mm.h", 274),
        "alloc_vmap_area": ("mm/vmalloc.c", 1673),
        "vm_unmap_aliases": ("mm/vmalloc.c", 2214),
        "vm_unmap_ram": ("mm/vmalloc.c", 2280),
        "__get_vm_area_node": ("mm/vmalloc.c", 2554),
        "remove_vm_area": ("mm/vmalloc.c", 2663),
        "vfree_atomic": ("mm/vmalloc.c", 2818),
        "vfree": ("mm/vmalloc.c", 2858),
        "vfree_nmi": ("mm/vmalloc.c", 2854),
        "vunmap_interrupt": ("mm/vmalloc.c", 2878),
        "vunmap": ("mm/vmalloc.c", 2879),
        "vmap": ("mm/vmalloc.c", 2907),
    },
    "6.12": {
        "alloc": ("include/linux/sched/mm.h", 321),
        "alloc_vmap_area": ("mm/vmalloc.c", 2030),
        "vm_unmap_ram": ("mm/vmalloc.c", 3001),
        "__get_vm_area_node": ("mm/vmalloc.c", 3177),
        "remove_vm_area": ("mm/vmalloc.c", 3289),
        "vfree_atomic": ("mm/vmalloc.c", 3377),
        "vfree_nmi": ("mm/vmalloc.c", 3417),
        "vfree": ("mm/vmalloc.c", 3419),
        "vunmap_interrupt": ("mm/vmalloc.c", 3466),
        "vunmap": ("mm/vmalloc.c", 3467),
        "vmap": ("mm/vmalloc.c", 3503),
    },
}
"""Where the checks stand, which is what their reports name: might_alloc for every allocation, might_sleep and BUG_ON of mm/vmalloc.c."""


@dataclass(frozen=True)
class Task:
    """``current``: who runs on a CPU, as far as reports show it.

    :ivar comm: its name.
    :ivar stack: address of its stack, 0 if not known; DMA debugging refuses memory that lies on it.
    """

    comm: str = "init"
    pid: int = 1
    stack: int = 0


@dataclass
class CpuContext:
    """What one CPU is doing.

    :ivar preempt_count: as the kernel's, without PREEMPT_NEED_RESCHED.
    :ivar irqs_off: nesting of disabled interrupts.
    :ivar rcu: nesting of RCU read sides.
    :ivar flags: PF_MEMALLOC* of the task.
    :ivar disabled_at: where preemption was first disabled (CONFIG_DEBUG_PREEMPT).
    """

    preempt_count: int = 0
    irqs_off: int = 0
    rcu: int = 0
    flags: int = 0
    non_block: int = 0
    task: Task = field(default_factory=Task)
    disabled_at: str = ""


def callers(depth: int = STACK_DEPTH) -> list[str]:
    """The callers outside of mmtwin, the innermost first, as ``function (file:line)``."""
    frame, found = sys._getframe(1), list[str]()
    while frame is not None and len(found) < depth:
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] != "mmtwin" and module != "contextlib":
            name = frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name
            found.append(f"{name} ({frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno})")
        frame = frame.f_back  # type: ignore[assignment]
    return found


class Contexts:
    """The context managers, predicates and checks; mixed into `Machine`.

    :ivar atomic_sleep: what happens when a request that may sleep is made where that is forbidden: "raise" (the report of CONFIG_DEBUG_ATOMIC_SLEEP as an
        exception, before the request is served), "report" (it is added to `reports` and the request is served, as the kernel does) or "off" (a kernel
        without that option: nothing, unless it really had to sleep).
    :ivar debug_preempt: CONFIG_DEBUG_PREEMPT: reports say where preemption was disabled.
    :ivar preempt_rcu: CONFIG_PREEMPT_RCU: an RCU read side leaves ``preempt_count`` alone; without it it disables preemption.
    :ivar jiffies: the clock of the once-a-second limit of reports, in units of 1/250 s; it stands still unless you move it.
    :ivar reports: what the kernel printed without stopping the request.
    """

    profile: Profile
    cpus: int

    _contexts = 0
    """Contexts and scopes in effect on all CPUs: 0 means that no request needs a look."""
    atomic_sleep = "raise"
    debug_preempt = False
    preempt_rcu = True
    jiffies = 0
    _resched_reported: int | None = None
    _cpu_contexts: list[CpuContext] | None = None
    _reports: list[str] | None = None

    # The state of a CPU

    def context(self, cpu: int = 0) -> CpuContext:
        """What CPU `cpu` is doing. :raises RequestError: no such CPU."""
        if not 0 <= cpu < self.cpus:
            raise RequestError(f"CPU {cpu}: this machine has CPUs 0 to {self.cpus - 1}")
        if self._cpu_contexts is None:
            self._cpu_contexts = [CpuContext() for _ in range(self.cpus)]
        return self._cpu_contexts[cpu]

    @property
    def reports(self) -> list[str]:
        """What the kernel printed without stopping the request."""
        if self._reports is None:
            self._reports = []
        return self._reports

    def preempt_count(self, cpu: int = 0) -> int:
        """``preempt_count()``."""
        return self.context(cpu).preempt_count

    def in_nmi(self, cpu: int = 0) -> bool:
        """``in_nmi()``."""
        return bool(self.context(cpu).preempt_count & NMI_MASK)

    def in_hardirq(self, cpu: int = 0) -> bool:
        """``in_hardirq()``."""
        return bool(self.context(cpu).preempt_count & HARDIRQ_MASK)

    def in_softirq(self, cpu: int = 0) -> bool:
        """``in_softirq()``: serving one, or bottom halves are disabled."""
        return bool(self.context(cpu).preempt_count & SOFTIRQ_MASK)

    def in_serving_softirq(self, cpu: int = 0) -> bool:
        """``in_serving_softirq()``."""
        return bool(self.context(cpu).preempt_count & SOFTIRQ_OFFSET)

    def in_interrupt(self, cpu: int = 0) -> bool:
        """``in_interrupt()``: NMI, hard interrupt, softirq, or bottom halves disabled."""
        return bool(self.context(cpu).preempt_count & IRQ_MASK)

    def in_task(self, cpu: int = 0) -> bool:
        """``in_task()``: also true with bottom halves disabled."""
        return not self.context(cpu).preempt_count & (NMI_MASK | HARDIRQ_MASK | SOFTIRQ_OFFSET)

    def in_atomic(self, cpu: int = 0) -> bool:
        """``in_atomic()``."""
        return self.context(cpu).preempt_count != 0

    def irqs_disabled(self, cpu: int = 0) -> bool:
        """``irqs_disabled()``."""
        return self.context(cpu).irqs_off > 0

    def may_sleep(self, cpu: int = 0) -> bool:
        """Whether `might_sleep` is silent here (``__might_resched``): nothing disabled, no RCU read side, not the idle task."""
        c = self.context(cpu)
        return not (c.preempt_count or c.rcu or c.irqs_off or c.non_block or c.task.pid == 0)

    # Context managers

    @contextmanager
    def _entered(self, cpu: int, count: int = 0, irqs: int = 0, rcu: int = 0) -> Iterator[None]:
        c = self.context(cpu)
        for mask, what in ((PREEMPT_MASK, "preempt_disable"), (SOFTIRQ_MASK, "softirq"), (HARDIRQ_MASK, "hard interrupt"), (NMI_MASK, "NMI")):
            if (c.preempt_count & mask) + (count & mask) > mask:
                raise RequestError(f"{what} on CPU {cpu}: nested deeper than preempt_count 0x{c.preempt_count:08x} has bits for")
        before = c.disabled_at
        if count and not c.preempt_count:
            c.disabled_at = next(iter(callers(1)), "<unknown>")
        c.preempt_count, c.irqs_off, c.rcu = c.preempt_count + count, c.irqs_off + irqs, c.rcu + rcu
        self._contexts += 1
        try:
            yield
        finally:
            c.preempt_count, c.irqs_off, c.rcu, c.disabled_at = c.preempt_count - count, c.irqs_off - irqs, c.rcu - rcu, before
            self._contexts -= 1

    def preempt_disabled(self, cpu: int = 0) -> AbstractContextManager[None]:
        """``preempt_disable`` ... ``preempt_enable``."""
        return self._entered(cpu, PREEMPT_OFFSET)

    def atomic(self, cpu: int = 0) -> AbstractContextManager[None]:
        """Any atomic section: as `preempt_disabled`."""
        return self._entered(cpu, PREEMPT_OFFSET)

    def spinlock(self, cpu: int = 0) -> AbstractContextManager[None]:
        """``spin_lock`` ... ``spin_unlock`` (PREEMPT_LOCK_OFFSET)."""
        return self._entered(cpu, PREEMPT_OFFSET)

    def spinlock_irq(self, cpu: int = 0) -> AbstractContextManager[None]:
        """``spin_lock_irqsave`` ... ``spin_unlock_irqrestore``."""
        return self._entered(cpu, PREEMPT_OFFSET, irqs=1)

    def spinlock_bh(self, cpu: int = 0) -> AbstractContextManager[None]:
        """``spin_lock_bh`` ... ``spin_unlock_bh`` (SOFTIRQ_LOCK_OFFSET)."""
        return self._entered(cpu, SOFTIRQ_DISABLE_OFFSET + PREEMPT_OFFSET)

    def bh_disabled(self, cpu: int = 0) -> AbstractContextManager[None]:
        """``local_bh_disable`` ... ``local_bh_enable``: still the task's own code, but `in_interrupt` says yes."""
        return self._entered(cpu, SOFTIRQ_DISABLE_OFFSET)

    def softirq(self, cpu: int = 0) -> AbstractContextManager[None]:
        """A softirq, tasklet or timer is being served (interrupts are on)."""
        return self._entered(cpu, SOFTIRQ_OFFSET)

    def timer(self, cpu: int = 0) -> AbstractContextManager[None]:
        """A timer's function: as a softirq, and with preemption disabled."""
        return self._entered(cpu, SOFTIRQ_OFFSET + PREEMPT_OFFSET)

    def hardirq(self, cpu: int = 0) -> AbstractContextManager[None]:
        """A hard interrupt's handler, which runs with interrupts off."""
        return self._entered(cpu, HARDIRQ_OFFSET, irqs=1)

    def nmi(self, cpu: int = 0) -> AbstractContextManager[None]:
        """An NMI handler: nmi_enter adds NMI_OFFSET and HARDIRQ_OFFSET."""
        return self._entered(cpu, NMI_OFFSET + HARDIRQ_OFFSET, irqs=1)

    def irqs_off(self, cpu: int = 0) -> AbstractContextManager[None]:
        """``local_irq_disable`` ... ``local_irq_enable``; `irqs_disabled` is the predicate."""
        return self._entered(cpu, irqs=1)

    def rcu_read(self, cpu: int = 0) -> AbstractContextManager[None]:
        """``rcu_read_lock`` ... ``rcu_read_unlock``."""
        return self._entered(cpu, 0 if self.preempt_rcu else PREEMPT_OFFSET, rcu=1 if self.preempt_rcu else 0)

    @contextmanager
    def non_block(self, cpu: int = 0) -> Iterator[None]:
        """``non_block_start`` ... ``non_block_end``."""
        c = self.context(cpu)
        c.non_block, self._contexts = c.non_block + 1, self._contexts + 1
        try:
            yield
        finally:
            c.non_block, self._contexts = c.non_block - 1, self._contexts - 1

    @contextmanager
    def task(self, comm: str, pid: int, cpu: int = 0, *, stack: int = 0) -> Iterator[Task]:
        """Another task runs on the CPU, as reports name it; pid 0 is the idle task, which may never sleep.

        :param stack: address of its stack (16 KiB).
        """
        c = self.context(cpu)
        before, c.task = c.task, Task(comm[:15], pid, stack)
        idle = int(pid == 0)
        self._contexts += idle
        try:
            yield c.task
        finally:
            c.task = before
            self._contexts -= idle

    # Scopes of memalloc_*_save

    @contextmanager
    def _scope(self, flag: int, cpu: int) -> Iterator[None]:
        c = self.context(cpu)
        before, c.flags = c.flags & flag, c.flags | flag
        self._contexts += 1
        try:
            yield
        finally:
            c.flags = c.flags & ~flag | before
            self._contexts -= 1

    def memalloc_noio(self, cpu: int = 0) -> AbstractContextManager[None]:
        """``memalloc_noio_save`` ... ``_restore``: requests lose __GFP_IO and __GFP_FS."""
        return self._scope(PF_MEMALLOC_NOIO, cpu)

    def memalloc_nofs(self, cpu: int = 0) -> AbstractContextManager[None]:
        """``memalloc_nofs_save`` ... ``_restore``: requests lose __GFP_FS."""
        return self._scope(PF_MEMALLOC_NOFS, cpu)

    def memalloc_noreclaim(self, cpu: int = 0) -> AbstractContextManager[None]:
        """``memalloc_noreclaim_save`` ... ``_restore`` (PF_MEMALLOC): requests may use every reserve and never reclaim."""
        return self._scope(PF_MEMALLOC, cpu)

    def memalloc_pin(self, cpu: int = 0) -> AbstractContextManager[None]:
        """``memalloc_pin_save`` ... ``_restore``: requests lose __GFP_MOVABLE."""
        return self._scope(PF_MEMALLOC_PIN, cpu)

    def current_gfp_context(self, gfp: int, cpu: int = 0) -> int:
        """``current_gfp_context``: the flags that the task's scopes leave of `gfp` (include/linux/sched/mm.h)."""
        flags = self.context(cpu).flags
        if flags & PF_MEMALLOC_NOIO:
            gfp &= ~(GFP.IO | GFP.FS)
        elif flags & PF_MEMALLOC_NOFS:
            gfp &= ~GFP.FS
        if flags & PF_MEMALLOC_PIN:
            gfp &= ~GFP.MOVABLE
        return int(gfp)

    def _pfmemalloc(self, cpu: int) -> bool:
        """Whether PF_MEMALLOC counts (``__gfp_pfmemalloc_flags``): not for what only interrupted the task."""
        c = self.context(cpu)
        return bool(c.flags & PF_MEMALLOC and (c.preempt_count & SOFTIRQ_OFFSET or not c.preempt_count & IRQ_MASK))

    # The checks

    def _may_allocate(self, gfp: int, cpu: int, what: str = "") -> int:
        """``might_alloc`` and ``current_gfp_context`` in front of every allocation; called only when `_contexts` is not 0.

        :returns: the flags the request is served with. PF_MEMALLOC is expressed as __GFP_MEMALLOC, which gives the same reserves.
        :raises SleepingInAtomic: it may sleep where that is forbidden.
        """
        if gfp & GFP.DIRECT_RECLAIM:
            self.might_sleep(cpu, "alloc", what)
        gfp = self.current_gfp_context(gfp, cpu)
        if self._pfmemalloc(cpu) and not gfp & GFP.NOMEMALLOC:
            gfp |= GFP.MEMALLOC
        return int(gfp)

    def might_sleep(self, cpu: int = 0, site: str = "alloc", what: str = "", *, file: str = "", line: int = 0) -> None:
        """``might_sleep``: reports if sleeping is forbidden on this CPU now.

        :param site: the kernel function whose check it is, a key of `SITES`; or give `file` and `line`.
        :param what: the request, for the message.
        :raises SleepingInAtomic: with `atomic_sleep` "raise".
        """
        if self._contexts == 0 or self.atomic_sleep == "off" or self.may_sleep(cpu):
            return
        if not file:
            file, line = self.site(site)
        printed = self._resched_reported is None or self._resched_reported == 0 or self.jiffies >= self._resched_reported + HZ
        if printed:
            self._resched_reported = self.jiffies
        c = self.context(cpu)
        lines = [
            f"BUG: sleeping function called from invalid context at {file}:{line}",
            f"in_atomic(): {int(c.preempt_count != 0)}, irqs_disabled(): {int(c.irqs_off > 0)}, non_block: {c.non_block}, pid: {c.task.pid}, name: {c.task.comm}",
            f"preempt_count: {c.preempt_count:x}, expected: 0",
        ]
        if self.preempt_rcu:
            lines.append(f"RCU nest depth: {c.rcu}, expected: 0")
        lines += self._disabled_at(c)
        report = "\n".join([*lines, *self.dump_stack(cpu)])
        if self.atomic_sleep == "report":
            if printed:
                self.reports.append(report)
            return
        asked = f" by {what}" if what else ""
        error = SleepingInAtomic(f"{lines[0]}{asked}: {self._where(cpu)}, where nothing may sleep; use GFP_ATOMIC, or do it in process context", report)
        error.printed = printed
        raise error

    def _had_to_sleep(self, cpu: int, what: str = "") -> None:
        """``schedule``'s own check, for a request that cannot be served without waiting (``__schedule_bug``).

        Disabled interrupts alone go unnoticed: only ``preempt_count`` counts, here with the 1 that schedule adds, and an RCU read side has its own warning.

        :raises SchedulingWhileAtomic: the request must wait in an atomic section.
        """
        if self._contexts == 0:
            return
        c = self.context(cpu)
        asked = f": {what} had to wait for memory" if what else ""
        if c.preempt_count:
            line = f"BUG: scheduling while atomic: {c.task.comm}/{c.task.pid}/0x{c.preempt_count + PREEMPT_OFFSET:08x}"
            report = "\n".join([line, *self._disabled_at(c), *self.dump_stack(cpu)])
        elif c.rcu:
            line = "Voluntary context switch within RCU read-side critical section!"
            report = self.warning(cpu, "kernel/rcu/tree_plugin.h:320", line)
        else:
            return
        raise SchedulingWhileAtomic(f"{line}{asked}: {self._where(cpu)}", report)

    def _no_reclaim(self, cpu: int, what: str = "") -> int:
        """What becomes of a request that would now reclaim memory: PF_MEMALLOC forbids it (Linux returns NULL), and an atomic section cannot wait.

        :returns: the error, -ENOMEM or -EAGAIN.
        :raises SchedulingWhileAtomic: see `_had_to_sleep`.
        """
        if self.context(cpu).flags & PF_MEMALLOC:
            return -ENOMEM
        self._had_to_sleep(cpu, what)
        return -EAGAIN

    def _vmalloc_context(self, cpu: int, what: str = "vmalloc") -> None:
        """BUG_ON(in_interrupt()) of ``__get_vm_area_node``: vmalloc, vmap, ioremap and module_alloc begin with it, whatever the flags.

        :raises KernelBug: in an interrupt, or with bottom halves disabled.
        """
        if self._contexts and self.in_interrupt(cpu):
            raise self.kernel_bug("__get_vm_area_node", cpu, f"{what} needs process context, whatever the flags; allocate before, or use kmalloc(GFP_ATOMIC)")

    def _vunmap_context(self, cpu: int) -> None:
        """The checks of ``vunmap``. :raises KernelBug: in an interrupt. :raises SleepingInAtomic: elsewhere where nothing may sleep."""
        if self._contexts:
            if self.in_interrupt(cpu):
                raise self.kernel_bug("vunmap_interrupt", cpu, "vunmap is not for interrupts")
            self.might_sleep(cpu, "vunmap", "vunmap")

    def _vfree_context(self, cpu: int, what: str = "vfree") -> bool:
        """The checks of ``vfree`` and ``vfree_atomic``.

        :returns: True if it is to be done later, from a work item (``__vfree_deferred``).
        :raises KernelBug: in an NMI.
        :raises SleepingInAtomic: vfree in an atomic section that is no interrupt.
        """
        atomic = what == "vfree_atomic"
        if self._contexts == 0:
            return atomic
        if self.in_nmi(cpu):
            raise self.kernel_bug("vfree_atomic" if atomic else "vfree_nmi", cpu, f"{what} is not for NMIs")
        if atomic:
            return True
        if not self.in_interrupt(cpu):
            self.might_sleep(cpu, "vfree", what)
            return False
        return True

    def site(self, what: str) -> tuple[str, int]:
        """File and line of a check in this machine's kernel (`SITES`; of 6.1 for kernels that are not listed)."""
        known = SITES.get(self.profile.release, SITES["6.1"])
        return known.get(what) or SITES["6.1"][what]

    def kernel_bug(self, what: str, cpu: int = 0, why: str = "") -> KernelBug:
        """A ``BUG_ON`` that held: "kernel BUG at mm/vmalloc.c:2554!" with what the kernel prints around it."""
        file, line = self.site(what)
        text = f"kernel BUG at {file}:{line}!"
        lines = [CUT_HERE, text, "invalid opcode: 0000 [#1] PREEMPT SMP NOPTI", *self.dump_stack(cpu)]
        c = self.context(cpu)
        if c.preempt_count & IRQ_MASK:
            lines.append("Kernel panic - not syncing: Fatal exception in interrupt")
        return KernelBug(f"{text} {why}: {self._where(cpu)}" if why else text, "\n".join(lines))

    # Reports

    def _where(self, cpu: int) -> str:
        c = self.context(cpu)
        names = (
            ("an NMI", c.preempt_count & NMI_MASK),
            ("a hard interrupt", c.preempt_count & HARDIRQ_MASK and not c.preempt_count & NMI_MASK),
            ("a softirq", c.preempt_count & SOFTIRQ_OFFSET),
            ("bottom halves disabled", c.preempt_count & SOFTIRQ_MASK & ~SOFTIRQ_OFFSET),
            ("preemption disabled", c.preempt_count & PREEMPT_MASK),
            ("interrupts disabled", c.irqs_off and not c.preempt_count & (HARDIRQ_MASK | NMI_MASK)),
            ("an RCU read side", c.rcu),
            ("a non-blocking section", c.non_block),
            ("the idle task", c.task.pid == 0 and not c.preempt_count & (HARDIRQ_MASK | NMI_MASK)),
        )
        return f"CPU {cpu} is in {', '.join(name for name, there in names if there)}"

    def _disabled_at(self, c: CpuContext) -> list[str]:
        """``print_preempt_disable_ip``; a Python file and line stand where the kernel has an address and a symbol."""
        return ["Preemption disabled at:", f"[<{0:016x}>] {c.disabled_at}"] if self.debug_preempt and c.preempt_count else []

    def dump_stack(self, cpu: int = 0) -> list[str]:
        """``dump_stack``: CPU, task, and the Python callers between the marks that the kernel puts around a task's and an interrupt's frames."""
        c = self.context(cpu)
        mark = "NMI" if c.preempt_count & NMI_MASK else "IRQ" if c.preempt_count & (HARDIRQ_MASK | SOFTIRQ_OFFSET) else "TASK"
        head = f"CPU: {cpu} PID: {c.task.pid} Comm: {c.task.comm} Not tainted {self.profile.name}"
        return [head, "Call Trace:", f" <{mark}>", *(f" {caller}" for caller in callers()), f" </{mark}>"]

    def warning(self, cpu: int, where: str, text: str) -> str:
        """The report of a ``WARN(1, text)`` at `where` ("file:line")."""
        c = self.context(cpu)
        head, *rest = self.dump_stack(cpu)
        return "\n".join([CUT_HERE, text, f"WARNING: CPU: {cpu} PID: {c.task.pid} at {where}", head, *rest, "---[ end trace 0000000000000000 ]---"])
