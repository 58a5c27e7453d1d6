"""Seal a namespace's log, in small stretches, until killed: ``sealer URL NAMESPACE SEED all|run``.

Prints a line for every seal. With ``all`` it seals what there is again and again, with ``run`` it is one of those that
take turns.
"""

import asyncio
import sys

from agentfield.audit.nkey import Signer
from agentfield.audit.seal import Seal
from projections import Source
from projections.seals import Sealer, Seals


def told(seal: Seal) -> None:
    """Print it."""
    sys.stdout.write(f"{seal.number}\n")
    sys.stdout.flush()


async def main(url: str, namespace: str, seed: str, how: str) -> None:
    """Seal until killed."""
    async with Source.open(url, namespace=namespace) as source:
        sealer = Sealer(source, Seals(Signer.of_seed(seed), every=7, within=0.1, made=told))
        while how == "all":
            await sealer.catch_up()
        await sealer.run()


asyncio.run(main(*sys.argv[1:]))
