"""Views in DuckDB keep what views promise, though one process at a time has the file open."""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

from agentfield import Event, InvalidInputError, Memory, ProjectionError
from agentfield.fabric.fabric import Fabric
from projections import Projection, Runner, Source, open_store
from projections.stores import Directory
from projections.stores.duckdb import DuckView
from projections.view import Moved
from tests.support import eventually


class Totals(Projection):
    name = "totals"
    patterns = "item_*"
    store = "duckdb"

    def prepare(self, view: Any) -> None:
        view.execute("CREATE TABLE totals (key TEXT PRIMARY KEY, events BIGINT, total BIGINT)")

    def apply(self, event: Event, view: Any) -> None:
        view.execute(
            "INSERT INTO totals VALUES (?, 1, ?) "
            "ON CONFLICT DO UPDATE SET events = events + 1, total = total + excluded.total",
            (event.key, event.data),
        )


@pytest.fixture
def source(fabric: Fabric) -> Source:
    return Source(fabric)


@pytest.fixture
def store(tmp_path: Path) -> Directory:
    return open_store(tmp_path)


def rows(store: Directory) -> dict[str, tuple[int, int]]:
    """What the view says, read as its users read it."""
    with duckdb.connect(str((store.root / "totals.duckdb").resolve()), read_only=True) as connection:
        found = connection.execute("SELECT key, events, total FROM totals").fetchall()
    return {key: (events, total) for key, events, total in found}


async def write(memory: Memory, count: int, *, start: int = 0) -> dict[str, tuple[int, int]]:
    """Write numbers over ten keys; what the totals of all up to the last one are."""
    for begin in range(start, start + count, 10):
        await memory.set_many({f"item_{number % 10}": number for number in range(begin, begin + 10)})
    numbers = {key: [n for n in range(start + count) if n % 10 == key] for key in range(10)}
    return {f"item_{key}": (len(found), sum(found)) for key, found in numbers.items()}


async def test_a_view_is_followed_rebuilt_and_verified(memory: Memory, source: Source, store: Directory) -> None:
    expected = await write(memory, 300)
    runner = Runner(source, Totals(), store)
    await runner.catch_up()
    assert rows(store) == expected
    verdict = await runner.verify()
    assert (verdict.equal, verdict.rows) == (True, 10)
    running = asyncio.create_task(runner.run())
    try:
        expected = await write(memory, 100, start=300)
        # Another process reads it: it can only if the runner has closed the file.
        await _shows(store, expected)
        await Runner(source, Totals(), store).rebuild()
        expected = await write(memory, 100, start=400)
        await _shows(store, expected)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _shows(store: Directory, expected: dict[str, tuple[int, int]]) -> None:
    async def shown() -> bool:
        return await _read_elsewhere(store) == expected

    await eventually(shown, within=20)


async def _read_elsewhere(store: Directory) -> dict[str, tuple[int, int]] | None:
    program = (
        "import duckdb, os, sys\n"
        "with duckdb.connect(os.path.realpath(sys.argv[1]), read_only=True) as connection:\n"
        "    print({key: (n, t) for key, n, t in connection.execute('SELECT * FROM totals').fetchall()})\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(store.root / "totals.duckdb")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await process.communicate()
    return dict(eval(out)) if process.returncode == 0 else None


async def test_others_get_at_the_file_while_much_is_written(memory: Memory, source: Source, store: Directory) -> None:
    class Unhurried(Totals):
        def apply(self, event: Event, view: Any) -> None:
            time.sleep(0.02)  # slower than the writes come, so that there is never nothing to apply
            super().apply(event, view)

    await write(memory, 1000)
    runner = Runner(source, Unhurried(), store)
    running = asyncio.create_task(runner.run())
    try:
        await eventually(lambda: (store.root / "totals.duckdb").exists(), within=10)

        async def seen() -> bool:
            return bool(await _read_elsewhere(store))

        await eventually(seen, within=20)
        assert sum(count for count, _ in (await _read_elsewhere(store) or {}).values()) < 1000
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_opening_a_file_that_is_gone_leaves_none(memory: Memory, source: Source, store: Directory) -> None:
    """As where another generation takes its place while somebody waits for it."""
    await write(memory, 10)
    await Runner(source, Totals(), store).catch_up()
    view = await store.live("totals")
    assert isinstance(view, DuckView)
    view.path.unlink()
    with pytest.raises(Moved):
        await asyncio.to_thread(view.connect, fresh=False)
    duckdb.connect(str(view.path)).close()  # what DuckDB does by itself
    with pytest.raises(Moved):
        await view.head()
    await view.aclose()
    assert list(view.path.parent.iterdir()) == []


async def test_a_result_can_be_fetched_and_nothing_else(memory: Memory, source: Source, store: Directory) -> None:
    class Fetching(Totals):
        def apply(self, event: Event, view: Any) -> None:
            result = view.execute("SELECT ? AS one", [event.data])
            assert (result.fetchone(), result.description[0][0]) == ((event.data,), "one")
            with pytest.raises(duckdb.TransactionException, match="COMMIT is not for projections"):
                result.execute("COMMIT")
            result.commit()

    await write(memory, 10)
    with pytest.raises(ProjectionError, match="a view has no 'commit'"):
        await Runner(source, Fetching(), store).catch_up()


async def test_what_apply_raises_is_undone(memory: Memory, source: Source, store: Directory) -> None:
    class Raising(Totals):
        def apply(self, event: Event, view: Any) -> None:
            super().apply(event, view)
            if event.data == 25:
                raise RuntimeError("not 25")

    await write(memory, 30)
    with pytest.raises(ProjectionError, match="not 25") as caught:
        await Runner(source, Raising(), store).catch_up()
    assert caught.value.sequence == 26
    assert rows(store)["item_5"] == (2, 20)
    await Runner(source, Totals(), store).catch_up()
    assert rows(store)["item_5"] == (3, 45)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (" Commit", "COMMIT is not for projections: the runner begins and ends the transaction.*take it out"),
        ("DELETE FROM totals; COMMIT", "COMMIT is not for projections"),
        ("ATTACH ':memory:' AS other", "ATTACH is not for projections: a view is its own file"),
        ('UPDATE main."_Projection" SET paused = 1', "the table _projection is the runner's"),
        ("SELECT 1; WITH a AS (SELECT 1) INSERT INTO _projection SELECT * FROM a", "the table _projection is the"),
    ],
)
async def test_apply_is_told_why_a_statement_is_its_runners(
    memory: Memory, source: Source, store: Directory, statement: str, said: str
) -> None:
    class Committing(Totals):
        def apply(self, event: Event, view: Any) -> None:
            view.execute("SELECT checkpoint FROM _projection WHERE name <> '_projection'")
            view.execute("UPDATE totals SET key = '_projection; it''s' WHERE false")
            view.execute(statement)

    await write(memory, 10)
    with pytest.raises(ProjectionError, match=said):
        await Runner(source, Committing(), store).catch_up()
    assert rows(store) == {}


async def test_an_error_that_apply_passes_over_stops_the_projection(
    memory: Memory, source: Source, store: Directory
) -> None:
    class PassingOver(Totals):
        def apply(self, event: Event, view: Any) -> None:
            try:
                view.execute("INSERT INTO totals VALUES (?, 1, 1)", (event.key,))
            except duckdb.Error:
                return

    await write(memory, 10)
    await memory.set("item_1", 1)
    with pytest.raises(ProjectionError, match=r"an error was passed over.*let apply raise it"):
        await Runner(source, PassingOver(), store).catch_up()
    assert rows(store) == {}


async def test_a_new_version_may_move_to_another_store(memory: Memory, source: Source, store: Directory) -> None:
    class InSqlite(Totals):
        version = 2
        store = "sqlite"

    await write(memory, 30)
    await Runner(source, Totals(), store).catch_up()
    await Runner(source, InSqlite(), store).catch_up()
    assert [path.name for path in store.root.glob("totals.*")] == ["totals.sqlite"]
    assert [path.name for path in (store.root / "totals").iterdir()] == ["2.sqlite"]


async def test_without_the_package_the_remedy_is_named(
    memory: Memory, source: Source, store: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(InvalidInputError, match=r"pip install 'agentfield\[duckdb\]'"):
        await Runner(source, Totals(), store).catch_up()
