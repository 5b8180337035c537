"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from mmtwin.machine import Machine, boot, derive_constants
from mmtwin.mm.tables import Pgdat, new_pgdat
from mmtwin.profiles import get
from mmtwin.recording.model import Recording

settings.register_profile("mmtwin", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI")))
settings.load_profile("mmtwin")  # compiling and busy machines take their time; no test is decided by the clock

RECORDINGS = Path(os.environ.get("MMTWIN_TEST_RECORDINGS") or Path(__file__).parent / "recordings")


@pytest.hookimpl(tryfirst=True)  # the workers' own loop is the same hook
def pytest_runtestloop(session: pytest.Session) -> None:
    """Before a whole run the two workers compile different halves of what most tests need; each then reads the other's from the cache."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if len(session.items) < 500 or os.environ.get("NUMBA_DISABLE_JIT") == "1":
        return
    if worker == "gw0":
        compile_processes()
    elif worker == "gw1":
        compile_kernel_memory()


def compile_processes() -> None:
    """The compiled entry points of processes' memory, which take handles and numbers."""
    from numba import boolean, int64

    from mmtwin.user import entry, pressure_entry

    for function, numbers in (
        (entry.touch_entry, 7),
        (pressure_entry.pressure, 7),
        (entry.unmap_region_entry, 8),
        (entry.copy_page_range_entry, 4),
        (entry.merge_entry, 9),
    ):
        function.compile((int64,) * numbers)  # type: ignore[attr-defined]
    entry.split_entry.compile((int64, int64, int64, boolean))  # type: ignore[attr-defined]


def compile_kernel_memory() -> None:
    """Those of slabs, vmalloc and the replay, by use."""
    from mmtwin.replay.check import warm_up

    m = boot("linux-6.1", ram="64MiB", cpus=1)
    m.kfree(m.kmalloc(64))
    cache = m.kmem_cache_create("warm", 64)
    m.kmem_cache_free(cache, m.kmem_cache_alloc(cache))
    m.vfree(m.vmalloc(8192))
    warm_up()


@pytest.fixture(scope="session")
def recordings() -> dict[str, Recording]:
    """The real recordings by name."""
    from mmtwin.recording import store

    paths = sorted(RECORDINGS.glob("*.mmrec"))
    if not paths:
        pytest.fail(f"no recordings in {RECORDINGS}; oracle/ makes them")
    found = {path.stem: store.load(path) for path in paths}
    assert any(recording.before is not None and recording.after is not None for recording in found.values())
    return found


@pytest.fixture(scope="session")
def real(recordings: dict[str, Recording]) -> dict[str, Recording]:
    """Those recordings of real machines that have both snapshots."""
    found = {name: r for name, r in recordings.items() if r.before is not None and r.after is not None and r.provenance.how == "vm"}
    assert found
    return found


@pytest.fixture(scope="session")
def areas() -> dict[str, Recording]:
    """The recordings with virtual areas, by name; those of 6.12 have nothing else."""
    from mmtwin.recording import store

    paths = [*sorted(RECORDINGS.glob("areas-*.mmrec")), *sorted((RECORDINGS / "virtual").glob("*.mmrec"))]
    found = {path.stem: store.load(path) for path in paths}
    assert {(r.provenance.kernel_release.split("-")[0][:4], r.provenance.cpus) for r in found.values()} >= {("6.1.", 1), ("6.1.", 4), ("6.12", 1), ("6.12", 4)}
    return found


@pytest.fixture
def bare() -> Callable[..., Machine]:
    """Makes a machine without a kernel image: ``bare("64MiB", cpus=2)``."""

    def make(ram: str = "64MiB", cpus: int = 1) -> Machine:
        return boot(ram=ram, cpus=cpus, reserved=())

    return make


@pytest.fixture
def zones() -> Callable[..., Pgdat]:
    """Makes tables whose zones have these managed pages and the constants derived from them; no memory is free."""

    def make(*managed: int, cpus: int = 1, thp: bool = False) -> Pgdat:
        state = new_pgdat(1 << 12, cpus)
        for z, pages in enumerate(managed):
            state.zone[z]["present_pages"] = state.zone[z]["managed_pages"] = pages
        kernel = get("linux-6.1")
        state.config["watermark_boost_factor"], state.config["watermark_scale_factor"] = kernel.watermark_boost_factor, kernel.watermark_scale_factor
        state.config["pcp_batch_scale_max"], state.config["thp"] = kernel.pcp_batch_scale_max, True
        derive_constants(state, kernel, thp)
        return state

    return make


def pages_on(state: Pgdat, head: int) -> list[int]:
    """The rows on a list, from the head on."""
    found, at = [], int(state.page[head]["next"])
    while at != head:
        found.append(at)
        at = int(state.page[at]["next"])
        assert len(found) <= len(state.page)
    return found


@pytest.fixture
def walk() -> Callable[[Pgdat, int], list[int]]:
    """`pages_on`."""
    return pages_on
