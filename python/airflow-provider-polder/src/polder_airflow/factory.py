"""From one manifest to the DAGs of every org: ingestion, validation, maintenance.

    from polder_airflow import dags

    dags(globals(), manifest="/etc/polder/manifest.json")
"""

import logging
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, BaseOperator, conf, get_parsing_context
from airflow.sdk.exceptions import AirflowFailException

from polder_airflow.manifest import EXTERNAL, Broken, Manifest, Org, load
from polder_airflow.schedules import timetable
from polder_airflow.work import Work

log = logging.getLogger(__name__)

SCHEDULES: Mapping[str, str | None] = {"ingest": "@hourly", "validate": "@daily", "maintain": "@daily"}
_BROKEN = "broken"
_START = datetime(2026, 1, 1, tzinfo=UTC)
_STEPS = ("mapped", "explicit")
_CLOCKS = ("airflow", "polder")


@dataclass(frozen=True)
class _Plan:
    """What `dags` was asked for, checked."""

    prefix: str
    works: tuple[Work, ...]
    schedules: Mapping[str, str | None]
    clock: str
    spread: bool
    steps: str
    pools: bool
    operator: type[BaseOperator]
    options: Mapping[str, Any]
    lineage: bool
    default_args: Mapping[str, Any]
    dag_options: Mapping[str, Any]
    runs_max: int | None

    def dag_id(self, org: str, work: str) -> str:
        return f"{self.prefix}_{org}_{work}"

    def of(self, dag_id: str) -> tuple[str, str] | None:
        """The org and the work of a DAG's id, if it may be one of ours."""
        org, _, work = dag_id.removeprefix(f"{self.prefix}_").rpartition("_")
        return (org, work) if org and self.dag_id(org, work) == dag_id else None


def dags(
    namespace: MutableMapping[str, Any],
    *,
    manifest: str | Path,
    run_with: str = "api",
    options: Mapping[str, Any] | None = None,
    works: tuple[str, ...] = tuple(Work),
    schedules: Mapping[str, str | None] | None = None,
    clock: str | None = None,
    spread: bool = True,
    steps: str = "mapped",
    pools: bool = False,
    retries: int = 2,
    retry_delay: timedelta = timedelta(minutes=5),
    default_args: Mapping[str, Any] | None = None,
    dag_options: Mapping[str, Any] | None = None,
    prefix: str = "polder",
) -> None:
    """Puts a DAG for each org and kind of work into `namespace`: `polder_<org>_ingest` and so on.

    - `manifest`: a file that `polder manifest --out` wrote. Nothing else is read.
    - `run_with`: `api` (`polder serve`, deferrable), `cli` (the binary on the worker) or `pod`
      (Kubernetes); `options` are that operator's arguments (`conn_id`, `project`, `image`, …).
    - `works`: which of `ingest`, `validate`, `maintain`.
    - `schedules`: by work, a cron expression or preset, `None` for by hand; what the manifest says of
      an org comes first. With `spread`, the presets start at a time of each org's own.
    - `clock`: who keeps the times that Polder's own configuration says. `polder`: `polder serve` does,
      and their DAGs are by hand; `airflow`: their DAGs have these times. Absent, `polder` for
      `run_with="api"` and `airflow` for the others. Where it says `external`, and where it says
      nothing, `schedules` holds.
    - `steps`: `mapped`, one mapped task of which each table is an instance, or `explicit`, a task per
      table, which costs ten times the time to parse.
    - `pools`: put each org's steps into the pool `polder_<org>`, which has to exist: see
      `python -m polder_airflow pools`.
    - `retries`, `retry_delay`, `default_args` (alerts: `on_failure_callback`) and `dag_options` are
      Airflow's own.

    When Airflow parses for one DAG, only that is made. An org that cannot be used becomes one DAG
    `polder_<org>_broken` that says why, and the others are what they are without it.

    Raises `ManifestError` for a manifest that cannot be read, `ValueError` for an unknown option.
    """
    if steps not in _STEPS:
        raise ValueError(f"steps={steps!r}: give one of {', '.join(_STEPS)}")
    found = load(manifest)
    clock = clock or ("polder" if run_with == "api" else "airflow")
    if clock not in _CLOCKS:
        raise ValueError(f"clock={clock!r}: give one of {', '.join(_CLOCKS)}")
    plan = _Plan(
        prefix=prefix,
        works=tuple(Work(work) for work in works),
        schedules=SCHEDULES | _known(schedules or {}),
        clock=clock,
        spread=spread,
        steps=steps,
        pools=pools,
        operator=_operator(run_with),
        options=dict(options or {}),
        # Pods are Kubernetes' own operator, which knows nothing of sources.
        lineage=run_with != "pod" and _has_lineage(),
        default_args={"retries": retries, "retry_delay": retry_delay} | dict(default_args or {}),
        dag_options=_asked_once() | dict(dag_options or {}),
        runs_max=found.runs_max,
    )
    for dag in _made(plan, found, get_parsing_context().dag_id):
        namespace[dag.dag_id] = dag


def _asked_once() -> dict[str, Any]:
    """Defaults that a DAG looks up in Airflow's configuration, a quarter of what it takes to make it."""
    failed_runs = "max_consecutive_failed_dag_runs"
    return {
        failed_runs: conf.getint("core", f"{failed_runs}_per_dag"),
        "disable_bundle_versioning": conf.getboolean("dag_processor", "disable_bundle_versioning"),
    }


def _known(schedules: Mapping[str, str | None]) -> dict[str, str | None]:
    unknown = schedules.keys() - SCHEDULES.keys()
    if unknown:
        raise ValueError(f"schedules for {', '.join(unknown)}: there is {', '.join(SCHEDULES)}")
    return dict(schedules)


def _has_lineage() -> bool:
    try:
        return find_spec("airflow.providers.openlineage") is not None
    except ModuleNotFoundError:
        return False


def _operator(run_with: str) -> type[BaseOperator]:
    # Imported when asked for: pods need a provider that not everybody has.
    if run_with == "api":
        from polder_airflow.operators import PolderOperator

        return PolderOperator
    if run_with == "cli":
        from polder_airflow.cli import PolderCliOperator

        return PolderCliOperator
    if run_with == "pod":
        from polder_airflow.kubernetes import PolderPodOperator

        return PolderPodOperator
    raise ValueError(f"run_with={run_with!r}: give api, cli or pod")


def _made(plan: _Plan, manifest: Manifest, wanted: str | None) -> list[DAG]:
    """All DAGs, or the one that Airflow parses for, which need not be one of ours."""
    only, works = None, plan.works
    if wanted is not None:
        named = plan.of(wanted)
        if named is None:
            return []
        only = frozenset([named[0]])
        works = tuple(work for work in plan.works if work == named[1])
    made: list[DAG] = []
    for org in manifest.orgs(only):
        made += _of_org(plan, org, works)
    return [dag for dag in made if wanted in (None, dag.dag_id)]


def _of_org(plan: _Plan, org: Org | Broken, works: tuple[Work, ...]) -> list[DAG]:
    if isinstance(org, Org) and not org.tables:
        return []
    if isinstance(org, Org):
        try:
            return [_dag(plan, org, work) for work in works]
        except Exception as error:  # whatever Airflow dislikes of one org must not end the others
            log.exception("org %s has no DAGs", org.id)
            org = Broken(org.id, str(error))
    log.error("org %s of the manifest %s", org.id, org.reason)
    return [_note(plan, org)]


def _dag(plan: _Plan, org: Org, work: Work) -> DAG:
    runs = org.runs_max if org.runs_max is not None else plan.runs_max
    when, timezone = _when(plan, org, work)
    default_args = dict(plan.default_args)
    if org.retries is not None:
        default_args["retries"] = org.retries
    dag_options: dict[str, Any] = {
        "schedule": timetable(when, org.id, plan.spread, timezone),
        "start_date": _START,
        "catchup": False,
        # Two runs of a table at once would be one too many.
        "max_active_runs": 1,
        "max_active_tasks": max(runs or 1, 1),
        "default_args": default_args,
        "dag_display_name": f"{org.name or org.id}: {work}",
        "tags": ["polder", f"org:{org.id}", str(work)],
    }
    dag = DAG(plan.dag_id(org.id, work), **(dag_options | plan.dag_options))
    options = {"org": org.id, "work": str(work), **plan.options}
    if plan.pools:
        options["pool"] = f"{plan.prefix}_{org.id}"
    if plan.lineage:
        options["sources"] = dict(org.sources)
    _steps(plan, dag, work, org.tables, options)
    return dag


def _when(plan: _Plan, org: Org, work: Work) -> tuple[str | None, str]:
    """When a DAG runs, and in which time zone."""
    if work in org.schedules:
        return org.schedules[work], "UTC"
    said = org.clock.times.get(work, EXTERNAL)
    if said == EXTERNAL:
        return plan.schedules[work], "UTC"
    return (None, "UTC") if plan.clock == "polder" else (said, org.clock.timezone)


def _steps(
    plan: _Plan, dag: DAG, work: Work, tables: tuple[str, ...], options: dict[str, Any]
) -> None:
    if plan.steps == "mapped":
        common = plan.operator.partial(
            task_id=str(work), dag=dag, map_index_template="{{ task.table }}", **options
        )
        common.expand(table=list(tables))
        return
    for table, id in zip(tables, _task_ids(work, tables), strict=True):
        plan.operator(task_id=id, table=table, dag=dag, **options)


def _task_ids(work: Work, tables: tuple[str, ...]) -> list[str]:
    """`ingest_opportunity`; names that no task's id may have are spelt with what may stand there,
    and told apart by a number."""
    ids: dict[str, None] = {}
    for table in tables:
        safe = "".join(c if c.isascii() and (c.isalnum() or c in "_-.") else "_" for c in table)
        id, number = f"{work}_{safe}"[:200], 1
        base = id
        while id in ids:
            number += 1
            id = f"{base}_{number}"
        ids[id] = None
    return list(ids)


class BrokenOrg(BaseOperator):
    """Fails with what is wrong with an org's entry."""

    def __init__(self, *, reason: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reason = reason

    def execute(self, context: Any) -> None:
        """Says it."""
        raise AirflowFailException(self.reason)


def _note(plan: _Plan, org: Broken) -> DAG:
    reason = f"org {org.id} of the manifest {org.reason}"
    dag = DAG(
        plan.dag_id(org.id, _BROKEN),
        schedule=None,
        tags=["polder", _BROKEN],
        doc_md=f"This org has no DAGs: {reason}",
    )
    BrokenOrg(task_id=_BROKEN, reason=reason, dag=dag)
    return dag


