"""A model for tests: it answers what a test has told it to, and nothing else.

Owns: the script, the rules, and the record of what was asked. Must not know: agents. Invariant: no answer is made up; a
question that nothing answers is refused, and remembered as refused, so that it is not lost in a handler's retries.
"""

from __future__ import annotations

import inspect
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from agentfield.errors import InvalidInputError
from agentfield.naming import shown

_SHOWN = 500
"""Characters of a text that an error shows."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a model was asked: the texts of ``app.ai``, and the ``schema`` it wanted, None for plain text.

    ``messages`` is the whole conversation. It is longer than two only when an answer did not fit the schema: then the
    same question comes again, with that answer and the correction.
    """

    user: str
    system: str | None
    schema: type[Any] | None
    messages: tuple[Mapping[str, str], ...]


Answer = Any
"""A text; data or a Pydantic model for a question with a schema; an exception, which is raised; or a plain or async
function of the :class:`Question` that gives one of these."""
About = str | re.Pattern[str] | Callable[[Question], bool]
"""Which questions a rule is for: those whose texts hold this, case ignored; match this; or for which this is true."""


class UnscriptedQuestionError(AssertionError):
    """The model was asked something that the test has no answer for; ``question`` is what."""

    def __init__(self, question: Question) -> None:
        self.question = question
        schema = _name(question.schema)
        lines = [
            "the fake model was asked what neither a rule nor its script answers:",
            f"  schema: {schema}",
            f"  system: {_cut(question.system)}",
            f"  user:   {_cut(question.user)}",
            "tell it what to answer with model.script(…), or with model.rule(…, about=…, schema=…)",
        ]
        super().__init__("\n".join(lines))


@dataclass(frozen=True, slots=True)
class _Rule:
    answer: Answer
    about: About | None
    schema: type[Any] | None

    def fits(self, question: Question) -> bool:
        if self.schema is not None and question.schema is not self.schema:
            return False
        about = self.about
        texts = f"{question.system or ''}\n{question.user}"
        if about is None:
            return True
        if isinstance(about, str):
            return about.lower() in texts.lower()
        return about.search(texts) is not None if isinstance(about, re.Pattern) else bool(about(question))


class FakeModel:
    """A model that gives the answers of a test: ``Agent("judge", ai=FakeModel("yes", "no"))``.

    Each question is answered by the first :meth:`rule` that fits, else by the next answer of the script, else it is
    refused with :class:`UnscriptedQuestionError`. ``asked`` holds every question in order, ``refused`` those without an
    answer. An answer for a schema is validated at once: one that does not fit is the test's mistake, and said to be
    that. Only a text goes through as it is, as a real model's would, so that a test can see what becomes of a bad one.
    """

    def __init__(self, *script: Answer) -> None:
        self.asked: list[Question] = []
        self.refused: list[Question] = []
        self._script = deque(script)
        self._rules: list[_Rule] = []

    def script(self, *answers: Answer) -> None:
        """Answer the next questions that no rule fits with these, one each, after those already in the script."""
        self._script.extend(answers)

    def rule(self, answer: Answer, *, about: About | None = None, schema: type[Any] | None = None) -> None:
        """Answer every question about something, or for a schema, or both, with this; with neither, every question.

        ``about`` is a text that the question or its instructions hold (case ignored), a regular expression that is
        searched in them, or a function of the question. Of several rules that fit, the one given first counts.
        """
        if not (about is None or isinstance(about, (str, re.Pattern)) or callable(about)):
            raise InvalidInputError(f"about={shown(about)}: a text, a regular expression or a function of the question")
        self._rules.append(_Rule(answer, about, schema))

    def check(self) -> None:
        """Raise :class:`UnscriptedQuestionError` if a question was refused: whoever asked may have hidden that."""
        if self.refused:
            raise UnscriptedQuestionError(self.refused[0])

    async def __call__(self, messages: Sequence[Mapping[str, str]], *, schema: type[Any] | None = None) -> Any:
        """Answer; this is what ``app.ai`` calls.

        Raises UnscriptedQuestionError, InvalidInputError for an answer that does not fit the schema, and whatever
        exception the answer is.
        """
        question = _question(messages, schema)
        self.asked.append(question)
        answer = self._answer_to(question)
        if callable(answer) and not isinstance(answer, (type, BaseModel)):
            answer = answer(question)
            if inspect.isawaitable(answer):
                answer = await answer
        if isinstance(answer, BaseException):
            raise answer
        if schema is not None and not isinstance(answer, str):
            _check(answer, schema)
        return answer

    def _answer_to(self, question: Question) -> Answer:
        for rule in self._rules:
            if rule.fits(question):
                return rule.answer
        if self._script:
            return self._script.popleft()
        self.refused.append(question)
        raise UnscriptedQuestionError(question)


def _question(messages: Sequence[Mapping[str, str]], schema: type[Any] | None) -> Question:
    def first(role: str) -> str | None:
        return next((message["content"] for message in messages if message["role"] == role), None)

    return Question(first("user") or "", first("system"), schema, tuple(dict(message) for message in messages))


def _check(answer: Answer, schema: type[Any]) -> None:
    data = answer.model_dump() if isinstance(answer, BaseModel) else answer
    try:
        TypeAdapter(schema).validate_python(data)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        said = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'the answer'}: {each['msg']}" for each in faults[:5])
        raise InvalidInputError(
            f"the test's answer {shown(answer)} is no {_name(schema)} ({said}): mend it; to see what becomes of a bad "
            "answer, give it as JSON text"
        ) from None


def _name(schema: Any) -> str:
    return schema.__name__ if isinstance(schema, type) else str(schema)


def _cut(text: str | None) -> str:
    if text is None:
        return "(none)"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
