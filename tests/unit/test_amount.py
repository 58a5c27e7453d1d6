"""A count is said as people say it."""

from agentfield.amount import number_of


def test_one_is_one_and_many_are_many() -> None:
    assert [number_of(count, "event") for count in (0, 1, 2, 1000)] == [
        "0 events",
        "1 event",
        "2 events",
        "1,000 events",
    ]
    assert [number_of(count, "try", "tries") for count in (1, 3)] == ["1 try", "3 tries"]
