"""What was drawn lately is drawn once, within a bound in bytes."""

import sys
import threading

from gateway_ui.drawing.kept import kept

SIZE = sys.getsizeof(("a" * 1000,)) + 2 * sys.getsizeof("a" * 1000)
"""Of a text of 1000 letters and its result, which is as long."""


class Counted:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, text: str) -> str:
        self.calls.append(text[0])
        return text.upper()


def text(letter: str) -> str:
    return letter * 1000


def test_the_same_is_drawn_once() -> None:
    function = Counted()
    one = kept(10 * SIZE)(function)
    assert [one(text("a")), one(text("a"))] == ["A" * 1000] * 2
    assert function.calls == ["a"]


def test_what_was_looked_at_longest_ago_goes_first() -> None:
    function = Counted()
    one = kept(2 * SIZE)(function)
    for letter in "abacab":
        one(text(letter))
    assert function.calls == ["a", "b", "c", "b"]
    assert one.bytes == 2 * SIZE


def test_however_much_is_drawn_it_keeps_to_its_bound() -> None:
    one = kept(3 * SIZE)(Counted())
    for number in range(100):
        one(chr(ord("a") + number) * 1000)
        assert one.bytes <= 3 * SIZE


def test_what_is_larger_than_the_bound_is_drawn_each_time_and_takes_no_place() -> None:
    function = Counted()
    one = kept(SIZE)(function)
    one(text("a"))
    for _ in range(2):
        assert one("b" * 5000) == "B" * 5000
    one(text("a"))
    assert function.calls == ["a", "b", "b"]


def test_two_threads_that_draw_the_same_at_a_time_count_it_once() -> None:
    both = threading.Barrier(2)

    def drawn(text: str) -> tuple[str, ...]:
        both.wait(10)
        return (text,)

    one = kept(10 * SIZE)(drawn)
    threads = [threading.Thread(target=one, args=(text("a"),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert one.bytes == 2 * sys.getsizeof((text("a"),)) + 2 * sys.getsizeof(text("a"))
