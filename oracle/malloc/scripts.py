"""Has the C library do what scripts.txt says and prints each script with what became of it: ``python scripts.py PROGRAM < scripts.txt``, where PROGRAM is script.c, compiled."""

from __future__ import annotations

import json
import subprocess
import sys


def main(program: str) -> None:
    """One JSON document per script."""
    lines = [line.strip() for line in sys.stdin if line.strip()]
    for title, script in zip(lines[::2], lines[1::2], strict=True):
        commands = script.replace("; ", "\n") + "\n"
        done = subprocess.run([program], input=commands, capture_output=True, text=True, env={})
        print(json.dumps({"title": title.removeprefix("# "), "script": script, "status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}))


if __name__ == "__main__":
    main(sys.argv[1])
