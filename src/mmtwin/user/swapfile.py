"""Slots of swap devices: how they are chosen, counted and given back (mm/swapfile.c, mm/swap_slots.c of Linux 6.1).

A slot is known by its place in `Users.swap_map`, which has the slots of all devices; slot 0 of each device is its header. Disks hand slots out one after the other, and
look for an empty run of 256 (64 bits: 512) now and then; devices without moving parts give each CPU a cluster of its own. In front of both, each CPU keeps up to 64 slots.
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, routine
from mmtwin.user.handles import users_state
from mmtwin.user.mm_tables import (
    SLOT_CACHE_ROWS,
    SLOT_CUR,
    SLOT_N_RET,
    SLOT_NR,
    SLOT_RET,
    SLOT_SLOTS,
    SWAP_HAS_CACHE,
    SWAP_SLOTS_CACHE_SIZE,
)

NO_SLOT = -1
ACTIVATE, DEACTIVATE = 320, 128
"""THRESHOLD_ACTIVATE_SWAP_SLOTS_CACHE and THRESHOLD_DEACTIVATE_SWAP_SLOTS_CACHE: free slots per CPU."""


@inner
def device_of(s: Any, slot: int) -> int:
    """``swp_type``: the device that a slot is on."""
    d = 0
    while not int(s.swap[d]["used"]) or not int(s.swap[d]["first"]) <= slot < int(s.swap[d]["first"]) + int(s.swap[d]["max"]):
        d += 1
    return d


@inner
def cluster_size(s: Any, d: int) -> int:
    """SWAPFILE_CLUSTER."""
    return int(s.swap[d]["clusters"])


@inner
def used_up(s: Any, d: int, offset: int) -> int:
    """``si->swap_map[offset]``."""
    return int(s.swap_map[int(s.swap[d]["first"]) + offset])


# Devices without moving parts


@inner
def cluster_row(s: Any, d: int, index: int) -> int:
    """Row of a device's cluster."""
    return int(s.swap[d]["first_cluster"]) + index


@inner
def inc_cluster(s: Any, d: int, offset: int) -> None:
    """``inc_cluster_info_page``: the first page of a free cluster takes it off the list, whose head it must be."""
    si = s.swap[d]
    if not int(si["solidstate"]):
        return
    index = offset // cluster_size(s, d)
    row = cluster_row(s, d, index)
    if int(s.swap_cluster[row]["count"]) == 0:
        si["free_head"] = int(s.swap_cluster[row]["next"])
        if int(si["free_head"]) < 0:
            si["free_tail"] = -1
    s.swap_cluster[row]["count"] = int(s.swap_cluster[row]["count"]) + 1


@inner
def dec_cluster(s: Any, d: int, offset: int) -> None:
    """``dec_cluster_info_page``: an empty cluster goes to the end of the list of free ones."""
    si = s.swap[d]
    if not int(si["solidstate"]):
        return
    index = offset // cluster_size(s, d)
    row = cluster_row(s, d, index)
    left = int(s.swap_cluster[row]["count"]) - 1
    s.swap_cluster[row]["count"] = left
    if left == 0:
        s.swap_cluster[row]["next"] = -1
        if int(si["free_tail"]) < 0:
            si["free_head"] = index
        else:
            s.swap_cluster[cluster_row(s, d, int(si["free_tail"]))]["next"] = index
        si["free_tail"] = index


@routine
def try_ssd_cluster(h: int, d: int, cpu_row: int) -> int:
    """``scan_swap_map_try_ssd_cluster``: the next free slot of the CPU's cluster, or of a new one; -1: no cluster is free."""
    s = users_state(h)
    si, mine, size = s.swap[d], s.swap_cpu[cpu_row], cluster_size(s, d)
    while True:
        if int(mine["index"]) < 0:
            if int(si["free_head"]) < 0:
                return -1
            mine["index"] = si["free_head"]
            mine["next"] = int(si["free_head"]) * size
        at, end = int(mine["next"]), min(int(si["max"]), (int(mine["index"]) + 1) * size)
        while at < end and used_up(s, d, at):
            at += 1
        if at < end:
            mine["next"] = at + 1
            return at
        mine["index"] = -1


@inner
def ssd_conflict(s: Any, d: int, cpu_row: int, offset: int) -> bool:
    """``scan_swap_map_ssd_cluster_conflict``: a free cluster may be begun at the head of their list only."""
    si = s.swap[d]
    index = offset // cluster_size(s, d)
    if int(si["free_head"]) < 0 or index == int(si["free_head"]) or int(s.swap_cluster[cluster_row(s, d, index)]["count"]):
        return False
    s.swap_cpu[cpu_row]["index"] = -1
    return True


# Slots


@inner
def take_slot(s: Any, d: int, offset: int) -> None:
    """The slot is the swap cache's (or a CPU's); ``swap_range_alloc``."""
    si = s.swap[d]
    s.swap_map[int(si["first"]) + offset] = SWAP_HAS_CACHE
    inc_cluster(s, d, offset)
    if offset == int(si["lowest_bit"]):
        si["lowest_bit"] = offset + 1
    if offset == int(si["highest_bit"]):
        si["highest_bit"] = offset - 1
    si["inuse_pages"] = int(si["inuse_pages"]) + 1
    if int(si["inuse_pages"]) == int(si["pages"]):
        si["lowest_bit"], si["highest_bit"] = si["max"], 0


@routine
def scan_for_free(h: int, d: int, offset: int, scan_base: int) -> int:
    """The slow scan: behind `offset`, then from the beginning; -1: the device is full."""
    s = users_state(h)
    si = s.swap[d]
    at = offset + 1
    while at <= int(si["highest_bit"]):
        if not used_up(s, d, at):
            return at
        at += 1
    at = int(si["lowest_bit"])
    while at < scan_base:
        if not used_up(s, d, at):
            return at
        at += 1
    return -1


@routine
def empty_run(h: int, d: int) -> int:
    """The first run of free slots as long as a cluster, -1 if there is none."""
    s = users_state(h)
    si, size = s.swap[d], cluster_size(s, d)
    offset = int(si["lowest_bit"])
    last = offset + size - 1
    while last <= int(si["highest_bit"]):
        if used_up(s, d, offset):
            last = offset + size
        elif offset == last:
            return offset - (size - 1)
        offset += 1
    return -1


@routine
def scan_swap_map_slots(h: int, d: int, cpu: int, want: int, out: int) -> int:
    """``scan_swap_map_slots``: up to `want` slots of a device, written to `Users.slots` from `out` on; returns how many."""
    s = users_state(h)
    si, cpu_row = s.swap[d], d * (len(s.slots) // SLOT_CACHE_ROWS) + cpu
    solid, got = int(si["solidstate"]) != 0, 0
    offset = scan_base = int(si["cluster_next"])
    if solid:
        at = try_ssd_cluster(h, d, cpu_row)
        if at >= 0:
            offset = scan_base = at
        else:
            offset = scan_for_free(h, d, offset, scan_base)
    else:
        left = int(si["cluster_nr"])
        si["cluster_nr"] = left - 1
        if left == 0:
            if int(si["pages"]) - int(si["inuse_pages"]) >= cluster_size(s, d):
                scan_base = offset = int(si["lowest_bit"])
                run = empty_run(h, d)
                if run >= 0:
                    offset = run
                    si["cluster_next"] = run
            si["cluster_nr"] = cluster_size(s, d) - 1
    while offset >= 0:
        if solid and ssd_conflict(s, d, cpu_row, offset):
            if got:
                break
            offset = try_ssd_cluster(h, d, cpu_row)
            scan_base = offset
            continue
        if not int(si["highest_bit"]):
            break
        if offset > int(si["highest_bit"]):
            scan_base = offset = int(si["lowest_bit"])
        if used_up(s, d, offset):
            if got:
                break
            offset = scan_for_free(h, d, offset, scan_base)
            continue
        take_slot(s, d, offset)
        s.slots[out + got] = int(si["first"]) + offset
        got += 1
        if got == want or offset >= int(si["highest_bit"]):
            break
        if solid:
            at = try_ssd_cluster(h, d, cpu_row)
            if at >= 0:
                offset = scan_base = at
                continue
        elif int(si["cluster_nr"]):
            offset += 1
            if not used_up(s, d, offset):
                si["cluster_nr"] = int(si["cluster_nr"]) - 1
                continue
        limit = scan_base if offset < scan_base else int(si["highest_bit"])
        while offset <= limit and used_up(s, d, offset):
            offset += 1
        if offset > limit:
            break
    if offset >= 0:
        si["cluster_next"] = offset + 1
    return got


@routine
def get_swap_pages(h: int, cpu: int, want: int, out: int) -> int:
    """``get_swap_pages``: slots from the devices by priority, those of the same priority in turn; returns how many."""
    s = users_state(h)
    lruvec = s.lruvec[0]
    want = min(want, SWAP_SLOTS_CACHE_SIZE, int(lruvec["nr_swap_pages"]))
    if want <= 0:
        return 0
    got, tried = 0, 0
    while got == 0 and tried < len(s.swap):
        best = -1
        for d in range(len(s.swap)):
            si = s.swap[d]
            if not int(si["used"]) or not int(si["writeok"]) or not int(si["highest_bit"]):
                continue
            if best < 0 or (int(si["prio"]), -int(si["turn"])) > (int(s.swap[best]["prio"]), -int(s.swap[best]["turn"])):
                best = d
        if best < 0:
            break
        latest = 0
        for d in range(len(s.swap)):
            latest = max(latest, int(s.swap[d]["turn"]))
        s.swap[best]["turn"] = latest + 1
        got = scan_swap_map_slots(h, best, cpu, want, out)
        tried += 1
    lruvec["nr_swap_pages"] = int(lruvec["nr_swap_pages"]) - got
    return got


@routine
def swap_entry_free(h: int, slot: int) -> None:
    """``swap_entry_free``: nobody has the slot any more; ``swap_range_free``."""
    s = users_state(h)
    d = device_of(s, slot)
    si = s.swap[d]
    offset = slot - int(si["first"])
    s.swap_map[slot] = 0
    s.swap_cache[slot] = -1
    dec_cluster(s, d, offset)
    si["lowest_bit"] = min(int(si["lowest_bit"]), offset)
    si["highest_bit"] = max(int(si["highest_bit"]), offset)
    si["inuse_pages"] = int(si["inuse_pages"]) - 1
    s.lruvec[0]["nr_swap_pages"] = int(s.lruvec[0]["nr_swap_pages"]) + 1


@routine
def drain_slots_cache(h: int) -> None:
    """``__drain_swap_slots_cache``: the CPUs give back what they keep."""
    s = users_state(h)
    for base in range(0, len(s.slots), SLOT_CACHE_ROWS):
        first = base + SLOT_SLOTS + int(s.slots[base + SLOT_CUR])
        for i in range(first, first + int(s.slots[base + SLOT_NR])):
            swap_entry_free(h, int(s.slots[i]))
        for i in range(base + SLOT_RET, base + SLOT_RET + int(s.slots[base + SLOT_N_RET])):
            swap_entry_free(h, int(s.slots[i]))
        s.slots[base + SLOT_NR], s.slots[base + SLOT_CUR], s.slots[base + SLOT_N_RET] = 0, 0, 0


@routine
def check_cache_active(h: int) -> bool:
    """``check_cache_active``: CPUs keep slots while there are many."""
    s = users_state(h)
    lruvec, cpus = s.lruvec[0], len(s.slots) // SLOT_CACHE_ROWS
    free = int(lruvec["nr_swap_pages"])
    if not int(lruvec["slot_cache_active"]):
        if free > cpus * ACTIVATE:
            lruvec["slot_cache_active"] = 1
    elif free < cpus * DEACTIVATE:
        lruvec["slot_cache_active"] = 0
        drain_slots_cache(h)
    return int(lruvec["slot_cache_active"]) != 0


@routine
def folio_alloc_swap(h: int, cpu: int) -> int:
    """``folio_alloc_swap``: a slot, marked as the swap cache's, or NO_SLOT."""
    s = users_state(h)
    base = cpu * SLOT_CACHE_ROWS
    if check_cache_active(h):
        if not int(s.slots[base + SLOT_NR]):
            s.slots[base + SLOT_CUR] = 0
            s.slots[base + SLOT_NR] = get_swap_pages(h, cpu, SWAP_SLOTS_CACHE_SIZE, base + SLOT_SLOTS)
        if int(s.slots[base + SLOT_NR]):
            at = int(s.slots[base + SLOT_CUR])
            s.slots[base + SLOT_CUR], s.slots[base + SLOT_NR] = at + 1, int(s.slots[base + SLOT_NR]) - 1
            return int(s.slots[base + SLOT_SLOTS + at])
    if get_swap_pages(h, cpu, 1, base + SLOT_SLOTS):  # the CPU's cache is empty here: its first place is free
        return int(s.slots[base + SLOT_SLOTS])
    return NO_SLOT


@routine
def free_swap_slot(h: int, cpu: int, slot: int) -> None:
    """``free_swap_slot``: the CPU collects 64 before it gives them back; until then the slot looks as if it were in the swap cache."""
    s = users_state(h)
    base = cpu * SLOT_CACHE_ROWS
    if not int(s.lruvec[0]["slot_cache_active"]):
        swap_entry_free(h, slot)
        return
    n = int(s.slots[base + SLOT_N_RET])
    if n >= SWAP_SLOTS_CACHE_SIZE:
        for i in range(base + SLOT_RET, base + SLOT_RET + n):
            swap_entry_free(h, int(s.slots[i]))
        n = 0
    s.swap_map[slot] = SWAP_HAS_CACHE
    s.slots[base + SLOT_RET + n] = slot
    s.slots[base + SLOT_N_RET] = n + 1


@inner
def swap_count(s: Any, slot: int) -> int:
    """``swap_swapcount``: entries that mean this slot."""
    return int(s.swap_map[slot]) & (SWAP_HAS_CACHE - 1)


@inner
def swap_duplicate(s: Any, slot: int) -> None:
    """``swap_duplicate``: one entry more."""
    s.swap_map[slot] = int(s.swap_map[slot]) + 1


@routine
def swap_free(h: int, cpu: int, slot: int) -> None:
    """``swap_free``: one entry less; the last one gives the slot back, unless the swap cache has it."""
    s = users_state(h)
    left = int(s.swap_map[slot]) - 1
    s.swap_map[slot] = left
    if left == 0:
        free_swap_slot(h, cpu, slot)


@routine
def swapcache_free(h: int, cpu: int, slot: int) -> None:
    """``put_swap_folio``: the swap cache lets go of the slot."""
    s = users_state(h)
    left = int(s.swap_map[slot]) & ~SWAP_HAS_CACHE
    s.swap_map[slot] = left
    if left == 0:
        free_swap_slot(h, cpu, slot)


@inner
def vm_swap_full(s: Any) -> bool:
    """``vm_swap_full``: more than half of the slots are used, so that pages in memory give theirs up."""
    return int(s.lruvec[0]["nr_swap_pages"]) * 2 < int(s.lruvec[0]["total_swap_pages"])
