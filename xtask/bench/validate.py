"""What validation costs: the audit of a full load, and the comparison of a table that has not changed.

Started by `cargo xtask bench validate`, on the tables of `cargo xtask bench ingest`. Every run measures all
ways one after the other; medians of the ratios within a run are what counts. The ways:

  load      `polder run --full-refresh`; of its trace the span `audit`, in which the staged state is read back, its rows
            decoded, and their keys looked at
  source    `count(*)` and one digest query over all columns, in one process of the server each
  validate  `polder validate` with digests, in one process of the server
  again     `polder validate` of what was just verified: row versions are counted, no row is digested

Not told apart: what the audit adds within the stream (extremes, nulls and the digest of each row).
"""

import argparse
import json
import os
import shutil
import statistics
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ingest import CONFIG, STREAMS, load, machine, measured, rows_of, say

TABLE = "lineitem"
PIPELINE = """
orgs:
  - id: bench
    tables:
      - name: {table}
        source: bench
        from: public.{table}
        mode: full_refresh
        key: [l_orderkey, l_linenumber]
        validation: {{ max_parallel: 1 }}
"""
TELEMETRY = """
[telemetry]
url = "http://127.0.0.1:{port}/v1/traces"
private = true
sample_ratio = 1.0
"""
COUNT = f"SELECT count(*) FROM {TABLE}"
DIGEST = f"SELECT sum(('x' || substr(md5(t::text), 1, 16))::bit(64)::int8) FROM {TABLE} t"
GOALS = {"audit_to_rest": 0.08, "validate_to_source": 1.2}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--postgres", required=True)
    parser.add_argument("--psql", required=True)
    parser.add_argument("--polder", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="fail where a goal is not met")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    load(args)
    with Collector() as collector:
        runs = [one(args, collector, number) for number in range(args.runs)]
    figures = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    missed = [goal for goal, most in GOALS.items() if figures[goal] > most]
    report = {
        "machine": machine(args),
        "rows": rows_of(args, TABLE),
        "figures": figures,
        "runs": runs,
        "goals": GOALS,
        "missed": missed,
    }
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    if args.check and missed:
        raise SystemExit(f"goals that are not met: {', '.join(missed)}")


def one(args: argparse.Namespace, collector: "Collector", number: int) -> dict:
    """All ways once."""
    found = {}
    say(f"run {number + 1}: load")
    collector.spans.clear()
    work = prepare(args, collector)
    found["load_s"] = polder(args, work, ["run", "--full-refresh"])["wall_s"]
    whole, audit = (collector.seconds(name) for name in ("run", "audit"))
    found["audit_s"], found["audit_to_rest"] = audit, audit / (whole - audit)
    say(f"run {number + 1}: source")
    found["source_s"] = ask(args, COUNT) + ask(args, DIGEST)
    for way in ("validate", "again"):
        say(f"run {number + 1}: {way}")
        found[f"{way}_s"] = polder(args, work, ["validate"])["wall_s"]
        found[f"{way}_to_source"] = found[f"{way}_s"] / found["source_s"]
    return found


def prepare(args: argparse.Namespace, collector: "Collector") -> Path:
    """An empty lake."""
    work = args.work / "load"
    shutil.rmtree(work, ignore_errors=True)
    (work / "pipelines").mkdir(parents=True)
    config = CONFIG.format(streams=STREAMS) + TELEMETRY.format(port=collector.port)
    (work / "polder.toml").write_text(config)
    (work / "pipelines/bench.yaml").write_text(PIPELINE.format(table=TABLE))
    return work


def polder(args: argparse.Namespace, work: Path, command: list[str]) -> dict:
    # A validation that does not verify the table ends with another code, and so does this.
    env = os.environ | {"BENCH_URL": args.postgres}
    return measured([args.polder, *command, "--json"], cwd=work, env=env)


def ask(args: argparse.Namespace, query: str) -> float:
    options = ["-Xq", "-d", args.postgres, "-c", "SET max_parallel_workers_per_gather = 0", "-c", query]
    return measured([args.psql, *options])["wall_s"]


class Collector:
    """Takes traces by OTLP, and keeps how long spans took, by name."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, float]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.spans.extend(spans(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]

    def __enter__(self) -> "Collector":
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()

    def seconds(self, name: str) -> float:
        found = [seconds for span, seconds in self.spans if span == name]
        if not found:
            raise SystemExit(f"the trace has no span {name!r}, only {sorted({n for n, _ in self.spans})}")
        return sum(found)


def spans(message: bytes) -> list[tuple[str, float]]:
    """Names and seconds of an ExportTraceServiceRequest: resource_spans 1, scope_spans 2, spans 2."""
    found = []
    for resource in of(message, 1):
        for scope in of(resource, 2):
            for span in of(scope, 2):
                fields = dict(fields_of(span))
                seconds = (fields[8] - fields[7]) / 1e9
                found.append((fields[5].decode(), seconds))
    return found


def of(message: bytes, number: int) -> list[bytes]:
    return [value for field, value in fields_of(message) if field == number]


def fields_of(message: bytes):
    """The fields of a protobuf message: numbers with bytes or integers."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
            value, at = int.from_bytes(message[at : at + length], "little"), at + length
        elif kind == 2:
            length, at = varint(message, at)
            value, at = message[at : at + length], at + length
        else:
            raise SystemExit(f"a trace with a field of kind {kind}")
        yield tag >> 3, value


def varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if not byte & 0x80:
            return value, at


def as_text(report: dict) -> str:
    found, machine = report["figures"], report["machine"]
    lines = [
        f"{machine['cores']} cores ({machine['cpu']}), PostgreSQL {machine['postgresql']},"
        f" {machine['polder']}; {report['rows']:,} rows of {TABLE},"
        f" medians of {len(report['runs'])} interleaved runs",
        "",
        f"full load              {found['load_s']:8.2f} s",
        f"  of it the audit      {found['audit_s']:8.2f} s, {found['audit_to_rest']:.1%} of the rest"
        f" (goal {GOALS['audit_to_rest']:.0%})",
        f"count and digest       {found['source_s']:8.2f} s",
        f"validate               {found['validate_s']:8.2f} s, × {found['validate_to_source']:.2f}"
        f" (goal {GOALS['validate_to_source']})",
        f"validate again         {found['again_s']:8.2f} s, × {found['again_to_source']:.2f}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
