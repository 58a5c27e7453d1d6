"""A home of an embedded server for each test, on which nothing is left running."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agentfield.local.home import Home, Record
from tests.support.homes import Asker, end_servers_on
from tests.support.ports import free_ports


@pytest.fixture
def new_home(tmp_path: Path) -> Iterator[Path]:
    """Return the path of a home that does not exist yet."""
    home = tmp_path / "home"
    yield home
    end_servers_on(home)


@pytest.fixture
def home(new_home: Path) -> Path:
    """Return a home whose server was stopped, after it had used ports that are no other home's first choice."""
    port, monitor_port = free_ports(2)
    home = Home(new_home)
    home.create()
    home.write_record(Record("agentfield-earlier", port, monitor_port, "2.15.1", datetime.now(UTC)))
    return new_home


@pytest.fixture
def ask_for_server(new_home: Path) -> Iterator[Callable[..., Asker]]:
    """Return a function that starts a process which will ask for the server of the test's home."""
    askers: list[Asker] = []

    def start(*, before: str = "") -> Asker:
        askers.append(Asker(new_home, before=before))
        return askers[-1]

    yield start
    for asker in askers:
        asker.dispose()
