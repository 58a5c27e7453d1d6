"""A server's monitoring endpoint, read the way an operator would: over HTTP, with a short timeout."""

import http.client
import json
from typing import Any

_TIMEOUT = 2.0


def ask(port: int, path: str) -> tuple[int, dict[str, Any]] | None:
    """Return the HTTP status and the JSON answer, or None when nobody answers (down, starting or paused)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return response.status, body


def is_healthy(port: int) -> bool:
    """Whether the server serves clients and its JetStream has caught up."""
    answer = ask(port, "/healthz")
    return answer is not None and answer[0] == http.client.OK


def meta_group(port: int) -> dict[str, Any]:
    """Return what this server knows of the meta group: the leader, and if it leads, the state of each peer."""
    answer = ask(port, "/jsz")
    return {} if answer is None else answer[1].get("meta_cluster") or {}


def stream_leader(port: int, stream: str) -> str | None:
    """Return the name of the server that leads a stream according to this one; None if it does not know."""
    answer = ask(port, "/jsz?accounts=true&streams=true")
    if answer is None:
        return None
    for account in answer[1].get("account_details") or []:
        for detail in account.get("stream_detail") or []:
            if detail["name"] == stream:
                leader = (detail.get("cluster") or {}).get("leader")
                return str(leader) if leader else None
    return None
