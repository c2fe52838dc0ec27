"""Takes the README's picture from the real thing: `make picture` writes docs/page.gif.

The embedded model behind the local Vertex, the service, the page, a real Chromium; a photograph every 0.2 s.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.browser import CHROMIUM_FLAGS
from tests.ports import free_port
from tokenwire import Client, TokenwireError
from tokenwire.cli.running.demo import MODEL, WHAT_IT_TAKES

GIF = Path(__file__).parents[1] / "docs" / "page.gif"
FRAME_SECONDS = 0.2
LONGEST_SECONDS = 12
LAST_FRAME_SECONDS = 4
QUESTION = "What is baseball?"


@contextmanager
def running(*command: str) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="tokenwire-picture-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "tokenwire.cli", *command],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TOKENWIRE_PAGE_DATA": folder},
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


def wait(address: str) -> None:
    with Client(address) as client:
        while True:
            try:
                with client.generate("Hello", timeout=5) as answer:
                    next(answer.text())
            except TokenwireError:
                time.sleep(0.2)
            else:
                return


def photographs(url: str) -> Iterator[bytes]:
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        tab = browser.new_page(viewport={"width": 960, "height": 620})
        while True:
            try:
                tab.goto(url)
                break
            except Exception:  # noqa: BLE001 - the page is still starting
                time.sleep(0.2)
        box = tab.get_by_test_id("stChatInputTextArea")
        box.wait_for(timeout=20_000)
        tab.wait_for_timeout(1500)
        box.press_sequentially(QUESTION, delay=20)
        yield tab.screenshot()
        box.press("Enter")
        end = time.monotonic() + LONGEST_SECONDS
        while time.monotonic() < end:
            yield tab.screenshot()
            tab.wait_for_timeout(FRAME_SECONDS * 1000 / 2)
            if tab.get_by_text("tokens in").count():
                break
        tab.wait_for_timeout(500)
        yield tab.screenshot()
        browser.close()


def main() -> None:
    vertex, service, page = free_port(), free_port(), free_port()
    with ExitStack() as stack:
        stack.enter_context(running("emulator", "--port", str(vertex)))
        offer = f"{MODEL}=vertex:smollm2-135m-instruct?{WHAT_IT_TAKES}"
        where = ("--port", str(service), "--emulator", f"127.0.0.1:{vertex}")
        stack.enter_context(running("serve", *where, "--model", MODEL, "--models", offer))
        stack.enter_context(running("ui", "--port", str(page), "--address", f"127.0.0.1:{service}"))
        wait(f"127.0.0.1:{service}")
        shots = [Image.open(io.BytesIO(shot)).convert("RGB") for shot in photographs(f"http://localhost:{page}")]
    frames = [shot.quantize(64, dither=Image.Dither.NONE) for shot in shots]
    durations = [round(FRAME_SECONDS * 1000)] * (len(frames) - 1) + [LAST_FRAME_SECONDS * 1000]
    frames[0].save(GIF, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)


if __name__ == "__main__":
    main()
