"""What one connection follows: up to which version of each scope it has been told, and how it gets the rest (SPEC 6).

    DUE ──► READING ──► LIVE ◄──► LAGGING
     ▲                    │
     └────────────────────┘

DUE: what it missed must be read from the feed. READING: a read is under way, what comes meanwhile is held. LIVE: what
comes is sent. LAGGING: the reader was too slow; once it has taken what waits it is told that it is `behind`.

A live batch is sent if it begins where the last frame ended, skipped if it ends there or before, and otherwise makes
the scope due. So there is no gap and no repetition, in whatever order commits, wakes and reads come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from enum import Enum

from msgspec import Struct, field

from tidemark.store.base import ScopeState, Unavailable
from tidemark_protocol import messages, watermark
from tidemark_protocol.messages import Behind, ScopeAdded, ScopeRevoked, ServerFrame, Welcome

from .access import Grant, Principal
from .frames import Batch, encoded
from .hub import MAX_CHANGES, Hub
from .outgoing import Outgoing


class Phase(Enum):
    """How a scope stands on a connection; see the module."""

    DUE = "due"
    READING = "reading"
    LIVE = "live"
    LAGGING = "lagging"


class Following(Struct, eq=False):
    """One followed scope. `mark` is the watermark of what the peer has (None: nothing of the scope); `sent` the version
    that the next frame begins at; `admitted` the number of the change of members under which its rights were looked up.
    `asked`: the peer waits for the answer to its hello or follow, which may be a reset.
    """

    scope: str
    mark: str | None
    state: ScopeState
    admitted: int
    sent: int = -1
    asked: bool = True
    phase: Phase = Phase.DUE
    held: list[Batch] = field(default_factory=list)
    missed: bool = False


class StreamFollower:
    """The follower of one connection; `work` must run beside it as a task."""

    def __init__(self, hub: Hub, principal: Principal, schema: int, outgoing: Outgoing) -> None:
        self.user = principal.user
        self.own = principal.own
        self._principal = principal
        self._hub = hub
        self._schema = schema
        self._outgoing = outgoing
        self._followed: dict[str, Following] = {}
        self._readable: set[str] = set()
        self._narrowed: set[str] | None = None
        self._paused: set[str] = set()
        self._marks: dict[str, str] = {}
        self._lost: set[str] = set()
        """Scopes revoked on this connection: a watermark that the peer gives for one may be older than that."""
        self._refused: dict[str, str | None] = {}
        """Scopes to follow after the next survey, with their marks."""
        self._held = 0
        self._surveying = asyncio.Lock()
        self._survey_due = False
        self._attention = asyncio.Event()
        self.latest = ""
        """The highest reading among the writes told of."""

    # ── what the peer asks ───────────────────────────────────────────────────────────────────────────────────────────

    async def open(self, session: str, hello: messages.Hello, heartbeat: float) -> None:
        """Send `welcome`; what was missed follows. Raises Unavailable."""
        self._marks = dict(hello.watermark or {})
        self._narrowed = None if hello.scopes is None else set(hello.scopes)
        self._hub.track(self)
        async with self._surveying:
            readable, states = await self._survey()
            self._readable = {scope for scope in readable if self._concerns(scope)}
            heads = {scope: states[scope].head for scope in readable if self._covers(scope)}
            self.latest = max((states[scope].clock for scope in heads), default="")
            revoked = [scope for scope in self._marks if scope not in readable]
            for scope in revoked:
                del self._marks[scope]
            clock = self._hub.frames.clock(self.latest)
            self.send(Welcome(session, self.user, heads, revoked, clock, heartbeat))
            for scope in heads:
                self._follow(states[scope], self._marks.get(scope))

    async def resume(self, scopes: Iterable[str], marks: Mapping[str, str]) -> None:
        """Follow more scopes, from `marks`, else from where the stream last stood. Raises Unavailable.

        Those that may not be read are left out in silence; if `marks` names them, they are revoked. A scope once
        revoked on this connection begins where the stream stands, whatever mark is given.
        """
        wanted = list(dict.fromkeys(scopes))
        async with self._surveying:
            readable, states = await self._survey(frozenset(wanted))
            for scope in wanted:
                if scope in readable:
                    self._resume(states[scope], None if scope in self._lost else marks.get(scope))
                elif scope in marks and scope not in self._readable:
                    self.send(ScopeRevoked(scope))
            self._settle(readable, states)

    def _resume(self, state: ScopeState, mark: str | None) -> None:
        scope = state.scope
        if scope in self._lost and scope not in self._readable:
            self.send(ScopeAdded(scope))
        self._paused.discard(scope)
        self._readable.add(scope)
        if self._narrowed is not None:
            self._narrowed.add(scope)
        if mark is not None or scope not in self._followed:
            self._drop(scope)
            self._follow(state, mark or self._marks.get(scope))

    def pause(self, scopes: Iterable[str]) -> None:
        """Follow these no more, and remember where they stood."""
        for scope in self._readable.intersection(scopes):
            self._paused.add(scope)
            if self._narrowed is not None:
                self._narrowed.discard(scope)
            self._drop(scope)

    def close(self) -> None:
        """The connection is over."""
        for scope in tuple(self._followed):
            self._hub.detach(self, scope)
        self._followed.clear()
        self._hub.untrack(self)

    # ── what the hub tells ───────────────────────────────────────────────────────────────────────────────────────────

    def offer(self, batch: Batch) -> None:
        following = self._followed[batch.scope]
        match following.phase:
            case Phase.LIVE:
                self._deliver(following, batch)
            case Phase.READING if self._held + batch.size <= self._hub.buffer:
                following.held.append(batch)
                self._held += batch.size
            case Phase.READING:
                following.missed = True
            case Phase.DUE | Phase.LAGGING:
                pass  # the read or the `behind` that is to come covers it

    def revoked(self, scope: str) -> None:
        self._release(self._followed.pop(scope))
        self._lose(scope)
        self.membership_moved()  # this user may be back already, and a survey may have found so before this came

    def membership_moved(self) -> None:
        self._survey_due = True
        self._attention.set()

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, frame: ServerFrame) -> None:
        self._outgoing.put(encoded(frame))

    def drained(self) -> None:
        """The peer has taken all that waited: tell it where it was too slow."""
        for following in self._followed.values():
            if following.phase is Phase.LAGGING:
                self._fall_behind(following, self._hub.position(following.scope))

    def _deliver(self, following: Following, batch: Batch) -> None:
        if batch.to <= following.sent:
            return
        if batch.after != following.sent:
            self._make_due(following)
            return
        frame = batch.frame(self._schema)
        if frame is None or frame.size > self._hub.buffer:
            self._fall_behind(following, batch.to)
        elif self._outgoing.offer(frame):
            self._reached(following, batch.state)
        else:
            following.phase = Phase.LAGGING

    def _reached(self, following: Following, state: ScopeState) -> None:
        following.sent, following.asked = state.head, False
        self.latest = max(self.latest, state.clock)

    def _fall_behind(self, following: Following, head: int) -> None:
        """What lies between is pulled; the next frame begins at `head`."""
        following.phase, following.sent, following.asked = Phase.LIVE, head, False
        self.send(Behind(following.scope, head))

    # ── following ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _concerns(self, scope: str) -> bool:
        """Whether this connection is told when the scope is lost."""
        return self._narrowed is None or scope in self._narrowed or scope in self._paused

    def _covers(self, scope: str) -> bool:
        """Whether this connection follows the scope whenever it may be read."""
        return self._concerns(scope) and scope not in self._paused

    def _follow(self, state: ScopeState, mark: str | None) -> None:
        """Follow a scope that was readable when it stood at `state`; if members have changed since, after a survey."""
        if self._hub.attach(self, state):
            following = self._followed[state.scope] = Following(state.scope, mark, state, state.members)
            self._make_due(following)
        else:
            self._refused[state.scope] = mark
            self.membership_moved()

    def _drop(self, scope: str) -> None:
        following = self._followed.pop(scope, None)
        if following is not None:
            self._release(following)
            self._hub.detach(self, scope)
            mark = self._mark(following)
            if mark is not None:
                self._marks[scope] = mark

    def _release(self, following: Following) -> None:
        self._held -= sum(batch.size for batch in following.held)
        following.held = []

    def _lose(self, scope: str) -> None:
        """A scope may not be read any more; what was said about it on this connection lapses."""
        self._readable.discard(scope)
        self._paused.discard(scope)
        self._marks.pop(scope, None)
        self._lost.add(scope)
        self.send(ScopeRevoked(scope))

    def _make_due(self, following: Following) -> None:
        following.phase = Phase.DUE
        self._attention.set()

    async def _survey(self, also: frozenset[str] = frozenset()) -> tuple[Mapping[str, Grant], dict[str, ScopeState]]:
        """What the user may read, and the states of what is followed of it, at a moment when exactly that held.

        A change of membership raises the number of the user's own scope: where it stands still around the look-up of
        rights, these held at the states read with it.
        """
        store, own = self._hub.store, self.own
        named = (await store.states([own])).get(own) or ScopeState(own)
        while True:
            before = named.members
            self._hub.saw(named)
            self._survey_due = False
            try:
                readable = await self._hub.access.readable(self._principal)
                scopes = {own, *(scope for scope in readable if scope in also or self._covers(scope))}
                found = await store.states(scopes)
            except Unavailable:
                self.membership_moved()  # the hub will not tell again of what this was to find
                raise
            states = {scope: found.get(scope) or ScopeState(scope) for scope in scopes}
            named = states[own]
            if named.members == before:
                return readable, states

    def _settle(self, readable: Mapping[str, Grant], states: Mapping[str, ScopeState]) -> None:
        """Tell of scopes lost and gained since the last survey."""
        for scope in self._readable - readable.keys():
            self._drop(scope)
            self._lose(scope)
        refused, self._refused = self._refused, {}
        for scope, mark in refused.items():
            if scope in readable and self._covers(scope):
                self._follow(states[scope], mark)
        for scope in readable:
            if scope not in self._readable and self._covers(scope):
                self._readable.add(scope)
                self.send(ScopeAdded(scope))
                self._follow(states[scope], None)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def work(self) -> None:
        """Look up rights and read the feed as it becomes necessary, for as long as the connection lasts."""
        while True:
            await self._attention.wait()
            self._attention.clear()
            try:
                if self._survey_due:
                    async with self._surveying:
                        self._settle(*await self._survey())
                for following in tuple(self._followed.values()):
                    await self._catch_up(following)
            except Unavailable:
                self._attention.set()
                await self._hub.looked()

    async def _catch_up(self, following: Following) -> None:
        """Send one run up to the head, or `behind` if it holds too much for the stream."""
        while following.phase is Phase.DUE and self._followed.get(following.scope) is following:
            await self._outgoing.empty()
            following.phase, following.missed = Phase.READING, False
            try:
                await self._read(following)
            finally:
                if following.phase is Phase.READING:
                    following.phase = Phase.DUE
                held = following.held
                self._release(following)
            if following.phase is Phase.LIVE:
                self._replay(following, held)

    def _replay(self, following: Following, held: list[Batch]) -> None:
        """What came while the feed was read."""
        if following.missed:
            self._make_due(following)
        for batch in held:
            self.offer(batch)

    async def _read(self, following: Following) -> None:
        """One read; leaves the scope LIVE when its answer was sent."""
        begin = self._begin(following, following.state)
        run = await self._hub.store.run(following.scope, begin.after, begin.base, MAX_CHANGES, self._hub.buffer)
        if self._followed.get(following.scope) is not following:
            return
        state = ScopeState(following.scope) if run is None else run.state
        if not await self._still_reads(following, state):
            return
        following.state = state
        again = self._begin(following, state)
        if (again.after, again.reset) != (begin.after, begin.reset):
            return
        body, whole = (b"", True) if run is None else (run.body, run.to == state.head)
        if begin.reset and not following.asked:
            whole = False  # a stream resets nobody unasked (SPEC 5)
        following.phase = Phase.LIVE
        if self._mark(following) is not None and not begin.reset and begin.after == state.head:
            self._reached(following, state)
            return
        frame = None
        if whole:
            frame = self._hub.frames.whole_run(
                state, begin.after, body, schema=self._schema, base=begin.base, reset=begin.reset
            )
        if frame is None or frame.size > self._hub.buffer:
            self._fall_behind(following, state.head)
        else:
            self._outgoing.put(frame)
            self._reached(following, state)

    def _begin(self, following: Following, state: ScopeState) -> watermark.Start:
        mark, epoch = self._mark(following), self._hub.frames.epoch()
        return watermark.start(mark, epoch=epoch, head=state.head, floor=state.floor, schema=self._schema)

    def _mark(self, following: Following) -> str | None:
        """The watermark of what the peer has by now."""
        if following.sent < 0:
            return following.mark
        return str(watermark.Watermark(self._hub.frames.epoch(), following.sent, 0, self._schema))

    async def _still_reads(self, following: Following, state: ScopeState) -> bool:
        """Look up rights again if members have changed up to the state that was read."""
        if state.members <= following.admitted:
            return True
        readable = await self._hub.access.readable(self._principal)
        if self._followed.get(following.scope) is not following:
            return False
        if following.scope not in readable:
            self._drop(following.scope)
            self._lose(following.scope)
            return False
        following.admitted = state.members
        return True
