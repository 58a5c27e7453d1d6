"""call: arguments as people type them, results, and what went wrong."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentfield.cli.ending import INTERRUPTED
from tests.cli.command import Cli, Running

AGENT = """
import asyncio
from agentfield import Agent

app = Agent("desk")

@app.reasoner()
async def echo(**arguments):
    return arguments

@app.reasoner()
async def typed(text: str, number: int = 0, either: str | int = "", maybe: str | None = None, parts: list[str] = []):
    return [text, number, either, maybe, parts]

@app.reasoner()
async def say(text: str, nothing: bool = False) -> str | None:
    return None if nothing else text

@app.reasoner()
async def where():
    await app.memory.set("here", 1)
    await app.memory.set("mine", 1, scope="session")

@app.reasoner()
async def fail():
    raise ValueError("two\\nlines")

@app.reasoner()
async def doze():
    await asyncio.sleep(1)

@app.reasoner()
async def wait():
    app.note("begun")
    try:
        await asyncio.sleep(3600)
    finally:
        app.note("stopped")
"""


@pytest.fixture
def desk(cli: Cli, tmp_path: Path) -> Iterator[Running]:
    """Return the running agent."""
    (tmp_path / "desk.py").write_text(AGENT)
    desk = cli.start("run", "desk.py", cwd=tmp_path)
    desk.wait_line("agent desk serves")
    yield desk
    assert desk.end(signal.SIGTERM).code == 0


@pytest.mark.usefixtures("desk")
def test_arguments_are_json_or_text(cli: Cli) -> None:
    args = ("a=1", "b=text", "c=[1, 2]", 'd="3"', "e=", "f=x=y", "g=null", "--json-args", '{"h": {"i": 1}}')
    done = cli("call", "desk.echo", *args, "--json")
    assert (done.code, done.err) == (0, "")
    assert done.object["result"] == {
        "a": 1, "b": "text", "c": [1, 2], "d": "3", "e": "", "f": "x=y", "g": None, "h": {"i": 1}
    }  # fmt: skip


@pytest.mark.usefixtures("desk")
def test_a_number_is_text_where_the_reasoner_wants_text(cli: Cli) -> None:
    done = cli("call", "desk.typed", "text=42", "number=42", "either=42", "maybe=4.2", 'parts=["1"]', "--json")
    assert done.object["result"] == ["42", 42, 42, "4.2", ["1"]]


@pytest.mark.usefixtures("desk")
def test_people_get_a_string_bare_and_anything_else_as_json(cli: Cli) -> None:
    assert cli("call", "desk.say", "text=hello").out == "hello\n"
    assert cli("call", "desk.echo", "a=1").out == '{\n  "a": 1\n}\n'
    assert cli("call", "desk.say", "text=a", "nothing=true").out == "null\n"


@pytest.mark.usefixtures("desk")
def test_a_call_runs_in_the_workflow_and_session_that_were_named(cli: Cli) -> None:
    done = cli("call", "desk.where", "--workflow", "wf-1", "--session", "s 1", "--json").object
    assert (done["agent"], done["reasoner"], done["result"]) == ("desk", "where", None)
    assert (done["workflow_id"], done["session_id"]) == ("wf-1", "s 1")
    here, mine = cli("get", "here", "--json").object, cli("get", "mine", "--json").object
    assert (here["scope"], here["scope_id"]) == ("workflow", "wf-1")
    assert (mine["scope"], mine["scope_id"]) == ("session", "s 1")
    assert here["writer"]["execution_id"] == done["execution_id"]
    fresh = [cli("call", "desk.say", "text=a", "--json").object["workflow_id"] for _ in range(2)]
    assert fresh[0] != fresh[1]


@pytest.mark.usefixtures("desk")
def test_what_went_wrong_is_one_line_with_its_exit_code(cli: Cli) -> None:
    said = {
        ("desk.fail",): (1, "desk.fail raised ValueError: two lines"),
        ("desk.nothing",): (3, "agent 'desk' has no reasoner 'nothing'"),
        ("nobody.fail",): (1, "no agent 'nobody' is running"),
        ("desk.say",): (2, "argument 'text' is missing"),
        ("desk.say", "text=[1]"): (2, "argument 'text' must be str"),
        ("desk.say", "text=a", "more=b"): (2, "argument 'more' is not one of its parameters"),
        ("desk.doze", "--timeout", "0.3"): (1, "gave no result within 0.3 s"),
    }
    for args, (code, text) in said.items():
        done = cli("call", *args)
        assert (done.code, text in done.error) == (code, True), done


def test_ctrl_c_stops_the_call_at_the_agent_too(cli: Cli, desk: Running) -> None:
    call, tail = cli.start("call", "desk.wait"), cli.start("tail", "--notes")
    tail.wait_line("following")
    desk.wait_line("begun")
    done = call.end(signal.SIGINT)
    assert (done.code, done.out, done.err) == (INTERRUPTED, "", "")
    tail.wait_line("stopped")
