"""Predictions beside real kernels: what mmtwin whatif says of one recording under the settings of others of the same workload, and what those recordings say.

    python oracle/whatif.py DIR [--json]                DIR has base-a.mmrec, base-b.mmrec and those of `PAIRS` (oracle/whatif.sh records them)
    python oracle/whatif.py DIR --predict NAME ...      of base-a.mmrec alone: what it says of these, to be written down before they are recorded

For each quantity: the base, the prediction, the real value, the error of the prediction, and the noise, which is how far two recordings under the same settings differ.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mmtwin.diagnose.whatif import parse_settings, whatif
from mmtwin.diagnose.whatif.whatif import Case, kernel_case
from mmtwin.errors import MmtwinError
from mmtwin.recording import store
from mmtwin.replay.requests import requests

PAIRS = {
    "base-b": "",
    "order0": "slub_max_order=0",
    "minorder1": "slub_min_order=1",
    "partial0": "cpu_partial=0",
    "nomerge": "merge=off",
    "min16m": "min_free_kbytes=16384",
    "wsf200": "watermark_scale_factor=200",
    "smp2": "cpus=2",
    "smp4": "cpus=4",
    "mem128": "ram=128M",
    "mem512": "ram=512M",
    "min8m": "min_free_kbytes=8192",
    "mem224": "ram=224M",
    "mem256": "ram=256M",
}
"""Recordings and the settings that make the base's machine into theirs. NAME-b.mmrec is a second recording under NAME's settings."""
QUANTITIES = {
    "refused": lambda c: c.failures, "slab pages": lambda c: c.slab_pages, "slabs made": lambda c: c.slabs_made, "free pages": lambda c: c.free_pages,
    "extfrag": lambda c: c.extfrag,
} | {f"refused, order {o}": (lambda c, o=o: c.failures_by_order[o]) for o in range(6)} | {
    f"free blocks, order {o}": (lambda c, o=o: c.free_blocks[o]) for o in range(11)
}  # fmt: skip


def numbers(case: Case) -> dict[str, int]:
    """The quantities of a case."""
    return {name: int(of(case)) for name, of in QUANTITIES.items()}


def real(path: Path) -> Case:
    """What the kernel did."""
    recording = store.load(path)
    return kernel_case(recording, requests(recording))


def main() -> None:
    where = Path(sys.argv[1])
    base = store.load(where / "base-a.mmrec")
    asked = requests(base)
    if "--predict" in sys.argv:
        result = whatif(base, [parse_settings([PAIRS[name]]) for name in sys.argv[sys.argv.index("--predict") + 1 :]], asked=asked)
        print(json.dumps({case.name: numbers(case) for case in result.cases}, indent=1))
        return
    found: dict[str, Any] = {"base": numbers(kernel_case(base, asked)), "pairs": {}}
    for name, words in PAIRS.items():
        if not (where / f"{name}.mmrec").exists():
            continue
        try:
            result = whatif(base, [parse_settings([words])], asked=asked)
        except MmtwinError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        found["self"] = numbers(result.cases[1])
        predicted = result.cases[2]
        found["pairs"][name] = {"settings": words, "predicted": numbers(predicted), "real": numbers(real(where / f"{name}.mmrec")), "broken": predicted.broken}
        again = where / f"{name}-b.mmrec"
        if name != "base-b" and again.exists():
            found["pairs"][name]["again"] = numbers(real(again))
    if "--json" in sys.argv:
        print(json.dumps(found, indent=1))
        return
    noise = found["pairs"].get("base-b", {}).get("real", {})
    for name, pair in found["pairs"].items():
        print(f"\n{name}: {pair['settings'] or 'the same settings again'} {pair['broken']}")
        print(f"{'':24}{'base':>9}{'predicted':>11}{'real':>9}{'error':>9}{'noise':>9}")
        for key, value in pair["real"].items():
            first = found["base"][key]
            print(f"{key:24}{first:9,}{pair['predicted'][key]:11,}{value:9,}{pair['predicted'][key] - value:9,}{noise.get(key, first) - first:9,}")


if __name__ == "__main__":
    main()
