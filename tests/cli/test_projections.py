"""``agentfield projections``, ``timeline`` and ``metrics``: views of the log, from a terminal."""

import json
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from agentfield import Memory
from agentfield.audit.keyfile import make_key
from tests.cli.command import Cli
from tests.cli.conftest import Remember
from tests.support import wait_until
from tests.support.searching import files_with

SPENDING = """\
from projections import Projection


class Spending(Projection):
    name = "spending"
    patterns = "order_*"
    {more}

    def prepare(self, view):
        view.execute("CREATE TABLE spending (customer TEXT PRIMARY KEY, total REAL)")

    def apply(self, event, view):
        view.execute(
            "INSERT INTO spending VALUES (?, ?) ON CONFLICT DO UPDATE SET total = total + excluded.total",
            (event.data["customer"], float(event.data["amount"])),
        )
"""


@pytest.fixture
def spending(tmp_path: Path) -> Path:
    path = tmp_path / "spending.py"
    path.write_text(SPENDING.format(more=""))
    return path


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "views")


def orders(remember: Remember, *amounts: Any) -> None:
    async def write(memory: Memory) -> None:
        for number, amount in enumerate(amounts):
            await memory.set(f"order_{number}", {"customer": "ann", "amount": amount})

    remember(write)


def totals(store: str) -> list[Any]:
    connection = sqlite3.connect(f"file:{store}/spending.sqlite?mode=ro", uri=True)
    try:
        return connection.execute("SELECT customer, total FROM spending").fetchall()
    finally:
        connection.close()


def test_a_projection_of_a_users_file_lives_through_every_command(
    cli: Cli, remember: Remember, spending: Path, store: str
) -> None:
    orders(remember, 3, 4)
    where = ("--store", store)
    assert cli("projections", "run", "--once", str(spending), *where).out == "spending is current up to event 2\n"
    assert totals(store) == [("ann", 7.0)]
    orders(remember, 5)
    (status,) = cli("projections", "status", "--json", *where).objects
    assert {name: status[name] for name in ("projection", "version", "state", "checkpoint", "lag", "events")} == {
        "projection": "spending", "version": 1, "state": "idle", "checkpoint": 2, "lag": 1, "events": 2,
    }  # fmt: skip
    assert cli("projections", "rebuild", str(spending), *where).out == "spending was rebuilt up to event 3\n"
    assert totals(store) == [("ann", 12.0)]
    assert cli("projections", "verify", str(spending), *where, "--json").object["equal"]
    assert "spending" in cli("projections", "list", *where).out
    assert cli("projections", "remove", "spending", *where).out == "the view of spending is removed\n"
    again = cli("projections", "remove", "spending", *where)
    assert (again.code, again.error.split(" in ")[0]) == (3, "there is no view of 'spending'")


def test_a_view_that_cannot_be_read_is_shown_with_its_remedy_and_hides_no_other(
    cli: Cli, remember: Remember, spending: Path, store: str
) -> None:
    orders(remember, 3)
    cli("projections", "run", "--once", str(spending), "metrics", "--store", store)
    (Path(store) / "spending" / "1.sqlite").write_bytes(b"nothing of SQLite" * 1000)
    shown = cli("projections", "status", "--store", store)
    assert shown.code == 0
    assert [line.split()[:4] for line in shown.out.splitlines()[1:3]] == [
        ["metrics", "1", "idle", "1"],
        ["spending", "-", "unreadable", "-"],
    ]
    assert "take it away with `agentfield projections remove spending`, and its projection makes it anew" in shown.out
    (row,) = cli("projections", "status", "spending", "--json", "--store", store).objects
    assert (row["state"], row["checkpoint"], "not a database" in row["error"]) == ("unreadable", None, True)
    assert cli("projections", "remove", "spending", "--store", store).code == 0
    cli("projections", "run", "--once", str(spending), "--store", store)
    assert totals(store) == [("ann", 3.0)]


def test_a_view_whose_files_were_thrown_away_is_made_anew(
    cli: Cli, remember: Remember, spending: Path, store: str
) -> None:
    orders(remember, 3)
    cli("projections", "run", "--once", str(spending), "--store", store)
    cli("projections", "rebuild", str(spending), "--store", store)
    shutil.rmtree(Path(store) / "spending")
    assert "there are no views" in cli("projections", "status", "--store", store).err
    assert cli("projections", "verify", str(spending), "--store", store).code == 3
    assert cli("projections", "run", "--once", str(spending), "--store", store).code == 0
    assert totals(store) == [("ann", 3.0)]


def test_trimming_says_which_view_holds_it_back_and_what_to_do(
    cli: Cli, remember: Remember, spending: Path, store: str
) -> None:
    orders(remember, 3)
    where = ("--store", store)
    cli("projections", "run", "--once", str(spending), *where)
    spending.write_text(SPENDING.format(more="version = 2").replace('["amount"]', '["nothing"]'))
    assert cli("projections", "rebuild", str(spending), *where).code == 1
    cli("projections", "run", "--once", "archive", *where)
    said = cli("archive", "trim", "--dry-run", *where).err
    assert "held back by the unfinished rebuild of the projection spending, from revision 1 on" in said
    assert "`agentfield projections rebuild` with its code goes on with it" in said
    spending.write_text(SPENDING.format(more=""))
    cli("projections", "rebuild", str(spending), *where)
    assert "nobody needs more of it" in cli("archive", "trim", "--dry-run", *where).err
    orders(remember, 4)
    cli("projections", "run", "--once", "archive", *where)
    said = cli("archive", "show", *where).out
    assert "held back by the projection spending, from revision 2 on: run it, or `agentfield projections remove" in said


def test_views_live_beside_the_embedded_server_by_default(
    cli: Cli, remember: Remember, spending: Path, tmp_path: Path, namespace: str
) -> None:
    orders(remember, 1)
    cli.env["AGENTFIELD_HOME"] = str(tmp_path / "home")
    assert cli("projections", "run", "--once", str(spending)).code == 0
    assert totals(str(tmp_path / "home" / "projections" / namespace)) == [("ann", 1.0)]


def test_verify_fails_where_a_view_is_not_what_the_log_says(
    cli: Cli, remember: Remember, spending: Path, store: str
) -> None:
    orders(remember, 3)
    cli("projections", "run", "--once", str(spending), "--store", store)
    connection = sqlite3.connect(f"{store}/spending.sqlite")
    connection.execute("UPDATE spending SET total = 1")
    connection.commit()
    connection.close()
    done = cli("projections", "verify", str(spending), "--store", store)
    assert done.code == 1
    assert "it has ('spending', 'ann', 1.0) where ('spending', 'ann', 3.0) should be" in done.error


def test_one_that_fails_is_told_of_while_the_other_runs_on(
    cli: Cli, remember: Remember, spending: Path, store: str
) -> None:
    orders(remember, 3, "many")
    running = cli.start("projections", "run", str(spending), "metrics", "--store", store)
    try:
        assert "projection spending stopped at event 2, 'order_1'" in running.wait_line("stopped at event")

        def caught_up() -> bool:
            rows = cli("projections", "status", "--json", "--store", store).objects
            states = {row["projection"]: (row["state"], row["checkpoint"], row["failed_at"]) for row in rows}
            return states == {"spending": ("stopped", 1, 2), "metrics": ("running", 2, None)}

        wait_until(caught_up, within=20, what="metrics runs, spending has stopped")
        refused = cli("projections", "remove", "metrics", "--store", store)
        assert (refused.code, refused.error) == (3, "metrics is being run: stop it first; nothing was removed")
    finally:
        assert running.end(signal.SIGTERM).code == 0


def test_when_all_have_stopped_the_command_fails(cli: Cli, remember: Remember, spending: Path, store: str) -> None:
    orders(remember, "many")
    for once in ((), ("--once",)):
        done = cli("projections", "run", str(spending), "--store", store, *once)
        assert done.code == 1
        assert "error: projection spending stopped at event 1, 'order_0'" in done.err
        assert "spending.py:" in done.err, "the place in the user's code is missing"


def test_a_paused_view_is_left_alone(cli: Cli, remember: Remember, spending: Path, store: str) -> None:
    orders(remember, 3)
    where = ("--store", store)
    cli("projections", "run", "--once", str(spending), *where)
    assert cli("projections", "pause", "spending", *where).out == "spending is paused after event 1\n"
    orders(remember, 4)
    done = cli("projections", "run", "--once", str(spending), *where)
    assert (done.code, done.out) == (1, "")
    assert "spending is paused after event 1: `agentfield projections resume spending`" in done.err
    cli("projections", "rebuild", str(spending), *where)
    assert cli("projections", "status", "spending", "--json", *where).object["checkpoint"] == 2
    assert cli("projections", "status", "spending", "--json", *where).object["state"] == "paused"
    assert cli("projections", "resume", "spending", *where).out == "spending goes on after event 2\n"
    assert cli("projections", "run", "--once", str(spending), *where).out == "spending is current up to event 2\n"


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "nosuch"), "projections that ship: timeline, metrics, archive, seals, state"),
        (("run", "empty.py"), "defines no projection"),
        (("run", "idle.py"), "Spending in idle.py has no apply(): write `def apply(self, event, view)`"),
        (("run", "idle.py:spending"), "Spending in idle.py has no apply()"),
        (("run", "idle.py:other"), "idle.py defines no projection called 'other'"),
        (("run", "timeline", "timeline"), "two projections are called 'timeline'"),
        (("rebuild", "nosuch.py:a"), "there is no file nosuch.py"),
        (("run", "spending.py:Spending"), "defines no projection called 'Spending', but spending"),
        (("rebuild", "wrong.py"), "not 1 to 32 of a-z"),
        (("status", "nosuch"), "there is no view of 'nosuch'"),
        (("pause", "nosuch"), "there is no view of 'nosuch'"),
        (("verify", "timeline"), "there is no view of 'timeline'"),
        (("verify", "timeline", "--public-key", "A"), "--public-key is for seals alone"),
        (("run", "seals"), "seals are signed: give --key FILE"),
        (("run", "timeline", "--key", "spending.py"), "--key is for seals alone"),
        (("rebuild", "seals"), "seals are not made anew, nor taken away"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    cli: Cli, spending: Path, store: str, arguments: tuple[str, ...], said: str
) -> None:
    (spending.parent / "empty.py").write_text("")
    (spending.parent / "idle.py").write_text(SPENDING.format(more="").replace("def apply", "def aply"))
    (spending.parent / "wrong.py").write_text(SPENDING.format(more="").replace('name = "spending"', 'name = "My view"'))
    done = cli("projections", *arguments, "--store", store, cwd=spending.parent)
    assert done.code in (2, 3)
    assert said in done.error


def test_the_buckets_of_the_server_are_verified_and_made_anew(cli: Cli, remember: Remember, namespace: str) -> None:
    orders(remember, 3, 4)
    said = f"as of event 2, bucket {namespace}-global (2 keys) is what the log says\n"
    assert cli("projections", "verify", "state:global").out == said
    assert cli("projections", "rebuild", "state:global").out == said
    assert [each["keys"] for each in cli("projections", "verify", "state", "--json").objects] == [0, 0, 0, 2]
    assert "one of workflow, session" in cli("projections", "verify", "state:every").error
    assert "the server itself keeps the state" in cli("projections", "run", "state").error


def test_seals_are_a_projection_and_audit_seal_is_the_same_one(
    cli: Cli, remember: Remember, store: str, tmp_path: Path, namespace: str
) -> None:
    orders(remember, 3, 4)
    key, where = str(tmp_path / "audit.key"), ("--store", store)
    public = make_key(Path(key)).public
    run = ("projections", "run", "seals", "--key", key, *where)
    assert cli(*run, "--once").out == "seals is current up to event 2\n"
    orders(remember, 5)
    assert cli("audit", "seal", "--key", key).out == "seal 2 revisions 3 to 3\n"
    (status,) = cli("projections", "status", "--json", *where).objects
    named = ("projection", "state", "checkpoint", "lag", "events", "view")
    assert [status[name] for name in named] == ["seals", "idle", 3, 0, 3, f"{namespace.upper()}_SEALS"]
    verified = cli("projections", "verify", "seals", "--public-key", public)
    assert "verified revisions 1 to 3 (3 events, 2 seals)" in verified.out
    assert cli("projections", "pause", "seals", *where).out == "seals is paused after event 3\n"
    paused = cli("audit", "seal", "--key", key)
    assert (paused.code, "seals is paused after event 3: `agentfield projections resume" in paused.err) == (1, True)
    assert cli("projections", "resume", "seals", *where).code == 0
    running = cli.start(*run)
    try:
        running.wait_line("projection seals runs from event 4 on")
    finally:
        assert running.end(signal.SIGTERM).code == 0
    refused = cli("projections", "remove", "seals", *where)
    assert (refused.code, "seals are not made anew, nor taken away" in refused.error) == (2, True)


def test_a_view_that_owes_an_erasure_is_shown_until_it_has_dropped_it(
    cli: Cli, remember: Remember, store: str, tmp_path: Path
) -> None:
    async def write(memory: Memory) -> None:
        await memory.set_personal(["session"])
        await memory.session("s-1").set("email", "ada@example.org")

    remember(write)
    where = ("--store", store)
    cli("projections", "run", "--once", "timeline", *where)
    erased = cli("erase", "session", "s-1", "--yes", "--json")
    (name,) = erased.object["views"]
    assert (erased.code, erased.object["views"][name]) == (1, "not running")
    status = cli("projections", "status", *where)
    assert "timeline owes 1 erasure: run it, or rebuild it" in status.out
    elsewhere = cli("projections", "status", "--store", str(tmp_path / "others"))
    assert f"view {name}, which is kept elsewhere, has not confirmed 1 erasure" in elsewhere.err
    assert cli("timeline", "ada", *where).lines == []
    (row,) = cli("projections", "status", "--json", *where).objects
    assert (row["owes"], row["registered"]) == (0, name)
    assert not files_with(Path(store), b"ada@example")
    assert cli("projections", "remove", "timeline", *where).code == 0
    assert cli("erase", "session", "s-1", "--yes", "--json").object["views"] == {}


def test_the_timeline_finds_who_did_what(cli: Cli, remember: Remember, store: str) -> None:
    async def write(memory: Memory) -> None:
        await memory.session("s-1").set("ticket_42_message", "Where is my refund?")
        await memory.set("ticket_43", {"note": "Refund paid", "amount": 12})
        await memory.set("other", "[a?b*c]")
        await memory.delete("ticket_43")

    remember(write)
    where = ("--store", store, "--json")

    def revisions(*arguments: str) -> list[int]:
        return [line["revision"] for line in cli("timeline", *arguments, *where).objects]

    assert revisions() == [1, 2, 3, 4]
    assert revisions("refu*", "--session", "s-1") == [1]
    assert revisions("--key", "ticket_*", "--limit", "1", "--oldest", "--since", "2", "--until", "3") == [2]
    assert revisions('"quo"ted (', "AND") == []
    assert cli("timeline", "paid", *where).object["value"] == {"note": "Refund paid", "amount": 12}


def test_a_view_is_asked_as_it_is_without_any_server(cli: Cli, remember: Remember, store: str) -> None:
    orders(remember, 3)
    nowhere = ("--url", "nats://127.0.0.1:1", "--as-is", "--store", store)
    assert cli("timeline", *nowhere).code == 3
    assert len(cli("timeline", "--store", store).lines) == 1
    orders(remember, 4, 5)
    assert len(cli("timeline", *nowhere).lines) == 1
    assert len(cli("timeline", "--store", store).lines) == 3


def test_metrics_say_how_much_by_whom_and_where(cli: Cli, remember: Remember, store: str) -> None:
    async def write(memory: Memory) -> None:
        for _ in range(3):
            await memory.set("hot", "1234")
        await memory.session("s").set("gone", 1)
        await memory.session("s").delete("gone")

    remember(write)
    found = cli("metrics", "--json", "--store", store).objects
    by_kind: dict[str, list[Any]] = {}
    for row in found:
        by_kind.setdefault(row.pop("metric"), []).append(row)
    assert by_kind["rates"] == [
        {"scope": "global", "sets": 3, "deletes": 0, "bytes": 18},
        {"scope": "session", "sets": 1, "deletes": 1, "bytes": 1},
    ]
    assert [(row["key"], row["writes"], row["bytes"], row["size"]) for row in by_kind["keys"]] == [
        ("hot", 3, 18, 6),
        ("gone", 2, 1, None),
    ]
    assert [(row["agent"], row["writes"]) for row in by_kind["writers"]] == [("", 5)]
    assert json.dumps(found)
    assert "hot" in cli("metrics", "--top", "1", "--store", store).out
