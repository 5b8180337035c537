"""The peer, ``perf kmem stat --page``: adds up the page events of a perf.data made on this very machine, in the same run.

Two recordings of the same kind of workload (processes started in quick succession on all CPUs, and a walk over the file system), so that like is compared with
like: one with all ``mm_page_*`` tracepoints for the rate of page events, and one with mm_page_alloc and mm_page_free alone, as ``perf kmem record --page``
makes it, for the rate of requests. perf decodes its file in the same pass; mmtwin's rate from the file is printed for that reason.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bench.measure import Figures, say
from bench.recorded import PAGE_EVENTS, REQUESTS

ABOUT = {
    "peer_perf_kmem_events": "page events (mm_page_*) in the first perf.data",
    "peer_perf_kmem_events_per_second": "`perf kmem --page stat` on it, fastest of 3",
    "peer_perf_kmem_requests": "mm_page_alloc and mm_page_free in the second perf.data",
    "peer_perf_kmem_requests_per_second": "`perf kmem --page stat` on it, fastest of 3",
    "page_events_ratio_to_perf_kmem": "mmtwin's page events per second over perf's, real recordings",
    "page_requests_ratio_to_perf_kmem": "mmtwin's page requests per second over perf's, real recordings",
    "stream_page_events_ratio_to_perf_kmem": "the same for the long stream (requests over requests)",
    "page_events_from_file_ratio_to_perf_kmem": "mmtwin from the file, all included, over perf's page events",
}
WORKLOAD = """
end=$(($(date +%s) + $1))
storm() { while [ $(date +%s) -lt $end ]; do for i in 1 2 3 4 5 6 7 8 9 10; do ls / >/dev/null; sh -c :; done; done; }
for cpu in $(seq $2); do storm & done
timeout $1 find / -xdev >/dev/null 2>&1
wait
"""


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL)


def _record(perf: str, kinds: tuple[str, ...], file: Path, seconds: int) -> int:
    """Records the workload; the number of events, 0 (and a line that says why) if that is not possible."""
    events = [word for kind in kinds for word in ("-e", f"kmem:{kind}")]
    workload = ["sh", "-c", WORKLOAD, "sh", str(seconds), str(os.cpu_count() or 1)]
    done = None
    for buffer in (["-m", "16M"], []):  # the large buffer needs permission to lock memory
        done = _run(perf, "record", *buffer, *events, "-a", "-o", str(file), "--", *workload)
        samples = re.search(r"\(~?(\d+) samples\)", done.stderr)
        if samples and int(samples[1]):
            if "LOST" in done.stderr or "lost" in done.stderr:
                say("perf kmem: perf lost some events while recording; its speed is not affected")
            return int(samples[1])
    lines = done.stderr.strip().splitlines() if done else []
    say(f"perf kmem: not measured, perf cannot record here: {next((line.strip() for line in lines if line.strip(' :')), 'no events')[:150]}")
    return 0


def _stat(perf: str, file: Path, times: int) -> tuple[float, int]:
    """Shortest time of ``perf kmem --page stat`` and how many requests it counted. The options stand before ``stat``: perf ignores them behind it."""
    best, requests = float("inf"), 0
    for _ in range(times):
        start = time.perf_counter()
        done = _run(perf, "kmem", "-f", "-i", str(file), "--page", "stat")
        best = min(best, time.perf_counter() - start)
        requests = sum(int(n) for n in re.findall(r"^Total (?:allocation|free) requests\s*:\s*(\d+)", done.stdout + done.stderr, re.MULTILINE))
        if done.returncode or not requests:
            say(f"perf kmem: not measured, perf kmem fails here: {(done.stderr.strip().splitlines() or ['no output'])[-1][:150]}")
            return best, 0
    return best, requests


def measure(mine: Figures, seconds: int = 10, times: int = 3) -> Figures:
    """Records for `seconds` twice and times perf; `mine` holds mmtwin's rates for the ratios."""
    figures: Figures = dict.fromkeys(ABOUT)
    perf = shutil.which("perf")
    if perf is None:
        say("perf kmem: not measured, perf is not installed")
        return figures
    with tempfile.TemporaryDirectory(prefix="mmtwin-bench-") as directory:
        for what, kinds in (("events", PAGE_EVENTS), ("requests", REQUESTS)):
            file = Path(directory) / "perf.data"
            count = _record(perf, kinds, file, seconds)
            if not count:
                return figures
            taken, requests = _stat(perf, file, times)
            if not requests:
                return figures
            figures[f"peer_perf_kmem_{what}"] = count if what == "events" else requests
            figures[f"peer_perf_kmem_{what}_per_second"] = round((count if what == "events" else requests) / taken)
    for ratio, own, peer in (
        ("page_events_ratio_to_perf_kmem", "page_events_per_second", "events"),
        ("page_requests_ratio_to_perf_kmem", "page_requests_per_second", "requests"),
        ("stream_page_events_ratio_to_perf_kmem", "stream_page_events_per_second", "requests"),
        ("page_events_from_file_ratio_to_perf_kmem", "page_events_from_file_per_second", "events"),
    ):
        rate, theirs = mine.get(own), figures[f"peer_perf_kmem_{peer}_per_second"]
        if rate and theirs:
            figures[ratio] = round(rate / theirs, 1)
    return figures
