"""How differences between two states of memory look: a line a key, and what is long line by line.

Pure, but for the printing. Must not know: where the differences come from.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from agentfield.amount import number_of
from agentfield.cli.output import Output, Part, shortened, size, visible
from agentfield.event import Entry
from agentfield.memory import Change, Diff
from agentfield.scope import Scope

_INLINE = 60
"""Characters of JSON that two values may have to stand on one line."""
_CONTEXT = 2
_LINES = 60
"""Lines of one key's values that are shown; all of them are in what --json prints."""
_COMPARED = 200_000
"""Characters of JSON above which only sizes are compared: nobody reads that much, and comparing takes too long."""


def show_diff(diff: Diff, output: Output) -> None:
    """Print it: one object a key for programs, a few lines a key for people."""
    for change in diff.changes:
        if output.as_json:
            output.object({"change": _kind(change), **change.model_dump(mode="json")})
        else:
            _show(change, output)


def counted(diff: Diff) -> str:
    """How much it is, in words."""
    number = len(diff)
    parts = [f"{len(some)} {name}" for name, some in _parts(diff) if some]
    return f"{number_of(number, 'key')}: {', '.join(parts)}" if parts else "no keys"


def _parts(diff: Diff) -> tuple[tuple[str, tuple[Change, ...]], ...]:
    return ("added", diff.added), ("removed", diff.removed), ("changed", diff.changed)


def _kind(change: Change) -> str:
    return "added" if change.before is None else "removed" if change.after is None else "changed"


_MARKS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


class Side(NamedTuple):
    """What there is on one side of a difference: a value, or that the key was deleted."""

    value: Any = None
    deleted: bool = False


def show_sides(head: Sequence[Part], before: Side | None, after: Side | None, output: Output) -> None:
    """Print a difference: ``head``, then both sides on its line, or below it line by line; None for nothing at all."""
    sides = [side for side in (before, after) if side is not None]
    texts = [text for side in sides if (text := _text(side)) is not None]
    if all(side.deleted or len(shortened(side.value, _INLINE + 1)) <= _INLINE for side in sides):
        output.line(*head, *_inline(before, after))
    elif any(len(text) > _COMPARED for text in texts):
        output.line(*head, " → ".join(f"({size(len(text.encode()))})" for text in texts))
    else:
        output.line(*head)
        lines = list(_lines(_text(before), _text(after)))
        for style, line in lines[:_LINES]:
            output.line(("    " + visible(line), style))
        if len(lines) > _LINES:
            output.line((f"    … {number_of(len(lines) - _LINES, 'more line')}", "dim"))


def _show(change: Change, output: Output) -> None:
    entries = [entry for entry in (change.before, change.after) if entry is not None]
    revisions = " → ".join(f"r{entry.revision}" for entry in entries)
    head: list[Part] = [
        _MARKS[_kind(change)],
        (revisions, "cyan"),
        visible(str(Scope(change.scope, change.scope_id))),
        (visible(change.key), "bold"),
    ]
    before, after = _side(change.before), _side(change.after)
    if _text(before) == _text(after):
        head.append(("(the same value, until another time)", "dim"))
    show_sides(head, before, after, output)


def _side(entry: Entry | None) -> Side | None:
    return None if entry is None else Side(entry.value)


def _inline(before: Side | None, after: Side | None) -> Iterator[Part]:
    if before is not None:
        yield _short(before), "red"
    if before is not None and after is not None:
        yield "→", "dim"
    if after is not None:
        yield _short(after), "green"


def _short(side: Side) -> str:
    return "deleted" if side.deleted else shortened(side.value, _INLINE)


def _lines(before: str | None, after: str | None) -> Iterator[tuple[str, str]]:
    """The lines that differ with those around them, each with its style."""
    styles = {"+": "green", "-": "red", "@": "dim"}
    old, new = ([] if text is None else text.splitlines() for text in (before, after))
    for number, line in enumerate(difflib.unified_diff(old, new, n=_CONTEXT, lineterm="")):
        if number < 3:  # names of files, of which there are none, and where the first part is
            continue
        yield styles.get(line[:1], ""), "…" if line.startswith("@") else line


def _text(side: Side | None) -> str | None:
    if side is None or side.deleted:
        return None
    return orjson.dumps(side.value, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode()
