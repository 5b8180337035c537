"""The peer, ``perf kmem stat --slab``: adds up the slab events of a perf.data made on this very machine, in the same run, and mmtwin does the same.

One recording of kmalloc, kfree, kmem_cache_alloc and kmem_cache_free while processes are started and a file system is walked. Both programs read that
very perf.data, decode, pair and sum; mmtwin's time includes the start of Python. It is also given the same events as a recording (.mmrec, which it
checks). The sums of both are compared.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.measure import Figures, environment, say
from bench.peer_perf_kmem import _record
from mmtwin.diagnose.stat import stat
from mmtwin.recording import store
from mmtwin.recording.readers import read

EVENTS = ("kmalloc", "kfree", "kmem_cache_alloc", "kmem_cache_free")
ABOUT = {
    "stat_slab_events": "slab events (kmalloc, kfree, kmem_cache_alloc, kmem_cache_free) in the perf.data of this run",
    "peer_perf_kmem_slab_events_per_second": "`perf kmem --slab stat` on it, whole program, fastest of 3",
    "stat_perf_data_events_per_second": "`mmtwin stat` on it, whole program, fastest of 3",
    "read_perf_data_events_per_second": "reading it alone, in memory, fastest of 3",
    "stat_perf_data_ratio_to_perf_kmem": "mmtwin's whole program over perf's, on the perf.data",
    "stat_slab_events_per_second": "`mmtwin stat` on the same events as a recording (.mmrec), whole program, fastest of 3",
    "stat_slab_events_in_memory_per_second": "stat() on a recording that is in memory, fastest of 3",
    "stat_slab_events_ratio_to_perf_kmem": "mmtwin's whole program on the recording over perf's",
    "stat_slab_bytes_unequal_to_perf_kmem": "difference of the requested and of the allocated bytes between both, added",
    "perf_kmem_bytes_freed_twice": "bytes that perf counts as freed although the address was free already",
}
SUMS = re.compile(r"^Total bytes (requested|allocated|freed):\s*([\d,]+)", re.MULTILINE)


def _timed(times: int, *command: str, fresh: bool = False) -> tuple[float, str]:
    """Shortest time of a command and its output."""
    best, text = float("inf"), ""
    for _ in range(times):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=environment({"LC_ALL": "C"}) if fresh else None, stdin=subprocess.DEVNULL)
        best, text = min(best, time.perf_counter() - start), done.stdout + done.stderr
        if done.returncode:
            say(f"{command[0]}: fails here: {(done.stderr.strip().splitlines() or ['no output'])[-1][:150]}")
            return best, ""
    return best, text


def measure(seconds: int = 5, times: int = 3) -> Figures:
    """Records for `seconds` and times both programs on it."""
    figures: Figures = dict.fromkeys(ABOUT)
    perf = shutil.which("perf")
    if perf is None:
        say("perf kmem --slab: not measured, perf is not installed")
        return figures
    with tempfile.TemporaryDirectory(prefix="mmtwin-bench-") as directory:
        data, recording = Path(directory) / "perf.data", Path(directory) / "perf.mmrec"
        if not _record(perf, EVENTS, data, seconds):
            return figures
        taken, shown = _timed(times, perf, "kmem", "-f", "-i", str(data), "--slab", "stat")  # options behind "stat" are ignored by perf
        theirs = {name: int(value.replace(",", "")) for name, value in SUMS.findall(shown)}
        if not theirs:
            say("perf kmem --slab: not measured, perf kmem fails here")
            return figures
        direct, _ = _timed(times, sys.executable, "-m", "mmtwin.cli", "stat", str(data), "--json", "--lines", "20", fresh=True)
        reading = float("inf")
        for _ in range(times):
            start = time.perf_counter()
            imported = read(data)
            reading = min(reading, time.perf_counter() - start)
        store.save(imported, recording)
        own, _ = _timed(times, sys.executable, "-m", "mmtwin.cli", "stat", str(recording), "--json", "--lines", "20", fresh=True)
        loaded, best = store.load(recording), float("inf")
        for _ in range(times):
            start = time.perf_counter()
            summary = stat(loaded).summary
            best = min(best, time.perf_counter() - start)
    events = len(loaded.events)
    figures["stat_slab_events"] = events
    figures["peer_perf_kmem_slab_events_per_second"] = round(events / taken)
    figures["stat_perf_data_events_per_second"] = round(events / direct)
    figures["read_perf_data_events_per_second"] = round(events / reading)
    figures["stat_perf_data_ratio_to_perf_kmem"] = round(taken / direct, 2)
    figures["stat_slab_events_per_second"] = round(events / own)
    figures["stat_slab_events_in_memory_per_second"] = round(events / best)
    figures["stat_slab_events_ratio_to_perf_kmem"] = round(taken / own, 2)
    figures["stat_slab_bytes_unequal_to_perf_kmem"] = abs(theirs["requested"] - summary.bytes_requested) + abs(theirs["allocated"] - summary.bytes_allocated)
    figures["perf_kmem_bytes_freed_twice"] = theirs["freed"] - summary.bytes_freed
    return figures
