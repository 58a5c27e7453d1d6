"""Executions: who is running, in which workflow and session, and because of what; and the headers that carry it along.

``current`` is the only place where the current execution lives, so two overlapping executions never see each other's
scopes. An execution never changes; what it calls or causes is a new one. Knows nothing of NATS beyond header names.

Invariant: ``from_headers(to_headers(execution)) == execution``, but for ``function``: which one runs, the callee knows.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from agentfield.effects import Effects
from agentfield.errors import InvalidInputError
from agentfield.naming import shown
from agentfield.scope import check_scope_id

CONTEXT_HEADER: Final = "Agentfield-Context"
TRACE_HEADER: Final = "traceparent"  # W3C Trace Context, level 1; the name is lower case there

_VERSION = 1
# Version ff is invalid, and only versions after 00 may have more at their end.
_TRACEPARENT = re.compile(
    r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?"
)
_SAMPLED = "01"
_TEXTS = ("execution_id", "workflow_id", "session_id", "agent", "actor_id", "parent_id", "cause")
_COUNTS = ("nesting", "depth", "seen")
LONGEST_PATH: Final = 16
"""Callers that an execution remembers, the nearest ones: every event it writes names them."""


class Seen:
    """How far an execution has seen the log: the highest revision it read, wrote, or was told of. It only grows."""

    __slots__ = ("revision",)

    def __init__(self, revision: int = 0) -> None:
        self.revision = revision

    def saw(self, revision: int) -> None:
        """It has now seen this revision."""
        if revision > self.revision:
            self.revision = revision


@dataclass(frozen=True, slots=True)
class Execution:
    """One run of a reasoner or handler, or of any code bound to a workflow or session."""

    execution_id: str
    workflow_id: str | None
    session_id: str | None
    agent: str | None
    actor_id: str | None
    parent_id: str | None = None
    """The execution that called this one."""
    cause: str | None = None
    """The id of the event that led to this execution."""
    cause_revision: int | None = None
    """That event's revision."""
    trace: str | None = None
    """W3C ``traceparent``: one trace id for everything a root execution causes, one span id an execution."""
    function: str | None = None
    """The reasoner or handler that runs: its name; None for code that is neither."""
    path: tuple[str, ...] = ()
    """Who called whom until this one was called, from the root execution or the handler on: see :func:`caller`."""
    nesting: int = 0
    """How many calls lie between the root execution, or the handler, and this one: more than ``path`` may name."""
    depth: int = 0
    """How many handlers, each started by what the one before had written, lie between the root execution and this."""
    seen: Seen = field(default_factory=Seen, compare=False, repr=False)
    """What its reads must not fall behind. It grows while the execution runs, and says nothing of who runs."""
    effects: Effects | None = field(default=None, compare=False, repr=False)
    """In a handler, and only in the handler itself: what makes its writes recognisable when the event comes again."""


current: Final[ContextVar[Execution | None]] = ContextVar("agentfield.execution", default=None)
"""The execution that the running code belongs to."""


def new_id(*, clock: Callable[[], int] = time.time_ns, random: Callable[[int], bytes] = os.urandom) -> str:
    """A new unique id: 32 hexadecimal digits in UUIDv7 layout, ordered by time to a quarter of a microsecond.

    ``clock`` gives nanoseconds since the epoch. The 12 bits after the version hold the fraction of the millisecond
    (RFC 9562, section 6.2, method 3); 62 bits are random.
    """
    milliseconds, rest = divmod(clock(), 1_000_000)
    fraction = (rest << 12) // 1_000_000
    noise = int.from_bytes(random(8), "big") & ((1 << 62) - 1)
    return f"{((milliseconds & ((1 << 48) - 1)) << 80) | (7 << 76) | (fraction << 64) | (2 << 62) | noise:032x}"


def root(
    agent: str | None,
    actor_id: str | None,
    *,
    workflow_id: str | None = None,
    session_id: str | None = None,
    cause: str | None = None,
    trace: str | None = None,
) -> Execution:
    """An execution that nobody called. Unless it joins a workflow, it begins one, named after itself.

    A valid ``trace`` is continued with a new span; otherwise a trace begins.
    """
    id = new_id()
    return Execution(
        execution_id=id,
        workflow_id=id if workflow_id is None else workflow_id,
        session_id=session_id,
        agent=agent,
        actor_id=actor_id,
        cause=cause,
        trace=next_span(trace),
    )


def child(execution: Execution, agent: str | None, actor_id: str | None) -> Execution:
    """The execution of a call that ``execution`` makes: same workflow, session, cause and trace, one call further.

    If the caller is in no workflow, the call begins one, named after itself.
    """
    id = new_id()
    return Execution(
        execution_id=id,
        workflow_id=id if execution.workflow_id is None else execution.workflow_id,
        session_id=execution.session_id,
        agent=agent,
        actor_id=actor_id,
        parent_id=execution.execution_id,
        cause=execution.cause,
        cause_revision=execution.cause_revision,
        trace=next_span(execution.trace),
        path=(*execution.path, caller(execution))[-LONGEST_PATH:],
        nesting=execution.nesting + 1,
        depth=execution.depth,
        seen=Seen(execution.seen.revision),
    )


def caller(execution: Execution) -> str:
    """An execution as the path of those that it calls names it: ``agent.function/execution id``, as far as known."""
    return f"{'.'.join(filter(None, (execution.agent, execution.function)))}/{execution.execution_id}"


def next_span(trace: str | None) -> str:
    """The ``traceparent`` of an execution that goes on with a trace, or, without a valid one, begins its own."""
    span = os.urandom(8).hex()
    if trace is not None and (found := _TRACEPARENT.fullmatch(trace)) is not None:
        return f"00-{found[1]}-{span}-{found[2]}"
    return f"00-{os.urandom(16).hex()}-{span}-{_SAMPLED}"


def to_headers(execution: Execution) -> dict[str, str]:
    """The headers by which a request tells who makes it: ASCII only, since nats-py mangles anything else."""
    fields: dict[str, Any] = {"v": _VERSION}
    for name in _TEXTS:
        if (value := getattr(execution, name)) is not None:
            fields[name] = value
    if execution.cause_revision is not None:
        fields["cause_revision"] = execution.cause_revision
    if execution.path:
        fields["path"] = execution.path
    for name, count in zip(_COUNTS, (execution.nesting, execution.depth, execution.seen.revision), strict=True):
        if count:
            fields[name] = count
    headers = {CONTEXT_HEADER: ascii_json(fields)}
    if execution.trace is not None:
        headers[TRACE_HEADER] = execution.trace
    return headers


def from_headers(headers: Mapping[str, str]) -> Execution | None:
    """The execution that made a request, or None if the request does not say (any NATS tool may call).

    A malformed ``traceparent`` counts as absent, as W3C Trace Context demands; fields not known here are ignored.
    Raises InvalidInputError if the context itself is malformed: to guess a scope would mix up two workflows.
    """
    packed = headers.get(CONTEXT_HEADER)
    if packed is None:
        return None
    try:
        fields = orjson.loads(packed)
    except orjson.JSONDecodeError as error:
        raise _malformed(packed, f"is not JSON ({error})") from error
    if not isinstance(fields, dict) or fields.get("v") != _VERSION:
        raise _malformed(packed, f"is not a JSON object with v={_VERSION}")
    texts: dict[str, Any] = {name: fields.get(name) for name in _TEXTS}
    for name, value in texts.items():
        if value is not None and not isinstance(value, str):
            raise _malformed(packed, f"holds no text in {name}")
    if not texts["execution_id"]:
        raise _malformed(packed, "has no execution_id")
    for name in (*_COUNTS, "cause_revision"):
        number = fields.get(name, 0)
        if type(number) is not int or number < 0:
            raise _malformed(packed, f"holds no count in {name}")
    path = fields.get("path", [])
    if not isinstance(path, list) or not all(isinstance(each, str) for each in path):
        raise _malformed(packed, "holds no list of texts in path")
    for name in ("workflow_id", "session_id"):
        if texts[name] is not None:
            check_scope_id(texts[name])
    trace = headers.get(TRACE_HEADER)
    known = trace if trace and _TRACEPARENT.fullmatch(trace) else None
    return Execution(
        **texts,
        cause_revision=fields.get("cause_revision"),
        trace=known,
        path=tuple(path[-LONGEST_PATH:]),
        nesting=fields.get("nesting", 0),
        depth=fields.get("depth", 0),
        seen=Seen(fields.get("seen", 0)),
    )


def ascii_json(fields: Mapping[str, Any]) -> str:
    """Fields as compact JSON in ASCII, fit for a header. Raises InvalidInputError if a text is not valid Unicode."""
    try:
        packed = orjson.dumps(fields)
    except TypeError as error:
        raise InvalidInputError(f"cannot be put in a header: {error}") from error
    return packed.decode() if packed.isascii() else _ENCODER.encode(fields)


_ENCODER = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))


def _malformed(packed: str, fault: str) -> InvalidInputError:
    return InvalidInputError(
        f"header {CONTEXT_HEADER} {shown(packed)} {fault}: send what to_headers gives, or leave it out"
    )
