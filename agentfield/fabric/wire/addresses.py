"""The addresses of servers, as users write them: which can be used, and how they are shown.

Pure. Must not know: what answers there. Invariant: a password is in nothing that is shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from agentfield.errors import InvalidInputError

_SCHEMES = ({"nats", "tls"}, {"ws", "wss"})


def check_urls(urls: Sequence[str]) -> None:
    """Raises InvalidInputError for one that is no URL of a NATS server, or that the others do not go with."""
    schemes: set[str] = set()
    for url in urls:
        try:
            parts = urlsplit(url if "//" in url else f"nats://{url}")
            valid = bool(parts.hostname) and parts.port != 0
        except ValueError:  # the port
            valid = False
        else:
            schemes.add(parts.scheme)
        if not valid or not any(schemes <= known for known in _SCHEMES):
            raise InvalidInputError(f"{without_password(url)!r} is not a NATS URL; write nats://host:port")


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    return re.sub(r"//[^@/]*@", "//", url)
