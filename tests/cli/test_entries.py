"""get, set, delete and ls: what people see, what programs see, and the exit codes."""

import re
from datetime import datetime, timedelta

import pytest

from agentfield import Memory
from tests.cli.command import Cli
from tests.cli.conftest import Remember


def test_a_value_is_json_if_it_can_be_and_text_otherwise(cli: Cli, remember: Remember) -> None:
    values = {"number": ("-5", -5), "string": ('"42"', "42"), "text": ("größer 📊", "größer 📊"), "empty": ("", "")}
    values |= {"null": ("null", None), "object": ('{"a": [1, 2.5, true]}', {"a": [1, 2.5, True]})}
    for revision, (key, (given, _)) in enumerate(values.items(), start=1):
        done = cli("set", key, given)
        assert (done.code, done.out, done.err) == (0, f"{revision}\n", "")
    stored = remember(lambda memory: memory.get_many(list(values), scope="global"))
    assert stored == {key: value for key, (_, value) in values.items()}


def test_a_value_can_be_forced_to_be_text(cli: Cli) -> None:
    cli("set", "a", "--string", "0042")
    cli("set", "b", "--string", "true")
    assert (cli("get", "a").out, cli("get", "b", "--json").object["value"]) == ("0042\n", "true")


def test_a_value_can_come_from_standard_input(cli: Cli) -> None:
    cli("set", "number", "-", input="42\n")
    cli("set", "text", "-", input="two\nlines\n")
    cli("set", "string", "-", "--string", input="42\n")
    values = [cli("get", key, "--json").object["value"] for key in ("number", "text", "string")]
    assert values == [42, "two\nlines", "42"]
    refused = cli("set", "bytes", "-", input=b"\xff")
    assert (refused.code, "not UTF-8" in refused.error) == (2, True)


def test_people_get_a_string_bare_and_anything_else_as_json(cli: Cli) -> None:
    cli("set", "text", "hello [bold]world[/bold]")
    cli("set", "object", '{"b": 1}')
    cli("set", "nothing", "null")
    assert cli("get", "text").out == "hello [bold]world[/bold]\n"
    assert cli("get", "object").out == '{\n  "b": 1\n}\n'
    assert cli("get", "nothing").out == "null\n"


def test_programs_get_the_whole_entry(cli: Cli) -> None:
    revision = cli("set", "key", "1", "--session", "user 42", "--ttl", "1h", "--json").object
    assert revision == {"key": "key", "scope": "session", "scope_id": "user 42", "revision": 1}
    entry = cli("get", "key", "--json").object
    assert (entry["scope"], entry["scope_id"], entry["revision"], entry["value"]) == ("session", "user 42", 1, 1)
    assert entry["writer"]["agent"] is None
    written, expires = (datetime.fromisoformat(entry[name]) for name in ("timestamp", "expires_at"))
    assert expires - written == timedelta(hours=1)


def test_get_finds_the_one_entry_in_whichever_scope_it_is(cli: Cli, remember: Remember) -> None:
    async def write(memory: Memory) -> None:
        await memory.set("in_workflow", "w", scope="workflow", scope_id="wf-1")
        await memory.set("in_actor", "a", scope="actor", scope_id="triage")

    remember(write)
    assert cli("get", "in_workflow").out == "w\n"
    assert cli("get", "in_actor").out == "a\n"
    assert cli("get", "in_workflow", "--scope", "workflow").out == "w\n"
    assert cli("get", "in_workflow", "--scope", "workflow", "--scope-id", "wf-1").out == "w\n"
    assert cli("get", "in_workflow", "--session", "wf-1").code == 3


def test_get_says_how_to_choose_when_several_scopes_hold_the_key(cli: Cli) -> None:
    cli("set", "key", "g")
    cli("set", "key", "w", "--workflow", "it's")
    ambiguous = cli("get", "key")
    assert ambiguous.code == 2
    assert ambiguous.error == """'key' is in 2 scopes: choose one with --global or --workflow 'it'"'"'s'"""
    assert cli("get", "key", "--workflow", "it's").out == "w\n"
    cli("delete", "key")
    assert cli("get", "key").out == "w\n"


def test_what_is_absent_is_not_found(cli: Cli) -> None:
    cli("set", "key", "1", "--workflow", "wf-1")
    said = {
        ("get", "other"): "there is no 'other' in any scope",
        ("get", "key", "--global"): "there is no 'key' in the global scope",
        ("get", "key", "--workflow", "wf-2"): "there is no 'key' in workflow 'wf-2'",
        ("get", "key", "--scope", "actor"): "there is no 'key' in any actor",
        ("delete", "other"): "there is no 'other' in the global scope",
        ("delete", "key"): "there is no 'key' in the global scope; it is elsewhere: choose with --workflow wf-1",
        ("delete", "key", "--session", "s"): "there is no 'key' in session 's'",
    }
    for args, text in said.items():
        done = cli(*args)
        assert (done.code, done.error) == (3, text)


def test_delete_takes_the_value_away_once(cli: Cli) -> None:
    cli("set", "key", "1")
    done = cli("delete", "key", "--json")
    assert (done.code, done.object) == (0, {"key": "key", "scope": "global", "scope_id": "global", "deleted": True})
    assert cli("delete", "key").code == 3
    assert cli("get", "key").code == 3


def test_a_conditional_write_that_lost_changes_nothing(cli: Cli) -> None:
    assert cli("set", "key", "1", "--if-revision", "0").out == "1\n"
    for args in (("set", "key", "2", "--if-revision", "0"), ("delete", "key", "--if-revision", "7")):
        done = cli(*args)
        assert done.code == 3
        assert "'key' is at revision 1" in done.error
    assert cli("set", "key", "2", "--if-revision", "1").out == "2\n"
    assert cli("delete", "key", "--if-revision", "2").out == "deleted from the global scope\n"


def test_an_expired_entry_is_absent(cli: Cli) -> None:
    cli("set", "key", "1", "--ttl", "0.001")
    assert cli("get", "key").code == 3
    assert cli("ls", "--json").out == ""


def test_ls_shows_every_scope_in_columns(cli: Cli, remember: Remember) -> None:
    async def write(memory: Memory) -> None:
        await memory.set("order_1", {"text": "x" * 100}, scope="workflow", scope_id="wf-1")
        await memory.set("order_2", "two", scope="session", scope_id="user-42")
        await memory.set("order_3", 3, scope="global")
        await memory.set("cart_4", 4, scope="global")
        await memory.set("gone", 4, scope="global")
        await memory.delete("gone", scope="global")

    remember(write)
    done = cli("ls")
    assert (done.code, done.err) == (0, "")
    header, *rows = [line.split() for line in done.lines]
    assert header == ["scope", "id", "key", "value", "revision", "age", "writer"]
    assert [row[:3] for row in rows] == [
        ["global", "-", "cart_4"],
        ["global", "-", "order_3"],
        ["session", "user-42", "order_2"],
        ["workflow", "wf-1", "order_1"],
    ]
    assert rows[3][3].endswith("x…")
    assert rows[2][3:] == ['"two"', "2", rows[2][5], "-"]
    assert [row.split()[2] for row in cli("ls", "order_*").lines[1:]] == ["order_3", "order_2", "order_1"]
    assert [row.split()[2] for row in cli("ls", "order_*", "--workflow", "wf-1").lines[1:]] == ["order_1"]
    assert [row.split()[2] for row in cli("ls", "--scope", "session").lines[1:]] == ["order_2"]


def test_ls_gives_programs_whole_entries(cli: Cli) -> None:
    value = {"text": "x" * 1000, "umlaut": "ä"}
    cli("set", "key", "-", input='{"text": "' + "x" * 1000 + '", "umlaut": "ä"}')
    entry = cli("ls", "--json", env={"PYTHONIOENCODING": "ascii"}).object
    assert (entry["key"], entry["value"], entry["scope"], entry["revision"]) == ("key", value, "global", 1)


def test_a_value_too_large_for_one_message_is_printed_whole_and_listed_by_its_size(cli: Cli) -> None:
    text = "x" * 400_000
    assert cli("set", "large", "-", input=text).code == 0
    assert cli("get", "large").out == text + "\n"
    assert cli("get", "large", "--json").object["value"] == text
    assert "(400 kB)" in cli("ls").out
    assert cli("ls", "--json").object["value"] == text


@pytest.mark.usefixtures("used")
def test_ls_of_nothing_says_so_aside_and_is_no_failure(cli: Cli) -> None:
    done = cli("ls", "order_*")
    assert (done.code, done.out, done.err) == (0, "", "no entry matches 'order_*'\n")
    assert cli("ls", "--json").out == ""


def test_a_terminal_shows_a_table_that_fits_and_no_control_characters(cli: Cli) -> None:
    cli("set", "key_1", "--string", "red \x1b[31m " + "x" * 200)
    cli("set", "key_2", "[bold]2[/bold]")
    shown = cli.on_terminal("ls")
    assert "\x1b[2m" in shown, "the header is dimmed"
    assert "\x1b[31m" not in shown
    assert "[bold]2[/bold]" in shown
    assert [line for line in shown.splitlines() if "key_1" in line and "…" in line], shown
    assert cli.on_terminal("get", "key_1").startswith("red \\x1b[31m xxx")
    assert cli("get", "key_1").out.startswith("red \x1b[31m xxx"), "a file gets the value itself"


def test_on_a_terminal_that_is_too_narrow_for_the_table_a_key_can_still_be_copied(cli: Cli) -> None:
    key, workflow = "order_" + "k" * 90, "0193abcdef0193abcdef0193abcdef01"
    cli("set", key, '{"total": 12}', "--workflow", workflow)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", cli.on_terminal("ls"))
    first, *rest = shown.splitlines()
    assert first == key, "alone on its line, and whole"
    assert all(len(line) <= 80 and line.startswith("  ") for line in rest)
    assert f'scope workflow, id {workflow}, value {{"total":12}}' in " ".join(line.strip() for line in rest)


@pytest.mark.parametrize("args", [("ls",), ("ls", "--json"), ("get", "key"), ("history",)])
def test_a_reader_that_has_gone_ends_it_quietly(cli: Cli, args: tuple[str, ...]) -> None:
    cli("set", "key", "1")
    assert cli.into_closed_pipe(*args) == (141, "")
