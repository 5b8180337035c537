"""Writes the tables of docs/whatif.md from docs/whatif-truth.json, docs/whatif-unseen.json, docs/whatif-squeeze.json and docs/whatif-slab.json, which oracle/whatif.py and oracle/allocators.py make of recordings.

A table lies between two comments, `<!-- table NAME -->` and `<!-- end -->`; what is between them is replaced.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TEXT, TRUTH = HERE / "whatif.md", HERE / "whatif-truth.json"
UNSEEN, PREDICTED = HERE / "whatif-unseen.json", HERE / "whatif-unseen-predicted.json"
SQUEEZE, SQUEEZE_PREDICTED, SQUEEZE_AFTER = (HERE / f"whatif-squeeze{part}.json" for part in ("", "-predicted", "-after"))
SLAB, SLAB_PREDICTED = HERE / "whatif-slab.json", HERE / "whatif-slab-predicted.json"
SHOWN = ("refused", "slab pages", "slabs made", "free pages", "extfrag")


def truth() -> dict[str, Any]:
    """What was measured."""
    found: dict[str, Any] = json.loads(TRUTH.read_text())
    return found


def noise(data: dict[str, Any]) -> dict[str, int]:
    """How far two recordings under the same settings differ."""
    again = data["pairs"]["base-b"]["real"]
    return {key: abs(value - data["base"][key]) for key, value in again.items()}


def main_table(data: dict[str, Any]) -> str:
    """Predicted and real, with the error, for each setting."""
    head = ["settings", *(f"{name}: predicted / real (error)" for name in SHOWN)]
    rows = [["as recorded: the twin beside its own recording", *(_cell(data["self"][k], data["base"][k]) for k in SHOWN)]]
    for name, pair in data["pairs"].items():
        label = f"`{pair['settings']}`" if pair["settings"] else "the same settings, another recording"
        rows.append([label if name != "base-b" else "the same settings, another recording", *(_cell(pair["predicted"][k], pair["real"][k], pair.get("again", {}).get(k)) for k in SHOWN)])
    rows.append(["noise: two recordings under the same settings differ by", *(f"{noise(data)[k]:,}" for k in SHOWN)])
    return _table(head, rows)


def block_table(data: dict[str, Any]) -> str:
    """Free blocks of each order at the end."""
    head = ["settings", *(f"order {o}" for o in range(11))]
    rows = []
    for name, pair in data["pairs"].items():
        label = f"`{pair['settings']}`" if name != "base-b" else "the same settings, another recording"
        rows.append([label, *(f"{pair['predicted'][f'free blocks, order {o}']} / {pair['real'][f'free blocks, order {o}']}" for o in range(11))])
    rows.append(["noise", *(str(noise(data)[f"free blocks, order {o}"]) for o in range(11))])
    return _table(head, rows)


def failure_table(data: dict[str, Any]) -> str:
    """Requests refused, by order."""
    head = ["settings", *(f"order {o}" for o in range(6))]
    rows = []
    for name, pair in data["pairs"].items():
        label = f"`{pair['settings']}`" if name != "base-b" else "the same settings, another recording"
        rows.append([label, *(f"{pair['predicted'][f'refused, order {o}']:,} / {pair['real'][f'refused, order {o}']:,}" for o in range(6))])
    rows.append(["noise", *(str(noise(data)[f"refused, order {o}"]) for o in range(6))])
    return _table(head, rows)


def allocator_table(data: dict[str, Any]) -> str:
    """SLAB, predicted from SLUB's recording, and real."""
    predicted, real, again = (data[name] for name in ("predicted", "real", "real, again"))
    head = ["of 6.1 with SLAB, after the workload", "SLUB (twin)", "predicted of SLAB", "real SLAB, twice", "error"]
    rows = []
    for name in ("slab pages at the start", "slab pages", "slab pages gained", "slabs made", "free pages"):
        first, mine, one, two = (_number(data[which], name) for which in ("twin", "predicted", "real", "real, again"))
        rows.append([name, "" if first is None else f"{first:,}", f"{mine:,}", f"{one:,} and {two:,}", f"{mine - one:+,} ({100 * (mine - one) / one:+.1f} %)"])
    for cache in sorted(real["caches"], key=lambda name: -real["caches"][name])[:8]:
        mine, one, two = (numbers["caches"].get(cache, 0) for numbers in (predicted, real, again))
        rows.append([f"pages of {cache}", f"{data['twin']['caches'].get(cache, 0):,}", f"{mine:,}", f"{one:,} and {two:,}", f"{mine - one:+,} ({100 * (mine - one) / one:+.1f} %)"])
    return _table(head, rows)


def _number(numbers: dict[str, Any], name: str) -> int | None:
    start = numbers.get("slab pages at the start")
    if name == "slab pages gained":
        return None if start is None else int(numbers["slab pages"]) - int(start)
    return None if name not in numbers else int(numbers[name])


def _cell(predicted: int, real: int, again: int | None = None) -> str:
    """:param again: the same in a second recording; the error is that beside the first."""
    share = f", {100 * (predicted - real) / real:+.1f} %" if real else ""
    second = "" if again is None else f" and {again:,}"
    return f"{predicted:,} / {real:,}{second} ({predicted - real:+,}{share})"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def filled(text: str) -> str:
    """The document with its tables."""
    data = truth()
    unseen: dict[str, Any] = json.loads(UNSEEN.read_text())
    squeeze: dict[str, Any] = json.loads(SQUEEZE.read_text())
    after: dict[str, Any] = json.loads(SQUEEZE_AFTER.read_text())
    tables = {
        "main": main_table(data), "blocks": block_table(data), "failures": failure_table(data), "unseen": main_table(unseen), "unseen-blocks": block_table(unseen),
        "squeeze": main_table(squeeze), "squeeze-blocks": block_table(squeeze), "squeeze-failures": failure_table(squeeze),
        "squeeze-after": main_table(after), "allocators": allocator_table(json.loads(SLAB.read_text())),
    }  # fmt: skip

    def fill(match: re.Match[str]) -> str:
        return f"<!-- table {match[1]} -->\n{tables[match[1]]}<!-- end -->"

    return re.sub(r"<!-- table ([\w-]+) -->\n.*?<!-- end -->", fill, text, flags=re.S)


if __name__ == "__main__":
    TEXT.write_text(filled(TEXT.read_text()))
    print(f"wrote {TEXT}")
