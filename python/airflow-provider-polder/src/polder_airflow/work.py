"""What can be done to a table, and how each door says it. One place, so that the API, the command
line and a pod do the same."""

from dataclasses import dataclass
from enum import StrEnum


class Work(StrEnum):
    """One of the three pipelines of an org."""

    INGEST = "ingest"
    VALIDATE = "validate"
    MAINTAIN = "maintain"


_COMMANDS = {
    Work.INGEST: ("run",),
    Work.VALIDATE: ("validate",),
    Work.MAINTAIN: ("maintain", "all"),
}
_RESOURCES = {
    Work.INGEST: "runs",
    Work.VALIDATE: "validations",
    Work.MAINTAIN: "maintenance",
}


@dataclass(frozen=True)
class Step:
    """Some work on one table of one org."""

    work: Work
    org: str
    table: str

    def arguments(self) -> list[str]:
        """Of the `polder` binary. `--name=value`, so that no name is taken for an option."""
        return [*_COMMANDS[self.work], f"--org={self.org}", f"--table={self.table}", "--json"]

    def resource(self) -> str:
        """What the API is asked to make one of: `POST /v1/orgs/{org}/{resource}`."""
        return _RESOURCES[self.work]

    def body(self) -> dict[str, object]:
        """What the API is sent."""
        return {"tables": [self.table]}
