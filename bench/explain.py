"""How fast the program ``mmtwin explain`` reads a long log: noise, OOM reports, page allocation failures, 100 MB and 20 MB of each."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.measure import ROOT, Figures

ABOUT = {
    "explain_mb_per_second": "MB of a log in a second of CPU time of the whole program, its start included: the slowest of those of 100 MB below",
    "explain_noise_mb_per_second": "100 MB of a syslog without a report",
    "explain_oom_mb_per_second": "100 MB of reports of the OOM killer (some of which are read in detail, the rest counted)",
    "explain_page_mb_per_second": "100 MB of page allocation failures, the same",
    "explain_20_mb_noise_mb_per_second": "20 MB of a syslog without a report",
    "explain_20_mb_oom_mb_per_second": "20 MB of reports of the OOM killer",
    "explain_20_mb_page_mb_per_second": "20 MB of page allocation failures",
}
LOGS = ROOT / "tests" / "data" / "kernel-logs"
NOISE = ("eth0: link up", "usb 1-1: new high-speed USB device number 4 using xhci_hcd", "audit: type=1400 apparmor=ALLOWED operation=open", "EXT4-fs (sda1): mounted filesystem",
         "[UFW BLOCK] IN=eth0 OUT= SRC=10.0.0.1 DST=10.0.0.2 LEN=40", "perf: interrupt took too long, lowering the rate")  # fmt: skip


def noise(size: int) -> bytes:
    """A syslog in which nothing happened."""
    lines = [f"Jun 11 11:50:{n % 60:02} host kernel: [{n / 7:12.6f}] {NOISE[n % len(NOISE)]} {n}\n" for n in range(10_000)]
    block = "".join(lines).encode()
    return (block * (size // len(block) + 1))[:size]


def repeated(name: str, size: int) -> bytes:
    """One report again and again, with other numbers of free pages."""
    report = next(LOGS.glob(f"{name}-*.txt")).read_bytes().rstrip() + b"\n"

    def another(n: int) -> bytes:
        return re.sub(rb"\bfree:(\d+)", lambda m: b"free:%d" % (int(m[1]) + n), report, count=3)

    block = b"".join(another(n) for n in range(97))
    return (block * (size // len(block) + 1))[:size]


def cpu_seconds(log: Path, code: int) -> float:
    """CPU time of one ``mmtwin explain`` that ends with this exit code, as an installed program runs: with its bytecode kept."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run([sys.executable, "-m", "mmtwin.cli", "explain", str(log)], env=environment, capture_output=True, check=False)
    assert run.returncode == code, run.stderr  # what fails is fast
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(size: int = 100_000_000, times: int = 3) -> Figures:
    """`size` bytes of each kind, and a fifth of it; the fastest of `times`."""
    kinds: dict[str, Callable[[int], bytes]] = {"noise": noise, "oom": lambda size: repeated("p03", size), "page": lambda size: repeated("p05", size)}
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch, "kern.log")
        for prefix, length in (("", size), ("20_mb_", size // 5)):
            for kind, make in kinds.items():
                log.write_bytes(make(length))
                figures[f"explain_{prefix}{kind}_mb_per_second"] = round(length / 1e6 / min(cpu_seconds(log, kind == "noise") for _ in range(times)), 1)
    slowest = min(figures[f"explain_{kind}_mb_per_second"] or 0 for kind in kinds)
    return {"explain_mb_per_second": slowest, **figures}
