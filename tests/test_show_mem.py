"""show_mem in a real kernel's words: its logs, taken apart and printed again, byte by byte; and a machine's own counts."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest

import mmtwin
from mmtwin.errors import AllocationFailure
from mmtwin.gfp import GFP_ATOMIC, GFP_NAMES
from mmtwin.process import MAP_ANONYMOUS, MAP_SHARED
from mmtwin.show_mem import ZONE_ITEMS, excessive_slab, format_mem_info, mem_info, node_page_state, warn_alloc
from tests.oom_strikes import GUESTS, NAMES, STRIKES, memory_part, parse


@pytest.mark.parametrize(("guest", "strike"), STRIKES, ids=NAMES)
def test_a_strikes_memory(guest: dict[str, Any], strike: dict[str, str]) -> None:
    text = memory_part(strike["report"])
    info = parse(text)
    assert format_mem_info(info) == text
    assert excessive_slab(info) == ("Unreclaimable slab info:" in strike["report"])
    assert 4 * (info.ram[0] - info.ram[2]) == guest["memory"][strike["scenario"]][0]


def test_sysrq_m() -> None:
    shown = [text for guest in GUESTS for text in guest["shown"]]
    assert len(shown) >= 4
    for text in shown:
        info = parse(text)
        assert format_mem_info(info) == text
        broken = parse(text)
        broken.zones[0].blocks[3] = (broken.zones[0].blocks[3][0] + 1, "U")
        assert format_mem_info(broken) != text


def test_a_machines_lines_have_the_kernels_words() -> None:
    """Numbers aside, a booted machine prints what the guest of its size printed."""
    guest = GUESTS[0]
    machine = mmtwin.boot("linux-6.1", ram=f"{guest['mem_mib']}MiB", cpus=guest["cpus"])
    machine.spawn("app")

    def words(text: str) -> str:
        return re.sub(r"\d+", "0", re.sub(r" \([UMEHI]+\)", "", text)).replace("unreclaimable? yes", "unreclaimable? no")

    assert words(machine.show_mem()) == words(guest["shown"][0])
    # The firmware of a guest with two disks keeps six more pages at the top; below 16 MiB all is equal.
    (dma, dma32), (real, real32) = mem_info(machine).zones, parse(guest["shown"][0]).zones
    assert (dma.pages["present"], dma.pages["managed"], dma32.pages["present"] - 6) == (real.pages["present"], real.pages["managed"], real32.pages["present"])


def test_counts_follow_from_the_tables() -> None:
    machine = mmtwin.boot("linux-6.1", ram="128MiB", cpus=2)
    before = mem_info(machine)
    assert before.total["free"] + before.total["free_pcp"] <= machine.managed and before.total["pagetables"] == 0
    app = machine.spawn("app")
    mid = node_page_state(machine)
    private, shared = app.mmap(300 << 12), app.mmap(200 << 12, flags=MAP_SHARED | MAP_ANONYMOUS)
    app.touch(private, 300 << 12)
    app.touch(shared, 200 << 12)
    machine.lru_add_drain_all()
    node = node_page_state(machine)
    assert node["shmem"] - mid["shmem"] == node["mapped"] - mid["mapped"] == 200 == app.rss()["shmem"]
    assert node["inactive_anon"] == app.rss()["anon"] + node["shmem"] and node["inactive_anon"] >= 500
    assert node["kernel_stack_kb"] == 16 and node["pagetables"] == app.table_bytes // 4096 - 2  # but those of the third level: code and stack
    assert node["slab_unreclaimable"] > 0 and node["file_pages"] == node["shmem"] + len(
        [pfn for f in machine._programs.values() for pfn in f.pages if pfn >= 0]
    )
    zones = mem_info(machine).zones
    assert sum(zone.pages["inactive_anon"] for zone in zones) == node["inactive_anon"]
    for zone in zones:
        assert set(zone.pages) == set(ZONE_ITEMS)
    app.exit()
    assert node_page_state(machine)["mapped"] == node_page_state(machine)["pagetables"] == 0


def test_zones_above_the_request_are_left_out() -> None:
    machine = mmtwin.boot("linux-6.1", ram="128MiB")
    assert [zone.name for zone in mem_info(machine).zones] == ["DMA", "DMA32"]
    assert [zone.name for zone in mem_info(machine, gfp=0xCC1).zones] == ["DMA"]


def test_page_allocation_failure() -> None:
    machine = mmtwin.boot("linux-6.1", ram="64MiB", cpus=1)
    with pytest.raises(AllocationFailure) as caught:
        while True:
            machine.alloc_pages(4, GFP_ATOMIC)
    report = caught.value.report
    assert report.splitlines()[0] == "init: page allocation failure: order:4, mode:0xa20(GFP_ATOMIC), nodemask=(null),cpuset=/,mems_allowed=0"
    assert report.splitlines()[1] == "Mem-Info:" and report.endswith("pages reserved\n")
    assert format_mem_info(parse(report)) == memory_part(report)
    assert pickle.loads(pickle.dumps(caught.value)).report == report
    with pytest.raises(AllocationFailure) as quiet:
        machine.alloc_pages(4, GFP_ATOMIC | 0x2000)
    assert quiet.value.report == ""
    assert warn_alloc(machine, "x", 0, 0xCC1).startswith("x: page allocation failure: order:0, mode:0xcc1(GFP_KERNEL|GFP_DMA), ")
    assert warn_alloc(machine, "x", 0, 0).splitlines()[0].split(", ")[1] == "mode:0(none)" and GFP_NAMES
