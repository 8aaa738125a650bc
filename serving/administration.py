"""What the image API lets be done to the logbook: erase the rows of a user."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from fastapi import FastAPI, Query, Request
from fastapi import Path as InPath
from pydantic import BaseModel

from serving.answers import ErrorResponse
from serving.auth import ADMIN, require
from serving.erasing import erase
from serving.generation import Service
from serving.quota import Meter
from serving.schemas import ApiError

_A_MINUTE = 10  # erasures of one key: each reads the whole logbook
_LONGEST = 256  # characters of a user's name, as in requests for pictures


class ErasedRows(BaseModel):
    """Answer of ``DELETE /v1/users/{user}``: how many rows the logbook has lost."""

    object: Literal["user.erased"] = "user.erased"
    rows: int


def add_administration(app: FastAPI, service: Service) -> None:
    """Add ``DELETE /v1/users/{user}`` to the API."""
    meter = Meter(service.logbook.home / "quota" / "erasing", rate=_A_MINUTE, quota=0)

    @app.delete(
        "/v1/users/{user:path}", responses={status: {"model": ErrorResponse} for status in (400, 401, 403, 429, 500)}
    )
    def erase_user(
        request: Request,
        user: Annotated[str, InPath(description="As the field 'user' of the requests had it.")],
        key: Annotated[
            str | None, Query(description="Id of another API key whose user this is; it wants the right admin.")
        ] = None,
    ) -> ErasedRows:
        """Erase what the logbook holds of a user: every row of requests that this key sent with that `user`."""
        authorization = request.headers.get("authorization", "")
        own = require(service.keys, authorization)
        if key is not None and own is not None and key != own.id:
            require(service.keys, authorization, ADMIN)
        if not 0 < len(user) <= _LONGEST:
            raise ApiError(
                400, "invalid_value", f"'user' has {len(user)} characters, not 1 to {_LONGEST}.", param="user"
            )
        meter.admit(own and replace(own, rate=None))
        whose = key or (own.id if own else None)
        return ErasedRows(rows=erase(service.logbook.home, user=user, key_id=whose).rows)
