"""A program that archives a namespace's log again and again until killed: ``archiver URL NAMESPACE DIRECTORY``.

Says ``ready`` when it begins.
"""

import asyncio
import sys

from agentfield.archive import directory
from projections import Source, archive, open_store
from projections.archive import Archive, Archiver


async def main(url: str, namespace: str, root: str) -> None:
    """Archive until killed, in small pieces."""
    async with Source.open(url, namespace=namespace) as source:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            await Archiver(source, Archive(), open_store(root).archive).catch_up()


if __name__ == "__main__":
    setattr(directory, "MOST_ROWS", 400)  # noqa: B010 - constants, but for this
    setattr(archive, "MOST_ROWS", 130)  # noqa: B010
    asyncio.run(main(*sys.argv[1:]))
