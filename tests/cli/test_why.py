"""`agentfield why`: from a value back to what led to it."""

import re
from pathlib import Path

import pytest

from agentfield import Memory
from tests.cli.command import Cli
from tests.cli.conftest import Remember

AGENTS = """
from agentfield import Agent

support, billing = Agent("support-department"), Agent("billing")


@support.reasoner()
async def intake():
    await support.memory.set("urgency", {"level": "high", "words": ["\\x1b[31mdown"] * 20})


@support.memory.on_change("urgency")
async def escalate(event):
    await support.call("billing.open_case", session_id="ada")


@billing.reasoner()
async def open_case():
    await billing.call("billing.write_case")


@billing.reasoner()
async def write_case():
    await billing.memory.set("case", "CASE-1", scope="global")


@billing.memory.on_change("case")
async def mail(event):
    await billing.memory.delete("case", scope="global")
"""


@pytest.fixture
def chained(cli: Cli, tmp_path: Path) -> Cli:
    """Return the command line on a log in which one thing led to another."""
    (tmp_path / "agents.py").write_text(AGENTS)
    agents = cli.start("run", "agents.py", cwd=tmp_path)
    agents.wait_line("agent billing serves")
    tail = cli.start("tail", "--from-start", "case")
    assert cli("call", "support-department.intake", "--workflow", "wf-1").code == 0
    tail.wait_line("deleted")
    return cli


def test_it_tells_the_chain_of_writes_handlers_and_calls_in_80_columns(chained: Cli) -> None:
    done = chained("why", "case", "--global")
    assert (done.code, done.err) == (0, "")
    assert all(len(line) <= 80 for line in done.lines), done.out
    told = [re.sub("[0-9a-f]{32}", "…", line) for line in done.lines]
    assert [line for line in told if "│ r" not in line] == [
        "case was deleted",
        "│ by billing.mail, execution …",
        "│ in workflow wf-1, session ada",
        "│ because of",
        'case = "CASE-1"',
        "│ by billing.write_case, execution …",
        "│ in workflow wf-1, session ada",
        "│ called by billing.open_case, execution …",
        "│ called by support-department.escalate,",
        "│   execution …",
        "│ because of",
        'urgency = {"level":"high","words":["\\u001b[31mdown","\\u001b[31mdown","\\u001b[31…',
        "│ by support-department.intake, execution …",
        "└ the chain ends here: support-department.intake was called from outside any",
        "  handler",
    ]
    assert [line.split()[1] + line.split()[3] for line in told if "│ r" in line] == [
        "r3,global",
        "r2,global",
        "r1,workflow:wf-1",
    ]


def test_it_gives_programs_the_events_and_the_end(chained: Cli) -> None:
    *chain, end = chained("why", "case", "--json").objects
    assert [(event["revision"], event["key"], event["operation"]) for event in chain] == [
        (3, "case", "delete"),
        (2, "case", "set"),
        (1, "urgency", "set"),
    ]
    assert "previous_data" not in chain[0]
    assert [event["writer"]["cause"] for event in chain] == [chain[1]["id"], chain[2]["id"], None]
    assert end == {
        "end": "root",
        "revision": None,
        "reason": "support-department.intake was called from outside any handler",
    }


def test_it_begins_with_the_revision_that_is_asked_for(chained: Cli) -> None:
    assert chained("why", "case", "--revision", "2").lines[0] == 'case = "CASE-1"'
    for args, error in (
        (("case", "--revision", "1"), "revision 1 is an event of 'urgency' in workflow 'wf-1'"),
        (("case", "--revision", "2", "--session", "ada"), "revision 2 is an event of 'case' in the global scope"),
        (("case", "--revision", "99"), "the log holds no revision 99"),
    ):
        done = chained("why", *args)
        assert (done.code, done.error) == (3, error)


@pytest.mark.usefixtures("used")
def test_a_key_to_which_nothing_ever_happened_is_not_found(cli: Cli) -> None:
    done = cli("why", "nothing")
    assert (done.code, done.error) == (3, "nothing has ever happened to 'nothing' there")


def test_a_key_in_several_scopes_must_be_chosen_and_one_that_still_has_a_value_comes_first(
    cli: Cli, remember: Remember
) -> None:
    async def write(memory: Memory) -> None:
        await memory.session("a").set("k", 1)
        await memory.session("b").set("k", 2)

    remember(write)
    done = cli("why", "k")
    assert (done.code, done.error) == (2, "'k' is in 2 scopes: choose one with --session a or --session b")
    assert cli("delete", "k", "--session", "b").code == 0
    assert cli("why", "k").lines[0] == "k = 1"
    assert cli("why", "k", "--session", "b").lines[0] == "k was deleted"
    assert cli("why", "k").lines[-1] == "└ the chain ends here: a program that is no agent wrote it"


def test_a_very_long_key_is_shown_whole_and_its_value_short(cli: Cli) -> None:
    key = "k" * 300
    cli("set", key, '"' + "v" * 300 + '"')
    assert cli("why", key).lines[0] == f'{key} = "{"v" * 18}…'


def test_what_can_never_be_is_refused_at_once(cli: Cli) -> None:
    assert cli("why", "a*").code == 2
    assert cli("why", "k", "--revision", "0").code == 2
    assert cli("why", "k", "--url", "nats://127.0.0.1:1", "--timeout", "1").code == 1
