"""A bucket on this machine: `gcp_storage_emulator`, with what it lacks of a real one's behaviour.

It ignores preconditions, on which locks rest, and does not say the generation of what it sends.
Both are added here, and the faults that a test asks for.
"""

import contextlib
import functools
import http.server
import io
import json
import logging
import re
import threading
from urllib.parse import parse_qs, unquote, urlparse

import pytest

BUCKET = "runs"
VARIABLES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")


class Emulator:
    """Serves the bucket `runs` while it is entered.

    Attributes:
        address: for `VARIABLES`.
        denied: the methods that answer "403 Forbidden"; with "*" nothing is answered.
    """

    def __init__(self):
        from gcp_storage_emulator.handlers import buckets
        from gcp_storage_emulator.storage import Storage

        logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
        logging.getLogger("api").setLevel(logging.CRITICAL)
        self.denied: tuple[str, ...] = ()
        self.storage = Storage(use_memory_fs=True)
        buckets.create_bucket(BUCKET, self.storage)
        self._server = _Server(("127.0.0.1", 0), functools.partial(_handler(), self))
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def variables(self) -> dict[str, str]:
        """For the environment of a process that is to find this bucket."""
        return dict.fromkeys(VARIABLES, self.address)

    def names(self, folder: str = "") -> list[str]:
        """The objects there are."""
        return sorted(n for n in self.storage.objects.get(BUCKET, {}) if n.startswith(folder))

    def read(self, name: str) -> bytes:
        """The content of an object."""
        return self.storage.get_file(BUCKET, name)

    def generation(self, name: str) -> str:
        """Of an object; 0 where there is none."""
        return self.storage.objects.get(BUCKET, {}).get(name, {}).get("generation", "0")


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        """A client has what it needs and hangs up; what else goes wrong the client sees."""


def _handler():
    from gcp_storage_emulator import server

    lock = threading.RLock()  # the emulator's storage is for one thread

    class Handler(server.RequestHandler):
        def __init__(self, emulator, *args):
            self._emulator, self._generation = emulator, ""
            super().__init__(emulator.storage, *args)

        def do_GET(self):
            self._answer("GET")

        def do_POST(self):
            self._answer("POST")

        def do_PUT(self):
            self._answer("PUT")

        def do_PATCH(self):
            self._answer("PATCH")

        def do_DELETE(self):
            self._answer("DELETE")

        def end_headers(self):
            if self._generation:
                self.send_header("x-goog-generation", self._generation)
            super().end_headers()

        def _answer(self, method):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.rfile = io.BytesIO(body)
            query = parse_qs(urlparse(self.path).query)
            with lock:
                if "*" in self._emulator.denied:
                    return None  # and hangs up
                if method in self._emulator.denied:
                    return self._refuse(403, "the account lacks storage.objects.create access")
                there = self._emulator.generation(self._object(query, body))
                expected = query.get("ifGenerationMatch")
                if expected and expected[0] != there:
                    return self._refuse(412, "conditionNotMet")
                self._generation = there if query.get("alt") == ["media"] else ""
                server.Router(self).handle(method)

        def _object(self, query, body) -> str:
            if name := query.get("name"):
                return name[0]
            if match := re.search(r"/o/(.+)$", urlparse(self.path).path):
                return unquote(match[1])
            match = re.search(rb'"name": ?("[^"]+")', body[:4096])
            return json.loads(match[1]) if match else ""

        def _refuse(self, status, message):
            content = json.dumps({"error": {"code": status, "message": message}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


@contextlib.contextmanager
def serving():
    """An emulator that this process finds, and those it starts."""
    with pytest.MonkeyPatch.context() as patch, Emulator() as emulator:
        for name, value in emulator.variables().items():
            patch.setenv(name, value)
        yield emulator
