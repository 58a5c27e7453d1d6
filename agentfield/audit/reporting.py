"""A report: who wrote what, when and because of what, with the evidence, as one page that stands alone.

Owns: which events are in it, what is said of each, and the page. Values, keys and names are whatever somebody wrote:
they reach the page escaped, with control characters made visible, and the page forbids itself to load or run anything.
Needs the package Jinja2, which the extra ``audit`` brings.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from agentfield.audit.chain import Stored, digest_of
from agentfield.audit.checking import Checked, Span, check_live
from agentfield.audit.jsonl import time_text
from agentfield.audit.source import Live, place_of, record_of
from agentfield.codec import Record, decode_outline
from agentfield.errors import DecodeError, InvalidInputError
from agentfield.event import Event
from agentfield.fabric.fabric import Fabric
from agentfield.memory.addressing import AnyScope
from agentfield.memory.previous import PreviousTable
from agentfield.memory.resolving import Resolver
from agentfield.pattern import Pattern

MOST: Final = 5000
"""Events that one page may hold: a browser still shows it."""
_LINES: Final = 60
_LINE: Final = 400
_COMPARED: Final = 2000
"""Lines of a value, and characters of a line, that are shown; of the rest, only how much it is.
Values of more lines together are not compared."""


class Line(NamedTuple):
    """A line of a value: ``same``, ``before`` (it is gone) or ``after`` (it is new)."""

    kind: str
    text: str


@dataclass(slots=True)
class Row:
    """One event on the page."""

    revision: int
    time: str
    scope: str
    key: str
    operation: str
    writer: dict[str, str]
    """What is known of who wrote it, each under its name."""
    cause: int | str | None
    """The event that led to it: its revision if it is on the page, else its id."""
    id: str
    digest: str
    change: list[Line]
    cut: str = ""
    """What is not shown of the change, in words."""
    erased: bool = False
    """Whether the event's value was personal and has been erased."""
    fault: str = ""
    """Why the event cannot be read, if so."""
    state: str = "unsealed"
    """``verified``, ``unsealed``, ``unverified`` or ``tampered``."""
    seal: int = 0


@dataclass(slots=True)
class Report:
    """Everything that the page says."""

    title: str
    namespace: str
    stream: str
    made: str
    selected: list[tuple[str, str]]
    rows: list[Row]
    more: bool
    checked: Checked
    state: str
    statement: str
    """What was found, in one sentence; ``state`` is ``verified``, ``unsealed`` or ``tampered``."""
    remarks: list[str] = field(default_factory=list)
    begins: int = 0
    """The first revision that could be looked at, if what was asked for began before it and was trimmed; else 0."""

    @property
    def seals(self) -> list[Span]:
        """The seals that cover events of the page."""
        numbers = {row.seal for row in self.rows}
        return [span for span in self.checked.spans if span.number in numbers]

    @property
    def keys(self) -> int:
        """How many keys the events are of."""
        return len({(row.scope, row.key) for row in self.rows})


class Question(NamedTuple):
    """What a report is to be about: keys, scopes, writers, and revisions, both ends included."""

    pattern: Pattern
    scopes: Sequence[AnyScope]
    writer: str | None
    first: int | None
    last: int | None

    def concerns(self, event: Event) -> bool:
        """Whether the event's writer is meant: an agent by its name, an execution, workflow or session by its id."""
        by = event.writer
        names = (by.agent, by.execution_id, by.workflow_id, by.session_id)
        return self.writer is None or self.writer in names


async def collect(fabric: Fabric, question: Question, *, trusted: Collection[str], limit: int = MOST) -> Report:
    """The events that are asked for, oldest first, and what the seals over them say.

    ``verdict`` and ``remarks`` of the report are the caller's to word. Raises what reading raises.
    """
    live = Live(fabric)
    extent = await live.extent()
    first = max(extent.first, question.first or 1)
    last = extent.last if question.last is None else min(extent.last, question.last)
    filters = fabric.subjects.filters([question.pattern], question.scopes)
    resolver = Resolver(fabric)
    rows: list[Row] = []
    more = False
    table = PreviousTable(fabric.log, filters)
    table.complete = first <= 1
    if not table.complete:
        await table.fill(first - 1)
    async with aclosing(live.read(first, last, filters)) as messages:
        async for stored in messages:
            record = record_of(stored)
            place = place_of(fabric.subjects, stored.subject)
            if not question.pattern.matches(stored.subject if place is None else place[1]):
                continue
            previous = await table.of(record)
            table.advance(record)
            if not _is_meant(record, fabric, question):
                continue
            if len(rows) == limit:
                more = True
                break
            rows.append(await _row(resolver, fabric, stored, record, previous))
    shown = {row.id: row.revision for row in rows}
    for row in rows:
        if isinstance(row.cause, str):
            row.cause = shown.get(row.cause, row.cause)
    span = (rows[0].revision, rows[-1].revision) if rows else (first, last)
    checked = await check_live(fabric, trusted=trusted, start=span[0], stop=span[1])
    for row in rows:
        _judge(row, checked)
    return Report(
        title="",
        namespace=fabric.topology.namespace,
        stream=fabric.log.stream,
        made=time_text(fabric.log.now())[:19] + "Z",
        selected=[],
        rows=rows,
        more=more,
        checked=checked,
        state="",
        statement="",
        begins=extent.lacking(question.first),
    )


def _is_meant(record: Record, fabric: Fabric, question: Question) -> bool:
    """Whether the event's writer is asked for; nobody is known to have written what cannot be read."""
    if question.writer is None:
        return True
    try:
        return question.concerns(decode_outline(record, fabric.subjects))
    except DecodeError:
        return False


async def _row(resolver: Resolver, fabric: Fabric, stored: Stored, record: Record, previous: Record | None) -> Row:
    digest = digest_of(stored).hex()
    try:
        event = await resolver.event(record, previous)
    except DecodeError as error:
        scope, key = place_of(fabric.subjects, stored.subject) or ("no key's subject", stored.subject)
        return Row(
            revision=stored.sequence,
            time=time_text(stored.timestamp),
            scope=visible(str(scope)),
            key=visible(key),
            operation="cannot be read",
            writer={},
            cause=None,
            id="",
            digest=digest,
            change=[],
            fault=visible(str(error)),
        )
    change, cut = _change(event)
    by = event.writer
    writer = {
        name: visible(value)
        for name, value in (
            ("agent", by.agent),
            ("execution", by.execution_id),
            ("workflow", by.workflow_id),
            ("session", by.session_id),
            ("trace", by.trace),
        )
        if value is not None
    }
    scope_text = event.scope if event.scope == "global" else f"{event.scope}:{event.scope_id}"
    return Row(
        revision=event.revision,
        time=time_text(stored.timestamp),
        scope=visible(scope_text),
        key=visible(event.key),
        operation=event.reason or event.operation,
        erased=event.erased,
        writer=writer,
        cause=by.cause,
        id=event.id,
        digest=digest,
        change=change,
        cut=cut,
    )


def _change(event: Event) -> tuple[list[Line], str]:
    """What the event did to its key's value, line by line."""
    before = [] if event.previous_revision is None or event.previous_data is None else _lines(event.previous_data)
    after = _lines(event.data) if event.operation == "set" and not event.erased else []
    if len(before) + len(after) > _COMPARED:  # too much to compare: the beginning of each
        lines = [Line("before", line) for line in before[:_LINES]] + [Line("after", line) for line in after[:_LINES]]
        return lines, f"of {len(before):,} lines before and {len(after):,} after, the first {_LINES} each"
    lines = []
    one, other = ([line.removesuffix(",") for line in value] for value in (before, after))  # the last has no comma
    for tag, low, high, new_low, new_high in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if tag == "equal":
            lines += [Line("same", line) for line in after[new_low:new_high]]
        else:
            lines += [Line("before", line) for line in before[low:high]]
            lines += [Line("after", line) for line in after[new_low:new_high]]
    if len(lines) > _LINES:
        return lines[:_LINES], f"the first {_LINES} of {len(lines):,} lines"
    return lines, ""


def _lines(value: Any) -> list[str]:
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    return [
        visible(line if len(line) <= _LINE else f"{line[:_LINE]}… ({len(line):,} characters)")
        for line in text.split("\n")
    ]


def _judge(row: Row, checked: Checked) -> None:
    """What the seals say of an event."""
    verdict = checked.verdict
    span = next((span for span in checked.spans if span.first <= row.revision <= span.last), None)
    row.seal = 0 if span is None else span.number
    if verdict.finding is not None and verdict.finding.sequence == row.revision:
        row.state = "tampered"
    elif verdict.first <= row.revision <= verdict.last:
        row.state = "verified"
    elif span is not None or not verdict.intact:
        row.state = "unverified"


def page(report: Report) -> str:
    """The report as one HTML page. Raises InvalidInputError, with the remedy, if Jinja2 is missing."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise InvalidInputError('reports need the package Jinja2: `pip install "agentfield[audit]"`') from None
    environment = Environment(
        loader=PackageLoader("agentfield.audit", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(report=report, moment=time_text)


def visible(text: str) -> str:
    """The text with what cannot be seen, or would change how the rest is shown, written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
