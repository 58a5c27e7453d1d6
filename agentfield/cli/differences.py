"""How differences between two states of memory look: a line a key, and what is long line by line.

Pure, but for the printing. Must not know: where the differences come from.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

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


def _show(change: Change, output: Output) -> None:
    entries = [entry for entry in (change.before, change.after) if entry is not None]
    revisions = " → ".join(f"r{entry.revision}" for entry in entries)
    head: list[Part] = [
        _MARKS[_kind(change)],
        (revisions, "cyan"),
        visible(str(Scope(change.scope, change.scope_id))),
        (visible(change.key), "bold"),
    ]
    before, after = _text(change.before), _text(change.after)
    texts = [text for text in (before, after) if text is not None]
    if before == after:
        head.append(("(the same value, until another time)", "dim"))
    if all(len(shortened(entry.value, _INLINE + 1)) <= _INLINE for entry in entries):
        output.line(*head, *_inline(change))
    elif any(len(text) > _COMPARED for text in texts):
        output.line(*head, " → ".join(f"({size(len(text.encode()))})" for text in texts))
    else:
        output.line(*head)
        lines = list(_lines(before, after))
        for style, line in lines[:_LINES]:
            output.line(("    " + visible(line), style))
        if len(lines) > _LINES:
            output.line((f"    … {number_of(len(lines) - _LINES, 'more line')}", "dim"))


def _inline(change: Change) -> Iterator[Part]:
    if change.before is not None:
        yield shortened(change.before.value, _INLINE), "red"
    if change.before is not None and change.after is not None:
        yield "→", "dim"
    if change.after is not None:
        yield shortened(change.after.value, _INLINE), "green"


def _lines(before: str | None, after: str | None) -> Iterator[tuple[str, str]]:
    """The lines that differ with those around them, each with its style."""
    styles = {"+": "green", "-": "red", "@": "dim"}
    old, new = ([] if text is None else text.splitlines() for text in (before, after))
    for number, line in enumerate(difflib.unified_diff(old, new, n=_CONTEXT, lineterm="")):
        if number < 3:  # names of files, of which there are none, and where the first part is
            continue
        yield styles.get(line[:1], ""), "…" if line.startswith("@") else line


def _text(entry: Entry | None) -> str | None:
    if entry is None:
        return None
    return orjson.dumps(entry.value, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode()
