"""``SLUB: Unable to allocate memory`` and SLAB's (slab_out_of_memory of mm/slub.c and mm/slab.c)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmtwin.diagnose.explain.common import flags_of, name_of, request_of
from mmtwin.diagnose.explain.model import PROBABLE, UNDECIDED, Remedy, Report, Segment, Verdict

CACHE = re.compile(
    r"cache:\s+(\S[^,\n]{0,100}?),\s+object\s+size:\s+(\d+)(?:,\s+buffer\s+size:\s+(\d+))?,?\s+(?:default\s+)?order:\s+(\d+)(?:,\s+min\s+order:\s+(\d+))?"
)
NODE = re.compile(r"node\s+(\d+):\s+slabs:\s+(\d+)(?:/(\d+))?,\s*objs:\s+(\d+)(?:/(\d+))?,\s*free:\s+(\d+)")
DEBUG_ORDER = re.compile(r"debugging\s+increased\s+min\s+order,?\s+use\s+(sl[au]b_debug=O)")
CHILD = re.compile(r"^(.*?)\((\d+):(.*)\)$")

CHARGED_BEFORE = (5, 9, 0)
"""A control group's limit refuses an object before the allocator is asked for a slab, so that no such message is printed (obj_cgroup_charge)."""


@dataclass(frozen=True)
class SlabFacts:
    """The block as printed.

    :ivar nodes: node, slabs, objects, free objects.
    :ivar debugging: the option against it, if the debugging fields have raised the lowest order ("slub_debug=O"); "".
    :ivar node: the one that was asked for; -1 if any would do.
    :ivar group: the control group whose child cache it is (kernels up to 5.8); "".
    """

    allocator: str
    cache: str
    group: str
    object_size: int
    order: int
    min_order: int
    nodes: tuple[tuple[int, int, int, int], ...]
    node: int = -1
    debugging: str = ""

    @property
    def no_such_node(self) -> bool:
        """Whether the slab was asked of a node that the cache does not know: the message lists every one that it does."""
        return self.node >= 0 and bool(self.nodes) and self.node not in [node[0] for node in self.nodes]

    @property
    def debug_fixes(self) -> tuple[Remedy, ...]:
        """What to do if it is slub_debug that makes the slabs so large."""
        if not self.debugging:
            return ()
        return (
            Remedy(
                "admin",
                f"{self.debugging} on the command line (no debugging of caches whose slabs it would make larger)",
                f"{self.cache} gets by with slabs of a lower order than {self.min_order}",
            ),
        )


def facts(segment: Segment) -> SlabFacts | None:
    """The block; None if its second line is missing."""
    match = CACHE.search(segment.text[:2000])
    if match is None:
        return None
    child = CHILD.match(match[1])
    nodes = tuple((int(m[1]), int(m[2]), int(m[4]), int(m[6])) for m in NODE.finditer(segment.text[:6000]))
    node = re.search(r"on\s+node\s+(-?\d{1,5})\b", segment.text[:300])
    debugging = DEBUG_ORDER.search(segment.text[:2000])
    return SlabFacts(
        segment.head[:4],
        match[1],
        child[3] if child else "",
        int(match[2]),
        int(match[4]),
        int(match[5] or match[4]),
        nodes,
        int(node[1]) if node else -1,
        debugging[1] if debugging else "",
    )


def read(segment: Segment) -> Report:
    """A block without a page allocation failure before it."""
    fact = facts(segment)
    request = request_of(segment, 4, fact.min_order if fact else None, flags_of(segment))
    allocator = segment.head[:4]
    missing = ["no page allocation failure stands before it; it may have been left out by the kernel's rate limit, by __GFP_NOWARN, or by whoever pasted"]
    what = f"The cache {fact.cache} got no new slab" if fact else "A slab cache got no new slab"
    why: list[str] = []
    if fact and fact.no_such_node:
        why.append(
            f"It was asked of node {fact.node}, of which the cache has no slabs (the message lists every node that it knows): a node without memory, or none at all."
        )
    elif fact and fact.nodes:
        free = sum(node[3] for node in fact.nodes)
        full = (
            "It has no free object"
            if not any(node[1] for node in fact.nodes)
            else "Its slabs are full"
            if not free
            else "The slabs it may use are full, or were at that moment"
        )
        why.append(
            f"{full} ({sum(n[1] for n in fact.nodes)} slabs, {sum(n[2] for n in fact.nodes)} objects, {free} free), so it needed a new one of order {fact.order}{f', at least {fact.min_order}' if fact.min_order != fact.order else ''}."
        )
    details = {"cache": fact.cache, "memcg": fact.group, "object_size": fact.object_size, "order": fact.order, "min_order": fact.min_order} if fact else {}
    loud = request.flags is None or "NOWARN" not in request.flags
    charged = fact is not None and (fact.group or (request.flags is not None and "ACCOUNT" in request.flags))
    if charged and fact is not None and loud:
        group = f" {fact.group}" if fact.group else ""
        why.append(
            "Had the page allocator refused, its own report would stand before this one. The cache belongs to a control group, so charging the new slab to it was probably refused."
        )
        atomic = request.may_sleep is False
        if atomic:
            why.append("A control group has no reserve for atomic requests, and an atomic request cannot reclaim from it.")
        remedies = [Remedy("admin", f"a higher memory (or kernel memory) limit for the group{group}", "its caches can grow again")]
        if atomic:
            remedies.append(
                Remedy(
                    "kernel",
                    '5.4 or newer, or a stable kernel with "mm: memcontrol: fix network errors from failing __GFP_ATOMIC charges"',
                    "atomic charges are let through above the limit",
                )
            )
        return Report(
            "slab", f"{allocator} failure", segment.line, segment.seconds, segment.kernel, request,
            Verdict("memcg_limit", PROBABLE, f"{what}: the limit of the control group{group} probably refused it, not the page allocator.", tuple(why), missing=tuple(missing), remedies=tuple(remedies), details=details),
            stack=segment.stack,
        )  # fmt: skip
    if fact and fact.no_such_node:
        verdict = Verdict(
            "slab_refused", PROBABLE, f"{what} on node {fact.node}: the cache knows no such node.", tuple(why), missing=tuple(missing), details=details,
            remedies=(Remedy("caller", f"NUMA_NO_NODE, or a node that has memory, in {request.caller or 'the caller'} (is the device's node right?)", "any node may then give the slab"),
                      Remedy("look", "the kernel's log before this line", "a page allocation failure there says which zone and rule refused")),
        )  # fmt: skip
        return Report("slab", f"{allocator} failure", segment.line, segment.seconds, segment.kernel, request, verdict, stack=segment.stack)
    why.append(
        "A slab that the page allocator refuses is preceded by its 'page allocation failure' report; without one it was left out, or not pasted."
        if segment.kernel.version >= CHARGED_BEFORE
        else "A slab that the page allocator refuses is preceded by its 'page allocation failure' report; without one a control group's limit is a candidate, too."
    )
    remedies = [
        *(fact.debug_fixes if fact else ()),
        Remedy("look", "the kernel's log before this line", "a page allocation failure there says which zone and rule refused"),
    ]
    if segment.kernel.version < CHARGED_BEFORE:
        remedies.append(Remedy("look", "memory.events (or memory.kmem.failcnt) of the control groups", "a count that rises means that a group's limit refused"))
    return Report(
        "slab", f"{allocator} failure", segment.line, segment.seconds, segment.kernel, request,
        Verdict("slab_refused", UNDECIDED, f"{what} for {name_of(request)}; {'which rule of the page allocator' if segment.kernel.version >= CHARGED_BEFORE else 'whether the page allocator or a control group'} refused is not in the log.", tuple(why), missing=tuple(missing), remedies=tuple(remedies), details=details),
        stack=segment.stack,
    )  # fmt: skip


def caused_by(segment: Segment, failure: Segment) -> bool:
    """Whether a failure's stack goes through the slab allocator, and the block follows it."""
    return failure.stack.matches(
        r"^(?:_*slab_alloc|_*kmem_cache_alloc|new_slab|allocate_slab|___slab_alloc|kmem_getpages|cache_grow|cache_alloc|fallback_alloc|____cache_alloc|_*kmalloc)"
    )
