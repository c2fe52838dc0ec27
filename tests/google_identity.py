"""A token server of Google's, for application default credentials."""

import asyncio
import json

OK = "200 OK"


class TokenServer:
    """Exchanges what it is given for tokens "t1", "t2", ..., or is a metadata server that gives them."""

    def __init__(self) -> None:
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
