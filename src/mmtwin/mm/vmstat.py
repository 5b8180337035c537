"""Zone counters with their per-CPU differences (mm/vmstat.c). Only NR_FREE_PAGES is kept: the allocator's decisions depend on no other."""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, slow


@inner
def mod_zone_free_pages(b: Any, z: int, cpu: int, delta: int) -> None:
    """``__mod_zone_page_state`` of NR_FREE_PAGES: the change stays with the CPU until it exceeds its threshold, then the zone gets all of it."""
    pcp = b.pcp[z * int(b.config[0]["nr_cpus"]) + cpu]
    x = delta + int(pcp["nr_free_pages_diff"])
    if abs(x) > int(pcp["stat_threshold"]):
        zone = b.zone[z]
        zone["nr_free_pages"] = int(zone["nr_free_pages"]) + x
        x = 0
    pcp["nr_free_pages_diff"] = x


@slow
def refresh_cpu_vm_stats(b: Any, cpu: int) -> None:
    """Once a second, and when a CPU goes idle, its differences are added to the zones'."""
    for z in range(len(b.zone)):
        pcp = b.pcp[z * int(b.config[0]["nr_cpus"]) + cpu]
        b.zone[z]["nr_free_pages"] = int(b.zone[z]["nr_free_pages"]) + int(pcp["nr_free_pages_diff"])
        pcp["nr_free_pages_diff"] = 0


@inner
def fls(x: int) -> int:
    """Bit length of `x`."""
    n = 0
    while x:
        x >>= 1
        n += 1
    return n


@slow
def calculate_normal_threshold(b: Any, z: int) -> int:
    """How large a CPU's difference may grow: more memory and more CPUs, larger steps."""
    return min(125, 2 * fls(int(b.config[0]["online_cpus"])) * (1 + fls(int(b.zone[z]["managed_pages"]) >> 15)))


@slow
def calculate_pressure_threshold(b: Any, z: int) -> int:
    """The smaller step while kswapd works, so that the counters cannot hide a breach of the low watermark."""
    zone = b.zone[z]
    distance = int(zone["wmark_low"]) - int(zone["wmark_min"])
    return min(125, max(1, distance // int(b.config[0]["online_cpus"])))


@slow
def set_threshold(b: Any, z: int, threshold: int) -> None:
    """Gives every online CPU of a zone the same threshold."""
    cpus = int(b.config[0]["nr_cpus"])
    for cpu in range(int(b.config[0]["online_cpus"])):
        b.pcp[z * cpus + cpu]["stat_threshold"] = threshold


@slow
def set_pgdat_percpu_threshold(b: Any, pressure: bool) -> None:
    """kswapd's change of the thresholds; only zones whose counters could drift past a watermark have a drift mark."""
    for z in range(len(b.zone)):
        if int(b.zone[z]["percpu_drift_mark"]):
            set_threshold(b, z, calculate_pressure_threshold(b, z) if pressure else calculate_normal_threshold(b, z))


@slow
def refresh_zone_stat_thresholds(b: Any) -> None:
    """Thresholds and drift marks from managed pages, watermarks and CPUs. A mark once set is never cleared, even one set when the watermarks were still 0."""
    for z in range(len(b.zone)):
        zone = b.zone[z]
        if int(zone["present_pages"]) == 0:
            continue
        threshold = calculate_normal_threshold(b, z)
        set_threshold(b, z, threshold)
        drift = int(b.config[0]["online_cpus"]) * threshold
        if drift > int(zone["wmark_low"]) - int(zone["wmark_min"]):
            zone["percpu_drift_mark"] = int(zone["wmark_high"]) + int(zone["watermark_boost"]) + drift
