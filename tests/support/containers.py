"""The same cluster in three containers: own network stacks, own file systems, names resolved by Docker.

The image is built here from the nats-server binary that the native tests run, so nothing is pulled from anywhere. The
nodes find each other over a network of their own; clients reach them through ports published on the loopback interface.
"""

import io
import secrets
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import docker.errors
from docker.models.containers import Container
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient
from testcontainers.core.network import Network

from tests.support.cluster import SIZE, Cluster
from tests.support.native import binary
from tests.support.node import Node
from tests.support.ports import PortTakenError, free_ports

_STOP_DEADLINE = 20
_FORM_TRIES = 5
_CLIENT_PORT = "4222/tcp"
_MONITOR_PORT = "8222/tcp"

# The label makes the image this session's own: sessions side by side would otherwise share one, and remove it together.
_DOCKERFILE = """
FROM scratch
LABEL session={session}
COPY nats-server /nats-server
COPY server.conf /server.conf
ENTRYPOINT ["/nats-server", "--config", "/server.conf"]
"""

# `no_advertise`: clients are on the other side of published ports, and must not be told the containers' own addresses.
_CONFIG = """
server_name: $NODE_NAME
listen: 0.0.0.0:4222
http: 0.0.0.0:8222
jetstream {{
    store_dir: "/store"
    sync_interval: always
}}
cluster {{
    name: tests
    listen: 0.0.0.0:6222
    no_advertise: true
    routes: [{routes}]
}}
"""


class ContainerNode(Node):
    """A server in a container. Its store lives in the container, so it survives a restart but not `dispose`."""

    def __init__(self, name: str, client_port: int, monitor_port: int, *, image: str, network: Network) -> None:
        super().__init__(name, client_port, monitor_port)
        self._definition = (
            DockerContainer(image)
            .with_network(network)
            .with_network_aliases(name)
            .with_env("NODE_NAME", name)
            .with_bind_ports(_CLIENT_PORT, client_port)
            .with_bind_ports(_MONITOR_PORT, monitor_port)
        )
        self._container: Container | None = None

    def launch(self) -> None:
        """Create the container the first time, start the same one again afterwards."""
        try:
            if self._container is None:
                self._container = self._definition.start().get_wrapped_container()
            else:
                self._container.start()
        except docker.errors.APIError as error:
            if "port is already allocated" in str(error) or "address already in use" in str(error):
                raise PortTakenError(str(error)) from error
            raise

    def end(self, *, gracefully: bool) -> None:
        """Stop or kill the container and wait until it has exited."""
        container = self._created
        if gracefully:
            container.stop(timeout=_STOP_DEADLINE)
        else:
            container.kill()
        container.wait(timeout=_STOP_DEADLINE)

    def freeze(self) -> None:
        """Freeze every process of the container."""
        self._created.pause()

    def thaw(self) -> None:
        """Let the container go on."""
        self._created.unpause()

    def check_alive(self) -> None:
        """Raise if the container has exited by itself."""
        container = self._created
        container.reload()
        if self.running and container.status not in ("running", "paused"):
            self.running = False
            raise RuntimeError(f"{self.name} is {container.status}:\n{self.log()[-4000:]}")

    def log(self) -> str:
        """Return what the container has printed, over all its starts."""
        return self._created.logs().decode(errors="replace")

    def dispose(self) -> None:
        """Remove the container, running or not."""
        self._definition.stop(force=True)
        self._container = None
        self.running = self.paused = False

    @property
    def _created(self) -> Container:
        if self._container is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._container


@contextmanager
def container_cluster() -> Iterator[Cluster]:
    """Build the image, form the cluster; afterwards remove containers, network and image."""
    with ExitStack() as stack:
        image = stack.enter_context(_image())
        for _ in range(_FORM_TRIES):
            attempt = stack.enter_context(ExitStack())
            # Publish on the loopback interface only: nobody else has any business with a test's servers.
            loopback = {"options": {"com.docker.network.bridge.host_binding_ipv4": "127.0.0.1"}}
            network = attempt.enter_context(Network(docker_network_kw=loopback))
            ports = free_ports(2 * SIZE)
            nodes = [
                ContainerNode(name, ports[index], ports[SIZE + index], image=image, network=network)
                for index, name in enumerate(_names())
            ]
            cluster = Cluster(nodes)
            attempt.callback(cluster.dispose)
            try:
                cluster.heal_now()
            except PortTakenError:
                attempt.close()
                continue
            yield cluster
            return
        raise RuntimeError(f"no free ports found for a cluster of containers in {_FORM_TRIES} tries")


@contextmanager
def _image() -> Iterator[str]:
    routes = ", ".join(f'"nats://{name}:6222"' for name in _names())
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        archive.add(binary(), "nats-server")
        for name, text in (
            ("Dockerfile", _DOCKERFILE.format(session=secrets.token_hex(8))),
            ("server.conf", _CONFIG.format(routes=routes)),
        ):
            content = text.encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    context.seek(0)
    client = DockerClient().client
    try:
        image, _ = client.images.build(fileobj=context, custom_context=True, rm=True, forcerm=True)
        try:
            yield str(image.id)
        finally:
            client.images.remove(str(image.id), force=True)
    finally:
        client.close()


def _names() -> list[str]:
    return [f"node-{index + 1}" for index in range(SIZE)]
