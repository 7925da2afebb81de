"""Being in a room (SPEC 6): who is there and what they say, and saying something oneself. No rows are touched."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

from tidemark_protocol import stream_client as effects
from tidemark_protocol.client_rooms import Gathered, Heard
from tidemark_protocol.messages import Member, Welcome

from .errors import TideError
from .peer import Peer
from .stream import Heeded, Streaming
from .values import entry_from_text

GLANCE: Final = 0.1
"""Seconds between looks at what was typed."""
_CHUNK: Final = 1 << 16


class View(Protocol):
    """Shows a room to somebody. `session` is one's own, `members` are all who are there by now."""

    def gathered(self, change: Gathered, members: dict[str, Member], session: str) -> None: ...

    def heard(self, heard: Heard) -> None: ...

    def said(self, event: str, payload: Any) -> None: ...


class Visitor(Streaming):
    """In one room until it is told to stop. `lines` gives what was typed since, each line an event and its payload."""

    def __init__(
        self,
        peer: Peer,
        room: str,
        state: Any,
        view: View,
        *,
        first: Iterable[tuple[str, str]],
        lines: Callable[[], list[str]],
        say: Callable[[str], None],
        sleep: Callable[[float], None],
        until: Callable[[], bool],
    ) -> None:
        super().__init__(peer, scopes=[], glance=GLANCE, say=say, sleep=sleep, until=until)
        self._room = room
        self._view = view
        self._first = list(first)
        self._lines = lines
        self._session = ""
        self._members: dict[str, Member] = {}
        self.do(self.stream.join(room, state))

    def prepare(self) -> dict[str, str]:
        return {}

    def greet(self, welcome: Welcome) -> None:
        self._session = welcome.session
        self.say(f"Joining {self._room} as {welcome.user}.")

    def between(self) -> None:
        for line in self._lines():
            event, _, text = line.strip().partition(" ")
            if event:
                self._cast(event, text)

    def heed(self, effect: Heeded) -> None:
        match effect:
            case Gathered():
                self._members = effect.applied(self._members)
                self._view.gathered(effect, self._members, self._session)
                first, self._first = self._first, []
                for event, text in first:
                    self._cast(event, text)
            case Heard():
                self._view.heard(effect)
            case effects.Refused(code, message):
                self._stay(f"{message} ({code})")
            case effects.Revoke(scope):
                self._stay(f"{scope} may not be read any more")
            case _:
                # No scope is followed, and nothing pushed.
                return

    def _stay(self, why: str) -> None:
        """Something was refused: a broadcast, or the room."""
        if self._room not in self.stream.rooms:
            raise TideError(f"Not in {self._room}: {why}.")
        self.say(f"The service said: {why}.")

    def _cast(self, event: str, text: str) -> None:
        """Payloads are JSON where they read as JSON, else text; without one it is null."""
        payload = entry_from_text(text.strip()) if text.strip() else None
        cast = self.stream.broadcast(self._room, event, payload)
        if cast:
            self._view.said(event, payload)
        else:
            self.say(f"There is no connection: nobody heard {event}.")
        self.do(cast)


class Lines:
    """What is written to a file descriptor, line by line, without waiting for it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._queue: SimpleQueue[str] = SimpleQueue()
        self.ended = threading.Event()
        # A daemon that reads the descriptor itself: nothing else could end a read that waits, and no lock is held.
        threading.Thread(target=self._read, daemon=True).start()

    def __call__(self) -> list[str]:
        """The lines that came since."""
        lines = []
        while True:
            try:
                lines.append(self._queue.get_nowait())
            except Empty:
                return lines

    def _read(self) -> None:
        rest = b""
        while chunk := self._chunk():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._queue.put(line.decode(errors="replace"))
        if rest:
            self._queue.put(rest.decode(errors="replace"))
        self.ended.set()

    def _chunk(self) -> bytes:
        try:
            return os.read(self._descriptor, _CHUNK)
        except OSError:
            return b""
