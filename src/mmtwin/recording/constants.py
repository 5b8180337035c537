"""What the kernel derived at boot, derived again: zones from the firmware's map, and all sizes and watermarks from the managed pages."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mmtwin import profiles
from mmtwin.machine import derive_constants
from mmtwin.mm.tables import Pgdat, new_pgdat
from mmtwin.mm.vmstat import set_pgdat_percpu_threshold
from mmtwin.profiles import Profile, physical
from mmtwin.profiles.physical import MemoryRange
from mmtwin.recording.model import Provenance, Snapshot
from mmtwin.units import PAGE_SIZE

THP_ENABLED = 3
"""Bits of ``transparent_hugepage_flags``: always, madvise."""
SMP_LOCKS = 9
"""Pages of the table of SMP locks, which the kernel frees before it sets the watermarks; recordings without `smp_locks_pages` count them as freed late."""
MARKS = ("min", "low", "high", "promo")


def compare(snapshot: Snapshot, provenance: Provenance) -> Iterator[tuple[str, int, int]]:
    """Name, derived value and the kernel's value of every derived constant in a machine's first snapshot.

    The watermarks come from the pages that were managed when the kernel set them: init code, gaps in the kernel's image and the
    initial RAM disk were freed later. Constants that a sysctl or the command line sets are left out, as is percpu_drift_mark, which keeps
    what it was while CPUs came up.

    :raises ProfileError: no profile covers the recorded kernel.
    """
    kernel = profiles.for_release(provenance.kernel_release)
    rows = {int(row["index"]): row for row in snapshot.zones.iter_rows(named=True)}
    plain = not any(word in provenance.cmdline for word in ("movablecore", "kernelcore", "mem="))
    if plain:
        ram = physical.ram_frames(MemoryRange(*r) for r in snapshot.memory_map.select("start", "size", "type").iter_rows())
        ram = physical.clip(ram, 0, kernel.max_frames)
        for z, span in enumerate(physical.zone_spans(ram, kernel.zone_limits, len(kernel.zone_names))):
            yield f"{kernel.zone_names[z]} spanned", span.end - span.start, rows[z]["spanned_pages"]
            yield f"{kernel.zone_names[z]} present", span.present, rows[z]["present_pages"]
    for z, row in rows.items():
        yield f"{kernel.zone_names[z]} managed", row["present_pages"] - row["reserved_pages"], row["managed_pages"]
    if "late_freed_image_pages" not in snapshot.scalars or snapshot.scalars["user_min_free_kbytes"] != -1:
        return
    state = _derive(snapshot, provenance, kernel, rows)
    yield "min_free_kbytes", int(state.config[0]["min_free_kbytes"]), snapshot.scalars["min_free_kbytes"]
    yield "totalreserve_pages", int(state.config[0]["totalreserve_pages"]), snapshot.scalars["totalreserve_pages"]
    for z, row in rows.items():
        name = kernel.zone_names[z]
        yield from ((f"{name} wmark_{mark}", int(state.zone[z][f"wmark_{mark}"]), row[f"wmark_{mark}"]) for mark in MARKS if row["managed_pages"])
        yield from ((f"{name} lowmem_reserve[{j}]", int(state.lowmem_reserve[z, j]), row[f"lowmem_reserve_{j}"]) for j in range(len(rows)))
    nr_cpus = int(state.config[0]["nr_cpus"])
    for pcp in snapshot.pcp.iter_rows(named=True):
        mine = state.pcp[pcp["zone"] * nr_cpus + pcp["cpu"]]
        yield from ((f"{kernel.zone_names[pcp['zone']]} CPU {pcp['cpu']} {c}", int(mine[c]), pcp[c]) for c in ("batch", "high", "stat_threshold"))


def _derive(snapshot: Snapshot, provenance: Provenance, kernel: Profile, rows: dict[int, dict[str, int]]) -> Pgdat:
    """A machine with these zones, with the constants set as at boot."""
    state = new_pgdat(1, provenance.cpus, kernel.gfp_zones, kernel.pageblock_order)
    spans = [physical.ZoneSpan(row["start_pfn"], row["start_pfn"] + row["spanned_pages"], row["present_pages"]) for _, row in sorted(rows.items())]
    for z, high in enumerate(physical.is_highmem(kernel, spans)):
        state.zone[z]["present_pages"], state.zone[z]["managed_pages"], state.zone[z]["is_highmem"] = rows[z]["present_pages"], rows[z]["managed_pages"], high
    # the image and the initial RAM disk (which must be in the direct map) are in one zone
    low = next(z for z, span in enumerate(spans) if span.start <= kernel.image.kept[0][0] < span.end)
    image = snapshot.scalars["late_freed_image_pages"] - snapshot.scalars.get("smp_locks_pages", SMP_LOCKS)
    late = image + -(-provenance.initrd_bytes // PAGE_SIZE)
    state.zone[low]["managed_pages"] -= np.int64(late)
    state.config["watermark_boost_factor"], state.config["watermark_scale_factor"] = kernel.watermark_boost_factor, kernel.watermark_scale_factor
    state.config["percpu_pagelist_high_fraction"] = kernel.percpu_pagelist_high_fraction
    derive_constants(state, kernel, bool(snapshot.scalars["hugepage_flags"] & THP_ENABLED))
    for z, row in rows.items():
        state.zone[z]["managed_pages"], state.zone[z]["percpu_drift_mark"] = row["managed_pages"], row["percpu_drift_mark"]
    state.zone[low]["managed_pages"] -= np.int64(image)
    set_pgdat_percpu_threshold(state, False)  # kswapd's first sleep: the initial RAM disk has been freed, the image's spare pages not yet
    return state
