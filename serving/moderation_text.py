"""A prompt as words, however it was disguised: look-alike letters, invisible characters, digits for letters, spacing.

The steps, for every character first and then for every word: compatibility forms (Unicode NFKD), invisible characters
and stacked accents away, look-alikes of other scripts to Latin (the idea of UTS #39, section 4, "skeleton"), lower
case; then words in which digits or signs stand for letters, letters that are repeated, divided by signs or by spaces,
and words run together. What a disguise hides is looked for among known words only, so that ordinary text (``3d``,
``C4``, Russian) stays what it is. Every word knows where it stood in the text as given.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

# letters of other scripts that look like Latin ones in common typefaces; those with "LATIN" in their Unicode name,
# and compatibility forms (fullwidth, mathematical, circled ...), need no entry
_LOOK_ALIKE = {
    "a": "аαᎪꭺ∂ⲁ", "b": "вьЬβᏏᖯƄ", "c": "сϲςᏟⅽⲥ", "d": "ԁᏧժɗ", "e": "еєεҽᎬ℮эⲉ", "f": "ғϝքẝ", "g": "ɡցԍᏀ",
    "h": "һнհᎻ", "i": "іιӏוꙇᎥ∣ı", "j": "јϳյᎫ", "k": "кκᏦⲕ", "l": "ⅼןӀاᏞ", "m": "мᎷⲙ", "n": "пηոռᏁ", "o": "оοσօ০०٥ⲟ",
    "p": "рρᏢ⍴ⲣ", "q": "ԛգզ", "r": "гᴦᏒꭱ", "s": "ѕտᏚꜱ", "t": "тτᎢ⊤ⲧ", "u": "υսцմ∪", "v": "νѵט∨ⱽᏙ", "w": "ԝωшѡաᎳ",
    "x": "хχ×ⲭ", "y": "уүγყʏ", "z": "ᏃⲌ", "'": "’‘ʼ′`´ʻ", "-": "‐‑‒–—−⁃", ".": "․·•∙‧", '"': "“”„«»",
}  # fmt: skip
_TO_LATIN = {alike: latin for latin, every in _LOOK_ALIKE.items() for alike in every} | {
    alike.casefold(): latin for latin, every in _LOOK_ALIKE.items() for alike in every if len(alike.casefold()) == 1
}
_LATIN_NAME = re.compile(
    r"(?:(?:NEGATIVE )?(?:CIRCLED|SQUARED|PARENTHESIZED) |REGIONAL INDICATOR SYMBOL )?"
    r"(?:LATIN )?(?:(?:SMALL|CAPITAL|MODIFIER) )?LETTER (?:SMALL )?(?:CAPITAL )?"
    r"(?:(?:DOTLESS|TURNED|REVERSED|INVERTED|SCRIPT|OPEN|BLACKLETTER|STRETCHED|BARRED|SIDEWAYS|LONG|INSULAR) )*"
    r"([A-Z])(?: WITH .*)?"
)
_FILLERS = "\u115f\u1160\u3164\uffa0\u2800\u180e"
_MARKS = ((0x0300, 0x036F), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (0x20D0, 0x20FF), (0xFE00, 0xFE2F), (0xE0100, 0xE01EF))

_CHUNK = re.compile(r"\S+")
_PLAIN = re.compile(r"[\"'(\[{*_]*([a-z]+)('s)?[\"')\]}*_]*([.,;:!?]*)[\"')\]}]*")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_LEET = str.maketrans({
    "0": "o", "1": "i", "2": "z", "3": "e", "4": "a", "5": "s", "6": "g", "7": "t", "8": "b", "9": "g",
    "@": "a", "$": "s", "!": "i", "|": "i", "+": "t", "(": "c", "<": "c", "¡": "i", "€": "e", "£": "l",
    "¢": "c", "§": "s",
})  # fmt: skip
_SPELLED = {"1": "i", "0": "o", "3": "e", "4": "a", "5": "s", "7": "t"}
_LEET_SIGNS = frozenset("0123456789@$!|+(<¡€£¢§")
_EDGES = "\"'()[]{},;:?.*_-~#“”"
_DIVIDERS = re.compile(r"[-._*~/\\|,+=:]+")
_REPEATED = re.compile(r"(.)\1{2,}")
_ENDS = frozenset(".?!;")
_ABBREVIATIONS = frozenset(("mr", "mrs", "ms", "dr", "st", "jr", "sr", "vs", "etc", "no", "e.g", "i.e"))
_LONGEST_WORD = 24
_RUN_TOGETHER = 12  # letters; shorter unknown words are left whole


@dataclass(frozen=True, slots=True)
class Token:
    """One word: folded, without a possessive ending; ``start`` and ``stop`` are code points of the text as given."""

    word: str
    start: int
    stop: int
    sentence: int = 0
    possessive: bool = False
    capital: bool = False


@dataclass(frozen=True, slots=True)
class _Folded:
    """Folded text, the same with look-alikes as Latin letters, and where each character comes from."""

    plain: str
    alike: str
    where: list[int] | None  # None: character i comes from character i

    def span(self, start: int, stop: int) -> tuple[int, int]:
        return (start, stop) if self.where is None else (self.where[start], self.where[stop - 1] + 1)


@lru_cache(maxsize=8192)
def fold_character(char: str) -> tuple[str, str]:
    """What a character stands for, and that with a look-alike of another script replaced by its Latin letter.

    Both are empty for what is not seen, and may be several characters (``ﬁ``, ``ß``).
    """
    if char.isspace():
        return " ", " "
    number = ord(char)
    if char in _FILLERS or any(low <= number <= high for low, high in _MARKS):
        return "", ""
    if unicodedata.category(char) in ("Cf", "Cc", "Cs"):
        return "", ""
    bare = "".join(c for c in unicodedata.normalize("NFKD", char) if not 0x0300 <= ord(c) <= 0x036F).casefold()
    if bare.isascii():
        return bare, bare
    if found := _LATIN_NAME.fullmatch(unicodedata.name(char, "")):
        return found[1].lower(), found[1].lower()
    plain = unicodedata.normalize("NFKC", char).casefold()
    alike = "".join(_TO_LATIN.get(c, c) for c in plain)
    return (alike, alike) if alike.isascii() and not char.isalpha() else (plain, alike)


def fold(text: str) -> str:
    """``text`` folded character by character, look-alikes of other scripts as they are."""
    return "".join(fold_character(char)[0] for char in text)


def _folded(text: str) -> _Folded:
    if text.isascii() and text.isprintable():
        lower = text.lower()
        return _Folded(lower, lower, None)
    plain: list[str] = []
    alike: list[str] = []
    where: list[int] = []
    for place, char in enumerate(text):
        one, other = fold_character(char)
        if len(one) != len(other):
            other = one
        plain.extend(one)
        alike.extend(other)
        where.extend([place] * len(one))
    return _Folded("".join(plain), "".join(alike), where)


class Reader:
    """Divides text into words; disguised ones are recognised when they are in ``vocabulary``.

    Args:
        vocabulary: every word that a rule knows, folded.
        cores: those of them that a disguise is worth undoing for where the text is otherwise readable: divided by
            signs (``ki-ll``) or with letters starred out (``k*ll``).
    """

    def __init__(self, vocabulary: Iterable[str], cores: Iterable[str]) -> None:
        self._known = frozenset(vocabulary)
        self._cores = frozenset(word for word in cores if len(word) >= 4)

    def knowing(self, words: Iterable[str]) -> Reader:
        """A reader that knows these words as well."""
        more = frozenset(words)
        return Reader(self._known | more, self._cores | more)

    def tokens(self, text: str) -> list[Token]:
        """The words of ``text``, in order."""
        folded = _folded(text)
        foreign = folded.plain != folded.alike and any(
            one == other and not one.isascii() and one.isalpha()
            for one, other in zip(folded.plain, folded.alike, strict=True)
        )
        found: list[Token] = []
        sentence, odd = 0, False
        for match in _CHUNK.finditer(folded.plain):
            chunk, start = match[0], match.start()
            if not chunk.isascii():
                alike = folded.alike[start : match.end()]
                # a word wholly of another script is read as Latin only where nothing shows that script to be meant
                if any(c.isascii() and c.isalpha() for c in chunk) or not foreign:
                    chunk = alike
            if simple := _PLAIN.fullmatch(chunk):
                word, closing = simple[1], simple[3]
                owns = bool(simple[2]) or _owning_plural(chunk, word, simple.end(1))
                where = folded.span(start + simple.start(1), start + simple.end(1))
                found.append(Token(self._shortened(word), *where, sentence, owns, text[where[0]].isupper()))
                if closing and closing[-1] in _ENDS and word not in _ABBREVIATIONS:
                    sentence += 1
                continue
            words = list(self._difficult(chunk))
            odd = odd or any(undone for *_, undone in words)
            for word, begin, end, owns, _ in words:
                where = folded.span(start + begin, start + end)
                found.append(Token(word, *where, sentence, owns, text[where[0]].isupper()))
            if chunk.rstrip("\"')]}")[-1:] in _ENDS and chunk.strip(_EDGES) not in _ABBREVIATIONS:
                sentence += 1
        if odd:  # in text of this kind numbers are words, too: 1 is i, 70 is to
            found = [replace(t, word=self._unnumbered(t.word)) for t in found]
        return self._joined(text, found)

    def _difficult(self, chunk: str) -> Iterator[tuple[str, int, int, bool, bool]]:
        """Word, start, stop, whether possessive, whether a disguise was undone, of a run of text without spaces."""
        left = len(chunk) - len(chunk.lstrip(_EDGES))
        core = chunk.strip(_EDGES)
        if not _LEET_SIGNS.isdisjoint(core) or not _LEET_SIGNS.isdisjoint(chunk):
            for part, shift in (
                (core, left),
                (core.rstrip("!"), left),
                (chunk.strip("\"'.,?"), len(chunk) - len(chunk.lstrip("\"'.,?"))),
            ):
                owns = part.endswith(("'5", "'$", "'s"))
                if word := self._unleeted(part[:-2] if owns else part):
                    yield word, shift, shift + len(part), owns, True
                    return
        if len(core) >= 3 and not core.isalnum():
            joined = _DIVIDERS.sub("", core)
            owns = joined.endswith("'s")
            joined = joined[:-2] if owns else joined
            if joined != core and joined.isalpha() and self._was_divided(core, joined):
                yield joined, left, left + len(core), owns, True
                return
            if "*" in core and (word := self._starred(core)):
                yield word, left, left + len(core), False, True
                return
        for match in _WORD.finditer(chunk):
            word, owns = match[0], False
            if word.endswith("'s"):
                word, owns = word[:-2], True
            else:
                owns = _owning_plural(chunk, word, match.end())
            undone = word not in self._known and not word.isalpha() and (self._unleeted(word) or "")
            yield undone or self._shortened(word), match.start(), match.end(), owns, bool(undone)

    def _was_divided(self, core: str, joined: str) -> bool:
        """Whether the signs in ``core`` seem to be there to hide ``joined``."""
        pieces = [piece for piece in _DIVIDERS.split(core) if piece]
        if all(len(piece) == 1 for piece in pieces):
            return len(pieces) > 2 or joined in self._known
        return joined in self._cores and not all(piece in self._known for piece in pieces)

    def _unnumbered(self, word: str) -> str:
        """The known word that the digits of ``word`` stand for, or ``word``."""
        read = word.translate(_LEET) if word.isdecimal() and len(word) <= 3 else ""
        return read if read in self._known else word

    def _unleeted(self, word: str) -> str | None:
        """The known word that ``word`` is with digits and signs for letters; None: it is none."""
        if word in self._known or _LEET_SIGNS.isdisjoint(word) or not any(c.isalpha() or c in "@$!" for c in word):
            return None
        read = word.translate(_LEET)
        for option in (read, word.replace("1", "l").replace("!", "l").replace("|", "l").translate(_LEET)):
            for candidate in (option, _DIVIDERS.sub("", option), self._shortened(option)):
                if len(candidate) > 1 and candidate in self._known:
                    return candidate
        return None

    def _starred(self, core: str) -> str | None:
        """The known word of which ``core`` shows all letters but the starred ones; None: none, or more stars."""
        letters = core.replace("*", "")
        if not letters.isalpha() or len(letters) < 2 or core.count("*") > 2:
            return None
        pattern = re.compile(re.escape(core).replace(r"\*", "[a-z]"))
        return next((word for word in sorted(self._cores) if len(word) == len(core) and pattern.fullmatch(word)), None)

    def _shortened(self, word: str) -> str:
        """``word`` with letters that stand three times or more said once or twice, where that is a known word."""
        if word in self._known or not _REPEATED.search(word):
            return word
        for times in (r"\1", r"\1\1"):
            if (short := _REPEATED.sub(times, word)) in self._known:
                return short
        return word

    def _joined(self, text: str, tokens: list[Token]) -> list[Token]:
        """Letters that stand alone, three or more in a row, put together; long unknown words taken apart."""
        out: list[Token] = []
        at = 0
        while at < len(tokens):
            end = at
            while end < len(tokens) and len(tokens[end].word) == 1 and tokens[end].sentence == tokens[at].sentence:
                end += 1
            if end - at >= 3:
                out.extend(self._spelled(tokens[at:end]))
                at = end
                continue
            token = tokens[at]
            at += 1
            if len(token.word) >= _RUN_TOGETHER and token.word not in self._known and token.word.isalpha():
                pieces, unknown = self._divided(token.word)
                if len(pieces) >= 3 and not unknown:
                    out.extend(replace(token, word=piece, possessive=False) for piece in pieces)
                    continue
            out.append(token)
        return out

    def _spelled(self, letters: list[Token]) -> Iterator[Token]:
        """Words out of single letters: wider gaps divide them, and where there are none, known words do."""
        gaps = [after.start - before.stop for before, after in pairwise(letters)]
        usual = min(gaps)
        group: list[Token] = []
        for token, gap in zip(letters, [*gaps, usual + 1], strict=True):
            group.append(replace(token, word=_SPELLED.get(token.word, token.word)))
            if gap > usual:
                yield from self._spelled_word(group)
                group = []

    def _spelled_word(self, group: list[Token]) -> Iterator[Token]:
        joined = "".join(token.word for token in group)
        pieces, unknown = ([joined], 0) if joined in self._known else self._divided(joined)
        if unknown > len(joined) // 2:
            yield from group
            return
        at = 0
        for piece in pieces:
            first, last = group[at], group[at + len(piece) - 1]
            at += len(piece)
            yield replace(first, word=piece, stop=last.stop)

    def _divided(self, letters: str) -> tuple[list[str], int]:
        """The division into the fewest known words with the fewest letters left over, and how many are."""
        if len(letters) > 400:
            return [letters], len(letters)
        best: list[tuple[float, int, int]] = [(0.0, 0, 0)]  # cost, length of the last piece, letters left over
        for end in range(1, len(letters) + 1):
            cost, length, left = best[end - 1][0] + 3.0, 1, best[end - 1][2] + 1
            for size in range(1, min(end, _LONGEST_WORD) + 1):
                if (word := letters[end - size : end]) in self._known and (size > 1 or word in "ai"):
                    before = best[end - size]
                    if before[0] + 1.0 < cost:
                        cost, length, left = before[0] + 1.0, size, before[2]
            best.append((cost, length, left))
        pieces: list[str] = []
        end = len(letters)
        while end:
            pieces.append(letters[end - best[end][1] : end])
            end -= best[end][1]
        return pieces[::-1], best[-1][2]


def _owning_plural(chunk: str, word: str, end: int) -> bool:
    """Whether the apostrophe after ``word`` makes it a possessive (students') and does not close a quotation."""
    return word.endswith("s") and chunk[end : end + 1] == "'" and chunk[0] not in "\"'"
