"""A stand-in for a language model: a few fixed rules, no intelligence.

It lets the examples and their tests run without a model, without a network, and with the same answers each time. Set
``AGENTFIELD_AI_MODEL=examples.stand_in:answer`` to use it, or the name of a real model to be done with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

Answer = dict[str, Any]


async def answer(messages: Sequence[Mapping[str, str]], *, schema: type[Any] | None = None) -> Answer | str:
    """Answer by the rule for the schema's name; without a schema, repeat the first line of the question.

    Raises LookupError for a schema that no rule knows.
    """
    question = next(message["content"] for message in reversed(messages) if message["role"] == "user")
    if schema is None:
        return f"(stand-in) {question.strip().splitlines()[0]}"
    rule = _RULES.get(schema.__name__)
    if rule is None:
        raise LookupError(f"the stand-in has no rule for {schema.__name__}: add one to {__name__}, or use a real model")
    return rule(question)


def _sentiment(question: str) -> Answer:
    angry = _mentions(question, "unacceptable", "cancel", "furious", "lawyer")
    if _mentions(question, "down", "outage", "lost data"):
        return {"mood": "angry" if angry else "frustrated", "urgency": "critical", "confidence": 0.95}
    if angry or _mentions(question, "slow", "again", "error"):
        return {"mood": "angry" if angry else "frustrated", "urgency": "high" if angry else "medium", "confidence": 0.8}
    return {
        "mood": "happy" if _mentions(question, "thanks", "great") else "neutral",
        "urgency": "low",
        "confidence": 0.7,
    }


def _topic(question: str) -> Answer:
    if _mentions(question, "down", "outage", "slow", "error"):
        return {"topic": "outage"}
    return {"topic": "billing" if _mentions(question, "invoice", "charged", "refund") else "other"}


def _escalation(question: str) -> Answer:
    if "urgency: critical" in question.lower():
        return {"escalate": True, "priority": "P1", "reason": "the customer cannot work"}
    if "urgency: high" in question.lower() or _mentions(question, "earlier tickets: [1-9]"):
        return {"escalate": True, "priority": "P2", "reason": "the customer may leave"}
    return {"escalate": False, "priority": "P3", "reason": "the team can handle it"}


def _incident(question: str) -> Answer:
    rate = re.search(r"error rate: ([0-9.]+[0-9])", question, re.IGNORECASE)
    severe = rate is not None and float(rate[1]) >= 0.1
    return {"severity": "SEV1" if severe else "SEV2", "actions": ["roll back the last release", "tell customers"]}


def _customer_event(question: str) -> Answer:
    return {"summary": question[:80], "needs_attention": _mentions(question, "angry", "escalated")}


def _legal(question: str) -> Answer:
    clauses = [word for word in ("penalty", "liability", "termination") if _mentions(question, word)]
    return {"compliant": "liability" not in clauses, "clauses": clauses}


def _financial(question: str) -> Answer:
    days = re.search(r"(\d+) days", question)
    return {"amounts": re.findall(r"[\d,]+ EUR", question), "due_days": int(days[1]) if days else None}


def _fulfillment(question: str) -> Answer:
    return {"carrier": "rail", "priority": "normal"}


def _mentions(question: str, *words: str) -> bool:
    return re.search(rf"\b(?:{'|'.join(words)})\b", question, re.IGNORECASE) is not None


_RULES: Mapping[str, Callable[[str], Answer]] = MappingProxyType(
    {
        "CustomerEventAnalysis": _customer_event,
        "EscalationStrategy": _escalation,
        "FinancialTerms": _financial,
        "FulfillmentStrategy": _fulfillment,
        "IncidentAssessment": _incident,
        "LegalAnalysis": _legal,
        "SentimentAnalysis": _sentiment,
        "Topic": _topic,
    }
)
"""What is answered, by the name of the schema that is asked for."""
