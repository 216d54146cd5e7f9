"""What Airflow asks an installed provider."""

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """The provider's parts, in Airflow's own form (`provider_info.schema.json`)."""
    integration = "Polder"
    return {
        "package-name": "airflow-provider-polder",
        "name": integration,
        "description": "Ingestion, validation and maintenance of Polder's lake tables.",
        "integrations": [
            {
                "integration-name": integration,
                "tags": ["service"],
            }
        ],
        "operators": [
            {
                "integration-name": integration,
                "python-modules": [
                    "polder_airflow.operators",
                    "polder_airflow.cli",
                    "polder_airflow.kubernetes",
                ],
            }
        ],
        "hooks": [{"integration-name": integration, "python-modules": ["polder_airflow.hook"]}],
        "triggers": [{"integration-name": integration, "python-modules": ["polder_airflow.trigger"]}],
        "extra-links": ["polder_airflow.links.PolderRunLink"],
        "connection-types": [
            {
                "connection-type": "polder",
                "hook-class-name": "polder_airflow.hook.PolderHook",
                "hook-name": "Polder",
            }
        ],
    }
