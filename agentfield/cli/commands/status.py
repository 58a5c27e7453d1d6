"""``status``: what is there, without creating or changing anything."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from agentfield.cli.connecting import CLIENT_NAME, UNWELL, place, running_server, stream_info
from agentfield.cli.invocation import Invocation, command
from agentfield.cli.output import Output, moment, size
from agentfield.cli.waiting import wait
from agentfield.errors import UnavailableError
from agentfield.fabric.calling.micro import ServiceInfo, find_all
from agentfield.fabric.faults import Fault, error_of
from agentfield.fabric.jetstream import api
from agentfield.fabric.topology import StreamSpec, Topology, compare
from agentfield.fabric.wire.connection import Connection
from agentfield.local import Server


@command("status")
def status_command(invocation: Invocation) -> None:
    """Show the server, its streams and the agents that are alive.

    Starts and creates nothing. Fails if no server is running.
    """
    try:
        status, fault = wait(_look(invocation))
    except UnavailableError as error:
        if invocation.json:
            invocation.output.object({"running": False, "reason": str(error)})
        raise
    if invocation.json:
        invocation.output.object(status.fields(fault))
    else:
        _print(status, invocation.output)
    if fault is not None:
        raise UnavailableError(f"the server at {status.url} runs, but is not well: {fault}; {UNWELL}")


@dataclass(frozen=True)
class _Status:
    """What the server said."""

    url: str
    namespace: str
    server: Mapping[str, Any]
    store_bytes: int
    embedded: Server | None
    streams: Sequence[tuple[StreamSpec, Mapping[str, Any] | None]]
    agents: Sequence[ServiceInfo]

    def fields(self, fault: str | None) -> dict[str, Any]:
        """The status as JSON."""
        server = self.embedded
        return {
            "running": True,
            "url": self.url,
            "server": {
                "name": self.server.get("server_name"),
                "version": self.server.get("version"),
                "cluster": self.server.get("cluster"),
                "store_bytes": self.store_bytes,
                "fault": fault,
                "embedded": server
                and {
                    "pid": server.pid,
                    "data": str(server.store_dir),
                    "log": str(server.log_path),
                    "started_at": moment(server.started_at),
                },
            },
            "namespace": self.namespace,
            "streams": [
                {"name": spec.name, "purpose": spec.purpose, "exists": info is not None, **_facts(spec, info)}
                for spec, info in self.streams
            ],
            "agents": [
                {"name": name, "instances": len(group), "versions": versions, "reasoners": reasoners}
                for name, group, versions, reasoners in _grouped(self.agents)
            ],
        }


async def _look(invocation: Invocation) -> tuple[_Status, str | None]:
    url, namespace = place(invocation)
    embedded = None
    if url is None:
        embedded = await running_server()
        url = embedded.url
    fault = await asyncio.to_thread(embedded.fault) if embedded is not None else None
    connection = await Connection.open(url, namespace=namespace, name=CLIENT_NAME, timeout=invocation.connect_patience)
    try:
        return await _ask(connection, embedded, invocation.patience), fault
    finally:
        await connection.aclose()


async def _ask(connection: Connection, embedded: Server | None, patience: float) -> _Status:
    specs = Topology(connection.namespace).streams
    try:
        account, agents, *infos = await asyncio.gather(
            api(connection, "INFO", patience=patience),
            find_all(connection),
            *(stream_info(connection, spec.name, patience) for spec in specs),
        )
    except Fault as fault:
        raise error_of(fault, "asking for the status") from None
    return _Status(
        url=connection.url,
        namespace=connection.namespace,
        server=connection.server_info,
        store_bytes=int(account.get("storage", 0)),
        embedded=embedded,
        streams=list(zip(specs, infos, strict=True)),
        agents=agents,
    )


def _facts(spec: StreamSpec, info: Mapping[str, Any] | None) -> dict[str, Any]:
    if info is None:
        return {}
    state, config = info["state"], info["config"]
    return {
        "messages": state["messages"],
        "bytes": state["bytes"],
        "last_sequence": state["last_seq"],
        "consumers": state["consumer_count"],
        "replicas": config.get("num_replicas", 1),
        "drift": [str(drift) for drift in compare(spec, config)],
    }


def _grouped(agents: Sequence[ServiceInfo]) -> list[tuple[str, list[ServiceInfo], list[str], list[str]]]:
    """The instances by agent: its name, they, their versions, and what at least one of them can do."""
    groups = [(name, list(group)) for name, group in groupby(agents, lambda info: info.name)]
    return [
        (
            name,
            group,
            sorted({info.version for info in group}),
            sorted({endpoint.name for info in group for endpoint in info.endpoints}),
        )
        for name, group in groups
    ]


def _print(status: _Status, output: Output) -> None:
    server = status.embedded
    about = f"nats-server {status.server.get('version')}"
    about += "" if server is None else f", embedded, process {server.pid}"
    about += f", cluster {status.server['cluster']}" if status.server.get("cluster") else ""
    output.line("server    ", (status.url, "bold"), f"({about})")
    if server is not None:
        output.line("data      ", str(server.store_dir))
        output.line("log       ", str(server.log_path))
    output.line("stored    ", f"{size(status.store_bytes)}, all namespaces together")
    output.line("namespace ", (status.namespace, "bold"))
    output.text("")
    _print_streams(status.streams, output)
    output.text("")
    agents = _grouped(status.agents)
    if agents:
        rows = [
            (name, str(len(group)), ", ".join(versions), ", ".join(reasoners) or "-")
            for name, group, versions, reasoners in agents
        ]
        output.table(("agent", "instances", "version", "reasoners"), rows, right=("instances",))
    else:
        output.text("no agents are running")


def _print_streams(streams: Sequence[tuple[StreamSpec, Mapping[str, Any] | None]], output: Output) -> None:
    if not any(info for _, info in streams):
        output.text("no streams yet: the first agent or command that connects creates them")
        return
    rows = []
    drifts: list[str] = []
    for spec, info in streams:
        facts = _facts(spec, info)
        if info is None:
            rows.append((spec.name, "missing", "-", "-"))
        else:
            rows.append((spec.name, f"{facts['messages']:,}", size(facts["bytes"]), str(facts["replicas"])))
            drifts += facts["drift"]
    output.table(("stream", "messages", "size", "replicas"), rows, right=("messages", "size", "replicas"))
    for drift in drifts:
        output.line("differs:", (drift, "yellow"))
