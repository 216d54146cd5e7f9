"""When a DAG runs. Thousands of orgs that say `@hourly` do not start in the same second."""

from functools import cache
from zlib import crc32
from zoneinfo import ZoneInfo

from airflow.sdk import CronTriggerTimetable
from croniter import croniter

_PRESETS = {
    "@annually": "0 0 1 1 *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}

# Preset → the minutes over which orgs are spread, and the steps between them: few enough that DAGs
# share timetables, as making one costs more than the DAG.
_SPREAD = {"@hourly": (60, 1), "@daily": (24 * 60, 5), "@weekly": (7 * 24 * 60, 30)}


def timetable(
    when: str | None, org: str, spread: bool, timezone: str = "UTC"
) -> CronTriggerTimetable | None:
    """What Airflow takes as a DAG's schedule: a cron expression or preset, in the time zone of that name.

    With `spread`, the presets `@hourly`, `@daily` and `@weekly` begin at a time of the org's own,
    always the same. Raises `ValueError` for what is no schedule.
    """
    if when is None or when in ("external", "manual"):
        return None
    if spread and when in _SPREAD:
        minutes, step = _SPREAD[when]
        slot = crc32(org.encode()) % (minutes // step) * step
        days, minute_of_day = divmod(slot, 24 * 60)
        hour, minute = divmod(minute_of_day, 60)
        when = {
            "@hourly": f"{minute} * * * *",
            "@daily": f"{minute} {hour} * * *",
            "@weekly": f"{minute} {hour} * * {days}",
        }[when]
    return _shared(_PRESETS.get(when, when), timezone)


@cache
def _shared(expression: str, timezone: str) -> CronTriggerTimetable:
    # Airflow itself looks at it only when the file has been parsed, and then it is all DAGs' error.
    if len(expression.split()) != 5 or not croniter.is_valid(expression):
        raise ValueError(f"has a schedule that is no cron expression: {expression!r}")
    try:
        ZoneInfo(timezone)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"has a schedule in no time zone: {timezone!r}") from error
    return CronTriggerTimetable(expression, timezone=timezone)
