"""What the library logs, as people or programs read it while a command runs for long."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import orjson

from agentfield.cli.output import moment, visible
from agentfield.cli.traces import describe, users_frames

_ROOT = "agentfield"
_TOO_MUCH = ("agentfield.topology",)
"""Loggers whose INFO is nothing to those who run agents."""


def warn_on_stderr() -> None:
    """Shows warnings of the library, such as a lost connection."""
    _attach(logging.StreamHandler(sys.stderr), _Lines(), logging.WARNING)


def show_life(*, as_json: bool) -> None:
    """Shows notes and the events of agents' lives: as lines on stderr, or as JSON objects on stdout.

    If the user's own code has configured the root logger, that configuration is left to do it.
    """
    for name in _TOO_MUCH:
        logging.getLogger(name).setLevel(logging.WARNING)
    if as_json:
        _attach(logging.StreamHandler(sys.stdout), _Objects(), logging.INFO)
    elif logging.getLogger().handlers:
        logging.getLogger(_ROOT).setLevel(logging.INFO)
    else:
        _attach(logging.StreamHandler(sys.stderr), _Lines(), logging.INFO)


def _attach(handler: logging.Handler, formatter: logging.Formatter, level: int) -> None:
    handler.setFormatter(formatter)
    logger = logging.getLogger(_ROOT)
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


class _Lines(logging.Formatter):
    """``18:20:00 customer-triage: the text #tag``; an exception adds the steps through the user's own files."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")  # noqa: DTZ006 - people's own time
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        tags = "".join(f" #{tag}" for tag in record.__dict__.get("tags", ()))
        lines = [f"{time} {level}{visible(record.getMessage())}{visible(tags)}"]
        if record.exc_info and record.exc_info[1] is not None:
            lines += users_frames(record.exc_info[1])
        return "\n".join(lines)


class _Objects(logging.Formatter):
    """The same facts as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        agent = record.__dict__.get("agent")
        fields = {
            "timestamp": moment(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().removeprefix(f"{agent}: "),
            "agent": agent,
            "tags": record.__dict__.get("tags", ()),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            fields |= {"error": describe(error), "frames": [line.strip() for line in users_frames(error)]}
        return orjson.dumps(fields, default=str).decode()
