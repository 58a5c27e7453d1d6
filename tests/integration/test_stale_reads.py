"""An agent that was just told "it is in memory" finds it there."""

from agentfield import connect
from tests.support import NatsServer
from tests.support.asking import reading_process

ROUNDS = 5000


async def test_what_one_process_has_set_another_reads_5000_times_without_a_stale_read(
    server: NatsServer, namespace: str
) -> None:
    stale = []
    async with (
        connect(server.url, namespace=namespace) as memory,
        reading_process(server.url, namespace) as ask,
    ):
        for number in range(ROUNDS):
            await memory.set("count", number)
            found = await ask("count")
            if found != number:
                stale.append((number, found))
    assert stale == []
