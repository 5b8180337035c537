"""Whether kswapd is needed: the node's balance; and its wake-up (mm/vmscan.c, pgdat_balanced and what it tests, wakeup_kswapd)."""

from __future__ import annotations

from typing import Any

from mmtwin._jit import slow
from mmtwin.mm.watermark import zone_watermark_ok

MAX_RECLAIM_RETRIES = 16
"""Rounds of kswapd without a page reclaimed, after which it is not woken any more; a request, too, gives up after so many."""
UNBALANCED, BOOSTED = 1, 2
"""What `node_needs_kswapd` answers, as bits."""


@slow
def zone_free_pages_exact(b: Any, z: int) -> int:
    """``zone_page_state_snapshot`` of NR_FREE_PAGES: the zone's counter with what the online CPUs hold back."""
    total = int(b.zone[z]["nr_free_pages"])
    cpus = int(b.config[0]["nr_cpus"])
    for cpu in range(int(b.config[0]["online_cpus"])):
        total += int(b.pcp[z * cpus + cpu]["nr_free_pages_diff"])
    return max(total, 0)


@slow
def zone_watermark_ok_safe(b: Any, z: int, order: int, mark: int, highest_zoneidx: int) -> bool:
    """kswapd's own test: exact where the counter could hide a breach (below the drift mark)."""
    free_pages = int(b.zone[z]["nr_free_pages"])
    if int(b.zone[z]["percpu_drift_mark"]) and free_pages < int(b.zone[z]["percpu_drift_mark"]):
        free_pages = zone_free_pages_exact(b, z)
    return zone_watermark_ok(b, z, order, mark, highest_zoneidx, 0, free_pages)


@slow
def node_needs_kswapd(b: Any, order: int, highest_zoneidx: int) -> int:
    """UNBALANCED if no zone up to the highest is above its high watermark for `order`, BOOSTED if one has a boosted watermark; 0 to leave kswapd alone."""
    answer = UNBALANCED
    managed = False
    for z in range(highest_zoneidx + 1):
        zone = b.zone[z]
        if int(zone["managed_pages"]) == 0:
            continue
        managed = True
        if answer & UNBALANCED and zone_watermark_ok_safe(b, z, order, int(zone["wmark_high"]) + int(zone["watermark_boost"]), highest_zoneidx):
            answer &= ~UNBALANCED
        if int(zone["watermark_boost"]):
            answer |= BOOSTED
    return answer if managed else 0


@slow
def pgdat_balanced(b: Any, order: int, highest_zoneidx: int) -> bool:
    """``pgdat_balanced``: whether one zone that the request may use is above its high watermark."""
    return node_needs_kswapd(b, order, highest_zoneidx) & UNBALANCED == 0


@slow
def wakeup_kswapd(b: Any, order: int, highest_zoneidx: int) -> None:
    """``wakeup_kswapd``: it is told what is needed, and is to run if it has not given up and the node is unbalanced or boosted."""
    config = b.config[0]
    config["kswapd_wakeups"] = int(config["kswapd_wakeups"]) + 1
    config["kswapd_highest_zoneidx"] = max(int(config["kswapd_highest_zoneidx"]), highest_zoneidx)
    config["kswapd_order"] = max(int(config["kswapd_order"]), order)
    if int(config["kswapd_failures"]) < MAX_RECLAIM_RETRIES and node_needs_kswapd(b, order, highest_zoneidx):
        config["kswapd_pending"] = 1
