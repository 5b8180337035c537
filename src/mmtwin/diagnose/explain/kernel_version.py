"""Which kernel printed it: from the log's own words, or from which fields it prints."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from mmtwin.diagnose.explain.anchored import Anchored
from mmtwin.diagnose.explain.log_gfp import ERAS, parse_names

RELEASE = Anchored(re.compile(
    r"(?:Not\s+tainted|Tainted:(?:\s+(?:\[[A-Z]\]=\w+,?|[A-Z]{1,12}(?![\w.])|-{3,40}))*)[\s(]{0,120}(\d{1,2}\.\d{1,3}(?:\.\d+)?[\w.+~@-]*)|Linux\s+version\s+(\d{1,2}\.\d{1,3}(?:\.\d+)?[\w.+~@-]*)"
), "Not", "Tainted:", "Linux")  # fmt: skip
SIGNS: tuple[tuple[str, tuple[int, int], tuple[int, int]], ...] = (
    (r"free_highatomic:", (6, 12), (99, 0)),
    (r"sec_pagetables:", (6, 1), (99, 0)),
    (r"\bboost:\d+kB", (5, 14), (99, 0)),
    (r"shmem_thp:\s?\d", (4, 8), (99, 0)),
    (r"kernel_misc_reclaimable:", (5, 1), (99, 0)),
    (r"reserved_highatomic:", (5, 0), (99, 0)),
    (r"writepending:", (4, 8), (99, 0)),
    (r"nodemask=", (4, 8), (99, 0)),
    (r"(?:mode:|gfp_mask=|gfp=)0x[0-9a-f]+\([\w|]", (4, 6), (99, 0)),
    (r"(?:mode:|gfp_mask=)0x[0-9a-f]+\b(?![(*])", (2, 6), (4, 5)),
    (r"free_pcp:", (4, 1), (99, 0)),
    (r"\bmanaged:\d+kB", (3, 8), (99, 0)),
    (r"free_cma:", (3, 7), (99, 0)),
    (r"kB \([UEMCRHI]+\)", (3, 8), (99, 0)),
    (r"kB \([A-Z]*R[A-Z]*\)|kB \(UEM", (3, 8), (4, 3)),
    (r"pages_scanned:", (2, 6), (4, 9)),
    (r"CPU: \d+ (?:UID: \d+ )?PID: \d+ Comm:", (3, 10), (99, 0)),
    (r"Pid: \d+, comm:", (2, 6), (3, 9)),
    (r"page allocation failure\. order:", (2, 6), (2, 6)),
    (r"isolated\(anon\):", (2, 6), (99, 0)),
)
"""Text, the first and the last kernel series that prints it (README of the reports collected; one release more or less)."""

WORDS_64 = ("x86_64", "amd64", "aarch64", "arm64", "ppc64")
SIGNS_64 = (Anchored(re.compile(r"\bR(?:IP|AX|SP):"), "RIP:", "RAX:", "RSP:"), re.compile(r"[\[<](?:<?[0-9a-f]{16}>?\]|[0-9a-f]{16}>\{)"))
SIGNS_32 = (re.compile(r"\[<?[0-9a-f]{8}>?\]\s"), Anchored(re.compile(r"\bE(?:IP|AX):"), "EIP:", "EAX:"), re.compile(r"i[3-6]86"))
BEFORE_2_6_28 = re.compile(r"\bActive:\d+\s+inactive:\d+\s+dirty:|<[0-9a-f]{16}>\{\w+\+\d+\}")
"""The counters of kernels that had no lists of anonymous pages and of pages of files apart, and the first stacks of x86-64."""


@dataclass(frozen=True)
class Kernel:
    """A kernel version.

    :ivar release: as printed; "" if the log does not have it.
    :ivar version: (major, minor, patch); of a log without it, the oldest that prints such fields.
    :ivar newest: the newest series that can have printed it; equal to `version` if the log says the release.
    :ivar bits: 32 or 64; 0 if unknown.
    """

    release: str
    version: tuple[int, int, int]
    newest: tuple[int, int]

    bits: int = 0

    @property
    def known(self) -> bool:
        """Whether the log says it."""
        return bool(self.release)

    @property
    def series(self) -> tuple[int, int]:
        """(6, 1); all of 2.6 is (2, 6)."""
        return self.version[:2]

    @property
    def at_most(self) -> tuple[int, ...]:
        """The newest version that it can be."""
        return self.version if self.known else self.newest

    def __str__(self) -> str:
        if self.known:
            return f"Linux {self.release}"
        low = ".".join(map(str, self.version[:2]))
        if self.newest[0] >= 99:
            return f"Linux {low} or newer (the log does not say; by its fields)"
        if self.newest[:2] == self.version[:2]:
            return f"Linux {low} (the log does not say; by its fields)"
        return f"Linux {low} to {'.'.join(map(str, self.newest))} (the log does not say; by its fields)"


def parse_release(text: str) -> tuple[int, int, int]:
    """(major, minor, patch) of a release such as "5.10.0-rc1+"."""
    parts = [min(int(part), 9999) for part in re.findall(r"\d{1,9}", re.match(r"[\d.]+", text)[0])[:3]]  # type: ignore[index]
    return (parts[0], parts[1] if len(parts) > 1 else 0, parts[2] if len(parts) > 2 else 0)


def find_kernel(text: str, around: str = "") -> Kernel:
    """The kernel of a report.

    :param text: the report.
    :param around: the log it is in, for a report that does not name its kernel.
    """
    bits = find_bits(text) or find_bits(around[:200_000])
    own, others = releases(text), releases(around)
    if own or len(set(others)) == 1:  # a log of several kernels does not say which of them printed this
        release = (own or others)[0]
        version = _debian(release, text if own else around)
        return Kernel(release, version, version[:2], bits)
    low, high = _by_flags(text)
    for pattern, first, last in SIGNS:
        if re.search(pattern, text):
            low, high = max(low, first), min(high, last)
    if BEFORE_2_6_28.search(text):
        return Kernel("", (2, 6, 24), (2, 6), bits)
    return Kernel("", (low[0], low[1], 31 if low == (2, 6) else 0), max(low, high), bits)


def _debian(release: str, text: str) -> tuple[int, int, int]:
    """The version of a release; Debian's up to 6.1 ends in .0, and the package's version behind it has the patch level ("6.1.0-50-amd64 #1 Debian 6.1.176-1")."""
    version = parse_release(release)
    package = re.search(rf"{re.escape(release)}\s[^\n]{{0,80}}?\bDebian\s+{version[0]}\.{version[1]}\.(\d{{1,4}})-", text) if version[2] == 0 else None
    if package is not None:
        return (*version[:2], int(package[1]))
    name = re.match(r"6\.1\.0-(\d{1,3})-", release)
    return (6, 1, 119) if name and int(name[1]) >= 28 else version  # the package linux-image-6.1.0-28 is 6.1.119


def releases(text: str) -> list[str]:
    """Every release that a text names, in order."""
    found = [(match[1] or match[2]).rstrip(".") for match in RELEASE.finditer(text)]
    return [release for release in found if (2, 4) <= parse_release(release)[:2] <= (20, 99)]


def _by_flags(text: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """The series whose flags have the numbers that stand beside names in the text."""
    match = re.search(r"(?:mode:|gfp_mask=|gfp=)\s*(0x[0-9a-f]{1,8})\s*\(([\w|\s]{3,400})\)", text)
    if match is None:
        return (2, 6), (99, 0)
    names = re.sub(r"\s+", "", match[2])
    fitting = [era for era in ERAS if parse_names(names, era) == int(match[1], 16)]
    if not fitting:
        return (2, 6), (99, 0)
    return max((2, 6), fitting[0].first[:2]), fitting[-1].last[:2]


@lru_cache(maxsize=8)
def find_bits(text: str) -> int:
    """32 or 64, by the addresses and the release; 0 if the text shows neither."""
    if any(word in text for word in WORDS_64) or any(pattern.search(text) for pattern in SIGNS_64):
        return 64
    return 32 if any(pattern.search(text) for pattern in SIGNS_32) else 0
