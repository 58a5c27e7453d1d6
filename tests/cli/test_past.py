"""as-of, diff and revert: what was, what has changed since, and going back, with a question first."""

import os
import pty
import subprocess

import pytest

from agentfield import Memory
from tests.cli.command import Cli
from tests.cli.conftest import Remember
from tests.support.forking import SCRIPT


@pytest.fixture
def changed(cli: Cli, remember: Remember) -> Cli:
    """Return the command line on a log in which much has changed after revision 4."""

    async def write(memory: Memory) -> None:
        await memory.set_many({"order_1": "new", "order_2": {"id": 2, "lines": list(range(30))}, "cart": 1})
        await memory.set("order_1", "elsewhere", scope="session", scope_id="s")
        await memory.set("order_1", "paid")
        await memory.set("order_2", {"id": 2, "lines": [0, 1, 2, "three", *range(4, 30)]})
        await memory.delete("cart")
        await memory.set("comes", "\x1b[31m\x9b")

    remember(write)
    return cli


# -- as-of ------------------------------------------------------------------------------------------------------------


def test_as_of_prints_a_value_as_get_does(changed: Cli) -> None:
    assert changed("as-of", "4", "cart").out == "1\n"
    assert changed("as-of", "4", "order_1", "--global").out == "new\n"
    entry = changed("as-of", "4", "order_1", "--session", "s", "--json").object
    assert (entry["value"], entry["revision"], entry["scope"]) == ("elsewhere", 4, "session")
    assert changed("as-of", entry["timestamp"], "cart").out == "1\n"


def test_as_of_lists_entries_as_ls_does(changed: Cli) -> None:
    lines = changed("as-of", "4").lines
    assert [line.split()[:3] for line in lines] == [
        ["scope", "id", "key"],
        ["global", "-", "cart"],
        ["global", "-", "order_1"],
        ["global", "-", "order_2"],
        ["session", "s", "order_1"],
    ]
    assert [entry["key"] for entry in changed("as-of", "4", "order_*", "--global", "--json").objects] == [
        "order_1",
        "order_2",
    ]
    empty = changed("as-of", "1h")
    assert (empty.code, empty.out, empty.err) == (0, "", "no entry matched '*'\n")


def test_as_of_says_what_was_not_there(changed: Cli) -> None:
    done = changed("as-of", "2", "order_1", "--session", "s")
    assert (done.code, done.error) == (3, "there was then no 'order_1' in session 's'")
    done = changed("as-of", "4", "order_1")
    assert (done.code, "was in 2 scopes: choose one with" in done.error) == (2, True)
    done = changed("as-of", "99", "cart")
    assert (done.code, done.error) == (2, "POINT=99 lies in the future: the log's last revision is 8")


# -- diff -------------------------------------------------------------------------------------------------------------


def test_diff_shows_a_key_a_line_and_what_is_long_line_by_line(changed: Cli) -> None:
    done = changed("diff", "*", "4", "--global")
    assert done.code == 0
    assert done.lines == [
        "- r3 global cart 1",
        '+ r8 global comes "\\u001b[31m\\x9b"',
        '~ r1 → r5 global order_1 "new" → "paid"',
        "~ r2 → r6 global order_2",
        "         1,",
        "         2,",
        "    -    3,",
        '    +    "three",',
        "         4,",
        "         5,",
    ]
    assert done.err.startswith("4 keys: 1 added, 1 removed, 2 changed, between revision 4 (20")


def test_diff_gives_programs_an_object_a_key(changed: Cli) -> None:
    done = changed("diff", "order_1", "2", "5", "--json")
    assert done.err == ""
    added, paid = sorted(done.objects, key=lambda each: each["change"])
    assert (added["change"], added["before"], added["after"]["value"], added["scope"]) == (
        "added",
        None,
        "elsewhere",
        "session",
    )
    assert (paid["change"], paid["before"]["value"], paid["after"]["value"]) == ("changed", "new", "paid")


def test_diff_of_what_is_the_same_says_so(changed: Cli) -> None:
    done = changed("diff", "order_1", "5")
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("nothing differs between revision 5 (")


def test_what_went_is_red_and_what_came_green_on_a_terminal(changed: Cli) -> None:
    shown = changed.on_terminal("diff", "order_*", "4", "--global", with_notes=True)
    assert '\x1b[31m"new"\x1b[0m \x1b[2m→\x1b[0m \x1b[32m"paid"\x1b[0m' in shown
    assert "\x1b[31m    -    3,\x1b[0m" in shown
    assert '\x1b[32m    +    "three",\x1b[0m' in shown


def test_a_value_that_is_very_long_is_not_shown_whole(cli: Cli, remember: Remember) -> None:
    async def write(memory: Memory) -> None:
        await memory.set_many({"large": "x" * 250_000, "long": list(range(500))})

    remember(write)
    lines = cli("diff", "*", "0").lines
    assert lines[0] == "+ r1 global large (250 kB)"
    assert (len(lines), lines[-1]) == (63, "    … 442 more lines")


# -- revert -----------------------------------------------------------------------------------------------------------


def test_revert_brings_a_scope_back(changed: Cli) -> None:
    done = changed("revert", "*", "4", "--global", "--yes")
    assert (done.code, done.lines[:3]) == (
        0,
        ["+ r3 global cart 1", '- r8 global comes "\\u001b[31m\\x9b"', '~ r5 → r1 global order_1 "paid" → "new"'],
    )
    assert done.err.startswith("reverted 4 keys: 1 added, 1 removed, 2 changed, in the global scope to revision 4 (")
    assert changed("get", "order_1", "--global").out == "new\n"
    again = changed("revert", "*", "4", "--global", "--yes")
    assert (again.code, again.out) == (0, "")
    assert again.err.startswith("nothing to revert: '*' in the global scope is what it was at revision 4 (")


def test_revert_names_its_argument_where_the_log_has_not_come_so_far(changed: Cli) -> None:
    done = changed("revert", "order_1", "99", "--yes")
    assert (done.code, done.error) == (2, "POINT=99 lies in the future: the log's last revision is 8")


def test_revert_on_trial_writes_nothing(changed: Cli) -> None:
    done = changed("revert", "order_1", "4", "--dry-run")
    assert done.lines == ['~ r5 → r1 global order_1 "paid" → "new"']
    assert done.err.startswith("would revert 1 key: 1 changed, in the global scope to revision 4")
    planned = changed("revert", "order_1", "4", "--dry-run", "--json").object
    assert (planned["revision"], planned["changes"]["changed"][0]["after"]["value"]) == (None, "new")
    assert changed("get", "order_1", "--global").out == "paid\n"
    assert changed("revert", "order_1", "4", "--yes", "--json").object["revision"] == 9


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, "new"), ("n", 1, "paid"), ("", 1, "paid")])
def test_revert_asks_whoever_is_there(changed: Cli, answer: str, code: int, left: str) -> None:
    ours, terminal = pty.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        done = subprocess.run(
            [SCRIPT, "revert", "order_1", "4"],
            stdin=terminal,
            capture_output=True,
            timeout=30,
            env=changed.env,
            check=False,
        )
    finally:
        os.close(terminal)
        os.close(ours)
    assert (done.returncode, done.stdout.decode()) == (code, '~ r5 → r1 global order_1 "paid" → "new"\n')
    assert "revert 1 key: 1 changed, in the global scope to revision 4" in done.stderr.decode()
    assert changed("get", "order_1", "--global").out == f"{left}\n"


def test_revert_writes_nothing_where_nobody_can_answer(changed: Cli) -> None:
    done = changed("revert", "order_1", "4")
    assert (done.code, "add --yes or --dry-run" in done.error) == (2, True)
    done = changed("revert", "order_*", "4", "--yes")
    assert (done.code, "a pattern needs a scope" in done.error) == (2, True)
    assert changed("get", "order_1", "--global").out == "paid\n"
