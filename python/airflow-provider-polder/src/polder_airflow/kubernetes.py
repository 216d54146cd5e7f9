"""Steps that the `polder` binary carries out in a pod of its own, so that ingestion spreads over a
cluster. Needs `apache-airflow-providers-cncf-kubernetes`."""

from collections.abc import Sequence
from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

from polder_airflow.work import Step, Work


class PolderPodOperator(KubernetesPodOperator):
    """Some work on one table, by the binary of `image`, in a pod.

    Where `polder.toml` and the pipelines come from is the image's, or a volume's, given as ever to
    `KubernetesPodOperator`; secrets come as its `secrets` or `env_from`. The working folder of the
    image, or `config`, says where `polder.toml` is.
    """

    template_fields: Sequence[str] = (*KubernetesPodOperator.template_fields, "org", "table")

    def __init__(
        self,
        *,
        org: str,
        table: str,
        work: str = Work.INGEST,
        binary: str = "polder",
        config: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.org = org
        self.table = table
        self.work = work
        self.binary = binary
        self.config = config
        kwargs.setdefault("labels", {"app.kubernetes.io/name": "polder"})
        super().__init__(**kwargs)

    def execute(self, context: Any) -> Any:
        """Makes the pod with what org and table came to be, and waits for its end."""
        step = Step(Work(self.work), self.org, self.table)
        config = [f"--config={self.config}"] if self.config else []
        self.cmds = [self.binary]
        self.arguments = [*step.arguments(), *config]
        return super().execute(context)
