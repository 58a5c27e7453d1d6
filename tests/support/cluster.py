"""Three servers that are one cluster: its state as its members report it, and its repair after a test hurt it."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support import monitor, streams
from tests.support.native import NatsServer
from tests.support.node import Node
from tests.support.ports import PortTakenError, free_ports
from tests.support.waiting import wait_until

SIZE = 3

# An election takes 4–5 s when the leader is killed and 8–9 s when it is paused; the rest is for a machine that is busy.
_FORMED_WITHIN = 60.0
_LEADER_WITHIN = 30.0
_FORM_TRIES = 5

_ROUTES = """
cluster {{
    name: tests
    listen: 127.0.0.1:{port}
    routes: [{routes}]
}}
"""


class Cluster:
    """Three nodes with routes to each other, able to hold streams with three replicas."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = tuple(nodes)

    @property
    def urls(self) -> list[str]:
        """Where clients connect, one URL a node."""
        return [node.url for node in self.nodes]

    def node(self, name: str) -> Node:
        """Return the node of that name."""
        return next(node for node in self.nodes if node.name == name)

    def others(self, node: Node) -> list[Node]:
        """Return the nodes that are not this one."""
        return [other for other in self.nodes if other is not node]

    async def meta_leader(self, *, within: float = _LEADER_WITHIN) -> Node:
        """Return the answering node that leads the meta group; waits for an election to end."""
        return await asyncio.to_thread(
            self._leader, lambda node: monitor.meta_group(node.monitor_port).get("leader"), within, "the meta group"
        )

    async def stream_leader(self, stream: str, *, within: float = _LEADER_WITHIN) -> Node:
        """Return the answering node that leads the stream; waits for an election to end."""
        return await asyncio.to_thread(
            self._leader, lambda node: monitor.stream_leader(node.monitor_port, stream), within, f"stream {stream}"
        )

    async def heal(self) -> None:
        """Resume and start whatever is paused or down, and wait until the cluster is whole."""
        await asyncio.to_thread(self.heal_now)

    def heal_now(self) -> None:
        """Do the same while blocking."""
        for node in self.nodes:
            node.resume_now()
            node.start_now(ready=False)
        self.wait_formed_now()

    def wait_formed_now(self) -> None:
        """Return when all agree on a leader, it sees every peer current, and every node's JetStream has caught up."""
        wait_until(self._formed, within=_FORMED_WITHIN, what="the three nodes are one healthy cluster")

    def wipe_now(self) -> None:
        """Delete every stream: a node that starts has to recover each, and is not whole before it has."""
        streams.delete_all_now(self.nodes[0].url)

    def dispose(self) -> None:
        """End every node."""
        for node in self.nodes:
            node.dispose()

    def _formed(self) -> bool:
        for node in self.nodes:
            node.check_alive()
        groups = {node.name: monitor.meta_group(node.monitor_port) for node in self.nodes}
        leaders = {group.get("leader") for group in groups.values()}
        assert len(leaders) == 1, f"no agreement on the leader: {leaders}"
        leader = leaders.pop()
        assert leader in groups, f"no leader among the three: {leader}"
        peers = groups[leader].get("replicas") or []  # only the leader's list is complete
        current = [peer["name"] for peer in peers if peer.get("current") and not peer.get("offline")]
        assert len(current) == len(self.nodes) - 1, f"peers current: {current}"
        return all(monitor.is_healthy(node.monitor_port) for node in self.nodes)

    def _leader(self, leader_according_to: Callable[[Node], str | None], within: float, what: str) -> Node:
        # Only a node's word about itself counts: others may still name a leader that is gone.
        def leading() -> Node | None:
            claims = [node for node in self.nodes if node.answers and leader_according_to(node) == node.name]
            return claims[0] if len(claims) == 1 else None

        return wait_until(leading, within=within, what=f"{what} has one leader that answers")


def native_cluster(directory: Path) -> Cluster:
    """Return a formed cluster of three processes, each with a store of its own under `directory`."""
    for attempt in range(_FORM_TRIES):
        ports = free_ports(3 * SIZE)
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports[:SIZE])
        cluster = Cluster(
            [
                NatsServer(
                    directory / str(attempt) / f"node-{index + 1}",
                    name=f"node-{index + 1}",
                    client_port=ports[SIZE + index],
                    monitor_port=ports[2 * SIZE + index],
                    extra=_ROUTES.format(port=ports[index], routes=routes),
                )
                for index in range(SIZE)
            ]
        )
        try:
            cluster.heal_now()
        except PortTakenError:
            cluster.dispose()
        except BaseException:
            cluster.dispose()
            raise
        else:
            return cluster
    raise RuntimeError(f"no free ports found for a cluster in {_FORM_TRIES} tries")
