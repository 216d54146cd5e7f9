"""What a step reads and writes, as OpenLineage says it. Names are Polder's own, not addresses, which the manifest
does not have."""

from typing import Any

from polder_airflow.work import Step, Work

LAKE = "polder://lake"
SOURCES = "polder://sources/"


def lineage(step: Step, source: str | None) -> Any:
    """The tables of a step: the source's table `<org>.<table>` where its source is known, and the lake's table
    `org_<org>.<table>`. `None` without OpenLineage's provider."""
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage
        from openlineage.client.event_v2 import Dataset
    except ImportError:
        return None
    lake = Dataset(namespace=LAKE, name=f"org_{step.org}.{step.table}")
    read = []
    if source is not None:
        read.append(Dataset(namespace=f"{SOURCES}{source}", name=f"{step.org}.{step.table}"))
    if step.work is Work.INGEST:
        return OperatorLineage(inputs=read, outputs=[lake])
    if step.work is Work.VALIDATE:
        return OperatorLineage(inputs=[*read, lake])
    return OperatorLineage(inputs=[lake], outputs=[lake])
