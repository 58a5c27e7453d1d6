"""The demo: a support desk of nine agents, each a process of its own, that share memory on a server of their own.

It needs nothing but the installed package, touches nothing of the user's, and leaves nothing behind, however it ends;
with ``--keep`` its server goes on, so that one can look around in what happened.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from agentfield import Agent, AgentFieldError, AgentUnavailableError, NotFoundError
from agentfield.local import ensure_server, stop_server
from examples.support.endings import Endings
from examples.support.feed import following
from examples.support.processes import COMMAND, AgentProcess, agents_running, elsewhere, environment_for
from examples.support.scenario import play
from examples.support.screen import Screen

STAND_IN: Final = "examples.stand_in:answer"
PATIENCE: Final = 60.0
"""Seconds that the run may take; it takes a few."""
PATIENCE_WITH_A_MODEL: Final = 600.0


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.support.demo", description="Run the support desk.")
    parser.add_argument("--keep", action="store_true", help="leave the server and its data when the demo ends")
    keep: bool = parser.parse_args().keep
    endings = Endings()
    screen = Screen()
    began = time.monotonic()
    try:
        with _home(endings, keep=keep) as home:
            _run(home, screen, endings)
            if keep:
                _say_how_to_look(screen, home)
    except KeyboardInterrupt:
        screen.say("\nInterrupted. The demo's processes and data are gone.")
        return 130
    except (AgentFieldError, RuntimeError) as error:
        screen.say(f"\nThe demo failed: {error}\nIts processes and data are gone.", "red")
        return 1
    if not keep:
        screen.say(f"Done in {time.monotonic() - began:.1f} s. The demo's processes and data are gone.")
        screen.say("To keep its data and look around in it:")
        screen.say(f"\n    {shlex.quote(os.path.relpath(sys.executable))} -m examples.support.demo --keep")
    return 0


def _run(home: Path, screen: Screen, endings: Endings) -> None:
    model = os.environ.get("AGENTFIELD_AI_MODEL", "").strip() or STAND_IN
    patience = PATIENCE if model == STAND_IN else PATIENCE_WITH_A_MODEL
    environment = environment_for(home, model)
    server = endings.complete(ensure_server(home))
    screen.say(f"Server  {server.url}: a nats-server {server.version} of the demo's own")
    screen.say(f"Model   {_about(model)}")
    with agents_running(environment, home, endings) as agents:
        endings.complete(_tell(server.url, environment, agents, screen, patience))
    screen.heading("What is in memory now")
    screen.command("ls", "ticket_1004_*", environment=environment)
    screen.command("ls", "--session", "ada", environment=environment)
    screen.command("ls", "--actor", "analytics-agent", environment=environment)
    screen.command("ls", "--global", environment=environment)
    screen.heading("How one key came to its value")
    screen.command("history", "support_trend", environment=environment)


def _about(model: str) -> str:
    if model != STAND_IN:
        return model
    return "a stand-in, not a model: the fixed rules of examples/stand_in.py. AGENTFIELD_AI_MODEL names a real one"


async def _tell(
    url: str, environment: dict[str, str], agents: Sequence[AgentProcess], screen: Screen, patience: float
) -> None:
    """Have it all happen, and show it."""
    began = time.monotonic()
    try:
        async with (
            asyncio.timeout(patience),
            Agent("support-desk", nats_url=url, namespace="agentfield") as desk,
            following(environment, screen) as feed,
        ):
            await _first_to_end(_all_answer(desk, agents), _all_alive(agents))
            await feed.ready()
            screen.say(f"Agents  {len(agents)}, each a process; all answer after {time.monotonic() - began:.1f} s")
            screen.say("\nEach line: revision, ← the one that led to it, who wrote, in which scope, key = value")
            await _first_to_end(play(desk, feed, screen), feed.follow(), _all_alive(agents))
    except TimeoutError:
        logs = "\n".join(f"{agent.name}: {agent.last_words()}" for agent in agents)
        raise RuntimeError(f"it was not through after {patience:g} s; the agents' last words:\n{logs}") from None


async def _first_to_end(*parts: Coroutine[Any, Any, None]) -> None:
    """Run these together until one returns or raises, and end the others."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _all_answer(desk: Agent, agents: Sequence[AgentProcess]) -> None:
    """Return when every agent can be called; by then its handlers miss nothing."""
    for agent in agents:
        while True:
            try:
                await desk.call(f"{agent.name}.are_you_there")
            except NotFoundError:
                break  # it is there, and says that it has no such reasoner
            except AgentUnavailableError:
                await asyncio.sleep(0.05)


async def _all_alive(agents: Sequence[AgentProcess]) -> None:
    """Raise RuntimeError as soon as a process has ended by itself."""
    while True:
        for agent in agents:
            agent.check()
        await asyncio.sleep(0.1)


def _say_how_to_look(screen: Screen, home: Path) -> None:
    agentfield = shlex.join([os.path.relpath(COMMAND[0]), *COMMAND[1:]])
    directory = shlex.quote(str(home))
    screen.say("The server goes on. To look around:\n", "bold")
    for name in elsewhere():
        screen.say(f"    unset {name}")
    for command in (
        f"export AGENTFIELD_HOME={directory}",
        f"{agentfield} status",
        f"{agentfield} ls",
        f"{agentfield} get support_trend --json",
        f"{agentfield} history 'ticket_1001_*'",
        f"{agentfield} tail --notes --from-start    # until Ctrl-C",
    ):
        screen.say(f"    {command}")
    screen.say("\nAnd to be done with it:\n", "bold")
    screen.say(f"    {agentfield} down && rm -r {directory}")


@contextmanager
def _home(endings: Endings, *, keep: bool) -> Iterator[Path]:
    """A directory for the demo's server, both gone after the block; after one that went well, kept if so wished."""
    home = Path(tempfile.mkdtemp(prefix="agentfield-demo-"))
    kept = False
    try:
        yield home
        kept = keep
    finally:
        if not kept:
            with endings.ignored():
                asyncio.run(stop_server(home))
                shutil.rmtree(home)


if __name__ == "__main__":
    sys.exit(main())
