"""``BUG: sleeping function called from invalid context`` and ``scheduling while atomic`` (kernel/sched/core.c)."""

from __future__ import annotations

import re
from typing import Any

from mmtwin.diagnose.explain.common import request_of
from mmtwin.diagnose.explain.common import where as in_place
from mmtwin.diagnose.explain.model import DECIDED, PROBABLE, Remedy, Report, Segment, Verdict

PLACE = re.compile(r"(?:invalid|illegal)\s+context\s+at\s+(\S+?):(\d+)")
STATE = re.compile(r"in_atomic\(\):\s*(\d+),\s+irqs_disabled\(\):\s*(\d+)(?:,\s+non_block:\s*(\d+))?")
RCU = re.compile(r"RCU\s+nest\s+depth:\s*(\d+),\s+expected:\s*(\d+)")
PREEMPT = re.compile(r"preempt_count:\s*([0-9a-f]+),\s+expected:\s*([0-9a-f]+)")
SCHEDULING = re.compile(r"scheduling\s+while\s+atomic:\s+(.{1,40}?)/(\d+)/(0x[0-9a-f]+)")
ALLOCATING = re.compile(r"(?:^|/)(?:mm/(?:sl[aou]b\.[ch]|page_alloc\.c|mempool\.c|vmalloc\.c|slab_common\.c)|include/linux/(?:sched/mm|percpu-rwsem|slab)\.h)$")
ALLOCATORS = r"^(?:_*kmem_cache_alloc|_*kmalloc|_*kzalloc|__alloc_pages|_*alloc_pages|__get_free_pages|_*vmalloc|_*kvmalloc|mempool_alloc|_*alloc_skb|alloc_percpu|pcpu_alloc|slab_pre_alloc|krealloc|_*kmem_cache_create|_*alloc_percpu)"
SLEEPING_LOCKS = re.compile(r"kernel/locking/(?:spinlock_rt|rtmutex)\.c$")
"""Spinlocks of PREEMPT_RT."""
HELD = re.compile(r"#\d+:\s+(?:[0-9a-f]+\s+)?\((.{1,80}?)\)\{[^}]*\}(?:-\{[^}]*\})?,\s+at:\s+(?:\[<[^>]*>\]\s+)?([A-Za-z_][\w.]*)", re.S)
"""A lock in lockdep's list, and where it was taken."""
DISABLED = re.compile(r"[Pp]reemption\s+disabled\s+at:\s*(?:\[<[^>]*>\]\s*)?(?:0x0\b\s*)?([A-Za-z_][\w.]*)\+0x")
NO_FLAG = r"^_*(?:ioremap|v[mz]alloc|vmap|kv[mz]alloc)"
"""Allocators that always sleep, whatever the flags."""
FREEING = r"^(?:vfree|vunmap|_*vunmap|kvfree|iounmap|free_percpu|vm_unmap_aliases)$"


def read(segment: Segment) -> Report:
    """The report, judged."""
    text, stack = segment.text[:20_000], segment.stack
    place, state, rcu, preempt, scheduling = (pattern.search(text) for pattern in (PLACE, STATE, RCU, PREEMPT, SCHEDULING))
    request = request_of(segment, 4, None, None)
    file = place[1] if place else ""
    allocates = (
        (scheduling is not None and stack.matches(ALLOCATORS))
        or bool(ALLOCATING.search(file))
        or (stack.matches(ALLOCATORS) and bool(re.search(r"mm/|sched/mm\.h", file)))
    )
    if file == "mm/vmalloc.c" and stack.matches(FREEING) and not stack.matches(ALLOCATORS):  # vfree() checks, too
        allocates = False
    frees = stack.matches(FREEING) and not allocates
    sleeping_locks = SLEEPING_LOCKS.search(file) is not None and stack.matches(ALLOCATORS)
    details: dict[str, Any] = {"file": file, "line": int(place[2]) if place else None, "allocation": allocates or sleeping_locks}
    reasons = []
    if state:
        details |= {"in_atomic": int(state[1]), "irqs_disabled": int(state[2])}
        if int(state[1]):
            reasons.append("preemption is off (a spinlock, softirq or interrupt)")
        if int(state[2]):
            reasons.append("interrupts are off")
        if state[3] and int(state[3]):
            reasons.append("it is inside a non_block section")
    if preempt:
        details |= {"preempt_count": int(preempt[1], 16)}
        if int(preempt[1], 16) and not any("preemption" in r for r in reasons):
            reasons.append("preemption is off (a spinlock, softirq or interrupt)")
    if disabled := DISABLED.search(text):
        reasons.append(f"preemption was disabled in {disabled[1]}")
    if rcu and int(rcu[1]) > int(rcu[2]):
        details["rcu_depth"] = int(rcu[1])
        reasons.append("it is inside rcu_read_lock()")
    held = HELD.findall(text)
    if not reasons and (section := next((place for lock, place in reversed(held) if lock.startswith("rcu_read_lock")), "")):
        reasons.append(f"it is inside rcu_read_lock(), taken in {section}")
    where = f" {in_place(request.place)}" if request.place in ("softirq", "hard interrupt", "interrupt") else ""
    caller = request.caller or "the caller"
    first = request.caller or "The caller"
    if scheduling:
        head = f"{scheduling[1]} (pid {scheduling[2]}) went to sleep where that is forbidden{where}."
        if allocates:
            head += f" {first} allocated with a GFP flag that may sleep (GFP_KERNEL or its like)."
        details["preempt_count"] = int(scheduling[3], 16)
    elif sleeping_locks:
        head = f"{first} allocated memory{where}, where sleeping is forbidden; on PREEMPT_RT the allocator's own locks sleep, whatever the GFP flags."
    elif allocates:
        head = f"{first} allocated with a GFP flag that may sleep (GFP_KERNEL or its like){where}, where sleeping is forbidden."
    elif frees:
        head = f"{first} freed virtually contiguous memory{where}, where sleeping is forbidden: vfree and vunmap may sleep."
    else:
        head = f"{first} called a function that may sleep ({file}){where}, where sleeping is forbidden."
    why = [f"Forbidden because {' and '.join(reasons)}." if reasons else "Which lock or section forbids it is not in the report.",
           f"Nothing was refused: {'the scheduler' if scheduling else 'the check (CONFIG_DEBUG_ATOMIC_SLEEP)'} warns, and the call went on. The state of memory does not matter."]  # fmt: skip
    if held:
        why.append("Locks held: " + ", ".join(f"{' '.join(lock.split())} (taken in {place})" for lock, place in held[:6]) + ".")
    if request.path:
        why.append("On the way: " + " <- ".join(request.path[:5]) + ".")
    remedies = []
    if sleeping_locks:
        remedies.append(
            Remedy(
                "caller",
                f"allocate in {caller} before interrupts or preemption go off (GFP_ATOMIC does not help on PREEMPT_RT)",
                "the allocator may take its locks there",
            )
        )
    elif allocates:
        if not any(re.match(NO_FLAG, name) for name in stack.inner):
            remedies.append(Remedy("caller", f"GFP_ATOMIC instead of GFP_KERNEL in {caller}", "may not sleep, but may fail: check for NULL"))
        remedies.append(
            Remedy(
                "caller",
                "allocate before taking the lock, or move the work to process context (workqueue, threaded interrupt)",
                "GFP_KERNEL is right there, and fails less",
            )
        )
    elif frees:
        remedies.append(
            Remedy("caller", f"the free after the lock is dropped, or from a workqueue, in {caller}", "it may sleep there (vfree_atomic is not for modules)")
        )
    else:
        remedies.append(Remedy("caller", f"call it before the lock is taken, or from process context, in {caller}", "sleeping is allowed there"))
    certainty = DECIDED if place or scheduling else PROBABLE
    missing = () if reasons or scheduling else ("what forbids sleeping: the line with in_atomic() is missing or says 0 everywhere",)
    verdict = Verdict("sleeping_in_atomic", certainty, head, tuple(why), missing=missing, remedies=tuple(remedies), details=details)
    return Report("context", "sleeping in atomic context", segment.line, segment.seconds, segment.kernel, request, verdict, stack=stack)
