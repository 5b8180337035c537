"""Where a machine's memory went, by the counters of a dump."""

from __future__ import annotations

from dataclasses import dataclass

from mmtwin.diagnose.explain.mem_info import MemInfo
from mmtwin.diagnose.explain.model import size

NAMES = {
    "anonymous": "memory of processes", "tmpfs": "files in tmpfs and shared memory", "huge": "huge pages that nobody uses (vm.nr_hugepages)", "file": "file cache", "shmem": "shared memory and tmpfs", "slab_unreclaimable": "unreclaimable slab", "slab_reclaimable": "reclaimable slab", "lists": "memory of processes and file cache (old kernels print one number)", "slab": "slab (old kernels print one number, reclaimable or not)",
    "pagetables": "page tables", "unevictable": "unevictable", "unaccounted": "not in any counter (drivers, hugetlb pages, balloons, per-CPU)",
}  # fmt: skip


@dataclass(frozen=True)
class MemoryUse:
    """Pages by what they are used for, and sentences about what stands out."""

    pages: dict[str, int]
    sentences: tuple[str, ...]


def memory_use(info: MemInfo) -> MemoryUse:
    """The sums and what they say."""
    c, t, kb = info.counters, info.trailer, info.page_kb
    if not c or "free" not in c:
        return MemoryUse({}, ())
    if any("active_file" in zone.fields for zone in info.zones):  # a line of the sums may be cut
        for name in ("active_anon", "inactive_anon", "active_file", "inactive_file"):
            c = c if name in c else c | {name: sum(zone.fields.get(name, 0) for zone in info.zones) // kb}
    anon = c.get("active_anon", 0) + c.get("inactive_anon", 0)
    file = c.get("active_file", 0) + c.get("inactive_file", 0)
    pages = {
        "anonymous": anon, "file": file, "shmem": c.get("shmem", 0), "slab_unreclaimable": c.get("slab_unreclaimable", 0),
        "slab_reclaimable": c.get("slab_reclaimable", 0), "slab": c.get("slab", 0), "pagetables": c.get("pagetables", 0), "unevictable": c.get("unevictable", 0),
        "lists": 0 if "active_anon" in c else c.get("active", 0) + c.get("inactive", 0),
    }  # fmt: skip
    if pages["lists"] and "pagecache" in t and (t["pagecache"] + t.get("swapcache", 0)) * 8 < pages["lists"]:
        pages["anonymous"], pages["lists"] = pages["lists"], 0  # hardly any of it is file cache
    said: list[str] = []
    ram = t.get("ram", 0) - t.get("reserved", 0)
    if ram > 0 and "active_anon" in c:
        known = (
            anon
            + file
            + pages["slab_unreclaimable"]
            + pages["slab_reclaimable"]
            + pages["slab"]
            + pages["pagetables"]
            + pages["unevictable"]
            + c["free"]
            + c.get("free_pcp", 0)
        )
        if ram > known:
            pages["huge"] = min(info.unused_huge_kb // kb, ram - known)
            stacks = sum(zone.fields.get("kernel_stack", 0) + zone.fields.get("shadow_call_stack", 0) for zone in info.zones) // kb
            pages["unaccounted"] = max(ram - known - pages["huge"] - stacks, 0)
    if "active_anon" in c and pages["shmem"] * 2 >= anon > 0:  # its pages are on the lists of anonymous ones
        pages["tmpfs"] = min(pages["shmem"], anon)
        pages["anonymous"] = anon - pages["tmpfs"]
    whole = ram if ram > 0 else sum(pages.values()) + c["free"]
    large = sorted(((n, name) for name, n in pages.items() if n * 5 >= whole > 0 and name != "shmem" and n > 64), reverse=True)
    dirty = c.get("dirty", 0) + c.get("writeback", 0)
    if dirty * 8 >= whole > 0 and dirty > 1024:
        said.append(f"{size(dirty * kb * 1024)} of the file cache are dirty or being written: reclaim waits for the disks.")
    if t.get("reserved", 0) * 4 >= t.get("ram", 0) > 0:
        said.append(
            f"{size(t['reserved'] * kb * 1024)} of {size(t['ram'] * kb * 1024)} RAM are reserved from the start (firmware, crash kernel, KASAN, graphics)."
        )
    if large:
        said.insert(
            0,
            ("Most of the machine's memory is " if sum(n for n, _ in large[:3]) * 2 >= whole else "The largest part of what is used is ")
            + ", ".join(f"{NAMES[name]} ({size(n * kb * 1024)})" for n, name in large[:3])
            + f", of {size(whole * kb * 1024)}.",
        )
    if pages["shmem"] * 4 >= whole > 0:
        said.append(f"{size(pages['shmem'] * kb * 1024)} are shared memory or tmpfs, which only swap can take, or whoever removes the files.")
    if "swap_total_kb" in t:
        total, free = t["swap_total_kb"], t.get("swap_free_kb", 0)
        if total == 0:
            if (anon + pages["lists"] + pages["shmem"]) * 5 >= whole > 0:
                said.append("There is no swap, so memory of processes cannot be reclaimed.")
        elif free * 50 < total:
            said.append(f"Swap is full ({size(total * 1024)}).")
        else:
            said.append(f"{size(free * 1024)} of {size(total * 1024)} swap are free.")
    for zone in info.zones:
        stuck = zone.fields.get("slab_unreclaimable", 0)
        managed = zone.fields.get("managed", zone.fields.get("present", 0))
        if managed and stuck * 3 >= managed and zone.name != "DMA":
            said.append(f"{size(stuck * 1024)} of {zone.label}'s {size(managed * 1024)} are unreclaimable slab; neither swap nor killing processes frees that.")
    return MemoryUse(pages, tuple(said))
