"""A log's lines without what dmesg, journald, syslog, consoles and mail programs put before them, wrapped lines joined, CPUs apart where the log says which is which."""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import NamedTuple

DATE = r"(?:[A-Z][a-z]{2},? )?[A-Z][a-z]{2} {1,2}\d{1,2} (?:\d{4} )?\d\d:\d\d:\d\d(?:[.,]\d+)?(?: \d{4})?"
ISO = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?: ?Z| ?[+-]\d\d:?\d\d)?"
LOGGER = r"(?:kernel|klogd|vmunix|vmkernel)(?:\[\d+\])?: ?"
PREFIX = re.compile(
    r"[ \t]*(?:"
    rf"(?P<syslog>(?:{DATE}|{ISO})[ \t]+(?:(?:[\w.:@%/-]+[ \t]+){{0,3}}{LOGGER}|(?=\[ *\d+\.\d+\])|(?:[\w.-]+[ \t]+)?(?=[A-Za-z\[< ])))"
    rf"|(?P<logger>(?:kern(?:el)?|user) *[:.] *(?:warn|warning|err|info|notice|crit|alert|emerg|debug) *: ?|{LOGGER})"
    r"|(?P<level><\d{1,3}>)"
    r"|(?P<kmsg>\d{1,3},\d+,\d+,[-c+](?:,caller=(?P<caller>[TC]\d+))?;)"
    r"|(?P<stamp>(?:\[[< +]*|(?=\d{1,9}\.\d{6}\]))(?P<seconds>\d{1,9}\.\d{1,9})(?:,\d+| *[/@|] *[^\]]{1,40})?[> ]*\] ?)"
    rf"|(?P<clock>\[{DATE}\] ?|\[(?:\d\d-\d\d )?\d\d:\d\d:\d\d(?:[.:]\d+)?\] ?|\[{ISO}\] ?)"
    r"|(?P<task>\[ *(?P<tag>[TC]\d+)(?:@\d+)?\] ?)"
    r"|(?P<vendor>\(\d+\)\[\d+:[^\]]{1,40}\] ?|\[\d+: *[\w/:.#-]{1,24}: *\d+\] ?|[cC]\d+ +\d+ (?=[(\[<A-Za-z ]))"
    r"|(?P<quote>(?:> ?)+)"
    r")"
)
"""One layer of decoration."""
DECORATED = ("syslog", "logger", "kmsg", "stamp", "clock", "task")
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\r+")
SPACES = dict.fromkeys(map(ord, "\u00a0\u2007\u202f\u2003\u2002\u2009\t"), " ") | {0xFEFF: None, 0x200B: None, 0: None}
MOST_DIGITS = 40
LONG_NUMBER = re.compile(rf"\d{{{MOST_DIGITS + 1},}}")
"""Damage, which int() may refuse."""
LONGEST = 8_000
"""Characters of a physical line that are looked at; the kernel's own are below 1,024."""
LONGEST_JOINED = 20_000


class Line(NamedTuple):
    """One line, undecorated.

    :ivar number: of the first physical line, from 1.
    :ivar seconds: the kernel's time stamp; None if it has none.
    :ivar tag: the CPU or task that printed it ("C1", "T123"); "" if the log does not say.
    :ivar decorated: whether there was something before the text.
    """

    number: int
    text: str
    seconds: float | None
    tag: str
    decorated: bool


def strip(text: str, number: int) -> Line:
    """Takes every layer of decoration off."""
    text = text[:LONGEST]
    if "\t" in text or "\0" in text or not text.isascii():
        text = text.translate(SPACES)
    if "\x1b" in text or "\r" in text:
        text = ESCAPES.sub("", text)
    at, seconds, tag, decorated = 0, None, "", False
    for _ in range(8):
        match = PREFIX.match(text, at)
        if match is None or match.end() == at:
            break
        kind = match.lastgroup or ""
        if kind == "stamp":
            seconds = float(match["seconds"])
        elif kind in ("task", "kmsg"):
            tag = match["tag"] or match["caller"] or tag
        decorated |= kind in DECORATED
        at = match.end()
    return Line(number, text[at:].rstrip(), seconds, tag, decorated)


def read_lines(data: bytes, before: int = 0) -> list[Line]:
    """All lines of a piece of a log; `before` lines came before it."""
    text = data.decode("utf-8", "replace")
    if text.count("=3D") > 2:  # a mail as it was sent (quoted-printable)
        text = re.sub(r"=\n", "\x01", text)  # soft line ends; counted below
        text = re.sub(r"=([0-9A-F]{2})", lambda m: chr(int(m[1], 16)) if int(m[1], 16) < 128 else "?", text)
    if "#012" in text:
        text = text.replace("#012", "\n")
    text = LONG_NUMBER.sub(lambda m: m[0][:MOST_DIGITS], text)
    lines, number = [], before + 1
    for line in text.split("\n"):
        soft = line.count("\x01")
        lines.append(strip(line.replace("\x01", "") if soft else line, number))
        number += 1 + soft
    return join_wrapped(lines)


def join_wrapped(lines: list[Line]) -> list[Line]:
    """Puts what follows without decoration behind the line it belongs to, where the others have some: mail programs wrap, and printk's continuations come bare."""
    full = [line for line in lines if line.text]
    if 5 * sum(line.decorated for line in full) <= 2 * len(full):
        return lines
    joined: list[Line] = []
    for line in lines:
        last = joined[-1] if joined else None
        if line.text and not line.decorated and last is not None and last.text and last.decorated and len(last.text) < LONGEST_JOINED:
            joined[-1] = Line(last.number, f"{last.text} {line.text}", last.seconds, last.tag, True)
        else:
            joined.append(line)
    return joined


def streams(lines: list[Line]) -> list[list[Line]]:
    """One list for each CPU or task that printed, if the log says which; else all lines in one."""
    if not any(line.tag for line in lines):
        return [lines]
    apart: dict[str, list[Line]] = {}
    tag = ""
    for line in lines:
        tag = line.tag or tag
        apart.setdefault(tag, []).append(line)
    return list(apart.values())


class LogText:
    """Lines as one text, and back from a place in it to the line."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines
        self.text = "\n".join(line.text for line in lines)
        self.starts: list[int] = []
        at = 0
        for line in lines:
            self.starts.append(at)
            at += len(line.text) + 1

    def line(self, at: int) -> Line:
        """The line that holds the character at this place."""
        return self.lines[max(0, bisect_right(self.starts, at) - 1)]
