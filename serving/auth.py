"""API keys: random, shown once, kept only as hashes in a file of mode 0600.

A key is ``atelier-<id>-<secret>``: the id is public (it is what the logbook holds), the secret has 256 random
bits. That much chance needs no slow hash: SHA-256 cannot be searched backwards through it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from components.contracts.errors import InputError


@dataclass(frozen=True)
class Key:
    """What is known of a key: never the key itself. ``created`` is in seconds since 1970."""

    id: str
    name: str
    sha256: str
    created: int


def make_key(path: Path, name: str) -> str:
    """Make a key, add its hash to the file at ``path`` and return it: the only time it is seen.

    Raises:
        InputError: the file is there but is not a keys file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    key_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    text = f"atelier-{key_id}-{secret}"
    with FileLock(f"{path}.lock"):
        _write(path, [*list_keys(path), Key(key_id, name, _hash(text), int(time.time()))])
    return text


def revoke_key(path: Path, key_id: str) -> bool:
    """Remove the key with that id; False when there was none. Running servers notice within a request."""
    with FileLock(f"{path}.lock"):
        keys = list_keys(path)
        kept = [key for key in keys if key.id != key_id]
        if len(kept) < len(keys):
            _write(path, kept)
    return len(kept) < len(keys)


def list_keys(path: Path) -> list[Key]:
    """All keys in the file, oldest first; empty when there is no file.

    Raises:
        InputError: the file is not a keys file.
    """
    try:
        return [Key(**entry) for entry in json.loads(path.read_text())["keys"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"The keys file {path} cannot be read: {error}",
            expected="the file that Atelier wrote",
            remedy="restore it, or delete it and make new keys",
        ) from error


class KeyRing:
    """Verifies keys against the file, which is read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._keys: dict[str, Key] = {}

    def verify(self, presented: str) -> Key | None:
        """The key that ``presented`` is, or None. Takes the same time for a wrong secret as for a right one.

        Raises:
            InputError: the keys file is damaged.
        """
        self._refresh()
        parts = presented.split("-", 2)
        key = self._keys.get(parts[1]) if len(parts) == 3 else None
        # compared also when the id is unknown, so that time does not tell which ids exist
        right = hmac.compare_digest(_hash(presented), key.sha256 if key else "0" * 64)
        return key if right else None

    def _refresh(self) -> None:
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_ino)
        except FileNotFoundError:
            stamp = None
        if stamp != self._stamp or stamp is None:
            self._keys = {key.id: key for key in list_keys(self._path)}
            self._stamp = stamp


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def _write(path: Path, keys: list[Key]) -> None:
    handle, name = tempfile.mkstemp(prefix=".keys-", dir=path.parent)  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "w") as file:
            json.dump({"keys": [asdict(key) for key in keys]}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
