"""history and tail: the past in order, the present as it comes, and how they end."""

import signal
from pathlib import Path

import pytest

from agentfield import Memory
from agentfield.cli.ending import INTERRUPTED, PIPE_CLOSED
from tests.cli.command import Cli
from tests.cli.conftest import Remember
from tests.support import NatsServer
from tests.support.events import shorten

AGENT = """
from agentfield import Agent
app = Agent("triage")

@app.reasoner()
async def analyze(ticket_id: str):
    await app.memory.set(f"ticket_{ticket_id}", "angry")
    app.note("two\\nlines \\x1b[31m", tags=["analysis"])
"""


@pytest.fixture
def written(cli: Cli, remember: Remember) -> Cli:
    """Return the command line on a log of five events."""

    async def write(memory: Memory) -> None:
        await memory.set("order_1", "new", scope="global")
        await memory.set("order_2", 7, scope="workflow", scope_id="wf-1")
        await memory.set("order_1", "paid", scope="global")
        await memory.delete("order_1", scope="global")
        await memory.set("cart", [], scope="global")

    remember(write)
    return cli


def test_history_tells_what_happened_oldest_first(written: Cli) -> None:
    done = written("history", "order_1")
    assert (done.code, done.err) == (0, "")
    assert [line.split(" ", 1)[1] for line in done.lines] == [
        'r1 global order_1 "new"',
        'r3 global order_1 "new" → "paid"',
        'r4 global order_1 "paid" → deleted',
    ]
    times = [line.split()[0] for line in done.lines]
    assert times == sorted(times)
    assert all(time.endswith("Z") for time in times)


def test_history_gives_programs_events(written: Cli) -> None:
    first, second, third = written("history", "order_1", "--json").objects
    assert (first["data"], first["previous_data"], first["operation"], first["revision"]) == ("new", None, "set", 1)
    assert (second["data"], second["previous_data"], second["previous_revision"]) == ("paid", "new", 1)
    assert (third["operation"], third["data"], third["reason"]) == ("delete", None, None)
    assert first["timestamp"].endswith("Z")


def test_history_takes_patterns_and_scopes(written: Cli) -> None:
    def revisions(*args: str) -> list[int]:
        return [event["revision"] for event in written("history", *args, "--json").objects]

    assert revisions() == [1, 2, 3, 4, 5]
    assert revisions("order_*", "--global") == [1, 3, 4]
    assert revisions("--workflow", "wf-1") == revisions("--scope", "workflow") == [2]


def test_history_is_bounded_by_revision_time_age_and_number(written: Cli) -> None:
    def revisions(*args: str) -> list[int]:
        return [event["revision"] for event in written("history", *args, "--json").objects]

    third = written("history", "--since", "3", "--limit", "1", "--json").object["timestamp"]
    assert revisions("--since", "2", "--until", "4") == [2, 3, 4]
    assert revisions("--since", third, "--limit", "2") == [3, 4]
    assert revisions("--since", "1h", "--until", third) == [1, 2]
    assert revisions("--until", "1h") == []
    assert revisions("--limit", "2", "--reverse") == [5, 4]


def test_history_is_that_of_a_writer_if_one_is_named(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENT)
    cli.start("run", "agents.py", cwd=tmp_path).wait_line("agent triage serves")
    assert cli("call", "triage.analyze", "ticket_id=1", "--workflow", "wf-1").code == 0
    cli("set", "ticket_1", "calm")
    (event,) = cli("history", "--writer", "triage", "--json").objects
    assert (event["data"], event["writer"]["agent"]) == ("angry", "triage")
    assert cli("history", "--writer", event["writer"]["execution_id"], "--json").objects == [event]
    nobody = cli("history", "ticket_1", "--writer", "nobody")
    assert (nobody.code, nobody.error) == (3, "'nobody' has never written 'ticket_1' there")
    assert cli("history", "--writer", "nobody").code == 3
    lately = cli("history", "--writer", "nobody", "--since", "1h")
    assert (lately.code, lately.out, lately.err) == (0, "", "no event of '*' by 'nobody' in that time\n")


def test_a_key_to_which_nothing_ever_happened_is_not_found(written: Cli) -> None:
    done = written("history", "order_9")
    assert (done.code, done.error) == (3, "nothing has ever happened to 'order_9' there")
    for args, when in (
        (("order_9*",), ""),
        (("order_1", "--until", "1h"), " in that time"),
        (("order_1", "--since", "5"), " in that time"),
    ):
        done = written("history", *args)
        assert (done.code, done.out, done.err) == (0, "", f"no event of {args[0]!r}{when}\n")


def test_a_time_before_time_is_refused(written: Cli) -> None:
    done = written("history", "--since", "999999w")
    assert (done.code, "before time began" in done.error) == (2, True)


def test_tail_shows_what_happens_as_it_happens(cli: Cli) -> None:
    cli("set", "order_0", "0")
    tail = cli.start("tail", "order_*", "cart*")
    tail.wait_line("following")
    for key in ("order_1", "other", "cart_1"):
        cli("set", key, "1")
    tail.wait_line("cart_1")
    done = tail.end(signal.SIGINT)
    assert (done.code, [line.split()[3] for line in done.lines]) == (INTERRUPTED, ["order_1", "cart_1"])
    assert done.err.count("\n") == 1


def test_tail_waits_for_a_namespace_that_is_not_there_and_misses_nothing_of_it(cli: Cli) -> None:
    tail = cli.start("tail")
    assert "; waiting for it" in tail.wait_line("there is no namespace")
    assert not any(stream["exists"] for stream in cli("status", "--json").object["streams"])
    cli("set", "first", "1")
    tail.wait_line("first")
    assert tail.end(signal.SIGINT).code == INTERRUPTED


@pytest.mark.usefixtures("used")
def test_tail_gives_programs_events_line_by_line(cli: Cli) -> None:
    tail = cli.start("tail", "--json", "--session", "s")
    tail.wait_line("following")
    cli("set", "elsewhere", "1")
    cli("set", "key", "1", "--session", "s")
    cli("set", "key", "2", "--session", "s")
    tail.wait_line('"data":2')
    first, second = tail.end(signal.SIGINT).objects
    assert (first["data"], second["data"], second["previous_data"]) == (1, 2, 1)


def test_tail_can_begin_at_the_start(written: Cli) -> None:
    tail = written.start("tail", "--from-start", "--json")
    tail.wait_line("following")
    written("set", "next", "1")
    tail.wait_line('"next"')
    assert [event["revision"] for event in tail.end(signal.SIGINT).objects] == [1, 2, 3, 4, 5, 6]


def test_tail_of_a_log_that_was_shortened_says_so_and_shows_what_is_left(written: Cli, remember: Remember) -> None:
    async def cut(memory: Memory) -> None:
        await shorten(await memory._fabric(), keep=2)

    remember(cut)
    tail = written.start("tail", "--from-start", "--json")
    tail.wait_line("from revision 1 to 3 is gone")
    tail.wait_line("following")
    assert [event["revision"] for event in tail.end(signal.SIGINT).objects] == [4, 5]


def test_tail_shows_notes_beside_events(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENT)
    agent = cli.start("run", "agents.py", cwd=tmp_path)
    agent.wait_line("agent triage serves")
    people, programs = cli.start("tail", "--notes"), cli.start("tail", "--notes", "--json")
    for tail in (people, programs):
        tail.wait_line("following")
    assert cli("call", "triage.analyze", "ticket_id=1", "--workflow", "wf-1").code == 0
    line = people.wait_line(" note ")
    assert line.rstrip("\n").endswith("Z note triage two\\nlines \\x1b[31m #analysis")
    assert people.wait_line("ticket_1").rstrip("\n").endswith('workflow:wf-1 ticket_1 "angry" by triage')
    programs.wait_line('"note"')
    notes = [found for found in programs.end(signal.SIGINT).objects if "note" in found]
    assert [(note["note"], note["tags"], note["agent"]) for note in notes] == [
        ("two\nlines \x1b[31m", ["analysis"], "triage")
    ]
    assert notes[0]["workflow_id"] == "wf-1"
    assert people.end(signal.SIGINT).code == INTERRUPTED
    again = cli.start("tail", "--notes", "--from-start", "no_such_key")
    again.wait_line(" note ")


def test_tail_ends_when_its_reader_has_gone_though_nothing_happens(cli: Cli) -> None:
    assert cli.into_closed_pipe("tail")[0] == PIPE_CLOSED


def test_tail_misses_nothing_while_the_server_is_away(fresh_server: NatsServer, namespace: str) -> None:
    cli = Cli({"AGENTFIELD_NATS_URL": fresh_server.url, "AGENTFIELD_NAMESPACE": namespace})
    try:
        cli("set", "earlier", "1")
        tail = cli.start("tail", "--json")
        tail.wait_line("following")
        cli("set", "before", "1")
        fresh_server.stop_now()
        tail.wait_line("lost the server")
        fresh_server.start_now()
        cli("set", "after", "1")
        tail.wait_line('"after"')
        done = tail.end(signal.SIGINT)
        assert (done.code, [event["key"] for event in done.objects]) == (INTERRUPTED, ["before", "after"])
        assert "Traceback" not in done.err
    finally:
        cli.dispose()


@pytest.mark.usefixtures("used")
def test_tail_leaves_no_consumer_behind(cli: Cli) -> None:
    tail = cli.start("tail")
    tail.wait_line("following")
    cli("set", "key", "1")
    tail.wait_line("key")
    assert tail.end(signal.SIGINT).code == INTERRUPTED
    (log,) = [stream for stream in cli("status", "--json").object["streams"] if stream["name"].endswith("_MEMORY")]
    assert log["consumers"] == 0
