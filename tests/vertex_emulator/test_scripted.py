"""Each thing a script can say, as a caller sees it."""

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.vertex_emulator.conftest import Client, model, next_text
from vertex_emulator import script as s
from vertex_emulator.emulator import Emulator
from vertex_emulator.protos import prediction_pb2 as pb
from vertex_emulator.script import ScriptError, answer

STOP = pb.Candidate.STOP


async def test_an_emulator_without_a_script_answers_something(client: Client) -> None:
    told = await client.ask()
    assert told.text == "This answer comes from the Vertex emulator; give it a script to change it."
    assert len(told.chunks) == 5
    assert told.finish_reasons[-1] == STOP


async def test_texts_arrive_piece_by_piece_and_the_last_tells_the_finish_reason(
    emulator: Emulator, client: Client
) -> None:
    emulator.script.play(answer("a", "b", "c"))
    told = await client.ask()
    assert told.texts == ["a", "b", "c"]
    assert told.finish_reasons == [0, 0, STOP]
    assert {chunk.candidates[0].content.role for chunk in told.chunks} == {"model"}


async def test_every_chunk_tells_the_response_id_the_model_and_when_it_began(
    emulator: Emulator, client: Client
) -> None:
    emulator.script.play(answer("a", "b", uses=2))
    first = await client.ask(model="projects/p/locations/l/publishers/google/models/gemini-x")
    second = await client.ask()
    assert {chunk.model_version for chunk in first.chunks} == {"gemini-x"}
    assert len({chunk.response_id for chunk in first.chunks}) == 1
    assert first.chunks[0].response_id != second.chunks[0].response_id
    assert abs(first.chunks[0].create_time.ToSeconds() - time.time()) < 60


async def test_usage_grows_and_ends_at_the_given_figures(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer(s.thought("t"), "a", "b", usage=s.usage(7, 10, thoughts=5, cached=3)))
    told = await client.ask()
    assert told.usages == [(7, 0, 5, 3, 12), (7, 5, 5, 3, 17), (7, 10, 5, 3, 22)]


async def test_usage_is_estimated_where_the_script_gives_none(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer("12345678", "9"))
    told = await client.ask("Hello", system_instruction=model("Be nice"))
    assert told.usages == [(3, 1, 0, 0, 4), (3, 3, 0, 0, 6)]


async def test_usage_can_be_left_untold(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer("a", usage=s.Usage(untold=True)))
    told = await client.ask()
    assert not told.chunks[0].HasField("usage_metadata")


async def test_thoughts_are_marked(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer(s.thought("hm"), "a"))
    told = await client.ask()
    assert [chunk.candidates[0].content.parts[0].thought for chunk in told.chunks] == [True, False]


@pytest.mark.parametrize("finish", [*pb.Candidate.FinishReason.values()[1:], 99])
async def test_any_finish_reason_can_be_told(emulator: Emulator, client: Client, finish: int) -> None:
    ratings = [pb.SafetyRating(category=pb.HARM_CATEGORY_HARASSMENT, probability=pb.SafetyRating.HIGH, blocked=True)]
    emulator.script.play(answer("a", finish=finish, finish_message="why", safety_ratings=ratings))
    candidate = (await client.ask()).chunks[-1].candidates[0]
    assert (candidate.finish_reason, candidate.finish_message) == (finish, "why")
    assert list(candidate.safety_ratings) == ratings


async def test_an_answer_can_end_without_a_finish_reason(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer("a", "b", finish=None))
    told = await client.ask()
    assert (told.text, told.finish_reasons, told.error) == ("ab", [0, 0], None)


async def test_an_answer_can_end_without_a_message(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer(s.end()))
    told = await client.ask()
    assert (told.chunks, told.error) == ([], None)


async def test_an_empty_answer_is_one_chunk_with_a_finish_reason(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer())
    told = await client.ask()
    assert (told.texts, told.finish_reasons) == ([""], [STOP])


async def test_a_response_is_sent_as_it_is_and_the_finish_reason_follows(emulator: Emulator, client: Client) -> None:
    content = pb.Content(role="model", parts=[pb.Part(text="a"), pb.Part(text="b")])
    literal = pb.GenerateContentResponse(candidates=[pb.Candidate(content=content, avg_logprobs=-1)])
    emulator.script.play(answer(s.response(literal)))
    told = await client.ask()
    assert told.chunks[0] == literal
    assert told.finish_reasons == [0, STOP]


async def test_a_response_that_finishes_is_the_last(emulator: Emulator, client: Client) -> None:
    literal = pb.GenerateContentResponse(candidates=[pb.Candidate(finish_reason=pb.Candidate.SPII)])
    emulator.script.play(answer("a", s.response(literal)))
    assert (await client.ask()).finish_reasons == [0, pb.Candidate.SPII]


async def test_a_story_with_everything_a_model_can_say(emulator: Emulator, client: Client) -> None:
    said = "Bücher: Baseball."
    emulator.script.play(
        answer(
            s.thought("A library?"),
            s.thought("Yes.", signature=b"why"),
            s.function_call("search", {"query": "books", "limit": 3}, call_id="7", signature=b"sig"),
            s.logprobs(("Bücher", -0.5, {"Bücher": -0.5, "Books": -1.5}), (": ", -0.25)),
            s.text("Baseball.", signature=b"end"),
            s.citations(s.citation(0, 7, "https://example.org/b", title="B", license="CC0")),
            s.grounding(
                ("https://example.org/a", "A"), queries=["books"], supports=[("Baseball", [0])], answer_so_far=said
            ),
            finish="MAX_TOKENS",
            safety_ratings=[s.safety("HARASSMENT", "LOW", score=0.25, severity="LOW")],
            usage=s.usage(4, 6, thoughts=2, cached=1),
        )
    )
    told = await client.ask()
    candidates = [chunk.candidates[0] for chunk in told.chunks]
    parts = [candidate.content.parts[0] for candidate in candidates]
    assert [(part.text, part.thought, part.thought_signature) for part in parts] == [
        ("A library?", True, b""),
        ("Yes.", True, b"why"),
        ("", False, b"sig"),
        ("Bücher: ", False, b""),
        ("Baseball.", False, b"end"),
        ("", False, b""),
        ("", False, b""),
    ]
    call = parts[2].function_call
    assert (call.name, call.id, dict(call.args)) == ("search", "7", {"query": "books", "limit": 3})
    chosen = candidates[3].logprobs_result.chosen_candidates
    assert [(one.token, one.log_probability) for one in chosen] == [("Bücher", -0.5), (": ", -0.25)]
    (top,) = candidates[3].logprobs_result.top_candidates
    assert [(one.token, one.log_probability) for one in top.candidates] == [("Bücher", -0.5), ("Books", -1.5)]
    (quoted,) = candidates[5].citation_metadata.citations
    assert (quoted.start_index, quoted.end_index, quoted.license) == (0, 7, "CC0")
    grounded = candidates[6].grounding_metadata
    assert list(grounded.web_search_queries) == ["books"]
    assert (grounded.grounding_chunks[0].web.uri, grounded.grounding_chunks[0].web.title) == (
        "https://example.org/a",
        "A",
    )
    support = grounded.grounding_supports[0]
    assert said.encode()[support.segment.start_index : support.segment.end_index] == b"Baseball"
    assert list(support.grounding_chunk_indices) == [0]
    assert told.finish_reasons == [0] * 6 + [pb.Candidate.MAX_TOKENS]
    assert candidates[6].safety_ratings[0].category == pb.HARM_CATEGORY_HARASSMENT
    assert [usage[1:3] for usage in told.usages] == [(0, 1), (0, 2), (0, 2), (3, 2), (6, 2), (6, 2), (6, 2)]


async def test_a_function_call_can_be_the_last_word(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer(s.function_call("add")), answer(s.function_call("add"), s.function_call("sub")))
    assert (await client.ask()).finish_reasons == [STOP]
    told = await client.ask()
    assert [chunk.candidates[0].content.parts[0].function_call.name for chunk in told.chunks] == ["add", "sub"]
    assert told.finish_reasons == [0, STOP]


async def test_any_part_can_be_said(emulator: Emulator, client: Client) -> None:
    picture = pb.Part(inline_data=pb.Blob(mime_type="image/png", data=b"x"))
    emulator.script.play(answer(s.part(picture), s.part(pb.Part(thought_signature=b"alone"))))
    told = await client.ask()
    assert [chunk.candidates[0].content.parts[0] for chunk in told.chunks] == [
        picture,
        pb.Part(thought_signature=b"alone"),
    ]


async def test_a_blocked_prompt_has_a_reason_and_no_candidates(emulator: Emulator, client: Client) -> None:
    rating = s.safety("HATE_SPEECH", "HIGH", blocked=True)
    emulator.script.play(answer(s.blocked("PROHIBITED_CONTENT", "no", safety_ratings=[rating])))
    told = await client.ask()
    assert len(told.chunks) == 1
    assert not told.chunks[0].candidates
    feedback = told.chunks[0].prompt_feedback
    assert feedback.block_reason == pb.GenerateContentResponse.PromptFeedback.PROHIBITED_CONTENT
    assert feedback.block_reason_message == "no"
    assert list(feedback.safety_ratings) == [rating]
    assert told.usages == [(2, 0, 0, 0, 2)]


async def test_text_that_is_no_utf8_reaches_the_wire(emulator: Emulator, client: Client) -> None:
    surrogate = "\ud800".encode(errors="surrogatepass")
    emulator.script.play(answer(s.text_bytes(surrogate)), answer(s.text_bytes("é".encode())))
    raw: Any = client.channel.unary_stream("/google.cloud.aiplatform.v1.PredictionService/StreamGenerateContent")
    (message,) = [message async for message in raw(b"", timeout=30)]
    assert surrogate in message
    assert (await client.ask()).text == "é"


async def test_a_message_that_is_no_protobuf_reaches_the_wire(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer(s.message_bytes(b"\xff\xff"), finish=None))
    raw: Any = client.channel.unary_stream("/google.cloud.aiplatform.v1.PredictionService/StreamGenerateContent")
    assert [message async for message in raw(b"", timeout=30)] == [b"\xff\xff"]


# ---- statuses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_any_status_can_be_told(emulator: Emulator, client: Client, code: grpc.StatusCode) -> None:
    emulator.script.play(answer(s.status(code, "why")))
    error = (await client.ask()).error
    assert error is not None
    assert (error.code(), error.details()) == (code, "why")
    assert (emulator.calls[-1].code, emulator.calls[-1].by_caller) == (code, False)


async def test_a_status_carries_details_as_vertex_sends_them(emulator: Emulator, client: Client) -> None:
    retry, info = error_details_pb2.RetryInfo(), error_details_pb2.ErrorInfo(reason="R", domain="d")
    retry.retry_delay.FromMilliseconds(20)
    emulator.script.play(answer(s.status("UNAVAILABLE", "no", retry, info, trailing_metadata={"x-more": "1"})))
    error = (await client.ask()).error
    assert error is not None
    assert ("x-more", "1") in tuple(error.trailing_metadata())
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # made for both kinds of call
    assert status is not None
    assert (status.code, status.message) == (14, "no")
    told_retry, told_info = error_details_pb2.RetryInfo(), error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(told_retry)
    assert status.details[1].Unpack(told_info)
    assert (told_retry, told_info) == (retry, info)


async def test_a_status_comes_before_the_headers_unless_they_are_sent(emulator: Emulator, client: Client) -> None:
    emulator.script.play(
        answer(s.status("UNAVAILABLE")), answer(s.headers({"x-one": "1"}), s.wait_for("go"), s.status("UNAVAILABLE"))
    )
    without = client.stream()
    assert await without.code() is grpc.StatusCode.UNAVAILABLE
    assert tuple(await without.initial_metadata()) == ()
    call = client.stream()
    # The gate is still closed: these headers come by themselves.
    assert ("x-one", "1") in tuple(await call.initial_metadata())
    emulator.open_gate("go")
    assert await call.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_status_can_come_after_some_pieces(emulator: Emulator, client: Client, pieces: int) -> None:
    emulator.script.play(answer(*"a" * pieces, s.status("INTERNAL")))
    told = await client.ask()
    assert told.text == "a" * pieces
    assert told.finish_reasons == [0] * pieces
    assert told.error is not None
    assert told.error.code() is grpc.StatusCode.INTERNAL


# ---- time --------------------------------------------------------------------------------------------------------


async def test_a_gate_holds_the_answer_until_it_is_opened(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer("a", s.wait_for("second"), "b"))
    call = client.stream()
    assert await next_text(call) == "a"
    await emulator.wait_until(lambda emulator: emulator.calls[0].waiting_for == "second")
    assert emulator.calls[0].pieces_sent == 1
    emulator.open_gate("second")
    assert await next_text(call) == "b"
    assert emulator.calls[0].waiting_for == ""
    assert await call.code() is grpc.StatusCode.OK


async def test_an_open_gate_lets_later_answers_pass_until_the_reset(emulator: Emulator, client: Client) -> None:
    emulator.open_gate("g")
    emulator.script.play(answer(s.wait_for("g"), "a"))
    assert (await client.ask()).text == "a"
    emulator.reset()
    emulator.script.play(answer(s.wait_for("g"), "a"))
    call = client.stream()
    await emulator.wait_until(lambda emulator: any(one.waiting_for == "g" for one in emulator.open_calls))
    call.cancel()


async def test_a_delay_passes_before_the_next_piece(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer(s.delay(0.2), "a"))
    begun = time.monotonic()
    assert (await client.ask()).text == "a"
    assert time.monotonic() - begun >= 0.19


async def test_steps_repeat_without_a_list_of_them(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer("<", s.repeat(1000, "a", "b"), usage=s.usage(1, 2001)))
    told = await client.ask()
    assert told.text == "<" + "ab" * 1000
    assert told.finish_reasons == [0] * 2000 + [STOP]
    candidates = [usage[1] for usage in told.usages]
    assert candidates == sorted(candidates)
    assert candidates[-1] == 2001


async def test_an_interval_keeps_a_fixed_clock(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer(s.repeat(51, "a", interval=0.004)))
    begun = time.monotonic()
    assert len((await client.ask()).chunks) == 51
    assert time.monotonic() - begun >= 0.199


async def test_an_endless_answer_goes_on_until_the_caller_leaves(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer(s.repeat(0, "a", interval=0.001)))
    call = client.stream()
    for _ in range(20):
        await call.read()
    call.cancel()
    await emulator.wait_until(lambda emulator: not emulator.open_calls)
    assert emulator.calls[0].by_caller


async def test_silence_lasts_until_the_caller_ends_the_call(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer("a", s.silence()))
    told = await client.ask(timeout=0.3)
    assert told.text == "a"
    assert told.error is not None
    assert told.error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await emulator.wait_until(lambda emulator: not emulator.open_calls)
    assert emulator.calls[0].by_caller


# ---- which answer ------------------------------------------------------------------------------------------------


async def test_answers_are_used_in_order_and_then_the_default(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer("1"), answer("2", uses=2), default=answer("d"))
    assert [(await client.ask()).text for _ in range(5)] == ["1", "2", "2", "d", "d"]
    assert emulator.script.unplayed == 0


async def test_an_answer_can_be_meant_for_a_model_or_a_question(emulator: Emulator, client: Client) -> None:
    emulator.script.play(
        answer("pro", model="gemini-pro", uses=0), answer("ball", user_text="baseball", uses=0), default=answer("else")
    )
    assert (await client.ask(model="projects/p/locations/l/publishers/google/models/gemini-pro")).text == "pro"
    assert (await client.ask("What is baseball?")).text == "ball"
    assert (await client.ask("What is baseball?", model("A game."), "Who won?")).text == "else"


async def test_a_script_that_cannot_be_played_changes_nothing(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer("a"))
    with pytest.raises(ScriptError):
        emulator.script.load(s.Script(answers=[answer(s.delay(-1))]))
    assert (await client.ask()).text == "a"


# ---- the other methods -------------------------------------------------------------------------------------------


async def test_generate_content_gives_the_same_answer_in_one_piece(emulator: Emulator, client: Client) -> None:
    call = s.function_call("add", {"a": 1})
    emulator.script.play(answer(s.thought("h"), s.thought("m"), "a", "b", call, usage=s.usage(1, 4, thoughts=2)))
    whole = await client.generate()
    parts = whole.candidates[0].content.parts
    assert [(part.text, part.thought) for part in parts[:2]] == [("hm", True), ("ab", False)]
    assert parts[2].function_call.name == "add"
    assert whole.candidates[0].finish_reason == STOP
    assert whole.usage_metadata.total_token_count == 7
    assert (emulator.calls[0].method, emulator.calls[0].pieces_sent) == ("GenerateContent", 1)


async def test_generate_content_can_fail(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer("a", s.status("ABORTED", "no")))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.generate()
    assert caught.value.code() is grpc.StatusCode.ABORTED


async def test_count_tokens_is_estimated_and_uses_up_no_answer(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer("a"))
    counted = await client.count_tokens("12345")
    assert (counted.total_tokens, counted.total_billable_characters) == (2, 5)
    assert (await client.ask()).text == "a"


async def test_count_tokens_can_be_scripted(emulator: Emulator, client: Client) -> None:
    emulator.script.play(
        answer(s.tokens(42), method="CountTokens"), answer(s.status("UNAVAILABLE"), method="CountTokens")
    )
    assert (await client.count_tokens()).total_tokens == 42
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.count_tokens()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_request_that_is_no_protobuf_is_refused_and_recorded(emulator: Emulator, client: Client) -> None:
    raw: Any = client.channel.unary_unary("/google.cloud.aiplatform.v1.PredictionService/GenerateContent")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw(b"\xff\xff", timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert emulator.calls[0].request is None


async def test_only_so_many_streams_run_at_once_on_a_connection() -> None:
    async with Emulator(max_concurrent_streams=2) as emulator:
        emulator.script.play(answer(s.wait_for("go"), "a", uses=0))
        async with grpc.aio.insecure_channel(emulator.address) as channel:
            # A client learns the limit with the connection's settings, so one call comes first.
            await Client(channel).count_tokens()
            asks = [asyncio.create_task(Client(channel).ask()) for _ in range(3)]
            await emulator.wait_until(lambda emulator: len(emulator.open_calls) == 2)
            emulator.open_gate("go")
            assert [told.text for told in await asyncio.gather(*asks)] == ["a", "a", "a"]
    by_end = sorted((call.ended or 0, call.started) for call in emulator.calls[1:])
    assert max(call.started for call in emulator.calls) >= by_end[0][0]
