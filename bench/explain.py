"""How fast ``mmtwin explain`` reads a long log: noise, OOM reports, page allocation failures, 100 MB of each, and 20 MB of the last two."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress

from bench.measure import ROOT, Figures, one_core
from mmtwin.diagnose.explain import explain_text
from mmtwin.errors import LogError

ABOUT = {
    "explain_mb_per_second": "MB of a log explained in a second of CPU time: the slowest of those below; the program's start (0.4 s) is not in it",
    "explain_noise_mb_per_second": "100 MB of a syslog without a report",
    "explain_oom_mb_per_second": "100 MB of reports of the OOM killer (some of which are read in detail, the rest counted)",
    "explain_page_mb_per_second": "100 MB of page allocation failures, the same",
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


def measure(size: int = 100_000_000, times: int = 3) -> Figures:
    """`size` bytes of each kind, and a fifth of it of the dense ones; the fastest of `times`."""
    made: dict[str, Callable[[], bytes]] = {
        "noise": lambda: noise(size), "oom": lambda: repeated("p03", size), "page": lambda: repeated("p05", size),
        "20_mb_oom": lambda: repeated("p03", size // 5), "20_mb_page": lambda: repeated("p05", size // 5),
    }  # fmt: skip
    figures: Figures = {}
    for kind, make in made.items():
        data, seconds = make(), []
        with one_core():
            for _ in range(times):
                start = time.process_time()
                with suppress(LogError):  # there is nothing to explain in noise
                    explain_text(data)
                seconds.append(time.process_time() - start)
        figures[f"explain_{kind}_mb_per_second"] = round(len(data) / 1e6 / min(seconds))
    return {"explain_mb_per_second": min(value for value in figures.values() if value is not None), **figures}
