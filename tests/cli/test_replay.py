"""replay: the past once more: printed, copied, or given to the handlers of today's code."""

import asyncio
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

import agentfield
from agentfield import Memory
from tests.cli.command import Cli, Running
from tests.cli.conftest import Inside, Remember
from tests.support import NatsServer, eventually, wait_until
from tests.support.events import write_many
from tests.support.forking import SCRIPT
from tests.support.trimming import trim

SHOP = """
import asyncio, os
from agentfield import Agent

app = Agent("shop")

@app.memory.on_change("order_*_placed")
async def price(event):
    order = event.key.split("_")[1]
    await app.memory.set(f"order_{order}_total", event.data["amount"] + 5)

@app.memory.on_change("order_*_total")
async def bill(event):
    if event.data > 8:
        await app.memory.set(event.key.replace("total", "bill"), {"total": event.data})
"""

HANGING = SHOP.replace("    if event", "    print('here', flush=True)\n    await asyncio.sleep(60)\n    if event")


@pytest.fixture
def orders(remember: Remember, inside: Inside) -> Inside:
    """Return the command line, in this process, on a log of six events."""

    async def write(memory: Memory) -> None:
        await memory.set("order_1", "new")
        await memory.set("order_2", "new", scope="session", scope_id="s")
        await memory.set("cart", 1)
        await memory.set("order_1", "paid", ttl=3600)
        await memory.delete("cart")
        await memory.set("late", True)

    remember(write)
    return inside


@pytest.fixture
def at(server: NatsServer) -> Callable[[str, Callable[[Memory], Any]], Any]:
    """Return a function that looks at the memory of any namespace."""

    def look(namespace: str, use: Callable[[Memory], Any]) -> Any:
        async def connected() -> Any:
            async with agentfield.connect(server.url, namespace=namespace) as memory:
                return await use(memory)

        return asyncio.run(connected())

    return look


async def absent(memory: Memory, key: str) -> bool:
    return not await memory.exists(key)


async def written(memory: Memory) -> list[tuple[str, str, Any]]:
    return [(event.id, event.key, event.data) async for event in memory.history()]


async def stages(memory: Memory) -> list[str]:
    """Namespaces of rehearsals that are on the server."""
    connection = (await memory._fabric()).connection
    names: list[str] = []
    while True:
        request = orjson.dumps({"offset": len(names)})
        page = orjson.loads((await connection.request("$JS.API.STREAM.NAMES", request, timeout=5)).payload)
        names += page["streams"] or []
        if len(names) >= page["total"] or not page["streams"]:
            return [name for name in names if "replay-" in name.lower()]


# -- printed ----------------------------------------------------------------------------------------------------------


def test_it_prints_events_as_history_does(orders: Inside) -> None:
    for words in ([], ["order_*"], ["order_*", "--since", "2", "--until", "3"], ["--session", "s"], ["cart", "--json"]):
        assert orders("replay", *words).out == orders("history", *words).out != ""
    assert [event["key"] for event in orders("replay", "order_2", "cart", "--json").objects] == [
        "order_2",
        "cart",
        "cart",
    ]
    nothing = orders("replay", "nothing_*")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "there is no such event in that time\n")


def test_a_pace_prints_the_same_events(orders: Inside) -> None:
    expected = orders("history").out
    for pace in (["original", "--max-pause", "0.01"], ["1000000x"], ["2.5×", "--max-pause", "0.01"]):
        assert orders("replay", "--pace", *pace).out == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pace", "fast"], "'fast' is no pace: none, original, a factor such as 10x"),
        (["--pace", "0x"], "'0x' is no pace"),
        (["--max-pause", "5"], "--max-pause is for a pace that pauses"),
        (["--pace", "step"], "here is no terminal to press it on: use --pace original"),
        (["--append"], "--append means nothing without --into"),
        (["--model", "m:f"], "--model and --ignore mean nothing without --handlers"),
        (["--into", "b", "--handlers", "f.py"], "--into and --handlers: one replay does one of them"),
        (["--into", "Bad Name"], "namespace 'Bad Name' is not"),
        (["--handlers", "nowhere.py"], "there is no file nowhere.py"),
        (["bad*\n"], "pattern"),
    ],
)
def test_what_can_never_work_is_wrong_usage(inside: Inside, words: list[str], said: str) -> None:
    done = inside("replay", *words)
    assert (done.code, said in done.error) == (2, True), done


def test_steps_wait_for_enter(orders: Inside, cli: Cli) -> None:
    lines = orders("history").lines
    out, err = on_terminal(cli, "\n2\n?\nq\n", "replay", "--pace", "step")
    assert out.splitlines() == lines[:3]
    assert err.count("> ") == 4
    assert err.count("Enter: the next event; a number: so many; q: stop") == 2  # once more after what meant nothing
    out, _ = on_terminal(cli, "\n\x04", "replay", "--pace", "step")  # Ctrl-D
    assert out.splitlines() == lines[:1]
    out, err = on_terminal(cli, "q\n", "replay", "--pace", "step")
    assert (out, "no such event" in err) == ("", False)


def on_terminal(cli: Cli, typed: str, *args: str) -> tuple[str, str]:
    """Run a command at whose standard input somebody types."""
    ours, terminal = pty.openpty()
    try:
        os.write(ours, typed.encode())
        done = subprocess.run(
            [SCRIPT, *args], stdin=terminal, capture_output=True, timeout=30, env=cli.env, check=False
        )
    finally:
        os.close(terminal)
        os.close(ours)
    assert done.returncode == 0, done
    return done.stdout.decode(), done.stderr.decode()


def test_a_bar_is_drawn_on_a_terminal_alone(orders: Inside, cli: Cli, namespace: str) -> None:
    ours, terminal = pty.openpty()
    env = {**cli.env, "TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen(
        [SCRIPT, "replay", "--into", f"{namespace}bar"], stdin=subprocess.DEVNULL, stderr=terminal, env=env
    ) as process:
        os.close(terminal)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # the other side is closed
            pass
        os.close(ours)
    assert process.returncode == 0
    assert f"replaying into {namespace}bar" in shown.decode()
    assert "100%" in shown.decode()
    assert "6 events" in shown.decode()
    assert "100%" not in orders("replay", "--into", f"{namespace}two").err


# -- copied -----------------------------------------------------------------------------------------------------------


def test_into_another_namespace(orders: Inside, namespace: str, remember: Remember, at: Any) -> None:
    copy = f"{namespace}copy"
    done = orders("replay", "--into", copy)
    assert (done.code, done.out, done.err) == (0, "", f"replayed 6 events into {copy}\n")
    assert at(copy, written) == remember(written)
    shown = orders("history", "order_1", "--namespace", copy).lines
    assert re.search(rf' "paid" \(replayed: {namespace} r4, \S+Z\)$', shown[1].replace('"new" → ', ""))
    assert f"replayed: it was r4 of {namespace}" in orders("why", "order_1", "--namespace", copy).out
    again = orders("replay", "--into", copy, "--json").object
    assert again == {
        "namespace": namespace,
        "into": copy,
        "first": 1,
        "revision": 6,
        "events": 6,
        "written": 0,
        "left_out": 0,
        "untimed": 0,
        "complete": True,
    }


def test_into_what_is_not_empty_is_refused_unless_told(orders: Inside, namespace: str, at: Any) -> None:
    copy = f"{namespace}copy"
    done = orders("replay", "--into", namespace)
    assert (done.code, "the events are in that namespace already" in done.error) == (2, True)
    assert orders("set", "mine", "1", "--namespace", copy).code == 0
    done = orders("replay", "order_*", "--into", copy)
    assert done.code == 2
    assert done.error.endswith("replay into a namespace that is empty, or add --append; nothing was written")
    done = orders("replay", "order_*", "--into", copy, "--append")
    assert (done.code, done.err) == (0, f"replayed 3 events into {copy}\n")
    done = orders("replay", "--into", copy, "--append")
    assert (done.code, done.err.splitlines()[:2]) == (
        0,
        [f"replayed 3 events into {copy}", f"left out 3 events that {copy} held already"],
    )
    assert len(at(copy, written)) == 7


def test_a_ttl_that_is_over_is_said(inside: Inside, namespace: str, remember: Remember) -> None:
    async def write(memory: Memory) -> None:
        await memory.set("short", 1, ttl=0.01)
        await eventually(lambda: absent(memory, "short"))

    remember(write)
    done = inside("replay", "--into", f"{namespace}copy")
    assert "1 value had a ttl that is over by now: " in done.err


def test_what_is_not_in_the_log_any_more_comes_from_the_archive_or_is_said_to_be_left_out(
    orders: Inside, namespace: str, remember: Remember, tmp_path: Path
) -> None:
    before = orders("replay").lines
    store = str(tmp_path / "store")
    assert orders("projections", "run", "archive", "--once", "--store", store).code == 0
    assert orders("archive", "trim", "--yes", "--store", store).code == 0
    whole = orders("replay", "--archive", f"{store}/archive")
    assert (whole.lines, whole.err) == (before, "")
    rest = orders("replay", "--into", f"{namespace}copy")
    assert "is not in the log any more, and is left out: name the archive that holds it with --archive" in rest.err


@pytest.fixture
def long(remember: Remember, cli: Cli) -> Cli:
    """Return the command line on a log of five thousand events."""

    async def write(memory: Memory) -> None:
        await write_many(await memory._fabric(), [f"key.{number % 40}" for number in range(5_000)])

    remember(write)
    return cli


def begun(cli: Cli, copy: str, at: Any, *options: str) -> Running:
    """A replay that is so slow that it can be interrupted, and has written something."""
    running = cli.start("replay", "--into", copy, "--pace", "0.1x", *options)

    async def has_some(memory: Memory) -> bool:
        return int((await (await memory._fabric()).log.state())["messages"]) > 50

    wait_until(lambda: at(copy, has_some), within=30, what="events in the target")
    return running


def test_killed_in_the_middle_it_goes_on_where_it_was(long: Cli, namespace: str, remember: Remember, at: Any) -> None:
    copy = f"{namespace}copy"
    begun(long, copy, at).end(signal.SIGKILL)
    before = at(copy, written)
    everything = remember(written)
    assert 0 < len(before) < 5_000
    assert before == everything[: len(before)]
    done = long("replay", "--into", copy)
    assert done.code == 0
    assert "going on after revision" in done.err
    assert done.err.endswith("5,000 events in all\n")
    assert at(copy, written) == everything


def test_ctrl_c_says_how_far_it_is_and_how_to_go_on(long: Cli, namespace: str, remember: Remember, at: Any) -> None:
    copy = f"{namespace}copy"
    done = begun(long, copy, at, "--max-pause", "15m", "--timeout", "20").end(signal.SIGINT)
    assert done.code == 130
    said, hint = done.err.splitlines()[-2:]
    held = re.fullmatch(rf"stopped: {copy} holds ([\d,]+) events, up to revision (\d+) of 5000; to go on:", said)
    assert held, done.err
    assert len(at(copy, written)) == int(held[1].replace(",", ""))
    options = f"--timeout 20 --since 1 --until 5000 --into {copy} --pace 0.1x --max-pause 900"
    assert hint.strip() == f"agentfield replay '*' {options}"
    _, *words = shlex.split(hint)
    assert long(*words[:-4]).code == 0
    assert at(copy, written) == remember(written)


# -- given to handlers ------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path, cli: Cli, remember: Remember) -> Path:
    """Return a file of handlers that have handled six orders, in a process of their own."""
    path = tmp_path / "shop.py"
    path.write_text(SHOP)
    running = cli.start("run", str(path))
    running.wait_line("agent shop serves")

    async def write(memory: Memory) -> None:
        for number in range(6):
            await memory.set(f"order_{number}_placed", {"amount": number}, scope="workflow", scope_id="w")
        await eventually(lambda: memory.exists("order_5_bill", "workflow", "w"), within=20)

    remember(write)
    assert running.end(signal.SIGINT).code == 0
    return path


def test_todays_code_does_what_was_recorded(cli: Cli, shop: Path, remember: Remember) -> None:
    before = remember(written)
    done = cli("replay", "--handlers", str(shop))
    assert (done.code, done.out, done.err) == (0, "", "12 runs, nothing differs; writes: 8 same\n")
    assert remember(written) == before
    assert remember(stages) == []
    done = cli("replay", "--handlers", f"{shop}:bill", "order_5_*", "--json")
    bill, summary = done.objects
    assert (bill["handler"], bill["event"]["key"], bill["differs"]) == ("bill", "order_5_total", False)
    assert summary["summary"]["same"] == 1


def test_changed_code_is_shown_with_what_it_changes_and_fails(cli: Cli, shop: Path, remember: Remember) -> None:
    changed = SHOP.replace("+ 5)", '+ (6 if order == "2" else 5))').replace("event.data > 8", "event.data >= 8")
    shop.write_text(changed.replace('"total": event.data}', '"total": 10 // (event.data - 9)}'))
    done = cli("replay", "--handlers", str(shop))
    assert done.code == 1
    place = r"r\d+ workflow:w"
    expected = [
        rf"shop\.price on {place} order_2_placed",
        rf"  ~ {place} order_2_total 7 → 8",
        rf"shop\.bill on {place} order_3_total",
        r"  \+ workflow:w order_3_bill \{\"total\":-10\}",
        rf"shop\.bill on {place} order_4_total",
        r"    raised ZeroDivisionError: .*",
        r"      .*shop\.py:\d+ in bill: .*",
        rf"  - {place} order_4_bill \{{\"total\":9\}}",
    ]
    for pattern, line in zip(expected, done.lines, strict=True):
        assert re.fullmatch(pattern, line), (pattern, line)
    assert done.err == "12 runs, 3 differ, 1 raised; writes: 6 same, 1 different, 1 missing, 1 extra\n"
    ignoring = cli("replay", "--handlers", f"{shop}:price", "--ignore", "order_2_*")
    assert (ignoring.code, ignoring.err) == (0, "6 runs, nothing differs; writes: 5 same\n")


def test_a_part_that_the_log_has_not_come_to_has_nothing_for_handlers(cli: Cli, shop: Path) -> None:
    done = cli("replay", "--handlers", str(shop), "--since", "9999")
    assert (done.code, done.out) == (0, "")
    assert "the handlers hear no event of that time" in done.err


def test_which_handlers_are_meant(cli: Cli, shop: Path) -> None:
    done = cli("replay", "--handlers", f"{shop}:nobody")
    assert (done.code, "has no handler 'nobody': there is shop.price, shop.bill" in done.error) == (2, True)
    both = cli("replay", "--handlers", f"{shop}:price,shop.bill")
    assert both.err.startswith("12 runs")
    shop.write_text(SHOP.replace('"order_*_total")', '"order_*_total", delivery="instance")'))
    done = cli("replay", "--handlers", f"{shop}:bill")
    assert (done.code, "has delivery='instance'" in done.error) == (2, True)
    done = cli("replay", "--handlers", str(shop))
    assert done.code == 0
    assert (
        done.err.splitlines()
        == [
            "left out: shop.bill: every instance handles each event, and which one wrote is not recorded",
            "6 runs, nothing differs; writes: 6 same",
            "not compared: 2 writes of shop.bill",
        ][:2]
    )
    shop.write_text("from agentfield import Agent\napp = Agent('shop')\n")
    done = cli("replay", "--handlers", str(shop))
    assert (done.code, "declares no handler" in done.error) == (2, True)


def test_no_model_is_asked_unless_it_is_named(cli: Cli, shop: Path, tmp_path: Path) -> None:
    (tmp_path / "answers.py").write_text("async def answer(messages, *, schema=None):\n    return 'fine'\n")
    shop.write_text(SHOP.replace("    if event.data > 8:", "    await app.ai('?')\n    if event.data > 8:"))
    done = cli("replay", "--handlers", f"{shop}:bill", "order_0_*")
    assert done.code == 1
    assert "raised InvalidInputError: a replay asks no model unless it is told which: add --model" in done.out
    done = cli("replay", "--handlers", f"{shop}:bill", "order_0_*", "--model", "answers:answer")
    assert (done.code, done.err) == (0, "1 run, nothing differs; writes: none\n")


def test_what_opens_memory_without_naming_a_namespace_is_on_the_stage(cli: Cli, shop: Path, remember: Remember) -> None:
    before = remember(written)
    opening = "    async with agentfield.connect() as memory:\n        await memory.set('outside', 1)\n"
    shop.write_text("import agentfield\n" + SHOP.replace("    if event", f"{opening}    if event"))
    done = cli("replay", "--handlers", f"{shop}:bill")
    assert done.err == "6 runs, 6 differ; writes: 2 same, 6 extra\n"
    assert remember(written) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_nothing_is_left_of_a_run_that_is_interrupted(
    cli: Cli, shop: Path, remember: Remember, number: signal.Signals, code: int
) -> None:
    shop.write_text(HANGING)
    running = cli.start("replay", "--handlers", f"{shop}:bill")
    running.wait_line("here")
    assert len(remember(stages)) > 5
    assert running.end(number).code == code
    assert remember(stages) == []


def test_what_a_run_that_was_killed_has_left_goes_with_the_next(cli: Cli, shop: Path, remember: Remember) -> None:
    code = shop.read_text()
    shop.write_text(
        code.replace("    if event", "    print('here', flush=True)\n    await asyncio.sleep(60)\n    if event")
    )
    running = cli.start("replay", "--handlers", f"{shop}:bill")
    running.wait_line("here")
    running.end(signal.SIGKILL)
    (left,) = {name.split("_")[0].lower() for name in remember(stages) if name.endswith("_MEMORY")}

    shop.write_text(SHOP)
    impatient = (
        "from datetime import timedelta; from agentfield.fabric import stages; from agentfield.cli import main; "
        "stages.remove_abandoned.__defaults__ = (timedelta(0),); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", impatient, "replay", "--handlers", f"{shop}:bill"],
        env=cli.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert f"removed namespace {left}: a replay that was killed had left it" in done.stderr
    assert remember(stages) == []


def test_nothing_is_left_of_a_run_that_fails(cli: Cli, shop: Path, remember: Remember) -> None:
    async def shorten(memory: Memory) -> None:
        await trim(await memory._fabric(), 6)

    remember(shorten)
    done = cli("replay", "--handlers", str(shop), "--since", "8")  # what memory held before is not known any more
    assert (done.code, "is gone: the log starts at revision 6" in done.error) == (1, True)
    assert remember(stages) == []
