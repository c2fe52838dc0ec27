"""The mind that is a real model: SmolLM2-135M-Instruct, in this process, on the CPU.

English only, coherent, and unreliable about facts: it has 135 million parameters.
https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0)
"""

import asyncio
import http.client
import json
import logging
import secrets
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from ..call_records import Call
from ..protos import prediction_pb2 as pb
from .base import MindError, Reply, VertexError
from .smollm2_requests import MODEL_VERSION, chat, conversation, refusal, refuse_beyond
from .weights import fetch

log = logging.getLogger("vertex_emulator")

# What one conversation may hold, prompt and answer together.
CONTEXT_TOKENS = 2048

# A caller that goes during the prompt's evaluation is noticed after a batch: 0.3 s at most.
BATCH_TOKENS = 64

EXHAUSTED = "Resource exhausted. Please try again later. (The emulator's model is busy and its queue is full.)"


class SmolLM2:
    """Answers up to `slots` calls at once; up to `queue` more wait, the others get RESOURCE_EXHAUSTED.

    `threads` are the model's; one is fastest where cores are shared. `weights` None: fetched and cached when it starts.

    Every model name is answered. Safety settings are accepted, but nothing is ever blocked: it has no such filter.
    """

    models = (MODEL_VERSION,)

    def __init__(self, *, threads: int = 1, slots: int = 4, queue: int = 16, weights: Path | None = None) -> None:
        self._threads = threads
        self._slots = slots
        self._queue = queue
        self._weights = weights
        self._server: Any = None
        self._api_key = secrets.token_urlsafe()
        self._executor = ThreadPoolExecutor(slots, thread_name_prefix="smollm2")
        self._generations: set[_Generation] = set()
        self._generated_before = 0

    @property
    def active_generations(self) -> int:
        """Answers the model is writing now; one whose caller has left counts until it has really stopped."""
        return sum(generation.running for generation in self._generations)

    @property
    def generated_tokens(self) -> int:
        """Tokens it has written since it was started."""
        return self._generated_before + sum(generation.generated for generation in self._generations)

    @property
    def openai_base_url(self) -> str:
        """Of llama.cpp's own server, which speaks OpenAI's protocol: http://127.0.0.1:PORT/v1. Once it is started.

        Its callers have to leave before `stop`, which waits for them for up to 30 seconds and lets nothing else run.
        """
        return f"{self._server.listening_address}/v1"

    @property
    def openai_api_key(self) -> str:
        """What that server wants; made anew for each object."""
        return self._api_key

    async def busy_slots(self) -> int:
        """Slots of llama.cpp that are at work, whichever way the call came: ours, or over its own server."""
        slots = await asyncio.to_thread(self._ask, "GET", "/slots")
        return sum(slot["is_processing"] for slot in slots)

    # ---- the mind ------------------------------------------------------------------------------------------------

    async def start(self, *, relay: bool) -> None:
        """Load the model; raises MindError."""
        del relay  # the model cuts no connections
        runtime()  # before a download that would be in vain
        path = self._weights
        if path is None:
            path = await asyncio.to_thread(fetch, say=log.info)
        self._server = await asyncio.to_thread(self._load, path)

    async def stop(self) -> None:
        for generation in self._generations:
            generation.abort()
        # Leaving the interpreter while it generates is a segmentation fault.
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)
        self._server = None

    async def generate(self, call: Call, reply: Reply) -> None:
        assert isinstance(call.request, pb.GenerateContentRequest)
        body = chat(call.request)
        if len(self._generations) >= self._slots + self._queue:
            raise VertexError(grpc.StatusCode.RESOURCE_EXHAUSTED, EXHAUSTED)
        generation = _Generation(asyncio.get_running_loop(), body)
        self._generations.add(generation)
        future = asyncio.get_running_loop().run_in_executor(self._executor, generation.run, self._server)
        future.add_done_callback(partial(self._forget, generation))
        try:
            await _Answer(generation, reply).write()
        finally:
            # However the call ended, nobody reads on: a model left alone would write to its limit.
            generation.abort()
            future.cancel()

    async def count_tokens(self, call: Call, reply: Reply) -> pb.CountTokensResponse:
        del reply  # nothing to say meanwhile
        assert isinstance(call.request, pb.CountTokensRequest)
        refuse_beyond(call.request)
        messages = conversation(call.request)
        prompt = await asyncio.to_thread(self._ask, "POST", "/apply-template", {"messages": messages})
        body = {"content": prompt["prompt"], "parse_special": True}
        counted = await asyncio.to_thread(self._ask, "POST", "/tokenize", body)
        total = len(counted["tokens"])
        return pb.CountTokensResponse(
            total_tokens=total,
            total_billable_characters=sum(len("".join(message["content"].split())) for message in messages),
            prompt_tokens_details=[pb.ModalityTokenCount(modality=pb.TEXT, token_count=total)],
        )

    def _forget(self, generation: "_Generation", future: "asyncio.Future[None]") -> None:
        self._generations.discard(generation)
        self._generated_before += generation.generated
        if not future.cancelled():
            future.exception()  # taken: the generation has told its caller

    def _load(self, path: Path) -> Any:
        xllamacpp = runtime()
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel = self._slots
        params.n_ctx = CONTEXT_TOKENS * self._slots  # it is divided among the slots
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
        params.cache_ram_mib = 0  # else every prompt stays in memory
        params.warmup = False
        params.verbosity = 0  # prompts are nobody's business, and standard error is ours
        params.ui = False
        params.endpoint_slots = True
        params.model_alias = {MODEL_VERSION}  # else its answers name the file
        # It also listens on a port of its own on 127.0.0.1: for our tokenizer calls, and for OpenAI's protocol.
        params.api_keys = [self._api_key]
        try:
            return xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            raise MindError(f"can't load the model from {path}: {error}") from error

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        address = self._server.listening_address.removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=30)
        try:
            headers = {"Authorization": f"Bearer {self._api_key}", "Content-Type": "application/json"}
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise RuntimeError(f"{path}: {response.status} {answer}")
        return answer


class _Generation:
    """One answer being written on a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, body: Mapping[str, Any]) -> None:
        self._loop = loop
        self._body = body
        self._aborted = False
        # Unbounded, because the model can't be made to wait; an answer is never longer than the context.
        self.chunks: asyncio.Queue[Mapping[str, Any] | Exception] = asyncio.Queue()
        self.running = False
        self.generated = 0

    def abort(self) -> None:
        self._aborted = True

    def run(self, server: Any) -> None:
        """Block until the answer is written or aborted. Runs on a worker thread."""
        if self._aborted:
            return
        self.running = True
        try:
            server.handle_chat_completions(self._body, self._take)
        except Exception as error:  # noqa: BLE001  # the caller's task raises it
            self._pass(error)
        finally:
            self.running = False

    def _take(self, chunk: Mapping[str, Any]) -> bool:
        self.generated = chunk.get("timings", {}).get("predicted_n", self.generated)
        if not self._aborted:
            self._pass(chunk)
        return self._aborted

    def _pass(self, chunk: Mapping[str, Any] | Exception) -> None:
        self._loop.call_soon_threadsafe(self.chunks.put_nowait, chunk)


class _Answer:
    """Puts llama.cpp's chunks into Vertex's shape."""

    def __init__(self, generation: _Generation, reply: Reply) -> None:
        self._chunks = generation.chunks
        self._reply = reply
        self._finish: pb.Candidate.FinishReason.ValueType = pb.Candidate.FINISH_REASON_UNSPECIFIED
        self._usage = pb.GenerateContentResponse.UsageMetadata()
        self._common = pb.GenerateContentResponse(model_version=MODEL_VERSION, response_id=uuid.uuid4().hex)
        self._common.create_time.GetCurrentTime()

    async def write(self) -> None:
        while True:
            chunk = await self._chunks.get()
            if isinstance(chunk, Exception):
                raise chunk
            if "error" in chunk:
                raise refusal(chunk["error"])
            self._count(chunk)
            if "usage" in chunk:  # always the last
                await self._say("", self._finish)
                return
            choice = chunk["choices"][0]
            if choice["finish_reason"] is not None:
                self._finish = pb.Candidate.MAX_TOKENS if choice["finish_reason"] == "length" else pb.Candidate.STOP
            text = choice["delta"].get("content")
            if text:
                await self._say(text)

    async def _say(
        self, text: str, finish: pb.Candidate.FinishReason.ValueType = pb.Candidate.FINISH_REASON_UNSPECIFIED
    ) -> None:
        content = pb.Content(role="model", parts=[pb.Part(text=text)])
        message = pb.GenerateContentResponse(
            candidates=[pb.Candidate(content=content, finish_reason=finish)], usage_metadata=self._usage
        )
        message.MergeFrom(self._common)
        await self._reply.write(message.SerializeToString())

    def _count(self, chunk: Mapping[str, Any]) -> None:
        timings = chunk.get("timings")
        if timings is None:
            return
        usage = self._usage
        usage.cached_content_token_count = timings["cache_n"]
        usage.prompt_token_count = timings["cache_n"] + timings["prompt_n"]
        usage.candidates_token_count = timings["predicted_n"]
        usage.total_token_count = usage.prompt_token_count + usage.candidates_token_count


def runtime() -> Any:
    """The module xllamacpp; raises MindError."""
    try:
        import xllamacpp  # noqa: PLC0415  # an extra; only who wants the model needs it
    except ModuleNotFoundError as error:
        raise MindError("SmolLM2 needs xllamacpp, of tokenwire's extra 'local'; or use --mind script") from error
    except ImportError as error:
        raise MindError(
            f"xllamacpp can't be loaded: {error}. It needs the system's OpenMP library: "
            "apt install libgomp1, or dnf install libgomp"
        ) from error
    return xllamacpp
