"""The pytest plugin: fixtures that are there as soon as agentfield is installed.

All of them are plain fixtures, so they serve any way of running coroutines: pytest-asyncio, anyio, ``asyncio.run``.
What they stand on is imported when a test asks for one: a run that asks for none pays for no more than this file.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from agentfield.local import Server
    from agentfield.memory import Memory
    from agentfield.testing.agents import Agents
    from agentfield.testing.model import FakeModel

_READABLE = 19
"""Characters of a test's name in its namespace; with a dash and twelve random digits, all that a namespace may have."""


@pytest.fixture(scope="session")
def _agentfield_throwaway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from agentfield.testing.throwaway import throwaway_server

    with throwaway_server(tmp_path_factory.mktemp("agentfield")) as server:
        yield server


@pytest.fixture(scope="session")
def agentfield_server(_agentfield_throwaway: Server) -> str:
    """The URL of a NATS server that is started for this test session, and thrown away with its data at the end."""
    return _agentfield_throwaway.url


@pytest.fixture
def agentfield_namespace(_agentfield_throwaway: Server, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of this test's own on the throwaway server.

    During the test the environment names both, and no other setting of agentfield. So agents that the test makes,
    ``agentfield.connect()``, and processes that it starts are there as well.
    """
    from agentfield.settings import VARIABLES
    from agentfield.testing.erasing import erase

    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).removeprefix("test").strip("-")[:_READABLE]
    namespace = f"{name}-{secrets.token_hex(6)}".removeprefix("-")
    with pytest.MonkeyPatch.context() as environment:
        for variable in VARIABLES:
            environment.delenv(variable, raising=False)
        environment.setenv("AGENTFIELD_HOME", str(_agentfield_throwaway.store_dir.parent))
        environment.setenv("AGENTFIELD_NATS_URL", _agentfield_throwaway.url)
        environment.setenv("AGENTFIELD_NAMESPACE", namespace)
        yield namespace
    erase(_agentfield_throwaway.url, namespace)


@pytest.fixture
def agentfield_memory(agentfield_server: str, agentfield_namespace: str) -> Iterator[Memory]:
    """The memory of a plain program in the test's namespace, to write and to look with; connects on its first use."""
    from agentfield.testing.memory import memory_at

    with memory_at(agentfield_server, agentfield_namespace) as memory:
        yield memory


@pytest.fixture
def agentfield_model() -> Iterator[FakeModel]:
    """A model for the test to tell what to answer; a question that it had no answer for fails the test at its end."""
    from agentfield.testing.model import FakeModel

    model = FakeModel()
    yield model
    model.check()


@pytest.fixture
def agentfield_agents(agentfield_server: str, agentfield_namespace: str, agentfield_model: FakeModel) -> Agents:
    """Runs agents in the test: ``async with agentfield_agents.run(shop, shipping):``.

    They are on the throwaway server, in the test's namespace, and ask ``agentfield_model``, whatever they were made
    with. ``await agentfield_agents.settled()`` waits until their handlers have nothing left to do.
    """
    from agentfield.testing.agents import Agents

    return Agents(agentfield_server, agentfield_namespace, agentfield_model)
