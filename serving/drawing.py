"""The orders of one request in the engine: submitted together, watched until drawn, and taken back together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from serving.admission import Asked, no_model, queue_full
from serving.engine import Drawn, EngineClosed, NoModel, Preview, QueueFull, Ticket
from serving.schemas import ApiError

if TYPE_CHECKING:
    from serving.generation import Service

_log = logging.getLogger("ray.serve")
CLIENT_CLOSED = 499  # the client went away, or cancelled the request: its answer is seen by nobody, or says so
Happening = tuple[int, Preview | Future[Drawn]]  # which order, and what has come of it


class Drawing:
    """What happens to the orders of ``asked``, in order of time. For one event loop; ends with :meth:`end`."""

    def __init__(self, service: Service, asked: Asked, receive: Receive) -> None:
        self._service, self._asked, self._receive = service, asked, receive
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[Happening | Exception] = asyncio.Queue()
        self._hold = service.running.hold(asked.id, asked.key.id if asked.key else None, self._cancel)
        self._watch: asyncio.Task[None] | None = None
        self._deadline = time.monotonic() + service.timeout_s
        self.tickets: list[Ticket] = []

    async def begin(self) -> None:
        """Give all orders to the engine, or none.

        Raises:
            ApiError: 429 or 503; the engine takes none.
        """
        await run_in_threadpool(self._hold.begin)
        body, engine = self._asked.body, self._service.engine
        previews = (body.partial_images or 0) if body else 0
        try:
            for number, order in enumerate(self._asked.orders):
                note = self._noting(number)
                ticket = engine.submit(
                    order,
                    self._asked.served,
                    owner=self._asked.owner,
                    timeout_s=self._service.timeout_s,
                    partial_images=previews,
                    on_preview=note,
                )
                self.tickets.append(ticket)
                ticket.future.add_done_callback(note)
        except Exception as error:
            raise self.explained(error) from error
        self._watch = asyncio.create_task(self._until_left())

    async def happened(self, within_s: float | None = None) -> Happening | None:
        """What comes next: a preview, or an order's future that is done. None: nothing did ``within_s`` seconds.

        Raises:
            ApiError: the request was cancelled. ClientDisconnect: the client has left. TimeoutError: it takes too long.
        """
        left = self._deadline - time.monotonic()
        try:
            async with asyncio.timeout(left if within_s is None else min(left, within_s)):
                item = await self._inbox.get()
        except TimeoutError:
            if within_s is not None and within_s < left:
                return None
            raise
        if isinstance(item, Exception):
            raise item
        return item

    async def all(self) -> list[Drawn]:
        """What was drawn of each order, when all are done.

        Raises:
            as :meth:`happened`, and what the engine raised.
        """
        drawn: dict[int, Drawn] = {}
        while len(drawn) < len(self.tickets):
            happening = await self.happened()
            if happening and isinstance(happening[1], Future):
                drawn[happening[0]] = happening[1].result()
        return [drawn[number] for number in range(len(self.tickets))]

    @property
    def begun(self) -> bool:
        """Whether the engine has begun with any of it."""
        return any(ticket.progress().state != "queued" for ticket in self.tickets)

    def end(self) -> None:
        """Take back what is not drawn, and forget the request."""
        for ticket in self.tickets:
            ticket.cancel()
        if self._watch is not None:
            self._watch.cancel()
        self._hold.end()

    def explained(self, error: Exception) -> Exception:
        """The answer to what the engine raised; other errors as they are."""
        if isinstance(error, QueueFull):
            return queue_full(error)
        if isinstance(error, TimeoutError):
            message = f"The picture was not ready after {self._service.timeout_s:.0f} s."
            return ApiError(503, "timeout", message, retry_after=self._service.engine.wait_estimate())
        if isinstance(error, EngineClosed):
            return ApiError(503, "shutting_down", "The server is being stopped.", retry_after=5)
        return no_model() if isinstance(error, NoModel) else error

    def _cancel(self) -> None:
        """Called from another thread, when somebody cancels the request."""
        self._note(ApiError(CLIENT_CLOSED, "cancelled", "The request was cancelled."))
        for ticket in self.tickets:
            ticket.cancel()

    async def _until_left(self) -> None:
        try:
            while (await self._receive())["type"] != "http.disconnect":
                pass
        except Exception as error:  # the proxy between is gone, and so is the client's connection to it
            _log.warning("Request %s lost its connection: %r", self._asked.id, error)
        self._inbox.put_nowait(ClientDisconnect())

    def _noting(self, number: int) -> Callable[[Preview | Future[Drawn]], None]:
        return lambda what: self._note((number, what))

    def _note(self, item: Happening | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads it any more
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, item)
