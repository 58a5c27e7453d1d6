"""Models behind LiteLLM: their configuration, one request, and what its errors mean.

Owns: the import of LiteLLM, which waits until it is needed because it takes seconds, the form in which a schema is
explained to a model, and the table from LiteLLM's errors to ours. Must not know: who asks, and what is done with an
answer. Invariant: no exception, no traceback and no API key comes out of here.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticUserError

from agentfield.agent.reasoner import in_thread
from agentfield.errors import AccessDeniedError, AgentFieldError, InvalidInputError, RemoteError, UnavailableError
from agentfield.execution import current
from agentfield.naming import shown

logger = logging.getLogger("agentfield.ai")

T = TypeVar("T")
Messages = list[dict[str, str]]
"""A conversation: ``{"role": "system" | "user" | "assistant", "content": text}`` each, as all chat models know it."""


@dataclass(frozen=True, slots=True)
class AIConfig:
    """A model as LiteLLM reaches it.

    ``model`` is its LiteLLM name. ``api_base`` is another server than the provider's own: for one that speaks the
    OpenAI protocol, call the model ``openai/<its name>``. ``api_key`` defaults to the provider's environment variable.
    ``timeout`` (seconds) bounds one request. ``extra`` goes to ``litellm.acompletion`` as it is.
    """

    model: str
    api_base: str | None = None
    api_key: str | None = field(default=None, repr=False)
    temperature: float | None = None
    max_tokens: int | None = None
    timeout: float = 60.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model: object = self.model
        if not isinstance(model, str) or not model.strip():
            raise InvalidInputError(f"AI model {shown(self.model)} is not a name: use one like 'openai/gpt-4o-mini'")
        if not self.timeout > 0:
            raise InvalidInputError(f"AI timeout {shown(self.timeout)} is not above 0: give it in seconds")


class LiteLLM:
    """A model reached through LiteLLM."""

    def __init__(self, config: AIConfig) -> None:
        self._config = config

    async def __call__(self, messages: Messages, *, schema: type[Any] | None) -> Any:
        """Ask once. What LiteLLM raises comes out as an error of agentfield."""
        litellm = await in_thread(self._import, name="agentfield import of litellm")
        config = self._config
        options = {
            "api_base": config.api_base,
            "api_key": config.api_key,
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
        }
        request: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        if schema is not None:
            messages = _with_schema(messages, schema)
            if is_model(schema) and _takes_schema(litellm, config.model):
                request["response_format"] = schema
        try:
            response = await litellm.acompletion(
                **{"model": config.model, "messages": messages, "timeout": config.timeout, **request, **config.extra}
            )
            answer = response.choices[0].message.content
        except Exception as error:
            logger.debug("model %s", config.model, exc_info=True)
            raise self._translated(error) from None
        if answer is None:
            raise model_failure(config.model, "EmptyAnswer", "the model gave no text")
        return answer

    def _import(self) -> Any:
        # Else importing it asks a web site for prices, and tries again for seconds where there is no way out.
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        try:
            import litellm
        except ImportError:
            raise InvalidInputError(
                f'the model {self._config.model!r} needs LiteLLM: `pip install "agentfield[ai]"`, or give Agent(…) '
                "ai= any async callable"
            ) from None
        litellm.suppress_debug_info = True  # else it prints to the terminal on every error
        return litellm

    def _translated(self, error: Exception) -> AgentFieldError:
        """One table from what LiteLLM raises to what users see, by the HTTP status it carries."""
        model, kind, text = self._config.model, type(error).__name__, str(error).strip()
        if self._config.api_key:
            text = text.replace(self._config.api_key, "***")
        text = text.removeprefix(f"litellm.{kind}: ").partition("\n")[0][:500]
        status = getattr(error, "status_code", None)
        if status in (401, 403):
            return AccessDeniedError(f"the provider of model {model!r} refused the API key: {text}")
        if kind in ("APIConnectionError", "Timeout") or status in (408, 429) or _is_server_error(status):
            return UnavailableError(f"model {model!r} is unavailable ({kind}): {text}")
        if status in (400, 404, 413, 422):
            return InvalidInputError(f"the provider of model {model!r} refused the request ({kind}): {text}")
        return model_failure(model, kind, text)


def _is_server_error(status: object) -> bool:
    return isinstance(status, int) and 500 <= status < 600


def _takes_schema(litellm: Any, model: str) -> bool:
    try:
        return bool(litellm.supports_response_schema(model=model))
    except Exception:
        logger.debug("asking LiteLLM about %s", model, exc_info=True)
        return False


def model_failure(model: str, type_name: str, message: str) -> RemoteError:
    """The error for a model that failed: its facts name the model as the agent, and ``ai`` as the reasoner."""
    execution = current.get()
    return RemoteError(
        type_name=type_name,
        message=message,
        agent=model,
        reasoner="ai",
        execution_id=execution.execution_id if execution is not None else "",
    )


def adapter_of(schema: type[T]) -> TypeAdapter[T]:
    """What validates answers as ``schema``. Raises InvalidInputError if it is not a type that Pydantic knows."""
    try:
        return TypeAdapter(schema)
    except PydanticUserError as error:
        raise InvalidInputError(
            f"schema={shown(schema)} is not a type that answers can be validated as: {error.message}"
        ) from None


def is_model(schema: Any) -> bool:
    """Whether it is a Pydantic model class."""
    return isinstance(schema, type) and issubclass(schema, BaseModel)


def _with_schema(messages: Messages, schema: type[Any]) -> Messages:
    """Say in words what is wanted: not every model takes a schema, and those that do are no worse for reading it."""
    text = json.dumps(adapter_of(schema).json_schema(), ensure_ascii=False)
    wanted = f"Answer with one JSON value, and nothing else, that is valid against this JSON Schema:\n{text}"
    first = messages[0]
    if first["role"] == "system":
        return [{"role": "system", "content": f"{first['content']}\n\n{wanted}"}, *messages[1:]]
    return [{"role": "system", "content": wanted}, *messages]
