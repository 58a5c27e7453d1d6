"""The testing kit as users have it: a project of theirs, and ``pytest`` in it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from agentfield import testing
from tests.support import wait_until
from tests.support.homes import servers_on

_PATIENCE = 60.0

PYTEST_INI = """
[pytest]
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""

SHOP = """
from pydantic import BaseModel

from agentfield import Agent


class Mood(BaseModel):
    mood: str


shop = Agent("shop", ai="openai/the-real-one")
shipping = Agent("shipping", nats_url="nats://production.example:4222", namespace="production")
customer = shop.memory.session("ada")


@shop.reasoner()
async def order(order_id: str) -> str:
    mood = await shop.ai(user=order_id, schema=Mood)
    await shop.memory.set(f"order_{order_id}_status", "paid")
    return mood.mood


@shipping.memory.on_change("order_*_status")
async def ship(event):
    await shipping.memory.set(f"{event.key}_shipment", event.previous_data)


@shop.memory.on_change("order_*_status_shipment")
async def tell(event):
    await customer.set("told", event.key)
"""


class Project:
    """A directory of files, and the environment of somebody who works with a server of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.temporary = directory / "temporary"
        self.temporary.mkdir()
        ours = ("AGENTFIELD_", "NATS_URL", "PYTEST_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {
            name: value for name, value in os.environ.items() if name.startswith("AGENTFIELD_TEST_")
        }
        self.environment |= {"AGENTFIELD_NATS_URL": "nats://production.example:4222", "TMPDIR": str(self.temporary)}
        self.write("pytest.ini", PYTEST_INI)
        self.write("shop.py", SHOP)

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def run(self, *arguments: str, **results: int) -> str:
        """Run pytest, check how many tests ended how, and that it left nothing; return what it said."""
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
        )
        last = run.stdout.strip().splitlines()[-1] if run.stdout.strip() else ""
        counted = {word.rstrip("s"): int(number) for number, word in _pairs(last)}
        assert counted == results, run.stdout + run.stderr
        assert not self.homes(), "the server's data was left"
        return run.stdout

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-s"],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def homes(self) -> list[Path]:
        """The homes of servers in the project's temporary directory."""
        # Whoever walks with `rglob` stumbles over what is being removed meanwhile.
        return [Path(place) for place, _, files in os.walk(self.temporary) if "server.conf" in files]


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    words = line.replace(",", "").split()
    for number, word in pairwise(words):
        if number.isdigit():
            yield number, word


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def start(project: Project) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def run() -> subprocess.Popen[bytes]:
        started.append(project.start())
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.smoke
def test_agents_made_at_import_run_in_every_test_on_the_throwaway_server(project: Project) -> None:
    project.write(
        "test_shop.py",
        """
import pytest

from shop import Mood, customer, order, shipping, shop

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("time", range(3))
async def test_a_paid_order_is_shipped(agentfield_agents, agentfield_memory, agentfield_model, time):
    agentfield_model.rule({"mood": "good"}, schema=Mood)
    async with agentfield_agents.run(shop, shipping):
        assert await shipping.call("shop.order", order_id="42") == "good"
        await agentfield_agents.settled()
        assert await customer.get("told") == "order_42_status_shipment"
        # Nothing of the tests before: each has a namespace of its own.
        assert [event.revision async for event in agentfield_memory.history("order_42_status")] == [1]
    assert (shop.namespace, shipping.namespace) == ("agentfield", "production")
    (question,) = agentfield_model.asked
    assert question.user == "42"


async def test_a_reasoner_can_be_called_as_a_function(agentfield_agents, agentfield_model):
    agentfield_model.script({"mood": "bad"})
    async with agentfield_agents.run(shop):
        assert await order("43") == "bad"


async def test_another_model_can_be_given(agentfield_agents):
    async def model(messages, *, schema):
        return {"mood": "other"}

    async with agentfield_agents.run(shop, model=model):
        assert await order("44") == "other"
""",
    )
    project.run(passed=5)


def test_what_a_test_makes_or_starts_itself_is_on_the_throwaway_server_too(project: Project) -> None:
    project.write(
        "test_own.py",
        """
import asyncio
import os
import subprocess
import sys

import agentfield


def run(*command):
    return subprocess.run([sys.executable, "-m", "agentfield", *command], check=True, capture_output=True, text=True)


def test_it(agentfield_server, agentfield_namespace, agentfield_memory):
    async def main():
        async with agentfield.Agent("own") as own, agentfield.connect() as memory:
            assert own.namespace == agentfield_namespace
            await own.memory.set("a", 1)
            assert await memory.get("a") == await agentfield_memory.get("a") == 1

    asyncio.run(main())
    assert run("get", "a").stdout == "1\\n"
    assert agentfield_server in run("status").stdout
    assert "own" not in agentfield_server and ":4222" not in agentfield_server
    asyncio.run(again(agentfield_memory))


async def again(memory):
    await memory.set("a", 2)
    assert await memory.get("a") == 2


def test_and_afterwards_the_environment_is_as_before():
    assert os.environ["AGENTFIELD_NATS_URL"] == "nats://production.example:4222"
    assert "AGENTFIELD_NAMESPACE" not in os.environ
""",
    )
    project.run(passed=2)


@pytest.mark.parametrize("how", ["anyio", "one loop for all", "fixtures"])
def test_it_serves_any_way_of_running_coroutines(project: Project, how: str) -> None:
    mark = {
        "anyio": "pytest.mark.anyio",
        "one loop for all": "pytest.mark.asyncio(loop_scope='session')",
        "fixtures": "pytest.mark.asyncio",
    }[how]
    project.write(
        "test_loops.py",
        f"""
import pytest
import pytest_asyncio

from shop import customer, shipping, shop

pytestmark = {mark}


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest_asyncio.fixture
async def running(agentfield_agents):
    async with agentfield_agents.run(shop, shipping):
        yield agentfield_agents


async def check(agents, memory):
    assert await memory.get("order_1_status") is None
    await memory.set("order_1_status", "paid", scope="session", scope_id="ada")
    await agents.settled()
    assert await customer.get("told") == "order_1_status_shipment"


@pytest.mark.parametrize("time", range(3))
async def test_it(agentfield_agents, agentfield_memory, time):
    async with agentfield_agents.run(shop, shipping):
        await check(agentfield_agents, agentfield_memory)
"""
        + """

async def test_with_a_fixture(running, agentfield_memory):
    await check(running, agentfield_memory)
"""
        * (how == "fixtures"),
    )
    project.run(passed=4 if how == "fixtures" else 3)


def test_a_question_without_an_answer_fails_the_test_even_if_a_handler_hides_it(project: Project) -> None:
    project.write(
        "test_asking.py",
        """
import pytest
from agentfield import Agent

app = Agent("app")


@app.memory.on_change("k", retries=0)
async def react(event):
    await app.ai("Should I?")


@pytest.mark.asyncio
async def test_it(agentfield_agents, agentfield_memory):
    async with agentfield_agents.run(app):
        await agentfield_memory.set("k", 1)
        await agentfield_agents.settled()
""",
    )
    said = project.run(passed=1, error=1)
    assert "UnscriptedQuestionError" in said
    assert "user:   Should I?" in said


def test_handlers_that_do_not_end_are_named_in_the_report(project: Project) -> None:
    project.write(
        "test_hanging.py",
        """
import asyncio
import pytest
from agentfield import Agent

app = Agent("app")


@app.memory.on_change("k")
async def hang(event):
    await asyncio.Event().wait()


@pytest.mark.asyncio
async def test_it(agentfield_agents, agentfield_memory):
    async with agentfield_agents.run(app):
        await agentfield_memory.set("k", 1)
        await agentfield_agents.settled(within=0.3)
""",
    )
    said = project.run(failed=1)
    assert "not settled within 0.3 s; still to be handled:" in said
    assert "app.hang: k in global (revision 1): being handled" in said


def test_a_run_that_asks_for_nothing_pays_nothing(project: Project) -> None:
    project.write(
        "test_nothing.py",
        """
import sys


def test_it(pytestconfig):
    assert "agentfield.testing.plugin" in sys.modules
    heavy = {"nats", "pydantic", "orjson", "click", "agentfield.memory", "agentfield.local", "agentfield.agent"}
    assert not heavy & set(sys.modules)
""",
    )
    project.run(passed=1)


def test_its_fixtures_are_listed_with_what_they_are_for(project: Project) -> None:
    project.write("test_nothing.py", "")
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "--fixtures"],
        cwd=project.directory, env=project.environment, capture_output=True, text=True, timeout=_PATIENCE,
    ).stdout  # fmt: skip
    for name in ("server", "namespace", "memory", "model", "agents"):
        _, found, text = listed.partition(f"agentfield_{name} ")
        assert found, f"agentfield_{name} is not listed"
        assert "no docstring available" not in text.partition("\n\n")[0]
    (plugin,) = entry_points(group="pytest11", name="agentfield")
    assert plugin.value == "agentfield.testing.plugin"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_the_session_ends_the_server_goes_with_its_data(
    project: Project, start: Callable[[], subprocess.Popen[bytes]], how: signal.Signals
) -> None:
    project.write(
        "test_endless.py",
        """
import asyncio
import pathlib


def test_it(agentfield_memory):
    async def main():
        await agentfield_memory.set("a", 1)
        pathlib.Path("begun").touch()
        await asyncio.Event().wait()

    asyncio.run(main())
""",
    )
    session = start()
    wait_until((project.directory / "begun").exists, within=_PATIENCE, what="the test has begun")
    (home,) = project.homes()
    (server,) = servers_on(home)
    (guard,) = (child for child in psutil.Process(session.pid).children() if child.pid != server.pid)
    session.send_signal(how)
    session.wait(_PATIENCE)
    wait_until(lambda: not servers_on(home) and not project.homes(), within=20, what="server and data are gone")
    wait_until(lambda: not guard.is_running() or guard.status() == "zombie", within=20, what="the guard is gone")


def test_what_is_public_is_documented() -> None:
    assert sorted(testing.__all__) == testing.__all__
    assert set(testing.__all__) <= set(dir(testing))
    for name in testing.__all__:
        assert getattr(testing, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'FakeModle'"):
        getattr(testing, "FakeModle")  # noqa: B009 - a checker refuses it written as an attribute
