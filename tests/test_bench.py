"""The benchmark's figures at a tiny setting: the documented keys, positive numbers, and a stream that replays to the same state."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for plain `pytest`, which does not put the directory there

from bench import boot, first_result, pairs, peer_perf_kmem, pgtable, recorded, report, slab_pairs, slab_peer, slabs, soak, stream, vmap_replay, vmaps
from bench import explain as explain_log

MODULES: tuple[Any, ...] = (
    recorded,
    stream,
    peer_perf_kmem,
    slabs,
    slab_peer,
    slab_pairs,
    soak,
    vmap_replay,
    vmaps,
    boot,
    pairs,
    first_result,
    pgtable,
    explain_log,
    report,
)
CONTRACT = {
    "page_events_per_second", "page_requests_per_second", "peer_perf_kmem_events_per_second", "page_events_ratio_to_perf_kmem", "bytes_per_frame", "boot_1tib_seconds",
    "first_result_cold_seconds", "first_result_warm_seconds", "alloc_free_pair_ns_256mib", "alloc_free_pair_ns_4gib", "alloc_free_pair_ns_64gib", "alloc_free_pair_ns_1tib",
    "slab_events_per_second", "slab_ops_per_second", "page_table_walk_ns", "tlb_hit_ns", "kmalloc_pair_microseconds", "glibc_malloc_pair_microseconds", "soak_operations", "soak_broken_invariants",
    "vmap_pairs_per_second", "vmap_pairs_per_second_1k_live", "vmap_pairs_per_second_1m_live", "kernel_test_vmalloc_fix_size_loops_per_second",
    "explain_mb_per_second",
}  # fmt: skip


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's own loops uncompiled: compiling them takes longer than a tiny run."""
    for module, name in (
        (stream, "generate"),
        (pairs, "fill_and_free"),
        (soak, "churn"),
        (soak, "give_all"),
        (vmaps, "initialise"),
        (vmaps, "fill"),
        (vmaps, "churn"),
    ):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, getattr(function, "py_func", function))


def test_keys_are_documented_once() -> None:
    keys = [key for module in MODULES for key in module.ABOUT]
    assert len(keys) == len(set(keys))
    assert set(keys) >= CONTRACT


def test_recorded() -> None:
    files = [path for path in recorded.paths() if path.name == "demo.mmrec"]
    if not files:
        pytest.skip("the demo's recording is not there")
    figures = recorded.measure(1, files, rounds=1, times=1)
    assert figures.keys() == recorded.ABOUT.keys()
    assert figures["recordings"] == 1
    assert figures["page_allocs_unequal"] == figures["final_states_unequal"] == 0
    assert all(value and value > 0 for key, value in figures.items() if "_per_second" in key)
    assert float(figures["page_requests_per_second"] or 0) < float(figures["page_events_per_second"] or 0)


def test_recorded_without_recordings() -> None:
    figures = recorded.measure(1, [])
    assert figures.pop("recordings") == 0
    assert set(figures.values()) == {None}


@pytest.mark.usefixtures("interpreted")
def test_stream_replays_to_the_same_state() -> None:
    figures = stream.measure(1500, 800, "128MiB")
    assert figures.keys() == stream.ABOUT.keys()
    assert figures.pop("stream_allocs_unequal") == 0
    assert float(figures["stream_page_events"] or 0) >= 1500
    assert all(value and value > 0 for value in figures.values())


@pytest.mark.usefixtures("interpreted")
def test_pairs() -> None:
    figures = pairs.measure(1, {"256mib": "256MiB"}, most=128, equal_work=512)
    assert figures.keys() == pairs.ABOUT.keys()
    measured = {key for key, value in figures.items() if value is not None}
    assert measured == {key for key in pairs.ABOUT if key.endswith("ns_256mib")}
    assert all(float(figures[key] or 0) > 0 for key in measured)


def test_explain() -> None:
    figures = explain_log.measure(500_000, 1)
    assert figures.keys() == explain_log.ABOUT.keys()
    assert all(value and value > 0 for value in figures.values())
    assert figures["explain_mb_per_second"] == min(figures[f"explain_{kind}_mb_per_second"] or 0 for kind in ("noise", "oom", "page"))


def test_slabs() -> None:
    files = [path for path in recorded.paths() if path.name == "pipes-512m-1cpu-slab.mmrec"]
    assert files, "the recording with slab marks is missing"
    figures = slabs.measure(1, files, rounds=1)
    assert figures.keys() == slabs.ABOUT.keys()
    assert figures["slab_recordings"] == 1
    assert figures["slab_allocs_unequal"] == 0
    assert 0 < float(figures["slab_events_per_second"] or 0) < float(figures["slab_ops_per_second"] or 0) < float(figures["slab_and_page_ops_per_second"] or 0)


def test_slabs_without_recordings() -> None:
    figures = slabs.measure(1, [])
    assert figures.pop("slab_recordings") == 0
    assert set(figures.values()) == {None}


def test_kmalloc_pairs() -> None:
    figures = slab_pairs.measure(20, 1)
    assert figures.keys() == slab_pairs.ABOUT.keys()
    assert float(figures["kmalloc_pair_microseconds"] or 0) > 0


@pytest.mark.usefixtures("interpreted")
def test_soak() -> None:
    figures = soak.measure(1500, 500, 64, "64MiB")
    assert figures.keys() == soak.ABOUT.keys()
    assert figures["soak_operations"] == 1500
    assert figures["soak_checks"] == 4
    assert figures["soak_broken_invariants"] == figures["soak_failed_operations"] == figures["soak_slab_pages_left"] == 0


@pytest.mark.usefixtures("interpreted")
def test_vmap_replay() -> None:
    figures = vmap_replay.measure(1, rounds=1)
    assert figures.keys() == vmap_replay.ABOUT.keys()
    assert figures["vmap_replay_areas"] > 4000 and figures["vmap_replay_areas_unequal"] == 0  # type: ignore[operator]


def test_vmaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmaps, "LONG_BUSY", 100)
    figures = vmaps.measure(60, 1, {"1k": 100})
    assert figures.keys() == vmaps.ABOUT.keys()
    measured = {key for key, value in figures.items() if value is not None}
    assert measured == {key for key in vmaps.ABOUT if not key.endswith(("_10k_live", "_100k_live", "_1m_live"))}
    assert all(float(figures[key] or 0) > 0 for key in measured)
    assert figures["kernel_test_vmalloc_fix_size_loops_per_second"] == 2036660


def test_missing_slab_peer_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(slab_peer.shutil, "which", lambda name: None)
    assert slab_peer.measure() == dict.fromkeys(slab_peer.ABOUT)
    assert capsys.readouterr().err.count("\n") == 1


def test_boot() -> None:
    run = boot.once("1GiB")
    assert run["seconds"] > 0
    assert 0.99 < run["frames"] / (1 << 18) <= 1
    assert 12 <= run["bytes_per_frame"] < 16


def test_missing_peer_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(peer_perf_kmem.shutil, "which", lambda name: None)
    assert peer_perf_kmem.measure({"page_events_per_second": 1}) == dict.fromkeys(peer_perf_kmem.ABOUT)
    assert capsys.readouterr().err.count("\n") == 1


def test_json_is_flat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    main = import_module("bench.__main__")
    monkeypatch.setattr(main, "_steps", lambda quick, figures: [("A", {"a_seconds": "one", "b_seconds": "two"}, lambda: {"a_seconds": 1.5})])
    assert main.main(["--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document.pop("bench_seconds") >= 0
    assert document == {"schema": 1, "a_seconds": 1.5, "b_seconds": None}
    assert main.main([]) == 0
    assert "a_seconds" in capsys.readouterr().out


def test_a_figure_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    main = import_module("bench.__main__")
    monkeypatch.setattr(main, "_steps", lambda quick, figures: [("A", {"a": "one"}, lambda: 1 / 0), ("B", {"b": "two"}, lambda: {"b": 2})])
    assert main.main(["--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out).items() >= {"a": None, "b": 2}.items()
    assert "A: not measured: ZeroDivisionError" in printed.err


def test_pgtable() -> None:
    figures = pgtable.measure(1)
    assert figures.keys() == pgtable.ABOUT.keys()
    assert all(value and value > 0 for value in figures.values())


def test_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(report.browser, "find", lambda: None)
    figures = report.measure(recorded.ROOT / "tests" / "recordings" / "pressure" / "fails-128m-1cpu.mmrec", 1)
    assert figures.keys() == report.ABOUT.keys()
    assert figures["report_events"] == 159_351 and 100_000 < int(figures["report_bytes"] or 0) < 8_000_000
    assert figures["report_open_seconds"] is None and "no chromium" in capsys.readouterr().err
