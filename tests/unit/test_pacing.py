"""Pacing: the turns of a replay, on a clock that the tests move."""

from agentfield.codec import Record
from agentfield.replay.pacing import AsRecorded, AtOnce

SECOND = 1_000_000_000


class Clock:
    """A clock that only moves when somebody sleeps, or is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now += seconds


def records(*seconds: float) -> list[Record]:
    return [Record("s", number, int(at * SECOND), {}, b"") for number, at in enumerate(seconds, 1)]


async def turns(pace: AsRecorded, *seconds: float) -> None:
    for record in records(*seconds):
        assert await pace.turn(record, None)


async def test_the_original_pace_keeps_the_distances() -> None:
    clock = Clock()
    await turns(AsRecorded(clock=clock, sleep=clock.sleep), 50, 51, 51, 54.5)
    assert clock.slept == [1, 3.5]


async def test_a_factor_makes_it_faster_or_slower() -> None:
    clock = Clock()
    await turns(AsRecorded(10, clock=clock, sleep=clock.sleep), 0, 1, 6)
    await turns(AsRecorded(0.5, clock=clock, sleep=clock.sleep), 0, 1)
    assert clock.slept == [0.1, 0.5, 2]


async def test_no_pause_is_longer_than_the_longest() -> None:
    clock = Clock()
    await turns(AsRecorded(2, 3, clock=clock, sleep=clock.sleep), 0, 2, 3600, 3601)
    assert clock.slept == [1, 3, 0.5]


async def test_a_replay_that_was_held_up_catches_up() -> None:
    clock = Clock()
    pace = AsRecorded(clock=clock, sleep=clock.sleep)
    first, second, third, fourth = records(0, 1, 2, 3)
    await pace.turn(first, None)
    clock.now += 2.25  # what was done with it took longer than the distance to the next
    assert pace.is_due(second)
    await pace.turn(second, None)
    assert pace.is_due(third)
    await pace.turn(third, None)
    assert not pace.is_due(fourth)
    await pace.turn(fourth, None)
    assert clock.slept == [0.75]


async def test_times_that_go_back_are_no_pause() -> None:
    clock = Clock()
    await turns(AsRecorded(clock=clock, sleep=clock.sleep), 5, 4, 4.5)
    assert clock.slept == [0.5]


async def test_at_once_never_waits() -> None:
    pace = AtOnce()
    for record in records(0, 3600):
        assert pace.is_due(record)
        assert await pace.turn(record, None)
