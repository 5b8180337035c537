"""A what-if drawn: unusable free space, slab pages and refused requests over the recording's requests, one line for each case. Plain SVG, nothing needed to draw it."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from mmtwin.diagnose.whatif.whatif import Case, WhatIf
from mmtwin.replay.free_run import Look

WIDTH, PANEL, LEFT, RIGHT, TOP, GAP = 860, 170, 70, 20, 34, 46
COLOURS = ("#777777", "#1f6fb4", "#c8501e", "#2c8a4b", "#8950a1", "#b08a00", "#147f86", "#a3334b")


def render(result: WhatIf) -> str:
    """The drawing. The kernel itself is not in it: of it only the end is known."""
    cases = [case for case in result.cases if case.looks]
    panels: list[tuple[str, Callable[[Look], float]]] = [
        ("free memory unusable for order 3, %", lambda k: 100 * k.unusable(3)),
        ("free memory unusable for order 9, %", lambda k: 100 * k.unusable(9)),
        ("slab pages", lambda k: float(k.slab_pages)),
        ("requests refused", lambda k: float(k.page_failures)),
    ]
    height = TOP + len(panels) * (PANEL + GAP) + 22 * len(cases) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for i, (title, value) in enumerate(panels):
        parts += _panel(title, value, cases, TOP + i * (PANEL + GAP), result.requests)
    for i, case in enumerate(cases):
        y = TOP + len(panels) * (PANEL + GAP) + 22 * i
        parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{LEFT + 30}" y2="{y}" stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="2.5"/>')
        parts.append(f'<text x="{LEFT + 38}" y="{y + 4}">{escape(case.name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(title: str, value: Callable[[Look], float], cases: list[Case], top: int, requests: int) -> list[str]:
    values = [[value(k) for k in case.looks] for case in cases]
    most = max((v for line in values for v in line), default=0) or 1.0
    width = WIDTH - LEFT - RIGHT
    parts = [
        f'<text x="{LEFT}" y="{top - 8}" font-weight="bold">{escape(title)}</text>',
        f'<rect x="{LEFT}" y="{top}" width="{width}" height="{PANEL}" fill="none" stroke="#bbbbbb"/>',
    ]
    for share in (0.0, 0.5, 1.0):
        y = top + PANEL * (1 - share)
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555555">{most * share:,.4g}</text>')
    parts.append(f'<text x="{LEFT + width}" y="{top + PANEL + 15}" text-anchor="end" fill="#555555">{requests:,} requests</text>')
    for i, (case, line) in enumerate(zip(cases, values, strict=True)):
        points = " ".join(
            f"{LEFT + width * k.request / max(requests, 1):.1f},{top + PANEL * (1 - v / most):.1f}" for k, v in zip(case.looks, line, strict=True)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="1.6"/>')
    return parts
