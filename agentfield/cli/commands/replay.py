"""``replay``: a part of the past once more, printed, written into another namespace, or given to handlers."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Sequence
from contextlib import aclosing

import click

from agentfield.cli import ending
from agentfield.cli.commands.events import print_event, resolved
from agentfield.cli.connecting import connected, place
from agentfield.cli.invocation import LOOKING_BACK, Invocation, command
from agentfield.cli.kinds import DURATION, POINT, Point
from agentfield.cli.output import Output
from agentfield.cli.replaying import PACE, Show, Speed, check_pace, pace_of, progress
from agentfield.cli.scopes import option_for, scope_options, to_read
from agentfield.cli.waiting import wait
from agentfield.codec import Record
from agentfield.errors import AgentFieldError
from agentfield.fabric.fabric import Fabric
from agentfield.memory.addressing import AnyScope
from agentfield.memory.history import check_writer, extent
from agentfield.memory.resolving import Resolver
from agentfield.pattern import Pattern
from agentfield.replay.excerpt import Excerpt
from agentfield.replay.pacing import Pace
from agentfield.replay.republishing import Republishing
from agentfield.scope import Scope
from agentfield.subject import check_namespace


@command("replay", takes=LOOKING_BACK)
@click.argument("patterns", metavar="[KEY_OR_PATTERN]...", nargs=-1)
@click.option("--since", type=POINT, metavar="POINT", help="From this time (RFC 3339), age (15m, 2h) or revision on.")
@click.option("--until", type=POINT, metavar="POINT", help="Up to before this time or age, or up to this revision.")
@click.option("--writer", metavar="NAME_OR_ID", help="Only what this agent, execution, workflow or session wrote.")
@click.option(
    "--pace",
    "speed",
    type=PACE,
    default="none",
    metavar="PACE",
    help="none (at once, the default), original, a factor such as 10x, or step (Enter by Enter).",
)
@click.option("--max-pause", type=DURATION, metavar="TIME", help="With a pace: wait no longer between two events.")
@click.option("--into", metavar="NAMESPACE", help="Write the events into this namespace, which must be empty.")
@click.option("--append", is_flag=True, help="With --into: after what is there.")
@click.option(
    "--handlers",
    multiple=True,
    metavar="FILE_OR_MODULE[:HANDLER,…]",
    help="Run these handlers on the events, away from it all, and compare what they write with what was written.",
)
@click.option("--model", metavar="NAME", help="With --handlers: the model that they may ask; without, none.")
@click.option(
    "--ignore", multiple=True, metavar="PATTERN", help="With --handlers: do not compare keys that match; repeatable."
)
@scope_options
def replay_command(
    invocation: Invocation,
    patterns: Sequence[str],
    since: Point | None,
    until: Point | None,
    writer: str | None,
    speed: Speed,
    max_pause: float | None,
    into: str | None,
    append: bool,
    handlers: Sequence[str],
    model: str | None,
    ignore: Sequence[str],
    scope: AnyScope | None,
) -> None:
    """Print the past once more, copy it, or run handlers on it.

    Without patterns and scope: every event there is. Printed, it is one event a line, as by history. With --into, the
    events are written into another namespace, in their order; interrupted, the same command goes on where it stopped.
    With --handlers, today's code runs on the events in a namespace of its own that is removed afterwards, and where it
    writes something else than was recorded, the command shows that, and exits with 1.
    """
    context = click.get_current_context()
    parsed = [Pattern.parse(text) for text in patterns or ["*"]]
    check_writer(writer)
    if into is not None and handlers:
        raise click.UsageError("--into and --handlers: one replay does one of them", context)
    if append and into is None:
        raise click.UsageError("--append means nothing without --into", context)
    if not handlers and (model is not None or ignore):
        raise click.UsageError("--model and --ignore mean nothing without --handlers", context)
    ignored = [Pattern.parse(text) for text in ignore]
    check_pace(speed, max_pause)
    wanted = _Wanted(invocation, parsed, scope, since, until, writer, speed, max_pause)
    if handlers:
        from agentfield.cli.rehearsing import cast_of, rehearse  # it loads agents, and what serves them

        cast = cast_of(invocation, handlers, model, ignored)
        rehearsed = rehearse(invocation, wanted.excerpt, cast, wanted.pace, _shower, stepping=wanted.steps)
        if not wait(rehearsed):
            context.exit(ending.FAILED)
    elif into is not None:
        _check_target(invocation, into)
        wait(_republish(wanted, into, append))
    else:
        wait(_print(wanted, wanted.pace()))


class _Wanted:
    """The events that are meant, and how fast, as they were named on the command line."""

    def __init__(
        self,
        invocation: Invocation,
        patterns: Sequence[Pattern],
        scope: AnyScope | None,
        since: Point | None,
        until: Point | None,
        writer: str | None,
        speed: Speed,
        longest: float | None,
    ) -> None:
        self.invocation = invocation
        self.patterns = patterns
        self.scope = scope
        self.since = since
        self.until = until
        self.writer = writer
        self.speed = speed
        self.longest = longest

    @property
    def output(self) -> Output:
        return self.invocation.output

    @property
    def steps(self) -> bool:
        return self.speed == "step"

    def pace(self, show: Show | None = None) -> Pace:
        """How fast; ``show`` as for :func:`pace_of`."""
        return pace_of(self.speed, self.longest, show)

    async def excerpt(self, fabric: Fabric) -> Excerpt:
        part = await extent(fabric, resolved(self.since, fabric), resolved(self.until, fabric))
        if self.since is None and part.start > 1:
            self.output.note(
                f"what was before revision {part.start} is not in the log any more, and is left out: name the archive "
                "that holds it with --archive"
            )
        return Excerpt(self.patterns, to_read(self.scope), part, self.writer)

    def command(self, excerpt: Excerpt, into: str) -> str:
        """What goes on with a replay, with ages and times as the revisions that they meant."""
        invocation = self.invocation
        options = {
            "url": invocation.url,
            "namespace": invocation.namespace,
            "archive": invocation.archive,
            "timeout": _number(invocation.timeout),
            "since": str(excerpt.part.start),
            "until": str(excerpt.part.stop),
            "writer": self.writer,
            "into": into,
            "pace": None if self.speed == "none" else self.speed if self.speed == "step" else f"{_number(self.speed)}x",
            "max-pause": _number(self.longest),
        }
        words = ["agentfield", "replay", *(pattern.text for pattern in self.patterns)]
        words += [word for name, value in options.items() if value is not None for word in (f"--{name}", value)]
        named = "" if self.scope is None else f" {_named(self.scope)}"
        return shlex.join(words) + named


def _number(value: float | None) -> str | None:
    """As it can be typed: all of it, and without an exponent."""
    return None if value is None else f"{value:.9f}".rstrip("0").rstrip(".")


def _named(scope: AnyScope) -> str:
    kind, id = scope
    return f"--scope {kind}" if id is None else option_for(Scope(kind, id))


async def _print(wanted: _Wanted, pace: Pace) -> None:
    output = wanted.output
    count = 0
    stopped = False
    async with connected(wanted.invocation) as fabric:
        resolver = Resolver(fabric)
        excerpt = await wanted.excerpt(fabric)
        part = excerpt.part
        # Where the events themselves come to the screen, they show how far it is.
        with progress("replaying", part.start, part.stop, hidden=sys.stdout.isatty()) as advance:
            async with aclosing(excerpt.records(fabric)) as records:
                async for record, previous in records:
                    due = pace.is_due(record)
                    if not await pace.turn(record, previous):
                        stopped = True
                        break
                    print_event(await resolver.event(record, previous), output, flush=not due)
                    count += 1
                    advance(record.sequence, count)
    if not count and not stopped:
        output.note("there is no such event in that time")


def _check_target(invocation: Invocation, into: str) -> None:
    check_namespace(into)
    if into == place(invocation).namespace:
        raise click.UsageError(
            f"--into {into}: the events are in that namespace already; name another one", click.get_current_context()
        )


async def _republish(wanted: _Wanted, into: str, append: bool) -> None:
    invocation, output = wanted.invocation, wanted.output
    async with connected(invocation) as source:
        excerpt = await wanted.excerpt(source)
        pace = wanted.pace(_shower(source, output))
        async with connected(invocation, namespace=into, founds=True) as target:
            replay = Republishing(source, target, excerpt, append=append, pace=pace)
            resumed = await replay.begin()
            before = replay.stood
            if resumed and before.revision < excerpt.part.stop:
                output.note(f"going on after revision {before.revision}, where it was left")
            begin = max(excerpt.part.start, before.revision + 1)
            try:
                with progress(f"replaying into {into}", begin, excerpt.part.stop, hidden=wanted.steps) as advance:
                    async for stood in replay.run():
                        advance(stood.revision, stood.events)
            except (asyncio.CancelledError, AgentFieldError):
                _say_how_to_go_on(wanted, replay, excerpt, into)
                raise
    done = replay.stood
    if output.as_json:
        source_name = source.topology.namespace
        output.object(
            {
                "namespace": source_name,
                "into": into,
                "first": done.start,
                "revision": done.revision,
                "events": done.events,
                "written": done.events - before.events,
                "left_out": replay.left_out,
                "untimed": done.untimed,
                "complete": done.revision >= excerpt.part.stop,
            }
        )
    if done.revision < excerpt.part.stop:
        _say_how_to_go_on(wanted, replay, excerpt, into)
        return
    if output.as_json:
        return
    written = done.events - before.events
    output.note(f"replayed {_events(written)} into {into}" + (f", {_events(done.events)} in all" if resumed else ""))
    if replay.left_out:
        output.note(f"left out {_events(replay.left_out)} that {into} held already")
    if done.untimed and written:
        values = "1 value" if done.untimed == 1 else f"{done.untimed:,} values"
        output.note(
            f"{values} had a ttl that is over by now: in {into} nothing but a recorded event ends them; what they were "
            "written with is in replayed_from"
        )


def _say_how_to_go_on(wanted: _Wanted, replay: Republishing, excerpt: Excerpt, into: str) -> None:
    stood = replay.stood
    if stood.revision < stood.start:
        return  # nothing was written
    wanted.output.note(
        f"stopped: {into} holds {_events(stood.events)}, up to revision {stood.revision} of {excerpt.part.stop}; "
        f"to go on:\n  {wanted.command(excerpt, into)}"
    )


def _shower(fabric: Fabric, output: Output) -> Show:
    """Prints events where they come one after the other."""
    resolver = Resolver(fabric)

    async def show(record: Record, previous: Record | None) -> None:
        if not output.as_json:
            print_event(await resolver.event(record, previous), output, flush=True)

    return show


def _events(count: int) -> str:
    return "1 event" if count == 1 else f"{count:,} events"
