"""The image API's own secret: one file, made on first use, from which a key is derived for each purpose."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from components.contracts.errors import InputError
from components.runtime.storage import full_store_explained

FILE = "serve.key"
_BYTES = 32


def derived_key(home: Path, purpose: str) -> bytes:
    """32 bytes that belong to this home and ``purpose`` and that nobody can tell without ``serve.key``.

    Raises:
        InputError: the file is damaged, or others than its owner may read it.
    """
    path = home / FILE
    try:
        mode, text = path.stat().st_mode & 0o777, path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        _make(path)
        return derived_key(home, purpose)
    except (OSError, ValueError) as error:
        raise InputError(f"The image API's secret {path} cannot be read: {error}") from error
    if mode & 0o077:
        raise InputError(
            f"The image API's secret {path} has mode {mode:04o}: others than its owner may read it",
            expected="mode 0600",
            remedy=f"chmod 600 {path}",
        )
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != _BYTES:
        raise InputError(
            f"The image API's secret {path} is damaged",
            expected=f"{2 * _BYTES} hexadecimal digits",
            remedy="restore it from a copy; with another one, users in the logbook and marks in pictures are not "
            "found again",
        )
    return hmac.new(secret, purpose.encode(), hashlib.sha256).digest()


def _make(path: Path) -> None:
    with full_store_explained(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{FILE}-{secrets.token_hex(4)}")
        try:
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(_BYTES) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(fresh, path)
        except FileExistsError:
            return  # two processes were the first at once: the other one was
        finally:
            fresh.unlink(missing_ok=True)
