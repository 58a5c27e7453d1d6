"""Which versions of the server are new enough."""

import pytest

from agentfield.server_version import MINIMUM_SERVER, find_version, is_supported


@pytest.mark.parametrize("version", [MINIMUM_SERVER, "2.15.2", "2.16.0", "2.15.10", "3.0.0", "2.16.0-RC.1"])
def test_from_the_minimum_on_they_are(version: str) -> None:
    assert is_supported(version)


@pytest.mark.parametrize(
    "version", ["2.15.0", "2.15.1-RC.3", "2.9.10", "2.14.99", "1.99.99", "0.0.0", "", "dev", "2.15"]
)
def test_before_it_they_are_not(version: str) -> None:
    assert not is_supported(version)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("nats-server: v2.15.1\n", "2.15.1"),
        ("nats-server: v2.9.10", "2.9.10"),
        ("nats-server: v2.16.0-RC.1\n", "2.16.0-RC.1"),
        ("2.15.1", "2.15.1"),
        ("nats-server: dev", None),
        ("", None),
    ],
)
def test_a_version_is_found_in_what_a_server_prints(text: str, version: str | None) -> None:
    assert find_version(text) == version
