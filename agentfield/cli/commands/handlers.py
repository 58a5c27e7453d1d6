"""``handlers``: which handlers there are on the server, and forgetting one."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from agentfield.agent.reasoner import check_name
from agentfield.amount import number_of
from agentfield.cli.confirming import confirmed, yes_option
from agentfield.cli.connecting import connected
from agentfield.cli.ending import DONE, FAILED
from agentfield.cli.invocation import Invocation, command, group
from agentfield.cli.output import Output, age, visible
from agentfield.cli.surveying import Survey, Surveyed, survey
from agentfield.cli.waiting import wait
from agentfield.errors import AgentFieldError, InvalidInputError, NotFoundError
from agentfield.fabric.consumers.durables import Durable, forget


@command("list")
def list_command(invocation: Invocation) -> None:
    """List every handler that has ever run, with how far behind it is.

    Of each handler: the patterns that it was last declared for, how many instances run it, how many events it is
    behind, how long ago it last got on, and how many of its events are dead letters. An orphan is a handler that its
    agent's code has no more, or that nobody has served for long.
    """
    output = invocation.output
    found = wait(_look(invocation))
    if output.as_json:
        for handler in found.handlers:
            output.object(handler.fields())
    elif found.handlers:
        _print(found.handlers, output)
    else:
        output.note("no handlers yet")


async def _look(invocation: Invocation) -> Survey:
    async with connected(invocation) as fabric:
        return await survey(fabric.connection, fabric.topology, patience=invocation.patience)


def _last(durable: Durable, now: float) -> str:
    """How long ago it last got on; a server that was restarted since does not know."""
    if durable.last_active is None:
        return "?" if durable.floor else "never"
    return age(now - durable.last_active.timestamp())


def _print(handlers: Sequence[Surveyed], output: Output) -> None:
    now = time.time()
    columns = ("handler", "patterns", "served", "behind", "last", "dead")
    rows = [
        (
            handler.name,
            visible(" ".join(handler.durable.patterns)) or "-",
            str(handler.instances) if handler.instances or not handler.is_served else "yes",
            f"{handler.durable.lag:,}",
            _last(handler.durable, now),
            str(handler.letters),
        )
        for handler in handlers
    ]
    output.table(columns, rows, right=("served", "behind", "last", "dead"), shrink="patterns")
    for handler in handlers:
        if handler.orphan is not None:
            output.line(("orphan:", "yellow"), f"{handler.name}: {handler.orphan}")
            output.line("        `agentfield handlers remove", f"{handler.name}` forgets it")


@command("remove")
@click.argument("handler", metavar="AGENT.HANDLER")
@click.option("--force", is_flag=True, help="Even if it is served; its instances then make it again where it was.")
@yes_option
def remove_command(invocation: Invocation, handler: str, force: bool, yes: bool) -> int:
    """Forget a handler: how far it has come, and what it has not handled.

    For one that is not coming back, because it was renamed or removed. Refused while an instance serves it. Events and
    dead letters stay. Should it come back, it begins anew, where start= says.
    """
    agent, dot, name = handler.partition(".")
    if not dot:
        raise InvalidInputError(f"{handler!r} is not of the form AGENT.HANDLER")
    return wait(_remove(invocation, check_name(agent, what="agent"), check_name(name, what="handler"), force, yes))


async def _remove(invocation: Invocation, agent: str, name: str, force: bool, yes: bool) -> int:
    output = invocation.output
    async with connected(invocation) as fabric:
        handlers = (await survey(fabric.connection, fabric.topology, patience=invocation.patience)).handlers
        found = next((each for each in handlers if each.name == f"{agent}.{name}"), None)
        if found is None:
            raise NotFoundError(f"there is no handler {agent}.{name}: `agentfield handlers list` shows those there are")
        if found.is_served and not force:
            raise AgentFieldError(f"{found.name} is served: stop {agent}, or take the handler out of its code first")
        what = _unhandled(found.durable.lag)
        if not confirmed(f"Forget {found.name}? Its place in the log goes; {what}.", yes=yes):
            output.note("nothing was removed")
            return FAILED
        await forget(fabric.connection, fabric.log.stream, agent, name, patience=invocation.patience)
    if output.as_json:
        output.object({"agent": agent, "handler": name, "removed": True, "unhandled": found.durable.lag})
        return DONE
    output.text(f"forgot {found.name}: {what}")
    if found.letters:
        output.note(f"its dead letters stay: `agentfield deadletters drop --all --agent {agent} --handler {name}`")
    return DONE


def _unhandled(lag: int) -> str:
    if not lag:
        return "it had handled all its events"
    return f"{number_of(lag, 'event')} that it has not handled will never be"


handlers_command = group(
    "handlers",
    list_command,
    remove_command,
    help="""Show the handlers there are, and forget those that are gone.

    A handler has its place in the log kept on the server, under its agent's name and its own, so that it goes on where
    it was. The place stays when the handler is renamed or removed from the code, until it is removed here.""",
)
