"""``call``: one reasoner, once, from outside any agent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import click

from agentfield.agent.agent import CALL_TIMEOUT
from agentfield.agent.reasoner import check_name
from agentfield.cli.connecting import CLIENT_NAME, place, server_url
from agentfield.cli.invocation import Invocation, command
from agentfield.cli.kinds import value_of
from agentfield.cli.waiting import wait
from agentfield.errors import InvalidInputError
from agentfield.execution import Execution, root
from agentfield.fabric.calling.calls import Calls
from agentfield.fabric.calling.micro import find
from agentfield.fabric.wire.connection import Connection
from agentfield.naming import shown
from agentfield.scope import Scope
from agentfield.value import decode_value, encode_value

_DISCOVERY: Final = 0.6
"""Seconds within which an agent that is alive says what its reasoners take."""


@command("call")
@click.argument("target", metavar="AGENT.REASONER")
@click.argument("arguments", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--json-args", metavar="OBJECT", help="Arguments as one JSON object, beside those given as KEY=VALUE.")
@click.option("--workflow", metavar="ID", help="Run the call in this workflow.  [default: a new one]")
@click.option("--session", metavar="ID", help="Run the call in this session.")
def call_command(
    invocation: Invocation,
    target: str,
    arguments: Sequence[str],
    json_args: str | None,
    workflow: str | None,
    session: str | None,
) -> None:
    """Call a reasoner of an agent and print its result.

    A VALUE is taken as JSON if it is valid JSON, else as a string; id=42 is a string where the reasoner says that it
    wants one. The result is printed as `get` prints a value; with --json, beside the execution and the workflow it ran
    in. Ctrl-C stops the call.
    """
    agent, reasoner = _parse(target)
    given = _pairs(arguments)
    whole = _object(json_args)
    twice = sorted(given.keys() & whole.keys())
    if twice:
        raise InvalidInputError(f"argument {shown(twice[0])} is given twice")
    execution = root(
        agent,
        None,
        workflow_id=None if workflow is None else Scope.of("workflow", workflow).id,
        session_id=None if session is None else Scope.of("session", session).id,
    )
    answer = wait(_call(invocation, _Call(agent, reasoner, given, whole), execution))
    result = decode_value(answer) if answer else None
    if invocation.json:
        invocation.output.object(
            {
                "agent": agent,
                "reasoner": reasoner,
                "result": result,
                "execution_id": execution.execution_id,
                "workflow_id": execution.workflow_id,
                "session_id": execution.session_id,
            }
        )
    else:
        invocation.output.value(result)


class _Call(NamedTuple):
    """What is called: the arguments as they were typed, and those that came as an object."""

    agent: str
    reasoner: str
    given: Mapping[str, str]
    whole: Mapping[str, Any]


async def _call(invocation: Invocation, call: _Call, execution: Execution) -> bytes:
    url, namespace = place(invocation)
    values = {key: value_of(text) for key, text in call.given.items()}
    encode_value({**call.whole, **values})  # what cannot be sent is refused before there is a connection
    connection = await Connection.open(
        await server_url(invocation, url), namespace=namespace, name=CLIENT_NAME, timeout=invocation.connect_patience
    )
    calls = Calls(connection)
    timeout = CALL_TIMEOUT if invocation.timeout is None else invocation.timeout
    try:
        if not all(isinstance(value, str) for value in values.values()):
            texts = await _texts(connection, call.agent, call.reasoner)
            values |= {key: call.given[key] for key in texts if isinstance(values.get(key), int | float)}
        payload = encode_value({**call.whole, **values})
        return await calls.call(call.agent, call.reasoner, payload, execution=execution, timeout=timeout)
    finally:
        await calls.aclose()
        await connection.aclose()


async def _texts(connection: Connection, agent: str, reasoner: str) -> set[str]:
    """The parameters that take nothing but a string, by the schema that the agent announces."""
    info = await find(connection, agent, timeout=_DISCOVERY)
    schemas = [each.metadata.get("schema") for each in info.endpoints if each.name == reasoner] if info else []
    properties = json.loads(schemas[0] or "{}").get("properties", {}) if schemas else {}
    return {name for name, schema in properties.items() if _only_text(schema)}


def _only_text(schema: Mapping[str, Any]) -> bool:
    kinds = [each.get("type") for each in schema.get("anyOf", [schema])]
    return "string" in kinds and set(kinds) <= {"string", "null"}


def _parse(target: str) -> tuple[str, str]:
    agent, dot, reasoner = target.partition(".")
    if not dot:
        raise InvalidInputError(f"{shown(target)} is not of the form AGENT.REASONER")
    return check_name(agent, what="agent"), check_name(reasoner, what="reasoner")


def _pairs(arguments: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not key or not equals:
            raise InvalidInputError(f"argument {shown(argument)} is not of the form KEY=VALUE")
        if key in pairs:
            raise InvalidInputError(f"argument {shown(key)} is given twice")
        pairs[key] = value
    return pairs


def _object(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"--json-args is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidInputError(f"--json-args is {shown(text)}, not a JSON object such as '{{\"id\": 42}}'")
    return found
