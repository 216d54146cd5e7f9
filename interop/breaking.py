"""A server in front of another, whose answers break."""

import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from waits import SECONDS_MAX


class Breaking:
    """Passes requests on, and cuts every answer's body after some bytes, each time a little later."""

    def __init__(self, address: str) -> None:
        self.cuts = 0
        self.cut_bytes = 1 << 40
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                headers = {"Authorization": self.headers["Authorization"]}
                request = urllib.request.Request(address + self.path, headers=headers)
                with urllib.request.urlopen(request, timeout=SECONDS_MAX) as answer:
                    body = answer.read()
                whole = "format=" not in self.path
                outer.cuts += 0 if whole else 1
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body if whole else body[: outer.cut_bytes * outer.cuts])
                self.close_connection = True

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
