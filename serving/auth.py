"""API keys: random, shown once, kept only as hashes in a file of mode 0600, with the rights and limits of each.

A key is ``atelier-<id>-<secret>``: the id is public (it is what the logbook holds), the secret has 256 random
bits. That much chance needs no slow hash: SHA-256 cannot be searched backwards through it. (Slow hashes are for
passwords, which people choose from few; here they would only make every request slow.)
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from components.contracts.errors import InputError
from serving.schemas import ApiError

GENERATE = "generate"  # draw, and see, cancel and erase what is one's own
ADMIN = "admin"  # the same of every key's, and ask for versions that are not the champion
RIGHTS = (GENERATE, ADMIN)


@dataclass(frozen=True)
class Key:
    """What is known of a key: never the key itself.

    Args:
        created: seconds since 1970.
        rights: of :data:`RIGHTS`.
        rate: requests a minute. quota: pictures a day (UTC). None: as the recipe says; 0: without limit.
        log_prompts: False: neither prompts nor users of this key are written to the logbook.
    """

    id: str
    name: str
    sha256: str
    created: int
    rights: tuple[str, ...] = (GENERATE,)
    rate: int | None = None
    quota: int | None = None
    log_prompts: bool = True

    def may(self, right: str) -> bool:
        """Whether the key has that right."""
        return right in self.rights


def make_key(
    path: Path,
    name: str,
    *,
    rights: Iterable[str] = (GENERATE,),
    rate: int | None = None,
    quota: int | None = None,
    log_prompts: bool = True,
) -> str:
    """Make a key, add its hash to the file at ``path`` and return it: the only time it is seen.

    Raises:
        InputError: the file is there but is not a keys file, or a right or limit is not one.
    """
    key_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    text = f"atelier-{key_id}-{secret}"
    key = _checked(Key(key_id, _named(name), _hash(text), int(time.time()), tuple(rights), rate, quota, log_prompts))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        _write(path, [*list_keys(path), key])
    return text


def change_key(path: Path, key_id: str, **changes: Any) -> Key:
    """Give the key with that id another name, rights, rate, quota or log_prompts; the secret stays.

    Running servers notice within a request.

    Raises:
        InputError: there is no such key, or a value is not one.
    """
    with FileLock(f"{path}.lock"):
        keys = list_keys(path)
        if key_id not in {key.id for key in keys}:
            raise InputError(
                f"There is no key with the id {key_id!r} in {path}", remedy="`atelier key list` shows the ids"
            )
        changed = {key.id: key for key in keys}
        changed[key_id] = _checked(replace(changed[key_id], **changes))
        _named(changed[key_id].name)
        _write(path, list(changed.values()))
    return changed[key_id]


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
        return [_read(entry) for entry in json.loads(path.read_text())["keys"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, InputError) as error:
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


def require(ring: KeyRing | None, authorization: str, right: str = GENERATE) -> Key | None:
    """The key of a request that needs ``right``; None when the service asks for no keys (``ring`` is None).

    Args:
        authorization: the request's header of that name, "" where there is none.

    Raises:
        ApiError: 401: no key, or a wrong one. 403: a key without that right.
        InputError: the keys file is damaged.
    """
    if ring is None:
        return None
    scheme, _, presented = authorization.partition(" ")
    if scheme.lower() != "bearer" or not presented.strip():
        raise ApiError(401, "missing_api_key", "An API key is needed: send it as 'Authorization: Bearer KEY'.")
    key = ring.verify(presented.strip())
    if key is None:
        raise ApiError(401, "invalid_api_key", "This API key is not known here. Check it, or ask for a new one.")
    if not key.may(right):
        raise ApiError(403, "insufficient_permissions", f"This API key has not the right {right!r}, which this needs.")
    return key


def _read(entry: dict[str, Any]) -> Key:
    return _checked(Key(**{**entry, "rights": tuple(entry.get("rights", (GENERATE,)))}))


def _checked(key: Key) -> Key:
    if unknown := [right for right in key.rights if right not in RIGHTS]:
        raise InputError(f"{unknown[0]!r} is not a right of an API key", expected=" or ".join(RIGHTS))
    for what, value in (("rate", key.rate), ("quota", key.quota)):
        if value is not None and (type(value) is not int or value < 0):
            raise InputError(f"The {what} of a key is {value!r}", expected="a number of at least 0; 0 is without limit")
    if type(key.log_prompts) is not bool:
        raise InputError(f"log_prompts of a key is {key.log_prompts!r}", expected="true or false")
    return key


def _named(name: str) -> str:
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise InputError(f"The name of a key is {name[:120]!r}", expected="1 to 100 printable characters")
    return name


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
