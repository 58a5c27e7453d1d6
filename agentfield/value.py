"""Values: what users store, as the plain JSON that is a message's payload, and back.

Pure. Invariant: a value is either stored as JSON that reads back as the same data, or refused with InvalidInputError
naming the place and the remedy. Nothing is altered silently: orjson alone would write NaN as null.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from datetime import date, datetime, time
from enum import Enum
from functools import lru_cache
from typing import Any, TypeVar
from uuid import UUID

import orjson
from pydantic import BaseModel, Secret, SecretBytes, SecretStr, TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

from agentfield.errors import InvalidInputError, text_of
from agentfield.naming import shown

T = TypeVar("T")

_OPTIONS = orjson.OPT_UTC_Z
_DEEPEST = 254  # orjson's own limit
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1  # orjson's integers; a reader would get anything beyond as a rounded float
_FAULTS = 3  # shown of a value that is not of a type
_ACCEPTED = "JSON values, Pydantic models, dataclasses, enums, datetimes and UUIDs can be stored"


def encode_value(value: Any) -> bytes:
    """The value as compact JSON, UTF-8.

    Raises InvalidInputError, naming the place in the value, for what JSON cannot hold: other types, NaN and infinities,
    keys that are not strings, integers beyond 64 bits, text that is not valid Unicode.
    """
    try:
        payload = orjson.dumps(value, _plain, _OPTIONS)
    except TypeError as error:
        raise InvalidInputError(f"value cannot be stored: {_first(value) or error}") from error
    # None, NaN and infinities are all written as null, secrets as asterisks: only then is it worth looking what it was.
    suspect = b"null" in payload or b"***" in payload
    if suspect and not _obviously_plain(value) and (problem := _first(value)) is not None:
        raise InvalidInputError(f"value cannot be stored: {problem}")
    return payload


def decode_value(payload: bytes) -> Any:
    """The value that a payload holds. Raises InvalidInputError if it is not JSON."""
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(f"payload {shown(payload)} is not JSON: {error}") from error


def validate_as(value: Any, as_type: type[T]) -> T:
    """The decoded value as a type: a Pydantic model, a dataclass or anything else Pydantic validates.

    Validates as JSON, so that even strict models take their datetimes from text; fields go by name or by alias. Raises
    InvalidInputError, with the ValidationError as its cause, if the value does not fit or the type is no type.
    """
    try:
        adapter: TypeAdapter[T] = _adapter_of(as_type)
        return adapter.validate_json(orjson.dumps(value), by_alias=True, by_name=True)
    except ValidationError as error:
        raise InvalidInputError(
            f"stored value {shown(value)} does not fit as_type {_name(as_type)}: {faults(error)}; "
            "read it without as_type to see it"
        ) from error
    except (PydanticUserError, PydanticUndefinedAnnotation) as error:
        raise InvalidInputError(
            f"as_type {shown(as_type)} is not a type that values can be validated as: {error.message.splitlines()[0]}"
        ) from error
    except Exception as error:  # a validator is the user's, who may raise anything
        raise InvalidInputError(
            f"validating the stored value {shown(value)} as {_name(as_type)} failed with {failure(error)}"
        ) from error


def failure(error: Exception) -> str:
    """What a user's function raised, as a part of a message."""
    return f"{type(error).__name__}: {text_of(error)}"


def faults(error: ValidationError) -> str:
    """What is wrong with a value, by place: the first three faults, and how many there are besides."""
    found = [f"{_path(fault['loc'])}: {_clause(fault['msg'])}" for fault in error.errors(include_url=False)]
    return "; ".join(found[:_FAULTS]) + (f"; and {len(found) - _FAULTS} more" if len(found) > _FAULTS else "")


def _clause(message: str) -> str:
    """A sentence of Pydantic's as a part of ours."""
    return message[:1].lower() + message[1:]


def _plain(value: Any) -> Any:
    """What orjson stores in place of an object it does not know."""
    if isinstance(value, BaseModel):
        # What an instance holds against its model, a schema's validation says better than warnings would.
        return value.model_dump(mode="json", warnings=False)
    raise TypeError(f"{type(value).__name__} is not JSON")


@lru_cache(maxsize=256)
def _cached_adapter(as_type: Any) -> TypeAdapter[Any]:
    return TypeAdapter(as_type)


def _adapter_of(as_type: Any) -> TypeAdapter[Any]:
    try:
        hash(as_type)
    except TypeError:  # such as Annotated with a list in it
        return TypeAdapter(as_type)
    return _cached_adapter(as_type)


def _obviously_plain(value: Any) -> bool:
    """Whether the value is nothing but JSON's own types and finite numbers: a quick look at large values with None."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        kind = type(item)
        if kind is dict:
            waiting.extend(item.values())
        elif kind is list or kind is tuple:
            waiting.extend(item)
        elif kind is float:
            if not math.isfinite(item):
                return False
        elif item is not None and kind is not str and kind is not int and kind is not bool:
            return False
    return True


def _first(value: Any) -> str | None:
    return next(_problems(value, "value", 0), None)


def _problems(value: Any, path: str, depth: int) -> Iterator[str]:
    """What in the value JSON cannot hold: each as a clause with the place, the fact and the remedy."""
    if depth > _DEEPEST or (depth == _DEEPEST and isinstance(value, (dict, list, tuple))):
        yield f"{path[:60]}… is nested more than {_DEEPEST} levels deep, or contains itself: flatten it"
    elif isinstance(value, Enum):
        yield from _problems(value.value, f"{path}.value", depth + 1)
    elif isinstance(value, str):
        yield from _text_problems(value, path)
    elif isinstance(value, int):
        if not _SMALLEST <= value <= _LARGEST:
            yield f"{path} is an integer beyond 64 bits: store it as a string"
    elif type(value) is float:
        if not math.isfinite(value):
            yield f"{path} is {value}, which JSON has no number for: store None or a string in its place"
    elif isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                yield f"{path} has the key {shown(key)} of type {type(key).__name__}: make its keys plain strings"
            else:
                yield from _text_problems(key, f"a key of {path}")
                yield from _problems(item, f"{path}[{shown(key)}]", depth + 1)
    elif isinstance(value, list) or type(value) is tuple:
        for index, item in enumerate(value):
            yield from _problems(item, f"{path}[{index}]", depth + 1)
    elif isinstance(value, BaseModel):
        yield from _model_problems(value, path, depth)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            if not field.name.startswith("_"):  # orjson leaves these out
                yield from _problems(getattr(value, field.name), f"{path}.{field.name}", depth + 1)
    elif value is not None and not isinstance(value, (datetime, date, time, UUID)):
        yield f"{path} is of type {type(value).__name__}: {_ACCEPTED}; convert it to one of them first"


def _text_problems(text: str, path: str) -> Iterator[str]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        yield (
            f"{path} holds the lone surrogate U+{ord(text[error.start]):04X} at position {error.start}, which is not "
            f"text: decode the input properly, or replace the character"
        )


def _model_problems(model: BaseModel, path: str, depth: int) -> Iterator[str]:
    try:
        dumped = model.model_dump(mode="json", warnings=False)
        original = model.model_dump(warnings=False)
    except Exception as error:  # noqa: BLE001  # a serialiser is the user's, who may raise anything
        yield f"{path}, a {type(model).__name__}, does not serialise: {text_of(error)}"
        return
    yield from _problems(dumped, path, depth + 1)
    yield from _altered(original, dumped, path)


def _altered(original: Any, dumped: Any, path: str) -> Iterator[str]:
    """What Pydantic itself altered: secrets, and NaN and infinities in fields typed Any, which it turns into None."""
    if isinstance(original, (SecretStr, SecretBytes, Secret)):
        if isinstance(dumped, str) and dumped in str(original) and original.get_secret_value():
            yield (
                f"{path} is a {type(original).__name__}, of which only asterisks would be stored: leave it out, or "
                "give the field a serialiser (@field_serializer) that returns what may be stored"
            )
    elif isinstance(original, float):
        if dumped is None and not math.isfinite(original):
            yield f"{path} is {original}, which JSON has no number for: store None or a string in its place"
    elif isinstance(original, dict) and isinstance(dumped, dict):
        for item, (key, other) in zip(original.values(), dumped.items(), strict=False):
            yield from _altered(item, other, f"{path}[{shown(key)}]")
    elif isinstance(original, (list, tuple)) and isinstance(dumped, list):
        for index, (item, other) in enumerate(zip(original, dumped, strict=False)):
            yield from _altered(item, other, f"{path}[{index}]")


def _path(location: tuple[int | str, ...]) -> str:
    return "value" + "".join(f"[{part!r}]" for part in location)


def _name(as_type: Any) -> str:
    return as_type.__qualname__ if isinstance(as_type, type) else str(as_type)
