"""Steps that `polder serve` carries out. They hold a worker only while they start and end."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from polder_airflow.hook import PolderHook, PolderRefused
from polder_airflow.lineage import lineage
from polder_airflow.links import PolderRunLink
from polder_airflow.trigger import OperationTrigger
from polder_airflow.work import Step, Work

if TYPE_CHECKING:
    from airflow.sdk import Context


class PolderOperator(BaseOperator):
    """Some work on one table through the API; gives the operation's document.

    `sources` names the source of tables, for OpenLineage alone.

    `deferrable=False` waits in the worker. An operation that failed in a way that asking again will
    not mend (`retryable: false`), or was cancelled, fails the step without Airflow's retries.
    """

    template_fields: Sequence[str] = ("org", "table", "conn_id")
    ui_color = "#d7ecf5"
    operator_extra_links = (PolderRunLink(),)

    def __init__(
        self,
        *,
        org: str,
        table: str,
        work: str = Work.INGEST,
        sources: Mapping[str, str] | None = None,
        conn_id: str = PolderHook.default_conn_name,
        poll_seconds: float = 5.0,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.org = org
        self.table = table
        self.work = work
        self.sources = sources
        self.conn_id = conn_id
        self.poll_seconds = poll_seconds
        self.deferrable = deferrable
        self._operation: str | None = None
        self.run_url: str | None = None

    def execute(self, context: "Context") -> Any:
        """Starts the work and waits for its end."""
        step = Step(Work(self.work), self.org, self.table)
        hook = PolderHook(self.conn_id)
        try:
            self._operation = hook.start(step, _idempotency_key(context))
        except PolderRefused as error:
            raise AirflowFailException(str(error)) from error
        self.log.info("%s of %s/%s is operation %s", step.work, step.org, step.table, self._operation)
        if self.deferrable:
            trigger = OperationTrigger(self.conn_id, self._operation, self.poll_seconds)
            self.defer(trigger=trigger, method_name="finish", timeout=self.execution_timeout)
        while not (found := hook.operation(self._operation)).ended:
            time.sleep(self.poll_seconds)
        event = {"id": found.id, "status": found.status, "document": found.document}
        return self.finish(context, event)

    def finish(self, context: "Context", event: dict[str, Any]) -> Any:
        """What the operation's end means for the step."""
        if "error" in event:
            raise AirflowException(f"operation {event['id']}: {event['error']}")
        document = event["document"]
        runs = document.get("runs", [])
        if runs:
            self._link(runs[0])
        if event["status"] == "succeeded":
            return document
        errors = [run["error"] for run in runs if run.get("error")]
        error = errors[0] if errors else {}
        said = [str(error[part]) for part in ("message", "title", "detail", "hint") if error.get(part)]
        text = f"operation {event['id']} {event['status']}: {': '.join(said) or 'no reason given'}"
        if event["status"] == "cancelled" or error.get("retryable") is False:
            raise AirflowFailException(text)
        raise AirflowException(text)

    def _link(self, run: dict[str, Any]) -> None:
        try:
            self.run_url = PolderHook(self.conn_id).run_url(self.org, run["id"])
        except Exception as error:  # what was done is done, with a link to it or without
            self.log.warning("no link to the run: %s", error)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """What OpenLineage's provider asks after the step has succeeded."""
        step = Step(Work(self.work), self.org, self.table)
        return lineage(step, (self.sources or {}).get(self.table))

    def on_kill(self) -> None:
        """Ends the work with the step."""
        if self._operation is not None:
            PolderHook(self.conn_id).cancel(self._operation)


class _Fixed(PolderOperator):
    """An operator of one kind of work."""

    _work: ClassVar[Work]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(work=self._work, **kwargs)


class PolderRunOperator(_Fixed):
    """Brings one lake table up to date."""

    _work = Work.INGEST


class PolderValidateOperator(_Fixed):
    """Proves one lake table against its source."""

    _work = Work.VALIDATE


class PolderMaintainOperator(_Fixed):
    """Looks after one lake table."""

    _work = Work.MAINTAIN


def _idempotency_key(context: "Context") -> str:
    """One an attempt: a request that is sent twice starts nothing twice."""
    ti = context["ti"]
    return f"airflow/{ti.dag_id}/{ti.run_id}/{ti.task_id}/{ti.map_index}/{ti.try_number}"
