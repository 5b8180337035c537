"""The table of claims: each row is a sentence, an experiment that is run on the twin, and what the same experiment measured in a real kernel.

A row's experiment is a small function that returns figures. The kernel's figures have the same names (oracle/claims.sh, data/claims-kernel.json), so one
text (`says`) tells both, and one rule (`holds`) decides on both whether the sentence is true.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from mmtwin.errors import MmtwinError
from mmtwin.machine import Machine, boot

Figures = Mapping[str, Any]
Experiment = Callable[[Machine], dict[str, Any]]

TRUE, TRUE_THEN, WRONG = "true", "true then, not now", "wrong"
VERDICTS = (TRUE, TRUE_THEN, WRONG)
MACHINE = ("linux-6.1", "512MiB")
"""Kernel and memory of a row that says no other: those of the guest in which the kernel was measured."""


class UnknownClaim(MmtwinError):
    """No row has that name."""

    exit_code = 2


@dataclass(frozen=True)
class Claim:
    """A row.

    :ivar id: its name.
    :ivar claim: the sentence.
    :ivar experiment: measures it on a machine.
    :ivar machine: kernel and memory of the machine.
    :ivar says: what was measured, as a format of the figures.
    :ivar more: the same of what was measured in a kernel only, "" if nothing.
    :ivar compared: figures that twin and kernel must agree in.
    :ivar about: figures that must agree to within the given share, as they depend on what else a kernel keeps in memory.
    :ivar holds: whether figures bear the sentence out.
    :ivar then: when it was true, if it no longer is; "" for a sentence that never was.
    :ivar truth: what is true (instead).
    """

    id: str
    claim: str
    experiment: Experiment
    machine: tuple[str, str]
    says: str
    more: str
    compared: tuple[str, ...]
    about: Mapping[str, float]
    holds: Callable[[Figures], bool]
    then: str
    truth: str

    def code(self) -> str:
        """The experiment as a user would type it."""
        source = textwrap.dedent(inspect.getsource(self.experiment))
        body = source[source.index("def ") :].split(":\n", 1)[1]
        lines = textwrap.dedent(body).strip().split("\n")
        if lines[0].startswith('"""'):
            lines = lines[1:]
        profile, ram = self.machine
        return "\n".join([f'm = mmtwin.boot("{profile}", ram="{ram}", cpus=1)', *lines])


@dataclass(frozen=True)
class Measured:
    """A row with what the twin has just measured."""

    claim: Claim
    twin: Figures
    kernel: Figures
    kernel_version: str
    source: str

    @property
    def differences(self) -> list[str]:
        """Figures in which twin and kernel disagree, as "name: twin, kernel"."""
        claim, found = self.claim, []
        for name in claim.compared:
            if self.twin[name] != self.kernel[name]:
                found.append(f"{name}: {self.twin[name]}, {self.kernel[name]}")
        for name, share in claim.about.items():
            mine, real = self.twin[name], self.kernel[name]
            if abs(mine - real) > share * max(abs(mine), abs(real)):
                found.append(f"{name}: {mine}, {real}")
        if claim.holds(self.twin) != claim.holds(self.kernel):
            found.append(f"verdict: {claim.holds(self.twin)}, {claim.holds(self.kernel)}")
        return found

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`: what the kernel's figures say."""
        return TRUE if self.claim.holds(self.kernel) else TRUE_THEN if self.claim.then else WRONG

    @property
    def twin_says(self) -> str:
        """The twin's measurement in words."""
        return said(self.claim.says, self.twin)

    @property
    def kernel_says(self) -> str:
        """The kernel's."""
        return said(self.claim.says, self.kernel) + (said(self.claim.more, self.kernel) if self.claim.more else "")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": self.claim.id,
            "claim": self.claim.claim,
            "verdict": self.verdict,
            "truth": self.claim.truth,
            "twin": {"text": self.twin_says, "figures": dict(self.twin)},
            "kernel": {"text": self.kernel_says, "figures": dict(self.kernel)},
            "kernel_version": self.kernel_version,
            "kernel_source": self.source,
            "equal": not self.differences,
            "differences": self.differences,
            "experiment": self.claim.code(),
        }


CLAIMS: dict[str, Claim] = {}


def claim(
    sentence: str,
    *,
    says: str,
    compared: Sequence[str],
    holds: Callable[[Figures], bool],
    truth: str,
    then: str = "",
    machine: tuple[str, str] = MACHINE,
    more: str = "",
    about: Mapping[str, float] | None = None,
) -> Callable[[Experiment], Experiment]:
    """Makes a function's name a row of the table."""

    def add(experiment: Experiment) -> Experiment:
        name = experiment.__name__.strip("_").replace("_", "-")
        CLAIMS[name] = Claim(name, sentence, experiment, machine, says, more, tuple(compared), about or {}, holds, then, truth)
        return experiment

    return add


def said(text: str, figures: Figures) -> str:
    """`text` with the figures in it: {name} as it is (whole numbers with commas), {name:x} as an address, {name:size} as an amount of memory."""

    def put(match: re.Match[str]) -> str:
        value, how = figures[match[1]], match[2]
        if how == "x":
            return f"0x{value:x}"
        if how == "size":
            return size(value)
        return f"{value:,}" if isinstance(value, int) else str(value)

    return re.sub(r"\{(\w+)(?::(\w+))?\}", put, text)


def size(value: int) -> str:
    """Bytes, exactly, in the largest unit that divides them."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= unit and value % unit == 0:
            return f"{value // unit:,} {name}"
    return f"{value:,} bytes"


@cache
def recorded() -> dict[str, Any]:
    """What the kernels measured, by row."""
    found: dict[str, Any] = json.loads((files("mmtwin") / "data" / "claims-kernel.json").read_text())["claims"]
    return found


def measure(row: Claim) -> Measured:
    """Runs a row's experiment on a new machine."""
    kernel = recorded()[row.id]
    profile, ram = row.machine
    return Measured(row, row.experiment(boot(profile, ram=ram, cpus=1)), kernel["figures"], kernel["kernel_version"], kernel["source"])


def select(only: Sequence[str] = ()) -> list[Claim]:
    """The rows with these names, or all of them.

    :raises UnknownClaim: there is none of a name.
    """
    import mmtwin.claims.rows  # noqa: F401  (fills CLAIMS)

    for name in only:
        if name not in CLAIMS:
            import difflib

            near = difflib.get_close_matches(name, CLAIMS, n=1)
            raise UnknownClaim(f"no claim {name!r}; " + (f"did you mean {near[0]}?" if near else "mmtwin claims lists all"))
    return [CLAIMS[name] for name in (only or CLAIMS)]
