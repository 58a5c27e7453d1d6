"""What the environment says, read in one place.

Owns: the names of the environment variables, their order of precedence and their defaults. Nothing else in agentfield
looks at the environment. Must not know: what the values are used for; a namespace or a URL is checked by the code that
uses it. Invariant: a variable that is empty or blank is the same as one that is not set.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from agentfield.errors import InvalidInputError

DEFAULT_NAMESPACE = "agentfield"
DEFAULT_MAX_DEPTH = 100

VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "AGENTFIELD_NATS_URL": "the NATS server to use; without it and NATS_URL, the local embedded server",
        "NATS_URL": "the same, for every NATS tool; AGENTFIELD_NATS_URL comes first",
        "AGENTFIELD_NAMESPACE": f"prefixes every stream, bucket and subject; default {DEFAULT_NAMESPACE}",
        "AGENTFIELD_HOME": "where the embedded server's data and views are; default: the user's data directory",
        "AGENTFIELD_ARCHIVE": "the log's archive, a directory; default: the one in AGENTFIELD_HOME, if there is one",
        "AGENTFIELD_WORKFLOW_GRACE": "seconds an unused workflow's keys are kept; default 86400; off: for ever",
        "AGENTFIELD_SESSION_IDLE": "seconds an unused session's keys are kept; default 2592000; off: for ever",
        "AGENTFIELD_MAX_DEPTH": f"handlers that may start one another in a row; default {DEFAULT_MAX_DEPTH}",
        "AGENTFIELD_AI_MODEL": "the model of agents that name none: openai/gpt-4o-mini, say, or module:callable",
    }
)
"""Every variable that is read, and what it means."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The environment's answers, as they were when ``load`` was called.

    ``nats_url`` is None when no server was named, which means the embedded one. ``home`` is where that one lives; it is
    not absolute only if this user has no home directory and none was named, and the embedded server then refuses it.
    """

    nats_url: str | None
    namespace: str
    home: Path
    ai_model: str | None
    archive: Path | None = None
    """Where the log is archived; None for the default place, which need not be there."""
    workflow_grace: float | None = 86_400.0
    """Seconds; None keeps the keys of workflows for ever."""
    session_idle: float | None = 2_592_000.0
    """Seconds; None keeps the keys of sessions for ever."""
    max_depth: int = DEFAULT_MAX_DEPTH
    """Handlers that may start one another in a row before the chain counts as a loop."""

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Reads the variables of the process, or of ``environ`` instead.

        The default of ``home`` is the operating system's convention for user data (``$XDG_DATA_HOME/agentfield`` or
        ``~/.local/share/agentfield`` on Linux), which is taken from the process even when ``environ`` is given.

        Raises:
            InvalidInputError: ``AGENTFIELD_HOME`` starts with the home directory of a user that does not exist, or a
                number of seconds, or a count, is none.
        """
        values = os.environ if environ is None else environ

        def text(name: str) -> str | None:
            return values.get(name, "").strip() or None

        home = text("AGENTFIELD_HOME")
        return cls(
            nats_url=text("AGENTFIELD_NATS_URL") or text("NATS_URL"),
            namespace=text("AGENTFIELD_NAMESPACE") or DEFAULT_NAMESPACE,
            home=_user_data() if home is None else _named(home),
            ai_model=text("AGENTFIELD_AI_MODEL"),
            archive=None if (archive := text("AGENTFIELD_ARCHIVE")) is None else _named(archive, "AGENTFIELD_ARCHIVE"),
            workflow_grace=_seconds("AGENTFIELD_WORKFLOW_GRACE", text("AGENTFIELD_WORKFLOW_GRACE"), 86_400.0),
            session_idle=_seconds("AGENTFIELD_SESSION_IDLE", text("AGENTFIELD_SESSION_IDLE"), 2_592_000.0),
            max_depth=_count("AGENTFIELD_MAX_DEPTH", text("AGENTFIELD_MAX_DEPTH"), DEFAULT_MAX_DEPTH),
        )

    def views(self, namespace: str) -> Path:
        """Where the views of a namespace are kept, unless somebody names another place."""
        return self.home / "projections" / namespace

    def archive_of(self, namespace: str) -> Path:
        """Where the log of a namespace is archived, unless somebody names another place."""
        return self.archive or self.views(namespace) / "archive"

    @staticmethod
    def override(*, nats_url: str | None = None, namespace: str | None = None) -> None:
        """Puts these in place of what the environment says, for this process and those it starts; None changes nothing.

        For a program whose own arguments win over the environment, before it makes any agent.
        """
        for name, value in (("AGENTFIELD_NATS_URL", nats_url), ("AGENTFIELD_NAMESPACE", namespace)):
            if value is not None:
                os.environ[name] = value


def _seconds(name: str, text: str | None, default: float | None) -> float | None:
    if text is None:
        return default
    if text.lower() == "off":
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < math.inf:
        raise InvalidInputError(f"{name} is {text!r}: give a number of seconds, at least 1, or off")
    return seconds


def _count(name: str, text: str | None, default: int) -> int:
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:10]) <= 1_000_000:
        raise InvalidInputError(f"{name} is {text!r}: give a whole number from 1 to 1000000")
    return int(text)


def _named(home: str, name: str = "AGENTFIELD_HOME") -> Path:
    try:
        return Path(home).expanduser().absolute()
    except RuntimeError:
        raise InvalidInputError(
            f"{name} is {home!r}, but there is no such user here: write the directory out"
        ) from None


def _user_data() -> Path:
    from platformdirs import user_data_path  # only who needs the convention pays for the import

    return user_data_path("agentfield", appauthor=False)
