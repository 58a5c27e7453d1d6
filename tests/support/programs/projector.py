"""A program that keeps the view of :class:`tests.support.projecting.Chain` current.

``python -m tests.support.programs.projector URL NAMESPACE DIRECTORY once|run``

Says ``ready`` before its first event, and with ``once``, ends when the view is current.
"""

import asyncio
import sys

from projections import Runner, Source, open_store
from tests.support.projecting import Chain


async def main(url: str, namespace: str, directory: str, how: str) -> None:
    """Project."""
    async with Source.open(url, namespace=namespace) as source:
        runner = Runner(source, Chain(), open_store(directory))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        if how == "once":
            await runner.catch_up()
        else:
            await runner.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
