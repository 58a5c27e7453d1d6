"""The faster parser of the protocol gives what nats-py's own gives, however the stream is cut."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.errors import ProtocolError
from nats.protocol.parser import Parser as StockParser

from agentfield.fabric.wire.client import Client
from agentfield.fabric.wire.parser import Parser

Seen = list[tuple[Any, ...]]

TOKEN = st.text("abcXYZ019_-.=$", min_size=1, max_size=20).map(str.encode)
SID = st.integers(1, 4).map(lambda sid: b"%d" % sid)
PAYLOAD = st.one_of(st.binary(max_size=40), st.sampled_from([b"", b"\r\n", b"PING\r\n", b"MSG a 1 0\r\n\r\n"]))
BLOCK = st.binary(max_size=20).map(lambda text: b"NATS/1.0\r\nA: " + text + b"\r\n\r\n")
REPLY = st.one_of(st.just(b""), TOKEN.map(lambda token: token + b" "))

plain = st.builds(lambda s, i, r, p: b"MSG %b %b %b%d\r\n%b\r\n" % (s, i, r, len(p), p), TOKEN, SID, REPLY, PAYLOAD)
headed = st.builds(
    lambda s, i, r, h, p: b"HMSG %b %b %b%d %d\r\n%b%b\r\n" % (s, i, r, len(h), len(h) + len(p), h, p),
    TOKEN, SID, REPLY, BLOCK, PAYLOAD,
)  # fmt: skip
other = st.sampled_from(
    [
        b"PING\r\n",
        b"PONG\r\n",
        b"+OK\r\n",
        b"-ERR 'Slow Consumer'\r\n",
        b'INFO {"server_id":"A","version":"2.15.1"}\r\n',
    ]
)
frames = st.lists(st.one_of(plain, headed, other), max_size=8).map(b"".join)
junk = st.sampled_from([b"", b"NONSENSE\r\n", b"MSG a\r\n", b"MSG a b c d e f\r\n", b"HMSG a 1 x y\r\n", b"MSG a 1"])
everywhere = list(range(1000))
cuts = st.one_of(st.lists(st.integers(0, 200), max_size=8), st.just(everywhere))


class Recorder(Client):
    """A client that only takes note of what its parser hands it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Seen = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.seen.append((sid, subject, reply, bytes(data), headers))

    async def _process_ping(self) -> None:
        self.seen.append(("ping",))

    async def _process_pong(self) -> None:
        self.seen.append(("pong",))

    async def _process_err(self, err_msg: str) -> None:
        self.seen.append(("error", err_msg))

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        self.seen.append(("info", info))


def outcome(parser: StockParser, client: Recorder, stream: bytes, at: list[int]) -> tuple[Seen, bool]:
    """What the parser hands over when the stream comes in these pieces, and whether it refused it."""
    edges = [0, *sorted(cut for cut in at if cut < len(stream)), len(stream)]

    for begin, end in pairwise(edges):
        try:
            parser.parse(stream[begin:end]).send(None)  # it never waits for anything, so it needs no loop
        except StopIteration:
            continue
        except ProtocolError:
            return client.seen, True
    return client.seen, False


def by_nats_py(stream: bytes, at: list[int]) -> tuple[Seen, bool]:
    client = Recorder()
    return outcome(StockParser(client), client, stream, at)


def by_ours(stream: bytes, at: list[int], sinks: bool) -> tuple[Seen, bool]:
    client = Recorder()
    for number in (1, 3) if sinks else ():

        def take(subject: bytes, reply: bytes, block: bytes, payload: bytes, sid: int = number) -> None:
            client.seen.append((sid, subject, reply, payload, block or None))

        client.sinks[b"%d" % number] = take
    return outcome(Parser(client), client, stream, at)


@given(frames, junk, cuts, st.booleans())
@example(b"MSG a 1 3\r\nabc\r\nHMSG a 2 r 12 15\r\nNATS/1.0\r\n\r\nabc\r\n", b"", [1, 5, 11, 13, 30], True)
@example(b"MSG a 1 0\r\n\r\n", b"MSG a x 0\r\n", [], False)
def test_the_same_frames_come_out_however_the_stream_is_cut(
    stream: bytes, end: bytes, at: list[int], sinks: bool
) -> None:
    assert by_ours(stream + end, at, sinks) == by_nats_py(stream + end, at)


def test_a_large_message_in_many_pieces_is_whole() -> None:
    payload = bytes(range(256)) * 4000
    stream = b"MSG a 1 %d\r\n%b\r\nPING\r\n" % (len(payload), payload)
    pieces = list(range(0, len(stream), 32768))
    assert by_ours(stream, pieces, True) == ([(1, b"a", b"", payload, None), ("ping",)], False)


async def test_a_sink_that_fails_loses_nothing_but_its_message(caplog: pytest.LogCaptureFixture) -> None:
    client = Recorder()
    taken: list[bytes] = []

    def take(subject: bytes, reply: bytes, block: bytes, payload: bytes) -> None:
        taken.append(payload)
        if payload == b"bad":
            raise ValueError("no such thing")

    client.sinks[b"1"] = take
    await Parser(client).parse(b"MSG a 1 3\r\nbad\r\nMSG a 1 4\r\ngood\r\nPING\r\n")
    assert taken == [b"bad", b"good"]
    assert client.seen == [("ping",)]
    assert "a message on a was not understood" in caplog.text


async def test_a_new_connection_begins_with_nothing_left_of_the_old_one() -> None:
    client = Recorder()
    parser = Parser(client)
    await parser.parse(b"MSG a 2 100\r\nhalf of")
    parser.reset()
    await parser.parse(b"MSG a 2 2\r\nok\r\n")
    assert client.seen == [(2, b"a", b"", b"ok", None)]
