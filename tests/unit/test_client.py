"""What the client replaces of nats-py gives what nats-py's own gives, and nats-py still calls it."""

import asyncio
import inspect

import nats.aio.client
import nats.aio.subscription
import nats.protocol.parser
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client as StockClient

from agentfield.fabric.wire.client import Client, parse_headers, publication
from agentfield.fabric.wire.parser import Parser

TOKEN = st.text("!#$%&'*+-.^_`|~0123456789aAzZ", min_size=1, max_size=12)
BLANKS = st.text(" \t\x0b\x0c", max_size=2)
LINE_CHARACTER = st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])
TEXT = st.text(LINE_CHARACTER, max_size=24)
ASCII = st.text(st.characters(codec="ascii", exclude_characters="\r\n"), max_size=24)

well_formed = st.tuples(TOKEN, BLANKS, st.one_of(TEXT, ASCII), BLANKS).map(
    lambda parts: f"{parts[0]}:{parts[1]}{parts[2]}{parts[3]}".encode()
)
anything = st.one_of(
    st.tuples(BLANKS, TOKEN, BLANKS, TEXT).map(lambda parts: f"{parts[0]}{parts[1]}{parts[2]}:{parts[3]}".encode()),
    st.tuples(TEXT, TEXT).map(lambda parts: f"{parts[0]}:{parts[1]}".encode()),
    TEXT.map(str.encode),
    st.binary(max_size=24).map(lambda line: line.replace(b"\r\n", b"")),
)
lines = st.lists(st.one_of(well_formed, anything), max_size=6)

description = st.text("abcXYZ -:12é", min_size=1, max_size=20).map(lambda text: "d" + text.strip())
inline_status = st.one_of(
    st.sampled_from(["204 EOB", "404 No Messages", "408 Request Timeout", "409 Message Size Exceeds MaxBytes"]),
    st.tuples(st.integers(100, 599), description).map(lambda parts: f"{parts[0]} {parts[1]}"),
)


def block(status: str, rows: list[bytes]) -> bytes:
    return b"\r\n".join([b"NATS/1.0" + (f" {status}".encode() if status else b""), *rows, b"", b""])


def stock(raw: bytes) -> dict[str, str] | None:
    """What nats-py's own parser makes of a block."""
    parsing = StockClient()._process_headers(raw)
    try:
        parsing.send(None)
    except StopIteration as done:  # it never waits for anything, so it needs no loop
        headers: dict[str, str] | None = done.value
        return headers or None
    raise AssertionError("nats-py's parser waits, or reports an error, where it did not")


@given(lines)
@example([b"Nats-Msg-Id: 1", b'Agentfield-Event: {"v":1,"agent":"a:b"}'])
@example([b"Caf\xc3\xa9: 1", b"A B: 2", b" C : 3", b"D:4", b"E:\t5\xc2\xa0", b"F: \xff", b"nothing", b": no name"])
@example([b"A: 1", b"A: 2"])
@example([b"A: 1", b"Nats-Sequence"])
@example([])
def test_headers_are_parsed_as_nats_py_parses_them(rows: list[bytes]) -> None:
    assert parse_headers(block("", rows)) == stock(block("", rows))


@given(inline_status, lines)
@example("503 No Responders Available For Request", [])
@example("204 EOB", [b"Nats-Num-Pending: 3", b"Nats-UpTo-Sequence: 12"])
def test_an_inline_status_is_parsed_as_nats_py_parses_it(status: str, rows: list[bytes]) -> None:
    assert parse_headers(block(status, rows)) == stock(block(status, rows))


@pytest.mark.parametrize("status", [100, 404, 503])
def test_a_status_may_come_without_a_description(status: int) -> None:
    assert parse_headers(block(str(status), [])) == stock(block(str(status), [])) == {"Status": str(status)}


def test_a_status_without_description_leaves_the_headers_behind_it_alone() -> None:
    # Here nats-py itself goes astray: it takes the first header for the description.
    assert parse_headers(b"NATS/1.0 100\r\nNats-Last-Consumer: 3\r\n\r\n") == {
        "Status": "100",
        "Nats-Last-Consumer": "3",
    }


def test_an_empty_block_is_no_headers() -> None:
    assert parse_headers(block("", [])) is None


NAME = st.one_of(st.sampled_from(["Nats-Msg-Id", "Agentfield-Event", "KV-Operation"]), TOKEN)
sent_headers = st.one_of(st.none(), st.dictionaries(NAME, st.one_of(TEXT, st.text(max_size=12), BLANKS), max_size=4))


class _Outbox(StockClient):
    """A nats-py client that only takes note of the commands it would send."""

    def __init__(self) -> None:
        super().__init__()
        self.commands: list[bytes] = []

    async def _send_command(self, cmd: bytes, priority: bool = False) -> None:
        self.commands.append(bytes(cmd))


@given(TOKEN, st.one_of(st.just(""), TOKEN), st.binary(max_size=20), sent_headers)
@example("a.b", "", b"x", {"Nats-Msg-Id": " 1\r\n2\n", "KV-Operation": "DEL"})
@example("a.b", "r", b"", {"Agentfield-Event": '{"v":1,"agent":"Zoë"}'})
@example("a.b", "r", b"", {})
def test_a_message_is_sent_as_nats_py_sends_it(
    subject: str, reply: str, payload: bytes, headers: dict[str, str] | None
) -> None:
    command = publication(subject, reply, payload, headers)
    if command is not None:
        outbox = _Outbox()
        sending = outbox._send_publish(subject, reply, payload, len(payload), headers)
        with pytest.raises(StopIteration):  # it never waits for anything, so it needs no loop
            sending.send(None)
        assert [command] == outbox.commands


@pytest.mark.parametrize("headers", [{"Nats-Msg-Id": "a\r\nb"}, {"Nats-Msg-Id": "a\nb"}, {"of mine": "1"}])
def test_headers_that_need_mending_or_refusing_are_left_to_nats_py(headers: dict[str, str]) -> None:
    assert publication("a", "", b"", headers) is None


@pytest.mark.parametrize(("subject", "reply"), [("", ""), ("a b", ""), ("a\r\nPING", ""), ("a", "b c"), ("a", " b")])
def test_subjects_that_nats_py_refuses_are_left_to_it(subject: str, reply: str) -> None:
    assert publication(subject, reply, b"", None) is None


@pytest.mark.parametrize("hook", ["_process_headers", "_process_pong", "_send_ping", "publish", "_remove_sub"])
def test_nats_py_still_has_the_methods_that_the_client_replaces(hook: str) -> None:
    replaced, ours = getattr(StockClient, hook), getattr(Client, hook)
    assert ours is not replaced
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(replaced).parameters)
    callers = (nats.aio.client, nats.aio.subscription, nats.protocol.parser)
    assert any(f".{hook}(" in inspect.getsource(caller) for caller in callers)


def test_nats_py_still_parses_with_the_parser_that_the_client_replaces() -> None:
    source = inspect.getsource(nats.aio.client)
    assert "self._ps.parse(" in source
    assert "self._ps.reset()" in source
    assert type(StockClient()._ps) is nats.protocol.parser.Parser
    assert type(Client()._ps) is Parser


async def test_a_ping_goes_out_behind_everything_that_was_sent_before_it() -> None:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"headers":true}\r\n')
        async for line in reader:
            heard.append(line.split()[0])
            if line.startswith(b"PUB"):
                await reader.readline()
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = Client()
    try:
        await client.connect(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await client.flush()
        heard.clear()

        async def ignore(_: object) -> None: ...

        subscription = await client.subscribe("a", cb=ignore)
        await client.publish("b", b"1")
        await client.flush()
        await subscription.drain()  # type: ignore[no-untyped-call]
        assert heard == [b"SUB", b"PUB", b"PING", b"UNSUB", b"PING"]
    finally:
        await client.close()
        server.close()
        await server.wait_closed()
