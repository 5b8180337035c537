"""Reports of the OOM killer (mm/oom_kill.c, mm/memcontrol.c)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from mmtwin.diagnose.explain.alloc_failure import ORDER, judge
from mmtwin.diagnose.explain.common import flags_of, request_of
from mmtwin.diagnose.explain.log_gfp import decode
from mmtwin.diagnose.explain.mem_info import parse
from mmtwin.diagnose.explain.memory_use import memory_use
from mmtwin.diagnose.explain.model import DECIDED, PROBABLE, UNDECIDED, Remedy, Report, Segment, Verdict, size
from mmtwin.diagnose.explain.oom_remedies import of_a_full_machine

CONSTRAINT = re.compile(r"constraint=(CONSTRAINT_\w+)")
OLD_LIMIT = re.compile(r"Task in (\S+) killed as a result of limit of (\S+?)(?=\s|$|\[\s*\d+\.\d+\])")
NEW_LIMIT = re.compile(r"oom_memcg=([^,\s]+)")
HOST = "host"
"""Alibaba's kernels name the whole machine so where others name a control group."""
STATS = re.compile(r"[Mm]emory cgroup stats(?: for (/[^\s:]*(?::[^\s:]+)*))?:?(?=\s|$)")
USAGE = re.compile(r"(?<![+\w])(memory|memory\+swap|swap|kmem|memsw|kmem\.tcp):?\s+usage\s+(\d+)kB,\s+limit\s+(\d+)kB,\s+failcnt\s+(\d+)")
KILLED = re.compile(
    r"(?:[Kk]ill(?:ed)?\s+process\s+(\d+)[, ]*(?:UID \d+,? *)?\((.{1,64}?)\))(?:[^\n]{0,80}?score\s+(\d+))?(?:[^\n]{0,60}?total-vm:(\d+)kB)?(?:,\s*anon-rss:(\d+)kB)?(?:,\s*file-rss:(\d+)kB)?(?:,\s*shmem-rss:(\d+)kB)?"
)
COLUMNS = re.compile(r"(?m)\[\s*pid\s*\]\s+uid\s+tgid\s+([a-z_ ]+?)\s+name\s*$")
TASK = re.compile(r"(?m)^(?:[^\[\n]{0,64}?:)?\s*\[\s*(?P<pid>\d+)\]\s+(?P<uid>\d+)\s+(?P<tgid>\d+)\s+(?P<numbers>(?:-?\d+\s+){2,10})(?P<name>\S.*)$")
"""A line of the task table, behind the host's name that some put before it."""
NO_ORDER = re.compile(r"(?m)oom-killer:\s+gfp_mask=0x[0-9a-f]+[ \t]*$")
"""The whole line of kernels before 2.6.17."""
SYSRQ = r"sysrq|SysRq|moom_callback"
GROUP = "are going to be killed due to memory.oom.group set"
UNLIMITED_KB = 1 << 50


def read(segment: Segment) -> Report:
    """The report, judged."""
    text = segment.text
    info = parse(segment.all, segment.turn)
    page_kb = info.page_kb if info else 4
    order = ORDER.search(segment.said[:2000]) if segment.kind == "oom" else None
    number = int(order["old"] or order[1]) if order else None
    request = request_of(segment, page_kb, number, flags_of(segment) if segment.kind == "oom" else None, info is not None and info.page_known)
    constraint = CONSTRAINT.search(text)
    kind = constraint[1] if constraint else ""
    tasks = _tasks(text, page_kb)
    verdict: Verdict
    if (
        kind == "CONSTRAINT_MEMCG"
        or ((old := OLD_LIMIT.search(text)) is not None and old[2] != HOST)
        or re.search(r"[Mm]emory cgroup out of memory", text)
        or NEW_LIMIT.search(text)
        or _charges(segment)
    ):
        verdict = memcg(segment)
    elif number == -1 or (re.search(SYSRQ, " ".join(segment.stack.frames)) is not None and segment.kind == "oom"):
        verdict = Verdict(
            "manual_oom", DECIDED, f"Nothing was refused: somebody asked for the OOM killer by hand (SysRq f{', order -1' if number == -1 else ''})."
        )
    elif segment.kind == "killed":
        verdict = Verdict(
            "evidence_missing", UNDECIDED, f"{victim_of(text)}The machine ran out of memory; the report that would say which request and which zone is not in the log.",
            missing=("the lines from 'invoked oom-killer' to the task table",), remedies=(Remedy("look", "the kernel's log before this line", "it holds the request, the zones and the tasks"),),
        )  # fmt: skip
    elif request.flags is not None and request.flags.value == 0 and number == 0:
        verdict = Verdict(
            "not_shown", UNDECIDED, "A page fault ended in VM_FAULT_OOM, and the fault handler called the OOM killer; the request that failed is not in the report (its flags are printed as 0).",
            zones=judge(segment, info, replace(request, order=0, flags=decode(-1, "GFP_HIGHUSER", segment.kernel.version)), True, kind)[1].zones if info else (),
            missing=("which request failed, and where: a control group at its limit, or an architecture's own allocation",),
            remedies=(Remedy("look", "memory.events (memory.failcnt of older kernels) of the process's control group", "counts its failures at the limit"),),
        )  # fmt: skip
        request = replace(request, order=None, bytes=None, flags=None)
    else:
        assumed = number is None and NO_ORDER.search(text[:2000]) is not None
        if assumed:
            request = replace(request, order=0, bytes=page_kb * 1024)
        request, verdict = judge(segment, info, request, True, kind)
        if assumed:
            note = "the order: kernels before 2.6.17 do not print it; judged as a single page, the commonest"
            verdict = replace(verdict, certainty=PROBABLE if verdict.certainty == DECIDED else verdict.certainty, missing=(note, *verdict.missing))
        if kind == "CONSTRAINT_CPUSET" and request.mems_allowed and verdict.code != "zone_eligibility":
            verdict = replace(
                verdict, why=(f"The cpuset allows node {request.mems_allowed} only; what is free on other nodes is out of its reach, and is not printed.", *verdict.why),
                remedies=(Remedy("admin", f"more nodes than {request.mems_allowed} in the cpuset's cpuset.mems", "their free memory becomes usable"), *verdict.remedies),
            )  # fmt: skip
        if number is not None and 1 <= number <= 3 and verdict.code == "no_block":
            verdict = replace(
                verdict,
                why=(
                    "Up to order 3 the kernel does not give up: it reclaims and compacts, and when that makes no progress calls the OOM killer, although only fragmentation stands in the way.",
                    *verdict.why,
                ),
            )
        verdict = replace(verdict, remedies=of_a_full_machine(verdict, info, tasks, segment.kernel.at_most))
    victim = victim_of(text)
    listed, must = {task["pid"] for task in tasks}, {pid for pid, _ in killed_in(text)} | ({request.pid} - {None})
    cut = bool(tasks) and not must <= listed
    if segment.stack.has("try_to_unuse", "sys_swapoff", "SyS_swapoff"):
        verdict = replace(verdict, why=(*verdict.why, "It was made by swapoff, which brings everything in swap back into memory."))
    details = {
        **verdict.details,
        "constraint": kind,
        "killed": [{"pid": int(k[1]), "comm": k[2], "anon_rss_kb": int(k[5]) if k[5] else None} for k in KILLED.finditer(text)][:20],
        "largest_tasks": tasks[:5],
    }
    why = list(verdict.why)
    if tasks:
        why.append(("Largest processes in what the log has of the table: " if cut else "Largest processes: ") + ", ".join(map(_held, tasks[:3])) + ".")
    if victim and (segment.kind == "oom" or verdict.code == "memcg_limit"):
        why.append(victim.strip())
    if info is not None and verdict.code == "memcg_limit":
        details["memory_pages"] = memory_use(info).pages
    verdict = replace(verdict, why=tuple(why), details=details)
    return Report("oom", "OOM killer", segment.line, segment.seconds, segment.kernel, request, verdict, page_kb, stack=segment.stack)


def _charges(segment: Segment) -> bool:
    """Whether the stack shows a control group's charge, and no dump of zones says otherwise."""
    return segment.stack.matches(r"^(?:mem_cgroup_out_of_memory|mem_cgroup_oom_synchronize)")


def memcg(segment: Segment) -> Verdict:
    """A control group at its limit."""
    text = segment.text
    if segment.kind == "killed":  # the group's numbers stand before the line that its report begins with
        text = re.split(r"Killed process[^\n]*\n|oom_reaper:[^\n]*\n", segment.before)[-1] + text
    old, new, stats_of = OLD_LIMIT.search(text), NEW_LIMIT.search(text), STATS.search(text)
    group = old[2] if old else new[1] if new else (stats_of[1] or "") if stats_of else ""
    if old and old[1].startswith(group) and (cut := old[1][len(group) :]) and re.match(rf"\s*{re.escape(cut[:8])}", text[old.end() :]):
        group = old[1]  # the line is wrapped in the middle of the name
    usages = {match[1]: (int(match[2]), int(match[3]), int(match[4])) for match in USAGE.finditer(text)}
    at_limit = [name for name, (usage, limit, _) in usages.items() if limit < UNLIMITED_KB and limit and usage * 100 >= limit * 98]
    at_limit.sort(key=lambda name: -usages[name][2])  # the one that refused
    comm = segment.comm or "A process"
    said = f"{comm} ran into the limit of the control group {group or '(not named in the log)'}"
    if at_limit:
        usage, limit, failcnt = usages[at_limit[0]]
        said += f": {at_limit[0]} {usage} kB of {limit} kB ({size(limit * 1024)}), which was hit {failcnt} times"
    why = ["The machine's own free memory, watermarks and fragmentation do not matter: the charge to the group failed."]
    stats_text = re.split(r"Tasks state|\[\s*pid\s*\]|Killed process", text[stats_of.end() :])[0] if stats_of else ""
    names = "anon|file|cache|rss|shmem|kernel_stack|slab|slab_unreclaimable|sock|mapped_file|dirty|file_dirty"
    stats = dict(re.findall(rf"(?m)(?<![\w-])({names})[ :]+(\d+)(?:KB|kB)?\b", stats_text))
    why += _holds(stats, 1024 if re.search(r"\bcache:\d+KB", text) else 1)
    with_swap = "memory+swap" in at_limit
    if usages and not at_limit:
        name, (usage, limit, _) = max(usages.items(), key=lambda item: item[1][0] / max(item[1][1], 1))
        why.append(f"At the dump the group uses {usage} kB of {limit} kB ({name}): memory was given back in between, or a group above it is at its limit.")
    remedies = [
        Remedy(
            "admin",
            f"a higher {'memory+swap limit (memory.memsw.limit_in_bytes) and memory limit' if with_swap else 'memory limit'} for {group or 'the group'}",
            "the group may use more; the rest of the machine has less",
        ),
        Remedy(
            "caller",
            "less memory in the group's processes (see why)",
            f"the limit counts file cache{' and kernel memory' if usages.get('kmem', (1, 0, 0))[0] else ''}, too; only cache and reclaimable slab are given back before killing",
        ),
    ]
    if not with_swap and (usages.get("swap", (0, 1, 0))[1] == 0 or "swap" not in usages):
        remedies.append(Remedy("admin", "swap for the group, if the machine has some", "anonymous memory of the group could be written out"))
    details = {
        "memcg": group,
        "usage_kb": {name: {"usage": u, "limit": limit, "failcnt": f} for name, (u, limit, f) in usages.items()},
        "memcg_stats": {k: int(v) for k, v in stats.items()},
    }
    missing = () if usages else ("the group's usage and limit are not in the log",)
    return Verdict("memcg_limit", DECIDED, said + ".", tuple(why), missing=missing, remedies=tuple(remedies), details=details)


def _holds(stats: dict[str, str], unit: int) -> list[str]:
    """What a group's memory is, where its numbers are in the log.

    :param unit: bytes of one.
    """
    anon, file = (int(stats.get(new, stats.get(old, 0))) * unit for new, old in (("anon", "rss"), ("file", "cache")))
    slab, dirty = int(stats.get("slab", 0)) * unit, int(stats.get("file_dirty", stats.get("dirty", 0))) * unit
    parts = sorted(((anon, "memory of processes"), (file, "file cache and tmpfs"), (slab, "slab")), reverse=True)
    whole = anon + file + slab
    if not whole:
        return []
    said = [f"The group's memory is {', '.join(f'{name} ({size(n)})' for n, name in parts if n * 10 >= whole)}."]
    return [*said, f"{size(dirty)} of it are dirty, not yet written."] if dirty * 4 >= whole else said


def killed_in(text: str) -> Iterator[tuple[int, str]]:
    """Process ids and names that the OOM killer has killed; those that it only chose are left out."""
    return ((int(match[1]), match[2]) for match in KILLED.finditer(text) if match[0].startswith("Killed"))


def victim_of(text: str) -> str:
    found = list(KILLED.finditer(text))
    if not found:
        return ""
    found = [match for match in found if match[0].startswith("Killed")] or found  # "Kill process" names the one chosen, whose child may have died instead
    best = max(found, key=lambda k: int(k[5] or 0))
    rss = sum(int(best[n] or 0) for n in (5, 6, 7))
    held = f", which held {size(rss * 1024)}" if best[5] else ""
    rest = list(dict.fromkeys(f"{other[2]} (pid {other[1]})" for other in found if other[1] != best[1])) if GROUP in text else []
    others = f", and of the same group {', '.join(rest[:5])}{f' and {len(rest) - 5} more' if len(rest) > 5 else ''}" if rest else ""
    verb = "killed" if best[0].startswith("Killed") else "chose, to kill it or a child of it,"
    return f"The kernel {verb} {best[2]} (pid {best[1]}){held}{others}. "


def _tasks(text: str, page_kb: int) -> list[dict[str, int | str]]:
    """The processes of the task table, the largest first, with what of them is in swap where the table says it."""
    head = COLUMNS.search(text)
    names = head[1].split() if head else ["total_vm", "rss"]
    tasks: list[dict[str, int | str]] = []
    for match in TASK.finditer(text):
        numbers = dict(zip(names, map(int, match["numbers"].split()), strict=False))
        swapped = numbers.get("swapents", 0)
        tasks.append({"pid": int(match["pid"]), "comm": match["name"].strip()[:32], "rss_kb": numbers.get("rss", 0) * page_kb, "swap_kb": swapped * page_kb})
    tasks.sort(key=lambda task: -int(task["rss_kb"]) - int(task["swap_kb"]))
    return tasks


def _held(task: dict[str, int | str]) -> str:
    """ "mysqld (1.7 GiB, and 1.9 GiB in swap)"."""
    swapped = int(task["swap_kb"])
    return f"{task['comm']} ({size(int(task['rss_kb']) * 1024)}{f', and {size(swapped * 1024)} in swap' if swapped * 8 > int(task['rss_kb']) else ''})"
