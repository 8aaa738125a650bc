"""Bodies of answers, within the byte cap of one and the memory that all of a task may take."""

from __future__ import annotations

import ctypes
import http.client
import io
import time
from functools import cache
from threading import Condition

from components.contracts.records import CollectReason
from components.data.connections import PinnedConnection
from components.data.guard import Refusal

CHUNK = 1 << 16
SMALL = 1 << 18  # bodies up to here are not counted
TASK_BYTES = 64 << 20  # larger bodies in memory at once, of one task, if one alone is not allowed more
_UNBOUNDED = 1 << 62
_M_ARENA_MAX = -8  # malloc.h


class Budget:
    """Bytes that the larger bodies of one task may take together.

    A body reserves all that it may become before it grows beyond :data:`SMALL`, so that no two of them wait for
    each other with their parts in memory.
    """

    def __init__(self, total: int) -> None:
        self._free = self._total = total
        self._changed = Condition()

    def reserve(self, size: int) -> Lease:
        """Waits until ``size`` bytes, at most the whole budget, are free; they are until the lease is released."""
        size = min(size, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        return Lease(self, size)

    def _give_back(self, size: int) -> None:
        with self._changed:
            self._free += size
            self._changed.notify_all()


class Lease:
    """Bytes reserved for one body. Released by :meth:`release`, at the latest when it is garbage."""

    def __init__(self, budget: Budget | None = None, size: int = 0) -> None:
        self._budget, self._size = budget, size

    def __bool__(self) -> bool:
        return self._budget is not None

    def shrink(self, size: int) -> None:
        """Keep only what the body came to."""
        if self._budget is not None and size < self._size:
            self._budget._give_back(self._size - size)
            self._size = size

    def release(self) -> None:
        """Give the bytes back; again is allowed."""
        budget, self._budget = self._budget, None
        if budget is not None:
            budget._give_back(self._size)

    def __del__(self) -> None:
        self.release()


def read_body(
    response: http.client.HTTPResponse, connection: PinnedConnection, max_bytes: int, budget: Budget, cut: bool = False
) -> tuple[bytes, Lease]:
    """The body of an answer, checked for length, and the lease of its memory. What was compressed stays so.

    Args:
        response: with status 200 to 299, its headers read.
        connection: that it comes on; waiting for the budget is not the server's time and moves its deadline.
        max_bytes: of the body.
        cut: more than ``max_bytes`` is cut off instead of refused.

    Raises:
        Refusal: ``TOO_MANY_BYTES``, ``TRUNCATED``, or ``NOT_AN_IMAGE`` for an encoding that was not asked for.
        TimeoutError: the deadline passed.
    """
    status = response.status
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):  # never unpacked: a small answer could unfold into a huge one
        raise Refusal(
            CollectReason.NOT_AN_IMAGE, f"content encoding {encoding[:20]!r}, though none was asked for", status
        )
    announced = response.length  # None for chunked answers and for those that end with the connection
    if announced is not None and announced > max_bytes and not cut:
        raise Refusal(
            CollectReason.TOO_MANY_BYTES, f"{announced} bytes announced, at most {max_bytes} are taken", status
        )
    connection.allowance = _UNBOUNDED  # the cap below holds from here on
    if announced is not None:
        return _read_announced(response, connection, min(announced, max_bytes), announced, budget)
    return _read_to_end(response, connection, max_bytes, budget, cut)


def _read_announced(
    response: http.client.HTTPResponse, connection: PinnedConnection, wanted: int, announced: int, budget: Budget
) -> tuple[bytes, Lease]:
    body, lease = response.read(min(wanted, SMALL)), Lease()
    received = len(body)
    if received == SMALL < wanted:  # a server that sends little of what it announced takes nothing of the budget
        lease = _reserved(budget, connection, wanted)
        whole = io.BytesIO()
        whole.seek(wanted - 1)
        whole.write(b"\0")  # filled in place, and given away without a copy
        with whole.getbuffer() as view:
            view[:SMALL] = body
            received += response.readinto(view[SMALL:])
        body = whole.getvalue()
    if received < wanted:
        body = b""
        detail = f"{received} bytes came, {announced} were announced"
        raise Refusal(CollectReason.TRUNCATED, detail, response.status, received=received)
    return body, lease


def _read_to_end(
    response: http.client.HTTPResponse, connection: PinnedConnection, max_bytes: int, budget: Budget, cut: bool
) -> tuple[bytes, Lease]:
    body, received, lease = io.BytesIO(), 0, Lease()  # grows in place, and is given away without a copy
    complete = False
    try:
        while received <= max_bytes:
            if received >= SMALL and not lease:
                lease = _reserved(budget, connection, max_bytes)
            part = response.read1(min(CHUNK, max_bytes + 1 - received))
            if not part:
                complete = True
                break
            received += body.write(part)
    except (http.client.IncompleteRead, ConnectionResetError) as error:
        body.close()
        detail = f"{received} bytes came, more were announced"
        raise Refusal(CollectReason.TRUNCATED, detail, response.status, received=received) from error
    except BaseException:
        body.close()
        raise
    if not complete:
        if not cut:
            body.close()
            raise Refusal(CollectReason.TOO_MANY_BYTES, f"more than {max_bytes} bytes", response.status)
        body.truncate(max_bytes)
    lease.shrink(min(received, max_bytes))
    return body.getvalue(), lease


def _reserved(budget: Budget, connection: PinnedConnection, size: int) -> Lease:
    """A lease; the time it is waited for is not the server's."""
    started = time.monotonic()
    lease = budget.reserve(size)
    connection.deadline += time.monotonic() - started
    return lease


@cache
def keep_few_arenas() -> None:
    """Let this process's threads share two of the C library's memory pools, where it is glibc.

    Otherwise each thread has its own, and each keeps what the largest body that the thread ever held took.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)
