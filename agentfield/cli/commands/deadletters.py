"""``deadletters``: what handlers have given up on, and what is to become of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import click
import orjson

from agentfield.amount import number_of
from agentfield.cli.confirming import confirmed, yes_option
from agentfield.cli.connecting import connected
from agentfield.cli.ending import DONE, FAILED, one_line
from agentfield.cli.invocation import Invocation, command, group
from agentfield.cli.kinds import Count
from agentfield.cli.letters import Choice, check_meant, choice_options, chosen, letter_of
from agentfield.cli.output import Output, age, moment, visible
from agentfield.cli.surveying import Surveyed, survey
from agentfield.cli.waiting import wait
from agentfield.errors import DecodeError
from agentfield.event import Event
from agentfield.fabric.fabric import Fabric
from agentfield.memory.previous import PreviousTable
from agentfield.memory.reacting.letters import Letter, request
from agentfield.memory.resolving import Resolver

_SHOWN_ERROR = 76
_LOOK = 0.1
"""Seconds between looks at whether a letter has been dealt with."""

_numbers = click.argument("numbers", metavar="[ID]...", nargs=-1, type=Count(min=1))
_every = click.option("--all", "every", is_flag=True, help="All there are, or all that the other options leave.")


@command("list")
@choice_options
def list_command(invocation: Invocation, choice: Choice) -> None:
    """List dead letters, the oldest first."""
    output = invocation.output

    async def look() -> list[Letter]:
        async with connected(invocation) as fabric:
            return [letter async for letter in choice.letters(fabric)]

    letters = wait(look())
    if output.as_json:
        for letter in letters:
            output.object(letter.fields())
    elif not letters:
        output.note("no dead letters" if choice.is_all else "no such dead letters")
    else:
        now = time.time()
        for letter in letters:
            _print_line(letter, now, output)


def _print_line(letter: Letter, now: float, output: Output) -> None:
    tries = number_of(letter.tries, "try", "tries")
    again = f", replay {letter.replays}" if letter.replays else ""
    output.line(
        (str(letter.number), "bold"),
        (f"{age(now - letter.timestamp.timestamp())} ago", "dim"),
        f"{letter.agent}.{letter.handler}",
        (visible(letter.key or "-"), "bold"),
        visible(_scope(letter)),
        (f"r{letter.revision or '-'}", "cyan"),
        (f"({tries}{again})", "dim"),
    )
    output.line("   ", (_error(letter, _SHOWN_ERROR), "red"))


@command("show")
@click.argument("number", metavar="ID", type=Count(min=1))
def show_command(invocation: Invocation, number: int) -> None:
    """Show a dead letter with its event and the traceback."""

    async def look() -> tuple[Letter, Event | None, str]:
        async with connected(invocation) as fabric:
            letter = await letter_of(fabric, number)
            return letter, *await _event(fabric, letter)

    letter, event, fault = wait(look())
    if invocation.json:
        fields: dict[str, Any] = {"event": event and event.model_dump(mode="json")}
        invocation.output.object(letter.fields() | fields | ({"fault": fault} if fault else {}))
    else:
        _print(letter, event, fault, invocation.output)


async def _event(fabric: Fabric, letter: Letter) -> tuple[Event | None, str]:
    """The event of a letter, or why it cannot be shown."""
    record = None if letter.revision is None else await fabric.log.at(letter.revision)
    if record is None:
        return None, "the log no longer holds the event"
    try:
        return await Resolver(fabric).event(record, await PreviousTable(fabric.log, ()).of(record)), ""
    except DecodeError as error:
        return None, str(error)


def _print(letter: Letter, event: Event | None, fault: str, output: Output) -> None:
    tries = number_of(letter.tries, "try", "tries")
    again = f", after {number_of(letter.replays, 'replay')}" if letter.replays else ""
    output.line("letter   ", (str(letter.number), "bold"), f"of {moment(letter.timestamp)}")
    output.line("handler  ", (f"{letter.agent}.{letter.handler}", "bold"), f"gave up after {tries}{again}")
    output.line(
        "event    ",
        f"revision {letter.revision or 'unknown'} of",
        visible(letter.key or "-"),
        "in",
        visible(_scope(letter)),
    )
    if event is None:
        output.line("         ", (one_line(fault), "yellow"))
    else:
        by = f" by {event.writer.agent}" if event.writer.agent else ""
        output.line("         ", f"{moment(event.timestamp)}{visible(by)}")
        output.line("before   ", (_json(event.previous_data), "dim") if event.previous_revision else ("nothing", "dim"))
        gone = "erased" if event.erased else event.reason or "deleted"
        has_value = event.operation == "set" and not event.erased
        output.line("data     ", (_json(event.data), "green") if has_value else (gone, "red"))
    output.line("error    ", (_error(letter, 10_000), "red"))
    if letter.traceback:
        output.text("")
        output.text(visible(letter.traceback.rstrip("\n")))


@command("replay")
@_numbers
@_every
@choice_options
@click.option("--wait", "waits", is_flag=True, help="Wait for the outcome, at most as long as --timeout says.")
def replay_command(invocation: Invocation, numbers: Sequence[int], every: bool, choice: Choice, waits: bool) -> int:
    """Have handlers handle the events of dead letters again.

    Give the numbers of letters, or --all. Each event comes to its handler as it was, in the order of the log; when no
    instance of the agent is running, as soon as one is. A letter goes when its event has been handled; if that fails
    again, a new one takes its place.
    """
    check_meant(numbers, every, choice)
    return wait(_replay(invocation, numbers, choice, waits=waits))


async def _replay(invocation: Invocation, numbers: Sequence[int], choice: Choice, *, waits: bool) -> int:
    output = invocation.output
    async with _chosen(invocation, numbers, choice) as (fabric, letters):
        if not letters:
            return DONE
        first = int((await fabric.log.state())["first_seq"])
        found = await survey(fabric.connection, fabric.topology, patience=invocation.patience)
        handlers = {(each.durable.agent, each.durable.handler): each for each in found.handlers}
        asked: list[Letter] = []
        for letter in letters:
            if (reason := _hopeless(letter, handlers, first)) is not None:
                output.note(f"letter {letter.number} stays: {reason}")
                continue
            await fabric.deadletters.ask_again(letter.agent, letter.handler, request(letter))
            asked.append(letter)
        if waits:
            return max(await _outcome(fabric, asked, invocation), FAILED if len(asked) < len(letters) else DONE)
    for letter in asked if output.as_json else ():
        output.object({"id": letter.number, "agent": letter.agent, "handler": letter.handler, "replay": "asked for"})
    for (agent, handler), count in _by_handler(asked).items() if not output.as_json else ():
        output.text(f"asked {agent}.{handler} to handle {number_of(count, 'event')} again")
        if not handlers[agent, handler].is_served:
            output.note(f"no instance of {agent} serves it now: it is done when one does")
    return DONE if len(asked) == len(letters) else FAILED


def _hopeless(letter: Letter, handlers: Mapping[tuple[str, str], Surveyed], first: int) -> str | None:
    if letter.revision is None:
        return "it tells of events that are gone, and of none that could be handled: drop it when you have read it"
    if letter.revision < first:
        return "the log no longer holds its event: drop it"
    if (letter.agent, letter.handler) not in handlers:
        return (
            f"nothing can be asked of {letter.agent}.{letter.handler}: serve it, if it was removed; if it has "
            'delivery="instance", there is no replay: drop the letter'
        )
    return None


async def _outcome(fabric: Fabric, asked: Sequence[Letter], invocation: Invocation) -> int:
    """Wait until each letter is gone, and say which came back."""
    output = invocation.output
    left = {letter.number: letter for letter in asked}
    deadline = time.monotonic() + invocation.patience
    while left and time.monotonic() < deadline:
        for number in list(left):
            if await fabric.deadletters.get(number) is None:
                del left[number]
        if left:
            await asyncio.sleep(_LOOK)
    last = max((letter.number for letter in asked), default=0)
    newer = [letter async for letter in Choice(None, None, None).letters(fabric) if letter.number > last]
    failed = {(each.agent, each.handler, each.event_id): each for each in newer if each.replays}
    code = DONE
    for letter in asked:
        again = failed.get((letter.agent, letter.handler, letter.event_id))
        outcome = "waiting" if letter.number in left else "handled" if again is None else "failed"
        code = code if outcome == "handled" else FAILED
        if output.as_json:
            output.object({"id": letter.number, "replay": outcome, "letter": again and again.number})
            continue
        what: list[Any] = [f"letter {letter.number}:", f"{letter.agent}.{letter.handler}"]
        if outcome == "handled":
            output.line(*what, ("handled", "green"), visible(letter.key or "-"))
        elif again is not None:
            output.line(*what, ("failed again", "red"), f"→ letter {again.number}: {_error(again, _SHOWN_ERROR)}")
        else:
            output.line(*what, ("not done yet", "yellow"))
    return code


@command("drop")
@_numbers
@_every
@choice_options
@yes_option
def drop_command(invocation: Invocation, numbers: Sequence[int], every: bool, choice: Choice, yes: bool) -> int:
    """Take dead letters away without handling their events.

    Give the numbers of letters, or --all. The events stay in the log; no handler will be given them again.
    """
    check_meant(numbers, every, choice)
    return wait(_drop(invocation, numbers, choice, yes=yes))


async def _drop(invocation: Invocation, numbers: Sequence[int], choice: Choice, *, yes: bool) -> int:
    output = invocation.output
    async with _chosen(invocation, numbers, choice) as (fabric, letters):
        if not letters:
            return DONE
        of = ", ".join(f"{count} of {agent}.{handler}" for (agent, handler), count in _by_handler(letters).items())
        what = number_of(len(letters), "dead letter")
        if not confirmed(f"Drop {what} ({of})? Their events will not be handled.", yes=yes):
            output.note("nothing was dropped")
            return FAILED
        for letter in letters:
            await fabric.deadletters.remove(letter.number)
            if output.as_json:
                output.object({"id": letter.number, "dropped": True})
    if not output.as_json:
        output.text(f"dropped {what}: {of}")
    return DONE


@asynccontextmanager
async def _chosen(
    invocation: Invocation, numbers: Sequence[int], choice: Choice
) -> AsyncIterator[tuple[Fabric, list[Letter]]]:
    """The letters that are meant; people are told if there are none."""
    async with connected(invocation) as fabric:
        letters = await chosen(fabric, numbers, choice)
        if not letters:
            invocation.output.note("no such dead letters")
        yield fabric, letters


deadletters_command = group(
    "deadletters",
    list_command,
    show_command,
    replay_command,
    drop_command,
    help="""Show, replay or drop events that handlers have given up on.

    When a handler has failed on an event for the last time, the event is put aside with the error, and the handler goes
    on with the next one. It stays there until somebody has it handled again, or drops it.""",
)


def _by_handler(letters: Sequence[Letter]) -> Counter[tuple[str, str]]:
    return Counter((letter.agent, letter.handler) for letter in letters)


def _scope(letter: Letter) -> str:
    if letter.scope is None or letter.scope == "global":
        return letter.scope or "-"
    return f"{letter.scope}:{letter.scope_id}"


def _error(letter: Letter, limit: int) -> str:
    text = one_line(f"{letter.error_type}: {letter.message}" if letter.message else letter.error_type)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _json(value: Any) -> str:
    return visible(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()).replace("\n", "\n           ")
