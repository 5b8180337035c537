"""Cuts a log into reports: where each begins, which lines belong to it, and what was printed into it by another CPU."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mmtwin.diagnose.explain import aftermath
from mmtwin.diagnose.explain.anchored import Anchored
from mmtwin.diagnose.explain.kernel_version import Kernel, find_kernel, releases
from mmtwin.diagnose.explain.log_lines import LogText
from mmtwin.diagnose.explain.mem_info import zone_heads
from mmtwin.diagnose.explain.model import Segment
from mmtwin.diagnose.explain.stack import read_stack

HEADERS = Anchored(re.compile(
    r"(?P<page>vmemmap\s+alloc\s+failure|page\s+(?:allocation\s+(?:failure\b|stalls\s+for\b)|alloction\s+stalls\s+for\b)|\b__alloc_pages:\s+\d+-order\s+allocation\s+failed)"
    r"|(?P<vmalloc>(?:vmap\s+allocation|vmalloc_node_range)\s+for\s+size\s+\d+\s+failed|vmalloc:\s+allocation\s+failure|vmalloc\s+error:\s+size)"
    r"|(?P<oom>invoked\s+oom-killer:|(?<!invoked )\boom-killer:\s+gfp_mask)"
    r"|(?P<killed>[Mm]emory\s+cgroup\s+out\s+of\s+memory|Out of [Mm]emory(?::\s+[Kk]ill|\s+and no killable|\s+\(oom_kill_allocating)|\boom-kill:constraint=|\bTask in \S+ killed as a result of limit of)"
    r"|(?P<mem_info>\bMem-[Ii]nfo:)"
    r"|(?P<zone>\b(?:DMA32|DMA|Normal|HighMem|Movable)\s+free:\s*\d+\s*kB\s+(?:boost|min):)"
    r"|(?P<slab>\bSL[AU]B:\s+Unable\s+to\s+allocate\s+memory\s+on)"
    r"|(?P<slub_debug>\bBUG\s+(?!:)(?:\S+)(?:\s+\S+){0,3}?\s+\((?:Not\s+tainted|Tainted:[^)]{0,120}|[A-Z ]*tainted[^)]{0,80})\):\s|\bBUG\s+[\w.:-]+:\s+(?:(?:Left\s+|Right\s+|kmalloc\s+)?Redzone|(?:End\s+)?Poison|(?:Object\s+|Alignment\s+)?[Pp]adding)\s+overwritten|\bBUG\s+[\w.:-]+:\s+Object\s+already\s+free)"
    r"|(?P<kasan>\bBUG:\s+K(?:AS[Aa][Nn]|FENCE|MSAN):\s|\bKASAN:\s+(?:null-ptr-deref|(?:probably\s+)?user-memory-access|(?:maybe\s+)?wild-memory-access)\s+in\s+range\b)"
    r"|(?P<slab_debug>\bslab\s+error\s+in\s+\w+\(\)|\bSlab\s+corruption\b)"
    r"|(?P<context>\b(?:BUG|Debug):\s+(?:sleeping\s+function\s+called\s+from\s+(?:invalid|illegal)\s+context|scheduling\s+while\s+atomic))"
    r"|(?P<oversize>\bWARNING:\s+(?:(?:CPU:\s*\d+\s+PID:\s*\d+\s+)?at\s+)?(?:[\w./-]*/)?mm/(?:page_alloc|slab_common|util|vmalloc|slub|slab|percpu)\.[ch]:\d+|\bkernel\s+BUG\s+at\s+(?:[\w./-]*/)?mm/(?:page_alloc|slab_common|util|vmalloc|slub|slab|usercopy)\.[ch]:\d+)"
    r"|(?P<usercopy>\busercopy:\s+[Kk]ernel\s+memory|\busercopy\s+whitelist\?\s+Kernel\s+memory)"
    r"|(?P<dma>\bDMA-API:\s|swiotlb\s+buffer\s+is\s+full|\bswiotlb\s+addr\s+\S+\s+overflow\b|Out\s+of\s+SW-IOMMU\s+space|\boverflow\s+0x[0-9a-f]+\+\d+\s+of\s+DMA\s+mask|rejecting\s+DMA\s+map\s+of\s+vmalloc|\b(?:transfer\s+buffer|setup\s+packet)\s+(?:is\s+)?(?:not\s+dma\s+capable|on\s+stack)|\b(?:__)?cma_alloc:\s.{0,60}?\balloc\s+failed|\balloc_contig_range:\s+\[[0-9a-f]+,\s*[0-9a-f]+\)\s+PFNs\s+busy)"
    r"|(?P<percpu>\bpercpu:\s+allocation\s+failed)"
    r"|(?P<deadlock>\b[Pp]ossible\s+memory\s+allocation\s+deadlock\b)"
    r"|(?P<nommu>\bAllocation\s+of\s+length\s+\d+\s+from\s+process\s+\d+)"
    r"|(?P<fault>\bFAULT_INJECTION:\s+forcing\s+a\s+failure)"
), "page", "vmemmap", "transfer", "setup", "__alloc_pages:", "vmap", "vmalloc", "invoked", "oom-kill", "Memory", "memory", "Out", "Task", "Mem-", "DMA", "Normal", "HighMem", "Movable", "SLAB:", "SLUB:", "BUG", "Debug:", "KASAN:", "slab", "Slab",
    "WARNING:", "kernel", "usercopy", "swiotlb", "overflow", "rejecting", "cma_alloc:", "__cma_alloc:", "alloc_contig_range:", "percpu:", "Possible", "possible", "Allocation", "FAULT_INJECTION:")  # fmt: skip
"""First words of each kind of report; the group's name is its kind."""
DUMPING = ("page", "oom", "vmalloc")
"""Kinds that are followed by Mem-Info."""
NEAR = 20_000
"""Characters: a Mem-Info further behind belongs to nobody known."""
MOST = 1_000
"""Reports of one window that are looked at."""


NAMED = r"[Cc]omm:\s+(\S.{0,31}?)\s+(?:Kdump|Not\s+tainted|Tainted|[GP]\s)"
COMM = re.compile(rf"\b{NAMED}")
CPU_LINE = re.compile(rf"CPU:\s*\d+\s+(?:UID:\s*\d+\s+)?PID:\s*\d+\s+{NAMED}")
COMM_LEN = 15
"""TASK_COMM_LEN - 1 (include/linux/sched.h)."""


class _Open:
    """A report while its end is not known."""

    def __init__(self, kind: str, match: re.Match[str]) -> None:
        self.kind, self.at, self.end, self.match = kind, match.start(), 0, match
        self.waits, self.named, self.closed, self.end_of_kill = kind in DUMPING, False, 0, match.start()
        self.kill = 0


def cut(log: LogText, around: str = "") -> Iterator[Segment]:
    """Every report of a stream, in order.

    :param around: text to look for the kernel's version in, where a report does not name it.
    """
    text = log.text
    named = releases(around)
    kernel = find_kernel("", around) if len(set(named)) == 1 else None
    opened: list[_Open] = []
    headers = list(HEADERS.finditer(text))
    for n, match in enumerate(headers):
        kind = match.lastgroup or ""
        last = opened[-1] if opened else None
        if kind == "slab" and last is not None and last.kind == "page" and last.waits and _dumps_later(headers, n, last.at):
            continue  # between the head and the dump of a page allocation failure: what another CPU says of the same lack
        if kind in ("mem_info", "zone"):
            waiting = [o for o in opened[-4:] if o.waits and match.start() - o.at < NEAR]
            if waiting and kind == "mem_info":
                waiting[0].waits = False
            if waiting:
                continue
        if kind == "zone":  # a dump whose head is not in the log
            if any(o.kind in (*DUMPING, "killed", "mem_info") and match.start() - o.at < NEAR for o in opened[-4:]):
                continue
            kind = "mem_info"
        if kind == "nommu":  # mm/nommu.c dumps the memory behind its own line: once more, or (2.6.12) for the first time
            if last is not None and last.kind == "page" and match.start() - last.at < NEAR and zone_heads(text[last.at : match.start()]):
                last.closed = match.end()
            continue
        if kind == "killed" and last is not None and last.kind == "page" and len(opened) > 1 and _kills(opened[-2], match, text):
            opened[-2].kill = last.closed = match.start()
            continue
        if last is not None and _belongs(kind, last, match, text):
            last.named |= "cma_alloc" in match[0]
            continue
        opened.append(_Open(kind, match))
        if len(opened) >= MOST:
            break
    for n, one in enumerate(opened):
        one.end = one.closed or (opened[n + 1].at if n + 1 < len(opened) else len(text))
    for n, one in enumerate(opened):
        yield _segment(log, opened, n, one, kernel)


def _dumps_later(headers: list[re.Match[str]], n: int, begin: int) -> bool:
    """Whether, but for the slab allocator's messages, the next thing behind header `n` is the dump of the report that begins at `begin`."""
    behind = next((other for other in headers[n + 1 :] if other.lastgroup != "slab"), None)
    return behind is not None and behind.lastgroup in ("mem_info", "zone") and behind.start() - begin < NEAR


def _kills(oom: _Open, match: re.Match[str], text: str) -> bool:
    """Whether the words are the end of an OOM report into which another CPU has printed."""
    open_yet = oom.kind == "oom" and match.start() - oom.at < NEAR and "Killed process" not in text[oom.at : match.start()]
    return open_yet and "emory cgroup" not in match[0] and not text.startswith("CONSTRAINT_MEMCG", match.end())


def _belongs(kind: str, last: _Open, match: re.Match[str], text: str) -> bool:
    """Whether a header is only a further line of the report before it."""
    near = match.start() - last.at < NEAR
    between = text[last.at : match.start()]
    if kind == "killed":
        group = "are going to be killed due to memory.oom.group set" in between
        another = "Killed process" in between and not match[0].startswith("Out of memory") and not group
        dump = last.kind == "mem_info" and match[0].startswith("Out of") and not another
        more = "Out of Memory: Killed" in between and match[0].startswith("Out of Memory") and text.count("\n", last.end_of_kill, match.start()) <= 1
        last.end_of_kill = match.start()  # kernels before 2.6.19 say it of every thread
        summary = last.kind == "mem_info" and match[0].startswith("oom-kill:")
        return near and (dump or summary or more or (last.kind in ("oom", "killed") and not another))
    if kind == "vmalloc":  # the allocator of addresses speaks first, then vmalloc itself
        return (
            last.kind == "vmalloc"
            and between.count("\n") <= 3
            and not match[0].startswith(("vmap", "vmalloc_node"))
            and not between.startswith(("vmalloc:", "vmalloc error"))
        )
    if kind == "page":  # 3.x: "vmalloc: allocation failure: N bytes" and then the page allocator's words, though it refused nothing
        return last.kind == "vmalloc" and between.count("\n") <= 2
    if kind == "slab_debug":  # 2.5 and 2.6.0: the object's bytes, and then what is wrong
        return last.kind == "slab_debug" and last.match[0].startswith("Slab") and "check_poison_obj" in match[0] and between.count("\n") <= 10
    if kind == "oversize":
        destroys = "Objects remaining" in between[:300] and near and "kmem_cache_destroy" in text[match.start() : match.end() + 100]
        return last.kind in ("slub_debug", "usercopy") and (between.count("\n") < 60 or destroys)
    if kind == "dma" and last.match[0].endswith("busy"):  # a line for each range that is tried, then the area's own
        return near and (match[0].endswith("busy") or ("cma_alloc" in match[0] and not last.named))
    if kind == "dma":  # a bounce buffer that is full, and then the map's own warning
        return last.kind == "dma" and between.count("\n") <= 2 and "full" not in match[0] and "cma_alloc" not in match[0]
    return kind == "kasan" and last.kind == "kasan" and between.count("\n") <= 6 and "Call" not in between  # inlined functions have a line each


def _segment(log: LogText, opened: list[_Open], n: int, one: _Open, elsewhere: Kernel | None) -> Segment:
    text = log.text
    line_start = text.rfind("\n", 0, one.at) + 1
    start = max(line_start, opened[n - 1].match.end() if n else 0)
    body = text[start : one.end]
    if one.kill:
        body += text[one.kill : opened[n + 2].at if n + 2 < len(opened) else len(text)]
    before = text[max(0, start - 3_000) : start]
    line = log.line(one.at)
    after, turn, interleaved = "", 0, False
    if one.kind in DUMPING and not zone_heads(body):
        # the zones are behind the next header: dumps of several CPUs in one another
        for other in opened[n + 1 : n + 4]:
            if other.kind not in DUMPING or other.at - one.at > NEAR:
                break
            piece = text[other.at : other.end]
            heads = [match[0].split("free")[0] for match in zone_heads(piece)]
            if heads:
                if len(set(heads)) < len(heads):
                    after, interleaved = piece, True
                break
    elif one.kind in DUMPING:
        heads = [match[0].split("free")[0] for match in zone_heads(body)]
        earlier = 0
        for other in reversed(opened[max(0, n - 3) : n]):
            if other.kind not in DUMPING or one.at - other.at > NEAR or zone_heads(text[other.at : other.end]):
                break
            earlier += 1
        if earlier and len(set(heads)) < len(heads):
            turn, interleaved = earlier, True
    kernel = find_kernel(body)
    if not kernel.known and elsewhere is not None:
        kernel = elsewhere
    stack_at = max(0, body.find("CPU:")) if one.kind == "slub_debug" else 0  # who allocated and freed stands before
    crash = aftermath.CRASH.search(body) if one.kind in aftermath.KINDS and not one.match[0].startswith("kernel") else None  # "kernel BUG at" is its own crash
    own = body[: crash.start()] if crash else body
    comm = _comm(own, one.kind)
    printed = _of_process(own + after, comm) if interleaved else own[stack_at:]
    return Segment(
        one.kind,
        line.number,
        line.seconds,
        one.match[0],
        body,
        before,
        kernel,
        read_stack(printed or own, one.kind),
        comm,
        after,
        turn,
        interleaved,
        crash.start() if crash else None,
    )


def _of_process(text: str, comm: str) -> str:
    """Of two CPUs' reports in one another what follows this process's own "CPU: ... Comm:" line; "" if it has none."""
    begins = list(CPU_LINE.finditer(text))
    for n, begin in enumerate(begins):
        if begin[1] == comm:
            return text[begin.start() : begins[n + 1].start() if n + 1 < len(begins) else len(text)]
    return ""


def _comm(body: str, kind: str) -> str:
    """The process's name, as the report's first line has it."""
    patterns = {
        "page": r"\A\s*(.{1,64}?):\s+(?:vmalloc:.{0,80}?)?(?:page\s+allocation|vmemmap\s+alloc)", "oom": r"\A\s*(.{1,64}?)\s+invoked\s+oom-killer",
        "vmalloc": r"(?m)^\s*([^:\n]{1,32}?):\s+(?:vmalloc|page alloc)",
    }  # fmt: skip
    if kind in patterns and (match := re.search(patterns[kind], body[:2000])):
        name = re.sub(r"\A\W*kernel\s*:\s*", "", match[1]).strip()
        if len(name) > COMM_LEN:  # what a logger or a program on the same console wrote before it
            said = COMM.search(body[:8_000])
            name = said[1] if said and name.endswith(said[1]) else re.split(r"[\]|]\s+", name)[-1]
        name = re.sub(r"\s{2,}<=+\s*\Z", "", name)  # an arrow that the poster drew
        name = re.sub(r"\(\d+\)\Z", "", name)  # "gmain(615)": some print the pid, too
        return name if re.search(r"\w", name) else ""
    match = COMM.search(body) or re.search(r"\bname:\s+(\S[^\n]{0,31})", body)
    return match[1].strip() if match else ""
