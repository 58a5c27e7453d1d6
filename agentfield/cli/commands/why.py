"""``why``: from a value back to what led to it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

import click

from agentfield.cli.connecting import connected
from agentfield.cli.invocation import LOOKING_BACK, Invocation, command
from agentfield.cli.kinds import Count
from agentfield.cli.output import Output, moment, shortened, visible
from agentfield.cli.scopes import choices, named, scope_options, to_read
from agentfield.cli.waiting import wait
from agentfield.codec import Record
from agentfield.errors import DecodeError, InvalidInputError, NotFoundError
from agentfield.event import Event
from agentfield.fabric.fabric import Fabric
from agentfield.key import check_key
from agentfield.memory.addressing import AnyScope
from agentfield.memory.causes import Origin, chain
from agentfield.memory.encrypting import known
from agentfield.memory.state import is_live
from agentfield.naming import shown
from agentfield.pattern import Pattern
from agentfield.scope import Scope

_WIDTH: Final = 80
_SHORTEST_VALUE: Final = 20
_BAR: Final = "│ "
_FIRM: Final = "\N{NO-BREAK SPACE}"
"""A space at which no line is folded."""
_OTHERS: Final = {"previous_data", "previous_revision"}
"""Fields of an event that are about another one, which is not looked up here."""


@command("why", takes=LOOKING_BACK)
@click.argument("key")
@click.option("--revision", type=Count(min=1), metavar="N", help="Start from this event, not from the last.")
@scope_options
def why_command(invocation: Invocation, key: str, revision: int | None, scope: AnyScope | None) -> None:
    """Show what led to a value, back to the root.

    First the key's last event: when it was written, by which reasoner or handler, in which execution, and by which
    calls that one came to run. Then the event that had started the handler it all began with, likewise, and so on. The
    last line says where the chain ends, and why. With --json, one object an event, and one that says where it ends.
    """
    check_key(key)
    output = invocation.output

    async def show() -> None:
        async with connected(invocation) as fabric:
            record = await (_last(fabric, key, scope) if revision is None else _at(fabric, key, revision, scope))
            async for link in chain(fabric, record):
                if output.as_json:
                    output.object(_fields(link))
                else:
                    _print(link, output)

    wait(show())


async def _last(fabric: Fabric, key: str, scope: AnyScope | None) -> Record:
    """The key's last event in the one scope that is meant; where it has a value in just one, that one."""
    pattern = Pattern.parse(key)
    found = [
        record
        async for record in fabric.log.current(fabric.subjects.filters([pattern], to_read(scope)))
        if fabric.subjects.parse(record.subject)[1] == key
    ]
    candidates = [record for record in found if await _has_value(record, fabric)] or found
    if not candidates:
        raise NotFoundError(f"nothing has ever happened to {shown(key)} there")
    if len(candidates) > 1:
        scopes = [fabric.subjects.parse(record.subject)[0] for record in candidates]
        raise InvalidInputError(f"{shown(key)} is in {len(scopes)} scopes: choose one with {choices(scopes)}")
    return candidates[0]


async def _has_value(record: Record, fabric: Fabric) -> bool:
    try:
        return is_live(await known(fabric, record), fabric.log.now())
    except DecodeError:
        return True  # something is there, whoever wrote it


async def _at(fabric: Fabric, key: str, revision: int, scope: AnyScope | None) -> Record:
    """The event of that revision, if it is the key's."""
    record = await fabric.log.at(revision)
    if record is None:
        raise NotFoundError(f"the log holds no revision {revision}")
    try:
        where, found = fabric.subjects.parse(record.subject)
    except InvalidInputError:
        raise NotFoundError(f"revision {revision} is no event of a key") from None
    kind, id = scope or (where.kind, None)
    if found != key or kind != where.kind or id not in (None, where.id):
        raise NotFoundError(f"revision {revision} is an event of {shown(found)} in {named(where)}")
    return record


def _fields(link: Event | Origin) -> dict[str, object]:
    if isinstance(link, Event):
        return link.model_dump(mode="json", exclude=_OTHERS)
    return {"end": link.end, "revision": link.revision, "reason": link.text}


def _print(link: Event | Origin, output: Output) -> None:
    """An event as a line that says what, and lines below it that say how; the end as the last line of them."""
    if isinstance(link, Origin):
        output.line(*[("\n".join(_folded(f"└ the chain ends here: {visible(link.text)}", "  ")), "dim")])
        return
    output.line((visible(link.key), "bold"), _happened(link))
    for text in _details(link):
        for line in _folded(_BAR + text, f"{_BAR}  "):
            output.line((line, "dim"))


def _happened(event: Event) -> tuple[str, str]:
    if event.operation == "delete":
        return (f"was {'deleted' if event.reason is None else event.reason}", "red")
    if event.erased:
        return ("was set to what has been erased", "red")
    return (f"= {shortened(event.data, max(_SHORTEST_VALUE, _WIDTH - len(event.key) - 3))}", "green")


def _details(event: Event) -> Iterator[str]:
    writer = event.writer
    if (first := event.replayed_from) is not None:
        yield f"replayed: it was r{first.revision} of {first.namespace}, {moment(first.timestamp)}"
    yield f"r{event.revision}, {moment(event.timestamp)}, {visible(str(Scope(event.scope, event.scope_id)))}"
    if writer.agent is not None or writer.function is not None:
        who = ".".join(filter(None, (writer.agent, writer.function)))
        yield f"by {visible(who)}{_in_execution(writer.execution_id)}"
    yield from _surroundings(event)
    for called in reversed(writer.path):
        who, _, execution = called.partition("/")
        yield f"called by {visible(who) or 'a program'}{_in_execution(execution)}"
    if writer.cause is not None:
        yield "because of"


def _in_execution(id: str | None) -> str:
    return f", execution{_FIRM}{visible(id)}" if id else ""


def _surroundings(event: Event) -> Iterator[str]:
    """The workflow and session that it was written in, where its scope does not say so."""
    writer = event.writer
    around = [("workflow", writer.workflow_id), ("session", writer.session_id)]
    places = [f"{kind} {visible(id)}" for kind, id in around if id and (kind, id) != (event.scope, event.scope_id)]
    if places:
        yield f"in {', '.join(places)}"


def _folded(text: str, indent: str) -> Sequence[str]:
    """The text in lines that a terminal of 80 columns shows whole, unless a single word is longer."""
    lines = textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace(_FIRM, " ") for line in lines]
