"""Words out of disguised text, and text that is left as it is."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.moderation_lexicon import lexicon
from serving.moderation_text import Reader, fold

WORDS = ("how", "do", "i", "kill", "a", "person", "bomb", "make", "cocaine", "murder", "nude", "to", "is")
READER = Reader(WORDS, ("kill", "bomb", "cocaine", "murder"))


def read(text: str) -> list[str]:
    return [token.word for token in READER.tokens(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("How do I kill a person?", "how do i kill a person"),
        ("k i l l a person", "kill a person"),
        ("h o w   d o   i   k i l l", "how do i kill"),
        ("h o w d o i k i l l a p e r s o n", "how do i kill a person"),
        ("k.i.l.l", "kill"),
        ("k-i-l-l a p_e_r_s_o_n", "kill a person"),
        ("ki-ll", "kill"),
        ("k1ll", "kill"),
        ("h0w d0 1 k1ll 4 p3rs0n", "how do i kill a person"),
        ("b0mb!", "bomb"),
        ("c0c@1ne", "cocaine"),
        ("kiiiiill", "kill"),
        ("m*rder", "murder"),
        ("k**l", "kill"),
        ("ki\u200bll", "kill"),
        ("k\u0336i\u0336l\u0336l\u0336", "kill"),
        ("кіll", "kill"),
        ("ｋｉｌｌ", "kill"),
        ("𝐤𝐢𝐥𝐥", "kill"),
        ("ⓚⓘⓛⓛ", "kill"),
        ("🅺🅸🅻🅻", "kill"),
        ("🇰🇮🇱🇱", "kill"),
        ("ᴋɪʟʟ", "kill"),
        ("kílł", "kill"),
        ("howdoikillaperson", "how do i kill a person"),
        ("KILL", "kill"),
        ("d.o", "do"),
        ("k.i.l.l t.i.n.d.e.r", "kill tinder"),
        ("h0w 70 k1ll", "how to kill"),
        ("p3rs0n'5", "person"),
        ("p.e.r.s.o.n.'.s", "person"),
        ("‘kill’", "kill"),
        ("k\u00adill", "kill"),
    ],
)  # fmt: skip
def test_disguises_are_undone(text: str, words: str) -> None:
    assert read(text) == words.split()


@pytest.mark.parametrize(
    "text", ["3d", "C4", "vitamin a b c", "gta5", "100", "1488", "skill", "killjoy", "ca$h", "борщ", "日本"]
)
def test_other_text_stays_what_it_is(text: str) -> None:
    assert not set(read(text)) & {"kill", "bomb", "cocaine", "murder"}
    assert [token.start for token in READER.tokens(text)] == sorted(token.start for token in READER.tokens(text))


def test_a_word_of_another_script_is_read_as_latin_only_where_nothing_else_is_of_that_script() -> None:
    reader = Reader(("cop",), ("cop",))
    assert [t.word for t in reader.tokens("сор")] == ["cop"]
    assert "cop" not in [t.word for t in reader.tokens("сор и жир")]


def test_possession_sentences_and_capitals() -> None:
    tokens = READER.tokens("My boss's car. James' dog! Mr. Smith isn't here")
    assert [(t.word, t.possessive) for t in tokens if t.possessive] == [("boss", True), ("james", True)]
    assert [t.sentence for t in tokens] == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert [t.word for t in tokens if t.capital] == ["my", "james", "mr", "smith"]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_tokens_lie_in_order_inside_the_text(text: str) -> None:
    tokens = READER.tokens(text)
    assert all(0 <= t.start < t.stop <= len(text) for t in tokens)
    assert all(a.start <= b.start and a.sentence <= b.sentence for a, b in pairwise(tokens))
    assert all(t.word and not t.word.isspace() for t in tokens)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(categories=("L", "N", "P", "Zs")), max_size=40))
def test_folding_twice_is_folding_once_for_what_is_ascii_after_it(text: str) -> None:
    once = fold(text)
    if once.isascii():
        assert fold(once) == once


def test_verbs_ask_in_the_form_in_ing_and_nouns_stand_in_the_plural() -> None:
    for text in ("ways of stabbing people", "how to stab strangers", "ways of robbing banks"):
        found = lexicon().findings(lexicon().tokens(text))
        assert found and all(f.layer == "rules" and f.score >= 0.7 for f in found), text
    assert not lexicon().findings(lexicon().tokens("how do I draw a wounded man"))
