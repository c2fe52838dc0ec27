"""Google's application default credentials, in a file, with a token server and a `gcloud` of our own."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

OK = "200 OK"


class TokenServer:
    """Exchanges what it is given for tokens "t1", "t2", ..., or is a metadata server that gives them."""

    def __init__(self) -> None:
        self.address = ""
        self.asked = 0
        self.status = OK
        self.body: bytes | None = None
        """What it says instead of a token."""
        self.lifetime = 3600
        self.open = asyncio.Event()
        """While it isn't set, nobody is answered."""
        self.open.set()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        # A metadata server is asked for other things as well, without which it is none.
        if "computemetadata" not in head or "/token" in head:
            self.asked += 1
        token = {"access_token": f"t{self.asked}", "token_type": "Bearer", "expires_in": self.lifetime, "email": "a@b"}
        issued = {"issued_token_type": "urn:ietf:params:oauth:token-type:access_token"}
        await self.open.wait()
        body = self.body if self.body is not None else json.dumps(token | issued).encode()
        writer.write(
            f"HTTP/1.1 {self.status}\r\ncontent-type: application/json\r\nmetadata-flavor: Google\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
            + body
        )
        writer.close()


@asynccontextmanager
async def token_server() -> AsyncIterator[TokenServer]:
    tokens = TokenServer()
    server = await asyncio.start_server(tokens.answer, "127.0.0.1", 0)
    tokens.address = "127.0.0.1:{1}".format(*server.sockets[0].getsockname())
    try:
        yield tokens
    finally:
        tokens.open.set()
        server.close()


def identity(folder: Path, tokens: TokenServer) -> dict[str, str]:
    """Writes application default credentials that use `tokens`; gives the environment in which they are found."""
    (folder / "subject").write_text("somebody")
    info = {
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/p",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"http://{tokens.address}/token",
        "credential_source": {"file": str(folder / "subject")},
    }
    (folder / "application_default_credentials.json").write_text(json.dumps(info))
    path = f"{folder}:{os.environ['PATH']}"
    return {"GOOGLE_CLOUD_PROJECT": "project", "CLOUDSDK_CONFIG": str(folder), "PATH": path}


def gcloud(folder: Path, script: str) -> None:
    """Have `gcloud`, which google.auth runs to find the project, do this; the file `runs` has a line for each time."""
    path = folder / "gcloud"
    path.write_text(f"#!/bin/sh\necho run >> {folder}/runs\n{script}\n")
    path.chmod(0o755)
