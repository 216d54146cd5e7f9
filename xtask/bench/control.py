"""The control plane: 10,000 orgs of 20 tables in one configuration, and 1,000 orgs that run by schedule.

Started by `cargo xtask bench control`. Said are how long `polder apply` takes from nothing, how long pages
and changes of one org take while `polder plan` goes over everything, how long the server takes to follow a
changed template, its idle CPU, how long after their time scheduled runs begin, and the most memory that each
process ever had: the server's from its start to its end, with all of the above in between. Runs read one
small file each: what is measured is the control plane, not ingestion.
"""

import argparse
import http.client
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

CONFIG = """
[lake]
warehouse = "./lake"
catalog = "sqlite://./catalog.db"
[store]
url = "sqlite://./store.db"
[server]
auth = "none"
rate_limit = { per_second = 100000, burst = 100000 }
[sources.exports]
type = "files"
url = "./exports"
"""


def project(work: Path, orgs: int, tables: int, schedule: str) -> Path:
    shutil.rmtree(work, ignore_errors=True)
    (work / "pipelines").mkdir(parents=True)
    (work / "exports").mkdir()
    (work / "exports/t.csv").write_text("id,name\n1,Ann\n2,Bob\n")
    (work / "polder.toml").write_text(CONFIG)
    pipelines(work, orgs, tables, schedule)
    return work


def pipelines(work: Path, orgs: int, tables: int, schedule: str):
    lines = [f"templates:\n  crm:\n    schedule: {schedule}\n    tables:"]
    lines += [f'      - {{ name: t{n}, source: exports, from: "t.csv" }}' for n in range(tables)]
    lines += ["orgs:"] + [f'  - {{ id: "{n}", template: crm }}' for n in range(orgs)]
    (work / "pipelines/all.yaml").write_text("\n".join(lines) + "\n")


class Served:
    def __init__(self, polder: str, folder: Path):
        command = [polder, "serve", "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if line.startswith("API: http://"):
                self.address = line.removeprefix("API: http://").split("/v1")[0]
                break
        else:
            sys.exit("polder serve ended before it listened")
        # What it says later must not fill the pipe.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def call(self, method: str, path: str, body=None) -> float:
        """How long a request takes, in milliseconds, with a connection of its own."""
        began = time.perf_counter()
        connection = http.client.HTTPConnection(self.address)
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status >= 300:
            sys.exit(f"{method} {path}: {answer.status} {text[:300]!r}")
        return (time.perf_counter() - began) * 1000

    def memory_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def started(polder: str, folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([polder, *arguments], cwd=folder, stdout=subprocess.DEVNULL)


def peak_mb(process: subprocess.Popen, wait: bool) -> float | None:
    """The most memory that a command had, once it has ended well; `None` before."""
    pid, status, used = os.wait4(process.pid, 0 if wait else os.WNOHANG)
    if pid == 0:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{process.args}: exit code {process.returncode}")
    return used.ru_maxrss / 1024


def p99(values: list) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * 99 // 100)]


def count(folder: Path, sql: str) -> int:
    with sqlite3.connect(folder / "store.db", timeout=30) as store:
        return store.execute(sql).fetchone()[0]


def wait(folder: Path, sql: str, wanted: int, seconds: int):
    until = time.monotonic() + seconds
    while count(folder, sql) < wanted:
        if time.monotonic() > until:
            sys.exit(f"{sql}: {count(folder, sql)} after {seconds} s, not {wanted}")
        time.sleep(0.2)


def many(polder: str, work: Path, orgs: int, tables: int) -> dict:
    folder = project(work, orgs, tables, '{ cron: "0 3 1 1 *", jitter: 24h }')
    began = time.perf_counter()
    apply_mb = peak_mb(started(polder, folder, "apply"), wait=True)
    applied = time.perf_counter() - began
    began = time.perf_counter()
    served = Served(polder, folder)
    listening = time.perf_counter() - began
    wait(folder, "SELECT count(*) FROM polder_schedules", orgs * tables, 300)
    scheduled = time.perf_counter() - began
    time.sleep(3)
    before = served.cpu_seconds()
    time.sleep(20)
    idle = (served.cpu_seconds() - before) / 20 * 100
    pages = [served.call("GET", "/v1/orgs?limit=100") for _ in range(200)]
    pages += [served.call("GET", f"/v1/orgs/{n}/tables") for n in range(200)]
    plan, plan_mb = started(polder, folder, "plan", "--json"), None
    changes = []
    while plan_mb is None or len(changes) < 50:
        plan_mb = plan_mb or peak_mb(plan, wait=False)
        path = f"/v1/orgs/{len(changes) % orgs}"
        changes.append(served.call("PATCH", path, {"name": f"n{len(changes)}"}))
        time.sleep(0.02)
    pipelines(folder, orgs, tables, '{ cron: "0 4 1 1 *", jitter: 24h }')
    peak_mb(started(polder, folder, "apply"), wait=True)
    began = time.perf_counter()
    of_template = "SELECT count(*) FROM polder_schedules WHERE spec LIKE '%0 4 1 1 *%'"
    wait(folder, of_template, orgs * tables, 300)
    followed = time.perf_counter() - began
    memory = served.memory_mb()
    served.stop()
    return {
        "orgs": orgs,
        "tables": orgs * tables,
        "apply_s": round(applied, 1),
        "listening_after_s": round(listening, 1),
        "scheduled_after_s": round(scheduled, 1),
        "idle_cpu_percent": round(idle, 2),
        "page_p99_ms": round(p99(pages), 1),
        "change_p99_ms": round(p99(changes), 1),
        "changes": len(changes),
        "template_followed_s": round(followed, 1),
        "memory_peak_mb": round(memory),
        "apply_memory_peak_mb": round(apply_mb),
        "plan_memory_peak_mb": round(plan_mb),
    }


def hourly(polder: str, work: Path, orgs: int, window: int) -> dict:
    """An hour's runs of so many orgs, in the seconds of a window."""
    folder = project(work, orgs, 1, '{ cron: "0 3 1 1 *" }')
    served = Served(polder, folder)
    wait(folder, "SELECT count(*) FROM polder_schedules", orgs, 120)
    with sqlite3.connect(folder / "store.db", timeout=30) as store:
        start = int(time.time() * 1000) + 3000
        sql = "UPDATE polder_schedules SET next_ms = ? + CAST(org AS INTEGER) * ? / ?"
        store.execute(sql, (start, window * 1000, orgs))
    ended = "SELECT count(*) FROM polder_queue WHERE state IN ('succeeded', 'failed')"
    wait(folder, ended, orgs, window + 300)
    with sqlite3.connect(folder / "store.db", timeout=30) as store:
        sql = (
            "SELECT q.started_ms - s.last_ms FROM polder_queue q "
            "JOIN polder_schedules s ON s.org = q.org AND s.table_name = q.table_name"
        )
        delays = [row[0] for row in store.execute(sql)]
        failed = store.execute("SELECT count(*) FROM polder_queue WHERE state = 'failed'").fetchone()[0]
    cpu, memory = served.cpu_seconds(), served.memory_mb()
    served.stop()
    return {
        "orgs": orgs,
        "window_s": window,
        "runs": len(delays),
        "failed": failed,
        "delay_median_ms": sorted(delays)[len(delays) // 2],
        "delay_p99_ms": p99(delays),
        "cpu_seconds": round(cpu, 1),
        "memory_peak_mb": round(memory),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--polder", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--orgs", type=int, default=10_000)
    parser.add_argument("--tables", type=int, default=20)
    parser.add_argument("--hourly", type=int, default=1_000)
    parser.add_argument("--window", type=int, default=600, help="seconds for an hour's runs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = {
        "many": many(args.polder, args.work / "many", args.orgs, args.tables),
        "hourly": hourly(args.polder, args.work / "hourly", args.hourly, args.window),
    }
    if args.json:
        print(json.dumps(figures, indent=2))
        return
    for name, values in figures.items():
        print(name)
        for key, value in values.items():
            print(f"  {key:<20} {value:>12,}")


if __name__ == "__main__":
    main()
