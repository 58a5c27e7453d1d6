"""Seal a namespace's log, in small stretches, until killed; its arguments are URL, namespace and seed.

Prints a line for every seal.
"""

import asyncio
import sys

from agentfield.audit.nkey import Signer
from agentfield.audit.sealing import Sealer
from agentfield.fabric.fabric import Fabric


async def main(url: str, namespace: str, seed: str) -> None:
    """Follow the log until killed."""
    fabric = await Fabric.open(url, namespace=namespace, name="sealer")
    async for seal in Sealer(fabric, Signer.of_seed(seed), every=7, within=0.1).follow():
        sys.stdout.write(f"{seal.number}\n")
        sys.stdout.flush()


asyncio.run(main(*sys.argv[1:]))
