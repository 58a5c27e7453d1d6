"""Testing agents: a throwaway server, agents run in the test's process, a fake model, and waiting without sleeping.

The fixtures (``agentfield_server``, ``agentfield_namespace``, ``agentfield_memory``, ``agentfield_model`` and
``agentfield_agents``) are in ``agentfield.testing.plugin``, which pytest finds by itself. What is named in ``__all__``
works without pytest as well. Names are loaded when they are first used: pytest imports this package in every run,
also where no test asks for anything of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentfield.testing.agents import Agents
    from agentfield.testing.model import FakeModel, Question, UnscriptedQuestionError
    from agentfield.testing.settling import NotSettledError, Unhandled, settled
    from agentfield.testing.waiting import eventually

__all__ = [
    "Agents",
    "FakeModel",
    "NotSettledError",
    "Question",
    "Unhandled",
    "UnscriptedQuestionError",
    "eventually",
    "settled",
]

_HOME = {
    "Agents": "agentfield.testing.agents",
    "FakeModel": "agentfield.testing.model",
    "NotSettledError": "agentfield.testing.settling",
    "Question": "agentfield.testing.model",
    "Unhandled": "agentfield.testing.settling",
    "UnscriptedQuestionError": "agentfield.testing.model",
    "eventually": "agentfield.testing.waiting",
    "settled": "agentfield.testing.settling",
}

if not TYPE_CHECKING:  # a type checker would take any misspelt name for an attribute if it saw this function

    def __getattr__(name: str) -> object:
        """Load a public name on its first use and keep it."""
        try:
            home = _HOME[name]
        except KeyError:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
        value = getattr(import_module(home), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """Name what is public, loaded or not."""
        return sorted({*globals(), *__all__})
