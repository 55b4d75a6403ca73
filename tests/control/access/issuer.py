"""An OpenID Connect issuer on the loopback interface: its documents, and tokens that it signs."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa


class Issuer:
    """Its keys, by id, can be changed while it serves."""

    def __init__(self) -> None:
        self.keys: dict[str, rsa.RSAPrivateKey] = {}
        self.fetched = 0
        """Times that its keys were."""
        self.answers = True
        """Whether it does at all."""
        self.says: bytes | None = None
        """What it says to whatever it is asked, if that is not what it should."""
        self.door = threading.Event()
        """Shut for as long as it is clear."""
        self.door.set()
        self.asking = 0
        """Those who wait at the door."""
        self.drips = False
        """Whether its answers have no end."""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.add_key("first")

    def add_key(self, kid: str) -> None:
        self.keys[kid] = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def token(self, kid: str = "first", **claims: Any) -> str:
        """A token that is good, but for the claims that are given; None leaves one out."""
        said = {
            "iss": self.url,
            "aud": "sllm",
            "sub": "ada",
            "exp": int(time.time()) + 600,
            "tenant": "acme",
            **claims,
        }
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, self.keys[kid], algorithm="RS256", headers={"kid": kid})

    def _document(self, path: str) -> dict[str, Any] | None:
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        if path == "/keys":
            self.fetched += 1
            algorithm = jwt.algorithms.RSAAlgorithm
            return {
                "keys": [
                    {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "alg": "RS256"}
                    for kid, key in self.keys.items()
                ]
            }
        return None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asking += 1
                issuer.door.wait()
                issuer.asking -= 1
                if issuer.says is not None:
                    self.wfile.write(issuer.says)
                    return
                if issuer.drips:
                    self._drip()
                    return
                document = issuer._document(self.path) if issuer.answers else None
                self.send_response(200 if document else 503)
                self.end_headers()
                self.wfile.write(json.dumps(document).encode())

            def _drip(self) -> None:
                self.send_response(200)
                self.end_headers()
                with suppress(OSError):
                    while issuer.drips:
                        self.wfile.write(b" ")
                        time.sleep(0.05)

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        return Handler


@contextmanager
def issuing() -> Iterator[Issuer]:
    """One that serves within the context."""
    issuer = Issuer()
    thread = threading.Thread(target=issuer.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        issuer.drips = False
        issuer.door.set()
        issuer.server.shutdown()
        issuer.server.server_close()
        thread.join()
