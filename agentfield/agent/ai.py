"""``app.ai``: asking a model, and getting text or a validated object back.

Owns: the choice of the model, the shape of the messages, and validation with one retry that shows the model its error.
Must not know: agents, NATS, how LiteLLM is used. Invariant: what is returned for a schema is valid against it.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
from collections.abc import Awaitable, Callable
from functools import cached_property
from operator import attrgetter
from typing import Any, TypeVar, overload

from pydantic import BaseModel, TypeAdapter, ValidationError

from agentfield.agent.litellm_model import AIConfig, LiteLLM, Messages, adapter_of, is_model, model_failure
from agentfield.errors import InvalidInputError
from agentfield.naming import shown

__all__ = ["AI", "AIConfig", "LiteLLM", "Model"]

logger = logging.getLogger("agentfield.ai")

T = TypeVar("T")
Model = Callable[..., Awaitable[Any]]
"""A model: ``async def model(messages, *, schema) -> str | dict | BaseModel``.

``messages`` is a list of ``{"role": "system" | "user" | "assistant", "content": text}``, as all chat models know it.
``schema`` is the type that ``app.ai`` was asked for, or None for plain text. With a schema, return an instance of it,
data that it validates, or JSON text; without, return text. Bytes are text in UTF-8. Exceptions reach the caller of
``app.ai`` as they are.
"""

_DOTTED = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_IMPORTABLE = re.compile(rf"{_DOTTED}:{_DOTTED}")
"""``module:callable``. LiteLLM knows no model of such a name: its names have a ``/``, or a number after the ``:``."""
_FENCED = re.compile(r"\s*```[A-Za-z]*\s*\n(.*?)\n?\s*```\s*", re.DOTALL)
_CONFIGURE = (
    'no model is configured: give Agent(…) ai="openai/gpt-4o-mini" (or another LiteLLM name, after '
    '`pip install "agentfield[ai]"`), an AIConfig, any async callable, or its name as "module:callable"; '
    "or set AGENTFIELD_AI_MODEL to one of these names"
)


class AI:
    """The model of one agent, configured or not."""

    def __init__(self, model: str | AIConfig | Model | None) -> None:
        self._model: Model | None
        if model is None:
            self._model, self.name = None, ""
        elif isinstance(model, str) and _IMPORTABLE.fullmatch(model):
            self._model, self.name = Imported(model), model
        elif isinstance(model, (str, AIConfig)):
            config = AIConfig(model) if isinstance(model, str) else model
            self._model, self.name = LiteLLM(config), config.model
        elif callable(model):
            self._model, self.name = model, str(getattr(model, "__name__", type(model).__name__))
        else:
            raise InvalidInputError(f"ai={shown(model)} is neither a model's name, an AIConfig nor an async callable")

    @overload
    async def ask(self, *texts: str, system: str | None = ..., user: str | None = ..., schema: None = ...) -> str: ...
    @overload
    async def ask(self, *texts: str, system: str | None = ..., user: str | None = ..., schema: type[T]) -> T: ...
    async def ask(
        self, *texts: str, system: str | None = None, user: str | None = None, schema: type[Any] | None = None
    ) -> Any:
        """Ask the model: ``texts`` and ``user`` together are the user's message, ``system`` its instructions.

        Returns text, or with ``schema`` a validated instance of it; an answer that does not fit is shown to the model
        with the error once, and a second such answer raises :class:`RemoteError` (agent: the model, reasoner: ``ai``).
        Also raises :class:`InvalidInputError` (no model, or the provider refuses the request),
        :class:`AccessDeniedError` (key refused) and :class:`UnavailableError` (no answer, or over a rate limit).
        """
        if self._model is None:
            raise InvalidInputError(_CONFIGURE)
        messages = _messages(texts, system, user)
        if schema is None:
            return self._text(await self._answer(self._model, messages, None))
        adapter = adapter_of(schema)
        answer = await self._answer(self._model, messages, schema)
        try:
            return _validated(adapter, schema, answer)
        except ValidationError as error:
            logger.info("model %s gave an invalid %s; asking once more", self.name, _name(schema))
            correction = _correction(schema, error)
            messages = [*messages, {"role": "assistant", "content": _shown_to_model(answer)}, correction]
        answer = await self._answer(self._model, messages, schema)
        try:
            return _validated(adapter, schema, answer)
        except ValidationError as error:
            message = f"not a valid {_name(schema)}, twice: {_faults(error)}"
            raise model_failure(self.name, "InvalidAnswer", message) from None

    async def _answer(self, model: Model, messages: Messages, schema: type[Any] | None) -> Any:
        pending = model(messages, schema=schema)
        if not isinstance(pending, Awaitable):
            raise InvalidInputError(f"the model {self.name!r} is not an async callable: write it as `async def`")
        return await pending

    def _text(self, answer: Any) -> str:
        if answer is None:
            raise model_failure(self.name, "EmptyAnswer", "the model gave no text")
        return _shown_to_model(answer)


class Imported:
    """An async callable named as ``module:callable``, imported when it is first asked.

    So a setting, which can only be text, can name a model of one's own, even one in the module of the agent.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, messages: Messages, *, schema: type[Any] | None) -> Awaitable[Any]:
        """Ask it. Raises InvalidInputError if there is no such callable."""
        return self._model(messages, schema=schema)

    @cached_property
    def _model(self) -> Model:
        module, _, name = self._path.partition(":")
        try:
            found = attrgetter(name)(importlib.import_module(module))
        except (ImportError, AttributeError) as error:
            raise InvalidInputError(
                f"the model {self._path!r} cannot be imported ({error}): write it as module:callable, "
                "with a module that Python finds from here; a LiteLLM name looks like 'openai/gpt-4o-mini'"
            ) from None
        if not callable(found):
            raise InvalidInputError(f"the model {self._path!r} is {shown(found)}: name an async callable")
        model: Model = found
        return model


def _messages(texts: tuple[str, ...], system: str | None, user: str | None) -> Messages:
    parts = [*texts, *([user] if user is not None else [])]
    for part in (*parts, *([system] if system is not None else [])):
        if not isinstance(part, str):
            raise InvalidInputError(f"app.ai() takes texts, not {type(part).__name__} ({shown(part)}): format it first")
    if not any(part.strip() for part in parts):
        raise InvalidInputError("app.ai() has nothing to ask: give it a text, or user=…")
    asked = {"role": "user", "content": "\n\n".join(parts)}
    return [asked] if system is None else [{"role": "system", "content": system}, asked]


def _validated(adapter: TypeAdapter[T], schema: type[T], answer: Any) -> T:
    if isinstance(answer, (str, bytes)):
        text = _shown_to_model(answer)
        fenced = _FENCED.fullmatch(text)
        return adapter.validate_json(fenced.group(1) if fenced else text.strip())
    if isinstance(answer, BaseModel) and not (is_model(schema) and isinstance(answer, schema)):
        answer = answer.model_dump()
    return adapter.validate_python(answer)


def _correction(schema: type[Any], error: ValidationError) -> dict[str, str]:
    text = f"That is not a valid {_name(schema)}: {_faults(error)}. Answer again, with the corrected JSON value only."
    return {"role": "user", "content": text}


def _faults(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'the answer'}: {each['msg']}" for each in faults[:5])


def _shown_to_model(answer: Any) -> str:
    """An answer as text: text as it is, bytes as UTF-8, data as JSON."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, bytes):
        return answer.decode("utf-8", "replace")
    if isinstance(answer, BaseModel):
        return answer.model_dump_json()
    return json.dumps(answer, ensure_ascii=False, default=str)


def _name(schema: Any) -> str:
    return schema.__name__ if isinstance(schema, type) else str(schema)
