"""A reasoner: a function that other agents can call, and what its signature says about the arguments.

Owns: the validation of JSON arguments against type hints, the conversion of results to JSON, and running a plain
``def`` in a thread. Must not know: connections, agents. Invariant: the function runs only with arguments that fit.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import re
import threading
import typing
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError

from agentfield.errors import InvalidInputError
from agentfield.fabric.calling.protocol import ArgumentsRefused
from agentfield.naming import shown
from agentfield.value import encode_value

RESERVED = ("timeout", "session_id")
"""Arguments of ``app.call`` itself; a reasoner with parameters of these names could never be given them."""

MAX_NAME = 64
_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_NAME}}}")
_SCHEMA_BYTES = 4_096
"""A larger schema is not announced: discovery answers must stay small however many reasoners an agent has."""
_FAULTS_SHOWN = 5


def check_name(text: object, *, what: str) -> str:
    """The text, if it can name an agent or a reasoner: 1 to 64 of ``A-Z a-z 0-9 _ -``. Else InvalidInputError."""
    if isinstance(text, str) and _NAME.fullmatch(text):
        return text
    raise InvalidInputError(f"{what} name {shown(text)} is not 1 to {MAX_NAME} of A-Z a-z 0-9 _ -: choose another")


class Reasoner:
    """A function under the name by which it is called.

    Raises InvalidInputError, saying why, if it cannot be called with keyword arguments that come as JSON.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        if not callable(function):
            raise InvalidInputError(f"a reasoner must be a function, not {shown(function)}: use name=… for a name")
        given = name if name is not None else getattr(function, "__name__", None)
        self.name = check_name(given, what="reasoner")
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise InvalidInputError(f"reasoner {self.name!r} yields: return one result, for instance a list")
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function)
        self.description = inspect.cleandoc(function.__doc__ or "").partition("\n\n")[0]
        self._signature = inspect.signature(function)
        for parameter in self._signature.parameters.values():
            self._check_parameter(parameter)

    def _check_parameter(self, parameter: inspect.Parameter) -> None:
        if parameter.name in RESERVED:
            raise InvalidInputError(
                f"reasoner {self.name!r} has a parameter {parameter.name!r}, which app.call() takes for itself "
                f"({' and '.join(RESERVED)} are its own): rename the parameter"
            )
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise InvalidInputError(
                f"reasoner {self.name!r} has the positional parameter {parameter.name!r}, but calls are by keyword: "
                "make it an ordinary parameter"
            )

    # -- arguments ----------------------------------------------------------------------------------------------------

    @cached_property
    def _model(self) -> type[BaseModel]:
        """The arguments as a model; made on first use, when every name in the hints exists."""
        try:
            hints = typing.get_type_hints(self.function, include_extras=True)
        except (NameError, TypeError, SyntaxError) as error:
            raise InvalidInputError(
                f"the type hints of reasoner {self.name!r} cannot be resolved ({error}): use types of its module"
            ) from None
        fields: dict[str, Any] = {}
        extra: typing.Literal["allow", "forbid"] = "forbid"
        for index, parameter in enumerate(self._signature.parameters.values()):
            if parameter.kind is parameter.VAR_KEYWORD:
                extra = "allow"
                continue
            # Numbered fields with aliases: a parameter may be called "schema" or "_x", a field of a model may not.
            default = ... if parameter.default is parameter.empty else None
            field: Any = Field(default, alias=parameter.name, json_schema_extra=_without_default)
            fields[f"argument_{index}"] = (hints.get(parameter.name, Any), field)
        config = ConfigDict(extra=extra, arbitrary_types_allowed=True, protected_namespaces=())
        try:
            return create_model(self.name, __config__=config, **fields)
        except PydanticUserError as error:
            raise InvalidInputError(
                f"the type hints of reasoner {self.name!r} cannot be used: {error.message}"
            ) from None

    def prepare(self) -> None:
        """Resolve the type hints now. Raises InvalidInputError if that cannot be done."""
        _ = self._model

    @property
    def schema(self) -> str | None:
        """The JSON schema of the arguments as text, or None where there is none or it is too large to announce."""
        try:
            text = json.dumps(self._model.model_json_schema(), separators=(",", ":"))
        except PydanticUserError:
            return None  # a type that JSON schema has no word for
        return text if len(text.encode()) <= _SCHEMA_BYTES else None

    def arguments(self, payload: bytes) -> dict[str, Any]:
        """The keyword arguments in a JSON object; what is absent and has a default is left to the function.

        Raises :class:`ArgumentsRefused`, naming each fault, if they do not fit.
        """
        try:
            model = self._model.model_validate_json(payload or b"{}")
        except ValidationError as error:
            raise ArgumentsRefused(self._explain(error)) from None
        given = model.model_fields_set
        named = {
            field.alias or name: getattr(model, name)
            for name, field in type(model).model_fields.items()
            if name in given
        }
        return {**named, **(model.model_extra or {})}

    def _explain(self, error: ValidationError) -> str:
        faults = error.errors(include_url=False, include_context=False)
        texts = [self._fault(fault) for fault in faults[:_FAULTS_SHOWN]]
        if len(faults) > _FAULTS_SHOWN:
            texts.append(f"and {len(faults) - _FAULTS_SHOWN} more")
        return f"reasoner {self.name!r} did not run: {'; '.join(texts)}"

    def _fault(self, fault: Mapping[str, Any]) -> str:
        location = fault["loc"]
        if not location:
            return f"its arguments must be a JSON object ({fault['msg']})"
        name = str(location[0]) + "".join(f"[{part!r}]" for part in location[1:])
        parameter = self._signature.parameters.get(str(location[0]))
        expected = _annotation(parameter)
        if fault["type"] == "missing" and len(location) == 1:
            return f"argument {name!r} is missing (expected {expected})"
        if fault["type"] == "extra_forbidden" and len(location) == 1:
            known = ", ".join(self._signature.parameters) or "none"
            return f"argument {name!r} is not one of its parameters ({known})"
        return f"argument {name!r} must be {expected}, not {shown(fault['input'])} ({fault['msg']})"

    # -- running ------------------------------------------------------------------------------------------------------

    async def run(self, arguments: Mapping[str, Any]) -> bytes:
        """Run the function and return its result as JSON. Raises what the function raises.

        A plain ``def`` runs in a thread, in this context. If the caller is cancelled meanwhile, its thread runs on to
        its end and the result is dropped: Python cannot stop a thread.
        """
        if self.is_async:
            result = await self.function(**arguments)
        else:
            result = await in_thread(lambda: self.function(**arguments), name=f"agentfield {self.name}")
            if inspect.isawaitable(result):  # a partial, or a plain function that returns a coroutine
                result = await result
        try:
            return encode_value(result)
        except InvalidInputError as error:
            raise InvalidInputError(f"its result cannot be sent to the caller: {error}") from None


def _annotation(parameter: inspect.Parameter | None) -> str:
    if parameter is None or parameter.annotation is parameter.empty:
        return "any value"
    return inspect.formatannotation(parameter.annotation)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)  # it is the function's own, and perhaps no JSON


async def in_thread(function: Callable[[], Any], *, name: str) -> Any:
    """Run a function in a thread of its own, with this task's context variables.

    Not ``asyncio.to_thread``: its pool has six threads on two cores, so a few slow functions would hold all others up,
    and it would keep the process from ending until the last of them is done. Calls are bounded elsewhere.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Any, error: BaseException | None) -> None:
        if outcome.done():
            return  # nobody waits any more
        if error is None:
            outcome.set_result(result)
        else:
            outcome.set_exception(error)

    def work() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = context.run(function)
        except StopIteration as stopped:  # a future cannot hold it
            error = RuntimeError(f"raised {stopped!r}")
        except BaseException as raised:  # noqa: BLE001 - it is raised again where the result is awaited
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            return  # the loop is closed: the program has ended around us

    threading.Thread(target=work, name=name, daemon=True).start()
    return await outcome
