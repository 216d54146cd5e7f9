"""From a step to the run that it was."""

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class PolderRunLink(BaseOperatorLink):
    """`GET /v1/orgs/{org}/runs/{run}`: the run's state, report and error, for whoever has a key."""

    name = "Polder run"

    def get_link(self, operator: "BaseOperator", *, ti_key: "TaskInstanceKey") -> str:
        """The run's address, as the step has left it; empty for a step that started none."""
        return getattr(operator, "run_url", None) or ""
