"""Asking who is on a port: a NATS server, something else, nobody."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from agentfield.local.probe import Answer, Silence, ask, ask_health
from tests.support import NatsServer
from tests.support.ports import free_ports


@contextmanager
def saying(text: bytes, *, hang_up: bool = False) -> Iterator[int]:
    """Something that is no NATS server: it says its text to whoever connects, and then waits for the other's end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, suppress(ConnectionError):  # who has heard enough hangs up
                connection.sendall(text)
                while not hang_up and connection.recv(1000):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_a_server_tells_its_name_its_version_and_whether_it_stores(server: NatsServer) -> None:
    answer = ask(server.client_port, within=1)
    assert isinstance(answer, Answer)
    assert (answer.name, answer.jetstream) == (server.name, True)
    assert answer.version.count(".") == 2


def test_where_nothing_listens_there_is_nobody() -> None:
    assert ask(free_ports(1)[0], within=1) is Silence.NOBODY


@pytest.mark.parametrize(
    "text",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"INFO {}\r\nPONG\r\n",
        b"INFO []\r\nPONG\r\n",
        b"INFO no json\r\nPONG\r\n",
        b'INFO {"server_name":"x","version":"2.15.1"}\r\n-ERR \'Authorization Violation\'\r\n',
        b"x" * 200_000,
    ],
    ids=["another protocol", "nothing of itself", "a list", "no JSON", "refuses us", "no end of line"],
)
def test_what_does_not_speak_the_protocol_is_foreign(text: bytes) -> None:
    with saying(text) as port:
        assert ask(port, within=1) is Silence.FOREIGN


def test_what_hangs_up_is_foreign() -> None:
    with saying(b"", hang_up=True) as port:
        assert ask(port, within=1) is Silence.FOREIGN


@pytest.mark.parametrize("text", [b"", b"INFO {", b'INFO {"server_name":"x","version":"2.15.1"}\r\n'])
def test_what_stops_in_the_middle_is_mute_at_the_deadline(text: bytes) -> None:
    begin = time.monotonic()
    with saying(text) as port:
        assert ask(port, within=0.2) is Silence.MUTE
    assert 0.15 < time.monotonic() - begin < 1


def test_an_answer_in_pieces_is_put_together() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for byte in b'INFO {"server_name":"x","version":"2.15.1","jetstream":true}\r\nPONG\r\n':
                    connection.sendall(bytes([byte]))

        thread = threading.Thread(target=serve)
        thread.start()
        assert ask(listener.getsockname()[1], within=5) == Answer("x", "2.15.1", True)
        thread.join()


def test_a_healthy_server_has_no_fault(server: NatsServer) -> None:
    assert ask_health(server.monitor_port, within=1) is None


def test_where_no_monitoring_answers_it_is_an_outage() -> None:
    with pytest.raises(ConnectionRefusedError):
        ask_health(free_ports(1)[0], within=1)
    with (
        saying(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n[]") as port,
        pytest.raises(OSError, match=r"is not the monitoring endpoint"),
    ):
        ask_health(port, within=1)
