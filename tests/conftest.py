"""Fixtures every test may ask for: real servers, and a namespace that nobody else uses."""

import gc
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest

from tests.support import Cluster, NatsServer, daemon, forking, processes
from tests.support.cluster import native_cluster

hypothesis.settings.register_profile("tests", deadline=None)  # on a busy machine an example may take long
hypothesis.settings.load_profile("tests")

_MEMORY = Path("/dev/shm")
_ROOM = 4 * 1024**3
"""Bytes that must be free there, and twice as many in the machine's memory; a run of everything takes under one GiB."""

_OURS = ("AGENTFIELD_", "NATS_URL")
_KEPT = "AGENTFIELD_TEST_"


def pytest_configure() -> None:
    """Keep what tests write in memory, where there is much: waiting for the disk is a fifth of their time.

    Servers wait for the disk at every write, as they should. What is promised of a server that is killed holds there,
    too; nothing here takes power away from a machine.

    And keep what is compiled, whatever is set: else every process that is started compiles all of this again.
    """
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    writable = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK)
    if writable and shutil.disk_usage(_MEMORY).free >= _ROOM and psutil.virtual_memory().available >= 2 * _ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))


def pytest_collection_finish() -> None:
    """Look for garbage only among what tests make: thousands of collected tests stay, and are a lot to look through."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter take everything down at its end; libraries complain about what is left of theirs."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _sealed_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's settings out and the user's data alone, and leave no process behind."""
    session = secrets.token_hex(8)
    # What is ignored here is ignored in the programs under test: a shell without job control starts what it puts into
    # the background without SIGINT, and nohup without SIGHUP.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.MonkeyPatch.context() as environment:
        for name in list(os.environ):
            if name.startswith(_OURS) and not name.startswith(_KEPT):
                environment.delenv(name)
        environment.setenv("AGENTFIELD_HOME", str(tmp_path_factory.mktemp("home")))
        environment.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else importing LiteLLM asks the network for prices
        environment.setenv(processes.SESSION_VARIABLE, session)
        with processes.guarded(session):
            yield
            forking.end()
            left = processes.survivors(session)
            names = [" ".join(process.cmdline()) for process in left if process.is_running()]
            processes.end(left)
            if names:
                pytest.fail("the tests left processes behind:\n" + "\n".join(names))


@pytest.fixture
def namespace() -> str:
    """Return a namespace of this test's own."""
    return f"t{secrets.token_hex(8)}"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Return the session's server, shared by tests that leave it running: use `fresh_server` to hurt one."""
    server = NatsServer.started(tmp_path_factory.mktemp("server"))
    yield server
    server.dispose()


@pytest.fixture
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., NatsServer]]:
    """Return a function that starts a server of this test's own; `extra=` adds to its configuration."""
    started: list[NatsServer] = []

    def start(*, name: str = "server", extra: str = "") -> NatsServer:
        started.append(NatsServer.started(tmp_path_factory.mktemp("server"), name=name, extra=extra))
        return started[-1]

    yield start
    for server in started:
        server.dispose()


@pytest.fixture
def fresh_server(start_server: Callable[..., NatsServer]) -> NatsServer:
    """Return a server of this test's own: stop it, kill it, pause it, restart it."""
    return start_server()


@pytest.fixture(scope="session")
def _native_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = native_cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.dispose()


@pytest.fixture
def cluster(_native_cluster: Cluster) -> Iterator[Cluster]:
    """Return the session's three-node cluster, whole and empty at the start of the test."""
    _native_cluster.heal_now()
    yield _native_cluster
    _native_cluster.heal_now()
    _native_cluster.wipe_now()


@pytest.fixture(scope="session")
def _container_cluster() -> Iterator[Cluster]:
    reason = daemon.reason_without_docker()
    if reason is not None:
        if daemon.docker_is_required():
            pytest.fail(reason)
        pytest.skip(f"{reason} (AGENTFIELD_TEST_DOCKER=required makes this a failure)")
    from tests.support import containers  # only where there is a daemon: the client library connects when imported

    with containers.container_cluster() as cluster:
        yield cluster


@pytest.fixture
def docker_cluster(_container_cluster: Cluster) -> Iterator[Cluster]:
    """Return the session's cluster of three containers, whole and empty at the start of the test."""
    _container_cluster.heal_now()
    yield _container_cluster
    _container_cluster.heal_now()
    _container_cluster.wipe_now()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs Docker by what it asks for, so that nobody can forget to."""
    for item in items:
        if "docker_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.docker)
