"""What is allowed where: against a real kernel's table of contexts, its refusals, and a published report."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

import mmtwin
from mmtwin import GFP, GFP_ATOMIC, GFP_DMA, GFP_KERNEL, GFP_NOFS, GFP_NOIO, GFP_NOWAIT, Machine
from mmtwin.errors import AllocationFailure, KernelBug, RequestError, SchedulingWhileAtomic, SleepingInAtomic

FIXTURE = Path(__file__).parent / "data" / "contexts-6.1.txt"
REPORT_P15 = """\
BUG: sleeping function called from invalid context at include/linux/sched/mm.h:197
in_atomic(): 1, irqs_disabled(): 0, non_block: 0, pid: 0, name: swapper/4"""
"""The first lines of a report of 5.10 (https://lore.kernel.org/linux-wireless/20220427120033.1046759-1-quic_bqiang@quicinc.com/)."""


@pytest.fixture
def m() -> Machine:
    return mmtwin.boot(ram="64MiB", cpus=2)


def cases() -> dict[str, list[str]]:
    """The kernel's lines by test."""
    found: dict[str, list[str]] = {}
    for line in FIXTURE.read_text().splitlines():
        if line.startswith("test "):
            lines = found[line.removeprefix("test ")] = []
        elif "module verification failed" not in line:
            lines.append(line)
    return found


CASES = cases()


@contextmanager
def both(*contexts: AbstractContextManager[None]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


ENTER: dict[str, Callable[[Machine], AbstractContextManager[None]]] = {
    "process": lambda m: both(),
    "preempt_disabled": lambda m: m.preempt_disabled(),
    "preempt_disabled twice": lambda m: both(m.preempt_disabled(), m.atomic()),
    "spinlock": lambda m: m.spinlock(),
    "spinlock_irq": lambda m: m.spinlock_irq(),
    "spinlock_bh": lambda m: m.spinlock_bh(),
    "bh_disabled": lambda m: m.bh_disabled(),
    "irqs_off": lambda m: m.irqs_off(),
    "rcu_read": lambda m: m.rcu_read(),
    "softirq": lambda m: m.softirq(),
    "timer": lambda m: m.timer(),
    "hardirq": lambda m: both(m.preempt_disabled(), m.hardirq()),  # irq_work interrupts the code that queues it, which has preemption disabled
    "nmi": lambda m: m.nmi(),
}


def test_the_kernels_table(m: Machine) -> None:
    """preempt_count and every predicate in thirteen contexts, as a module in a real kernel printed them."""
    seen = 0
    for line in CASES["table"]:
        found = re.fullmatch(r"contexts: (.+) preempt_count=(\w+) in_interrupt=(\d) in_task=(\d) in_atomic=(\d) in_hardirq=(\d) in_softirq=(\d) serving=(\d) in_nmi=(\d) irqs_disabled=(\d)", line)  # fmt: skip
        if not found:
            continue
        with ENTER[found[1]](m):
            mine = [m.in_interrupt(), m.in_task(), m.in_atomic(), m.in_hardirq(), m.in_softirq(), m.in_serving_softirq(), m.in_nmi(), m.irqs_disabled()]
            assert f"{m.preempt_count():08x}" == found[2], line
            assert [str(int(value)) for value in mine] == list(found.groups()[2:]), line
        seen += 1
    assert seen == len(ENTER)
    assert m.preempt_count() == 0
    assert m._contexts == 0


def test_the_kernels_scopes(m: Machine) -> None:
    said = {line.split(" gfp ")[1].rsplit(" ", 1)[0]: int(line.rsplit(" ", 1)[1], 16) for line in CASES["table"] if " gfp " in line}
    gfp = GFP_KERNEL | GFP.MOVABLE
    assert m.current_gfp_context(gfp) == said["process"]
    with m.memalloc_nofs():
        assert m.current_gfp_context(gfp) == said["nofs"]
        with m.memalloc_noio():
            assert m.current_gfp_context(gfp) == said["nofs noio"]
        assert m.current_gfp_context(gfp) == said["nofs again"]
    with m.memalloc_noio():
        assert m.current_gfp_context(gfp) == said["noio"]
        with m.memalloc_noio():
            pass
        assert m.current_gfp_context(gfp) == said["noio"]
    with m.memalloc_pin():
        assert m.current_gfp_context(gfp) == said["pin"]
    with m.memalloc_noreclaim():
        assert m.current_gfp_context(gfp) == said["noreclaim"]
    assert m.current_gfp_context(gfp) == gfp


@pytest.mark.parametrize("name", ["preempt", "bh", "softirq", "irqs_off", "rcu"])
def test_sleeping_where_it_is_forbidden(m: Machine, name: str) -> None:
    """``schedule`` itself complains, in the kernel's words; not about disabled interrupts."""
    context = {"preempt": m.preempt_disabled, "bh": m.spinlock_bh, "softirq": m.softirq, "irqs_off": m.irqs_off, "rcu": m.rcu_read}[name]
    lines = CASES[f"sleep-{name}"]
    said = next((line for line in lines if line.startswith(("BUG: scheduling", "Voluntary"))), None)
    task = re.search(r"atomic: (\S+)/(\d+)/0x", said or "")
    with m.task(task[1] if task else "init", int(task[2]) if task else 1), context():
        if said is None:
            m._had_to_sleep(0)
            return
        with pytest.raises(SchedulingWhileAtomic) as caught:
            m._had_to_sleep(0, "kmalloc(100)")
    report = caught.value.report.splitlines()
    assert said in report
    if said.startswith("Voluntary"):
        warned = next(line for line in lines if line.startswith("WARNING") and "rcu" in line)
        assert any(warned.split(" at ")[1].startswith(line.split(" at ")[1]) for line in report if line.startswith("WARNING"))


@pytest.mark.parametrize("name", ["preempt", "softirq", "hardirq"])
def test_without_the_check_nothing_is_said(m: Machine, name: str) -> None:
    """Debian's kernels have no CONFIG_DEBUG_ATOMIC_SLEEP: GFP_KERNEL is served as long as nothing has to wait."""
    assert "contexts: kmalloc served" in CASES[f"kmalloc-{name}"]
    m.atomic_sleep = "off"
    with {"preempt": m.preempt_disabled, "softirq": m.softirq, "hardirq": m.hardirq}[name]():
        assert m.kmalloc(100)


@pytest.mark.parametrize("name", ["vmalloc-bh", "vmalloc-softirq", "vmalloc-hardirq", "vmalloc_atomic-hardirq", "vfree-nmi", "vunmap-softirq"])
def test_what_the_kernel_calls_a_bug(m: Machine, name: str) -> None:
    """BUG_ON in mm/vmalloc.c: its place, the line below, and the panic, as the real kernel printed them."""
    call, _, where = name.partition("-")
    context = {"bh": m.bh_disabled, "softirq": m.softirq, "hardirq": m.hardirq, "nmi": m.nmi}[where]
    check = {"vfree": lambda: m._vfree_context(0), "vunmap": lambda: m._vunmap_context(0)}.get(call, lambda: m._vmalloc_context(0))
    with context(), pytest.raises(KernelBug) as caught:
        check()
    said = [line for line in CASES[name] if line.startswith(("-----", "kernel BUG", "invalid opcode", "Kernel panic"))]
    assert len(said) == 4
    assert [line for line in caught.value.report.splitlines() if not line.startswith(("CPU:", " ", "Call Trace"))] == said
    assert str(caught.value).startswith(said[1])
    assert m._contexts == 0


@pytest.mark.parametrize("name", ["vfree-preempt", "vfree-bh", "vfree-softirq", "vfree-hardirq"])
def test_vfree_is_put_off_in_interrupts(m: Machine, name: str) -> None:
    m.atomic_sleep = "off"
    context = {"preempt": m.preempt_disabled, "bh": m.bh_disabled, "softirq": m.softirq, "hardirq": m.hardirq}[name.partition("-")[2]]
    with context():
        assert m._vfree_context(0) == ("contexts: freed later" in CASES[name])
    assert not m._vfree_context(0)
    assert m._vfree_context(0, "vfree_atomic")


@pytest.mark.parametrize("name", ["process", "preempt", "irqs_off"])
def test_vmalloc_is_no_bug_elsewhere(m: Machine, name: str) -> None:
    assert "contexts: vmalloc served" in CASES[f"vmalloc-{name}"]
    with {"process": both, "preempt": m.preempt_disabled, "irqs_off": m.irqs_off}[name]():
        m._vmalloc_context(0)


def test_the_report(m: Machine) -> None:
    with m.task("kworker/1:2", 77, cpu=1), m.spinlock_irq(1), m.rcu_read(1), pytest.raises(SleepingInAtomic) as caught:
        m.kmalloc(100, GFP_KERNEL, cpu=1)
    lines = caught.value.report.splitlines()
    assert lines[:4] == [
        "BUG: sleeping function called from invalid context at include/linux/sched/mm.h:274",
        "in_atomic(): 1, irqs_disabled(): 1, non_block: 0, pid: 77, name: kworker/1:2",
        "preempt_count: 1, expected: 0",
        "RCU nest depth: 1, expected: 0",
    ]
    assert lines[4].startswith("CPU: 1 PID: 77 Comm: kworker/1:2 ")
    assert lines[5:7] == ["Call Trace:", " <TASK>"]
    assert any("test_the_report (test_contexts.py:" in line for line in lines)
    assert "kmalloc(100)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_published_report() -> None:
    """5.10's file and line differ and it prints no counts; the two lines that it has are the twin's."""
    m = mmtwin.boot(ram="64MiB", cpus=5)
    with m.task("swapper/4", 0, cpu=4), m.softirq(4), pytest.raises(SleepingInAtomic) as caught:
        m.kmalloc(200, GFP_KERNEL, cpu=4)
    mine = re.sub(r"mm\.h:\d+", "mm.h:197", "\n".join(caught.value.report.splitlines()[:2]))
    assert mine == REPORT_P15
    assert " <IRQ>" in caught.value.report


def test_where_preemption_was_disabled(m: Machine) -> None:
    m.debug_preempt = True
    with m.preempt_disabled(), m.spinlock(), pytest.raises(SleepingInAtomic) as caught:
        m.kmalloc(8)
    lines = caught.value.report.splitlines()
    at = lines.index("Preemption disabled at:")
    assert at == 4
    assert re.fullmatch(r"\[<0{16}>\] \S*test_where_preemption_was_disabled \(test_contexts\.py:\d+\)", lines[at + 1])
    with m.irqs_off(), pytest.raises(SleepingInAtomic) as caught:
        m.kmalloc(8)
    assert "Preemption disabled" not in caught.value.report


@pytest.mark.parametrize("gfp", [GFP_ATOMIC, GFP_NOWAIT, GFP_DMA])
def test_what_must_not_wait_is_served_everywhere(m: Machine, gfp: int) -> None:
    for enter in ENTER.values():
        with enter(m):
            m.kfree(m.kmalloc(100, gfp))
            m.free_pages(m.alloc_pages(0, gfp), 0)


@pytest.mark.parametrize("gfp", [GFP_KERNEL, GFP_NOFS, GFP_NOIO])
def test_what_may_wait_is_refused_where_that_is_forbidden(m: Machine, gfp: int) -> None:
    cache = m.kmem_cache_create("things", 100)
    calls: list[Callable[[], object]] = [
        lambda: m.kmalloc(100, gfp), lambda: m.alloc_pages(0, gfp), lambda: m.alloc_pages_bulk(2, gfp), lambda: m.alloc_pages_exact(9000, gfp),
        lambda: m.kmem_cache_alloc(cache, gfp), lambda: m.kmem_cache_alloc_bulk(cache, 3, gfp), lambda: m.kcalloc(2, 8, gfp), lambda: m.krealloc(0, 50, gfp),
    ]  # fmt: skip
    for name, enter in ENTER.items():
        for call in calls:
            before = m.digest()
            with enter(m):
                if name == "process":
                    call()
                    continue
                with pytest.raises(SleepingInAtomic):
                    call()
            assert m.digest() == before, "the machine stops at the report"


def test_the_other_cpu_is_not_concerned(m: Machine) -> None:
    with m.hardirq(0):
        assert m.kmalloc(8, GFP_KERNEL, cpu=1)
        assert not m.in_interrupt(1)
        with pytest.raises(SleepingInAtomic):
            m.kmalloc(8, GFP_KERNEL, cpu=0)


def test_the_kernel_goes_on_and_so_does_the_twin_if_asked(m: Machine) -> None:
    """Reports are at most one a second, once the clock runs."""
    m.atomic_sleep = "report"
    m.jiffies = 1000
    with m.softirq():
        assert m.kmalloc(8)
        assert m.kmalloc(8)
        m.jiffies += 249
        assert m.kmalloc(8)
        assert len(m.reports) == 1
        m.jiffies += 1
        assert m.kmalloc(8)
    assert len(m.reports) == 2
    assert m.reports[0].startswith("BUG: sleeping function called from invalid context")


def test_not_printed_again_within_a_second(m: Machine) -> None:
    m.jiffies = 5
    printed = []
    with m.softirq():
        for _ in range(2):
            with pytest.raises(SleepingInAtomic) as caught:
                m.kmalloc(8)
            printed.append(caught.value.printed)
    assert printed == [True, False]


def test_what_never_gets_to_the_check(m: Machine) -> None:
    """kmalloc(0) and what is too large are answered before ``might_alloc``."""
    with m.softirq():
        assert m.kmalloc(0) == 16
        with pytest.raises(AllocationFailure):
            m.kmalloc(1 << 23)
        with pytest.raises(AllocationFailure):
            m.alloc_pages(11, GFP_KERNEL)


def exhaust(m: Machine, gfp: int) -> AllocationFailure | SchedulingWhileAtomic:
    for _ in range(1 << 20):
        try:
            m.alloc_pages(0, gfp)
        except (AllocationFailure, SchedulingWhileAtomic) as error:
            return error
    raise AssertionError("memory without end")


def test_a_request_that_really_had_to_wait(m: Machine) -> None:
    m.atomic_sleep = "off"
    with m.task("dd", 300), m.spinlock():
        error = exhaust(m, GFP_KERNEL)
        assert isinstance(error, SchedulingWhileAtomic)
        assert error.report.startswith("BUG: scheduling while atomic: dd/300/0x00000002\n")
        slab = None
        while slab is None:
            try:
                m.kmalloc(8192)
            except SchedulingWhileAtomic as found:
                slab = found
    assert "kmalloc(8192)" in str(slab)
    left = int(m.free)
    failed = exhaust(m, GFP_ATOMIC)
    assert isinstance(failed, AllocationFailure)
    assert failed.status == "failed"
    assert m.free < left, "GFP_ATOMIC may use a part of the reserves"


def test_a_scope_without_reclaim_may_use_all_reserves(m: Machine) -> None:
    """PF_MEMALLOC: down to the last page, then NULL, without reclaim; not for an interrupt that comes in between, but for a softirq."""
    exhaust(m, GFP_ATOMIC)
    least = m.free
    with m.memalloc_noreclaim():
        with m.hardirq():
            failed = exhaust(m, GFP_ATOMIC)
            assert m.free == least
        failed = exhaust(m, GFP_KERNEL)
    assert isinstance(failed, AllocationFailure)
    assert (failed.status, failed.errno) == ("failed", -12)
    assert m.free < least


def test_contexts_nest_only_as_deep_as_the_kernels_bits(m: Machine) -> None:
    with ExitStack() as stack:
        for _ in range(15):
            stack.enter_context(m.nmi())
        with pytest.raises(RequestError, match=r"^hard interrupt on CPU 0|^NMI on CPU 0"), m.nmi():
            pass
    assert m.preempt_count() == 0


def test_the_rest_of_what_forbids_sleeping(m: Machine) -> None:
    with m.non_block(), pytest.raises(SleepingInAtomic, match="non-blocking section"):
        m.kmalloc(8)
    with m.task("swapper/0", 0), pytest.raises(SleepingInAtomic, match="the idle task"):
        m.kmalloc(8)
    m.preempt_rcu = False
    with m.rcu_read(), pytest.raises(SleepingInAtomic) as caught:
        m.kmalloc(8)
    assert "RCU nest depth" not in caught.value.report
    assert "preempt_count: 1" in caught.value.report
    with pytest.raises(RequestError, match=r"^CPU 9: this machine has CPUs 0 to 1$"), m.softirq(9):
        pass


def test_checks_by_kernel(m: Machine) -> None:
    assert m.site("alloc") == ("include/linux/sched/mm.h", 274)
    assert m.site("__get_vm_area_node") == ("mm/vmalloc.c", 2554)
    with m.preempt_disabled(), pytest.raises(SleepingInAtomic, match=r"invalid context at mm/vmalloc\.c:2858"):
        m._vfree_context(0)
    with m.preempt_disabled(), pytest.raises(SleepingInAtomic, match=r"invalid context at mm/vmalloc\.c:2879"):
        m._vunmap_context(0)
    with m.irqs_off(), pytest.raises(SleepingInAtomic, match=r"invalid context at kernel/locking/mutex\.c:580"):
        m.might_sleep(file="kernel/locking/mutex.c", line=580)


def test_a_copy_is_in_process_context(m: Machine) -> None:
    with m.hardirq():
        assert m.copy().kmalloc(8)


def test_vmalloc_says_why_it_fails(m: Machine) -> None:
    """In an interrupt it is a bug whatever the flags; elsewhere where nothing may sleep its first kmalloc is what is reported."""
    area = m.vmalloc(100)
    for context in (m.softirq, m.hardirq, m.nmi, m.bh_disabled):
        with context(), pytest.raises(KernelBug, match=r"^kernel BUG at mm/vmalloc\.c:2554! vmalloc needs process context"):
            m.vmalloc(100)
    with m.preempt_disabled(), pytest.raises(SleepingInAtomic, match=r"include/linux/sched/mm\.h:274 by kmalloc"):
        m.vmalloc(100)
    with m.hardirq():
        m.vfree(area)
        assert m.is_vmalloc_addr(area)
        assert m.vmalloc_to_pfn(area), "put off until the work item runs"
    area = m.vmalloc(100)
    with m.nmi(), pytest.raises(KernelBug, match=r"^kernel BUG at mm/vmalloc\.c:2854!"):
        m.vfree(area)
    m.vfree(area)


def test_the_examples_in_the_documentation() -> None:
    failed, tried = doctest.testfile(
        str(Path(__file__).parent.parent / "docs" / "contexts.md"), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert tried > 4
    assert not failed
