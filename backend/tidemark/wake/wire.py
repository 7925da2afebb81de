"""What processes say to each other, as payloads that any channel carries: UTF-8 without the null character.

A payload is a line that says whose and what it is, and lines of its kind below:

    wakes <sender>                                    then lines of `scope head members`, or `*`: look at everything
    part <sender> <message> <part> <parts> <form>     then a piece of a message, plain or in base64

Messages are numbered by their sender, and so are their parts. A payload of wakes without a line below tells nothing:
its sender listens whether it comes back.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from .base import OnMessage, OnWake, Wakeup

LOOK: Final = "*"
PLAIN: Final = "plain"
BASE64: Final = "base64"
MAX_SCOPES: Final = 1_000
"""Scopes that wait to be told of; more, and the others are told to look at everything."""
MAX_WAITING: Final = 4 << 20
"""Bytes of messages that wait to be sent; more are lost, and the others told to look."""
MAX_HELD: Final = 16 << 20
"""Bytes held of messages of which parts have yet to come; then the one begun first is given up."""
_HEADER: Final = 120
"""Bytes that the first line of a part takes at most."""


class Outbox:
    """What one process wants to say and has not said, bounded. `most` is how many bytes a payload may have."""

    def __init__(self, sender: str, most: int) -> None:
        self._sender = sender
        self._most = most
        self._wakes: dict[str, Wakeup] = {}
        self._messages: deque[bytes] = deque()
        self._size = 0
        self._number = 0
        self._lost = False

    def wake(self, scope: str, head: int, members: int) -> None:
        """Wakes of one scope become one."""
        if self._lost:
            return
        known = self._wakes.get(scope)
        if known is not None:
            head, members = max(head, known.head), max(members, known.members)
        elif len(self._wakes) == MAX_SCOPES:
            self.lose()
            return
        self._wakes[scope] = Wakeup(scope, head, members)

    def message(self, message: bytes) -> None:
        if self._lost:
            return
        self._messages.append(message)
        self._size += len(message)
        if self._size > MAX_WAITING:
            self.lose()

    def lose(self) -> None:
        """What waits, and what comes until the next `take`, becomes one hint: look at everything."""
        self._lost = True
        self._clear()

    def take(self) -> list[bytes]:
        """All that waits, as payloads in their order."""
        lines = [LOOK] if self._lost else [f"{scope} {head} {members}" for scope, head, members in self._wakes.values()]
        payloads = [*self._of_lines(lines), *(part for message in self._messages for part in self._of_message(message))]
        self._lost = False
        self._clear()
        return payloads

    def echo(self) -> bytes:
        """Tells nothing, and comes back to who listens."""
        return f"wakes {self._sender}".encode()

    def _clear(self) -> None:
        self._wakes.clear()
        self._messages.clear()
        self._size = 0

    def _of_lines(self, lines: Iterable[str]) -> Iterator[bytes]:
        head = f"wakes {self._sender}"
        kept, size = [head], len(head)
        for line in lines:
            if size + 1 + len(line) > self._most:
                yield "\n".join(kept).encode()
                kept, size = [head], len(head)
            kept.append(line)
            size += 1 + len(line)
        if len(kept) > 1:
            yield "\n".join(kept).encode()

    def _of_message(self, message: bytes) -> Iterator[bytes]:
        form, text = _as_text(message)
        pieces = list(_cut(text, self._most - _HEADER))
        for number, piece in enumerate(pieces):
            yield f"part {self._sender} {self._number} {number} {len(pieces)} {form}\n".encode() + piece
        self._number += 1


class _Begun:
    """A message of which some parts are there."""

    def __init__(self, number: str, parts: int, form: str) -> None:
        self.number = number
        self.parts = parts
        self.form = form
        self.pieces: list[bytes] = []
        self.size = 0


class Inbox:
    """Reads the payloads of others and passes on what they say. `echoed`: one of its own has come back."""

    def __init__(self, sender: str, on_wake: OnWake, on_message: OnMessage) -> None:
        self.echoed = False
        self._sender = sender
        self._on_wake = on_wake
        self._on_message = on_message
        self._begun: dict[str, _Begun] = {}
        self._held = 0

    def read(self, payload: bytes) -> None:
        """What nobody of ours wrote says: look at everything."""
        line, _, body = payload.partition(b"\n")
        match line.decode("ascii", "replace").split(" "):
            case [_, self._sender, *_]:
                self.echoed = True
            case ["wakes", _]:
                self._read_wakes(body)
            case ["part", sender, number, part, parts, (("plain" | "base64") as form)] if (
                part.isdecimal() and parts.isdecimal()
            ):
                self._read_part(sender, number, int(part), int(parts), form, body)
            case _:
                self._on_wake(None)

    def _read_wakes(self, body: bytes) -> None:
        for line in body.decode("ascii", "replace").split("\n") if body else ():
            match line.split(" "):
                case [scope, head, members] if head.isdecimal() and members.isdecimal():
                    self._on_wake(Wakeup(scope, int(head), int(members)))
                case _:
                    self._on_wake(None)

    def _read_part(self, sender: str, number: str, part: int, parts: int, form: str, piece: bytes) -> None:
        """A part that does not follow the one before it makes its message a lost one."""
        if part == 0:
            self._give_up(sender)
            self._begun[sender] = _Begun(number, parts, form)
        begun = self._begun.get(sender)
        if begun is None or (begun.number, begun.parts, len(begun.pieces)) != (number, parts, part):
            self._give_up(sender)
            return
        begun.pieces.append(piece)
        begun.size += len(piece)
        self._held += len(piece)
        if part + 1 == parts:
            self._give_up(sender)
            self._pass_on(begun)
        while self._held > MAX_HELD:
            self._give_up(next(iter(self._begun)))

    def _give_up(self, sender: str) -> None:
        begun = self._begun.pop(sender, None)
        if begun is not None:
            self._held -= begun.size

    def _pass_on(self, begun: _Begun) -> None:
        text = b"".join(begun.pieces)
        try:
            message = b64decode(text, validate=True) if begun.form == BASE64 else text
        except binascii.Error:
            self._on_wake(None)
        else:
            self._on_message(message)


def _as_text(message: bytes) -> tuple[str, bytes]:
    """A message as what channels carry, and which form that has."""
    try:
        message.decode()
    except UnicodeDecodeError:
        return BASE64, b64encode(message)
    return (BASE64, b64encode(message)) if b"\0" in message else (PLAIN, message)


def _cut(text: bytes, most: int) -> Iterator[bytes]:
    """Pieces of a text in UTF-8, between characters; one at least."""
    start = 0
    while len(text) - start > most:
        end = start + most
        while text[end] & 0xC0 == 0x80:
            end -= 1
        yield text[start:end]
        start = end
    yield text[start:]
