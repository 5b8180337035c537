"""The installed ``mmtwin`` script, and ``python -m mmtwin.cli``: quick to start, so that an early Ctrl-C ends it in one line too."""

from __future__ import annotations

import os
import sys


def run() -> int:
    """Imports the program and runs it."""
    try:
        from mmtwin.cli.main import main

        return main()
    except KeyboardInterrupt:
        os.write(2, b"mmtwin: interrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(run())
