"""What happens in the demo: the tickets that come in, and the numbers that the monitoring measures."""

from typing import Any, Final, NamedTuple


class Ticket(NamedTuple):
    """A message of a customer."""

    id: str
    customer: str
    message: str


FIRST: Final = (
    Ticket("1001", "ada", "Your service is down again. This is unacceptable, we cannot work!"),
    Ticket("1002", "grace", "Where do I find the invoice for March?"),
    Ticket("1003", "linus", "The reports are slow since yesterday."),
)
"""These come in at the same time."""

LATER: Final = Ticket("1004", "ada", "Slow again today.")
"""A second ticket of a customer whose first one is known by then."""

TEAMS: Final = {"outage": "platform", "billing": "accounts", "other": "first-line"}
"""Configuration that the routing agent finds in the global scope."""

METRICS: Final[dict[str, Any]] = {"error_rate": 0.12, "services": ["api", "reports"]}
