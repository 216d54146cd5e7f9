"""Steps that the `polder` binary carries out, as a process on the worker."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from polder_airflow.lineage import lineage
from polder_airflow.work import Step, Work

if TYPE_CHECKING:
    from airflow.sdk import Context

# Exit codes of `polder` (docs/reference/exit-codes.md).
_DONE, _FOR_NOW, _INTERRUPTED = 0, 75, 130
# Polder stops within seconds when asked; a process that does not is killed.
_STOP_SECONDS_MAX = 30.0
# XCom is a row of Airflow's database.
_XCOM_REPORTS_MAX = 100


class PolderCliOperator(BaseOperator):
    """Some work on one table, by the binary; gives its reports without their details, at most 100.

    `project` is the folder of `polder.toml`; `env` is put over the worker's environment, and is where
    secrets that the configuration refers to come from when the worker has them not; `sources` names the
    source of tables, for OpenLineage alone.
    """

    template_fields: Sequence[str] = ("org", "table", "project", "binary", "env")
    ui_color = "#d7ecf5"

    def __init__(
        self,
        *,
        org: str,
        table: str,
        work: str = Work.INGEST,
        sources: Mapping[str, str] | None = None,
        project: str = ".",
        binary: str = "polder",
        env: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.org = org
        self.table = table
        self.work = work
        self.sources = sources
        self.project = project
        self.binary = binary
        self.env = env
        self._process: subprocess.Popen[str] | None = None

    def execute(self, context: "Context") -> Any:
        """Runs the binary to its end."""
        step = Step(Work(self.work), self.org, self.table)
        command = [self.binary, *step.arguments()]
        self.log.info("%s in %s", " ".join(command), self.project)
        try:
            self._process = subprocess.Popen(
                command,
                cwd=self.project,
                env=os.environ | dict(self.env or {}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise AirflowFailException(f"{self.binary} cannot be started: {error}") from error
        printed, said = self._process.communicate()
        for line in said.splitlines():
            self.log.info("%s", line)
        reports = _reports(printed)
        summaries = [_summary(report) for report in reports[:_XCOM_REPORTS_MAX]]
        for summary in summaries:
            self.log.info("%s", json.dumps(summary))
        self._check(self._process.returncode, reports, said)
        return summaries

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """What OpenLineage's provider asks after the step has succeeded."""
        step = Step(Work(self.work), self.org, self.table)
        return lineage(step, (self.sources or {}).get(self.table))

    def on_kill(self) -> None:
        """Asks the binary to stop: nothing unfinished becomes visible."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _check(self, code: int, reports: list[dict[str, Any]], said: str) -> None:
        if code == _DONE:
            return
        errors = [report["error"] for report in reports if report.get("error")]
        text = "; ".join(str(error.get("message")) for error in errors) or said.strip()[-2000:]
        message = f"polder exited with {code}: {text or 'it said nothing'}"
        again = code in (_FOR_NOW, _INTERRUPTED) or any(error.get("retryable") for error in errors)
        # A process that was killed (a negative code) says nothing of what would happen next time.
        raise (AirflowException if again or code < 0 else AirflowFailException)(message)


def _reports(printed: str) -> list[dict[str, Any]]:
    """The reports of a JSON document: `polder` prints them under the name of what it did."""
    try:
        document = json.loads(printed)
    except ValueError:
        return []
    if isinstance(document, dict):
        lists = [value for value in document.values() if isinstance(value, list)]
        document = lists[0] if lists else [document]
    return [report for report in document if isinstance(report, dict)]


def _summary(report: dict[str, Any]) -> dict[str, Any]:
    """What fits on a line: the details are long, and name keys of rows that were altered."""
    inner = report.get("report")
    flat = report | (inner if isinstance(inner, dict) else {})
    return {name: value for name, value in flat.items() if not isinstance(value, (dict, list))}
