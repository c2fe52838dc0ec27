from pathlib import Path

import pytest

from tests.tokenwire.fake_service import Said, completed, said, thought, tool_call
from tokenwire import Turn, file, file_uri, function, inline, model, struct, tool, tool_result, user
from tokenwire.v1.content_pb2 import ROLE_MODEL, ROLE_TOOL, ROLE_USER, Blob, FileData, Message, Part, ToolCall


def turn(*steps: Said) -> Message:
    collected = Turn()
    for message in said(*steps):
        collected.saw(message)
    return collected.message


# ---- what a request is made of


def test_a_users_turn_holds_text_and_whatever_else() -> None:
    made = user("What is this?", inline(b"\x89PNG", "image/png"), file_uri("gs://bucket/a.pdf", "application/pdf"))
    assert made == Message(
        role=ROLE_USER,
        parts=[
            Part(text="What is this?"),
            Part(inline_data=Blob(mime_type="image/png", data=b"\x89PNG")),
            Part(file_data=FileData(mime_type="application/pdf", file_uri="gs://bucket/a.pdf")),
        ],
    )
    assert model("A game.") == Message(role=ROLE_MODEL, parts=[Part(text="A game.")])


@pytest.mark.parametrize(
    ("name", "mime_type"), [("a.png", "image/png"), ("b.JPG", "image/jpeg"), ("c.pdf", "application/pdf")]
)
def test_a_files_type_is_told_by_its_name(tmp_path: Path, name: str, mime_type: str) -> None:
    (tmp_path / name).write_bytes(b"bytes")
    assert file(tmp_path / name) == inline(b"bytes", mime_type)


@pytest.mark.parametrize("name", ["photo", "a.tar.gz", "b.nothing-known"])
def test_a_file_without_a_telling_name_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"bytes")
    with pytest.raises(ValueError, match=r"does not tell its type; one such as photo\.png is wanted"):
        file(tmp_path / name)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file(tmp_path / "none.png")


def test_a_tools_result_names_its_call() -> None:
    made = tool(tool_result(ToolCall(id="c-1", name="weather"), {"sky": "blue", "degrees": 7}))
    assert made.role == ROLE_TOOL
    result = made.parts[0].tool_result
    assert (result.tool_call_id, result.name, dict(result.response)) == (
        "c-1",
        "weather",
        {"sky": "blue", "degrees": 7},
    )


def test_a_function_without_a_schema_takes_nothing() -> None:
    assert not function("now", "Tells the time.").HasField("parameters")
    assert function("f", "Does it.", {"type": "object"}).parameters == struct({"type": "object"})


@pytest.mark.parametrize("value", [{"a": object()}, {"a": {"b": {1, 2}}}, {1: 2}])
def test_what_is_not_json_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no JSON object"):
        struct(value)


# ---- an answer as the turn that it becomes


def test_pieces_that_belong_together_become_one_part() -> None:
    assert turn(thought("I "), thought("think."), "Base", "ball", completed()) == Message(
        role=ROLE_MODEL, parts=[Part(reasoning="I think."), Part(text="Baseball")]
    )


def test_everything_keeps_its_order() -> None:
    call = tool_call("f", {"a": 1}, b"s")
    parts = turn("One", thought("Hm."), call, "Two", completed()).parts
    assert [part.WhichOneof("data") for part in parts] == ["text", "reasoning", "tool_call", "text"]
    assert (parts[2].tool_call, parts[2].reasoning_signature) == (call.tool_call, b"s")


def test_a_signature_ends_the_thought_that_it_came_with() -> None:
    assert list(turn(thought("a"), thought("b", b"1"), thought("c"), thought("", b"2"), completed()).parts) == [
        Part(reasoning="ab", reasoning_signature=b"1"),
        Part(reasoning="c", reasoning_signature=b"2"),
    ]


def test_a_signature_without_a_thought_is_kept_in_its_place() -> None:
    assert list(turn("Text", thought("", b"1"), completed()).parts) == [
        Part(text="Text"),
        Part(reasoning="", reasoning_signature=b"1"),
    ]


def test_nothing_said_is_no_part() -> None:
    assert turn("", thought(), completed()) == Message(role=ROLE_MODEL)


def test_looking_at_it_on_the_way_changes_nothing() -> None:
    collected = Turn()
    for message in said("a", thought("b"), "c", "d", completed()):
        assert collected.message is not None
        collected.saw(message)
    assert [part.text or part.reasoning for part in collected.message.parts] == ["a", "b", "cd"]
