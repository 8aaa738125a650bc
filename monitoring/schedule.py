"""A job at the times of a cron expression, in this process, until it is told to stop."""

from __future__ import annotations

import datetime
import threading
import traceback
from collections.abc import Callable

from components.contracts.errors import AtelierError, InputError
from components.runtime.progress import say

_LOOK_S = 60.0  # the clock is looked at this often: a suspended machine or a changed clock is noticed


def _local_now() -> datetime.datetime:
    return datetime.datetime.now().astimezone()


def next_time(cron: str, after: datetime.datetime) -> datetime.datetime:
    """The first time after ``after`` that the five-field cron expression (or @daily and the like) names.

    Raises:
        InputError: the expression cannot be read, or names no time, as 31 February does.
    """
    from croniter import CroniterError, croniter

    try:
        if not (cron.startswith("@") or len(cron.split()) == 5):
            raise CroniterError(f"{len(cron.split())} fields")
        found: datetime.datetime = croniter(cron, after).get_next(datetime.datetime)
    except (CroniterError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"The schedule {cron!r} cannot be used: {error}",
            expected='five cron fields "minute hour day month weekday", such as "0 3 * * *" for 3:00 every day',
            remedy="correct --schedule (or run.schedule in the recipe)",
        ) from error
    return found


def run_on_schedule(
    cron: str,
    job: Callable[[], None],
    stop: threading.Event,
    now: Callable[[], datetime.datetime] = _local_now,
) -> None:
    """Call ``job`` at the times of ``cron``, in local time, until ``stop`` is set.

    Jobs do not overlap: times that pass while one runs are left out. A job that fails is reported and the
    schedule goes on.

    Raises:
        InputError: the expression is wrong; nothing has run then.
    """
    while not stop.is_set():
        due = next_time(cron, now())
        say(f"schedule {cron!r}: next run at {due:%Y-%m-%d %H:%M %Z}".rstrip())
        while (left := (due - now()).total_seconds()) > 0:
            if stop.wait(min(left, _LOOK_S)):
                return
        try:
            job()
        except AtelierError as error:
            say(f"schedule: the run failed: {error} The schedule goes on.")
        except Exception:
            say(f"schedule: the run failed; the schedule goes on.\n{traceback.format_exc()}")
