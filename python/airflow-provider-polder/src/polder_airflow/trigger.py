"""Waits for an operation's end in the triggerer, where waiting costs no worker."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from polder_airflow.hook import PolderHook, PolderRefused, PolderUnavailable

# So long may the server be away, for instance while it is replaced by a newer one.
_AWAY_SECONDS_MAX = 600.0


class OperationTrigger(BaseTrigger):
    """Fires with `{"id", "status", "document"}` when the operation has ended, and with
    `{"id", "error"}` when that cannot be found out."""

    def __init__(self, conn_id: str, operation: str, poll_seconds: float) -> None:
        super().__init__()
        self.conn_id = conn_id
        self.operation = operation
        self.poll_seconds = poll_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What another process makes the same trigger of."""
        kwargs = {
            "conn_id": self.conn_id,
            "operation": self.operation,
            "poll_seconds": self.poll_seconds,
        }
        return "polder_airflow.trigger.OperationTrigger", kwargs

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Asks until the end."""
        try:
            event = await self._end()
        except (PolderRefused, PolderUnavailable) as error:
            event = {"id": self.operation, "error": str(error)}
        yield TriggerEvent(event)

    async def _end(self) -> dict[str, Any]:
        away_since: float | None = None
        clock = asyncio.get_running_loop().time
        async with PolderHook(self.conn_id).watching() as watch:
            while True:
                try:
                    found = await watch.operation(self.operation)
                    away_since = None
                    if found.ended:
                        return {"id": found.id, "status": found.status, "document": found.document}
                except PolderUnavailable as error:
                    away_since = clock() if away_since is None else away_since
                    if clock() - away_since > _AWAY_SECONDS_MAX:
                        raise
                    self.log.warning("%s", error)
                await asyncio.sleep(self.poll_seconds)
