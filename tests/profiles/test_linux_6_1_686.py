"""The 32-bit machines: every figure of /proc/zoneinfo that boot derives is the one of a real kernel (oracle/zoneinfo-i386.sh)."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

import mmtwin
from mmtwin import profiles
from mmtwin.errors import AllocationFailure, ObjectAlreadyFree, ProfileError, RedZoneOverwritten, RequestError
from mmtwin.gfp import GFP_HIGHUSER_MOVABLE, GFP_KERNEL
from mmtwin.mm.tables import nr_pageblocks, pageblock_starts

RUNS: list[dict[str, Any]] = json.loads(gzip.decompress((Path(__file__).parent.parent / "data" / "zoneinfo-i386.json.gz").read_bytes()))["runs"]
GIB = 1 << 30


def figures(zoneinfo: str) -> dict[str, dict[str, list[str]]]:
    """Zone by zone what does not depend on what has been allocated."""
    found = {}
    for part in re.split(r"(?=Node 0, zone)", zoneinfo)[1:]:
        names = r"(?:(min|low|high|spanned|present|managed)  +|(protection|high|batch|vm stats threshold|start_pfn): +)(.*)"
        lines: dict[str, list[str]] = {}
        for a, b, value in re.findall(names, part):
            lines.setdefault(a or f"{b}:", []).append(value)
        found[part.split()[3]] = lines
    return found


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run['release']}-{run['ram_mib']}M-{run['cpus']}")
def test_zoneinfo_is_the_kernels(run: dict[str, Any]) -> None:
    kernel = profiles.for_release(run["release"])
    machine = mmtwin.boot(kernel, ram=run["ram_mib"] << 20, cpus=run["cpus"], initrd=-(-run["initrd_bytes"] // 4096) * 4096)
    mine, real = figures(machine.zoneinfo()), figures(run["zoneinfo"])
    assert list(real) == list(kernel.zone_names) == list(mine)
    assert mine == real
    assert machine.pagetypeinfo().splitlines()[:2] == run["pagetypeinfo"].splitlines()[:2]  # the pageblock order
    machine.validate()


def test_profiles_are_found_by_release() -> None:
    names = {
        release: profiles.for_release(release).name for release in ("6.1.0-50-686", "6.1.0-50-686-pae", "6.1.0-56-cloud-amd64", "6.1.0-50-amd64", "6.1.176")
    }
    assert list(names.values()) == ["linux-6.1-i386", "linux-6.1-i386-pae", "linux-6.1", "linux-6.1", "linux-6.1"]
    assert profiles.get("I386").name == "linux-6.1-i386"
    assert profiles.for_zones(("DMA", "Normal", "HighMem", "Movable")).highmem_zone == 2
    with pytest.raises(ProfileError, match="no profile has the zones"):
        profiles.for_zones(("Normal",))


def test_kmalloc_never_takes_high_memory_and_users_prefer_it() -> None:
    machine = mmtwin.boot("linux-6.1-i386", ram="2GiB", cpus=1)
    high = int(machine.state.zone[2]["start_pfn"])
    assert machine.alloc_pages(0, GFP_HIGHUSER_MOVABLE) >= high and machine.alloc_pages(0, GFP_KERNEL | 0x2) >= high
    assert machine.alloc_pages(0, GFP_KERNEL) < high
    assert machine.alloc_pages(0, 0x1) < 4096
    addresses = [machine.kmalloc(28) for _ in range(300)]
    assert all(0xC0000000 <= address < 0xC0000000 + (high << 12) for address in addresses)
    assert machine.kmalloc_size_roundup((1 << 32) - 1) == (1 << 32) - 1
    with pytest.raises(AllocationFailure, match="overflows 32 bits"):
        machine.kmalloc_array(1 << 20, 1 << 13)
    machine.validate()


def test_lowmem_ends_long_before_memory_does() -> None:
    machine = mmtwin.boot("linux-6.1-i386", ram="2GiB", cpus=1)
    taken = 0
    with pytest.raises(AllocationFailure):
        while True:
            machine.alloc_pages(10, 0x800)
            taken += 1
    assert 150 < taken < 219  # of 875 MiB in blocks of 4 MiB
    assert int(machine.state.zone[2]["nr_free_pages"]) == int(machine.state.zone[2]["managed_pages"])


def test_a_pageblock_that_two_zones_share_has_two_types() -> None:
    machine = mmtwin.boot("linux-6.1-i386", ram="2GiB", cpus=1)
    split = int(machine.state.zone[2]["start_pfn"])
    assert split % 1024 and len(machine.state.pageblock) == nr_pageblocks(int(machine.state.config[0]["nr_frames"]), 10, split)
    starts = pageblock_starts(machine.state).tolist()
    at = starts.index(split)
    assert starts[at - 1] == split // 1024 * 1024 and starts[at + 1] == starts[at - 1] + 1024
    assert machine.frame("pageblocks")["pfn"].to_list() == starts


def test_memory_above_4_gib_needs_pae() -> None:
    without, with_pae = (mmtwin.boot(name, ram=8 * GIB, cpus=1) for name in ("linux-6.1-i386", "linux-6.1-i386-pae"))
    assert int(without.state.config[0]["nr_frames"]) <= 1 << 20 < int(with_pae.state.config[0]["nr_frames"])


def test_slub_debug_with_32_bit_words() -> None:
    """Red zones of 4 bytes, tracks of 20, addresses of 8 digits."""
    machine = mmtwin.boot("linux-6.1-i386", ram="256MiB", cpus=1, cmdline="slub_debug=FZPU")
    p, q = machine.kmalloc(28), machine.kmalloc(28)
    machine.write(p + 32, b"yy")
    with pytest.raises(RedZoneOverwritten) as caught:
        machine.kfree(p)
    report = caught.value.report
    assert re.search(r"^Redzone  [0-9a-f]{8}: 79 79 cc cc +yy\.\.$", report, re.M)
    assert re.search(r"^Slab 0x[0-9a-f]{8} objects=32 used=2 fp=0x[0-9a-f]{8} flags=0x40000200\(slab\|zone=1\)$", report, re.M)
    machine.kfree(q)
    with pytest.raises(ObjectAlreadyFree):
        machine.kfree(q)
    with pytest.raises(RequestError, match="no KASAN for 32-bit x86"):
        mmtwin.boot("i386", cmdline="kasan=on")
