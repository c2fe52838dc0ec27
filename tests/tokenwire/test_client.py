import socket
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import get_args, get_type_hints

import grpc
import grpc_testing
import pytest
from google.rpc.error_details_pb2 import BadRequest

from tests.tokenwire.fake_service import (
    MODELS,
    UNFINISHED,
    FakeService,
    Refusal,
    Running,
    completed,
    said,
    thought,
    tool_call,
)
from tokenwire import (
    Answer,
    BusyError,
    CallCancelledError,
    Client,
    DeadlineError,
    GenerationConfigDict,
    IncompleteError,
    InvalidRequestError,
    TokenwireError,
    UnavailableError,
    UnfinishedError,
    default_address,
    errors,
    function,
    model,
    struct,
    tool,
    tool_result,
    user,
)
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.config_pb2 import (
    HARM_BLOCK_THRESHOLD_OFF,
    HARM_CATEGORY_HARASSMENT,
    GenerationConfig,
    SafetySetting,
    Tool,
    ToolChoice,
)
from tokenwire.v1.content_pb2 import ROLE_MODEL, Message

SERVICE = pb.DESCRIPTOR.services_by_name["GenerationService"]
GENERATE = SERVICE.methods_by_name["Generate"]


@pytest.fixture
def client(service: FakeService) -> Iterator[Client]:
    with Client(service.address) as client:
        yield client


class Played:
    """grpcio-testing's fake channel, with this test as the server."""

    def __init__(self) -> None:
        self.channel = grpc_testing.channel([SERVICE], grpc_testing.strict_fake_time(0))
        self.client = Client("the fake", channel=self.channel)

    def answer(self, *said: pb.GenerateResponse, code: grpc.StatusCode = grpc.StatusCode.OK) -> Answer:
        answer = self.client.generate("What is baseball?")
        _, _, rpc = self.channel.take_unary_stream(GENERATE)
        rpc.send_initial_metadata(())
        for message in said:
            rpc.send_response(message)
        rpc.terminate((), code, "")
        return answer


@pytest.fixture
def played() -> Played:
    return Played()


# ---- the contract, with the fake channel as the server


def test_the_request_carries_what_was_asked(played: Played) -> None:
    played.client.generate(
        "And cricket?",
        messages=[user("What is baseball?"), model("A game.")],
        system_instruction="Be brief.",
        model="fake-2",
        config=GenerationConfig(temperature=0.0),
        request_id="r-1",
    )
    _, request, _ = played.channel.take_unary_stream(GENERATE)
    assert [(one.role, one.parts[0].text) for one in request.messages] == [(1, "What is baseball?"), (2, "A game.")]
    assert (request.prompt, request.system_instruction, request.model, request.request_id) == (
        "And cricket?",
        "Be brief.",
        "fake-2",
        "r-1",
    )
    assert request.config.HasField("temperature")
    assert not request.config.HasField("top_p")


def test_the_request_carries_tools_safety_and_labels(played: Played) -> None:
    weather = Tool(function_declarations=[function("weather", "Tells the weather.", {"type": "object"})])
    must = ToolChoice(mode=ToolChoice.MODE_ANY, allowed_function_names=["weather"])
    off = SafetySetting(category=HARM_CATEGORY_HARASSMENT, threshold=HARM_BLOCK_THRESHOLD_OFF)
    played.client.generate("x", tools=[weather], tool_choice=must, safety_settings=[off], labels={"team": "a"})
    _, request, _ = played.channel.take_unary_stream(GENERATE)
    assert request == pb.GenerateRequest(
        prompt="x", tools=[weather], tool_choice=must, safety_settings=[off], labels={"team": "a"}
    )


def test_a_config_may_be_a_dict(played: Played) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}
    config: GenerationConfigDict = {
        "temperature": 0.0,
        "top_k": None,
        "stop_sequences": ("a", "b"),
        "response_mime_type": "application/json",
        "response_schema": schema,
    }
    played.client.generate("x", config=config)
    _, request, _ = played.channel.take_unary_stream(GENERATE)
    assert request.config == GenerationConfig(
        temperature=0.0,
        stop_sequences=["a", "b"],
        response_mime_type="application/json",
        response_schema=struct(schema),
    )
    assert not request.config.HasField("top_k")


def test_a_config_has_the_fields_of_the_contract_with_their_types() -> None:
    kinds = {
        field.name: Iterable[str] if field.is_repeated else type(getattr(GenerationConfig(), field.name))
        for field in GenerationConfig.DESCRIPTOR.fields
    }
    told = get_type_hints(GenerationConfigDict)
    assert set(told) == set(kinds)
    for name, kind in kinds.items():
        assert kind in get_args(told[name]), name
        assert type(None) in get_args(told[name]), name


def test_a_key_that_no_config_has_is_a_value_error(played: Played) -> None:
    with pytest.raises(ValueError, match="temperture"):
        played.client.generate("x", config={"temperture": 0.0})  # type: ignore[arg-type]


def test_without_a_config_none_is_sent(played: Played) -> None:
    played.client.generate("x")
    _, request, _ = played.channel.take_unary_stream(GENERATE)
    assert request == pb.GenerateRequest(prompt="x")


def test_events_come_in_order_and_completed_is_the_last(played: Played) -> None:
    answer = played.answer(*said("Base", "ball.", completed()))
    assert [message.WhichOneof("event") for message in answer] == ["started", "text", "text", "completed"]
    assert answer.completed.finish_reason == pb.FINISH_REASON_STOP
    assert answer.pieces == 2


def test_text_gives_only_the_pieces_of_text(played: Played) -> None:
    assert list(played.answer(*said("Base", "ball.", completed())).text()) == ["Base", "ball."]


def test_the_answer_is_the_models_turn_while_it_comes_and_afterwards(played: Played) -> None:
    answer = played.answer(*said("Base", thought("Hm."), "ball.", completed()))
    assert answer.message == Message(role=ROLE_MODEL)
    next(answer.text())
    assert answer.message == model("Base")
    list(answer)
    assert [part.WhichOneof("data") for part in answer.message.parts] == ["text", "reasoning", "text"]


def test_an_event_of_a_newer_service_is_passed_on(played: Played) -> None:
    newer = pb.GenerateResponse(sequence=1)
    answer = played.answer(said()[0], newer, pb.GenerateResponse(sequence=2, completed=completed()))
    assert list(answer)[1] == newer


def test_a_stream_that_ends_well_without_completed_is_incomplete(played: Played) -> None:
    answer = played.answer(*said("Base", "ball."))
    with pytest.raises(IncompleteError, match=r"cut after 2 pieces; what you see is incomplete"):
        list(answer)
    with pytest.raises(IncompleteError):
        _ = answer.completed


def test_a_stream_without_any_message_is_incomplete(played: Played) -> None:
    with pytest.raises(IncompleteError):
        list(played.answer())


@pytest.mark.parametrize("sequence", [0, 1, 3])
def test_a_gap_or_a_repetition_is_never_passed_on(played: Played, sequence: int) -> None:
    answer = played.answer(*said("Base"), pb.GenerateResponse(sequence=sequence, text="ball"))
    seen: list[str] = []
    with pytest.raises(IncompleteError, match=f"Message {sequence} came where 2 was due"):
        seen.extend(answer.text())
    assert seen == ["Base"]


def test_nothing_may_come_after_completed(played: Played) -> None:
    answer = played.answer(*said("Base", completed(), "ball"))
    with pytest.raises(IncompleteError, match="after its end"):
        list(answer)
    with pytest.raises(IncompleteError):
        _ = answer.completed


def test_an_error_status_behind_completed_takes_it_back(played: Played) -> None:
    answer = played.answer(*said("Base", completed()), code=grpc.StatusCode.INTERNAL)
    seen: list[str] = []
    with pytest.raises(TokenwireError):
        seen.extend(str(message) for message in answer)
    with pytest.raises(IncompleteError):
        _ = answer.completed


@pytest.mark.parametrize(("reason", "error"), UNFINISHED.items(), ids=str)
def test_text_raises_for_every_finish_reason_but_stop(
    played: Played, reason: pb.FinishReason.ValueType, error: type[UnfinishedError]
) -> None:
    answer = played.answer(*said("Base", thought("Hm."), "ball", completed(reason)))
    seen: list[str] = []
    with pytest.raises(UnfinishedError) as caught:
        seen.extend(answer.text())
    assert type(caught.value) is error
    assert seen == ["Base", "ball"]
    assert (caught.value.text, caught.value.pieces) == ("Baseball", 2)
    assert caught.value.completed == answer.completed == completed(reason)
    assert caught.value.reason == pb.FinishReason.Name(reason).removeprefix("FINISH_REASON_")
    with pytest.raises(error):
        answer.raise_for_finish()


def test_every_finish_reason_but_stop_is_an_error() -> None:
    assert set(UNFINISHED) == set(pb.FinishReason.values()) - {pb.FINISH_REASON_STOP}


def test_a_finish_reason_of_tomorrow_is_an_error_too(played: Played) -> None:
    answer = played.answer(*said("Base", completed(pb.FinishReason.ValueType(99))))
    with pytest.raises(errors.OtherFinishError):
        list(answer.text())


def test_an_answer_that_is_done_raises_nothing(played: Played) -> None:
    answer = played.answer(*said("Base", "ball", completed()))
    assert list(answer.text()) == ["Base", "ball"]
    answer.raise_for_finish()


def test_without_the_check_text_ends_quietly(played: Played) -> None:
    answer = played.answer(*said("Base", completed(pb.FINISH_REASON_MAX_TOKENS)))
    assert list(answer.text(check=False)) == ["Base"]
    assert answer.completed.finish_reason == pb.FINISH_REASON_MAX_TOKENS


def test_an_answer_that_has_not_been_read_is_not_done(played: Played) -> None:
    answer = played.answer(*said("Base", "ball", completed()))
    next(answer.text())
    with pytest.raises(IncompleteError):
        answer.raise_for_finish()


def test_leaving_the_block_cancels_on_the_fake_channel_too(played: Played) -> None:
    with played.client.generate("x"):
        _, _, rpc = played.channel.take_unary_stream(GENERATE)
    rpc.cancelled()  # blocks until it is


# ---- on a real socket


def test_the_first_piece_is_handed_out_before_the_second_is_made(client: Client, service: FakeService) -> None:
    gate = threading.Event()
    service.will_answer("first", gate, "second", completed())
    with client.generate("x") as answer:
        text = answer.text()
        assert next(text) == "first"
        gate.set()
        assert list(text) == ["second"]
        assert answer.completed.usage.output_tokens == 7


def test_the_timeout_is_the_calls_deadline(client: Client, service: FakeService) -> None:
    with client.generate("x", timeout=60) as answer:
        list(answer)
    with client.generate("x") as answer:
        list(answer)
    first, second = service.deadlines
    assert first is not None
    assert 30 < first < 61
    # grpc says "none" by a very large number.
    assert second is None or second > 1e6


@pytest.mark.parametrize("pieces", [(), ("first",)])
def test_leaving_the_block_cancels_the_call(client: Client, service: FakeService, pieces: tuple[str, ...]) -> None:
    service.will_answer(*pieces, threading.Event())
    with client.generate("x") as answer:
        for wanted in pieces:
            assert next(answer.text()) == wanted
        assert service.arrived.wait(10)
        assert not service.cancelled.is_set()
    assert service.cancelled.wait(10)


def test_an_exception_in_the_block_cancels_the_call(client: Client, service: FakeService) -> None:
    service.will_answer("first", threading.Event())
    with pytest.raises(ZeroDivisionError), client.generate("x") as answer:
        _ = [1 / 0 for _ in answer.text()]
    assert service.cancelled.wait(10)


def test_another_thread_may_cancel_while_the_reader_waits(client: Client, service: FakeService) -> None:
    service.will_answer("first", threading.Event())
    with client.generate("x") as answer, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(list, answer)
        assert service.arrived.wait(10)
        answer.cancel()
        with pytest.raises(CallCancelledError):
            reading.result(10)
    assert service.cancelled.wait(10)


def test_cancelling_after_the_end_changes_nothing(client: Client) -> None:
    with client.generate("x") as answer:
        list(answer)
        answer.cancel()
    assert answer.completed.finish_reason == pb.FINISH_REASON_STOP


def test_closing_the_client_ends_its_calls(service: FakeService) -> None:
    service.will_answer(threading.Event())
    with Client(service.address) as client:
        client.generate("x")
        assert service.arrived.wait(10)
    assert service.cancelled.wait(10)


def test_closing_the_client_is_a_cancellation_by_this_side(service: FakeService) -> None:
    service.will_answer(threading.Event())
    with Client(service.address) as client:
        answer = client.generate("x")
        assert service.arrived.wait(10)
    with pytest.raises(CallCancelledError):
        list(answer)


def test_a_closed_client_takes_no_more_calls(client: Client) -> None:
    client.close()
    for call in (client.models, client.count_tokens, client.generate):
        with pytest.raises(RuntimeError, match="closed"):
            call()


@pytest.mark.parametrize("before", [(), ("Base",)], ids=["at once", "in mid-stream"])
def test_a_cancellation_that_nobody_here_asked_for_is_a_service_going_away(
    client: Client, service: FakeService, before: tuple[str, ...]
) -> None:
    service.will_answer(*before, Refusal(grpc.StatusCode.CANCELLED))
    with pytest.raises(UnavailableError, match="dropped the call") as caught, client.generate("x") as answer:
        list(answer)
    assert (caught.value.reason, caught.value.pieces) == ("CALL_DROPPED", len(before))
    service.refuses_to_count = Refusal(grpc.StatusCode.CANCELLED)
    with pytest.raises(UnavailableError, match="dropped the call"):
        client.count_tokens("x")


def test_a_borrowed_channel_is_left_open(service: FakeService) -> None:
    with grpc.insecure_channel(service.address) as channel:
        for _ in range(2):
            with Client(channel=channel) as client:
                assert client.models()


def test_the_deadline_is_told_in_words(client: Client, service: FakeService) -> None:
    service.will_answer("first", threading.Event())
    with pytest.raises(DeadlineError, match=r"not complete within 0.2 s"), client.generate("x", timeout=0.2) as answer:
        list(answer)


def test_a_refusal_keeps_its_code_reason_and_words(client: Client, service: FakeService) -> None:
    service.will_answer(Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY"))
    with pytest.raises(BusyError, match="busy") as caught, client.generate("x") as answer:
        list(answer)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY")
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_an_error_in_mid_stream_says_that_the_answer_was_cut(client: Client, service: FakeService) -> None:
    service.will_answer("a", "b", "c", Refusal(grpc.StatusCode.UNAVAILABLE, "UPSTREAM_CUT"))
    seen: list[str] = []
    with pytest.raises(IncompleteError, match="cut after 3 pieces"), client.generate("x") as answer:
        seen.extend(answer.text())
    assert seen == ["a", "b", "c"]
    with pytest.raises(IncompleteError):
        _ = answer.completed


@pytest.mark.parametrize("check", [True, False])
def test_a_cut_answer_raises_with_its_text_and_never_reads_as_done_afterwards(
    client: Client, service: FakeService, *, check: bool
) -> None:
    service.will_answer("Base", "ball", Refusal(grpc.StatusCode.INTERNAL, "INTERNAL"))
    with client.generate("x") as answer:
        with pytest.raises(TokenwireError) as caught:
            list(answer.text(check=check))
        assert caught.value.text == "Baseball"
        with pytest.raises(IncompleteError) as again:
            list(answer.text())
        assert again.value.text == "Baseball"


def test_a_service_that_dies_in_mid_stream_leaves_an_incomplete_answer() -> None:
    with Running() as service, Client(service.address) as client:
        service.will_answer("a", threading.Event())
        with client.generate("x") as answer:
            text = answer.text()
            assert next(text) == "a"
            service.stop()
            with pytest.raises(IncompleteError, match=r"connection .* was lost\. The answer was cut after 1 piece;"):
                next(text)


def test_a_service_that_is_not_running_fails_at_once_and_says_how_to_start_it(nobody: str) -> None:
    with (
        Client(nobody) as client,
        client.generate("x") as answer,
        pytest.raises(UnavailableError, match=f"not running at {nobody}. Start it with `tokenwire serve`"),
    ):
        list(answer)


@pytest.mark.thorough
def test_a_machine_that_never_answers_is_given_up_soon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with Client(address) as client, client.generate("x") as answer, pytest.raises(UnavailableError):
            list(answer)
        # gRPC's own limit is 20 s.
        assert time.monotonic() - began < 12


def test_a_service_that_comes_up_later_is_found_by_the_same_client() -> None:
    with Running() as service:
        address = service.address
    with Client(address) as client:
        with pytest.raises(UnavailableError):
            client.models()
        with Running(address) as service:
            deadline = time.monotonic() + 15
            while True:
                try:
                    assert client.models()
                    break
                except UnavailableError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)


def test_a_proxy_for_the_web_is_not_used_for_this_machine(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with Client(service.address) as client:
        assert client.models()


def test_models_come_with_the_default_first(client: Client) -> None:
    assert client.models() == list(MODELS)
    assert [one.default for one in client.models()] == [True, False, False]


def test_models_raises_our_errors_too(client: Client, service: FakeService) -> None:
    service.models.clear()
    with pytest.raises(TokenwireError) as caught:
        client.models()
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED


def test_what_no_request_can_hold_is_a_value_error(client: Client) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        client.generate("\ud800")


def test_a_wrong_field_is_named_with_what_is_wanted(client: Client, service: FakeService) -> None:
    wrong = BadRequest.FieldViolation(field="config.temperature", description="is 3; wanted 0.0 to 2.0")
    service.will_answer(
        Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", details=(BadRequest(field_violations=[wrong]),))
    )
    with (
        pytest.raises(InvalidRequestError, match=r"config.temperature is 3; wanted 0.0 to 2.0") as caught,
        client.generate("x") as answer,
    ):
        list(answer)
    assert caught.value.violations[0].field == "config.temperature"


def test_thoughts_and_tools_survive_a_round_trip(client: Client, service: FakeService) -> None:
    service.will_answer(
        thought("The weather "), thought("there.", b"s1"), "Let me look.", tool_call("weather", {"in": "Oslo"}, b"s2"),
        completed(),
    )  # fmt: skip
    with client.generate("How is it in Oslo?") as answer:
        events = list(answer)
    call = events[-2].tool_call.tool_call
    history = [user("How is it in Oslo?"), answer.message, tool(tool_result(call, {"sky": "blue"}))]
    with client.generate(messages=history) as answer:
        list(answer)
    assert list(service.requests[1].messages) == history
    thoughts, text, called = service.requests[1].messages[1].parts
    assert (thoughts.reasoning, thoughts.reasoning_signature) == ("The weather there.", b"s1")
    assert (text.text, text.reasoning_signature) == ("Let me look.", b"")
    assert (called.tool_call, called.reasoning_signature) == (call, b"s2")


def test_tokens_are_counted(client: Client, service: FakeService) -> None:
    told = {"messages": [user("Hi"), model("Ho")], "system_instruction": "Be brief.", "model": "fake-2"}
    declared = [Tool(function_declarations=[function("f", "Does it.")])]
    assert client.count_tokens("x", **told, tools=declared) == 42  # type: ignore[arg-type]  # each in its place
    assert service.counted == [pb.CountTokensRequest(prompt="x", **told, tools=declared)]  # type: ignore[arg-type]


def test_counting_raises_our_errors_too(client: Client, service: FakeService) -> None:
    service.refuses_to_count = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "EMPTY_PROMPT")
    with pytest.raises(InvalidRequestError, match="no question"):
        client.count_tokens()


def test_the_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENWIRE_ADDRESS", raising=False)
    assert default_address() == "localhost:50051"
    monkeypatch.setenv("TOKENWIRE_ADDRESS", "gateway:443")
    assert Client(channel=grpc_testing.channel([SERVICE], grpc_testing.strict_fake_time(0))).address == "gateway:443"
