"""What the command line says of itself, and how it answers wrong usage: in one line, with the right exit code."""

import asyncio
import gc
import subprocess
import sys
from collections.abc import Callable

import click
import pytest

from agentfield.cli import invocation, main
from agentfield.cli.root import COMMANDS, root
from agentfield.version import __version__
from tests.cli.command import Cli, Result
from tests.cli.conftest import Inside, collecting_after
from tests.support import NatsServer
from tests.support.forking import SCRIPT

NOWHERE = ("--url", "nats://127.0.0.1:1", "--timeout", "0.2")


def command(name: str) -> click.Command:
    found = root.get_command(click.Context(root), name)
    assert found is not None
    return found


Main = Callable[..., Result]


@pytest.fixture
def offline() -> Cli:
    return Cli({})


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """Return a function that runs the command line in this process, which is faster."""

    def run(*args: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["agentfield", *args])
        with pytest.raises(SystemExit) as ended, collecting_after():
            main()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, *capsys.readouterr())

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does_in_the_words_of_the_table(name: str) -> None:
    found = command(name)
    assert found.name == name
    assert (found.help or "").splitlines()[0] == COMMANDS[name].summary
    without = [option.name for option in found.params if isinstance(option, click.Option) and not option.help]
    assert not without, f"options of {name} without a help text: {without}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_its_help(here: Main, name: str) -> None:
    done = here(name, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: agentfield {name}")


def test_help_lists_every_command_and_loads_neither_nats_nor_pydantic() -> None:
    program = (
        "import sys\nfrom agentfield.cli import main\nsys.argv = ['agentfield', '--help']\n"
        "try:\n    main()\nfinally:\n    print({'nats', 'pydantic', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"
    listed = [line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line.startswith("  ")]
    assert listed[: len(COMMANDS)] == list(COMMANDS)


@pytest.mark.parametrize(("typed", "meant"), [("histroy", " Did you mean 'history'?"), ("xyzzy", ""), ("", "")])
def test_a_name_that_is_no_command_gets_the_one_that_is_like_it(offline: Cli, typed: str, meant: str) -> None:
    done = offline(typed)
    assert (done.code, done.error) == (
        2,
        f"No such command {typed!r}.{meant}".removesuffix(".") + "; see 'agentfield --help'",
    )


def test_a_command_runs_with_the_collector_on_whatever_was_loaded_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[bool] = []

    def look(_: invocation.Invocation) -> None:
        found.append(gc.isenabled())

    monkeypatch.setattr(root, "get_command", lambda *_: invocation.command("look")(look))
    monkeypatch.setattr(sys, "argv", ["agentfield", "look"])
    with pytest.raises(SystemExit), collecting_after():
        main()
    assert found == [True]


@pytest.mark.parametrize("program", [(SCRIPT,), (sys.executable, "-m", "agentfield")], ids=["script", "module"])
def test_both_ways_to_start_it_are_the_same_program(offline: Cli, program: tuple[str, ...]) -> None:
    done = offline("--version", command=program)
    assert (done.code, done.out, done.err) == (0, f"agentfield {__version__}\n", "")
    assert offline("get", command=program).error == "Missing argument 'KEY'; see 'agentfield get --help'"


def test_without_a_command_it_shows_its_help_and_fails(offline: Cli) -> None:
    done = offline()
    assert (done.code, done.out) == (2, "")
    assert "Commands:" in done.err


@pytest.mark.parametrize(
    "args",
    [
        ("nonsense",),
        ("--nonsense",),
        ("get",),
        ("get", "a", "b"),
        ("get", "a", "--nonsense"),
        ("get", "a", "--scope", "planet"),
        ("get", "a", "--global", "--session", "s"),
        ("get", "a", "--workflow", "w", "--session", "s"),
        ("get", "a", "--scope-id", "s"),
        ("set", "a", "1", "--session"),
        ("set", "a", "1", "--scope", "session"),
        ("delete", "a", "--scope", "workflow"),
        ("set", "a", "1", "--ttl", "soon"),
        ("set", "a", "1", "--ttl", "0"),
        ("set", "a", "1", "--ttl", "-5"),
        ("set", "a", "1", "--if-revision", "-1"),
        ("history", "a", "--since", "yesterday"),
        ("history", "a", "--since", "2024-07-08T18:20:00"),
        ("history", "a", "--until", "99999999999w"),
        ("history", "a", "--limit", "0"),
        ("as-of",),
        ("as-of", "yesterday"),
        ("diff", "a"),
        ("diff", "a", "yesterday"),
        ("revert", "a"),
        ("revert", "a", "1"),
        ("revert", "a*", "1", "--yes"),
        ("revert", "a", "1", "--yes", "--scope", "session"),
        ("--timeout", "never", "ls"),
        ("ls", "--timeout", "nan"),
        ("up", "--url", "nats://127.0.0.1:1"),
        ("--url", "nats://127.0.0.1:1", "up"),
        ("--namespace", "n", "down"),
        ("--timeout", "5", "run", "agents.py"),
        ("run",),
        ("deadletters", "nonsense"),
        ("deadletters", "show"),
        ("deadletters", "show", "x"),
        ("deadletters", "replay", "0"),
        ("deadletters", "drop"),
        ("handlers", "remove"),
        ("doctor", "more"),
        ("audit", "nonsense"),
        ("audit", "keygen"),
        ("audit", "seal"),
        ("audit", "seal", "--key", "no-such-file"),
        ("audit", "verify", "--live-seals"),
        ("audit", "verify", "--export", "no-such-file"),
        ("audit", "verify", "--from", "yesterday"),
        ("audit", "export", "log", "--format", "xml"),
        ("audit", "report", "--json"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_exit_code_2(here: Main, args: tuple[str, ...]) -> None:
    done = here(*args)
    assert done.code == 2
    assert done.error


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("get", ""), "key '' is empty"),
        (("get", "order_*"), "contains '*'"),
        (("get", "a>b"), "contains '>'"),
        (("get", "a\nb"), "control character"),
        (("get", "x" * 513), "at most 512"),
        (("get", "a", "--session", ""), "scope id '' is empty"),
        (("get", "a", "--scope", "global", "--scope-id", "x"), "global scope"),
        (("set", "a*", "1"), "contains '*'"),
        (("set", "a", "18446744073709551616"), "beyond 64 bits"),
        (("set", "a", "1e999"), "is inf"),
        (("set", "a", '"\\ud800"'), "lone surrogate"),
        (("set", "a", "[" * 3000), "cannot be read"),
        (("set", "a", "1" * 5000), "cannot be read"),
        (("set", "a", "1", "--ttl", "99999w"), "century"),
        (("delete", "a>"), "contains '>'"),
        (("ls", "a>"), "contains '>'"),
        (("history", "a>"), "contains '>'"),
        (("as-of", "1", "a>"), "contains '>'"),
        (("diff", "a>", "1"), "contains '>'"),
        (("revert", "a>", "1", "--yes"), "contains '>'"),
        (("history", "a", "--writer", ""), "writer=''"),
        (("tail", "a", "b>"), "contains '>'"),
        (("call", "agent"), "AGENT.REASONER"),
        (("call", "a b.c"), "agent name"),
        (("call", "a.b", "c"), "KEY=VALUE"),
        (("call", "a.b", "=c"), "KEY=VALUE"),
        (("call", "a.b", "c=1", "c=2"), "given twice"),
        (("call", "a.b", "c=1", "--json-args", '{"c": 1}'), "given twice"),
        (("call", "a.b", "--json-args", "{"), "not JSON"),
        (("call", "a.b", "--json-args", "[1]"), "JSON object"),
        (("call", "a.b", "--session", ""), "scope id '' is empty"),
        (("audit", "verify", "--public-key", "x"), "no public nkey"),
        (("audit", "export", "log", "a>"), "contains '>'"),
        (("audit", "report", "a>"), "contains '>'"),
        (("ls", "--namespace", "A B"), "namespace 'A B'"),
        (("ls", "--namespace", ""), "namespace ''"),
        (("run", "x.py", "--namespace", "A B"), "namespace 'A B'"),
        (("deadletters", "list", "--agent", "a b"), "agent name"),
        (("deadletters", "list", "--handler", "*"), "handler name"),
        (("deadletters", "drop", "--all", "--key", "a>"), "contains '>'"),
        (("handlers", "remove", "agent"), "AGENT.HANDLER"),
        (("doctor", "--namespace", "A B"), "namespace 'A B'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_illegal_input_is_refused_before_anything_is_sent(here: Main, args: tuple[str, ...], said: str) -> None:
    where = NOWHERE if args[0] != "run" else ()
    done = here(*where, *args)
    assert done.code == 2
    assert said in done.error


def test_an_empty_url_is_refused(here: Main) -> None:
    done = here("ls", "--url", "")
    assert (done.code, "--url is empty" in done.error) == (2, True)


@pytest.mark.parametrize(
    "args",
    [
        ("get", "a"),
        ("set", "a", "1"),
        ("ls",),
        ("history", "a"),
        ("tail",),
        ("call", "a.b"),
        ("status",),
        ("deadletters", "list"),
        ("deadletters", "replay", "1"),
        ("deadletters", "drop", "1", "--yes"),
        ("handlers", "list"),
        ("handlers", "remove", "a.b", "--yes"),
        ("as-of", "1"),
        ("diff", "a", "1"),
        ("revert", "a", "1", "--yes"),
        ("audit", "verify"),
    ],
)
def test_a_server_that_is_away_is_one_line_and_exit_code_1(offline: Cli, args: tuple[str, ...]) -> None:
    done = offline(*NOWHERE, *args)
    assert done.code == 1
    assert "no NATS server answered at nats://127.0.0.1:1 within 0.2 s" in done.error


def test_a_password_in_the_url_is_not_shown(offline: Cli) -> None:
    done = offline("ls", "--url", "nats://someone:secret@127.0.0.1:1", "--timeout", "0.2")
    assert done.code == 1
    assert "secret" not in done.error


def test_common_options_stand_before_or_after_the_command_and_after_wins(cli: Cli, namespace: str) -> None:
    cli("set", "a", "here")
    assert cli("--json", "get", "a").object == cli("get", "a", "--json").object
    assert cli("--namespace", f"{namespace}-2", "get", "a").code == 3
    assert cli("--namespace", f"{namespace}-2", "get", "a", "--namespace", namespace).out == "here\n"


async def test_whoever_says_how_long_it_may_take_has_a_server_waited_for_as_long(
    fresh_server: NatsServer, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentfield.cli.invocation._CONNECT", 0.1)
    url = ("--url", fresh_server.url)
    done = await asyncio.to_thread(inside, "set", "k", "1", *url, "--timeout", "10")
    assert done.code == 0
    await fresh_server.pause()
    done = await asyncio.to_thread(inside, "get", "k", *url)
    assert "within 0.1 s" in done.err
    waiting = asyncio.create_task(asyncio.to_thread(inside, "get", "k", *url, "--timeout", "10"))
    await asyncio.wait({waiting}, timeout=0.5)
    assert not waiting.done()
    await fresh_server.resume()
    assert (await waiting).out == "1\n"
