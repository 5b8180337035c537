"""The report of a recording: how long it takes to make, how large it is, and how long a browser needs to show it.

The long recording is a real one where ``MMTWIN_LONG_RECORDING`` names it; else the demo's recording stands for itself, and the figures say of how many events they are.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from bench import browser
from bench.measure import ROOT, Figures, say
from mmtwin.recording import store
from mmtwin.replay import check
from mmtwin.report.document import document
from mmtwin.report.page import render

ABOUT = {
    "report_events": "events of the recording that is reported",
    "report_seconds_per_million_events": "from the recording in memory to the page on disk, 120 moments, per million events, best of 2",
    "report_bytes": "size of the page",
    "report_open_seconds": "from opening the page to its first drawn map, in Chromium, best of 3",
    "report_load_seconds": "to the browser's load event, best of 3",
}
DRAWN = "performance.getEntriesByName('drawn')[0].startTime / 1000"
LOADED = "(performance.timing.loadEventEnd - performance.timing.navigationStart) / 1000"


def measure(file: Path | None = None, times: int = 2) -> Figures:
    """Makes the page and opens it. Without a browser the last figures are missing."""
    figures: Figures = dict.fromkeys(ABOUT)
    path = file or Path(os.environ.get("MMTWIN_LONG_RECORDING") or ROOT / "src" / "mmtwin" / "data" / "demo.mmrec")
    recording = store.load(path)
    check.warm_up()
    figures["report_events"] = len(recording.events)
    with tempfile.TemporaryDirectory(prefix="mmtwin-bench-") as directory:
        page = Path(directory) / "report.html"
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            render(document(recording, path), page, force=True)
            seconds.append(time.perf_counter() - start)
        figures["report_seconds_per_million_events"] = round(min(seconds) / len(recording.events) * 1e6, 3)
        figures["report_bytes"] = page.stat().st_size
        program = browser.find()
        if program is None:
            say("report: no chromium, so opening the page is not measured")
            return figures
        opened = [_open(program, page) for _ in range(3)]
    figures["report_open_seconds"] = round(min(drawn for drawn, _ in opened), 3)
    figures["report_load_seconds"] = round(min(loaded for _, loaded in opened), 3)
    return figures


def _open(program: str, page: Path) -> tuple[float, float]:
    """Seconds until the map is drawn, and until the load event, in a fresh browser."""
    with browser.page(program) as tab:
        tab.screen(1280, 900)
        tab.open(page)
        tab.wait("performance.getEntriesByName('drawn').length > 0")
        return float(tab.run(DRAWN)), float(tab.run(LOADED))
