"""The catalog that `polder serve` offers, measured beside Iceberg's own reference server.

Started by `cargo xtask bench catalog`. Both servers keep their catalog in SQLite and their files on
the same disk, hold the same tables and get the same requests from wrk; every run measures both, one
after the other, so that a busy moment of the machine hits both. Medians and ratios are what counts.

  load        GET a table at random, after each was loaded once
  same        GET a table the client has, with If-None-Match, of 500 tables
  properties  a commit that sets one property, each to another table than the one before
  append      a commit that adds a snapshot, moves `main` to it and removes the one before

The tables are made as both servers make them: one through the server, the others as its copies, each
with a metadata file, a uuid and a location of its own. Polder flushes every metadata file to disk
before it answers a commit; the reference server does not.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

HERE = Path(__file__).parent
SIZES = [100, 10_000, 100_000]
KINDS = ["load", "same", "properties", "append"]
# As many tables a second are loaded before loads are measured: what follows is about tables in use.
WARM_PER_S = 3_000
COMMITS = ["properties", "append"]
THREADS = 2
# Commits wait for the disk together: more of them at once than of loads.
CONNECTIONS = {"each": 16, "load": 16, "same": 16, "properties": 32, "append": 32}
TAGS = 500
START_SECONDS = 60
CATALOG = "polder"
# What is asked of the served catalog: requests a second, and milliseconds at the 99th percentile.
LOADS_MIN, LOADS_P99_MAX, COMMITS_MIN = 5_000, 10.0, 300
# Of the requests a second with the fewest tables, what has to be left with the most.
FLAT_MIN = 0.75
CONFIG = """
[lake]
warehouse = "./lake"
catalog = "sqlite://./catalog.db"
[store]
url = "sqlite://./store.db"
"""
COLUMNS = ["long", "string", "timestamptz", "decimal(18, 2)", "boolean", "double", "date", "uuid"]
SCHEMA = {
    "type": "struct",
    "schema-id": 0,
    "fields": [
        {"id": n, "name": f"column_{n}", "required": n == 1, "type": COLUMNS[(n - 1) % len(COLUMNS)]}
        for n in range(1, 21)
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--polder", required=True)
    parser.add_argument("--reference", required=True, help="folder of the reference server's jars")
    parser.add_argument("--java", default="java")
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--tables", type=int, action="append", help=f"a size; without: {SIZES}")
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="fail where a goal is not met")
    args = parser.parse_args()
    sizes = sorted(args.tables or SIZES)
    shutil.rmtree(args.work, ignore_errors=True)
    servers = []
    # The servers end with us, however we are ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        for start in (Polder, Reference):
            servers.append(start(args))
        report = measure(args, servers, sizes)
    finally:
        for server in servers:
            server.stop()
        shutil.rmtree(args.work, ignore_errors=True)
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    missed = [text for met, text in verdicts(report["sizes"]) if not met]
    if args.check and missed:
        raise SystemExit("goals not met:\n" + "\n".join(missed))


def measure(args: argparse.Namespace, servers: list, sizes: list[int]) -> dict:
    for server in servers:
        server.prepare()
    report = {"machine": machine(args), "sizes": {}}
    number = 1
    for size in sizes:
        for server in servers:
            say(f"{server.name}: filling up to {size:,} tables")
            server.fill(size)
        os.sync()
        for server in servers:
            sample = generate(args, server, "each", size, 2 + size // WARM_PER_S, number)
            number += 1
            say(f"{size:,} tables in turn, {server.name}: {sample['per_s']:,.0f}/s")
            if sample["requests"] < size:
                raise SystemExit(f"{server.name} is too slow to load every table in time")
        samples = {kind: {server.name: [] for server in servers} for kind in KINDS}
        for run in range(args.runs + 1):
            for kind in KINDS:
                for server in servers:
                    # The first run warms up: compilers, caches, the disk's journal.
                    seconds = args.seconds if run else (5 if size == sizes[0] else 2)
                    sample = generate(args, server, kind, size, seconds, number)
                    number += 1
                    if run:
                        say(f"{size:,} tables, run {run} of {args.runs}: {kind}, {server.name}:"
                            f" {sample['per_s']:,.0f}/s")
                        samples[kind][server.name].append(sample)
        report["sizes"][size] = {kind: summarise(found) for kind, found in samples.items()}
    return report


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Server:
    """One server over a SQLite catalog in a folder of its own."""

    name = ""
    path = ""

    def __init__(self, args: argparse.Namespace) -> None:
        self.folder = args.work / self.name
        self.lake = self.folder / "lake"
        self.lake.mkdir(parents=True)
        self.tables = 0
        self.log = self.folder / "log"
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                self.command(args), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.uri = self.address() + self.path

    def address(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.child.poll() is None:
            for line in self.log.read_text().splitlines():
                if (found := self.listening(line)) is not None:
                    return found
            time.sleep(0.1)
        self.stop()
        raise SystemExit(f"{self.name} did not start:\n{self.log.read_text()[-4000:]}")

    def stop(self) -> None:
        self.child.terminate()
        try:
            self.child.wait(30)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()

    def call(self, method: str, path: str, body: dict | None = None, headers: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.uri}/v1/{path}", data, headers or {}, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            if error.code >= 400:
                raise SystemExit(f"{self.name}: {method} {path}: {error.read().decode()}") from error
            return error.code, error.headers, b""

    def prepare(self) -> None:
        """The table that all others are copies of, with one snapshot."""
        self.call("POST", "namespaces", {"namespace": ["bench"]})
        self.call("POST", "namespaces/bench/tables", {"name": "template", "schema": SCHEMA,
                  "properties": {"write.metadata.previous-versions-max": "5"}})
        snapshot = {
            "snapshot-id": 1, "sequence-number": 1, "timestamp-ms": int(time.time() * 1000),
            "manifest-list": f"{self.manifests()}/snap-1.avro", "schema-id": 0,
            "summary": {"operation": "append", "added-records": "100000"},
        }
        self.call("POST", "namespaces/bench/tables/template", {"requirements": [], "updates": [
            {"action": "add-snapshot", "snapshot": snapshot},
            {"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": 1},
        ]})
        loaded = json.loads(self.call("GET", "namespaces/bench/tables/template")[2])
        self.template = loaded["metadata"]
        # What names files of the template alone.
        self.template["metadata-log"] = []

    def manifests(self) -> str:
        """Where manifest lists are said to be: inside the fence, and nowhere."""
        return f"file://{self.lake}/shared/manifests"

    def fill(self, size: int) -> None:
        text = json.dumps(self.template, separators=(",", ":"))
        rows = []
        for number in range(self.tables, size):
            table = str(uuid.uuid4())
            folder = f"{self.lake}/shared/{table}"
            metadata = text.replace(self.template["table-uuid"], table)
            metadata = metadata.replace(self.template["location"], f"file://{folder}")
            os.makedirs(f"{folder}/metadata")
            path = f"{folder}/metadata/00001-{uuid.uuid4()}.metadata.json"
            with open(path, "w") as file:
                file.write(metadata)
            rows.append((CATALOG, "bench", f"t{number:06}", f"file://{path}", "TABLE"))
        with sqlite3.connect(self.folder / "catalog.db", timeout=60) as database:
            database.executemany(
                "INSERT INTO iceberg_tables (catalog_name, table_namespace, table_name,"
                " metadata_location, iceberg_type) VALUES (?, ?, ?, ?, ?)", rows
            )
        database.close()
        self.tables = max(self.tables, size)

    def tags(self, size: int) -> Path:
        """Entity tags of tables all over the catalog, as they are now."""
        path = self.folder / "tags"
        with path.open("w") as file:
            for number in range(0, size, max(1, size // TAGS)):
                _, headers, _ = self.call("GET", f"namespaces/bench/tables/t{number:06}")
                file.write(f"{number} {headers['ETag']}\n")
        headers = {"If-None-Match": headers["ETag"]}
        status, _, _ = self.call("GET", f"namespaces/bench/tables/t{number:06}", headers=headers)
        if status != 304:
            raise SystemExit(f"{self.name} answers {status} to an entity tag it gave")
        return path

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Polder(Server):
    name = "polder"
    path = "/iceberg"

    def command(self, args: argparse.Namespace) -> list:
        (self.folder / "polder.toml").write_text(CONFIG)
        return [args.polder, "serve", "--listen", "127.0.0.1:0"]

    def listening(self, line: str) -> str | None:
        _, found, address = line.partition("Iceberg REST catalog: ")
        return address.removesuffix(self.path) if found else None


class Reference(Server):
    name = "reference"

    def command(self, args: argparse.Namespace) -> list:
        # With a write-ahead log, as Polder has it; the JDBC driver's own default is slower.
        database = self.folder / "catalog.db"
        address = f"jdbc:sqlite:{database}?journal_mode=WAL&synchronous=FULL&busy_timeout=20000"
        program = HERE / "../../interop/rest/ReferenceServer.java"
        return [args.java, "-Xmx2g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
                "-cp", f"{args.reference}/*", program.resolve(), "0", address, f"file://{self.lake}",
                CATALOG, "8"]

    def listening(self, line: str) -> str | None:
        _, found, address = line.partition("listening on ")
        return f"http://{address}" if found else None


def generate(args, server: Server, kind: str, size: int, seconds: int, number: int) -> dict:
    """One run of wrk, and what it and the server used of the processors meanwhile."""
    tags = server.tags(size) if kind == "same" else "-"
    command = ["wrk", f"-t{THREADS}", f"-c{CONNECTIONS[kind]}", f"-d{seconds}s", "--timeout", "30s"]
    command += ["-s", HERE / "catalog.lua", server.uri, "--", kind, str(size), str(THREADS)]
    command += [server.manifests(), str(number), tags]
    before = server.cpu_s()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"wrk failed:\n{said}")
    found = json.loads(said.splitlines()[-1])
    if found["broken"] or found["refused"] > found["requests"] * 0.05:
        raise SystemExit(f"{server.name}, {kind}: {said}\n{server.log.read_text()[-4000:]}")
    wall = found["seconds"]
    return {
        "per_s": (found["requests"] - found["refused"]) / wall,
        "p50_ms": found["p50_ms"],
        "p99_ms": found["p99_ms"],
        "cpu_us": (server.cpu_s() - before) * 1e6 / max(1, found["requests"]),
        "server_cores": (server.cpu_s() - before) / wall,
        "wrk_cores": (usage.ru_utime + usage.ru_stime) / wall,
        "requests": found["requests"],
        "refused": found["refused"],
    }


def summarise(samples: dict[str, list[dict]]) -> dict:
    servers = {}
    for name, runs in samples.items():
        servers[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        servers[name]["per_s_all"] = [round(run["per_s"]) for run in runs]
        # The ratio of each run to the reference beside it, then the median of those.
        ratios = [run["per_s"] / beside["per_s"] for run, beside in zip(runs, samples["reference"])]
        servers[name]["to_reference"] = statistics.median(ratios)
    return servers


def machine(args: argparse.Namespace) -> dict:
    def first_line(*command: str) -> str:
        ran = subprocess.run(command, capture_output=True, text=True)
        return (ran.stdout + ran.stderr).strip().splitlines()[0]

    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    core = next(jar.stem for jar in Path(args.reference).glob("iceberg-core-*") if "test" not in jar.name)
    return {
        "cores": os.cpu_count(),
        "cpu": model[0].split(":", 1)[1].strip() if model else platform.machine(),
        "kernel": platform.release(),
        "polder": first_line(args.polder, "version"),
        "reference": core,
        "java": first_line(args.java, "-version"),
        "generator": first_line("wrk", "-v").split(" Copyright")[0],
        "threads": THREADS,
        "connections": CONNECTIONS,
        "runs": args.runs,
        "seconds": args.seconds,
    }


def as_text(report: dict) -> str:
    machine = report["machine"]
    lines = [
        f"{machine['cores']} cores ({machine['cpu']}), {machine['polder']}; reference:"
        f" {machine['reference']} on {machine['java']}; {machine['generator']}, {THREADS} threads,"
        f" {CONNECTIONS['load']} connections ({CONNECTIONS['append']} for commits), on the same cores;"
        f" medians of {machine['runs']} interleaved runs of {machine['seconds']} s",
        "",
        f"{'tables':>8} {'request':<11}{'server':<10}{'req/s':>9}{'÷ ref':>7}{'p50 ms':>8}"
        f"{'p99 ms':>8}{'CPU µs':>8}{'cores':>7}{'wrk cores':>11}{'refused':>9}",
    ]
    for size, kinds in report["sizes"].items():
        for kind, servers in kinds.items():
            for name, found in servers.items():
                lines.append(
                    f"{size:8,} {kind:<11}{name:<10}{found['per_s']:9,.0f}{found['to_reference']:7.2f}"
                    f"{found['p50_ms']:8.2f}{found['p99_ms']:8.2f}{found['cpu_us']:8.0f}"
                    f"{found['server_cores']:7.2f}{found['wrk_cores']:11.2f}{found['refused']:9.0f}"
                )
    judged = [f"{'met' if met else 'NOT met'}: {text}" for met, text in verdicts(report["sizes"])]
    return "\n".join([*lines, "", *judged, *growth(report["sizes"])])


def of_polder(sizes: dict) -> dict:
    """Its figures, by size and request."""
    return {size: {kind: found["polder"] for kind, found in kinds.items()} for size, kinds in sizes.items()}


def verdicts(sizes: dict) -> list[tuple[bool, str]]:
    """Whether each figure that was asked for was met, and what was found."""
    own = of_polder(sizes)
    slowest = min(found["load"]["per_s"] for found in own.values())
    tail = max(found["load"]["p99_ms"] for found in own.values())
    commits = min(found[kind]["per_s"] for found in own.values() for kind in COMMITS)
    wanted = [
        (slowest >= LOADS_MIN, f"loads {slowest:,.0f}/s at least; wanted {LOADS_MIN:,}"),
        (tail <= LOADS_P99_MAX, f"loads' p99 {tail:.1f} ms at most; wanted {LOADS_P99_MAX:.0f}"),
        (commits >= COMMITS_MIN, f"commits {commits:,.0f}/s at least; wanted {COMMITS_MIN}"),
    ]
    if len(own) > 1:
        smallest, largest = min(own), max(own)
        for kind in ("load", *COMMITS):
            left = own[largest][kind]["per_s"] / own[smallest][kind]["per_s"]
            wanted.append((
                left >= FLAT_MIN,
                f"{kind}: with {largest:,} tables {left:.2f} of the requests/s with {smallest:,};"
                f" wanted {FLAT_MIN}",
            ))
    return wanted


def growth(sizes: dict) -> list[str]:
    """What a request costs more where there are more tables."""
    own = of_polder(sizes)
    if len(own) < 2:
        return []
    smallest, largest = min(own), max(own)
    more = {kind: own[largest][kind]["cpu_us"] / own[smallest][kind]["cpu_us"] for kind in KINDS}
    shown = ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in more.items())
    return [f"CPU of a request with {largest:,} tables ÷ with {smallest:,}: {shown}"]


if __name__ == "__main__":
    main()
