"""When the timer of a value fires, for whatever ttl."""

from hypothesis import given
from hypothesis import strategies as st

from agentfield.header import MAX_TTL
from agentfield.memory.timing import timer_moment

SECOND = 1_000_000_000
NOW = st.integers(1_795_000_000 * SECOND, 1_895_000_000 * SECOND)


@given(NOW, st.floats(1e-9, 59.99))
def test_a_short_ttls_timer_fires_when_it_is_over_and_little_later(now: int, ttl: float) -> None:
    late = timer_moment(now, ttl) - now - ttl * SECOND
    assert 0.04 * SECOND <= late <= 0.06 * SECOND + ttl * SECOND / 32


@given(NOW, st.floats(60.0, MAX_TTL))
def test_a_long_ttls_timer_fires_early_but_never_before_a_slow_write_is_stored(now: int, ttl: float) -> None:
    early = now + ttl * SECOND - timer_moment(now, ttl)
    assert -1000 <= early <= ttl * SECOND / 8
    assert timer_moment(now, ttl) - now > 50 * SECOND


@given(NOW, st.floats(0.1, MAX_TTL), st.integers(1, 2000))
def test_however_often_a_key_is_written_it_has_few_timers(now: int, ttl: float, writes: int) -> None:
    span = int(ttl * SECOND)
    moments = {timer_moment(now + span * number // writes, ttl) for number in range(writes)}
    assert len(moments) <= 131
