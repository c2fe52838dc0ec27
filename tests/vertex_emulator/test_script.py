import json

import pytest
from google.rpc import error_details_pb2

from tests.vertex_emulator.conftest import Write
from vertex_emulator import script as s
from vertex_emulator.protos import prediction_pb2 as pb
from vertex_emulator.protos.script_pb2 import Answer, Script, Step
from vertex_emulator.script import ScriptError, answer


def test_json_says_the_same_as_the_builders(script_file: Write) -> None:
    path = script_file(
        {
            "answers": [
                {
                    "uses": 2,
                    "when": {"model": "gemini", "userText": "ball", "method": "GenerateContent"},
                    "steps": [
                        {"text": "a"},
                        {"thought": "t"},
                        {"delay": "0.25s"},
                        {"waitFor": "gate"},
                        {"repeat": {"count": 3, "steps": [{"text": "x"}], "interval": "0.002s"}},
                    ],
                    "finishReason": 99,
                    "usage": {"prompt": 1, "candidates": 2, "thoughts": 3, "cached": 1},
                }
            ]
        }
    )
    built = answer(
        "a",
        s.thought("t"),
        s.delay(0.25),
        s.wait_for("gate"),
        s.repeat(3, "x", interval=0.002),
        finish=99,
        usage=s.usage(1, 2, thoughts=3, cached=1),
        uses=2,
        model="gemini",
        user_text="ball",
        method="GenerateContent",
    )
    assert s.load(path) == Script(answers=[built])


def test_json_says_in_googles_words_what_the_builders_say(script_file: Write) -> None:
    steps = [
        {"part": {"text": "Hm.", "thought": True, "thoughtSignature": "c2ln"}},
        {"part": {"functionCall": {"id": "7", "name": "add", "args": {"a": 1}}, "thoughtSignature": "c2ln"}},
        {"logprobs": {"chosenCandidates": [{"token": "Ah", "logProbability": -0.5}]}},
        {"citations": {"citations": [{"startIndex": 1, "endIndex": 2, "uri": "u"}]}},
        {
            "grounding": {
                "webSearchQueries": ["q"],
                "groundingChunks": [{"web": {"uri": "u", "title": "t"}}],
                "groundingSupports": [{"segment": {"text": "Ah"}, "groundingChunkIndices": [0]}],
            }
        },
    ]
    built = answer(
        s.thought("Hm.", signature=b"sig"),
        s.function_call("add", {"a": 1}, call_id="7", signature=b"sig"),
        s.logprobs(("Ah", -0.5)),
        s.citations(s.citation(1, 2, "u")),
        s.grounding(("u", "t"), queries=["q"], supports=[("Ah", [0])]),
    )
    assert list(s.load(script_file({"answers": [{"steps": steps}]})).answers[0].steps) == list(built.steps)


def test_json_names_details_by_their_type(script_file: Write) -> None:
    details = [
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.5s"},
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "RATE_LIMIT_EXCEEDED",
            "domain": "googleapis.com",
        },
    ]
    path = script_file({"answers": [{"steps": [{"status": {"code": "RESOURCE_EXHAUSTED", "details": details}}]}]})
    status = s.load(path).answers[0].steps[0].status
    retry, info = error_details_pb2.RetryInfo(), error_details_pb2.ErrorInfo()
    assert status.code == 8
    assert status.details[0].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500
    assert status.details[1].Unpack(info)
    assert info.reason == "RATE_LIMIT_EXCEEDED"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("{", "Expecting"),
        ('{"answers": [{"stepz": []}]}', '"stepz" at "Script.answers[0]"'),
        ('{"answers": [{"finishReason": "HALT"}]}', "value HALT for enum"),
        ('{"answers": [{"steps": [{"delay": "soon"}]}]}', "delay"),
        ('{"answers": [{"steps": [{}]}]}', "answers[0].steps[0]: says nothing"),
        ('{"answers": [{"steps": [{"part": {}}]}]}', "answers[0].steps[0].part: is empty"),
        (
            '{"answers": [{"steps": [{"text": "a"}, {"headers": {}}]}]}',
            "answers[0].steps[1].headers: were sent with the first piece; put them before it",
        ),
        ('{"answers": [{"steps": [{"delay": "-1s"}]}]}', "answers[0].steps[0].delay: -1s is negative"),
        ('{"answers": [{"steps": [{"waitFor": ""}]}]}', "answers[0].steps[0].wait_for: wanted is the name"),
        (
            '{"answers": [{"steps": [{"status": {"code": "OK"}}]}]}',
            "answers[0].steps[0].status.code: 0 is no gRPC error",
        ),
        ('{"answers": [{"steps": [{"status": {"code": 77}}]}]}', "77 is no gRPC error"),
        (
            '{"answers": [{"steps": [{"status": {"code": 14, "httpStatus": 200}}]}]}',
            "status.http_status: 200 is no error",
        ),
        (
            '{"answers": [{"steps": [{"end": {}}, {"text": "a"}]}]}',
            "steps[0].end: ends the answer, so nothing may follow",
        ),
        ('{"defaultAnswer": {"steps": [{"repeat": {"count": 2}}]}}', "default_answer.steps[0].repeat.steps: is empty"),
        (
            '{"answers": [{"steps": [{"repeat": {"steps": [{"text": "a"}]}}, {"text": "b"}]}]}',
            "steps[0].repeat: ends the answer, so nothing may follow",
        ),
        (
            '{"answers": [{"steps": [{"repeat": {"count": 2, "steps": [{"silence": {}}]}}]}]}',
            "answers[0].steps[0].repeat.steps[0].silence: ends the answer, so it can't be repeated",
        ),
        (
            '{"answers": [{"steps": [{"repeat": {"count": 2, "interval": "-1s", "steps": [{"text": "a"}]}}]}]}',
            "interval: -1s is negative",
        ),
        ('{"answers": [{"when": {"method": "Predict"}}]}', "answers[0].when.method: 'Predict' is none of"),
        ('{"answers": [{"steps": [{"tokens": {"totalTokens": 1}}]}]}', "answers[0].steps[0].tokens: only where"),
        (
            '{"answers": [{"when": {"method": "CountTokens"}, "steps": [{"text": "a"}]}]}',
            "answers[0].steps[0].text: is no answer to CountTokens",
        ),
    ],
)
def test_a_script_that_cannot_be_played_is_refused_with_the_place_and_the_reason(
    script_file: Write, script: str, words: str
) -> None:
    path = script_file(script)
    with pytest.raises(ScriptError) as caught:
        s.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


def test_a_missing_file_is_named(script_file: Write) -> None:
    path = script_file("{}").with_name("missing.json")
    with pytest.raises(ScriptError, match=r"missing\.json: No such file"):
        s.load(path)


def test_a_file_that_is_no_text_is_named(script_file: Write) -> None:
    path = script_file("{}")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ScriptError, match="utf-8"):
        s.load(path)


def test_every_step_has_a_builder() -> None:
    built = [
        s.thought("a"),
        s.function_call("add", {"a": 1}),
        s.grounding(),
        s.citations(),
        s.logprobs(("a", -1)),
        s.response(pb.GenerateContentResponse()),
        s.text_bytes(b"a"),
        s.message_bytes(b"a"),
        s.delay(1),
        s.wait_for("a"),
        s.headers(),
        s.repeat(1, "a"),
        s.status("ABORTED"),
        s.blocked(),
        s.silence(),
        s.cut(),
        s.blackhole(),
        s.end(),
        s.tokens(1),
        *answer("a").steps,
    ]
    assert {step.WhichOneof("step") for step in built} == {field.name for field in Step.DESCRIPTOR.fields}


def test_an_answer_in_json_needs_nothing_but_its_steps() -> None:
    script = s.parse(json.dumps({"answers": [{"steps": [{"text": "Hello"}]}]}))
    assert script == Script(answers=[Answer(steps=[Step(text="Hello")])])
