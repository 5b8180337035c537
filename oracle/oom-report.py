"""Cuts what oom.sh's guests printed into a fixture.

oom-report.py CONSOLES OUT.json.gz

Of every guest: its memory, CPUs and kernel; "strikes": what the OOM killer printed, without time stamps and stack traces (the word "scenario" says which
one it was); "shown": what ``echo m > /proc/sysrq-trigger`` printed; "scores": what /proc said of the processes, by scenario; "memory": MemTotal and SwapTotal, kB.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path

STAMP = re.compile(r"^\[ *\d+\.\d+\] ?")
LAST = re.compile(r"Killed process|^Kernel panic|no killable processes")


def reports(lines: list[str]) -> tuple[list[dict[str, str]], list[str]]:
    """The OOM killer's reports with their scenarios, and what else was shown of memory."""
    strikes: list[dict[str, str]] = []
    shown: list[str] = []
    scenario, text, kind, trace = "", list[str](), "", False
    for line in lines:
        if not STAMP.match(line):
            continue
        line = STAMP.sub("", line)
        if line.startswith("oom-user: scenario "):
            scenario = line.split()[-1]
        elif "invoked oom-killer" in line:
            kind, text = "oom", [line]
        elif kind == "oom":
            if re.match(r"CPU: \d+ PID", line):
                trace = True
            if not trace:
                text.append(line)
            trace = trace and line.strip() != "</TASK>"
            if not trace and LAST.search(line) and "no killable" not in line:
                strikes.append({"scenario": scenario, "report": "".join(f"{part}\n" for part in text)})
                kind = ""
        elif line == "Mem-Info:":
            kind, text = "shown", [line]
        elif kind == "shown":
            text.append(line)
            if line.endswith("pages reserved"):
                shown.append("".join(f"{part}\n" for part in text))
                kind = ""
    return strikes, shown


def main() -> None:
    consoles, out = Path(sys.argv[1]), Path(sys.argv[2])
    guests = []
    for part in consoles.read_text(errors="replace").split("@guest ")[1:]:
        head, *lines = part.splitlines()
        ram, cpus, release = head.split()[:3]
        strikes, shown = reports(lines)
        rows: dict[str, list[list[object]]] = {}
        memory: dict[str, list[int]] = {}
        for line in lines:
            if line.startswith("oom: score "):
                scenario, comm, *numbers = line.split()[2:]
                rows.setdefault(scenario, []).append([comm, *map(int, numbers)])
            elif line.startswith("oom: memory "):
                words = line.split()
                memory[words[2]] = [int(words[4]), int(words[6])]
        guests.append({"mem_mib": int(ram), "cpus": int(cpus), "release": release, "strikes": strikes, "shown": shown, "scores": rows, "memory": memory})
    text = json.dumps({"columns": ["comm", "pid", "oom_score_adj", "oom_score", "VmRSS", "VmSwap", "VmPTE"], "guests": guests}, indent=0)
    out.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"wrote {out}: {sum(len(guest['strikes']) for guest in guests)} strikes")


if __name__ == "__main__":
    main()
