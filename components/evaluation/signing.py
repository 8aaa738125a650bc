"""Signatures under what the gate says: HMAC-SHA256 (RFC 2104) over canonical JSON.

Anyone who can write to the MLflow registry can set a tag or move an alias; without the key nobody can sign one.
The key is made on first use in the run's home, in a file that only its owner may read, or comes from the
environment, where releasing and serving do not share a disk.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.contracts.errors import GateRefused, InputError
from components.contracts.manifest import canonical_json
from components.runtime.storage import full_store_explained

KEY_FILE = "gate.key"
ENVIRONMENT = "ATELIER_GATE_KEY"
_LEAST = 32  # characters of a secret


class Keys:
    """Secrets of the gate: the first signs, all of them verify.

    Two places, the environment before the file: ``ATELIER_GATE_KEY`` with one secret, or several separated by
    commas; else ``gate.key`` in ``home``, one secret a line. To change keys without a pause, put a new secret
    before the old one (:meth:`rotate`), and take the old one away when no version signed with it is served.
    """

    def __init__(self, home: Path) -> None:
        self.path = home / KEY_FILE

    def secrets(self) -> list[str]:
        """All secrets, the signing one first; empty when there is no key yet.

        Raises:
            InputError: others may read the file, or a secret is shorter than 32 characters.
        """
        if given := os.environ.get(ENVIRONMENT, "").strip():
            return _checked([part.strip() for part in given.split(",")], ENVIRONMENT)
        try:
            mode = self.path.stat().st_mode & 0o777
            lines = self.path.read_text(encoding="ascii").split()
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise InputError(f"The gate's key file {self.path} cannot be read: {error}") from error
        if mode & 0o077:
            raise InputError(
                f"The gate's key file {self.path} has mode {mode:04o}: others than its owner may read it",
                expected="mode 0600",
                remedy=f"chmod 600 {self.path}, and consider `atelier release --rotate-key`",
            )
        return _checked(lines, str(self.path))

    def sign(self, content: Mapping[str, Any]) -> str:
        """``content`` with the key's name and the signature, as one line of JSON. Makes the key on first use."""
        known = self.secrets() or self._make([])
        body = dict(content) | {"key": _name(known[0])}
        return canonical_json(body | {"signature": _signature(body, known[0])})

    def verified(self, text: str, what: str) -> dict[str, Any]:
        """The content of what :meth:`sign` gave.

        Raises:
            GateRefused: it was not signed with one of these keys, or was changed afterwards.
        """
        try:
            body = json.loads(text)
            signature, key = str(body.pop("signature")), str(body["key"])
        except (ValueError, KeyError, AttributeError, TypeError):
            raise GateRefused(f"The {what} carries no signature", remedy=_REMEDY) from None
        secret = next((s for s in self.secrets() if _name(s) == key), None)
        if secret is None:
            raise GateRefused(
                f"The {what} is signed with the key {key[:16]}, which is not known here",
                expected=f"a key in {ENVIRONMENT} or {self.path}",
                remedy="give this process the key that the release was signed with, or release the model again",
            )
        if not hmac.compare_digest(signature.encode(errors="replace"), _signature(body, secret).encode()):
            raise GateRefused(f"The {what} was changed after it was signed", remedy=_REMEDY)
        return dict(body)

    def rotate(self) -> str:
        """Put a new secret before those in the file; what was signed before still verifies. Returns its name.

        Raises:
            InputError: the keys come from the environment.
        """
        if os.environ.get(ENVIRONMENT):
            raise InputError(
                f"The gate's keys come from {ENVIRONMENT}",
                expected="a key file",
                remedy="put a new secret of at least 32 characters before the old one there, separated by a comma",
            )
        return _name(self._make(self.secrets())[0])

    def _make(self, older: list[str]) -> list[str]:
        found = [secrets.token_hex(32), *older]
        with full_store_explained(str(self.path)):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.path.with_name(f".{KEY_FILE}-{secrets.token_hex(4)}")
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write("".join(f"{secret}\n" for secret in found))
            if older:
                fresh.replace(self.path)
                return found
            try:  # two processes may be the first at once: one of them is
                os.link(fresh, self.path)
            except FileExistsError:
                return self.secrets()
            finally:
                fresh.unlink()
        return found


_REMEDY = "release the model again (`atelier release`), which judges and signs anew"


def _checked(found: list[str], where: str) -> list[str]:
    if any(len(secret) < _LEAST for secret in found):
        raise InputError(
            f"A secret in {where} is shorter than {_LEAST} characters",
            expected="secrets such as `openssl rand -hex 32` gives",
        )
    return found


def _name(secret: str) -> str:
    """What a secret is called in signatures; says nothing about it."""
    return hashlib.sha256(b"atelier gate key " + secret.encode()).hexdigest()[:16]


def _signature(body: Mapping[str, Any], secret: str) -> str:
    return hmac.new(secret.encode(), canonical_json(dict(body)).encode(), hashlib.sha256).hexdigest()
