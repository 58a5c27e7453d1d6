"""``replay --handlers``: handlers of today's code on events of the past, and how their writes differ.

Owns: which handlers are meant, the namespace they run in and its removal, and how a difference is shown. Must not know:
how handlers are run. Invariants: the namespace for the run is gone when this returns or raises, and if the process is
killed, it is marked as one that others may remove; nothing that the handlers' agents do by default reaches the recorded
one.
"""

from __future__ import annotations

import asyncio
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from agentfield.agent import Agent
from agentfield.cli import ending
from agentfield.cli.connecting import connected, place, server_url
from agentfield.cli.invocation import Invocation
from agentfield.cli.loading import load_agents
from agentfield.cli.output import Output
from agentfield.cli.replaying import Show, progress
from agentfield.cli.runs import VERDICTS, fields_of, show_run, summary_of
from agentfield.errors import AgentFieldError, InvalidInputError
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.removal import remove
from agentfield.fabric.stages import Presence, remove_abandoned, stage_name
from agentfield.naming import shown
from agentfield.pattern import Pattern
from agentfield.replay.excerpt import Excerpt
from agentfield.replay.pacing import Pace
from agentfield.replay.rehearsing import Chosen, Rehearsing
from agentfield.settings import Settings
from agentfield.testing import Agents

_NAMES: Final = re.compile(r"[\w.,-]+", re.ASCII)


class Cast(NamedTuple):
    """The handlers that are meant, with their agents, and what they may ask."""

    agents: tuple[Agent, ...]
    chosen: tuple[Chosen, ...]
    model: str | None
    ignored: Sequence[Pattern]
    namespace: str
    """Where they are to run."""

    @property
    def known(self) -> list[str]:
        """All the handlers that these agents have."""
        return [f"{agent.name}.{each.name}" for agent in self.agents for each in agent.memory.registrations]


def cast_of(invocation: Invocation, texts: Sequence[str], model: str | None, ignored: Sequence[Pattern]) -> Cast:
    """Import what is named and find the handlers in it. Raises InvalidInputError, and what importing raises.

    From here on, this process's default namespace is the one of the run: whatever the code opens without naming a
    namespace is there.
    """
    where = place(invocation)
    invocation.url, invocation.namespace = where
    namespace = stage_name()
    Settings.override(nats_url=where.url, namespace=namespace)
    targets = [_split(text) for text in texts]
    agents = load_agents([target for target, _ in targets])
    found: dict[str, Chosen] = {}
    for target, names in targets:
        for each in _found(target, load_agents([target]), names, invocation.output):
            found[each.name] = each
    return Cast(tuple(agents), tuple(found.values()), model, ignored, namespace)


def _split(text: str) -> tuple[str, tuple[str, ...]]:
    """What is to be imported, and the names of handlers after the last colon."""
    target, colon, names = text.rpartition(":")
    if not colon or Path(text).is_file() or not _NAMES.fullmatch(names):
        return text, ()
    return target, tuple(filter(None, names.split(",")))


def _found(target: str, agents: Sequence[Agent], names: Sequence[str], output: Output) -> list[Chosen]:
    handlers = [Chosen(agent.name, agent.actor_id, each) for agent in agents for each in agent.memory.registrations]
    if not handlers:
        raise InvalidInputError(f"{target} declares no handler: there is nothing to run")
    apart = [each for each in handlers if each.registration.delivery == "instance"]
    if not names:
        if apart:
            left = ", ".join(each.name for each in apart)
            output.note(f"left out: {left}: every instance handles each event, and which one wrote is not recorded")
        if len(apart) == len(handlers):
            raise InvalidInputError(f"{target} declares no handler that shares its events: nothing can be compared")
        return [each for each in handlers if each not in apart]
    chosen = []
    for name in names:
        found = [each for each in handlers if name in (each.name, each.registration.name)]
        if not found:
            there = ", ".join(each.name for each in handlers)
            raise InvalidInputError(f"{target} has no handler {shown(name)}: there is {there}")
        if any(each in apart for each in found):
            raise InvalidInputError(
                f"handler {shown(name)} has delivery='instance': every instance handles each event, and which one "
                "wrote is not recorded, so it cannot be compared"
            )
        chosen += found
    return chosen


async def rehearse(
    invocation: Invocation,
    excerpt_in: Callable[[Fabric], Awaitable[Excerpt]],
    cast: Cast,
    pace_in: Callable[[Show], Pace],
    shower: Callable[[Fabric, Output], Show],
    *,
    stepping: bool,
) -> bool:
    """Run the handlers, show how they differ, and say whether nothing differs.

    SIGTERM, and a terminal that is closed, end it as Ctrl-C does, so that nothing is left behind. What others have left
    that were killed goes first.
    """
    output = invocation.output
    async with AsyncExitStack() as stack:
        stack.enter_context(_ended_by_signals())
        source = await stack.enter_async_context(connected(invocation))
        excerpt = await excerpt_in(source)
        with suppress(AgentFieldError):  # to look for them may be forbidden, and this run does not need it
            for name in await remove_abandoned(source.connection):
                output.note(f"removed namespace {name}: a replay that was killed had left it")
        stage = await stack.enter_async_context(_stage(invocation, source, cast))
        rehearsing = Rehearsing(
            source,
            stage,
            excerpt,
            cast.chosen,
            known=cast.known,
            ignored=cast.ignored,
            pace=pace_in(shower(source, output)),
            max_depth=Settings.load().max_depth,
        )
        await stack.enter_async_context(_present(await server_url(invocation, invocation.url), cast))
        counts = await _go_through(source, rehearsing, excerpt, output, stepping=stepping)
        unknown = rehearsing.unknown
    for handler, number in sorted(unknown.items()):
        output.note(f"not compared: {number:,} writes of {handler}, which is not in the code any more")
    return counts["differing runs"] == 0


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    told: list[int] = []

    def end(code: int) -> None:
        told.append(code)
        task.cancel()

    ends = {signal.SIGTERM: ending.TERMINATED, signal.SIGHUP: ending.HUNG_UP}
    heard = [number for number in ends if signal.getsignal(number) is not signal.SIG_IGN]  # as with nohup
    for number in heard:
        loop.add_signal_handler(number, end, ends[number])
    try:
        yield
    except asyncio.CancelledError:
        if told:
            raise SystemExit(told[0]) from None
        raise
    finally:
        for number in heard:
            loop.remove_signal_handler(number)


async def _go_through(
    source: Fabric, rehearsing: Rehearsing, excerpt: Excerpt, output: Output, *, stepping: bool
) -> Counter[str]:
    part = excerpt.part
    counts: Counter[str] = Counter()
    end = int((await source.log.state())["last_seq"])
    with progress("looking for what was written", part.start, end) as advance:
        seen = 0
        async for revision in rehearsing.look():
            seen += 1
            advance(revision, seen)
    with progress("setting the stage", 1, None, of="keys") as advance:
        async for count in rehearsing.load():
            advance(0, count)
    with progress("running handlers", part.start, rehearsing.last, of="runs", hidden=stepping) as advance:

        def reached(revision: int) -> None:
            advance(revision, counts["runs"])

        async with aclosing(rehearsing.runs(reached)) as runs:  # type: ignore[type-var]
            async for run in runs:
                counts["runs"] += 1
                counts["raised"] += run.error is not None
                counts["differing runs"] += run.differs
                counts.update(write.verdict for write in run.writes)
                if output.as_json or run.differs:
                    with advance.aside():
                        if output.as_json:
                            output.object(fields_of(run))
                        else:
                            show_run(run, output)
    if output.as_json:
        names = ("runs", "differing runs", "raised", *VERDICTS)
        output.object({"summary": {name.replace(" ", "_"): counts[name] for name in names}})
    else:
        output.note(summary_of(counts))
    return counts


@asynccontextmanager
async def _stage(invocation: Invocation, source: Fabric, cast: Cast) -> AsyncIterator[Fabric]:
    """The namespace to run in, empty, with the policy of the recorded one; removed at the end, whatever that is."""
    try:
        async with connected(invocation, namespace=cast.namespace, founds=True) as stage, Presence(stage):
            if source.keys.policies.known:
                await stage.keys.policies.set(source.keys.policies.known)
            yield stage
    finally:
        try:
            await remove(source.connection, cast.namespace)
        except AgentFieldError as error:
            invocation.output.note(
                f"namespace {cast.namespace}, in which the handlers ran, is still there; an agent that runs, or the "
                f"next such replay, will remove it: {error}"
            )


@asynccontextmanager
async def _present(url: str, cast: Cast) -> AsyncIterator[None]:
    """The agents on the stage: their reasoners can be called there; their handlers hear nothing by themselves."""
    declared = [(agent.memory.registrations, list(agent.memory.registrations)) for agent in cast.agents]
    for registrations, _ in declared:
        registrations.clear()
    try:
        agents = Agents(url, cast.namespace, _no_model)
        model = _no_model if cast.model is None else cast.model
        async with agents.run(*cast.agents, model=model):
            yield
    finally:
        for registrations, before in declared:
            registrations[:] = before


async def _no_model(messages: Any, *, schema: Any = None) -> str:
    raise InvalidInputError("a replay asks no model unless it is told which: add --model, such as my_answers:answer")
