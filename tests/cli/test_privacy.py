"""personal and erase: what is personal, and a receipt for what is not readable any more."""

from __future__ import annotations

import pytest

from agentfield import ErasureReceipt, Memory
from tests.cli.command import Cli
from tests.cli.conftest import Remember

SECRET = "ada@example.org"


@pytest.fixture
def private(cli: Cli) -> Cli:
    """Return the command line in a namespace where sessions and e-mail addresses are personal."""
    assert cli("personal", "set", "session", "--pattern", "user_*_email").code == 0
    return cli


@pytest.mark.usefixtures("used")
def test_nothing_is_personal_until_it_is_said(cli: Cli) -> None:
    assert cli("personal").lines == ["personal: nothing"]
    done = cli("personal", "set", "session", "actor", "--pattern", "user_*_email", "--pattern", "a")
    assert done.lines == ["personal: every session, every actor, keys 'user_*_email', keys 'a'"]
    assert done.err == "from now on; what was written before stays readable in the history\n"
    assert cli("personal", "--json").object == {"scopes": ["session", "actor"], "patterns": ["user_*_email", "a"]}
    assert cli("personal", "off").lines == ["personal: nothing"]
    assert cli("personal", "show", "--json").object == {"scopes": [], "patterns": []}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["set"], "at least one scope or --pattern"),
        (["set", "global"], "cannot be personal as a whole"),
        (["set", "--pattern", "a>"], "pattern"),
        (["off", "session"], "takes no scopes"),
        (["show", "--pattern", "a"], "takes no scopes"),
        (["unset"], "unset"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_wrong_usage(cli: Cli, args: list[str], said: str) -> None:
    done = cli("personal", *args)
    assert (done.code, said in done.err) == (2, True), done


def test_commands_show_personal_values_to_who_may_read_them(private: Cli) -> None:
    private("set", "email", SECRET, "--session", "u")
    assert private("get", "email", "--session", "u").lines == [SECRET]
    assert SECRET in private("ls", "--session", "u").out
    assert SECRET in private("history", "email").out


def test_an_erasure_prints_its_receipt_and_stores_it(private: Cli, remember: Remember) -> None:
    private("set", "email", SECRET, "--session", "u")
    private("set", "email", "new", "--session", "u")
    done = private("erase", "session", "u", "--yes", "--by", "Grace")
    assert (done.code, done.err) == (0, "")
    shown = {line[:10].strip(): line[10:].strip() for line in done.lines}
    assert (shown["what"], shown["by"], shown["erased"]) == ("session:u", "Grace", "2 events, revisions 2–3")
    key = done.lines[-1].split()[-1]

    async def stored(memory: Memory) -> ErasureReceipt | None:
        return await memory.get(key, scope="global", as_type=ErasureReceipt)

    receipt = remember(stored)
    assert (receipt.by, receipt.covered, receipt.deleted) == ("Grace", 2, 1)
    assert private("get", "email", "--session", "u").code == 3
    events = private("history", "email", "--json").objects
    assert [(event["data"], event["erased"]) for event in events] == [(None, True), (None, True), (None, False)]
    lines = private("history", "email").lines
    assert [line.split()[-1] for line in lines] == ["erased", "erased", "cleared"]


def test_what_is_not_done_yet_is_said_with_the_remedy(private: Cli) -> None:
    private("set", "email", SECRET, "--session", "u")
    private("set", "plaintext_view_table-1", '{"handled": 0}', "--global")
    done = private("erase", "session", "u", "--yes")
    assert (done.code, "NOT dropped yet by table-1: run it" in done.err) == (1, True)
    private("delete", "plaintext_view_table-1", "--global")
    done = private("erase", "session", "mistyped", "--yes")
    assert (done.code, "is the name right?" in done.err) == (0, True)


def test_what_was_written_in_plain_is_said_to_be_left_and_fails(cli: Cli) -> None:
    cli("set", "email", SECRET, "--session", "u")
    cli("personal", "set", "session")
    done = cli("erase", "session", "u", "--yes", "--json")
    assert done.code == 1
    assert [(tally["fate"], tally["events"]) for tally in done.object["tallies"]] == [("not personal", 1)]
    done = cli("erase", "session", "u", "--yes")
    assert (done.code, "NOT covered, and readable in the history: 1 value, stored in plain" in done.err) == (1, True)


def test_a_pattern_is_erased_in_the_scope_that_is_named_or_everywhere(private: Cli) -> None:
    for where in (["--global"], ["--session", "u"]):
        private("set", "user_1_email", SECRET, *where)
    done = private("erase", "pattern", "user_1_*", "--global", "--yes", "--json")
    assert (done.code, done.object["deleted"], done.object["erased"]) == (0, 1, "user_1_* in global")
    assert private("get", "user_1_email").lines == [SECRET]
    assert private("erase", "pattern", "user_1_*", "--yes", "--json").object["deleted"] == 1
    assert private("get", "user_1_email").code == 3


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["session", "u"], "add --yes"),
        (["session", "u", "--yes", "--global"], "is a scope by itself"),
        (["pattern", "*", "--yes"], "can only be a slip"),
        (["pattern", "*", "--global", "--yes"], "can only be a slip"),
        (["global", "x", "--yes"], "global"),
        (["session"], "ID_OR_PATTERN"),
    ],
)
def test_an_erasure_that_cannot_be_meant_is_wrong_usage(cli: Cli, args: list[str], said: str) -> None:
    done = cli("erase", *args)
    assert (done.code, said in done.err) == (2, True), done


def test_what_is_erased_is_shown_as_erased_wherever_it_was_a_value(private: Cli) -> None:
    private("set", "email", SECRET, "--session", "u")
    assert private("erase", "session", "u", "--yes").code == 0
    assert "has been erased" in private("why", "email", "--revision", "2").out
    assert "r2 session:u email erased" in private("timeline", "--key", "email").out
    assert private("as-of", "2").lines == []
