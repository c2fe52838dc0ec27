"""What a person wrote as a tool's result is sent as it stands there, or as plain text, or it is told why not."""

import json
from decimal import Context, Decimal
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st

from gateway_ui.input.results import response, unfit
from tokenwire import struct


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"sky": "blue"}', {"sky": "blue"}),
        ("[1, 2]", {"result": [1, 2]}),
        ("7 degrees", {"result": "7 degrees"}),
        ("", {"result": ""}),
        # What isn't JSON, though Python would read it.
        ("NaN", {"result": "NaN"}),
        # What a double can't hold.
        ("1234567890123456789", {"result": "1234567890123456789"}),
        ("0.12345678901234567891", {"result": "0.12345678901234567891"}),
        ('{"id": 9007199254740993}', {"result": '{"id": 9007199254740993}'}),
        ("-0.10000000000000001", {"result": -0.1}),
    ],
)
def test_a_persons_words_are_a_tools_response(text: str, wanted: dict[str, object]) -> None:
    assert response(text) == wanted
    assert struct(response(text)) == struct(wanted)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('{"temp": 21', "it is no JSON: Expecting ',' delimiter, line 1, column 12"),
        (" [1,\n2", "it is no JSON: Expecting ',' delimiter, line 2, column 2"),
        ("[" * 100_000, "it is nested too deep; must be flatter"),
        ('{"a": [{"id": 9007199254740993}]}', "a[0].id is a number out of range; must be from -2^53 to 2^53"),
        ("[1e999]", "[0] is a number out of range; must be from -2^53 to 2^53"),
        ('{"a": 0.123456789012345678}', "a is a number with too many digits; must have 17 at most, or be text"),
        ('{"k": 1, "k": 2}', "k is there more than once; must be there once"),
        ("[NaN]", "[0] is NaN; must be a number"),
        (r'["\ud83d"]', "[0] is text with half a character; must have its other half, too"),
        ('{"temp": 21}', ""),
        ("[1]", ""),
        ("21 degrees {really}", ""),
        ("", ""),
    ],
)
def test_what_of_json_can_not_be_sent_as_it_stands_is_told(text: str, wrong: str) -> None:
    assert unfit(text) == wrong


def exactly(value: Any) -> Any:
    """A JSON value to be compared: numbers by all their digits, and objects with each of their keys."""
    match value:
        case dict():
            return {key: exactly(one) for key, one in value.items()}
        case list():
            return [exactly(one) for one in value]
        case float():
            return Decimal(repr(value))
        case _:
            return value


NUMBERS = st.one_of(
    st.integers().map(str),
    st.integers(-(2**70), 2**70).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(allow_nan=False, allow_infinity=False).map(lambda one: f"{one:e}"),
    st.integers(10**15, 10**19).map(lambda digits: f"0.{digits}"),
)
KEYS = st.sampled_from(["a", "b", "c"])
TEXTS = st.recursive(
    st.one_of(NUMBERS, st.text().map(json.dumps), st.sampled_from(["true", "false", "null"])),
    lambda inner: st.one_of(
        st.lists(inner).map(lambda found: f"[{', '.join(found)}]"),
        st.lists(st.tuples(KEYS, inner)).map(
            lambda all_: "{" + ", ".join(f'"{key}": {one}' for key, one in all_) + "}"
        ),
    ),
)


def kept(digits: str) -> Decimal:
    """A number with all that counts of it: what a double makes of 17 digits is the number that was written."""
    found = Decimal(digits)
    return Decimal(repr(float(found))) if len(found.normalize(Context(prec=999)).as_tuple().digits) <= 17 else found


def strictly(pairs: list[tuple[str, Any]]) -> Any:
    return dict(pairs) if len(dict(pairs)) == len(pairs) else ["twice", pairs]


@given(TEXTS)
def test_whatever_is_sent_is_what_was_written(text: str) -> None:
    written = json.loads(text, parse_int=Decimal, parse_float=kept, object_pairs_hook=strictly)
    sent = exactly(MessageToDict(struct(response(text))))
    if sent != (written if isinstance(written, dict) else {"result": written}):
        assert sent == {"result": text}
        assert unfit(text) or not text.startswith(("{", "["))
