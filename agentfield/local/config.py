"""What an embedded server is told: the text of its configuration file, and the ports it may try.

Owns: the server's options, each with its reason, and the order of ports. Must not know: processes, locks, records on
disk. The configuration is written anew at each start, so an edit of the file does not last.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

from agentfield.local.home import Home, Record
from agentfield.local.probe import LOOPBACK

CLIENT_PORT = 4222
MONITOR_PORT = 8222
"""Where every NATS tool looks first."""

_NEIGHBOURS = 100
"""Ports above the usual one that are tried next. No system uses them for outgoing connections, so a port stays free
between a server's end and its restart, and agents that are running find it again."""

_TEMPLATE = """\
# Written by agentfield at each start of the embedded server; changes to this file do not last.
server_name: {name}
listen: "{host}:{port}"
http: "{host}:{monitor_port}"
pid_file: {pid_file}

# 10 MB and three older files of that size are kept.
log_file: {log}
logfile_size_limit: 10MB
logfile_max_num: 4

jetstream {{
  store_dir: {directory}  # the server makes the directory "jetstream" in it
  # An acknowledged write is on the disk, not in a cache that a power cut empties.
  sync_interval: always
}}
"""


def configuration(home: Home, record: Record) -> str:
    """The configuration file of the server that the record describes."""
    return _TEMPLATE.format(
        name=_quoted(record.name),
        host=LOOPBACK,
        port=record.port,
        monitor_port=record.monitor_port,
        pid_file=_quoted(home.pid_file),
        log=_quoted(home.log),
        directory=_quoted(home.directory),
    )


def ports(usual: int, earlier: int | None) -> Iterator[int]:
    """Ports that are free now: the one used before, the usual one, its neighbours, then whichever the system gives.

    Another process may take one before the server does, so whoever starts a server goes on with the next.
    """
    for port in dict.fromkeys([earlier or usual, *range(usual, usual + _NEIGHBOURS)]):
        if _free_port(port) is not None:
            yield port
    yield from any_ports()


def any_ports() -> Iterator[int]:
    """Ports of the system's choice that are free now: for a server that nobody is to find by chance."""
    while (chosen := _free_port(0)) is not None:
        yield chosen


def _free_port(port: int) -> int | None:
    """That port, or for 0 one of the system's choice, if a server could listen on it now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: old connections do not count
        try:
            candidate.bind((LOOPBACK, port))
        except OSError:
            return None
        return int(candidate.getsockname()[1])


def _quoted(value: str | Path) -> str:
    """The value as a string of the configuration language, with bytes that are not plain ASCII in hexadecimal."""
    plain = (
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02X}" for byte in os.fsencode(value)
    )
    return '"' + "".join(plain) + '"'
