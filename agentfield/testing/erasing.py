"""Taking a test's namespace off the throwaway server: a namespace costs it a megabyte and ten open files.

Owns: the deletion of streams, which nothing else in agentfield does. Must not know: pytest.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from agentfield.errors import AgentFieldError
from agentfield.fabric.connection import Connection
from agentfield.fabric.faults import Fault, ServerFault, Verdict
from agentfield.fabric.jetstream import api
from agentfield.fabric.topology import Topology

logger = logging.getLogger("agentfield.testing")


def erase(url: str, namespace: str) -> None:
    """Remove every stream of the namespace, and so all that was ever written there. Blocking; may be called anywhere.

    What cannot be removed is logged: it is gone with the server.
    """
    # In a thread, since there may be a loop here whose test is over, or one that is between two tests.
    with ThreadPoolExecutor(1, "agentfield-erase") as thread:
        thread.submit(asyncio.run, _erase(url, namespace)).result()


async def _erase(url: str, namespace: str) -> None:
    try:
        connection = await Connection.open(url, namespace=namespace, name="erase", timeout=5.0)
        try:
            # The log last: the buckets source it.
            for stream in reversed(Topology(namespace).streams):
                await _delete(connection, stream.name)
        finally:
            await connection.aclose()
    except (Fault, AgentFieldError) as error:
        logger.warning("namespace %s stays on the throwaway server: %s", namespace, error)


async def _delete(connection: Connection, stream: str) -> None:
    try:
        await api(connection, f"STREAM.DELETE.{stream}")
    except ServerFault as fault:
        if fault.verdict is not Verdict.ABSENT:
            raise
