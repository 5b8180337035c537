"""The document as one HTML file that loads nothing: styles, script and data are in it.

Every text comes through jinja2's autoescape; the data for the script is JSON in which ``<`` is written as ``\\u003c``. A content security policy allows only the one script and
the one style sheet, by their hashes, and no connection at all, so that nothing a recording contains could run or call home even if it got into the page.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import json
import os
import tempfile
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mmtwin.notebook import readable_size
from mmtwin.report.sections import SECTIONS

SCRIPTS = ("base.js", "charts.js", "map.js", "free.js", "caches.js", "icicle.js", "main.js")
SHOWN_FAILURES, OPEN_FAILURES, OF_EACH = 60, 12, 2
"""Refused requests in the page's tables; in the first of them, which is always seen; and there of each reason, as rare ones say most."""


@functools.lru_cache(maxsize=1)
def environment() -> Environment:
    """The templates, with filters for numbers."""
    made = Environment(loader=PackageLoader("mmtwin.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["number"] = lambda value: f"{value:,}"
    made.filters["size"] = readable_size
    made.filters["flags"] = lambda text: Markup("|<wbr>").join(text.split("|"))
    return made


def html(data: dict[str, Any]) -> str:
    """The page.

    :param data: what `mmtwin.report.document.document` returns.
    """
    style, script = _style(), "\n".join(_text(name) for name in SCRIPTS)
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data: blob:; base-uri 'none'; form-action 'none'"
    return (
        environment()
        .get_template("base.html")
        .render(
            data=data,
            sections=SECTIONS,
            title=title(data),
            subtitle=subtitle(data),
            shown_failures=shown_failures(data["failures"]["requests"]),
            open_failures=OPEN_FAILURES,
            policy=policy,
            style=Markup(style),
            script=Markup(script),
            json=Markup(embedded(data)),
        )
    )


def shown_failures(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The refused requests of the page's tables: some of each reason and the earliest explained ones, then the others; both parts in the order of events."""
    seen: Counter[str] = Counter()
    ranked = []
    for place, row in enumerate(requests):
        why = row["explained"]
        if why is not None:
            seen[why["reason"]] += 1
        ranked.append((why is None, why is None or seen[why["reason"]] > OF_EACH, place))
    order = [place for _, _, place in sorted(ranked)]
    return [requests[place] for part in (order[:OPEN_FAILURES], order[OPEN_FAILURES:SHOWN_FAILURES]) for place in sorted(part)]


def title(data: dict[str, Any]) -> str:
    """What was recorded, in a line."""
    return (
        f"{data['workload_name'] or data['file']} on Linux {data['kernel_release']}"
        if data["how"] != "malloc"
        else f"malloc: {data['workload_name'] or data['file']}"
    )


def subtitle(data: dict[str, Any]) -> str:
    """The machine."""
    parts = [f"{readable_size(data['ram_bytes'])} RAM"] if data["ram_bytes"] else []
    parts.append(f"{data['cpus']} CPU{'s' if data['cpus'] != 1 else ''}")
    how = {"vm": "recorded in QEMU", "ftrace": "from trace text", "malloc": "calls of a process to malloc"}.get(data["how"], data["how"])
    return ", ".join([*parts, how, data["file"]])


def embedded(data: dict[str, Any]) -> str:
    """The document as JSON that ends no script element, whatever is in it."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def render(data: dict[str, Any], path: Path, force: bool = False) -> None:
    """Writes the page, under a temporary name first, so that there is a whole file or none.

    :param force: overwrite an existing file.
    :raises FileExistsError: there is one.
    """
    text = html(data).encode("utf-8", "replace")  # names of files need not be text
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".mmtwin-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text)
        os.chmod(temporary, 0o666 & ~_umask())
        if not force and os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _text(name: str) -> str:
    return (files("mmtwin.report") / "templates" / name).read_text(encoding="utf-8")


def _style() -> str:
    dark = _text("dark.css")
    return (
        _text("report.css")
        + f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n@media screen{{:root[data-theme=dark]{{color-scheme:dark;{dark}}}}}\n"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
