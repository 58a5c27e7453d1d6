"""``history`` and ``tail``: what happened, and what is happening."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import NoReturn

import click

from agentfield.cli.connecting import connected, without_beginning
from agentfield.cli.invocation import LOOKING_BACK, Invocation, command
from agentfield.cli.kinds import POINT, Count, Point
from agentfield.cli.logs import warn_on_stderr
from agentfield.cli.notes import Note, follow_notes
from agentfield.cli.output import Output, Part, moment, reader_gone, shortened, visible
from agentfield.cli.scopes import scope_options, to_read
from agentfield.cli.waiting import wait
from agentfield.errors import (
    HistoryTruncatedError,
    InvalidInputError,
    NotFoundError,
    ResyncRequired,
    UnavailableError,
)
from agentfield.event import Event
from agentfield.fabric.consumers.consuming import Start
from agentfield.fabric.fabric import Fabric
from agentfield.memory.addressing import AnyScope
from agentfield.memory.history import check_writer, events_between, extent
from agentfield.memory.watch import CaughtUp, watching
from agentfield.naming import shown
from agentfield.pattern import Pattern
from agentfield.scope import Scope

_SHOWN_VALUE = 200
_LOOK = 1.0
"""Seconds between looks at whether a namespace is there by now."""


@command("history", takes=LOOKING_BACK)
@click.argument("pattern", metavar="[KEY_OR_PATTERN]", default="*")
@click.option("--since", type=POINT, metavar="POINT", help="From this time (RFC 3339), age (15m, 2h) or revision on.")
@click.option("--until", type=POINT, metavar="POINT", help="Up to before this time or age, or up to this revision.")
@click.option("--limit", type=Count(min=1), metavar="N", help="Stop after so many events.")
@click.option("--reverse", is_flag=True, help="The newest first.")
@click.option("--writer", metavar="NAME_OR_ID", help="Only what this agent, or this execution, wrote.")
@scope_options
def history_command(
    invocation: Invocation,
    pattern: str,
    since: Point | None,
    until: Point | None,
    limit: int | None,
    reverse: bool,
    writer: str | None,
    scope: AnyScope | None,
) -> None:
    """Show what happened to a key, or to every key of a pattern.

    One event a line, the newest last. Without a scope: in every scope there is.
    """
    parsed = Pattern.parse(pattern)
    check_writer(writer)
    output = invocation.output

    async def show() -> tuple[int, int]:
        count = 0
        async with connected(invocation) as fabric:
            part = await extent(fabric, resolved(since, fabric), resolved(until, fabric))
            async for event in events_between(
                fabric, [parsed], to_read(scope), part, reverse=reverse, limit=limit, writer=writer
            ):
                print_event(event, output)
                count += 1
        return count, part.start

    count, start = wait(show())
    if since is None and start > 1:  # there was more, and nobody here knows what
        if count == 0:
            raise HistoryTruncatedError(requested=1, first_available=start)
        if not (reverse and count == limit):
            output.note(without_beginning(start))
    elif count == 0:
        if since is not None or until is not None:
            by = "" if writer is None else f" by {shown(writer)}"
            output.note(f"no event of {shown(pattern)}{by} in that time")
        elif writer is not None:
            raise NotFoundError(f"{shown(writer)} has never written {shown(pattern)} there")
        elif parsed.is_literal:
            raise NotFoundError(f"nothing has ever happened to {shown(pattern)} there")
        else:
            output.note(f"no event of {shown(pattern)}")


@command("tail")
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1)
@click.option("--notes", is_flag=True, help="Show what agents note, too.")
@click.option("--from-start", is_flag=True, help="Begin with everything that has ever happened.")
@scope_options
def tail_command(
    invocation: Invocation, patterns: Sequence[str], notes: bool, from_start: bool, scope: AnyScope | None
) -> None:
    """Show changes as they happen, until Ctrl-C.

    One event a line, of the keys that match one of the patterns; without any, of all. Without a scope: in every scope
    there is. When the server is away, it waits and misses nothing.
    """
    parsed = [Pattern.parse(text) for text in patterns or ["*"]]
    warn_on_stderr()
    wait(_tail(invocation, parsed, to_read(scope), notes=notes, from_start=from_start))


async def _tail(
    invocation: Invocation, patterns: Sequence[Pattern], scopes: Sequence[AnyScope], *, notes: bool, from_start: bool
) -> None:
    output = invocation.output
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        tasks.create_task(_until_reader_gone())
        try:
            fabric = await stack.enter_async_context(connected(invocation))
        except NotFoundError as error:
            output.note(f"{error}; waiting for it, and showing all that happens then")
            fabric = await _once_there(invocation, stack)
            from_start = True
        noting = asyncio.Event()

        async def events() -> None:
            async for item in _whatever_is_left(fabric, patterns, scopes, "all" if from_start else "new", output):
                if isinstance(item, CaughtUp):
                    await noting.wait()
                    output.note(
                        f"following {fabric.topology.namespace} after revision {item.revision}; Ctrl-C ends this"
                    )
                else:
                    print_event(item, output, flush=True)

        async def remarks() -> None:
            async for note in follow_notes(fabric, from_start=from_start, ready=noting.set):
                _print_note(note, output)

        tasks.create_task(events())
        if notes:
            tasks.create_task(remarks())
        else:
            noting.set()


async def _once_there(invocation: Invocation, stack: AsyncExitStack) -> Fabric:
    """The fabric of a namespace as soon as somebody has made that."""
    while True:
        await asyncio.sleep(_LOOK)
        with suppress(NotFoundError, UnavailableError):
            return await stack.enter_async_context(connected(invocation))


async def _whatever_is_left(
    fabric: Fabric, patterns: Sequence[Pattern], scopes: Sequence[AnyScope], start: Start, output: Output
) -> AsyncIterator[Event | CaughtUp]:
    """What a watch gives; where the log has been shortened, people are told, and it goes on with what is there."""
    while True:
        try:
            async for item in watching(fabric, patterns, scopes, start):
                yield item
        except ResyncRequired as gap:
            start = gap.first_available
            output.note(f"what happened from revision {gap.requested} to {start - 1} is gone: the log was shortened")


async def _until_reader_gone() -> NoReturn:
    await reader_gone()
    raise BrokenPipeError


def resolved(point: Point | None, fabric: Fabric) -> datetime | int | None:
    """The point with ages counted back from now, by the server's clock."""
    if not isinstance(point, timedelta):
        return point
    now = datetime.fromtimestamp(fabric.log.now() / 1e9, UTC)
    try:
        return now - point
    except OverflowError:
        raise InvalidInputError(f"{point} ago is before time began: give a shorter age, or leave it out") from None


def print_event(event: Event, output: Output, *, flush: bool = False) -> None:
    """Print an event on a line."""
    if output.as_json:
        output.object(event.model_dump(mode="json"), flush=flush)
        return
    scope = Scope(event.scope, event.scope_id)
    parts: list[Part] = [
        (moment(event.timestamp), "dim"),
        (f"r{event.revision}", "cyan"),
        visible(str(scope)),
        (event.key, "bold"),
        *_change(event),
    ]
    if event.writer.agent is not None:
        parts += [("by", "dim"), event.writer.agent]
    if (first := event.replayed_from) is not None:
        parts += [(f"(replayed: {first.namespace} r{first.revision}, {moment(first.timestamp)})", "dim")]
    output.line(*parts, flush=flush)


def _change(event: Event) -> list[Part]:
    before: list[Part] = []
    if event.previous_data is not None:
        before = [(shortened(event.previous_data, _SHOWN_VALUE), "dim"), ("→", "dim")]
    if event.erased:
        return [*before, ("erased", "red")]
    if event.operation == "set":
        return [*before, (shortened(event.data, _SHOWN_VALUE), "green")]
    return [*before, ("deleted" if event.reason is None else event.reason, "red")]


def _print_note(note: Note, output: Output) -> None:
    if output.as_json:
        output.object(note.fields(), flush=True)
        return
    tags: list[Part] = [(" ".join(f"#{visible(tag)}" for tag in note.tags), "dim")] if note.tags else []
    text = visible(note.text).replace("\n", "\\n")
    output.line((moment(note.timestamp), "dim"), ("note", "cyan"), (note.agent, "bold"), text, *tags, flush=True)
