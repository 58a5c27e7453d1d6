"""The fake model answers what it was told to, refuses the rest, and remembers everything."""

import re
from typing import Any

import pytest
from pydantic import BaseModel

from agentfield import Agent, InvalidInputError
from agentfield.testing import FakeModel, Question, UnscriptedQuestionError


class Mood(BaseModel):
    mood: str
    urgent: bool = False


class Topic(BaseModel):
    topic: str


def judge(model: FakeModel) -> Agent:
    return Agent("judge", ai=model)


async def test_a_script_is_answered_in_its_order() -> None:
    model = FakeModel("one", {"mood": "calm"})
    model.script(Mood(mood="angry", urgent=True), "four")
    app = judge(model)
    assert await app.ai("first?") == "one"
    assert await app.ai("second?", schema=Mood) == Mood(mood="calm")
    assert await app.ai("third?", schema=Mood) == Mood(mood="angry", urgent=True)
    assert await app.ai("fourth?") == "four"


async def test_everything_that_was_asked_is_recorded() -> None:
    model = FakeModel("x", {"topic": "t"})
    app = judge(model)
    await app.ai("a", "b", system="Be kind.", user="c")
    await app.ai("d", schema=Topic)
    first, second = model.asked
    assert (first.user, first.system, first.schema) == ("a\n\nb\n\nc", "Be kind.", None)
    assert first.messages[0] == {"role": "system", "content": "Be kind."}
    assert (second.user, second.system, second.schema) == ("d", None, Topic)


async def test_rules_come_before_the_script_and_the_first_that_fits_counts() -> None:
    model = FakeModel("scripted")
    model.rule({"mood": "frustrated"}, about="DOWN", schema=Mood)
    model.rule({"mood": "happy"}, schema=Mood)
    model.rule("by a pattern", about=re.compile(r"\bticket \d+\b"))
    model.rule("by a function", about=lambda question: len(question.user) > 20)
    model.rule("in the instructions", about="kind")
    app = judge(model)
    assert (await app.ai("It is down", schema=Mood)).mood == "frustrated"
    assert (await app.ai("It works", schema=Mood)).mood == "happy"
    assert await app.ai("see ticket 7") == "by a pattern"
    assert await app.ai("what is the meaning of this?") == "by a function"
    assert await app.ai("down?", system="Be kind.") == "in the instructions"
    assert await app.ai("down?") == "scripted"


async def test_an_answer_can_be_computed_or_an_exception() -> None:
    async def repeat(question: Question) -> str:
        return question.user

    model = FakeModel(lambda question: {"topic": question.user}, repeat, TimeoutError("the model sleeps"))
    app = judge(model)
    assert await app.ai("rain", schema=Topic) == Topic(topic="rain")
    assert await app.ai("rain") == "rain"
    with pytest.raises(TimeoutError, match="the model sleeps"):
        await app.ai("rain")


async def test_what_nothing_answers_is_refused_with_the_question_and_remembered() -> None:
    model = FakeModel()
    model.rule("yes", about="rain")
    app = judge(model)
    model.check()
    with pytest.raises(UnscriptedQuestionError) as caught:
        await app.ai("Is it late?", system="You know the time.", schema=Mood)
    for fact in ("schema: Mood", "system: You know the time.", "user:   Is it late?", "model.script(", "model.rule("):
        assert fact in str(caught.value)
    assert model.refused == [caught.value.question] == model.asked
    with pytest.raises(UnscriptedQuestionError, match="Is it late"):
        model.check()


async def test_data_that_does_not_fit_the_schema_is_the_tests_mistake_and_is_not_asked_for_again() -> None:
    model = FakeModel({"urgent": "perhaps"})
    with pytest.raises(InvalidInputError, match=r"no Mood \(mood: Field required; urgent: "):
        await judge(model).ai("How is it?", schema=Mood)
    assert len(model.asked) == 1
    with pytest.raises(InvalidInputError, match="is no Topic"):
        await judge(FakeModel(Mood(mood="calm"))).ai("What is it about?", schema=Topic)


async def test_a_bad_text_goes_through_so_that_the_second_question_can_be_seen() -> None:
    model = FakeModel("not JSON", '{"mood": "calm"}')
    assert await judge(model).ai("How is it?", schema=Mood) == Mood(mood="calm")
    first, second = model.asked
    assert (first.user, second.user) == ("How is it?", "How is it?")
    assert (len(first.messages), len(second.messages)) == (1, 3)
    assert "not a valid Mood" in second.messages[-1]["content"]


@pytest.mark.parametrize("schema", [list[int], dict[str, int], int])
async def test_a_schema_can_be_any_type(schema: Any) -> None:
    answer = {list[int]: [1, 2], dict[str, int]: {"a": 1}, int: 7}[schema]
    assert await judge(FakeModel(answer)).ai("?", schema=schema) == answer


def test_a_rule_about_nothing_that_can_be_looked_for_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="about=7"):
        FakeModel().rule("x", about=7)  # type: ignore[arg-type]
