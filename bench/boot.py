"""Booting a machine of 1 TiB: time and memory, in fresh processes. As a program it boots one machine and prints what it cost."""

from __future__ import annotations

import json
import statistics
import time

from bench.measure import Figures, in_fresh_process, resident_bytes

ABOUT = {
    "boot_1tib_seconds": "boot a machine of 1 TiB with 2 CPUs, code already compiled, fastest fresh process",
    "boot_1tib_seconds_median": "median process",
    "boot_1tib_resident_mib": "memory the process grew by",
    "bytes_per_frame": "all tables of that machine, per simulated page frame",
    "resident_bytes_per_frame": "of it resident after booting",
}


def once(ram: str = "1TiB") -> dict[str, float]:
    """Boots in this process, after a small machine that loads the compiled code."""
    import mmtwin

    mmtwin.boot(ram="256MiB", cpus=2)
    before = resident_bytes()
    start = time.perf_counter()
    machine = mmtwin.boot(ram=ram, cpus=2)
    seconds = time.perf_counter() - start
    grown = resident_bytes() - before
    return {"seconds": seconds, "grown": grown, "bytes_per_frame": machine.bytes_per_frame, "frames": int(machine.state.config[0]["nr_frames"])}


def measure(processes: int = 3) -> Figures:
    """The same in fresh processes."""
    runs = [in_fresh_process("bench.boot") for _ in range(processes)]
    seconds = [run["seconds"] for run in runs]
    return {
        "boot_1tib_seconds": round(min(seconds), 4),
        "boot_1tib_seconds_median": round(statistics.median(seconds), 4),
        "boot_1tib_resident_mib": round(statistics.median(run["grown"] for run in runs) / (1 << 20), 1),
        "bytes_per_frame": round(runs[0]["bytes_per_frame"], 3),
        "resident_bytes_per_frame": round(statistics.median(run["grown"] for run in runs) / runs[0]["frames"], 4),
    }


if __name__ == "__main__":
    print(json.dumps(once()))
