"""Measures everything and prints it: a table, or with ``--json`` one flat document."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import (
    boot,
    faults,
    first_result,
    mallocs,
    pairs,
    peer_perf_kmem,
    pgtable,
    recorded,
    report,
    slab_pairs,
    slab_peer,
    slabs,
    soak,
    stream,
    vmap_replay,
    vmaps,
)
from bench import explain as explain_log
from bench.measure import Figures, say

SCHEMA = 1
QUICK_SIZES = {"256mib": "256MiB", "4gib": "4GiB", "1tib": "1TiB"}


def _steps(quick: bool, figures: Figures) -> list[tuple[str, dict[str, str], Callable[[], Figures]]]:
    """What is measured, in this order. `figures` is read by the peer's step for its ratios."""
    return [
        ("Replay of real recordings", recorded.ABOUT, partial(recorded.measure, *((5_000_000,) if quick else ()))),
        ("Replay of one long stream", stream.ABOUT, partial(stream.measure, *((2_000_000, 500_000) if quick else ()))),
        ("The peer: perf kmem", peer_perf_kmem.ABOUT, partial(peer_perf_kmem.measure, figures, *((2, 1) if quick else ()))),
        ("Replay of slab recordings", slabs.ABOUT, partial(slabs.measure, *((2_000_000,) if quick else ()))),
        ("The peer for slabs: perf kmem stat --slab", slab_peer.ABOUT, partial(slab_peer.measure, *((1, 1) if quick else ()))),
        ("Cost of a kmalloc and its kfree", slab_pairs.ABOUT, partial(slab_pairs.measure, *((20_000, 2) if quick else ()))),
        ("Soak of the slab allocator", soak.ABOUT, partial(soak.measure, *((1_000_000, 250_000) if quick else ()))),
        ("Replay of one-page vmallocs", vmap_replay.ABOUT, partial(vmap_replay.measure, *((100_000,) if quick else ()))),
        ("Areas of virtual addresses", vmaps.ABOUT, partial(vmaps.measure, *((100_000, 2, {"1k": 1_000}) if quick else ()))),
        ("Page tables and TLBs", pgtable.ABOUT, partial(pgtable.measure, *((5,) if quick else ()))),
        ("malloc and free of a process", mallocs.ABOUT, partial(mallocs.measure, *((100_000, 2) if quick else ()))),
        ("Page faults and processes", faults.ABOUT, partial(faults.measure, *((3, 300) if quick else ()))),
        ("Explaining a long log", explain_log.ABOUT, partial(explain_log.measure, *((10_000_000, 1) if quick else ()))),
        ("The report of a recording", report.ABOUT, partial(report.measure, *((None, 1) if quick else ()))),
        ("Boot and memory", boot.ABOUT, partial(boot.measure, *((1,) if quick else ()))),
        ("Cost of an allocation and its free", pairs.ABOUT, partial(pairs.measure, *((3, QUICK_SIZES, 1 << 20) if quick else ()))),
        ("Time to the first result", first_result.ABOUT, partial(first_result.measure, *((False, 1) if quick else ()))),
    ]


def _processor() -> str:
    try:
        names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def _text(value: float | int | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def main(arguments: list[str] | None = None) -> int:
    """Runs all steps; progress goes to stderr, figures to stdout."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="mmtwin's speed and memory, and its peers', measured now on this machine.")
    parser.add_argument("--json", action="store_true", help="one flat JSON document, one number per key, null where it could not be measured")
    parser.add_argument("--quick", action="store_true", help="about 20 seconds of trying out; the figures are rougher and some are left out")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    figures: Figures = {"schema": SCHEMA}
    steps, failed = _steps(options.quick, figures), False
    if not options.json:
        print(f"{_processor()}{'; quick, so rough' if options.quick else ''}", flush=True)
    for title, about, run in steps:
        say(f"{title} ...")
        try:
            found = run()
        except Exception as error:  # the other figures are still worth having
            say(f"{title}: not measured: {type(error).__name__}: {error}")
            found, failed = {}, True
        figures |= {key: found.get(key) for key in about}
        if not options.json:
            print(f"\n{title}")
            for key, text in about.items():
                print(f"  {key:<48} {_text(figures[key]):>14}  {text}")
            sys.stdout.flush()
    figures["bench_seconds"] = round(time.perf_counter() - began, 1)
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        print(f"\n{figures['bench_seconds']} seconds")
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
