"""The syntax of `pattern` that means the same in Python and ECMAScript (SPEC 10).

A pattern is read once by a small scanner that lets through what both engines understand (ECMAScript with the `u` flag)
and spells it for Python where the same words mean something else.
"""

from __future__ import annotations

import re
from typing import Final

MAX_LENGTH: Final = 1000
_REPEAT_MAX = 65_535
_SYNTAX = frozenset("^$\\.*+?()[]{}|/")
_CONTROLS = frozenset("tnrfv")
_CLASSES = frozenset("dDwWsS")
# ECMAScript's white space; re.ASCII knows only a part of it.
_SPACE = r"\t\n\v\f\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_QUANTIFIER = re.compile(r"(?:[*+?]|\{([0-9]{1,5})(?:(,)([0-9]{1,5})?)?\})\??")
_CODE = re.compile(r"x[0-9A-Fa-f]{2}|u(?![Dd][89A-Fa-f])[0-9A-Fa-f]{4}")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The compiled form, for `fullmatch`; ValueError (saying what and where) if it is not portable."""
    if len(pattern) > MAX_LENGTH:
        raise ValueError(f"a pattern has at most {MAX_LENGTH} characters")
    try:
        return re.compile(_Scanner(pattern).python(), re.ASCII)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"does not compile: {error}") from None


class _Scanner:
    def __init__(self, pattern: str) -> None:
        self.text = pattern
        self.at = 0
        self.out: list[str] = []
        self.groups: list[bool] = []
        """One for each open group: whether it may be repeated (a lookahead may not)."""

    def python(self) -> str:
        repeatable = False
        while self.at < len(self.text):
            quantifier = self._quantifier()
            if quantifier is not None:
                if not repeatable:
                    raise self._refuse("there is nothing to repeat")
                self.out.append(quantifier)
                repeatable = False
            else:
                repeatable = self._atom()
        if self.groups:
            raise self._refuse("a group is not closed")
        return "".join(self.out)

    def _refuse(self, why: str) -> ValueError:
        return ValueError(f"{why} (at character {self.at + 1})")

    def _take(self, length: int = 1) -> str:
        taken = self.text[self.at : self.at + length]
        self.at += length
        return taken

    def _quantifier(self) -> str | None:
        match = _QUANTIFIER.match(self.text, self.at)
        if match is None:
            return None
        low, high = match[1], match[3]
        if max(int(low or 0), int(high or 0)) > _REPEAT_MAX or (high is not None and int(high) < int(low)):
            raise self._refuse("the bounds of a repetition are wrong")
        self.at = match.end()
        if self.text.startswith("+", self.at):
            raise self._refuse("possessive repetitions are not common to Python and ECMAScript")
        return match[0]

    def _atom(self) -> bool:
        """Read one element; True if it may be repeated."""
        char = self.text[self.at]
        if char == "(":
            return self._open()
        if char == ")":
            if not self.groups:
                raise self._refuse("a group is closed that was not opened")
            self.out.append(self._take())
            return self.groups.pop()
        if char == "[":
            self.out.append(self._class())
        elif char == "\\":
            return self._escape()
        elif char in "]{}":
            raise self._refuse(f"write \\{char} for the character {char}")
        elif char in "^|$":
            self._take()
            self.out.append(r"\Z" if char == "$" else char)
            return False
        elif char == ".":
            self._take()
            self.out.append(r"[^\n\r\u2028\u2029]")
        else:
            self.out.append(self._take())
        return True

    def _open(self) -> bool:
        for opening, repeatable in (("(?:", True), ("(?=", False), ("(?!", False)):
            if self.text.startswith(opening, self.at):
                self.out.append(self._take(3))
                self.groups.append(repeatable)
                return False
        if self.text.startswith("(?", self.at):
            raise self._refuse("of the groups with (? only (?: (?= and (?! are common to Python and ECMAScript")
        self.out.append(self._take())
        self.groups.append(True)
        return False

    def _escape(self) -> bool:
        char = self.text[self.at + 1 : self.at + 2]
        if char and char in "bB":
            # Python's \B, unlike ECMAScript's, fails on an empty text.
            self.out.append(r"\b" if char == "b" else r"(?!\b)")
            self._take(2)
            return False
        if char and char in "sS":
            self._take(2)
            self.out.append(f"[{'^' if char == 'S' else ''}{_SPACE}]")
        else:
            self.out.append(self._escaped(_SYNTAX))
        return True

    def _escaped(self, literal: frozenset[str]) -> str:
        """An escape that both engines read alike, as Python spells it."""
        code = _CODE.match(self.text, self.at + 1)
        if code is not None:
            return self._take(1 + len(code[0]))
        char = self.text[self.at + 1 : self.at + 2]
        if char in literal or char in _CONTROLS or char in _CLASSES:
            return self._take(2)
        raise self._refuse(f"the escape \\{char} is not common to Python and ECMAScript")

    def _class(self) -> str:
        out = [self._take()]
        if self.text.startswith("^", self.at):
            out.append(self._take())
        if self.text.startswith("]", self.at):
            raise self._refuse("an empty class is not common to Python and ECMAScript")
        start = self.at
        while not self.text.startswith("]", self.at):
            low, single = self._member(start)
            if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                self._take()
                high, single_too = self._member(start)
                if not (single and single_too) or low == r"\-":
                    raise self._refuse("a range goes from one character to another")
                low = f"{low}-{high}"
            out.append(low)
        out.append(self._take())
        return "".join(out)

    def _member(self, start: int) -> tuple[str, bool]:
        """One element of a class, as Python spells it, and whether it is a single character."""
        char = self.text[self.at : self.at + 1]
        if not char:
            raise self._refuse("a class is not closed")
        if char == "\\":
            following = self.text[self.at + 1 : self.at + 2]
            if following == "S":
                raise self._refuse(r"\S does not stand in a class here")
            if following == "s":
                self._take(2)
                return _SPACE, False
            return self._escaped(_SYNTAX | {"-"}), following not in _CLASSES
        if char == "[" or (char == "-" and self.at != start and not self.text.startswith("-]", self.at)):
            raise self._refuse(f"write \\{char} for the character {char} in a class")
        return ("\\" if char in "-^&|~" else "") + self._take(), True
