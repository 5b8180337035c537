"""What helps a machine that is out of memory: who holds it comes before what would have helped the one request that failed."""

from __future__ import annotations

from mmtwin.diagnose.explain.mem_info import MemInfo
from mmtwin.diagnose.explain.memory_use import memory_use
from mmtwin.diagnose.explain.model import Remedy, Verdict
from mmtwin.diagnose.explain.page_remedies import HOLDERS, WITHOUT_HIGHMEM
from mmtwin.diagnose.explain.page_verdict import unpopulated

CGROUPS = (2, 6, 25)
"""First with control groups that limit memory."""
DIRTY = Remedy("admin", "a lower vm.dirty_bytes, and a look at who writes so much", "reclaim finds pages that it need not write first")
ELSEWHERE = {
    "huge": Remedy("admin", "a smaller vm.nr_hugepages", "the huge pages that nobody uses become ordinary memory"),
    "tmpfs": Remedy("admin", "smaller files in tmpfs (or a smaller size= when it is mounted), or swap", "killing processes frees nothing of it"),
    "unaccounted": Remedy(
        "look",
        "which driver or module holds pages: page_owner=on, /proc/vmallocinfo, /proc/allocinfo (6.10 and newer)",
        "no counter has them, and killing processes frees none of them",
    ),
    "slab_reclaimable": Remedy("look", "which slab cache grows, and why it does not shrink: /proc/slabinfo, slabtop", "killing processes frees little of it"),
    "slab_unreclaimable": Remedy("look", "which slab cache grows: /proc/slabinfo, slabtop", "killing processes frees little of it"),
}
"""What to do where most of the memory is not processes'."""


def of_a_full_machine(verdict: Verdict, info: MemInfo | None, tasks: list[dict[str, int | str]], newest: tuple[int, ...]) -> tuple[Remedy, ...]:
    """The remedies of a machine that is out of memory: what holds it comes before what would have helped this one request."""
    if verdict.code not in ("watermark", "really_empty", "lowmem_reserve", "not_shown") or info is None:
        return verdict.remedies
    managed = sum(zone.fields.get("managed", zone.fields.get("present", 0)) for zone in info.zones) or info.trailer.get("ram", 0) * info.page_kb
    largest = tasks[0] if tasks else None
    use, page_kb = memory_use(info).pages, info.page_kb
    out_of_reach = [z.zone for z in verdict.zones if not z.eligible and z.zone.free_kb > max(z.zone.fields.get("high", 0), 8 << 10)]
    within = list(dict.fromkeys(z.zone.name for z in verdict.zones if z.eligible and not unpopulated(z)))
    most, elsewhere = max(((use.get(name, 0), remedy) for name, remedy in ELSEWHERE.items()), key=lambda pair: pair[0])
    if largest is not None and managed and int(largest["rss_kb"]) * 2 >= managed:
        share = int(largest["rss_kb"]) * 100 // managed
        changes = f"{largest['comm']} (pid {largest['pid']}) alone has {share} % of it"
    else:
        changes = "which of them is too large only its owner can say" + ("; the log shows sizes" if tasks else "")
    holders = [remedy for remedy in verdict.remedies if remedy.who == "look" and remedy.what.startswith(HOLDERS)]
    rest = [remedy for remedy in verdict.remedies if remedy not in holders]
    if out_of_reach and within:
        bits = [remedy for remedy in rest if remedy == WITHOUT_HIGHMEM]
        low = Remedy(
            "look",
            f"what fills {' and '.join(within)}, which is all that it may use: slab, page tables, file cache, buffers of drivers",
            f"{out_of_reach[0].label} has pages free, so more RAM or swap, and smaller processes, do not help",
        )
        return (low, *bits, *(remedy for remedy in rest if remedy not in bits))
    swap = info.trailer.get("swap_total_kb", 0)
    full = swap == 0 or info.trailer.get("swap_free_kb", 0) * 2 < swap
    limits = ", limits for them (cgroups)" if newest >= CGROUPS else ""
    processes = Remedy("admin", f"less memory for the largest processes{limits}, or more RAM{' or swap' if full else ''}", changes)
    if info.counters.get("dirty", 0) * page_kb * 4 >= managed > 0:
        return (*holders, DIRTY, *rest)
    if managed and most * page_kb * 4 >= managed and most > use.get("anonymous", 0) + use.get("lists", 0):
        return (elsewhere, *holders, *rest)
    return (*holders, processes, *rest)
