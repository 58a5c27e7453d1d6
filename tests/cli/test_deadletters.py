"""deadletters: seeing what handlers gave up on, having it handled again, and dropping it."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from agentfield import Agent, Event, ResyncRequired, connect
from agentfield.memory.reacting.letters import letter_of_gap
from agentfield.testing import settled
from tests.cli.command import Cli, Running
from tests.cli.conftest import Inside
from tests.support import NatsServer, eventually
from tests.support.waiting import wait_until

AGENT = """
from agentfield import Agent
app = Agent("billing")

@app.memory.on_change("order_*", retries=0)
async def charge(event):
    {body}
"""
FIXED = 'print("charged", event.key, event.data, event.previous_data, flush=True)'

Serve = Callable[[str], AbstractContextManager[Running]]


@pytest.fixture
def serve(cli: Cli, tmp_path: Path) -> Serve:
    """Return a context in which the agent is served by a process, its handler with this body."""

    @contextmanager
    def served(body: str) -> Iterator[Running]:
        (tmp_path / "billing.py").write_text(AGENT.format(body=body))
        running = cli.start("run", "billing.py", cwd=tmp_path)
        running.wait_line("agent billing serves")
        yield running
        running.dispose()

    return served


@pytest.fixture
def poisoned(inside: Inside, server: NatsServer, namespace: str) -> Inside:
    """Return the command line where two handlers have given up on five events, and nobody runs any more."""

    async def fail() -> None:
        billing, mail = (Agent(name, nats_url=server.url, namespace=namespace) for name in ("billing", "mail"))

        @billing.memory.on_change("order_*", retries=0)
        async def charge(event: Event) -> None:
            raise ValueError(f"no customer for {event.key}\nsecond line")

        @mail.memory.on_change("order_1", retries=0)
        async def confirm(_: Event) -> None:
            raise KeyError

        async with billing, mail, connect(server.url, namespace=namespace) as memory:
            fabric = await memory._fabric()
            for revision, (key, value) in enumerate((("order_1", "new"), ("order_1", "paid"), ("order_2", 7)), 1):
                await memory.set(key, value, scope="workflow", scope_id="wf-1")

                async def given_up(number: int = min(revision * 2, 5)) -> bool:
                    return sum((await fabric.deadletters.counts()).values()) == number

                await eventually(given_up)

    asyncio.run(fail())
    return inside


def ids(inside: Inside, *args: str) -> list[int]:
    return [letter["id"] for letter in inside("deadletters", "list", *args, "--json").objects]


def one(inside: Inside, handler: str, revision: int) -> Any:
    (found,) = [
        letter
        for letter in inside("deadletters", "list", "--json", "--handler", handler).objects
        if letter["revision"] == revision
    ]
    return found


def test_list_tells_which_event_which_handler_and_why(poisoned: Inside) -> None:
    done = poisoned("deadletters", "list", "--agent", "billing", "--key", "order_2")
    assert (done.code, done.err) == (0, "")
    first, second = done.lines
    assert first.split()[0].isdigit()
    assert first.endswith("s ago billing.charge order_2 workflow:wf-1 r3 (1 try)")
    assert second == "    ValueError: no customer for order_2 second line"
    assert len(poisoned("deadletters", "list").lines) == 10


@pytest.mark.usefixtures("poisoned")
def test_list_shows_on_a_terminal_what_is_wrong_in_red(cli: Cli) -> None:
    shown = cli.on_terminal("deadletters", "list")
    assert "\x1b[31mValueError: no customer for order_2 second line" in shown


def test_list_takes_agent_handler_and_pattern(poisoned: Inside) -> None:
    everything = ids(poisoned)
    assert everything == sorted(everything)
    assert len(everything) == 5
    assert len(ids(poisoned, "--agent", "mail")) == 2
    assert len(ids(poisoned, "--handler", "charge", "--key", "*_1")) == 2
    assert ids(poisoned, "--agent", "nobody") == []
    done = poisoned("deadletters", "list", "--agent", "nobody")
    assert (done.code, done.out, done.err) == (0, "", "no such dead letters\n")


def test_letters_are_objects_for_programs(poisoned: Inside) -> None:
    letter = one(poisoned, "charge", 2)
    assert (letter["agent"], letter["key"], letter["scope"], letter["scope_id"]) == (
        "billing", "order_1", "workflow", "wf-1",
    )  # fmt: skip
    assert (letter["tries"], letter["replays"]) == (1, 0)
    assert letter["error"]["type"] == "ValueError"
    assert letter["error"]["message"] == "no customer for order_1\nsecond line"
    assert "in charge" in letter["error"]["traceback"]
    assert letter["timestamp"].endswith("Z")


def test_show_adds_the_event_and_the_traceback(poisoned: Inside) -> None:
    number = str(one(poisoned, "charge", 2)["id"])
    done = poisoned("deadletters", "show", number)
    assert (done.code, done.err) == (0, "")
    for text in (
        "billing.charge",
        "revision 2 of order_1 in workflow:wf-1",
        '"new"',
        '"paid"',
        "Traceback",
        "in charge",
    ):
        assert text in done.out
    shown = poisoned("deadletters", "show", number, "--json").object
    assert (shown["event"]["data"], shown["event"]["previous_data"], shown["event"]["revision"]) == ("paid", "new", 2)
    assert "in charge" in shown["error"]["traceback"]


def test_a_replay_waits_for_an_agent_and_takes_the_letter_with_it(poisoned: Inside, serve: Serve) -> None:
    number = str(one(poisoned, "charge", 2)["id"])
    done = poisoned("deadletters", "replay", number)
    assert (done.code, done.out) == (0, "asked billing.charge to handle 1 event again\n")
    assert done.err == "no instance of billing serves it now: it is done when one does\n"
    assert len(ids(poisoned)) == 5
    with serve(FIXED) as running:
        running.wait_line("charged order_1 paid new")
        wait_until(lambda: len(ids(poisoned)) == 4, within=10, what="the letter is gone")


def test_replaying_all_in_order_and_waiting_for_the_outcome(poisoned: Inside, serve: Serve) -> None:
    body = (
        'print("charging", event.key, event.data, flush=True)\n    if event.key == "order_2": raise ValueError("still")'
    )
    with serve(body) as running:
        done = poisoned("deadletters", "replay", "--all", "--agent", "billing", "--wait", "--json")
        said = [line for line in running.out if line.startswith("charging")]
    assert said == ["charging order_1 new\n", "charging order_1 paid\n", "charging order_2 7\n"]
    outcomes = [(each["replay"], each["letter"]) for each in done.objects]
    again = one(poisoned, "charge", 3)
    assert (done.code, outcomes) == (1, [("handled", None), ("handled", None), ("failed", again["id"])])
    assert (again["replays"], again["error"]["message"]) == (1, "still")
    assert "(1 try, replay 1)" in poisoned("deadletters", "list", "--agent", "billing").out


def test_waiting_ends_with_the_time_that_it_was_given(poisoned: Inside) -> None:
    number = str(one(poisoned, "charge", 2)["id"])
    done = poisoned("deadletters", "replay", number, "--wait", "--timeout", "0.5")
    assert (done.code, done.out) == (1, f"letter {number}: billing.charge not done yet\n")


def test_a_letter_of_a_handler_that_is_gone_stays(poisoned: Inside) -> None:
    assert poisoned("handlers", "remove", "mail.confirm", "--yes").code == 0
    done = poisoned("deadletters", "replay", "--all", "--agent", "mail")
    assert (done.code, done.out) == (1, "")
    assert done.err.count("nothing can be asked of mail.confirm: serve it, if it was removed") == 2
    assert len(ids(poisoned, "--agent", "mail")) == 2


def test_letters_that_cannot_be_replayed_say_why(inside: Inside, server: NatsServer, namespace: str) -> None:
    async def fail() -> None:
        agent = Agent("billing", nats_url=server.url, namespace=namespace)

        @agent.memory.on_change("order_*", delivery="instance", retries=0)
        async def everywhere(_: Event) -> None:
            raise KeyError

        async with agent, connect(server.url, namespace=namespace) as memory:
            await memory.set("order_1", 1)
            await settled(agent)
            error = ResyncRequired(requested=1, first_available=3)
            gap = letter_of_gap(error, agent="billing", handler="everywhere")
            await (await memory._fabric()).deadletters.store("billing", "everywhere", gap, letter_id="gap")

    asyncio.run(fail())
    done = inside("deadletters", "replay", "--all")
    assert done.code == 1
    assert "letter 1 stays: nothing can be asked of billing.everywhere" in done.err
    assert "letter 2 stays: it tells of events that are gone" in done.err


def test_drop_asks_first_and_takes_just_those(poisoned: Inside) -> None:
    number = str(one(poisoned, "charge", 3)["id"])
    done = poisoned("deadletters", "drop", number)
    assert (done.code, "add --yes" in done.error) == (2, True)
    done = poisoned("deadletters", "drop", number, "--yes")
    assert (done.code, done.out) == (0, "dropped 1 dead letter: 1 of billing.charge\n")
    assert len(ids(poisoned)) == 4
    dropped = poisoned("deadletters", "drop", "--all", "--agent", "mail", "--yes", "--json").objects
    assert [each["dropped"] for each in dropped] == [True, True]
    assert len(ids(poisoned)) == len(ids(poisoned, "--agent", "billing")) == 2


def test_a_number_that_is_no_letter_changes_nothing(poisoned: Inside) -> None:
    number = str(ids(poisoned)[0])
    for args in (("show", "99"), ("replay", number, "99"), ("drop", number, "99", "--yes")):
        done = poisoned("deadletters", *args)
        assert (done.code, "there is no dead letter 99" in done.error) == (3, True)
    assert len(ids(poisoned)) == 5


@pytest.mark.parametrize("action", ["replay", "drop"])
def test_letters_are_named_in_just_one_way(inside: Inside, action: str) -> None:
    assert "say which" in inside("deadletters", action).error
    assert "not both" in inside("deadletters", action, "1", "--all").error
    assert "not both" in inside("deadletters", action, "1", "--agent", "a").error
    assert "say which" in inside("deadletters", action, "--agent", "a").error


@pytest.mark.usefixtures("used")
def test_without_letters_there_is_nothing_to_do(inside: Inside) -> None:
    assert inside("deadletters", "list").err == "no dead letters\n"
    for action in (("replay", "--all"), ("drop", "--all", "--yes")):
        done = inside("deadletters", *action)
        assert (done.code, done.err) == (0, "no such dead letters\n")
