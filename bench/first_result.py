"""How long a newcomer waits: the whole process ``mmtwin demo``, once with nothing compiled and then as ever after."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time

from bench.measure import Figures, environment, say
from bench.recorded import paths

ABOUT = {
    "first_result_cold_seconds": "the whole process `mmtwin demo` when nothing is compiled yet",
    "first_result_warm_seconds": "the same, every later time, fastest of 3",
}
DEMO = "import sys; from mmtwin.cli.main import main; sys.argv = ['mmtwin', 'demo']; sys.exit(main())"
REPLAY = "import sys; from mmtwin.recording.store import load; from mmtwin.replay.check import replay; sys.exit(not replay(load(sys.argv[1]))[0].events)"


def _commands() -> list[list[str]]:
    """The demo if there is one, and what it does at heart."""
    found = [[sys.executable, "-c", DEMO]] if importlib.util.find_spec("mmtwin.cli") and importlib.util.find_spec("mmtwin.cli.main") else []
    return found + [[sys.executable, "-c", REPLAY, str(path)] for path in reversed(paths())]


def _seconds(command: list[str], cache: str | None) -> float | None:
    """Wall time of one process in an empty directory, or None if it fails."""
    with tempfile.TemporaryDirectory(prefix="mmtwin-bench-") as directory:
        start = time.perf_counter()
        done = subprocess.run(command, env=environment({"MMTWIN_CACHE": cache} if cache else {}), cwd=directory, stdin=subprocess.DEVNULL, capture_output=True)
        return time.perf_counter() - start if done.returncode == 0 else None


def measure(cold: bool = True, times: int = 3) -> Figures:
    """Without `cold` only the warm start is measured."""
    figures: Figures = dict.fromkeys(ABOUT)
    for command in _commands():
        if (first := _seconds(command, None)) is None:
            say(f"first result: {'the demo' if command[2] == DEMO else 'a replay'} failed, so it is not timed")
            continue
        if command[2] == REPLAY:
            say("first result: no working `mmtwin demo`, so a replay of its recording is timed instead")
        figures["first_result_warm_seconds"] = round(min([first] * (times < 2) + [s for _ in range(times) if (s := _seconds(command, None))]), 3)
        if cold:
            with tempfile.TemporaryDirectory(prefix="mmtwin-bench-") as cache:
                seconds = _seconds(command, cache)
            figures["first_result_cold_seconds"] = None if seconds is None else round(seconds, 2)
        break
    return figures
