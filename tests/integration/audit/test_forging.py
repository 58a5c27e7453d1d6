"""The live log, rewritten on the disk by somebody who knows how the server stores it: the server notices nothing."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest

from agentfield.audit.chain import Stored
from agentfield.audit.checking import check_live
from agentfield.audit.nkey import Signer
from agentfield.audit.source import Live
from agentfield.fabric.fabric import Fabric
from tests.support import NatsServer
from tests.support.events import write_many
from tests.support.forging import forge
from tests.support.sealing import seal_all

OpenFabric = Callable[..., Awaitable[Fabric]]
SIGNER = Signer.generate()
COUNT = 20


def flip(messages: list[Stored]) -> list[Stored]:
    at = messages[11]
    changed = at._replace(payload=bytes([at.payload[0] ^ 1]) + at.payload[1:])
    return [*messages[:11], changed, *messages[12:]]


def remove(messages: list[Stored]) -> list[Stored]:
    return [*messages[:11], *messages[12:]]


def numbered(messages: list[Stored]) -> list[Stored]:
    return [each._replace(sequence=number) for number, each in enumerate(messages, 1)]


def remove_and_close_the_gap(messages: list[Stored]) -> list[Stored]:
    return numbered(remove(messages))


def insert(messages: list[Stored]) -> list[Stored]:
    forged = messages[11]._replace(payload=b'"forged"', timestamp=messages[10].timestamp + 1)
    return numbered([*messages[:11], forged, *messages[11:]])


def reorder(messages: list[Stored]) -> list[Stored]:
    return numbered([*messages[:11], messages[12], messages[11], *messages[13:]])


def nothing(messages: list[Stored]) -> list[Stored]:
    return messages


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (nothing, None),
        (flip, "changed"),
        (remove, "removed"),
        (remove_and_close_the_gap, "removed"),
        (insert, "inserted"),
        (reorder, "reordered"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_what_was_done_to_the_live_log_is_named(
    fresh_server: NatsServer,
    open_fabric: OpenFabric,
    change: Callable[[list[Stored]], list[Stored]],
    kind: str | None,
) -> None:
    fabric = await open_fabric(fresh_server)
    await write_many(fabric, [f"k.{number}" for number in range(COUNT)], b'"value"')
    assert (await seal_all(fabric, SIGNER, every=5))[-1].last == COUNT
    fresh_server.stop_now()
    rewritten: list[Stored] = []

    def remembered(messages: list[Stored]) -> list[Stored]:
        rewritten.extend(change(messages))
        return rewritten

    forge(fresh_server.store, fabric.log.stream, remembered)
    fresh_server.start_now()
    await fabric.connection.wait_connected(20)
    live = Live(fabric)
    extent = await live.extent()
    async with aclosing(live.read(1, extent.last)) as messages:
        assert [stored async for stored in messages] == rewritten  # the server believes it, every bit
    verdict = (await check_live(fabric, trusted=[SIGNER.public])).verdict
    if kind is None:
        assert (verdict.intact, verdict.last) == (True, COUNT)
    else:
        assert verdict.finding is not None
        assert (verdict.finding.kind, verdict.finding.sequence, verdict.last) == (kind, 12, 10)
