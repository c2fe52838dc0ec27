"""Figures that make no sense, in what Gemini's API and Chat Completions say: read past, never a bug of ours."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import errors
from service.contract import encode
from service.generation.events import Event, Finished, FinishReason
from service.providers.chat_completions import chunks
from service.providers.gemini import answers
from tests.providers.conftest import Open, Upstream
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator.protos import prediction_pb2 as google
from vertex_emulator.script import answer, end, response

Json = Mapping[str, Any]

ANY_NUMBER: st.SearchStrategy[Any] = st.one_of(
    st.integers(),
    st.sampled_from([-1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, -(2**31)]),
    st.floats(),
    st.sampled_from(["3", "-Infinity", "NaN", "", None, True, [], {}]),
)

CANDIDATE = st.fixed_dictionaries(
    {"finishReason": st.just("STOP")},
    optional={
        "groundingMetadata": st.fixed_dictionaries(
            {
                "groundingChunks": st.just([{"web": {"uri": "u", "title": "t"}}]),
                "groundingSupports": st.lists(
                    st.fixed_dictionaries(
                        {"groundingChunkIndices": st.lists(ANY_NUMBER, max_size=3)},
                        optional={
                            "segment": st.fixed_dictionaries(
                                {"text": st.just("x")}, optional={"startIndex": ANY_NUMBER, "endIndex": ANY_NUMBER}
                            )
                        },
                    ),
                    max_size=2,
                ),
            }
        ),
        "citationMetadata": st.fixed_dictionaries(
            {
                "citations": st.lists(
                    st.fixed_dictionaries(
                        {"uri": st.just("u")}, optional={"startIndex": ANY_NUMBER, "endIndex": ANY_NUMBER}
                    ),
                    max_size=2,
                )
            }
        ),
        "logprobsResult": st.fixed_dictionaries(
            {
                "chosenCandidates": st.lists(
                    st.fixed_dictionaries({"token": st.just("x")}, optional={"logProbability": ANY_NUMBER}), max_size=2
                ),
                "topCandidates": st.lists(
                    st.fixed_dictionaries(
                        {
                            "candidates": st.lists(
                                st.fixed_dictionaries({"token": st.just("x"), "logProbability": ANY_NUMBER}), max_size=2
                            )
                        }
                    ),
                    max_size=2,
                ),
            }
        ),
    },
)

USAGE = st.dictionaries(st.sampled_from(sorted(answers._COUNTS.values())), ANY_NUMBER)


def encoded(*events: Event) -> list[pb.GenerateResponse]:
    """As callers get them."""
    told = encode.Answer(generation_id="g", request_id="r")
    return [pb.GenerateResponse.FromString(told.encode(event).SerializeToString()) for event in events]


@given(candidate=CANDIDATE, usage=USAGE)
def test_no_figure_of_geminis_is_a_bug_of_ours(candidate: Json, usage: Json) -> None:
    said = {"candidates": [candidate], "usageMetadata": usage}
    answer = answers.Answer()
    with suppress(errors.UpstreamFault):
        encoded(*answer.read(said))
    encoded(answer.finished())


def test_an_index_that_makes_sense_is_told_beside_one_that_does_not() -> None:
    support = {"groundingChunkIndices": [-1, 0, 2**40], "segment": {"text": "x", "startIndex": -1, "endIndex": 1}}
    found = {"groundingChunks": [{"web": {"uri": "u"}}], "groundingSupports": [support]}
    said = {"candidates": [{"groundingMetadata": found, "finishReason": "STOP"}]}
    ((told,),) = [message.grounding.supports for message in encoded(*answers.Answer().read(said))]
    assert list(told.source_indices) == [0]
    assert not told.HasField("start_index")
    assert told.end_index == 1


def page(number: int) -> Json:
    return {"web": {"uri": f"https://{number}.example"}}


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([([0, 1], [])], [(["0", "1"], [])]),
        ([([0, 1], []), ([], [1, 0])], [(["0", "1"], []), (["0", "1"], [1, 0])]),  # sources first, then what they bear
        ([([0], []), ([1], []), ([], [1])], [(["0"], []), (["1"], []), (["0", "1"], [1])]),  # one after the other
        ([([0], []), ([0, 1], []), ([], [1])], [(["0"], []), (["0", "1"], []), (["0", "1"], [1])]),  # all so far
        ([([0, 1], []), ([2], [0])], [(["0", "1"], []), (["2"], [0])]),  # its own
        ([([0], []), ([1], [0]), ([], [1])], [(["0"], []), (["1"], [0]), (["0", "1"], [1])]),
        ([([], [0])], [([], [])]),  # of nothing
        ([([0], [0, 7])], [(["0"], [0])]),
        ([([], [0]), ([0], [])], [(["0"], [0])]),  # what they bear first
        ([([], [1]), ([0], []), ([1], [])], [(["0"], []), (["0", "1"], [1])]),
    ],
)
def test_what_an_answer_rests_on_points_to_the_sources_told_so_far(
    messages: list[tuple[list[int], list[int]]], told: list[tuple[list[str], list[int]]]
) -> None:
    answer = answers.Answer()
    heard = []
    for number, (sources, places) in enumerate(messages, start=1):
        supports = [{"groundingChunkIndices": places, "segment": {"text": "x"}}] if places else []
        found = {"groundingChunks": list(map(page, sources)), "groundingSupports": supports}
        end = {"finishReason": "STOP"} if number == len(messages) else {}  # no more sources will come
        for message in encoded(*answer.read({"candidates": [{"groundingMetadata": found, **end}]})):
            uris = [one.uri.removeprefix("https://").removesuffix(".example") for one in message.grounding.sources]
            heard.append((uris, [place for one in message.grounding.supports for place in one.source_indices]))
    assert heard == told


@given(tokens=st.integers())
def test_a_count_is_one_that_callers_can_be_told_or_upstreams_fault(tokens: int) -> None:
    try:
        assert pb.CountTokensResponse(total_tokens=answers.total(tokens)).total_tokens == tokens
    except errors.UpstreamFault:
        assert not 0 <= tokens < 2**32


@given(figures=st.lists(ANY_NUMBER, min_size=5, max_size=5))
def test_no_usage_of_chat_completions_is_a_bug_of_ours(figures: list[Any]) -> None:
    prompt, completion, total, reasoning, cached = figures
    told = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    usage = chunks.usage(told)
    encoded(Finished(reason=FinishReason.STOP, upstream_reason="stop", usage=usage))


@pytest.fixture(params=["vertex", "genai"])
async def upstream(request: pytest.FixtureRequest, open_provider: Open) -> Upstream:
    return await open_provider(request.param)


@hypothesis.settings(max_examples=15, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_no_figure_that_a_message_of_vertex_ai_can_hold_is_a_bug_of_ours(
    upstream: Upstream, data: st.DataObject
) -> None:
    whole = st.integers(-(2**31), 2**31 - 1)
    message = google.GenerateContentResponse()
    candidate = message.candidates.add(finish_reason=google.Candidate.STOP)
    candidate.content.parts.add(text="a")
    support = candidate.grounding_metadata.grounding_supports.add(grounding_chunk_indices=data.draw(st.lists(whole)))
    support.segment.start_index, support.segment.end_index = data.draw(whole), data.draw(whole)
    candidate.citation_metadata.citations.add(uri="u", start_index=data.draw(whole), end_index=data.draw(whole))
    chosen = candidate.logprobs_result.chosen_candidates.add(token="a")
    chosen.log_probability = data.draw(st.floats(width=32))
    message.usage_metadata.prompt_token_count = data.draw(whole)
    upstream.emulator.script.play(answer(response(message), end()))
    messages = await upstream.ask()
    assert messages[-1].completed.finish_reason == pb.FINISH_REASON_STOP
