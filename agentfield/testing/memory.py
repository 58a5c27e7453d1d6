"""Memory for a test, whichever loops the test runs in.

Owns: the connection behind it, one for each loop, closed with the loop, or with the test where the loop goes on. Must
not know: pytest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager

from agentfield.agent.handle import Handle
from agentfield.fabric.fabric import Fabric
from agentfield.memory import Memory
from agentfield.memory.connecting import open_fabric
from agentfield.settings import Settings


@contextmanager
def memory_at(url: str, namespace: str) -> Iterator[Memory]:
    """The memory of a program that is no agent, for the block. Enter and leave it outside any loop."""

    def open() -> Awaitable[Fabric]:
        return open_fabric(url, namespace, name="test", settings=Settings.load())

    handle = Handle(open, owner="the memory of a test")
    try:
        yield Memory(handle.fabric)
    finally:
        for loop in handle.loops:  # a loop of this test alone has ended by now, and has closed what was open in it
            if not loop.is_running():
                loop.run_until_complete(handle.aclose())
