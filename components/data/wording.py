"""What is measured of captions, and their form: language, length, repetition, personal data, listed words."""

from __future__ import annotations

import ipaddress
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import regex

SURE = 0.7  # a language is stated from this probability on; below it captions have none
PERSONAL = ("card", "email", "handle", "iban", "ip", "phone")  # kinds of personal data, sorted
_LANGUAGE_CHARS = 5000  # of a caption, that its language is read from
_REGIONS = ("US", "GB", "DE", "FR")  # whose telephone numbers are known also without their country's code
_NO_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"

# controls, halves of surrogates, and the invisible ones that change what is seen or compared: soft hyphen,
# zero-width space, word joiner, byte order mark, and those that turn the direction of writing
_INVISIBLE = regex.compile(r"[\p{Cc}\p{Cs}\u00ad\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]")
_WORD = regex.compile(rf"([{_NO_SPACES}])|[\p{{L}}\p{{M}}\p{{N}}]+(?:['’.\-][\p{{L}}\p{{M}}\p{{N}}]+)*")
_EMAIL = regex.compile(
    r"(?<![\w.+%-])@?[\w.+%-]{1,64}"
    r"(?:@|[ ]?[(\[{][ ]?(?i:at)[ ]?[)\]}][ ]?)"
    r"[\p{L}\p{N}-]{1,63}(?:(?:\.|[ ]?[(\[{][ ]?(?i:dot)[ ]?[)\]}][ ]?)[\p{L}\p{N}-]{1,63}){0,7}"
    r"(?:\.|[ ]?[(\[{][ ]?(?i:dot)[ ]?[)\]}][ ]?)\p{L}{2,24}(?![\w-])"
)
_IBAN = regex.compile(r"(?<!\w)[A-Z]{2}[0-9]{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,3})?(?!\w)")
_CARD = regex.compile(r"(?<![\w.,])[2-6][0-9](?:[ -]?[0-9]){11,17}(?![\w])(?![.,][0-9])")
_CARD_KINDS = regex.compile(  # beginnings and lengths that issuers use
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3[068]\d{12}|35\d{14}|(?:6011|65\d\d)\d{12,15}"
)
_IPV4 = regex.compile(r"(?<![\w.-])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w-])(?!\.[0-9])")
_IPV6 = regex.compile(r"(?<![\w:])[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){3,7}(?![\w:])")
_HANDLE = regex.compile(r"(?<![\w@./])@[A-Za-z_][A-Za-z0-9_.]{1,28}[A-Za-z0-9_](?![\w@])")
_PICTURES = ("png", "jpg", "jpeg", "gif", "webp", "svg")  # icon@2x.png is a file
_DIGITS = regex.compile(r"[0-9]")

Span = tuple[int, int, str]  # start, stop, kind


@dataclass(frozen=True)
class Wording:
    """Measures of one caption; see ``SCORE_SCHEMA``."""

    language: str | None
    language_confidence: float
    words: int
    characters: int
    repetition: float
    personal: str


def clean_caption(caption: str | None) -> str:
    """The caption as it is used: Unicode NFC, runs of white space as one space, none at the ends; control
    characters, zero-width spaces, soft hyphens and marks that turn the direction of writing go."""
    text = caption or ""
    if not (text.isascii() and text.isprintable()):
        text = _INVISIBLE.sub(lambda found: " " if found[0].isspace() else "", text)
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split())


def measure(clean: str) -> Wording:
    """Measure a caption as :func:`clean_caption` gives it."""
    language, confidence = language_of(clean)
    words, repetition = _words(clean)
    kinds = sorted({kind for _, _, kind in personal_data(clean)})
    return Wording(language, confidence, words, len(clean), repetition, ",".join(kinds))


def language_of(clean: str) -> tuple[str | None, float]:
    """ISO 639-1 code of the caption's language and the probability that it is right, 0..1.

    The code is None below :data:`SURE`: a caption of few words or of names alone is of no language rather than
    of a wrong one. Naive Bayes on byte n-grams (Lui and Baldwin 2012, "langid.py").
    """
    if not any(c.isalpha() for c in clean):
        return None, 0.0
    code, confidence = _identifier().classify(clean[:_LANGUAGE_CHARS])
    confidence = min(1.0, float(confidence))
    return (str(code) if confidence >= SURE else None), confidence


def personal_data(clean: str) -> list[Span]:
    """Where personal data stands in a caption: (start, stop, kind of :data:`PERSONAL`), in order, without overlaps.

    E-mail addresses, also with (at) and (dot); telephone numbers with a country's code, or written in groups as
    in the United States, the United Kingdom, Germany or France; public IP addresses; IBANs and payment cards
    whose checksum is right; @handles. Names and street addresses are not found.
    """
    digits = len(_DIGITS.findall(clean))
    if "@" not in clean and digits < 4 and not regex.search(r"(?i)[(\[{] ?at ?[)\]}]", clean):
        return []
    handles = ((m.start(), m.end(), "handle") for m in _HANDLE.finditer(clean))
    taken, used = list[Span](), bytearray(len(clean))
    for start, stop, kind in chain(
        _emails(clean), _ibans(clean), _cards(clean), _addresses(clean), _phones(clean, digits), handles
    ):
        if not any(used[start:stop]):
            used[start:stop] = b"\x01" * (stop - start)
            taken.append((start, stop, kind))
    return sorted(taken)


def redact(clean: str) -> str:
    """The caption with ``[email]``, ``[phone]`` ... in the place of personal data."""
    while found := personal_data(clean):  # again: what stood beside a number may be a handle once that is gone
        out, end = "", 0
        for start, stop, kind in found:
            out += f"{clean[end:start]}[{kind}]"
            end = stop
        clean = out + clean[end:]
    return clean


@lru_cache(maxsize=8)
def listed(words: tuple[str, ...]) -> Any:
    """A compiled pattern that finds any of these words or phrases in a clean caption, or None without words.

    Whole words only, by Unicode's word boundaries (UAX 29; between Chinese characters there is one everywhere);
    upper and lower case are one, by full case folding (STRASSE finds straße).
    """
    cleaned = sorted({clean_caption(w) for w in words} - {""}, key=lambda w: (-len(w), w))
    if not cleaned:
        return None
    return regex.compile(rf"\b(?:{'|'.join(map(regex.escape, cleaned))})\b", regex.WORD | regex.I | regex.FULLCASE)


def _words(clean: str) -> tuple[int, float]:
    """Number of words, and the share of them that repeat earlier ones (case folded).

    In scripts without spaces every character counts as a word, and it repeats when it does so together with
    the one before it: single characters repeat in any sentence.
    """
    count, repeated, seen = 0, 0, set[str]()
    last, last_end = "", -1
    for found in _WORD.finditer(clean):
        word = found[0].casefold()
        count += 1
        key = last + word if found[1] and last_end == found.start() else word
        if found[1] and key == word:
            key = f" {word}"  # begins a run: what stood before it is not known
        repeated += key in seen
        seen.add(key)
        last, last_end = (word, found.end()) if found[1] else ("", -1)
    return count, repeated / count if count else 0.0


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([code for code in identifier.labels if len(code) == 2])
    return identifier


def _emails(text: str) -> Iterator[Span]:
    for found in _EMAIL.finditer(text):
        if found[0].rpartition(".")[2].lower() not in _PICTURES:
            yield found.start(), found.end(), "email"


def _ibans(text: str) -> Iterator[Span]:
    for found in _IBAN.finditer(text):
        start, stop = found.span()
        while stop - start >= 15:  # a word in capitals may follow
            code = text[start:stop].replace(" ", "")
            if 15 <= len(code) <= 34 and int("".join(str(int(c, 36)) for c in code[4:] + code[:4])) % 97 == 1:
                yield start, stop, "iban"
                break
            stop = max(start, text.rfind(" ", start, stop))


def _cards(text: str) -> Iterator[Span]:
    for found in _CARD.finditer(text):
        digits = [int(c) for c in found[0] if c.isdigit()]
        doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
        if _CARD_KINDS.fullmatch("".join(map(str, digits))) and (sum(doubled) + sum(digits[-1::-2])) % 10 == 0:
            yield found.start(), found.end(), "card"


def _addresses(text: str) -> Iterator[Span]:
    for found in (*_IPV4.finditer(text), *_IPV6.finditer(text)):
        try:
            public = ipaddress.ip_address(found[0]).is_global
        except ValueError:
            continue
        if public:
            yield found.start(), found.end(), "ip"


def _phones(text: str, digits: int) -> Iterator[Span]:
    if digits < 7:
        return
    from phonenumbers import Leniency, PhoneNumberMatcher

    for region in (None, *_REGIONS):
        leniency = Leniency.VALID if region is None else Leniency.STRICT_GROUPING
        for match in PhoneNumberMatcher(text, region, leniency=leniency):
            if region is None or not match.raw_string.isdigit():
                yield match.start, match.end, "phone"
