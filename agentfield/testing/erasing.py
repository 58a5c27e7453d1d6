"""Taking a test's namespace off the throwaway server: a namespace costs it a megabyte and ten open files.

Owns: doing so whatever loop there is, or is not. Must not know: pytest.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from agentfield.errors import AgentFieldError
from agentfield.fabric.removal import remove
from agentfield.fabric.wire.connection import Connection

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
            await remove(connection, namespace)
        finally:
            await connection.aclose()
    except AgentFieldError as error:
        logger.warning("namespace %s stays on the throwaway server: %s", namespace, error)
