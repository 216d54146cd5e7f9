"""Airflow runs Polder.

    from polder_airflow import dags

    dags(globals(), manifest="/etc/polder/manifest.json")

makes the DAGs of every org of the manifest that `polder manifest` writes. The operators are in
`polder_airflow.operators`, `polder_airflow.cli` and `polder_airflow.kubernetes`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polder_airflow.factory import dags

__all__ = ["dags"]


def __getattr__(name: str) -> Any:
    # Airflow imports this package while it is being imported itself, to ask what the provider has.
    if name == "dags":
        from polder_airflow.factory import dags

        return dags
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
