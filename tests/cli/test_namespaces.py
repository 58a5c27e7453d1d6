"""A namespace that is not there is not found: whoever looks does not make it."""

import pytest

from tests.cli.conftest import Inside, Remember

LOOKING = [
    ("get", "key"),
    ("ls",),
    ("history", "key"),
    ("why", "key"),
    ("as-of", "1", "key"),
    ("diff", "key", "1"),
    ("timeline",),
    ("metrics",),
    ("projections", "list"),
    ("projections", "status"),
    ("projections", "verify", "state"),
    ("projections", "run", "--once", "timeline"),
    ("handlers", "list"),
    ("deadletters", "list"),
    ("personal", "show"),
    ("audit", "verify"),
    ("audit", "report"),
]
CHANGING_WHAT_IS_THERE = [
    ("delete", "key"),
    ("revert", "key", "1", "--yes"),
    ("erase", "session", "s", "--yes"),
    ("personal", "off"),
    ("deadletters", "replay", "--all"),
    ("handlers", "remove", "a.b", "--yes"),
    ("projections", "remove", "timeline"),
]


@pytest.mark.parametrize("command", LOOKING + CHANGING_WHAT_IS_THERE, ids=" ".join)
def test_a_command_that_looks_at_a_namespace_that_is_not_there_does_not_make_it(
    inside: Inside, namespace: str, command: tuple[str, ...]
) -> None:
    done = inside(*command)
    assert (done.code, done.error.startswith(f"there is no namespace {namespace!r} at nats://")) == (3, True), done
    assert not any(stream["exists"] for stream in inside("status", "--json").object["streams"])


def test_whoever_has_mistyped_a_namespace_is_told_which_there_are(inside: Inside, remember: Remember) -> None:
    remember(lambda memory: memory.set("key", 1))
    done = inside("get", "key", "--namespace", "nobody-meant-this")
    assert "there is no namespace 'nobody-meant-this' at" in done.error
    assert "the server has '" in done.error
