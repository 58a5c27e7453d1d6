"""Schemas: key patterns bound to Pydantic models, and what that means for a value on its way in and on its way out.

Owns: which schema a key has, what is stored for it, and lifting what an older version stored. Pure, but for the
functions that users give. Invariants: what is stored under a schema reads back as its model, or it is not stored; data
of another schema, or of a version that is not known, is never taken for something that it is not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson
from pydantic import BaseModel, ValidationError

from agentfield.errors import InvalidInputError
from agentfield.key import check_key
from agentfield.naming import check_name, shown
from agentfield.pattern import Pattern
from agentfield.value import encode_value, failure, faults

Upcast = Callable[[Any], Any]
"""Takes the data of one version, as JSON values, and returns that of the next."""

UNSTAMPED_VERSION = 1
"""The version of data that names none: it was written before its key had a schema, or by somebody who binds none."""
_MAX_NAME_BYTES = 256
_PLAIN = "write it as a plain function, since a read cannot wait for it"


class Stamp(NamedTuple):
    """What an event says of the schema its value was written under."""

    name: str
    version: int


class Encoded(NamedTuple):
    """A value, ready to be stored."""

    payload: bytes
    stamp: Stamp | None
    value: Any
    """The value as whoever reads it through the same schemas will get it."""


@dataclass(frozen=True, slots=True)
class Schema:
    """One binding. Make it with :func:`schema_of`, which validates."""

    pattern: Pattern
    model: type[BaseModel]
    stamp: Stamp
    upcast: Mapping[int, Upcast]

    def encode(self, key: str, value: Any) -> Encoded:
        """The value as the model's JSON. Raises InvalidInputError, with every fault, if it is no valid model."""
        try:
            payload = encode_value(value)
            if type(value) is not self.model:
                payload = encode_value(self._validated(payload))
            # An instance may have been changed since it was validated, and not every model reads what it writes.
            return Encoded(payload, self.stamp, self._validated(payload))
        except InvalidInputError as error:
            raise _of_key(key, error) from error
        except ValidationError as error:
            raise InvalidInputError(
                f"the value for {shown(key)} is not a valid {self.stamp.name}, as {self.pattern.text!r} demands: "
                f"{faults(error)}; nothing was written"
            ) from error
        except Exception as error:  # a validator is the user's, who may raise anything
            raise InvalidInputError(
                f"validating the value for {shown(key)} as {self.stamp.name} failed with {failure(error)}; nothing was "
                "written: a validator says that a value is wrong with ValueError"
            ) from error

    def decode(self, content: bytes | bytearray, stamp: Stamp | None) -> BaseModel:
        """The model that stored JSON stands for, lifted to the present version if need be.

        Raises InvalidInputError if it is of another schema, of a version newer than this one, cannot be lifted, or is
        not valid.
        """
        name, version = (self.stamp.name, UNSTAMPED_VERSION) if stamp is None else stamp
        if name != self.stamp.name:
            raise InvalidInputError(
                f"the value is a {shown(name)}, but {self.pattern.text!r} is bound to {self.stamp.name} here: if they "
                f"are the same, say so with schema(…, name={name!r})"
            )
        if version > self.stamp.version:
            raise InvalidInputError(
                f"the value is a {name} of version {version}, but this program knows {name} up to version "
                f"{self.stamp.version}: upgrade it"
            )
        if version < self.stamp.version:
            content = self._lifted(content, version)
        try:
            return self._validated(content)
        except ValidationError as error:
            raise InvalidInputError(
                f"the value, stored as {_origin(stamp)}, is not a valid {name} of version {self.stamp.version}: "
                f"{faults(error)}; get(…, as_type=dict) shows it as it is"
            ) from error
        except Exception as error:  # a validator is the user's, who may raise anything
            raise InvalidInputError(
                f"validating the value, stored as {_origin(stamp)}, as {name} failed with {failure(error)}; "
                "get(…, as_type=dict) shows it as it is"
            ) from error

    def _validated(self, content: bytes | bytearray) -> BaseModel:
        return self.model.model_validate_json(content, by_alias=True, by_name=True)

    def _lifted(self, content: bytes | bytearray, version: int) -> bytes:
        data = orjson.loads(content)
        for step in range(version, self.stamp.version):
            function = self.upcast.get(step)
            if function is None:
                raise InvalidInputError(
                    f"the value is a {self.stamp.name} of version {version}, and schema(…, upcast=…) has no function "
                    f"from version {step} to {step + 1}: add it"
                )
            try:
                data = function(data)
            except Exception as error:  # the function is the user's: whatever it raises is part of the message
                raise InvalidInputError(
                    f"lifting {self.stamp.name} from version {step} to {step + 1} failed with {failure(error)}"
                ) from error
            if inspect.iscoroutine(data):
                data.close()
                raise InvalidInputError(f"{_lifting(step)} returned a coroutine: {_PLAIN}")
        return encode_value(data)


class Schemas:
    """The schemas of a memory, in the order in which they were bound."""

    def __init__(self) -> None:
        self._bound: list[Schema] = []

    def __bool__(self) -> bool:
        return bool(self._bound)

    def bind(self, schema: Schema) -> None:
        """Take in one more. Raises InvalidInputError if its very pattern is bound already."""
        for other in self._bound:
            if other.pattern == schema.pattern:
                raise InvalidInputError(
                    f"the pattern {schema.pattern.text!r} is bound to {other.stamp.name} already: bind it once"
                )
        self._bound.append(schema)

    def of(self, key: str) -> Schema | None:
        """The schema of a key: the one bound to just that key, else the one whose pattern matches.

        Raises InvalidInputError if several patterns match: which of them is meant, nobody can tell.
        """
        matching = [schema for schema in self._bound if schema.pattern.matches(key)]
        if len(matching) > 1:
            literal = [schema for schema in matching if schema.pattern.is_literal]
            if not literal:
                bindings = " and ".join(f"{schema.pattern.text!r} ({schema.stamp.name})" for schema in matching)
                raise InvalidInputError(
                    f"the key {shown(key)} has several schemas, {bindings}: make the patterns apart from each other, "
                    f"or bind this very key"
                )
            return literal[0]
        return matching[0] if matching else None

    def encode(self, key: str, value: Any) -> Encoded:
        """The value of a key, ready to be stored. Raises InvalidInputError if it cannot be, naming key and place."""
        schema = None
        if self._bound:
            check_key(key)
            schema = self.of(key)
        if schema is not None:
            return schema.encode(key, value)
        try:
            return Encoded(encode_value(value), None, value)
        except InvalidInputError as error:
            raise _of_key(key, error) from error


def schema_of(
    pattern: str, model: type[BaseModel], *, name: str | None, version: int, upcast: Mapping[int, Upcast] | None
) -> Schema:
    """Validate a binding. Raises :class:`InvalidInputError` with the fact and the remedy."""
    if not _is_model(model):
        raise InvalidInputError(f"a schema binds a pattern to a Pydantic model, and {shown(model)} is none")
    if type(version) is not int or version < 1:
        raise InvalidInputError(f"version={version!r}: a whole number, 1 for the first version of a model")
    chosen = model.__name__ if name is None else name
    check_name(chosen, what="schema name", max_bytes=_MAX_NAME_BYTES)
    steps = dict(upcast or {})
    if any(type(step) is not int or not callable(function) for step, function in steps.items()):
        raise InvalidInputError("upcast must be a dict from version n to the function that makes version n + 1 of it")
    for step, function in steps.items():
        if not 1 <= step < version:
            raise InvalidInputError(
                f"upcast has a function from version {step}, but what is lifted is older than version={version}, and 1 "
                "is the first: give the model's present version, or leave the function out"
            )
        if _is_async(function):
            raise InvalidInputError(f"{_lifting(step)} is async: {_PLAIN}")
    wanted = range(min(steps, default=version), version)
    if missing := [step for step in wanted if step not in steps]:
        raise InvalidInputError(
            f"upcast has functions from versions {sorted(steps)}, but none from version {missing[0]}: to lift to "
            f"version {version} it takes one from each version from {wanted[0]} to {version - 1}"
        )
    return Schema(Pattern.parse(pattern), model, Stamp(chosen, version), MappingProxyType(steps))


def _is_async(function: Upcast) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _lifting(step: int) -> str:
    return f"upcast's function from version {step}"


def _of_key(key: str, error: InvalidInputError) -> InvalidInputError:
    return InvalidInputError(f"key {shown(key)}: {error}")


def _is_model(given: object) -> bool:
    return isinstance(given, type) and issubclass(given, BaseModel)


def _origin(stamp: Stamp | None) -> str:
    return "data without a schema" if stamp is None else f"version {stamp.version}"
