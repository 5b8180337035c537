"""vmalloc's failures: addresses, pages, or a size that cannot be (mm/vmalloc.c)."""

from __future__ import annotations

import re
from dataclasses import replace

from mmtwin.diagnose.explain.alloc_failure import judge
from mmtwin.diagnose.explain.common import flags_of, name_of, request_of
from mmtwin.diagnose.explain.mem_info import MemInfo, parse
from mmtwin.diagnose.explain.model import DECIDED, PROBABLE, UNDECIDED, Remedy, Report, Request, Segment, Verdict, size
from mmtwin.diagnose.explain.zone_rules import ZoneVerdict

VMAP = re.compile(r"vmap\s+allocation\s+for\s+size\s+(\d+)\s+failed")
OLD = re.compile(r"vmalloc:\s+allocation\s+failure(?::\s+(\d+)\s+bytes|,\s+allocated\s+(\d+)\s+of\s+(\d+)\s+bytes)")
RANGE = re.compile(r"vmalloc_node_range\s+for\s+size\s+(\d+)\s+failed:\s+Address\s+range\s+restricted")
NEW = re.compile(r"vmalloc\s+error:\s+size\s+(\d+),\s+([^\n]*)")
MODULES = (
    "module_alloc",
    "load_module",
    "module_memory_alloc",
    "bpf_jit_binary_alloc",
    "bpf_jit_alloc_exec",
    "execmem_alloc",
    "layout_and_allocate",
    "move_module",
)


NEIGHBOURS = 4
"""Reports to either side in which the stack of a bare message may be."""
X86 = re.compile(r"\bentry_SYSCALL_64|\bRIP:|\bEIP:|x86")
"""A report of a machine that has no CONFIG_*_MODULE_PLTS."""
NO_PARAMETER = re.compile(r"\bNIP\b|PowerMac|Power[Pp][Cc]|powerpc|\bepc\s*:|\bMIPS\b|s390")
"""A report of an architecture that has no vmalloc= (it is 32-bit x86's and ARM's)."""


def with_neighbours_stack(segments: list[Segment]) -> list[Segment]:
    """The reports; a bare "vmap allocation for size N failed" (or "vmalloc_node_range for size N failed") gets the stack of the same words next to it: many CPUs load the same module at once, and only some dump theirs."""
    found = []
    for n, one in enumerate(segments):
        if one.kind == "vmalloc" and not one.stack.frames:
            beside = [
                other for other in segments[max(0, n - NEIGHBOURS) : n + NEIGHBOURS + 1] if other.kind == "vmalloc" and other.stack.frames and _same(one, other)
            ]
            if beside:
                one = replace(one, stack=beside[0].stack, comm=beside[0].comm, text=beside[0].text)
        found.append(one)
    return found


def _same(one: Segment, other: Segment) -> bool:
    mine, its = (VMAP.search(text[:300]) or RANGE.search(text[:300]) for text in (one.text, other.text))
    near = one.seconds is None or other.seconds is None or abs(one.seconds - other.seconds) < 1
    return mine is not None and its is not None and mine[1] == its[1] and near


def read(segment: Segment) -> Report:
    """The report, judged."""
    text = segment.text[:6000]
    info = parse(segment.all, segment.turn)
    vmap, old, new = VMAP.search(text) or RANGE.search(text), OLD.search(text), NEW.search(text)
    request = request_of(segment, info.page_kb if info else 4, None, flags_of(segment))
    words = new[2] if new else ""
    partial = "failed to allocate pages" in words  # the number is then what it had got
    asked = None if partial and new else int(new[1]) if new else int(old[1] or old[3]) if old else None
    area = int(vmap[1]) if vmap else asked
    request = replace(request, asked_bytes=asked if asked is not None else max(area - 4096, 0) if area else None)
    ram = info.trailer.get("ram", 0) * info.page_kb * 1024 if info else 0
    modules = segment.stack.has(*MODULES)
    who = name_of(request)
    details = {"area_bytes": area, "asked_bytes": request.asked_bytes, "module_area": modules}
    noise = (
        ("The Mem-Info dump is beside the point: no page frame was asked for yet; the zones show what a single page would have met.",)
        if info is not None
        else ()
    )
    partly = old is not None and old[2] is not None
    if (asked is not None and asked == 0) or "exceeds total pages" in words or (ram and asked and asked > ram):
        verdict = Verdict("vmalloc_too_large", DECIDED, f"{who} asked vmalloc for {size(asked or 0)}, which is {'nothing' if not asked else 'more than all memory'}: it can never succeed.", details=details,
                          remedies=(Remedy("caller", f"a size that makes sense in {request.caller or 'the caller'}", "a negative number or an overflow often looks like this"),))  # fmt: skip
    elif partly or partial or "page order" in words or "failed to map" in words or "page array" in words:
        verdict = _pages(segment, info, request, old, words, asked, int(new[1]) if new and partial else None)
    elif vmap is not None or "vm_struct" in words or (old is not None):
        verdict = _space(segment, area, modules, vmap is not None, noise)
        verdict = replace(verdict, zones=_zones(segment, info, request), details=details)
    else:
        verdict = Verdict("evidence_missing", UNDECIDED, f"A vmalloc of {who} failed; the line that says why is damaged.", details=details)
    return Report(
        "vmalloc", "vmalloc failure", segment.line, segment.seconds, segment.kernel, request, verdict, info.page_kb if info else 4, stack=segment.stack
    )


def _space(segment: Segment, area: int | None, modules: bool, said: bool, noise: tuple[str, ...]) -> Verdict:
    alone = not modules and not segment.stack.frames and said
    what = "the module area (shared by all modules and compiled BPF programs)" if modules else "the vmalloc area"
    if alone:
        what = "the vmalloc area, or in the modules' (the line alone does not say which)"
    who = segment.comm or "A process"
    bits64 = bool(re.search(r"x86_64|amd64|aarch64|arm64|ppc64|RIP:|\[<ffffffff[0-9a-f]{8}>\]", segment.text))
    missing = ["which area it was: a stack through module_alloc would mean the modules', for which vmalloc=<size> does nothing"] if alone else []
    missing += ["how large the holes are: /proc/vmallocinfo at that moment would show it"]
    if modules and not X86.search(segment.text):
        missing.append(
            "on ARM with CONFIG_ARM_MODULE_PLTS the first attempt is silent (from about 4.13 on), so the message would mean that the vmalloc area is full, too; the log does not show the configuration"
            if not bits64 and not NO_PARAMETER.search(segment.text)
            else "whether the module was loaded in the end: where the area near the kernel is full, arm, arm64 and powerpc (CONFIG_*_MODULE_PLTS, or as they are built) try a wider one, with or without a message of its own"
        )
    remedies: list[Remedy] = []
    if modules:
        remedies.append(Remedy("admin", "fewer or smaller modules, or build the large ones in", "leaves a larger hole in the module area"))
        if not X86.search(segment.text) and not NO_PARAMETER.search(segment.text):
            remedies.append(
                Remedy(
                    "kernel",
                    f"CONFIG_{'ARM64' if bits64 else 'ARM'}_MODULE_PLTS=y (or CONFIG_*_MODULE_PLTS) where the architecture has it",
                    "modules may then lie in the vmalloc area",
                )
            )
        remedies.append(Remedy("admin", "not: vmalloc=<size>, whatever the message says", "it enlarges the vmalloc area, not the module area"))
    else:
        if not bits64 and not NO_PARAMETER.search(segment.text):
            remedies.append(Remedy("admin", "a larger vmalloc=<size> on the command line (32 bit only)", "more addresses for vmalloc, as much less lowmem"))
        remedies.append(
            Remedy("look", "/proc/vmallocinfo: who holds the area, and whether it grows", "a leak of mappings (ioremap, vmap without vunmap) looks like this")
        )
        remedies.append(
            Remedy(
                "kernel",
                "a 64-bit kernel" if not bits64 else "check the size that is asked for",
                "has far more vmalloc addresses (x86-64: 32 TiB)" if not bits64 else "so many addresses (x86-64: 32 TiB) are rarely full",
            )
        )
    certainty = DECIDED if said else PROBABLE
    if not said:
        missing.append("the line 'vmap allocation for size ... failed' is not there; a failed allocation of the area's small descriptor would look the same")
    head = (
        f"{who} got no range of {size(area)} ({area} bytes) in {what}: no hole is large enough."
        if area
        else f"{who} got no range in {what}: no hole is large enough."
    )
    why = ("Physical memory does not matter: free pages, order and watermarks were not asked.", *noise)
    return Verdict("vmalloc_address_space", certainty, head, why, missing=tuple(missing), remedies=tuple(remedies))


def _zones(segment: Segment, info: MemInfo | None, request: Request) -> tuple[ZoneVerdict, ...]:
    """What a single page for it would have met by the dump, where there is one."""
    if info is None or request.flags is None:
        return ()
    return judge(segment, info, replace(request, order=0, bytes=info.page_kb * 1024))[1].zones


def _pages(
    segment: Segment, info: MemInfo | None, request: Request, old: re.Match[str] | None, words: str, asked: int | None, got_bytes: int | None
) -> Verdict:
    got = f" {size(max(int(old[3]) - int(old[2]), 0))} of {size(int(old[3]))} were missing" if old is not None and old[2] is not None else ""
    order = re.search(r"page\s+order\s+(\d+)", words)
    number = int(order[1]) if order and int(order[1]) < 20 else 0
    _, verdict = judge(segment, info, replace(request, order=number, bytes=4096 << number))
    huge = order is not None and order[1] != "0"
    kind = f"blocks of order {order[1]}" if huge and order else "single pages"
    had = f" ({size(got_bytes)} of it were there)" if got_bytes is not None else ""
    head = f"vmalloc found addresses for {size(asked) if asked else 'the request'}{had}, but not all page frames:{got or f' an allocation of {kind} failed'}."
    if verdict.zones:
        head += f" At the dump: {verdict.headline}"
    missing = (*verdict.missing, "a fatal signal, a control group's limit or the page allocator can each have stopped it")
    told = ("watermark", "really_empty", "lowmem_reserve", *(("no_block", "highatomic_only", "cma_only") if huge else ()))
    shown = verdict.code in told and verdict.certainty != UNDECIDED
    if not shown:
        missing = ("which rule refused the pages: the dump does not show it", *missing)
    why = (*(("An attempt with huge pages is repeated with single ones; without a second message the caller got its memory.",) if huge else ()), *verdict.why)
    fixes = tuple(fix for fix in verdict.remedies if fix.who != "caller" and "lowmem_reserve" not in fix.what)
    if huge:
        fixes = (Remedy("look", "whether a second message follows", "if not, the caller got its memory in single pages and nothing is wrong"),)
    return Verdict("vmalloc_pages", DECIDED, head, why, verdict.zones, missing, fixes, {**verdict.details, "page_rule": verdict.code})
