"""Sessions of the page without a browser: they speak Streamlit's own protocol over its websocket, as a browser does.

Such a session has the page's cookie, keeps what it is sent, follows references to it, and runs fragments when the page
says so. It draws nothing, so what it measures is the page's part of the way to a person's eyes.
"""

import asyncio
import contextlib
import re
import secrets
import time
import urllib.request
from typing import Any, Self
from urllib.parse import urlsplit

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.Element_pb2 import Element
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState, WidgetStates
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from bench.page.stamped import WORD
from bench.processes import BenchError

_PATIENCE_SECONDS = 60


class Session:
    """One person's view of the page, from the websocket on."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._hash = ""
        """Of the page's script; the page says it, and wants it back."""
        self._kept: dict[str, ForwardMsg] = {}
        """By hash: large messages, to which the page may refer later."""
        self._input = ""
        self._new = ""
        """The ids of the input and of the button for a new conversation."""
        self._fragments: dict[str, asyncio.Task[None]] = {}
        self._finished: int = ForwardMsg.FINISHED_EARLY_FOR_RERUN
        """How the last run of the script, or of a fragment, has finished."""
        self._idle = asyncio.Event()
        self.asked_at = 0.0
        """In seconds since 1970, as all times here."""
        self.delays: dict[int, float] = {}
        """By number: how old each word of the answer was when it came, in seconds."""
        self.first = 0.0
        """When the first word came."""
        self.bytes = 0
        self.messages = 0
        self.references = 0
        """So much came so far; references are messages that stand for an earlier one."""
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def opened(cls, url: str, cookie: str) -> Self:
        """Load the page as a new browser does, and wait until its script has come to its end."""
        host = urlsplit(url).netloc
        xsrf = await asyncio.to_thread(_xsrf, url)
        cookies = {cookie: secrets.token_hex(32), **({"_streamlit_xsrf": xsrf} if xsrf else {})}
        socket = await connect(
            f"ws://{host}/_stcore/stream",
            origin=url,  # type: ignore[arg-type]
            subprotocols=[Subprotocol("streamlit"), Subprotocol(xsrf or "PLACEHOLDER_AUTH_TOKEN")],
            additional_headers={"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())},
            max_size=None,
        )
        self = cls(socket)
        await self._run(ClientState())
        await self.settled()
        if not self._input:
            raise BenchError("the page has drawn no input")
        return self

    async def close(self) -> None:
        for task in (self._reading, *self._fragments.values()):
            task.cancel()
        await self._socket.close()

    async def ask(self, question: str) -> None:
        """Send a question, as Enter in the input does."""
        self.delays, self.first = {}, 0.0
        state = WidgetState(id=self._input)
        state.chat_input_value.data = question
        self.asked_at = time.time()
        await self._run(ClientState(widget_states=WidgetStates(widgets=[state])))

    async def answered(self) -> None:
        """Wait for the end of the answer, which is the end of the script's run."""
        await self.settled()
        if not self.delays:
            raise BenchError("the page has shown no answer")

    async def begin_anew(self) -> None:
        """Click on the button for a new conversation."""
        await self._run(
            ClientState(widget_states=WidgetStates(widgets=[WidgetState(id=self._new, trigger_value=True)]))
        )
        await self.settled()

    async def settled(self) -> None:
        """Wait until the script has run to its end."""
        idle = asyncio.create_task(self._idle.wait())
        done, _ = await asyncio.wait(
            {idle, self._reading}, timeout=_PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if idle in done:
            return
        idle.cancel()
        if done:
            self._reading.result()
        raise BenchError("the page has closed the connection" if done else "the page's script does not end")

    async def _run(self, state: ClientState) -> None:
        if not state.fragment_id:
            self._idle.clear()
        state.page_script_hash = self._hash
        state.cached_message_hashes.extend(self._kept)
        await self._socket.send(BackMsg(rerun_script=state).SerializeToString())

    async def _read(self) -> None:
        async for data in self._socket:
            now = time.time()
            assert isinstance(data, bytes)
            self.bytes += len(data)
            self.messages += 1
            message = ForwardMsg.FromString(data)
            if message.ref_hash:
                self.references += 1
                metadata = message.metadata
                message = self._kept[message.ref_hash]
                message.metadata.CopyFrom(metadata)
            elif message.metadata.cacheable:
                self._kept[message.hash] = message
            self._take(message, now)

    def _take(self, message: ForwardMsg, now: float) -> None:
        match message.WhichOneof("type"):
            case "new_session":
                self._hash = message.new_session.page_script_hash
            case "delta" if message.delta.WhichOneof("type") == "new_element":
                self._draw(message.delta.new_element, now)
            case "auto_rerun":
                fragment = message.auto_rerun.fragment_id
                if fragment in self._fragments:
                    self._fragments[fragment].cancel()
                self._fragments[fragment] = asyncio.create_task(self._again(fragment, message.auto_rerun.interval))
            case "stop_auto_rerun":
                for fragment in message.stop_auto_rerun.fragment_ids:
                    if task := self._fragments.pop(fragment, None):
                        task.cancel()
            case "script_finished":
                self._finished = message.script_finished
            case "session_status_changed" if not message.session_status_changed.script_is_running:
                self._end()
            case _:
                pass  # how the page looks

    def _end(self) -> None:
        """Take note of the end of a run. It has said before how it finishes, maybe long before: when all was drawn."""
        if self._finished == ForwardMsg.FINISHED_WITH_COMPILE_ERROR:
            raise BenchError("the page's script has failed")
        if self._finished == ForwardMsg.FINISHED_SUCCESSFULLY:
            self._idle.set()

    def _draw(self, element: Element, now: float) -> None:
        match element.WhichOneof("type"):
            case "chat_input":
                self._input = element.chat_input.id
            case "button" if element.button.label == "New conversation":
                self._new = element.button.id
            case "exception":
                raise BenchError(f"the page shows {element.exception.type}: {element.exception.message}")
            case "html":
                self._words(element.html.body, now)
            case _:
                pass  # nothing that a session uses

    def _words(self, body: str, now: float) -> None:
        if "word" in body:
            for number, sent in WORD.findall(body):
                if int(sent) / 1000 >= self.asked_at:  # else it is an earlier answer's
                    self.first = self.first or now
                    self.delays.setdefault(int(number), now - int(sent) / 1000)

    async def _again(self, fragment: str, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._run(ClientState(fragment_id=fragment, is_auto_rerun=True))


def _xsrf(url: str) -> str:
    """The token that the page gives a browser with its first request; empty: it wants none."""
    with contextlib.closing(urllib.request.urlopen(f"{url}/_stcore/health")) as answer:
        found: Any = re.search(r"_streamlit_xsrf=([^;]+)", answer.headers.get("Set-Cookie", ""))
    return found[1] if found else ""
