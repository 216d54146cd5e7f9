"""AWS Glue for the tests: moto, behind a gate that does what Glue does and moto does not.

- `UpdateTable` with a `VersionId` that is not the table's present one is refused.
- Names of databases and tables are folded to lower case.
- Lists come in pages of at most 100.
- A `CatalogId` is an account's, and each account has a catalog of its own.

Everything is in memory, and gone with the process. One request is answered at a time.
"""

import argparse
import io
import json
import threading

from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

PAGE_MAX = 100
LISTS = {"GetDatabases": "DatabaseList", "GetTables": "TableList"}
NAMES = ("DatabaseName", "Name", "TableName")
INPUTS = ("DatabaseInput", "TableInput")


def folded(body: dict) -> dict:
    lower = {key: body[key].lower() for key in NAMES if isinstance(body.get(key), str)}
    inner = {key: folded(body[key]) for key in INPUTS if key in body}
    return body | lower | inner


class Gate:
    """Moto as a WSGI application, with the gate before it."""

    def __init__(self, glue):
        self.glue = glue
        self.lock = threading.Lock()

    def __call__(self, environ: dict, start_response):
        service, _, action = environ.get("HTTP_X_AMZ_TARGET", "").partition(".")
        if service != "AWSGlue":
            return self.glue(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        with self.lock:
            status, headers, answer = self.answer(environ, action, folded(json.loads(body or "{}")))
        text = json.dumps(answer).encode()
        headers = [pair for pair in headers if pair[0].lower() != "content-length"]
        start_response(status, [*headers, ("content-length", str(len(text)))])
        return [text]

    def answer(self, environ: dict, action: str, body: dict) -> tuple[str, list, dict]:
        if action == "UpdateTable" and "VersionId" in body:
            names = {key: body[key] for key in ("CatalogId", "DatabaseName") if key in body}
            names["Name"] = body["TableInput"]["Name"]
            status, headers, answer = self.ask(environ, "GetTable", names)
            if not status.startswith("200"):
                return status, headers, answer
            if answer["Table"]["VersionId"] != body["VersionId"]:
                kind = "ConcurrentModificationException"
                headers = [("content-type", "application/x-amz-json-1.1"), ("x-amzn-errortype", kind)]
                message = f"Update table failed due to concurrent modifications: {names['Name']}"
                return "400 Bad Request", headers, {"__type": kind, "Message": message}
        status, headers, answer = self.ask(environ, action, body)
        if action in LISTS and status.startswith("200"):
            answer = self.page(answer, LISTS[action], body)
        return status, headers, answer

    def page(self, answer: dict, items: str, body: dict) -> dict:
        first = int(body.get("NextToken") or 0)
        end = first + min(body.get("MaxResults") or PAGE_MAX, PAGE_MAX)
        more = {"NextToken": str(end)} if end < len(answer[items]) else {}
        return answer | {items: answer[items][first:end]} | more

    def ask(self, environ: dict, action: str, body: dict) -> tuple[str, list, dict]:
        text = json.dumps(body).encode()
        account = {"HTTP_X_MOTO_ACCOUNT_ID": body["CatalogId"]} if "CatalogId" in body else {}
        request = environ | account | {
            "HTTP_X_AMZ_TARGET": f"AWSGlue.{action}",
            "CONTENT_LENGTH": str(len(text)),
            "wsgi.input": io.BytesIO(text),
        }
        start = []
        chunks = self.glue(request, lambda status, headers, _=None: start.extend([status, headers]))
        return start[0], start[1], json.loads(b"".join(chunks) or "{}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    gate = Gate(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", port, gate, threaded=True, request_handler=MotoRequestHandler)
