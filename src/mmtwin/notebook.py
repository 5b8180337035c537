"""How results look in a notebook: a small card of HTML, made from plain data.

A class whose instances are looked at derives from `InNotebook` and says in `_card` what is on its card. Everything on a card is text: names come from files, so all of it
is escaped here, in one place. The card has no script and no colour of its own, so it follows the notebook's theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

SHOWN = 12
"""Rows of a table on a card; the rest is counted."""
STYLE = "border-collapse:collapse;text-align:right;font-variant-numeric:tabular-nums"


@dataclass(frozen=True)
class Table:
    """A table on a card: a heading for each column, and the cells as text. The first column is a name and stands left."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Card:
    """What a notebook shows of an object.

    :ivar title: what it is, in a few words.
    :ivar rows: label and value, most important first.
    :ivar tables: more, below; only the first `SHOWN` rows of each are shown.
    :ivar notes: sentences below all that.
    """

    title: str
    rows: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


class InNotebook:
    """Gives a class that has `_card` the method that notebooks look for."""

    __slots__ = ()

    def _card(self) -> Card:
        """What the card says."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        """The card as HTML, for Jupyter and whatever else follows its display protocol."""
        return card_html(self._card())


def readable_size(count: int) -> str:
    """Bytes for people, in binary units: 64 KiB, 5.5 MiB."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if abs(count) >= 1 << shift:
            value = count / (1 << shift)
            return f"{value:,.0f} {unit}" if value == int(value) or abs(value) >= 100 else f"{value:.1f} {unit}"
    return f"{count:,} B"


def card_html(card: Card) -> str:
    """A card as HTML without scripts."""
    parts = [f"<p><strong>{escape(card.title)}</strong></p>"]
    if card.rows:
        cells = "".join(
            f'<tr><th scope="row" style="text-align:left">{escape(label)}</th><td style="text-align:left">{escape(value)}</td></tr>'
            for label, value in card.rows
        )
        parts.append(f'<table style="{STYLE}">{cells}</table>')
    parts += [_table(table) for table in card.tables if table.rows]
    parts += [f"<p>{escape(note)}</p>" for note in card.notes]
    return f'<div class="mmtwin">{"".join(parts)}</div>'


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}{_left(i)}>{escape(cell)}</{tag}>" for i, cell in enumerate(cells)) + "</tr>"

    rows = "".join(row(cells, "td") for cells in table.rows[:SHOWN])
    more = len(table.rows) - SHOWN
    left_out = f"<p>and {more:,} more</p>" if more > 0 else ""
    return f'<table style="{STYLE}"><thead>{row(table.heads, "th")}</thead><tbody>{rows}</tbody></table>{left_out}'


def _left(column: int) -> str:
    return "" if column else ' style="text-align:left"'
