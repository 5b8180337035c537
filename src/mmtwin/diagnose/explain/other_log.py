"""The rest: a dump without its request, per-CPU memory, faults made on purpose."""

from __future__ import annotations

import re
from dataclasses import replace

from mmtwin.diagnose.explain import page_verdict
from mmtwin.diagnose.explain.common import request_of
from mmtwin.diagnose.explain.log_gfp import decode, era_of
from mmtwin.diagnose.explain.mem_info import parse
from mmtwin.diagnose.explain.memory_use import memory_use
from mmtwin.diagnose.explain.model import DECIDED, PROBABLE, UNDECIDED, Remedy, Report, Segment, Verdict
from mmtwin.diagnose.explain.zone_rules import Ask

PERCPU = re.compile(r"percpu:\s+allocation\s+failed,\s+size=(\d+)\s+align=(\d+)(?:\s+atomic=(\d))?,\s+([^\n]*)")


def mem_info(segment: Segment) -> Report:
    """A Mem-Info whose first line is not in the log: the state can be judged, the request cannot."""
    info = parse(segment.all, segment.turn)
    request = request_of(segment, info.page_kb if info else 4, None, None)
    lost: tuple[str, ...] = ("the request (order and flags), who made it, and what became of it: the line above Mem-Info is not in the log",)
    look = Remedy("look", "the line before Mem-Info ('invoked oom-killer' or 'page allocation failure')", "it holds order and flags")
    if info is None or not info.zones:
        verdict = Verdict(
            "evidence_missing", UNDECIDED, "A memory dump without its request and without zones: nothing can be judged.", missing=lost, remedies=(look,)
        )
        return Report("mem_info", "memory dump without its request", segment.line, segment.seconds, segment.kernel, request, verdict)
    version = segment.kernel.version
    era = era_of(version)
    kernel = dict(era.composites)["GFP_KERNEL"]
    ask = Ask(0, decode(kernel, "", version), version, segment.kernel.bits)
    judged = page_verdict.judge_pages(ask, info, request)
    served = any(z.eligible and z.rule == "passes" for z in judged.zones)
    text = "The request is not in the log. "
    text += "A GFP_KERNEL request for a single page (the commonest) would " + (
        "be served by these numbers." if served else f"be refused: {page_verdict.headline(judged, ask, info.page_kb)}"
    )
    if judged.code == "zone_eligibility":
        text = "The request is not in the log, and the zones that are in it are empty or outside the reach of GFP_KERNEL, the commonest."
    code = "evidence_missing" if served or judged.code == "zone_eligibility" else judged.code
    if not segment.kernel.known:
        lost = (*lost, f"the kernel's version; judged as {'.'.join(map(str, version[:2]))}")
    use = memory_use(info)
    fixes = page_verdict.remedies(judged, ask, request, info.page_kb, info) if code != "evidence_missing" else ()
    verdict = Verdict(
        code,
        UNDECIDED,
        text,
        (*judged.notes, *use.sentences),
        judged.zones,
        (*lost, *judged.missing),
        (*fixes, look),
        {"memory_pages": use.pages, "counters": info.counters, "totals": info.trailer},
    )
    request = replace(request, highest_zone="", zones=())
    return Report("mem_info", "memory dump without its request", segment.line, segment.seconds, segment.kernel, request, verdict, info.page_kb)


def percpu(segment: Segment) -> Report:
    """The per-CPU allocator (mm/percpu.c)."""
    match = PERCPU.search(segment.text[:2000])
    reason = match[4].strip() if match else ""
    details = {"bytes": int(match[1]), "align": int(match[2]), "atomic": match[3] == "1", "reason": reason} if match else {}
    atomic = match is not None and match[3] == "1"
    head = f"The per-CPU allocator could not give {match[1]} bytes: {reason}." if match else "The per-CPU allocator failed."
    why = (
        ("An atomic request takes from chunks that are there already; new ones are made later by a worker.",)
        if atomic
        else ("It needs a chunk of vmalloc addresses of the same shape for every CPU, and pages behind it.",)
    )
    verdict = Verdict(
        "percpu_space", DECIDED if match else PROBABLE, head, why, missing=("how much per-CPU memory there is and who holds it: Percpu in /proc/meminfo",), details=details,
        remedies=(Remedy("look", "Percpu in /proc/meminfo; who allocates per-CPU memory (many cgroups, maps of BPF, networking objects)", "a leak shows as a number that only grows"), Remedy("admin", "on 32 bit: a larger vmalloc=; percpu_alloc=page", "more room for chunks")),
    )  # fmt: skip
    return Report(
        "percpu", "per-CPU allocation", segment.line, segment.seconds, segment.kernel, request_of(segment, 4, None, None), verdict, stack=segment.stack
    )


def fault(segment: Segment) -> Report:
    """Fault injection (lib/fault-inject.c)."""
    name = re.search(r"name\s+(\w+)", segment.text[:600])
    verdict = Verdict(
        "fault_injection", DECIDED, f"The failure was made on purpose by fault injection{f' ({name[1]})' if name else ''}; memory plays no part in it.",
        remedies=(Remedy("look", "how the caller copes: that is what is being tested", "nothing else is wrong"),), details={"name": name[1] if name else ""},
    )  # fmt: skip
    return Report(
        "fault_injection", "fault injection", segment.line, segment.seconds, segment.kernel, request_of(segment, 4, None, None), verdict, stack=segment.stack
    )
