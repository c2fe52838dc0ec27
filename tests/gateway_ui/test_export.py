import json

from google.protobuf.json_format import ParseDict

from gateway_ui.conversation import STOPPED, Conversation, Exchange
from gateway_ui.export import as_json, as_markdown
from tests.gateway_ui import test_conversation as conversations
from tests.gateway_ui.test_conversation import exchange
from tests.tokenwire.fake_service import completed, thought, tool_call
from tokenwire import file_uri, inline, tool, tool_result, user
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.content_pb2 import Message

SOURCES = pb.Grounding(sources=[pb.Grounding.Source(uri="https://example.org/a", title="A page")])


def conversation() -> Conversation:
    question = user(inline(b"\x00bytes\xff", "image/png"), file_uri("gs://b/a.pdf", "application/pdf"), "What is this?")
    called = exchange(
        thought("Hm.", b"\x00sig"), "Let me see.", tool_call("look", {"at": [1, 2.5, None, True]}, b"s2"),
        end=completed(), question=question, model="fake-2",
    )  # fmt: skip
    called.asked.config.temperature = 0.0
    results = tool(tool_result(called.tool_calls[0], {"seen": "blue"}))
    concluded = exchange("It is **blue**.", SOURCES, end=completed(pb.FINISH_REASON_MAX_TOKENS), question=results)
    stopped = exchange("Half")
    stopped.stop()
    return conversations.conversation(called, concluded, stopped)


def test_json_loses_nothing() -> None:
    talk = conversation()
    records = json.loads(as_json(talk))["exchanges"]
    assert len(records) == 3
    for record, one in zip(records, talk.exchanges, strict=True):
        messages = [ParseDict(message, Message()) for message in record["messages"]]
        assert messages == [one.question, one.turn.message]
        assert ParseDict(record["asked"], pb.GenerateRequest()) == one.asked
        assert [ParseDict(grounding, pb.Grounding()) for grounding in record["grounding"]] == one.groundings
        assert [chunk["after"] for chunk in record["chunks"]] == [piece.after for piece in one.pieces]
    assert ParseDict(records[0]["completed"], pb.Completed()) == completed()
    assert records[0]["asked"]["config"] == {"temperature": 0.0}
    assert (records[2]["completed"], records[2]["problem"]) == (None, STOPPED)


def test_markdown_reads_like_the_conversation() -> None:
    assert as_markdown(conversation()) == MARKDOWN


def test_an_empty_conversation_is_a_file_too() -> None:
    assert json.loads(as_json(Conversation())) == {"exchanges": []}
    assert as_markdown(Conversation()) == "\n"


def test_a_models_words_end_no_block_of_markdown() -> None:
    one: Exchange = exchange(tool_call("f", {"x": "```\n# Title"}), end=completed())
    assert "\n```\n# Title" not in as_markdown(conversations.conversation(one))


MARKDOWN = """\
## Question

*image/png, 7 bytes*

*application/pdf, gs://b/a.pdf*

What is this?

## Answer of fake-1

<details><summary>Thoughts</summary>

Hm.

</details>

Let me see.

Calls `look`:

```json
{
  "at": [
    1,
    2.5,
    null,
    true
  ]
}
```

*stop · first chunk 2.00 s · 1 chunk · 2 tokens/s · 5 tokens in, 7 out*

## Results

Result of `look`:

```json
{
  "seen": "blue"
}
```

## Answer of fake-1

It is **blue**.

Sources:

1. A page <https://example.org/a>

**The answer was cut: it reached the token limit.**

*max tokens · first chunk 1.00 s · 1 chunk · 2 tokens/s · 5 tokens in, 7 out*

## Question

Why?

## Answer

Half

**Stopped: this answer is incomplete.**
"""
