"""``app.ai`` gives text or a validated object, whatever callable stands behind it, or a sentence on what to do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agentfield import Agent, AIConfig, InvalidInputError, RemoteError
from agentfield.agent.ai import AI, LiteLLM


class Sentiment(BaseModel):
    mood: str
    urgency: int


class Model:
    """Answers from a list, and remembers what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[Sequence[dict[str, str]]] = []
        self.schemas: list[type[Any] | None] = []

    async def __call__(self, messages: Sequence[dict[str, str]], *, schema: type[Any] | None) -> Any:
        self.asked.append(messages)
        self.schemas.append(schema)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


GOOD = '{"mood": "angry", "urgency": 3}'


async def test_text_is_returned_as_it_is() -> None:
    model = Model("hello")
    assert await AI(model).ask("Say hello") == "hello"
    assert model.asked == [[{"role": "user", "content": "Say hello"}]]
    assert model.schemas == [None]


async def test_bytes_are_text_and_not_what_python_writes_for_them() -> None:
    async def model(messages: Any, *, schema: Any) -> bytes:
        return "größer".encode()

    assert await AI(model).ask("?") == "größer"


async def test_texts_system_and_user_become_two_messages() -> None:
    model = Model("ok")
    await AI(model).ask("Analyze", "this", system="Be brief.", user="Ticket 1")
    assert model.asked == [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Analyze\n\nthis\n\nTicket 1"}]
    ]


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"\n```\n{GOOD}\n```\n",
        {"mood": "angry", "urgency": 3},
        Sentiment(mood="angry", urgency=3),
        GOOD.encode(),
    ],
)
async def test_an_answer_becomes_the_schema_in_whatever_form_it_comes(answer: Any) -> None:
    model = Model(answer)
    assert await AI(model).ask("?", schema=Sentiment) == Sentiment(mood="angry", urgency=3)
    assert model.schemas == [Sentiment]


async def test_a_schema_can_be_any_type_that_pydantic_validates() -> None:
    assert await AI(Model("[1, 2]")).ask("?", schema=list[int]) == [1, 2]


async def test_an_invalid_answer_is_shown_to_the_model_with_its_error_once() -> None:
    model = Model('{"mood": "angry"}', GOOD)
    assert await AI(model).ask("?", schema=Sentiment) == Sentiment(mood="angry", urgency=3)
    assert model.asked[1][0] == {"role": "user", "content": "?"}
    assert model.asked[1][1] == {"role": "assistant", "content": '{"mood": "angry"}'}
    assert model.asked[1][2]["role"] == "user"
    assert "urgency: Field required" in model.asked[1][2]["content"]


async def test_a_second_invalid_answer_is_an_error_with_its_facts() -> None:
    model = Model("no idea", '{"mood": 1, "urgency": 3}', GOOD)
    with pytest.raises(RemoteError) as caught:
        await AI(model).ask("?", schema=Sentiment)
    assert caught.value.type_name == "InvalidAnswer"
    assert (caught.value.agent, caught.value.reasoner) == ("Model", "ai")
    assert "mood" in str(caught.value)
    assert len(model.asked) == 2


async def test_exceptions_of_a_callable_of_ones_own_come_through() -> None:
    with pytest.raises(KeyError):
        await AI(Model(KeyError("x"))).ask("?")


async def test_no_model_is_one_sentence_that_says_how_to_configure_one() -> None:
    with pytest.raises(InvalidInputError) as caught:
        await Agent("a", nats_url="nats://127.0.0.1:1").ai("?")
    for hint in ('ai="openai/gpt-4o-mini"', 'pip install "agentfield[ai]"', "async callable", "AGENTFIELD_AI_MODEL"):
        assert hint in str(caught.value)


async def test_the_environment_can_name_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTFIELD_AI_MODEL", "openai/some-model")
    assert Agent("a")._presence.ai.name == "openai/some-model"
    assert Agent("a", ai="openai/another")._presence.ai.name == "openai/another"


async def test_the_environment_can_name_a_callable_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "own_model.py").write_text(
        "class Models:\n"
        "    async def echo(messages, *, schema):\n"
        "        return messages[-1]['content'].upper()\n"
        "not_callable = 7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("AGENTFIELD_AI_MODEL", "own_model:Models.echo")
    assert await Agent("a").ai("hello") == "HELLO"
    wrong = {"own_model:absent": "absent", "absent_module:f": "absent_module", "own_model:not_callable": "7"}
    for name, said in wrong.items():
        with pytest.raises(InvalidInputError, match=said):
            await Agent("a", ai=name).ai("hello")


@pytest.mark.parametrize("name", ["openai/gpt-4o-mini", "ollama/llama3:8b", "anthropic.claude-v2:1", "gpt-4o"])
def test_a_name_of_litellm_is_not_taken_for_a_callable(name: str) -> None:
    assert isinstance(AI(name)._model, LiteLLM)


async def test_a_model_that_is_not_async_is_refused() -> None:
    def model(messages: Any, *, schema: Any) -> str:
        return "text"

    with pytest.raises(InvalidInputError, match="async"):
        await AI(model).ask("?")  # type: ignore[arg-type]


async def test_what_cannot_be_asked_is_refused_before_the_model_is_bothered() -> None:
    model = Model()
    for arguments in ({}, {"user": "  "}, {"user": 7}):
        with pytest.raises(InvalidInputError):
            await AI(model).ask(**arguments)
    with pytest.raises(InvalidInputError):
        await AI(model).ask("?", schema=object())  # type: ignore[call-overload]
    assert not model.asked


def test_a_wrong_configuration_is_refused_at_once() -> None:
    for arguments in ({"model": ""}, {"model": "m", "timeout": 0}):
        with pytest.raises(InvalidInputError):
            AIConfig(**arguments)
    with pytest.raises(InvalidInputError):
        AI(7)  # type: ignore[arg-type]


def test_a_configuration_does_not_show_its_key() -> None:
    assert "secret" not in repr(AIConfig("m", api_key="secret"))
