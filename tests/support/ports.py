"""Ports that a test's servers may listen on."""

import contextlib
import random
import socket

# Below every system's range for outgoing connections (Linux starts at 32768), so that a port stays free between a
# server's stop and its restart; above what well-known services use.
_RANGE = range(15000, 32700)


class PortTakenError(Exception):
    """Somebody else came first: choose other ports and start again."""


def free_ports(count: int) -> list[int]:
    """Return `count` different ports on which nothing listens on the loopback interface right now.

    Another process may still take one before it is used: whoever starts a server on it retries on PortTakenError.
    """
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            candidate = socket.socket()
            held.callback(candidate.close)
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port = random.choice(_RANGE)
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    return found
