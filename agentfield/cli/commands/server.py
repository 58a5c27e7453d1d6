"""``up`` and ``down``: the embedded server of this machine."""

from __future__ import annotations

import asyncio

from agentfield.cli.connecting import UNWELL
from agentfield.cli.invocation import Invocation, command
from agentfield.cli.output import moment
from agentfield.cli.waiting import wait
from agentfield.errors import UnavailableError
from agentfield.local import Server, ensure_server, stop_server
from agentfield.settings import Settings


@command("up", takes=("json",))
def up_command(invocation: Invocation) -> None:
    """Start the embedded server, if it is not running.

    It goes on in the background until `agentfield down`. Its data is kept in the user's data directory, or in
    $AGENTFIELD_HOME. Agents that name no server start it by themselves.
    """
    settings = Settings.load()

    async def up() -> tuple[Server, str | None]:
        server = await ensure_server(settings.home)
        return server, await asyncio.to_thread(server.fault)

    server, fault = wait(up())
    output = invocation.output
    if invocation.json:
        output.object(
            {
                "url": server.url,
                "started": server.started,
                "version": server.version,
                "pid": server.pid,
                "data": str(server.store_dir),
                "log": str(server.log_path),
                "started_at": moment(server.started_at),
                "fault": fault,
            }
        )
    else:
        state = "started" if server.started else "already running"
        output.line((server.url, "bold"), f"{state} (nats-server {server.version}, process {server.pid})")
        output.line("data ", str(server.store_dir))
        output.line("log  ", str(server.log_path))
    if settings.nats_url is not None:
        output.note(
            "AGENTFIELD_NATS_URL or NATS_URL names another server: agents and commands started here use that one, "
            "and not the embedded one"
        )
    if fault is not None:
        raise UnavailableError(f"the server at {server.url} runs, but is not well: {fault}; {UNWELL}")


@command("down", takes=("json",))
def down_command(invocation: Invocation) -> None:
    """Stop the embedded server.

    Its data stays, and nothing that was acknowledged is lost. Agents that are connected wait for its return.
    """
    settings = Settings.load()
    stopped = wait(stop_server(settings.home))
    if invocation.json:
        invocation.output.object({"stopped": stopped})
    else:
        invocation.output.text("stopped" if stopped else "no embedded server was running")
