"""Sealing a log on a real server, and the seals that came of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from agentfield.audit.nkey import Signer
from agentfield.audit.seal import Seal
from agentfield.fabric.fabric import Fabric
from projections import Source
from projections.seals import Sealer, Seals


async def seal_all(fabric: Fabric, signer: Signer, **options: Any) -> list[Seal]:
    """Seal what the log holds, and return the seals that were made."""
    made: list[Seal] = []
    await Sealer(Source(fabric), Seals(signer, made=made.append, **options)).catch_up()
    return made


@asynccontextmanager
async def following(fabric: Fabric, signer: Signer, **options: Any) -> AsyncIterator[list[Seal]]:
    """A sealer that follows the log until the end of the block, and the seals that it has made so far."""
    made: list[Seal] = []
    task = asyncio.create_task(Sealer(Source(fabric), Seals(signer, made=made.append, **options)).run())
    try:
        yield made
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
