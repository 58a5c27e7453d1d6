"""A program that answers, over stdin and stdout, what memory holds: one key a line in, one JSON value a line out.

``python -m tests.support.programs.reader URL NAMESPACE``
"""

import asyncio
import json
import sys

from agentfield import connect


async def main(url: str, namespace: str) -> None:
    """Answer until stdin ends."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with connect(url, namespace=namespace) as memory:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while line := await lines.readline():
            sys.stdout.write(json.dumps(await memory.get(line.decode().strip())) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
