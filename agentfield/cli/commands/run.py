"""``run``: agents of any number of files, served in one process."""

from __future__ import annotations

import asyncio
import importlib
import io
import sys
from collections.abc import Callable, Sequence

import click

from agentfield.agent.running import run
from agentfield.cli.invocation import Invocation, command
from agentfield.cli.loading import load_agents
from agentfield.cli.logs import show_life
from agentfield.settings import Settings
from agentfield.subject import check_namespace


@command("run", takes=("url", "namespace", "json"))
@click.argument("targets", metavar="FILE_OR_MODULE...", nargs=-1, required=True)
def run_command(invocation: Invocation, targets: Sequence[str]) -> None:
    """Serve every agent in the given files or modules.

    Each is imported as python would, and every Agent in it is served in this process until Ctrl-C or SIGTERM; then
    what was begun is finished. A second Ctrl-C ends at once. Notes and what happens to the agents are shown on stderr,
    with --json as objects on stdout. --url and --namespace are for agents that name none themselves.
    """
    if invocation.namespace is not None:
        check_namespace(invocation.namespace)
    Settings.override(nats_url=invocation.url, namespace=invocation.namespace)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what agents print is seen when they print it
    agents = load_agents(targets)
    show_life(as_json=invocation.json)
    run(agents, loop_factory=_loop_factory())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes uvloop's event loops where it is installed; None for asyncio's own."""
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
