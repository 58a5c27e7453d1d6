"""What tests of the examples and the documentation ask for."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from agentfield import Agent
from tests.docs.serving import Serving, environment_on
from tests.support import NatsServer


@pytest.fixture
def environment(server: NatsServer, namespace: str) -> dict[str, str]:
    """Return the environment for processes of this test: its server and namespace, and the stand-in for a model."""
    return environment_on(server.url, namespace)


@pytest.fixture
def serve(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., list[Serving]]]:
    """Return a function that serves each file in a process of its own, and returns when all can be called."""
    serving: list[Serving] = []

    def start(*files: Path) -> list[Serving]:
        started = [Serving([file], environment, tmp_path / f"{file.stem}.log") for file in files]
        serving.extend(started)
        for each in started:
            each.wait_ready()
        return started

    yield start
    try:
        for each in serving:
            each.stop()
    finally:
        for each in serving:
            each.dispose()


@pytest.fixture
async def desk(server: NatsServer, namespace: str) -> AsyncIterator[Agent]:
    """Return an agent from which a test calls others and looks at memory."""
    async with Agent("desk", nats_url=server.url, namespace=namespace) as agent:
        yield agent
