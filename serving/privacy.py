"""What of a request is written down: prompts without personal data, users under names that say nothing."""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path
from typing import Literal

from components.data.wording import clean_caption, personal_data, redact
from serving.secret import derived_key

Prompts = Literal["redacted", "full", "none"]
_MOST_DIGITS = (
    60  # of a prompt: looking for telephone numbers among more takes long, and 1,000 of them a tenth of a second
)
_NUMBERS = re.compile(r"\d(?:[\d .,:()/+-]*\d)?")
_USER_BYTES = 16  # of a keyed hash: no two users share one by chance


class Privacy:
    """The rules of one home's logbook.

    A user is known under HMAC-SHA256 of the API key's id and the name that the client gives its user, with a secret of
    this home: the same user is the same under one key, another under another key (two clients may both have a user
    "1"), and nobody without the secret can try names.

    Args:
        home: where the secret lies; it is made on first use.
        prompts: "redacted": e-mail addresses, telephone numbers, payment cards, IBANs, public IP addresses and
            @handles are replaced by what they are, see :func:`components.data.wording.personal_data`, and every
            number in prompts of very many digits; "full": as they came; "none": not at all.
    """

    def __init__(self, home: Path, prompts: Prompts = "redacted") -> None:
        self._home, self._prompts = home, prompts
        self._secret: bytes | None = None

    def prompt(self, text: str | None) -> str | None:
        """The prompt as it may be kept; None where it may not."""
        if text is None or self._prompts == "none":
            return None
        if self._prompts == "full":
            return text
        clean = clean_caption(text)
        if sum(map(str.isdecimal, clean)) > _MOST_DIGITS:
            text = clean = _NUMBERS.sub("[number]", clean)
        return redact(clean) if personal_data(clean) else text

    def user(self, key_id: str | None, user: str | None) -> str | None:
        """The name under which the logbook knows the client's ``user`` of that key; None for no user.

        Raises:
            InputError: the secret is damaged.
        """
        if not user:
            return None
        if self._secret is None:
            self._secret = derived_key(self._home, "users of the logbook")
        message = f"{key_id or ''}\x00{user}".encode("utf-8", "surrogatepass")
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()[: 2 * _USER_BYTES]
