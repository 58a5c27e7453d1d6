"""``timeline`` and ``metrics``: what the projections that ship have to say."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from agentfield.amount import number_of
from agentfield.cli.connecting import connected
from agentfield.cli.invocation import Invocation, command
from agentfield.cli.kinds import DURATION, POINT, Count, Point
from agentfield.cli.output import Output, Part, age, size, visible
from agentfield.cli.projecting import chosen_store, store_option
from agentfield.cli.scopes import scope_options
from agentfield.cli.waiting import wait
from agentfield.errors import InvalidInputError, NotFoundError
from agentfield.memory.addressing import AnyScope
from agentfield.pattern import Pattern
from agentfield.scope import Scope
from projections.metrics import Metrics, Summary, summarise
from projections.projection import Projection
from projections.runner import Runner
from projections.source import Source
from projections.stores import Directory
from projections.timeline import Moment, Question, Timeline, ask, instant
from projections.view import View

T = TypeVar("T")

_MANY = 20_000
"""Events to be read that are worth a word beforehand."""
_SHOWN_VALUE = 200

as_is_option = click.option("--as-is", is_flag=True, help="Ask the view as it is, without bringing it up to date.")


@command("timeline")
@click.argument("words", metavar="[WORD]...", nargs=-1)
@click.option("--agent", metavar="NAME", help="Written by this agent.")
@click.option("--execution", metavar="ID", help="Written in this execution.")
@click.option("--key", metavar="KEY_OR_PATTERN", help="Of this key, or of the keys that match.")
@click.option("--since", type=POINT, metavar="POINT", help="From this time (RFC 3339), age (15m, 2h) or revision on.")
@click.option("--until", type=POINT, metavar="POINT", help="Up to before this time or age, or up to this revision.")
@click.option("--limit", type=Count(min=1), default=50, show_default=True, metavar="N", help="So many.")
@click.option("--oldest", is_flag=True, help="The oldest ones, if there are more; else the newest.")
@as_is_option
@store_option
@scope_options
def timeline_command(
    invocation: Invocation,
    words: Sequence[str],
    agent: str | None,
    execution: str | None,
    key: str | None,
    since: Point | None,
    until: Point | None,
    limit: int,
    oldest: bool,
    as_is: bool,
    store: Path | None,
    scope: AnyScope | None,
) -> None:
    """Show who did what, by words, agent, execution, scope or time.

    One event a line, the newest last. All that is given must hold. A WORD is one of a key or a value; with * at its
    end, the beginning of one. The view is brought up to date first, which takes a while the first time.
    """
    if key is not None:
        Pattern.parse(key)
    question = Question(
        words=words,
        agent=agent,
        execution=execution,
        scope=scope,
        key=key,
        since=_moment(since),
        until=_moment(until),
        limit=limit,
        oldest_first=oldest,
    )
    chosen = chosen_store(invocation, store)
    found = wait(_asked(invocation, Timeline(), chosen, as_is, lambda view: ask(view, question)))
    for each in found:
        _print(each, invocation.output)
    if not found:
        invocation.output.note("no event is like that")


@command("metrics")
@click.option("--since", type=DURATION, metavar="TIME", default=3600.0, help="How far back rates go.  [default: 1h]")
@click.option("--top", type=Count(min=1), default=10, show_default=True, metavar="N", help="So many of each.")
@as_is_option
@store_option
def metrics_command(invocation: Invocation, since: float, top: int, as_is: bool, store: Path | None) -> None:
    """Show how much is written, by whom, and which keys are hot.

    Rates are those of the time --since; keys and writers those of all time. The view is brought up to date first.
    """
    start = _moment(timedelta(seconds=since))
    assert isinstance(start, datetime)
    chosen = chosen_store(invocation, store)
    minute = f"{instant(start)[:16]}Z"
    summary = wait(_asked(invocation, Metrics(), chosen, as_is, lambda view: summarise(view, since=minute, top=top)))
    if invocation.json:
        for name, rows in summary._asdict().items():
            for row in rows:
                invocation.output.object({"metric": name, **row._asdict()})
    else:
        _print_summary(summary, since / 60, invocation.output)


async def _asked(
    invocation: Invocation, projection: Projection, store: Directory, as_is: bool, question: Callable[[Any], T]
) -> T:
    """The answer of a view that is brought up to date first, unless it is to be asked as it is."""
    if not as_is:
        async with connected(invocation) as fabric:
            source = Source(fabric)
            runner = Runner(source, projection, store)
            live = await store.live(projection.name)
            behind = await source.last() - (0 if live is None else (await _closing(live)))
            if behind > _MANY:
                invocation.output.note(f"bringing the view up to date: {number_of(behind, 'event')}")
            await runner.catch_up()
    view = await store.live(projection.name)
    if view is None:
        raise NotFoundError(f"there is no {projection.name} in {store.root} yet: leave --as-is out")
    try:
        async with view.frozen() as moment:
            return await view.call(question, moment.content)
    finally:
        await view.aclose()


async def _closing(view: View) -> int:
    try:
        return (await view.head()).checkpoint
    finally:
        await view.aclose()


def _moment(point: Point | None) -> datetime | int | None:
    if not isinstance(point, timedelta):
        return point
    try:
        return datetime.now(UTC) - point
    except OverflowError:
        raise InvalidInputError(f"{point} ago is before time began: give a shorter age, or leave it out") from None


def _print(moment: Moment, output: Output) -> None:
    if output.as_json:
        complete = moment.value is not None and len(moment.value) == moment.size
        value = json.loads(moment.value) if complete and moment.value is not None else moment.value
        output.object({**moment._asdict(), "value": value, "complete": complete or moment.value is None})
        return
    change: Part = (moment.reason or ("erased" if moment.operation == "set" else "deleted"), "red")
    if moment.value is not None:
        text = visible(moment.value)
        change = (text if len(text) <= _SHOWN_VALUE else f"{text[: _SHOWN_VALUE - 1]}…", "green")
    parts: list[Part] = [
        (f"{moment.at[:23]}Z", "dim"),
        (f"r{moment.revision}", "cyan"),
        visible(_scope(moment.scope, moment.scope_id)),
        (visible(moment.key), "bold"),
        change,
    ]
    if moment.agent is not None:
        parts += [("by", "dim"), visible(moment.agent)]
    if moment.execution_id is not None:
        parts += [("in", "dim"), visible(moment.execution_id)]
    output.line(*parts)


def _print_summary(summary: Summary, minutes: float, output: Output) -> None:
    rates = [
        (row.scope, str(row.sets), str(row.deletes), size(row.bytes), f"{(row.sets + row.deletes) / minutes:.1f}")
        for row in summary.rates
    ]
    keys = [
        (
            visible(row.key),
            visible(_scope(row.scope, row.scope_id)),
            str(row.writes),
            size(row.bytes),
            "deleted" if row.size is None else size(row.size),
            _age(row.at),
        )
        for row in summary.keys
    ]
    writers = [(visible(row.agent) or "-", str(row.writes), size(row.bytes), _age(row.at)) for row in summary.writers]
    output.table(("scope", "sets", "deletes", "written", "a minute"), rates, right=("sets", "deletes", "a minute"))
    output.text("")
    output.table(("key", "scope", "writes", "written", "now", "age"), keys, right=("writes", "age"))
    output.text("")
    output.table(("writer", "writes", "written", "age"), writers, right=("writes", "age"))


def _scope(kind: str, id: str) -> str:
    return str(Scope.of(kind, id))


def _age(at: str) -> str:
    return age((datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds())
