"""The rest: a dump without its request, per-CPU memory, faults made on purpose."""

from __future__ import annotations

import re
from dataclasses import replace

from mmtwin.diagnose.explain import page_verdict
from mmtwin.diagnose.explain.common import flags_of, name_of, request_of
from mmtwin.diagnose.explain.log_gfp import decode, era_of
from mmtwin.diagnose.explain.mem_info import parse
from mmtwin.diagnose.explain.memory_use import memory_use
from mmtwin.diagnose.explain.model import DECIDED, PROBABLE, UNDECIDED, Remedy, Report, Segment, Verdict
from mmtwin.diagnose.explain.oom_log import victim_of
from mmtwin.diagnose.explain.page_remedies import remedies
from mmtwin.diagnose.explain.stack import read_stack
from mmtwin.diagnose.explain.zone_rules import Ask

OOM_KILLED = re.compile(r"(?m)^.{0,40}\bOut of [Mm]emory: [Kk]ill")
USER_PAGE = re.compile(
    r"_*handle_(?:pte_fault|mm_fault)|do_anonymous_page|do_(?:cow_|shared_|read_)?fault|__do_fault|do_wp_page|wp_page_copy|filemap_fault|_*do_page_cache_\w+"
)
"""Functions that ask for a page for a process, or for its files."""
DEADLOCK = re.compile(
    r"(?:(?P<comm>\S.{0,30}?)\((?P<pid>\d+)\)\s+)?[Pp]ossible\s+memory\s+allocation\s+deadlock(?::\s+size=(?P<spl>\d+)|\s+size\s+(?P<xfs>\d+))?(?:\s+in\s+(?P<where>\w+))?"
)
ASKED = re.compile(r"[Ss]ysRq\s*:\s*Show\s+[Mm]em|\b(?:fn_show_mem|sysrq_handle_showmem)\b")
"""Who asks for the dump alone (drivers/tty/sysrq.c, keyboard.c)."""
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
    above = segment.before[max(0, segment.before.rfind("Call Trace:")) :] if "Call Trace:" in segment.before else ""
    stack = read_stack(above) if above and "Mem-" not in above and "pages RAM" not in above else segment.stack
    oom = stack.has("out_of_memory", "oom_kill_process") or OOM_KILLED.search(segment.text) is not None
    user = oom and stack.has("out_of_memory") and USER_PAGE.match(stack.caller) is not None
    name, usual = ("GFP_HIGHUSER_MOVABLE", "what the stack's page fault asks for") if user else ("GFP_KERNEL", "the commonest")
    ask = Ask(0, decode(dict(era.composites)[name], "", version), version, segment.kernel.bits)
    judged = page_verdict.judge_pages(ask, info, request, oom)
    served = any(z.eligible and z.rule == "passes" for z in judged.zones) and not (oom and judged.code == "watermark")
    text = "The request is not in the log" + (", but the OOM killer was called for it. " if oom else ". ")
    text += f"A {name} request for a single page ({usual}) would " + (
        "be served by these numbers." if served else f"be refused: {page_verdict.headline(judged, ask, info.page_kb)}"
    )
    if judged.code == "zone_eligibility":
        text = f"The request is not in the log, and the zones that are in it are empty or outside the reach of {name}, {usual}."
    code = "evidence_missing" if served or judged.code == "zone_eligibility" else judged.code
    if not segment.kernel.known:
        lost = (*lost, f"the kernel's version; judged as {'.'.join(map(str, version[:2]))}")
    if by_hand := ASKED.search(segment.before[-400:] + segment.text) is not None:
        text = "Nothing was refused: somebody asked for this dump (SysRq m). " + text.replace("The request is not in the log. ", "")
        lost = lost[1:]
    use = memory_use(info)
    fixes = remedies(judged, ask, request, info.page_kb, info, segment.kernel.at_most) if code != "evidence_missing" else ()
    verdict = Verdict(
        code,
        UNDECIDED,
        text,
        (*judged.notes, *use.sentences, *((victim,) if oom and (victim := victim_of(segment.text).strip()) else ())),
        judged.zones,
        (*lost, *judged.missing),
        () if by_hand else (*fixes, look),
        {"memory_pages": use.pages, "counters": info.counters, "totals": info.trailer},
    )
    request = replace(request, highest_zone="", zones=())
    return Report("mem_info", "memory dump without its request", segment.line, segment.seconds, segment.kernel, request, verdict, info.page_kb)


def deadlock(segment: Segment) -> Report:
    """XFS (fs/xfs/kmem.c) and ZFS's SPL retry without end, and say so now and then."""
    line = segment.before.rsplit("\n", 1)[-1] + segment.text[:600]
    match = DEADLOCK.search(line)
    flags = flags_of(segment, line)
    request = request_of(segment, 4, None, flags)
    wanted = int(match["spl"] or match["xfs"] or 0) if match else 0
    if match and match["comm"]:
        request = replace(request, comm=re.sub(r"^.*XFS:\s*", "", match["comm"]).strip(), pid=int(match["pid"]))
    request = replace(request, asked_bytes=wanted or None)
    who = "ZFS's memory layer (SPL)" if match and match["spl"] else "XFS"
    names = f" ({flags.names})" if flags is not None and flags.value >= 0 else ""
    text = f"Nothing was refused for good: {who} asks again and again for {f'{wanted} bytes' if wanted else 'memory'}{names} for {name_of(request)}, and waits until it gets them."
    missing = ("which rule refuses each time: the request does not let the page allocator report it (__GFP_NOWARN)",)
    verdict = Verdict(
        "stalled", DECIDED, text, ("It is a guess of the file system that it may be a deadlock: it counts its own attempts, nothing else.",), missing=missing,
        remedies=(
            Remedy("look", "/proc/buddyinfo, /proc/zoneinfo and a control group's memory.kmem.failcnt while it goes on", "large sizes fail by fragmentation, small ones by a watermark or a limit"),
            Remedy("admin", "echo 1 > /proc/sys/vm/compact_memory; fewer extents per file for XFS (extent size hints, defragmentation)", "smaller pieces are asked for, or larger ones are free"),
        ),
    )  # fmt: skip
    return Report("stalled", "stalled file system", segment.line, segment.seconds, segment.kernel, request, verdict, stack=segment.stack)


def percpu(segment: Segment) -> Report:
    """The per-CPU allocator (mm/percpu.c)."""
    match = PERCPU.search(segment.text[:2000])
    reason = match[4].strip() if match else ""
    details = {"bytes": int(match[1]), "align": int(match[2]), "atomic": match[3] == "1", "reason": reason} if match else {}
    atomic = match is not None and match[3] == "1"
    head = f"The per-CPU allocator could not give {match[1]} bytes: {reason}." if match else "The per-CPU allocator failed."
    reserved = "reserved chunk" in reason
    why = (
        (
            "Static per-CPU data of modules have to come from a chunk that is set aside at boot (PERCPU_MODULE_RESERVE, 8 KiB on most machines); free memory does not matter.",
        )
        if reserved
        else ("An atomic request takes from chunks that are there already; new ones are made later by a worker.",)
        if atomic
        else ("It needs a chunk of vmalloc addresses of the same shape for every CPU, and pages behind it.",)
    )
    own = (
        (Remedy("caller", "alloc_percpu when the module starts, in place of static per-CPU data; or build it in", "dynamic chunks are made as needed"),)
        if reserved
        else ()
    )
    verdict = Verdict(
        "percpu_space", DECIDED if match else PROBABLE, head, why, missing=("how much per-CPU memory there is and who holds it: Percpu in /proc/meminfo",), details=details,
        remedies=own or (Remedy("look", "Percpu in /proc/meminfo; who allocates per-CPU memory (many cgroups, maps of BPF, networking objects)", "a leak shows as a number that only grows"), Remedy("admin", "on 32 bit: a larger vmalloc=; percpu_alloc=page", "more room for chunks")),
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
