"""run: finding the agents in files, serving them, and ending well."""

import json
import signal
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.command import Cli, Running

TRIAGE = """
from agentfield import Agent

app = Agent("triage")

@app.reasoner()
async def analyze(ticket_id: str) -> dict:
    await app.memory.set(f"ticket_{ticket_id}_mood", "angry")
    app.note("done with it", tags=["analysis"])
    return {"ticket": ticket_id}
"""

WATCHER = """
from agentfield import Agent

app = Agent("watcher")

@app.memory.on_change("ticket_*_mood")
async def react(event):
    await app.memory.set("seen", event.key, scope="global")
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a file of Python into the directory where commands run."""

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write_file


@pytest.fixture
def run(cli: Cli, tmp_path: Path) -> Callable[..., Running]:
    """Return a function that starts `agentfield run` there, and returns when the agents of those names serve."""

    def start(*args: str, agents: tuple[str, ...]) -> Running:
        running = cli.start("run", *args, cwd=tmp_path)
        for agent in agents:
            running.wait_line(f"agent {agent} serves")
        return running

    return start


Run = Callable[..., Running]


def test_agents_of_several_files_are_served_in_one_process(cli: Cli, write: Write, run: Run) -> None:
    write("triage.py", TRIAGE)
    write("more/watcher.py", WATCHER)
    running = run("triage.py", "more/watcher.py", agents=("triage", "watcher"))
    tail = cli.start("tail", "seen")
    tail.wait_line("following")
    assert cli("call", "triage.analyze", "ticket_id=x7").out == '{\n  "ticket": "x7"\n}\n'
    running.wait_line("triage: done with it #analysis")
    assert "by watcher" in tail.wait_line("ticket_x7_mood")
    done = running.end(signal.SIGTERM)
    assert (done.code, done.out) == (0, "")
    assert "Traceback" not in done.err


def test_a_module_is_found_from_the_working_directory(cli: Cli, write: Write, run: Run) -> None:
    write("company/__init__.py", "")
    write("company/triage.py", TRIAGE)
    running = run("company.triage", agents=("triage",))
    assert running.end(signal.SIGINT).code == 0


def test_a_file_finds_the_files_beside_it_and_shares_them(cli: Cli, write: Write, run: Run) -> None:
    write("deep/triage.py", TRIAGE)
    write("deep/all.py", "import rules\nfrom triage import app")
    write("deep/rules.py", "from triage import app as shared\nassert shared.name == 'triage'")
    running = run("deep/all.py", "deep/triage.py", "deep/triage.py", agents=("triage",))
    assert sum("agent triage serves" in line for line in running.err) == 1
    assert running.end(signal.SIGINT).code == 0


def test_files_of_the_same_name_and_of_awkward_names_are_told_apart(cli: Cli, write: Write, run: Run) -> None:
    write("one/agent.py", "import json\nfrom agentfield import Agent\napp = Agent('one')")
    write("two/agent.py", "from agentfield import Agent\napp = Agent('two')")
    write("my-agent v2.py", "from agentfield import Agent\napp = Agent('three')")
    write("json.py", "from agentfield import Agent\napp = Agent('four')")
    files = ("one/agent.py", "two/agent.py", "my-agent v2.py")
    running = run(*files, agents=("one", "two", "three"))
    assert running.end(signal.SIGINT).code == 0


def test_an_agent_whose_name_was_bound_anew_is_served_too(cli: Cli, write: Write, run: Run) -> None:
    write("both.py", TRIAGE + WATCHER)
    running = run("both.py", agents=("triage", "watcher"))
    assert cli("call", "triage.analyze", "ticket_id=1").code == 0
    assert running.end(signal.SIGINT).code == 0


def test_an_agent_of_an_imported_module_is_not_served_unless_it_has_a_name_here(
    cli: Cli, write: Write, run: Run
) -> None:
    write("library.py", "from agentfield import Agent\nclient = Agent('library-client')")
    write("main.py", "import library\n" + TRIAGE)
    running = run("main.py", agents=("triage",))
    done = running.end(signal.SIGINT)
    assert "library-client" not in done.err


def test_a_file_that_calls_app_run_itself_is_served_all_the_same(cli: Cli, write: Write, run: Run) -> None:
    write("triage.py", TRIAGE + "\napp.run()\nif __name__ == '__main__':\n    raise SystemExit('not main')\n")
    running = run("triage.py", agents=("triage",))
    assert cli("call", "triage.analyze", "ticket_id=1").code == 0
    assert running.end(signal.SIGINT).code == 0


def test_a_call_that_was_begun_is_finished_before_the_end(cli: Cli, write: Write, run: Run) -> None:
    write(
        "slow.py",
        """
        import asyncio
        from agentfield import Agent
        app = Agent("slow")

        @app.reasoner()
        async def work() -> str:
            app.note("begun")
            while await app.memory.get("go", scope="global") is None:
                await asyncio.sleep(0.01)
            return "finished"
        """,
    )
    running = run("slow.py", agents=("slow",))
    call = cli.start("call", "slow.work")
    running.wait_line("begun")
    running.send(signal.SIGINT)
    running.wait_line("finishing what was begun")
    assert cli("set", "go", "1").code == 0
    assert call.end().out == "finished\n"
    assert running.end().code == 0


def test_url_and_namespace_are_for_agents_that_name_none(cli: Cli, namespace: str, write: Write, run: Run) -> None:
    write("triage.py", TRIAGE)
    write("named.py", f"from agentfield import Agent\napp = Agent('named', namespace='{namespace}-own')")
    other = f"{namespace}-2"
    running = run("triage.py", "named.py", "--namespace", other, agents=("triage", "named"))
    assert cli("call", "triage.analyze", "ticket_id=1", "--namespace", other).code == 0
    assert cli("call", "triage.analyze", "ticket_id=1").code == 1
    names = [agent["name"] for agent in cli("status", "--json", "--namespace", f"{namespace}-own").object["agents"]]
    assert names == ["named"]
    assert running.end(signal.SIGINT).code == 0


def test_notes_and_life_are_objects_with_json(cli: Cli, write: Write, tmp_path: Path) -> None:
    write("triage.py", TRIAGE)
    running = cli.start("run", "--json", "triage.py", cwd=tmp_path)
    running.wait_line("agent triage serves")
    cli("call", "triage.analyze", "ticket_id=1")
    note = json.loads(running.wait_line("done with it"))
    assert (note["message"], note["agent"], note["tags"], note["level"]) == (
        "done with it",
        "triage",
        ["analysis"],
        "info",
    )
    done = running.end(signal.SIGINT)
    assert (done.code, done.err) == (0, "")
    assert all(isinstance(found, dict) for found in done.objects)


def test_logging_that_the_program_configured_stays_as_it_is(cli: Cli, write: Write, tmp_path: Path) -> None:
    own = "import logging\nlogging.basicConfig(format='own %(name)s %(message)s', level='INFO')\n"
    write("triage.py", own + TRIAGE)
    running = cli.start("run", "triage.py", cwd=tmp_path)
    assert running.wait_line("agent triage serves").startswith("own agentfield.running agent triage")
    done = running.end(signal.SIGINT)
    assert done.err.count("agent triage serves") == 1


def test_a_reasoner_that_raises_is_shown_with_the_place_in_its_file(cli: Cli, write: Write, run: Run) -> None:
    write(
        "broken.py",
        """
        from agentfield import Agent
        app = Agent("broken")

        @app.reasoner()
        async def work(key: str):
            return look_up(key)

        def look_up(key):
            return {}[key]
        """,
    )
    running = run("broken.py", agents=("broken",))
    done = cli("call", "broken.work", "key=a")
    assert (done.code, done.error) == (1, "broken.work raised KeyError: 'a'")
    assert running.wait_line("broken.py:7 in work").strip() == "broken.py:7 in work: return look_up(key)"
    assert running.wait_line("broken.py:10 in look_up")
    assert "Traceback" not in running.end(signal.SIGINT).err


@pytest.mark.parametrize(
    ("args", "files", "said"),
    [
        (("missing.py",), {}, "there is no file missing.py in "),
        (("./missing",), {}, "there is no file ./missing"),
        (("missing",), {}, "there is neither a file nor a module missing"),
        (("missing.part",), {}, "there is neither a file nor a module missing.part"),
        (("folder",), {"folder/a.py": ""}, "folder is a directory: name the files in it, for example folder/*.py"),
        (
            ("empty.py",),
            {"empty.py": "x = 1"},
            "empty.py defines no agent: make one in it, such as app = Agent('empty')",
        ),
        (
            ("a.py", "b.py"),
            {"a.py": TRIAGE, "b.py": TRIAGE},
            "agent 'triage' is defined in a.py and in b.py: give one of them another name",
        ),
        (("a.py",), {"a.py": TRIAGE + TRIAGE}, "agent 'triage' is defined twice in a.py"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_served_is_one_line_and_wrong_usage(
    cli: Cli, write: Write, tmp_path: Path, args: tuple[str, ...], files: dict[str, str], said: str
) -> None:
    for name, text in files.items():
        write(name, text)
    done = cli("run", *args, cwd=tmp_path)
    assert done.code == 2
    assert done.error.startswith(said)


@pytest.mark.parametrize(
    ("text", "said", "places"),
    [
        (
            "import faulty",
            "NameError: name 'undefined' is not defined",
            [
                "a.py:1: import faulty",
                "faulty.py:3: f()",
                "faulty.py:2 in f: return undefined",
            ],
        ),
        (
            "x = 1\nimport absent",
            "ModuleNotFoundError: No module named 'absent'",
            ["a.py:2: import absent"],
        ),
        ("x = 1\ndef f(:\n    pass", "SyntaxError: invalid syntax", ["a.py:2: def f(:"]),
        ("import sys\nsys.exit(7)", "it ended the program (exit status 7)", ["a.py:2: sys.exit(7)"]),
        (
            "from agentfield import Agent\napp = Agent('a b')",
            "InvalidInputError: agent name 'a b' is not",
            ["a.py:2: app = Agent('a b')"],
        ),
        ("import json\njson.loads('{')", "JSONDecodeError: Expecting property name", ["a.py:2: json.loads('{')"]),
    ],
    ids=["in a helper", "missing module", "syntax", "exit", "refused by the library", "inside a library"],
)
def test_an_error_in_the_users_file_is_shown_with_its_place(
    cli: Cli, write: Write, tmp_path: Path, text: str, said: str, places: list[str]
) -> None:
    write("a.py", text)
    write("faulty.py", "def f():\n    return undefined\nf()")
    done = cli("run", "a.py", cwd=tmp_path)
    assert (done.code, done.out) == (1, "")
    first, *rest = done.err.splitlines()
    assert first.startswith(f"error: a.py cannot be imported: {said}")
    assert [line.strip() for line in rest] == places


def test_a_server_that_is_away_is_one_line(cli: Cli, write: Write, tmp_path: Path) -> None:
    write("triage.py", TRIAGE)
    done = cli("run", "triage.py", "--url", "nats://127.0.0.1:1", cwd=tmp_path)
    assert done.code == 1
    assert "no NATS server answered" in done.error


def test_what_agents_print_is_seen_at_once(cli: Cli, write: Write, run: Run) -> None:
    write("triage.py", TRIAGE + "print('loaded')\n")
    running = run("triage.py", agents=("triage",))
    running.wait_line("loaded")
    assert running.end(signal.SIGINT).out == "loaded\n"
