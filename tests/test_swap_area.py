"""swapon on the twin makes the areas of a real kernel (oracle/claims.sh), and swapoff gives everything back."""

from __future__ import annotations

import pytest

import mmtwin
from mmtwin.claims.table import recorded
from mmtwin.machine import Machine


@pytest.fixture(scope="module")
def booted() -> Machine:
    return mmtwin.boot("linux-6.1", ram="512MiB", cpus=1)


def new_areas(m: Machine, size: int, rotational: bool) -> list[tuple[int, str, int]]:
    """Bytes, caller and pages of the areas that swapon makes."""
    before = set(m.vmallocinfo().splitlines())
    m.swapon(size, rotational=rotational)
    lines = [line.split() for line in m.vmallocinfo().splitlines() if line not in before]
    return [(int(words[1]), words[2], int(words[3].removeprefix("pages="))) for words in lines]


@pytest.mark.parametrize(("size", "rotational"), [(256 << 20, True), (4 << 30, False)])
def test_the_same_areas_as_in_the_guest(booted: Machine, size: int, rotational: bool) -> None:
    kernel = recorded()["swap-map"]["figures"]
    which = "small" if rotational else "large"
    assert kernel[f"{which}_device"] == size
    areas = new_areas(booted.copy(), size, rotational)
    assert sorted(bytes_ for bytes_, _, _ in areas) == sorted([kernel[which], kernel[f"{which}_cgroups"]])
    assert all(pages * 4096 + 4096 == bytes_ for bytes_, _, pages in areas)
    assert {caller for _, caller, _ in areas} == {"__do_sys_swapon", "swap_cgroup_swapon"}


def test_32_bits() -> None:
    m = mmtwin.boot("linux-6.1-i386", ram="512MiB", cpus=1)
    assert sorted(bytes_ for bytes_, _, _ in new_areas(m, 4 << 30, True)) == [8192, 1052672]  # as the 686 guest's


@pytest.mark.parametrize("rotational", [True, False])
def test_swapoff_gives_everything_back(booted: Machine, rotational: bool) -> None:
    m = booted.copy()
    m.swapoff(m.swapon(1 << 30, rotational=rotational))  # slabs and page tables that stay
    objects, used = m.frame("objects").height, m.vmalloc_used()
    area = m.swapon(1 << 30, rotational=rotational)
    assert m.is_vmalloc_addr(area.swap_map) and len(area.cgroup_pages) == (1 << 30) // 4096 // 2048
    assert bool(area.cluster_info) != rotational
    m.swapoff(area)
    assert (m.frame("objects").height, m.vmalloc_used()) == (objects, used)
    m.validate()


def test_no_memory_leaves_nothing_behind() -> None:
    m = mmtwin.boot("linux-6.1", ram="64MiB", cpus=1)
    m.swapoff(m.swapon(1 << 30))
    objects, used = m.frame("objects").height, m.vmalloc_used()
    with pytest.raises(mmtwin.AllocationFailure):
        m.swapon(1 << 40)
    assert (m.frame("objects").height, m.vmalloc_used()) == (objects, used)
    m.validate()


@pytest.mark.parametrize("size", [0, -1, 9 * 4096, 1 << 45])
def test_sizes_no_kernel_takes(booted: Machine, size: int) -> None:
    with pytest.raises(mmtwin.RequestError, match="swapon of"):
        booted.swapon(size)
