"""One request and its answer, over a connection that is kept or a new one to a checked address."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from components.contracts.records import CollectReason
from components.data.bodies import TASK_BYTES, Budget, Lease, read_body
from components.data.connections import PinnedConnection, Pool
from components.data.guard import Guard, Refusal, Target

_HEAD_BYTES = 256 * 1024  # of status line and headers
_ERROR_BYTES = 1 << 16  # of an error page or redirect, read only so that the connection can be kept
_ERROR_S = 1.0  # and no longer than this


@dataclass
class Reply:
    """An answer. ``body`` is empty unless the status is 200 to 299; ``lease`` is for its memory."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    lease: Lease
    address: str  # that answered


class Client:
    """Makes single requests; redirects, retries and manners are others' work. One serves all threads of a task.

    Args:
        guard: the address rules.
        user_agent: the whole header.
        max_bytes: of one body, for the memory of all.
        tls: trusted authorities and versions.
    """

    def __init__(self, guard: Guard, user_agent: str, max_bytes: int, tls: Callable[[], ssl.SSLContext]) -> None:
        self._guard, self._tls = guard, tls
        self._headers = {"User-Agent": user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
        self._budget = Budget(max(max_bytes, TASK_BYTES))
        self._pool = Pool()

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()

    def ask(self, target: Target, timeout_s: float, max_bytes: int, cut: bool = False) -> Reply:
        """The answer to GET.

        Args:
            target: what is asked for; its address is checked by the guard.
            timeout_s: for name, connection, headers and body together.
            max_bytes: of the body.
            cut: a longer body is cut off instead of refused.

        Raises:
            Refusal: ``REFUSED_ADDRESS``, ``TIMEOUT``, ``CONNECTION``, ``TLS``, ``TOO_MANY_BYTES``, ``TRUNCATED`` or
                ``NOT_AN_IMAGE``.
        """
        deadline = time.monotonic() + timeout_s
        connection = self._pool.take(target.origin)
        if connection is not None:
            with contextlib.suppress(_Stale):
                return self._exchange(connection, target, deadline, max_bytes, cut, reused=True)
        addresses = self._guard.addresses(target, timeout_s)
        connection = PinnedConnection(target, addresses, self._tls() if target.scheme == "https" else None)
        return self._exchange(connection, target, deadline, max_bytes, cut, reused=False)

    def _exchange(
        self, connection: PinnedConnection, target: Target, deadline: float, max_bytes: int, cut: bool, reused: bool
    ) -> Reply:
        connection.deadline, connection.allowance = deadline, _HEAD_BYTES
        response, keep = None, False
        try:
            if connection.sock is None:
                _connect(connection)
            try:
                connection.request("GET", target.path, headers={**self._headers, "Host": target.authority})
                response = connection.getresponse()
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
                if reused:  # the server had closed the kept connection: nothing was answered
                    raise _Stale from error
                raise
            if 200 <= response.status < 300:
                body, lease = read_body(response, connection, max_bytes, self._budget, cut)
                ended = response.isclosed() or response.length == 0
            else:
                body, lease, ended = b"", Lease(), _drained(response, connection)
            keep = ended and not response.will_close
            assert connection.address is not None, "an answer comes over a connection"
            return Reply(response.status, response.headers, body, lease, connection.address)
        except TimeoutError as error:
            raise Refusal(CollectReason.TIMEOUT, "no complete answer in time") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Refusal(CollectReason.CONNECTION, _said(error)) from error
        finally:
            if response is not None:
                response.close()
            if keep and connection.idle:
                self._pool.give(connection)
            else:
                connection.close()


def _connect(connection: PinnedConnection) -> None:
    try:
        connection.connect()
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError):
        raise  # the connection broke while the handshake was made
    except ssl.SSLCertVerificationError as error:
        raise Refusal(CollectReason.TLS, f"the certificate is not accepted: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise Refusal(CollectReason.TLS, f"no TLS: {error.reason or type(error).__name__}") from error


def _drained(response: http.client.HTTPResponse, connection: PinnedConnection) -> bool:
    """Whether the rest of an answer that nobody wants was short enough to be read."""
    if response.length is None or response.length > _ERROR_BYTES:
        return response.isclosed()
    connection.deadline = min(connection.deadline, time.monotonic() + _ERROR_S)
    connection.allowance = 2 * _ERROR_BYTES
    try:
        response.read()
    except (OSError, http.client.HTTPException):
        return False
    return True


def _said(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionResetError | http.client.RemoteDisconnected | BrokenPipeError | ssl.SSLEOFError):
        return "the server closed the connection without an answer"
    if isinstance(error, http.client.HTTPException):
        return f"not an HTTP answer ({type(error).__name__})"
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or 'network error'}"[:120]


class _Stale(Exception):
    """A kept connection turned out to be closed."""
