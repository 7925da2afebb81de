"""Patterns mean the same in Python and ECMAScript (SPEC 10)."""

from __future__ import annotations

import pytest
import regress
from hypothesis import given
from hypothesis import strategies as st

from tidemark_protocol.patterns import MAX_LENGTH, compile_pattern

REFUSED = {
    "named groups": ["(?P<n>a)", "(?<n>a)", "(?P=n)"],
    "lookbehind": ["(?<=a)b", "(?<!a)b"],
    "atomic groups and possessive repetitions": ["(?>a)", "a*+", "a++", "a?+", "a{1,2}+"],
    "flags and comments": ["(?i)a", "(?i:a)", "(?#x)", "(?x)a b"],
    "conditions and references": ["(a)(?(1)b|c)", r"(a)\1", r"\k<n>"],
    "anchors of one language": [r"\Aa", r"a\Z", r"\Ga"],
    "escapes of one language": [
        r"\a",
        r"\N{BULLET}",
        r"\U0001F600",
        r"\u{1F600}",
        r"\cA",
        r"\0",
        r"\08",
        r"\e",
        r"\-",
        r"\_",
    ],
    "Unicode classes and surrogates": [r"\p{L}", r"\P{L}", r"\ud83d\ude00", r"[\p{L}]"],
    "braces and brackets left open": ["a{", "a}", "]", "a{,3}", "{2}", "[a", "(a", "a)", "a{2"],
    "classes that read differently": [
        "[]",
        "[^]",
        "[]a]",
        "[[a]",
        r"[\S]",
        r"[\b]",
        "[a-z-9]",
        r"[\d-x]",
        r"[a-\d]",
        "[--a]",
        "[z-a]",
    ],
    "repetitions of nothing": ["*a", "a**", "(?=a)*", "^*", "$+", r"\b?", "(*a)", "a|*", "a{2,1}", "a{70000}"],
    "an escape of nothing": ["a\\", "[a\\"],
}


@pytest.mark.parametrize("pattern", [p for group in REFUSED.values() for p in group])
def test_what_only_one_language_understands_is_refused(pattern: str) -> None:
    """A pattern outside the common syntax raises ValueError with a reason."""
    with pytest.raises(ValueError, match=r"\w"):
        compile_pattern(pattern)


def test_a_pattern_is_bounded() -> None:
    """Length and nesting beyond reason are a ValueError, not a crash."""
    with pytest.raises(ValueError, match="at most"):
        compile_pattern("a" * (MAX_LENGTH + 1))
    with pytest.raises(ValueError, match="compile"):
        compile_pattern("(" * 500 + ")" * 500)


def test_a_reason_says_where() -> None:
    """The message names the place by its character."""
    with pytest.raises(ValueError, match="character 4"):
        compile_pattern("abc(?<n>x)")


ATOMS = [
    *"abz09_ -,:é🏷",
    ".",
    "^",
    "$",
    r"\d",
    r"\D",
    r"\w",
    r"\W",
    r"\s",
    r"\S",
    r"\b",
    r"\B",
    r"\n",
    r"\t",
    r"\.",
    r"\\",
    r"\/",
    r"\x61",
    r"\u00e9",
    "[a-z]",
    "[^a-z]",
    r"[\w.-]",
    r"[^\s]",
    r"[-a]",
    r"[\]\-^]",
    "[&|~]",
    r"[\d\u2028]",
    "(a|b)",
    "(?:ab|)",
    "(?=a)",
    "(?!b)",
]
QUANTIFIERS = ["", "*", "+", "?", "{2}", "{1,}", "{0,2}", "*?", "+?", "{1,2}?"]
UNREPEATABLE = {"^", "$", r"\b", r"\B", "(?=a)", "(?!b)"}
pieces = st.tuples(st.sampled_from(ATOMS), st.sampled_from(QUANTIFIERS)).map(
    lambda piece: piece[0] if piece[0] in UNREPEATABLE else "".join(piece)
)
patterns = st.lists(pieces, max_size=5).map("".join) | st.lists(pieces, min_size=2, max_size=4).map("|".join)
texts = st.text("ab09z_ -.,:é🏷\n\r\t\u2028\u0085\u00a0\ufeff٣&|~^]\\/", max_size=6)


@given(patterns, st.lists(texts, min_size=1, max_size=20))
def test_both_languages_agree(pattern: str, samples: list[str]) -> None:
    """For every common pattern and any text, Python's answer is that of an ECMAScript engine."""
    ours = compile_pattern(pattern)
    theirs = regress.Regex(f"^(?:{pattern})$", "u")
    for sample in samples:
        assert (ours.fullmatch(sample) is not None) == (theirs.find(sample) is not None), (pattern, sample)
