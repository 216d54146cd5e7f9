"""Airflow parses the DAGs of 5,000 orgs, and one of them.

Started by `cargo xtask bench airflow`, in Airflow's own environment. The manifest is one as `polder manifest`
writes, with schedules and limits of each org and one org that cannot be used. Every figure is of a process of its
own, as Airflow's are: the time that the DAG file takes, without the start of Python and the import of Airflow, by the
clock and of the processor, and the most memory the process had.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

PROVIDER = Path(__file__).resolve().parent.parent.parent / "python/airflow-provider-polder/src"
WORKS = 3
SECONDS_ALL_MAX, SECONDS_ONE_MAX = 15, 0.5
CHILD = """
import json, resource, sys, time
from airflow.dag_processing.dagbag import DagBag
from polder_airflow import dags
begin, cpu = time.perf_counter(), time.process_time()
bag = DagBag(dag_folder=sys.argv[1])
wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "wall_s": wall, "cpu_s": cpu, "rss_mb": rss / 1024, "dags": len(bag.dags),
    "broken": [id for id in bag.dags if id.endswith("_broken")], "errors": dict(bag.import_errors),
}))
"""


def manifest(orgs: int, tables: int) -> dict:
    listed = [{"name": f"table_{number}", "source": "revdb", "mode": "append"} for number in range(tables)]
    made = []
    for id in range(orgs):
        times = {"ingest": f"{id % 60} * * * *", "maintain": "0 3 * * *", "timezone": "Europe/Amsterdam"}
        made.append({"id": str(id), "schedule": times, "limits": {"runs": 1 + id % 4}, "tables": listed})
    made.append({"id": "none", "schedule": {"ingest": "now and then"}, "tables": listed})
    return {"format": 1, "hash": "sha256:0", "limits": {"runs": 2}, "orgs": made}


def parsed(work: Path, dag: str | None) -> dict:
    """What a process of its own takes for all DAGs, or for one as a step's process does."""
    env = os.environ | {
        "AIRFLOW_HOME": str(work / "home"), "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "600", "AIRFLOW__LOGGING__LOGGING_LEVEL": "CRITICAL",
        "PYTHONPATH": str(PROVIDER),
    }
    if dag is not None:
        env["_AIRFLOW_PARSING_CONTEXT_DAG_ID"] = dag
    command = [sys.executable, "-c", CHILD, str(work / "polder.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"parsing failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def medians(samples: list[dict]) -> dict:
    return {key: statistics.median(sample[key] for sample in samples) for key in ("wall_s", "cpu_s", "rss_mb")}


def main() -> None:
    parser = argparse.ArgumentParser(prog="cargo xtask bench airflow", description=__doc__)
    parser.add_argument("--orgs", type=int, default=5000)
    parser.add_argument("--tables", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--check", action="store_true", help="fail where a goal is not met")
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    path = args.work / "manifest.json"
    path.write_text(json.dumps(manifest(args.orgs, args.tables)))
    # The clock is Airflow's: so each org has a timetable of its own configuration.
    text = f"from polder_airflow import dags\n\ndags(globals(), manifest={str(path)!r}, clock='airflow')\n"
    (args.work / "polder.py").write_text(text)
    everything = [parsed(args.work, None) for _ in range(args.runs)]
    one = f"polder_{args.orgs - 1}_ingest"
    single = [parsed(args.work, one) for _ in range(args.runs)]
    for sample in everything:
        expected = (args.orgs * WORKS + 1, ["polder_none_broken"], {})
        found = (sample["dags"], sample["broken"], sample["errors"])
        assert found == expected, f"{found} instead of {expected}"
    assert all(sample["dags"] == 1 and not sample["errors"] for sample in single), single
    report = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "orgs": args.orgs, "tables": args.tables, "dags": args.orgs * WORKS, "runs": args.runs,
        "all": medians(everything), "one": medians(single),
    }
    print(json.dumps(report) if args.json else as_text(report))
    missed = []
    if report["all"]["wall_s"] > SECONDS_ALL_MAX:
        missed.append(f"all DAGs took more than {SECONDS_ALL_MAX} s")
    if report["one"]["wall_s"] > SECONDS_ONE_MAX:
        missed.append(f"one DAG took more than {SECONDS_ONE_MAX} s")
    if args.check and missed:
        sys.exit("; ".join(missed))


def as_text(report: dict) -> str:
    lines = [
        f"{report['machine']['cores']} cores, Python {report['machine']['python']};"
        f" medians of {report['runs']} runs; {report['orgs']} orgs of {report['tables']} tables",
    ]
    for what, key in [(f"{report['dags']} DAGs", "all"), ("one DAG", "one")]:
        figures = report[key]
        lines.append(
            f"{what}: {figures['wall_s']:.2f} s ({figures['cpu_s']:.2f} s of CPU), {figures['rss_mb']:.0f} MB at most"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
