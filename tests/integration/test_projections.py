"""A projection's view is the fold of the log: current, whole, and made anew beside itself."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from agentfield import Event, InvalidInputError, Memory, NotFoundError, ProjectionError, Scope, connect
from agentfield.fabric.fabric import Fabric
from projections import Projection, Runner, Source, open_store
from projections.metrics import Metrics
from projections.projection import Selection
from projections.stores import Directory
from projections.timeline import Timeline
from projections.view import Head
from tests.support import NatsServer, eventually
from tests.support.projecting import Chain, chains_in, checkpoint_in, folded, rows


@pytest.fixture
async def source(server: NatsServer, fabric: Fabric) -> Source:
    return Source(fabric)


@pytest.fixture
def store(tmp_path: Path) -> Directory:
    return open_store(tmp_path / "views")


async def write(memory: Memory, count: int, *, start: int = 0, keys: int = 20) -> int:
    """Write so many events over so many keys, and return the last one's revision."""
    revision = 0
    for begin in range(start, start + count, keys):
        revision = await memory.set_many({f"item_{number % keys}": number for number in range(begin, begin + keys)})
    return revision


async def head_of(store: Directory, name: str) -> Head:
    view = await store.live(name)
    assert view is not None
    try:
        return await view.head()
    finally:
        await view.aclose()


@asynccontextmanager
async def running(*runners: Runner) -> Any:
    """Run them until the end of the block; what they end with by themselves is raised there."""
    tasks = [asyncio.create_task(runner.run()) for runner in runners]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.smoke
async def test_a_view_is_the_fold_of_all_matching_events(memory: Memory, source: Source, store: Directory) -> None:
    await write(memory, 1200)
    await memory.set("other_1", "not heard")
    await memory.session("s").set("item_3", {"in": "a session"})
    await memory.delete("item_5")
    last = await source.last()
    assert await Runner(source, Chain(), store).catch_up() == last
    assert chains_in(store.root / "chain.sqlite") == await folded(_everything(memory))
    head = await head_of(store, "chain")
    assert (head.checkpoint, head.events, head.skipped) == (last, 1202, 0)


async def _everything(memory: Memory) -> Any:
    scopes: list[dict[str, Any]] = [{"scope": "global"}, {"scope": "session", "scope_id": "s"}]
    events = [event for scope in scopes async for event in memory.history("item_*", **scope)]
    for event in sorted(events, key=lambda event: event.revision):
        yield event


async def test_a_runner_follows_the_log_and_says_how_far_it_is_behind(
    memory: Memory, source: Source, store: Directory
) -> None:
    await write(memory, 400)
    runner = Runner(source, Chain(), store)
    assert await source.lag(runner.selection, 0) == 400
    async with running(runner):
        await eventually(lambda: checkpoint_in(store.root / "chain.sqlite") >= 400, within=15)
        revision = await write(memory, 40, start=400)
        await eventually(lambda: checkpoint_in(store.root / "chain.sqlite") == revision, within=10)
    assert await source.lag(runner.selection, revision) == 0
    assert chains_in(store.root / "chain.sqlite") == await folded(memory.history("item_*"))


async def test_only_the_scopes_that_were_asked_for_are_heard(memory: Memory, source: Source, store: Directory) -> None:
    class OfOneSession(Chain):
        scopes = (Scope("session", "s-1"), "global")

    await memory.session("s-1").set("item_1", 1)
    await memory.session("s-2").set("item_2", 2)
    await memory.global_scope.set("item_3", 3)
    await memory.actor("a").set("item_4", 4)
    await Runner(source, OfOneSession(), store).catch_up()
    assert set(chains_in(store.root / "chain.sqlite")) == {"item_1", "item_3"}


async def test_previous_data_comes_where_it_was_asked_for(memory: Memory, source: Source, store: Directory) -> None:
    seen: list[Any] = []

    class Looking(Chain):
        previous = True

        def apply(self, event: Event, view: Any) -> None:
            seen.append((event.data, event.previous_data))

    await memory.set("item_1", "a")
    await memory.set("item_1", "b")
    runner = Runner(source, Looking(), store)
    await runner.catch_up()
    await memory.set("item_1", "c")
    await runner.catch_up()
    assert seen == [("a", None), ("b", "a"), ("c", "b")]


async def test_a_large_value_reaches_a_projection_whole(memory: Memory, source: Source, store: Directory) -> None:
    sizes: list[int] = []

    class Sizes(Projection):
        name = "sizes"

        async def apply(self, event: Event, view: Any) -> None:
            await asyncio.sleep(0)
            sizes.append(len(event.data))

    await memory.set("item_1", "x" * 3_000_000)
    await Runner(source, Sizes(), store).catch_up()
    assert sizes == [3_000_000]


class Raising(Chain):
    """Raises for one value, for as long as it is told to."""

    name = "raising"
    broken = True

    def apply(self, event: Event, view: Any) -> None:
        super().apply(event, view)
        if event.data == 333 and self.broken:
            raise RuntimeError("cannot take 333")


async def test_a_projection_that_raises_stops_alone_and_says_where(
    memory: Memory, source: Source, store: Directory
) -> None:
    last = await write(memory, 600)
    (at,) = [event.revision async for event in memory.history("item_*") if event.data == 333]
    raising, good = Runner(source, Raising(), store), Runner(source, Chain(), store)
    async with running(raising, good) as (failing, _):
        with pytest.raises(ProjectionError, match="cannot take 333") as caught:
            await failing
        assert (caught.value.projection, caught.value.sequence) == ("raising", at)
        await eventually(lambda: checkpoint_in(store.root / "chain.sqlite") == last, within=10)
    head = await head_of(store, "raising")
    assert (head.checkpoint, head.failed_at, head.error) == (at - 1, at, "RuntimeError: cannot take 333")
    assert chains_in(store.root / "raising.sqlite") == await folded(memory.history("item_*", until=at - 1))

    mended = Raising()
    mended.broken = False
    await Runner(source, mended, store).catch_up()
    assert (await head_of(store, "raising")).error is None
    assert chains_in(store.root / "raising.sqlite") == await folded(memory.history("item_*"))


@pytest.mark.parametrize("cause", [SystemExit(3), asyncio.CancelledError("a task of its own"), StopIteration()])
@pytest.mark.parametrize("later", [False, True])
async def test_whatever_apply_raises_stops_it_and_not_the_program(
    memory: Memory, source: Source, store: Directory, cause: BaseException, later: bool
) -> None:
    class Ending(Chain):
        name = "ending"

        def apply(self, event: Event, view: Any) -> Any:
            if event.revision == 7:
                return _raising(cause) if later else _raised(cause)
            super().apply(event, view)
            return "which is of no account"

    await write(memory, 20)
    async with running(Runner(source, Ending(), store)) as (task,):
        assert await asyncio.wait([task], timeout=10) == ({task}, set())
        with pytest.raises(ProjectionError, match=f"ending stopped at event 7, 'item_6': .*{type(cause).__name__}"):
            await task
    head = await head_of(store, "ending")
    assert (head.checkpoint, head.failed_at) == (6, 7)


async def _raising(cause: BaseException) -> None:
    raise cause


def _raised(cause: BaseException) -> None:
    raise cause


async def test_what_nobody_can_decode_is_passed_over_and_counted(
    memory: Memory, source: Source, store: Directory, caplog: pytest.LogCaptureFixture
) -> None:
    await memory.set("item_1", 1)
    subjects = source.fabric.subjects
    foreign = await source.fabric.connection.request(
        subjects.memory(Scope("global", "global"), "item_2"), b"no JSON", timeout=5
    )
    assert b'"seq":2' in foreign.payload
    await memory.set("item_1", 2)
    with caplog.at_level(logging.WARNING, "agentfield.projections"):
        await Runner(source, Chain(), store).catch_up()
    head = await head_of(store, "chain")
    assert (head.checkpoint, head.events, head.skipped) == (3, 2, 1)
    assert "passed over" in caplog.text


async def test_a_paused_view_stays_where_it_is_until_it_is_resumed(
    memory: Memory, source: Source, store: Directory
) -> None:
    revision = await write(memory, 20)
    path = store.root / "chain.sqlite"
    runner = Runner(source, Chain(), store)
    async with running(runner):
        await eventually(lambda: checkpoint_in(path) == revision, within=15)
        await runner.pause(True)
        behind = await write(memory, 20, start=20)
        assert await Runner(source, Chain(), store).catch_up() == revision
        assert checkpoint_in(path) == revision
        await runner.pause(False)
        await eventually(lambda: checkpoint_in(path) == behind, within=10)
    assert chains_in(path) == await folded(memory.history("item_*"))


async def test_what_a_slow_apply_has_done_is_seen_soon_and_it_can_be_stopped(
    memory: Memory, source: Source, store: Directory
) -> None:
    class Slow(Chain):
        def apply(self, event: Event, view: Any) -> None:
            time.sleep(0.05)
            super().apply(event, view)

    await write(memory, 400)
    path = store.root / "chain.sqlite"
    async with running(Runner(source, Slow(), store)) as (task,):
        await eventually(lambda: path.exists() and checkpoint_in(path) > 0, within=8)
        task.cancel()
        assert await asyncio.wait([task], timeout=4) == ({task}, set())
    assert checkpoint_in(path) < 400


async def test_a_rebuild_under_live_writes_ends_equal_to_the_live_view(
    memory: Memory, source: Source, store: Directory
) -> None:
    await write(memory, 2000)
    path = store.root / "chain.sqlite"
    runner = Runner(source, Chain(), store)
    stands: list[int] = []
    async with running(runner):
        await eventually(lambda: checkpoint_in(path) >= 2000, within=15)
        writing = asyncio.create_task(write(memory, 2000, start=2000))
        rebuilding = asyncio.create_task(Runner(source, Chain(), store).rebuild())
        while not (writing.done() and rebuilding.done()):
            stands.append(checkpoint_in(path))
            await asyncio.wait({writing, rebuilding}, timeout=0.02)
        last = await writing
        await rebuilding
        await eventually(lambda: checkpoint_in(path) == last, within=15)
    assert stands == sorted(stands), "the view went back in time when it was replaced"
    assert (await head_of(store, "chain")).generation == 2
    assert chains_in(path) == await folded(memory.history("item_*"))
    assert (await Runner(source, Chain(), store).verify()).equal
    assert sorted(file.name for file in (store.root / "chain").iterdir()) == ["2.sqlite"]


async def test_a_rebuild_that_was_broken_off_leaves_the_view_alone_and_is_continued(
    memory: Memory, source: Source, store: Directory
) -> None:
    await write(memory, 1000)
    runner = Runner(source, Raising(), store)
    runner.projection.broken = False  # type: ignore[attr-defined]
    await runner.catch_up()
    runner.projection.broken = True  # type: ignore[attr-defined]
    with pytest.raises(ProjectionError, match="cannot take 333"):
        await runner.rebuild()
    assert (await head_of(store, "raising")).generation == 1
    building = await store.building("raising")
    assert building is not None
    begun = await building.head()
    await building.aclose()
    assert 0 < begun.checkpoint < 1000
    runner.projection.broken = False  # type: ignore[attr-defined]
    await runner.rebuild()
    head = await head_of(store, "raising")
    assert (head.generation, head.events) == (begun.generation, 1000)
    assert chains_in(store.root / "raising.sqlite") == await folded(memory.history("item_*"))


class Doubled(Chain):
    version = 2

    def apply(self, event: Event, view: Any) -> None:
        super().apply(event, view)
        super().apply(event, view)


async def test_a_new_version_takes_the_place_of_the_old_view(memory: Memory, source: Source, store: Directory) -> None:
    await write(memory, 40)
    old = Runner(source, Chain(), store)
    async with running(old) as (outdated,):
        await eventually(lambda: checkpoint_in(store.root / "chain.sqlite") == 40, within=15)
        await Runner(source, Doubled(), store).catch_up()
        with pytest.raises(InvalidInputError, match=r"version 2, .* go back to this one with .* rebuild"):
            await outdated
    head = await head_of(store, "chain")
    assert (head.version, head.generation) == (2, 2)
    assert {count for count, _ in chains_in(store.root / "chain.sqlite").values()} == {4}


async def test_a_paused_view_gets_its_new_version_when_it_is_resumed(
    memory: Memory, source: Source, store: Directory
) -> None:
    revision = await write(memory, 20)
    old, new = Runner(source, Chain(), store), Runner(source, Doubled(), store)
    await old.catch_up()
    await old.pause(True)
    with pytest.raises(InvalidInputError, match=r"version 1, and this code of version 2: .*run. makes it anew"):
        await new.verify()
    async with running(new) as (task,):
        behind = await write(memory, 20, start=20)
        assert await asyncio.wait([task], timeout=1.5) == (set(), {task})
        head = await head_of(store, "chain")
        assert (head.version, head.checkpoint) == (1, revision)
        await new.pause(False)
        await eventually(lambda: checkpoint_in(store.root / "chain.sqlite") >= behind, within=10)
    assert {count for count, _ in chains_in(store.root / "chain.sqlite").values()} == {4}


async def test_other_patterns_without_another_version_are_refused(
    memory: Memory, source: Source, store: Directory
) -> None:
    class Wider(Chain):
        patterns = "*"

    await Runner(source, Chain(), store).catch_up()
    with pytest.raises(InvalidInputError, match="raise its version"):
        await Runner(source, Wider(), store).catch_up()


async def test_verify_names_the_row_that_differs(memory: Memory, source: Source, store: Directory) -> None:
    await write(memory, 40)
    runner = Runner(source, Chain(), store)
    await runner.catch_up()
    verdict = await runner.verify()
    assert (verdict.equal, verdict.rows, verdict.checkpoint) == (True, 20, 40)
    view = await store.live("chain")
    assert view is not None
    head = await view.head()
    await view.aclose()
    _tamper(store.root / "chain.sqlite", "UPDATE chains SET events = 7 WHERE key = 'item_11'")
    verdict = await runner.verify()
    assert verdict.found is not None
    assert verdict.expected is not None
    assert (verdict.found[:3], verdict.expected[:3]) == (("chains", "item_11", 7), ("chains", "item_11", 2))
    assert head.checkpoint == verdict.checkpoint
    await runner.rebuild()
    assert (await runner.verify()).equal


def _tamper(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


async def test_there_is_nothing_to_verify_without_a_view(source: Source, store: Directory) -> None:
    with pytest.raises(NotFoundError, match="no view of 'chain'"):
        await Runner(source, Chain(), store).verify()


async def test_a_view_of_another_log_is_not_added_to(
    memory: Memory,
    source: Source,
    store: Directory,
    fresh_server: NatsServer,
    open_fabric: Callable[..., Awaitable[Fabric]],
) -> None:
    await write(memory, 40)
    await Runner(source, Chain(), store).catch_up()
    elsewhere = Source(await open_fabric(fresh_server))
    with pytest.raises(ProjectionError, match="another log"):
        await Runner(elsewhere, Chain(), store).catch_up()
    assert checkpoint_in(store.root / "chain.sqlite") == 40
    await Runner(elsewhere, Chain(), store).rebuild()
    assert chains_in(store.root / "chain.sqlite") == {}


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (" Commit", "COMMIT is not for projections: the runner begins and ends the transaction.*take it out"),
        ("-- done\nEND", "END is not for projections: the runner begins"),
        ("/* no */ ROLLBACK", "ROLLBACK is not for .*raise an exception"),
        ("BEGIN IMMEDIATE", "BEGIN is not for projections"),
        ("ATTACH ':memory:' AS other", "ATTACH is not for projections: a view is its own file"),
        ("UPDATE _projection SET checkpoint = 7", "the table _projection is the runner's: keep what the view needs in"),
        ("DROP TABLE _Projection", "the table _projection is the runner's"),
        ("CREATE TRIGGER t AFTER UPDATE ON _projection BEGIN DELETE FROM chains; END", "_projection is the runner's"),
    ],
)
@pytest.mark.parametrize("through", ["view", "cursor"])
async def test_apply_is_told_why_a_statement_is_its_runners(
    memory: Memory, source: Source, store: Directory, statement: str, said: str, through: str
) -> None:
    class Committing(Chain):
        def apply(self, event: Event, view: Any) -> None:
            checkpoint = view.execute("SELECT checkpoint FROM _projection")  # to look at it is nobody's harm
            (view if through == "view" else checkpoint).execute(statement)

    await write(memory, 20)
    with pytest.raises(ProjectionError, match=said):
        await Runner(source, Committing(), store).catch_up()
    assert chains_in(store.root / "chain.sqlite") == {}


async def test_a_cursor_is_no_way_around_the_runners_transaction(
    memory: Memory, source: Source, store: Directory
) -> None:
    class Sly(Chain):
        def apply(self, event: Event, view: Any) -> None:
            super().apply(event, view)
            cursor = view.execute("SELECT 1")
            with pytest.raises(AttributeError, match="a view has no connection"):
                cursor.connection.commit()
            with pytest.raises(sqlite3.ProgrammingError, match="executescript is not for projections"):
                cursor.executescript("SELECT 1")
            with suppress(sqlite3.IntegrityError):
                cursor.execute("INSERT OR ROLLBACK INTO chains SELECT * FROM chains")
            cursor.execute("INSERT INTO chains VALUES ('apart', 1, 'x')")

    await write(memory, 20)
    with pytest.raises(ProjectionError, match="rolled back the runner's transaction"):
        await Runner(source, Sly(), store).catch_up()
    assert chains_in(store.root / "chain.sqlite") == {}


@pytest.mark.parametrize("passes_over", [False, True])
@pytest.mark.parametrize("and_more", [False, True])
async def test_a_conflict_that_ends_the_transaction_stops_the_projection(
    memory: Memory, source: Source, store: Directory, passes_over: bool, and_more: bool
) -> None:
    class RollingBack(Chain):
        def apply(self, event: Event, view: Any) -> None:
            try:
                view.execute("INSERT OR ROLLBACK INTO chains VALUES (?, 1, '')", (event.key,))
            except sqlite3.IntegrityError:
                if not passes_over:
                    raise

    await memory.set_many({"item_1": 1, "item_2": 1})
    last = await memory.set("item_1", 2)
    if and_more:
        await memory.set("item_3", 1)
    with pytest.raises(ProjectionError, match=r"has rolled back the runner's transaction.*say ABORT"):
        await Runner(source, RollingBack(), store).catch_up()
    before = {} if passes_over else {"item_1": (1, ""), "item_2": (1, "")}
    assert chains_in(store.root / "chain.sqlite") == before
    assert checkpoint_in(store.root / "chain.sqlite") == (0 if passes_over else last - 1)


async def test_one_that_stands_by_says_so(
    memory: Memory, source: Source, store: Directory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agentfield.projections")
    async with running(Runner(source, Chain(), store)):
        await eventually(lambda: (store.root / "chain.sqlite").exists(), within=10)
        assert "stands by" not in caplog.text
        async with running(Runner(source, Chain(), store)):
            await eventually(lambda: "chain stands by: another instance runs it" in caplog.text, within=10)


async def test_several_that_catch_up_at_once_apply_every_event_once(
    memory: Memory, source: Source, store: Directory
) -> None:
    await write(memory, 3000)
    await asyncio.gather(*(Runner(source, Chain(), store).catch_up() for _ in range(3)))
    assert chains_in(store.root / "chain.sqlite") == await folded(memory.history("item_*"))
    assert rows(store.root / "chain.sqlite", "SELECT events FROM _projection") == [(3000,)]


async def test_a_runner_waits_out_an_outage(
    fresh_server: NatsServer, store: Directory, open_fabric: Callable[..., Awaitable[Fabric]], namespace: str
) -> None:
    source = Source(await open_fabric(fresh_server))
    path = store.root / "chain.sqlite"
    async with (
        connect(fresh_server.url, namespace=namespace, timeout=30) as memory,
        running(Runner(source, Chain(), store)),
    ):
        before = await write(memory, 20)
        await eventually(lambda: checkpoint_in(path) == before, within=15)
        await fresh_server.restart(gracefully=False)
        last = await write(memory, 20, start=20)
        await eventually(lambda: checkpoint_in(path) == last, within=20)
        assert chains_in(path) == await folded(memory.history("item_*"))


async def test_large_values_are_not_held_by_the_hundred(memory: Memory, source: Source) -> None:
    for number in range(5):
        await memory.set(f"item_{number}", "x" * 3_000_000)
    selection = Selection.of(Chain())
    async with source.feed(selection, 1) as feed:
        past = [len(batch.events) async for batch in feed.until(5, lambda: 500)]
    async with source.feed(selection, 1) as feed:
        live = [len((await feed.batch(500)).events) for _ in range(2)]
    assert past == [3, 2]
    assert max(live) <= 3


async def test_a_view_that_another_process_keeps_to_itself_is_waited_for(
    memory: Memory, source: Source, store: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.stores.sqlite._BUSY", 0.2)
    path = store.root / "chain.sqlite"
    await Runner(source, Chain(), store).catch_up()
    last = await write(memory, 20)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(ProjectionError, match="locked"):
            await Runner(source, Chain(), store).catch_up()
        async with running(Runner(source, Chain(), store)) as (task,):
            await asyncio.wait({task}, timeout=1)
            assert not task.done()
            holder.execute("ROLLBACK")
            await eventually(lambda: checkpoint_in(path) == last, within=15)


async def test_who_waits_for_another_process_to_end_can_be_stopped(
    memory: Memory, source: Source, store: Directory
) -> None:
    path = store.root / "chain.sqlite"
    await Runner(source, Chain(), store).catch_up()
    await write(memory, 20)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(Runner(source, Chain(), store).catch_up())
        await asyncio.wait({waiting}, timeout=1)
        waiting.cancel()
        assert await asyncio.wait({waiting}, timeout=5) == ({waiting}, set())
    assert checkpoint_in(path) == 0


def _yielding(self: Any, event: Event, view: Any) -> Iterator[None]:
    yield


async def _yielding_later(self: Any, view: Any) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"name": "Not A Name"}, "1 to 32"),
        ({"name": "archive"}, "as one that ships"),
        ({"name": "state"}, "as one that ships"),
        ({"version": 0}, "a whole number, 1 or more"),
        ({"patterns": ()}, "hears no pattern"),
        ({"patterns": "a>"}, "'>'"),
        ({"scopes": ("everywhere",)}, "which is none"),
        ({"store": "paper"}, "one of sqlite, duckdb, bucket"),
        ({"apply": _yielding}, r"apply\(\) of projection 'chain' has a yield in it"),
        ({"prepare": _yielding_later}, "has a yield in it"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_opened(attributes: dict[str, Any], said: str) -> None:
    wrong: type[Projection] = type("Wrong", (Chain,), attributes)
    with pytest.raises(InvalidInputError, match=said):
        Runner(None, wrong(), None)  # type: ignore[arg-type]


class Values(Projection):
    """Every event as a handler would get it."""

    name = "values"
    previous = True

    def prepare(self, view: Any) -> None:
        view.execute("CREATE TABLE found (revision INTEGER, key TEXT, data TEXT, before TEXT, erased INTEGER)")

    def apply(self, event: Event, view: Any) -> None:
        data, before = (None if value is None else str(value) for value in (event.data, event.previous_data))
        view.execute(
            "INSERT INTO found VALUES (?, ?, ?, ?, ?)", (event.revision, event.key, data, before, event.erased)
        )


@pytest.fixture
async def personal(memory: Memory) -> Memory:
    """Return the memory of one user's session, in a namespace where sessions are personal."""
    await memory.set_personal(["session"])
    user = memory.session("user-1")
    await user.set("email", "ada@example.org")
    await user.set("email", "x" * 300_000)
    return user


async def test_events_of_personal_values_come_decrypted_and_erased_ones_come_as_such(
    memory: Memory, personal: Memory, source: Source, store: Directory
) -> None:
    runner = Runner(source, Values(), store)
    await runner.catch_up()
    found = "SELECT data, before, erased FROM found WHERE key = 'email' ORDER BY revision"
    path = store.root / "values.sqlite"
    assert rows(path, found) == [("ada@example.org", None, 0), ("x" * 300_000, "ada@example.org", 0)]
    await memory.erase(scope="session", scope_id="user-1")
    await personal.set("email", "new")
    await runner.rebuild()
    assert rows(path, found) == [(None, None, 1), (None, None, 1), (None, None, 0), ("new", None, 0)]
    assert (await runner.verify()).equal


async def test_a_rebuilt_timeline_and_metrics_hold_nothing_that_was_erased(
    memory: Memory, personal: Memory, source: Source, store: Directory
) -> None:
    for projection in (Timeline(), Metrics()):
        await Runner(source, projection, store).catch_up()
    await memory.erase(scope="session", scope_id="user-1")
    for projection in (Timeline(), Metrics()):
        await Runner(source, projection, store).rebuild()
    lines = rows(store.root / "timeline.sqlite", "SELECT size, value FROM events WHERE key = 'email'")
    assert lines == [(0, None)] * 3
    assert rows(store.root / "timeline.sqlite", "SELECT count(*) FROM words WHERE words MATCH 'ada'") == [(0,)]
    assert rows(store.root / "metrics.sqlite", "SELECT writes, bytes, size FROM keys WHERE key = 'email'") == [
        (3, 0, None)
    ]
    assert all(b"ada@example" not in path.read_bytes() for path in store.root.rglob("*") if path.is_file())
