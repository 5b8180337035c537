"""``python -m mmtwin.cli``: the ``mmtwin`` program without its installed script."""

from __future__ import annotations

import sys

from mmtwin.cli.main import main

sys.exit(main())
