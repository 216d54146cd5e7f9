"""A stand-in for the `/v1` of `polder serve`, as far as the provider uses it: work is started with 202
and a `Location`, and goes through the states it is told to."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "polder_key_0123456789"


class Api:
    """What was asked, and what to answer."""

    def __init__(self):
        self.started = []
        self.keys = {}
        self.cancelled = []
        self.states = ["queued", "running", "succeeded"]
        self.error = None
        self.refuse = []
        self.asked = 0

    def start(self, path, key, body):
        if key not in self.keys:
            self.keys[key] = f"op-{len(self.keys)}"
            self.started.append((path, body))
        return self.keys[key]

    def operation(self, id):
        state = self.states[min(self.asked, len(self.states) - 1)]
        self.asked += 1
        run = {"id": f"run-of-{id}", "org": "401", "status": state, "error": self.error}
        return {"id": id, "org": "401", "status": state, "runs": [run]}


@contextmanager
def serving(api: Api):
    """Its host and port."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status, document, **headers):
            text = json.dumps(document).encode()
            self.send_response(status)
            for name, value in {"content-length": str(len(text)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        def refused(self):
            if self.headers.get("authorization") != f"Bearer {TOKEN}":
                self.answer(401, {"title": "no key", "hint": "polder keys create"})
                return True
            if api.refuse:
                self.answer(*api.refuse.pop(0))
                return True
            return False

        def do_GET(self):
            if not self.refused():
                self.answer(200, api.operation(self.path.rpartition("/")[2]))

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.path == "/iceberg/v1/oauth/tokens":
                good = b"client_secret=a-secret" in body
                token = {"access_token": TOKEN} if good else {}
                self.answer(200 if good else 401, token)
            elif not self.refused():
                if self.path.endswith("/cancel"):
                    api.cancelled.append(self.path)
                    self.answer(202, {})
                    return
                id = api.start(self.path, self.headers["idempotency-key"], json.loads(body))
                self.answer(202, {}, location=f"/v1/operations/{id}")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
