"""What a person wrote as the result of a tool's call."""

import json


def broken_json(text: str) -> str:
    """Say what is wrong with a tool's response that begins like JSON and isn't; empty: it is, or plain text."""
    if not text.lstrip().startswith(("{", "[")):
        return ""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return f"{error.msg}, line {error.lineno}, column {error.colno}"
    except RecursionError:
        return "nested too deep"
    return ""


def response(text: str) -> dict[str, object]:
    """Give what a person wrote as a tool's response: a JSON object, or whatever it is under "result"."""
    try:
        value = json.loads(text, parse_constant=lambda _: text)
    except ValueError:
        value = text
    return value if isinstance(value, dict) else {"result": value}
