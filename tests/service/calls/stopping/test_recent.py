from hypothesis import given
from hypothesis import strategies as st

from service.calls.stopping.recent import Recent

SECONDS = 0.5


def test_a_connection_is_missed_until_it_calls_again() -> None:
    recent = Recent(SECONDS)
    recent.opened("a")
    recent.opened("b")
    assert recent.missed(0) == set()
    recent.ended("a", 0)
    assert recent.missed(0) == {"a"}
    recent.opened("a")
    assert recent.missed(0) == set()


def test_nobody_is_missed_for_long() -> None:
    recent = Recent(SECONDS)
    recent.opened("a")
    recent.ended("a", 100)
    assert recent.missed(100 + SECONDS) == {"a"}
    assert recent.missed(100 + SECONDS + 0.001) == set()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.floats(0, 2 * SECONDS)), max_size=40))
def test_missed_is_who_had_more_calls_open_lately(steps: list[tuple[str, bool, float]]) -> None:
    now = 0.0
    recent = Recent(SECONDS)
    history: dict[str, list[tuple[float, int]]] = {"a": [(0.0, 0)], "b": [(0.0, 0)]}
    for connection, opens, later in steps:
        now += later
        count = history[connection][-1][1]
        if opens:
            recent.opened(connection)
            history[connection].append((now, count + 1))
        elif count:
            recent.ended(connection, now)
            history[connection].append((now, count - 1))
        else:
            continue
        # A number of calls holds until the next one begins.
        ends = {name: [*(since for since, _ in told[1:]), now] for name, told in history.items()}
        assert recent.missed(now) == {
            name
            for name, told in history.items()
            if any(
                end >= now - SECONDS and count > told[-1][1] for (_, count), end in zip(told, ends[name], strict=True)
            )
        }
