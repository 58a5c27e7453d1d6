"""The server's clock is known between bounds that hold, and that a slow answer does not widen."""

from hypothesis import given
from hypothesis import strategies as st

from agentfield.fabric.clock import ServerClock

SECOND = 1_000_000_000
START = 1_795_000_000 * SECOND
"""The server's time when ours is 0, which is some loop's."""

delays = st.floats(0, 3)
pauses = st.floats(0, 1000)
rates = st.floats(-0.0004, 0.0004)


def server_time(ours: float, rate: float) -> int:
    """What the server's clock says, which runs a little faster or slower than ours."""
    return START + int(ours * (1 + rate) * SECOND)


@given(st.lists(st.tuples(delays, delays, pauses), min_size=1, max_size=10), rates)
def test_the_servers_time_lies_between_the_bounds(answers: list[tuple[float, float, float]], rate: float) -> None:
    clock, ours = ServerClock(), 5.0
    for there, back, pause in answers:
        sent, ours = ours, ours + there + back
        clock.observe(sent, server_time(sent + there, rate), ours)
        for later in (0.0, pause):
            true = server_time(ours + later, rate)
            assert clock.earliest(ours + later) - 2 <= true <= clock.latest(ours + later) + 2  # rounding
            assert clock.earliest(ours + later) <= clock.now(ours + later) <= clock.latest(ours + later)
        ours += pause


@given(st.lists(st.tuples(delays, delays), min_size=1, max_size=10))
def test_a_slow_answer_never_makes_it_worse(answers: list[tuple[float, float]]) -> None:
    clock, ours = ServerClock(), 5.0
    clock.observe(ours, server_time(ours + 0.0005, 0), ours + 0.001)
    for there, back in answers:
        before = clock.latest(ours) - clock.earliest(ours)
        sent, ours = ours, ours + there + back
        clock.observe(sent, server_time(sent + there, 0), ours)
        drift = int((there + back) * 0.0005 * SECOND) * 2 + 10
        assert clock.latest(ours) - clock.earliest(ours) <= before + drift
        assert abs(clock.now(ours) - server_time(ours, 0)) <= 0.03 * SECOND


@given(st.integers(-(10**6), 10**6).filter(lambda seconds: abs(seconds) > 2))
def test_a_clock_that_is_set_is_followed(seconds: int) -> None:
    clock = ServerClock()
    clock.observe(1.0, START, 1.001)
    clock.observe(2.0, START + (1 + seconds) * SECOND, 2.001)
    assert abs(clock.now(2.001) - (START + (1 + seconds) * SECOND)) < SECOND // 100
