"""``page allocation failure``, and ``page allocation stalls`` of 4.10 to 4.14 (warn_alloc of mm/page_alloc.c)."""

from __future__ import annotations

import re
from dataclasses import replace

from mmtwin.diagnose.explain import page_verdict, slab_log
from mmtwin.diagnose.explain.common import asked, flags_of, name_of, request_of, where
from mmtwin.diagnose.explain.mem_info import MemInfo, parse
from mmtwin.diagnose.explain.memory_use import memory_use
from mmtwin.diagnose.explain.model import DECIDED, PROBABLE, UNDECIDED, Remedy, Report, Request, Segment, Verdict
from mmtwin.diagnose.explain.page_remedies import COMPACTION, lower_mask, remedies
from mmtwin.diagnose.explain.zone_rules import ALLOC_OOM, RULES, Ask

ORDER = re.compile(r"order\s*[:=]\s*(-?\d{1,3})(?!\d)|\b(?P<old>\d{1,2})-order\b")
STALL = re.compile(r"stalls\s+for\s+(\d+)ms")
HEADLESS_LINES = 60
"""A dump's lines, at most, before the message that follows it."""
RECLAIM = ("try_to_free_pages", "do_try_to_free_pages", "__perform_reclaim", "__node_reclaim", "zone_reclaim", "balance_pgdat", "kswapd")
"""Functions that run with PF_MEMALLOC set (gfp_pfmemalloc_allowed of mm/page_alloc.c); interrupts do not inherit it."""
REFUSED_AT_ANY_ORDER = ("watermark", "lowmem_reserve", "empty")
ONLY_ELIGIBLE = (6, 1, 0)
"""Dumps have the zones only that the request may use (show_mem's max_zone_idx)."""
INTERRUPTS = ("softirq", "hard interrupt", "interrupt")


def read(segment: Segment, slab: Segment | None = None, injected: bool = False, killed: frozenset[tuple[int, str]] = frozenset()) -> Report:
    """The report, judged.

    :param slab: a ``SLUB: Unable to allocate`` that followed because of it.
    :param injected: a fault injection came just before.
    :param killed: process ids and names that the OOM killer has killed before in the log.
    """
    info = parse(segment.all, segment.turn)
    page_kb = info.page_kb if info else 4
    match = ORDER.search(segment.said[:2000])
    order = int(match["old"] or match[1]) if match else None
    request = request_of(segment, page_kb, order, flags_of(segment), info is not None and info.page_known)
    stall = STALL.search(segment.text[:2000])
    title = f"page allocation {'stall' if stall else 'failure'}"
    if injected:
        verdict = Verdict(
            "fault_injection", DECIDED, "The failure was made on purpose: fault injection is on (CONFIG_FAULT_INJECTION); memory plays no part in it."
        )
        return Report("page_allocation_failure", title, segment.line, segment.seconds, segment.kernel, request, verdict, page_kb, stack=segment.stack)
    request, verdict = judge(segment, info, request, victim=(request.pid, request.comm) in killed)
    if stall is not None:
        verdict = replace(
            verdict, code="stalled", certainty=DECIDED,
            headline=f"Nothing was refused: {name_of(request)} has waited {int(stall[1]) / 1000:.0f} s for {asked(request)}, and goes on waiting.{f' {verdict.headline}' if info and info.zones else ''}",
            remedies=(Remedy("look", "disks and swap: reclaim waits for them", "the request is served as soon as pages are freed"), *verdict.remedies),
        )  # fmt: skip
    if slab is not None:
        fact = slab_log.facts(slab)
        text = f"The {fact.allocator} message after it (cache {fact.cache}) is a consequence: the cache got no page because of this failure." if fact else ""
        if fact is not None and fact.debug_fixes:
            text += f" Its debugging fields (slub_debug) have raised its lowest order to {fact.min_order}."
        verdict = replace(verdict, why=(*verdict.why, text) if text else verdict.why, remedies=(*(fact.debug_fixes if fact else ()), *verdict.remedies))
    return Report(
        "page_allocation_stall" if stall else "page_allocation_failure",
        title,
        segment.line,
        segment.seconds,
        segment.kernel,
        request,
        verdict,
        page_kb,
        stack=segment.stack,
    )


def headless(segment: Segment, slab: Segment) -> Report | None:
    """A dump whose first lines are not in the log, and the slab allocator's message right behind it, which says the request; None if it does not."""
    fact, flags, info = slab_log.facts(slab), flags_of(slab), parse(segment.all, segment.turn)
    if fact is None or flags is None or info is None or not info.zones or segment.text.count("\n") > HEADLESS_LINES:
        return None
    request = request_of(slab, info.page_kb, fact.min_order, flags, info.page_known)
    request, verdict = judge(segment, info, request)
    why = f"The {fact.allocator} message after the dump says the request: cache {fact.cache}, order {fact.min_order} at least."
    missing = ("the failure's first lines: order and flags are those of the message after the dump", *verdict.missing)
    verdict = replace(verdict, certainty=PROBABLE if verdict.certainty == DECIDED else verdict.certainty, why=(*verdict.why, why), missing=missing)
    return Report(
        "page_allocation_failure",
        "page allocation failure without its head",
        segment.line,
        segment.seconds,
        segment.kernel,
        request,
        verdict,
        info.page_kb,
        stack=segment.stack,
    )


def judge(segment: Segment, info: MemInfo | None, request: Request, oom: bool = False, constraint: str = "", victim: bool = False) -> tuple[Request, Verdict]:
    """The verdict on a request for pages, and the request with its zones.

    :param oom: it is a report of the OOM killer, of a request with this `constraint`.
    :param victim: the OOM killer has killed the process that asks (__gfp_pfmemalloc_flags of mm/page_alloc.c).
    """
    if request.order is None and request.flags is not None and segment.kind == "oom" and info is not None and info.zones:
        single, verdict = judge(segment, info, replace(request, order=0, bytes=info.page_kb * 1024), oom, constraint)
        if verdict.zones and all(zone.rule in REFUSED_AT_ANY_ORDER for zone in verdict.zones if zone.eligible):
            open_ = ("the order is cut off; a single page is refused already, so a larger piece is, too", *verdict.missing)
            return replace(single, order=None, bytes=None), replace(
                verdict, headline=verdict.headline.replace(asked(replace(request, order=0, bytes=info.page_kb * 1024)), asked(request)), missing=open_
            )
    if request.order is None or request.flags is None:
        lost = "order" if request.order is None else "flags"
        return request, Verdict(
            "evidence_missing", UNDECIDED, f"The request's {lost} cannot be read from the log.", missing=("the first line of the report is damaged or cut",)
        )
    why = context(request, segment.kernel.at_most, oom)
    if info is not None and info.complete and segment.kernel.version >= ONLY_ELIGIBLE:
        return request, _no_zone(request, info, "needs" if oom else "asked for", why)
    if info is None or not info.zones:
        counters = info.counters if info else {}
        missing = [request.flags.note] if request.flags.note else []
        missing += ["no zone's numbers (Mem-Info) belong to this report: the paste is cut, or the kernel left them out (rate limit, __GFP_NOWARN)"]
        extra = f" {counters['free']} pages were free in all, {counters['free_cma']} of them CMA." if counters.get("free_cma") and "free" in counters else ""
        return request, Verdict(
            "evidence_missing", UNDECIDED, f"{name_of(request, True)} asked for {asked(request)} and was refused; which rule refused is not in the log.{extra}", tuple(why),
            missing=tuple(missing), remedies=(Remedy("look", "the lines from Mem-Info: on, after this message", "they hold each zone's free pages, watermarks and blocks"),),
        )  # fmt: skip
    reclaiming = not oom and request.place not in INTERRUPTS and segment.stack.has(*RECLAIM)
    victim = victim and request.place not in INTERRUPTS and "NOMEMALLOC" not in request.flags
    ask = Ask(request.order, request.flags, segment.kernel.version, segment.kernel.bits, victim, reclaiming)
    judged = page_verdict.judge_pages(ask, info, request, oom, constraint)
    request = replace(request, highest_zone=judged.highest, zones=judged.allowed)
    head = page_verdict.headline(judged, ask, info.page_kb)
    verb = "needs" if oom else "asked for"
    text = f"{name_of(request, True)} {verb} {asked(request)}. {head}"
    certainty = judged.certainty
    missing = list(judged.missing)
    flags = ask.flags
    if flags.agree is False:
        missing.append(flags.note)
        certainty = PROBABLE if certainty == DECIDED else certainty
    elif flags.note:
        why.append(flags.note[0].upper() + flags.note[1:] + ".")
    if not segment.kernel.known and (differ := _by_other_kernels(segment, info, request, oom, constraint, ask, judged)):
        missing.append(f"the log does not say which kernel it is; judged as {'.'.join(map(str, segment.kernel.version[:2]))}{differ}")
        certainty = PROBABLE if certainty == DECIDED else certainty
    if segment.interleaved and info.doubled:
        missing.append("two dumps are in one another; the numbers were shared out in order, and may belong to the other one")
        certainty = PROBABLE if certainty == DECIDED else certainty
    if victim:
        deeper = "may go to half of the min watermark" if ask.version >= ALLOC_OOM else "need not heed watermarks"
        why.append(
            f"The OOM killer killed this process before (see above in the log): so that it can end, it {deeper}. The kill is what to explain, not this failure."
        )
    if ask.no_watermarks and reclaiming:
        why.append("It was made while reclaiming memory (PF_MEMALLOC): watermarks do not hold for it, only what is free at all.")
    why += judged.notes
    use = memory_use(info)
    if judged.code in ("watermark", "really_empty", "lowmem_reserve") or oom:
        why += use.sentences
    fixes = remedies(judged, ask, request, info.page_kb, info, segment.kernel.at_most)
    details = {"memory_pages": use.pages, "counters": info.counters, "totals": info.trailer}
    return request, Verdict(judged.code, certainty, text, tuple(why), judged.zones, tuple(missing), fixes, details)


def _no_zone(request: Request, info: MemInfo, verb: str, why: list[str]) -> Verdict:
    """The verdict where a whole dump has no zone at all."""
    assert request.flags is not None
    low = next((name for name in ("DMA", "DMA32") if name in request.flags), "")
    nodes = request.nodes if request.nodes not in ("", "(null)") else request.mems_allowed if "HARDWALL" in request.flags else ""
    zones = f"no zone up to {low} has pages" if low else "no zone that it may use has pages"
    said = f"The dump is whole and has no zone: since 6.1 zones that the request may not use are not printed. {info.counters['free']} pages were free on the machine."
    if low:
        fix = lower_mask(request, low)
    else:
        fix = Remedy(
            "admin",
            "a node with zone Normal or lower in cpuset.mems (or the memory policy), or less memory in zone Movable",
            "the request then has zones that it may use; freeing memory or killing processes cannot help",
        )
    headline = f"{name_of(request, True)} {verb} {asked(request)}, and {zones}{f' on node {nodes}' if nodes else ''}."
    return Verdict("zone_eligibility", DECIDED, headline, (*why, said), remedies=(fix,))


def _by_other_kernels(segment: Segment, info: MemInfo, request: Request, oom: bool, constraint: str, first: Ask, judged: page_verdict.Judged) -> str:
    """What other kernels that may have printed the log would say to it; "" if all say the same."""
    kernel = segment.kernel
    for rules in RULES:
        if kernel.version < rules.since and rules.since[:2] <= kernel.newest:
            other = replace(segment, kernel=replace(kernel, version=rules.since))
            flags = flags_of(other)
            ask = None if flags is None else replace(first, flags=flags, version=rules.since)
            again = None if ask is None else page_verdict.judge_pages(ask, info, request, oom, constraint)
            if again is None or (again.code, again.certainty) != (judged.code, judged.certainty):
                named = (
                    f", while by the rules of {'.'.join(map(str, rules.since[:2]))} it would be {again.code}"
                    if again is not None and again.code != judged.code
                    else ""
                )
                return named or "; a newer one is less sure"
    return ""


def context(request: Request, newest: tuple[int, ...], oom: bool = False) -> list[str]:
    """What the flags and the stack say about where it ran.

    :param newest: the newest kernel that it can be.
    """
    said = []
    if request.may_sleep is False and request.order is not None:
        place = f" (it ran {where(request.place)})" if request.place in INTERRUPTS else ""
        said.append(f"It could not wait{place}: no reclaim, no compaction, only what was free at that moment.")
    if request.may_sleep and request.flags is not None and "FS" not in request.flags:
        barred, name = ("enter file systems", "GFP_NOFS") if "IO" in request.flags else ("start input or output", "GFP_NOIO")
        said.append(f"It could wait, but not {barred} ({name}): reclaim and compaction get less done{'' if oom else ', and the OOM killer is not called'}.")
    if request.may_sleep and request.order is not None and request.order > 3:
        tries = "compact and reclaim" if newest >= COMPACTION else "reclaim"
        said.append(f"Above order 3 the kernel tries to {tries} once and then gives up, rather than calling the OOM killer.")
    if request.may_sleep and request.place in INTERRUPTS:
        said.append(f"Its flags allow it to sleep, but it ran {where(request.place)}: that is a bug of {request.caller or 'the caller'}.")
    return said
