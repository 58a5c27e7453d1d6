"""What asyncio and nats-py can only complain about in the log: forgotten tasks, exceptions nobody looked at.

Warnings are errors by configuration; these are not warnings, so they are caught here.
"""

import gc
import logging
import os
from collections.abc import Iterator

import pytest

_COMPLAINERS = ("asyncio", "nats.aio.client")


class _Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"about {os.environ.get('PYTEST_CURRENT_TEST', '?')}: {record.name}: {self.format(record)}")


@pytest.fixture(scope="module", autouse=True)
def no_loose_ends() -> Iterator[None]:
    """Fail if anything was left without an owner. Import it into a conftest.py to apply it to the tests beside that."""
    complaints = _Complaints()
    loggers = [logging.getLogger(name) for name in _COMPLAINERS]
    for logger in loggers:
        logger.addHandler(complaints)
    yield
    gc.collect()  # an unretrieved exception is noticed when its future goes
    for logger in loggers:
        logger.removeHandler(complaints)
    if complaints.texts:
        pytest.fail("loose ends:\n" + "\n".join(complaints.texts))
