"""What a command prints: JSON for programs, lines and tables for people, plain when nobody's terminal is at the end.

Owns: stdout, the notes on stderr, and how values, times and sizes look. Must not know: commands. Invariants: with
``--json`` stdout holds JSON objects, one a line, in UTF-8 whatever the locale, and nothing else; control characters of
stored texts never reach a terminal.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from rich.console import Console

Part = str | tuple[str, str]
"""A piece of a line: text, or text and the style in which a terminal shows it."""

_SHORT = 60
_NARROWEST = 16


class Output:
    """Where a command prints. With ``as_json``, only :meth:`object` writes to stdout."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.styled = sys.stdout.isatty() and not as_json

    def object(self, fields: Mapping[str, Any], *, flush: bool = False) -> None:
        """Print one JSON object."""
        sys.stdout.buffer.write(orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z))
        if flush:
            sys.stdout.buffer.flush()

    def value(self, value: Any) -> None:
        """Print a value for people: a string bare, anything else as JSON."""
        if isinstance(value, str):
            self.text(visible(value) if self.styled else value)
        else:
            self.text(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())

    def text(self, text: str) -> None:
        """Print text as it is."""
        sys.stdout.write(text + "\n")

    def line(self, *parts: Part, flush: bool = False) -> None:
        """Print a line made of parts with a space between them."""
        if self.styled:
            from rich.text import Text

            line = Text(" ").join(Text(*((part,) if isinstance(part, str) else part)) for part in parts)
            self._console.print(line, soft_wrap=True)
        else:
            sys.stdout.write(" ".join(_text(part) for part in parts) + "\n")
        if flush:
            sys.stdout.flush()

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: Sequence[str] = (),
        shrink: str = "",
        name: str = "",
    ) -> None:
        """Print a table; the columns named in ``right`` are set flush right.

        On a terminal that is too narrow, the column ``shrink`` is cut short; where that is not enough, each row becomes
        lines of its own, the first one the column ``name`` (else the first) alone, so that it can be copied whole.
        """
        if self.styled:
            self._rich_table(columns, rows, right, shrink, name or columns[0])
            return
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        for row in (columns, *rows):
            cells = [
                cell.rjust(width) if name in right else cell.ljust(width)
                for name, cell, width in zip(columns, row, widths, strict=True)
            ]
            sys.stdout.write("  ".join(cells).rstrip() + "\n")

    def note(self, text: str) -> None:
        """Tell people something beside the result, on stderr; after what has been printed, should both go one way."""
        sys.stdout.flush()
        print(text, file=sys.stderr, flush=True)

    def _rich_table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str], shrink: str, name: str
    ) -> None:
        from rich.cells import cell_len
        from rich.table import Table
        from rich.text import Text

        widths = {each: max(map(cell_len, (each, *cells))) for each, *cells in zip(columns, *rows, strict=True)}
        room = self._console.width - sum(width + 2 for each, width in widths.items() if each != shrink)
        if room < (min(_NARROWEST, widths[shrink]) if shrink else -2):
            self._blocks(columns, rows, name)
            return
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for each in columns:
            table.add_column(each, justify="right" if each in right else "left", no_wrap=True)
        for row in rows:
            cells = dict(zip(columns, map(Text, row), strict=True))
            if shrink:
                cells[shrink].truncate(room, overflow="ellipsis")
            table.add_row(*cells.values())
        self._console.print(table)

    def _blocks(self, columns: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> None:
        """The rows of a table that does not fit: of each, its name on a line, and the rest below, folded at spaces."""
        from rich.padding import Padding
        from rich.text import Text

        for row in rows:
            cells = dict(zip(columns, row, strict=True))
            self._console.print(Text(cells.pop(name), "bold"), soft_wrap=True)
            rest = [Text.assemble((column, "dim"), " ", cell) for column, cell in cells.items()]
            self._console.print(Padding(Text(", ").join(rest), (0, 0, 0, 2)))

    @cached_property
    def _console(self) -> Console:
        from rich.console import Console

        return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


async def reader_gone() -> None:
    """Returns when whoever reads our output has closed the pipe; never, if stdout is something else.

    A command that prints only now and then would else find out at its next line, which may never come.
    """
    loop = asyncio.get_running_loop()
    gone: asyncio.Future[None] = loop.create_future()
    descriptor = sys.stdout.fileno()
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        # A pipe's end for writing becomes readable when the other end is closed; asyncio's own transports rely on it.
        loop.add_reader(descriptor, gone.cancel)
    try:
        await asyncio.wait({gone})
    finally:
        loop.remove_reader(descriptor)


def visible(text: str) -> str:
    """The text with control characters, but for tabs and ends of lines, made visible."""
    return "".join(c if c.isprintable() or c in "\t\n" else c.encode("unicode_escape").decode() for c in text)


def shortened(value: Any, limit: int = _SHORT) -> str:
    """A value as JSON on one line, cut to so many characters."""
    text = visible(orjson.dumps(value).decode())  # control characters of strings are escaped, of others' there are none
    return text if len(text) <= limit else text[: limit - 1] + "…"


def moment(time: datetime) -> str:
    """A time as RFC 3339 in UTC, to the millisecond: fit for ``--since`` and ``--until``."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def age(seconds: float) -> str:
    """How long ago, in the largest unit of which there is at least one."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"


def size(count: int) -> str:
    """A number of bytes in the unit people would use."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _text(part: Part) -> str:
    return part if isinstance(part, str) else part[0]
