"""After an erasure, no file there is holds what was erased: not the server's, not a view's, and not its key."""

import asyncio
import secrets
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agentfield import Event, connect
from agentfield.memory import views
from projections import Projection, Runner, Source, open_store
from projections.metrics import Metrics
from projections.stores import Stores
from projections.timeline import Timeline
from tests.support import NatsServer, eventually
from tests.support.archiving import archive
from tests.support.searching import files_with


class InDuck(Projection):
    name = "in-duckdb"
    store = "duckdb"

    def prepare(self, view: Any) -> None:
        view.execute("CREATE TABLE found (revision BIGINT, key TEXT, data TEXT)")

    def apply(self, event: Event, view: Any) -> None:
        view.execute("INSERT INTO found VALUES (?, ?, ?)", (event.revision, event.key, str(event.data)))


class InBucket(Projection):
    name = "in-bucket"
    store = "bucket"

    async def apply(self, event: Event, view: Any) -> None:
        view.put(event.key, event.data)


@asynccontextmanager
async def running(source: Source, store: Stores, *projections: Projection) -> AsyncIterator[None]:
    """Run them during the block, which begins when all are registered."""
    tasks = [asyncio.create_task(Runner(source, each, store).run()) for each in projections]

    async def registered() -> bool:
        return len(await views.registered(source.fabric)) >= len(projections)

    try:
        await eventually(registered, within=20, what="every view is registered")
        yield
        assert not [task.exception() for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_after_an_erasure_no_file_holds_the_value_or_its_key(
    fresh_server: NatsServer, namespace: str, tmp_path: Path
) -> None:
    """Every directory is searched alike; what others have written shows that it would have been found."""
    personal, large, plain = secrets.token_hex(64), secrets.token_hex(200_000), secrets.token_hex(64)
    store_directory = tmp_path / "views"
    everywhere = [fresh_server.store, store_directory]
    async with connect(fresh_server.url, namespace=namespace) as memory:
        await memory.set_personal(["session"])
        await memory.session("user-1").set("token", personal)
        await memory.session("user-1").set("report", large)
        await memory.session("user-1").set("token", f"{personal}!")
        await memory.set("control", plain, scope="global")
        fabric = await memory._fabric()
        (stored,) = await fabric.keys.stored(["session.user-1"])
        needles = [personal[:32].encode(), large[:32].encode(), stored.key.secret, b64encode(stored.key.secret)]
        source = Source(fabric)
        store = Stores(source, open_store(store_directory))
        await Runner(source, InDuck(), store).catch_up()  # and is not running when it is erased
        async with running(source, store, Timeline(), Metrics(), InBucket()):
            # The server has the key, and the bucket's value in plain; the views in files have the values in plain.
            assert all(files_with(directory, *needles) for directory in everywhere)
            # The archive has it as the log has it, encrypted: with the key beside it, it could be read.
            everywhere.append(await archive(fabric, tmp_path / "archived"))
            receipt = await memory.erase(scope="session", scope_id="user-1")
        answers = {name.rpartition("-")[0]: answer for name, answer in receipt.views.items()}
        assert answers == {
            "timeline": "dropped",
            "metrics": "dropped",
            "in-bucket": "dropped",
            "in-duckdb": "not running",
        }
        assert {name.partition("/")[0].partition(".")[0] for name in files_with(store_directory, *needles)} == {
            "in-duckdb"
        }
        await Runner(source, InDuck(), store).catch_up()
    await eventually(lambda: found(everywhere, needles) == [], within=10, what="the server has removed its files")
    everywhere.append(tmp_path)
    for again in (fresh_server.stop, fresh_server.start):
        await again()
        assert found(everywhere, needles) == []
        assert all(files_with(directory, plain[:32].encode()) for directory in everywhere)


def found(directories: list[Path], needles: list[bytes]) -> list[str]:
    return [f"{directory.name}/{name}" for directory in directories for name in files_with(directory, *needles)]
