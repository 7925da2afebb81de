"""What one connection follows: how far it has been told of each scope, and how it gets the rest (SPEC 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from tidemark.meter import BehindCause
from tidemark.store.base import ScopeState, Unavailable
from tidemark_protocol import messages, watermark
from tidemark_protocol.messages import Behind, ScopeAdded, ScopeRevoked, ServerFrame, Welcome

from .access import Grant, Principal
from .following import Following, Phase, Visit
from .frames import Batch, encoded
from .hub import Hub
from .outgoing import Outgoing
from .rooms import Rooms


class StreamFollower:
    """The scopes of one connection. `begin` lets it work, for as long as there is something to do; `failed` takes what
    nobody foresaw. It is also the connection as rooms see it: a guest.
    """

    def __init__(
        self,
        hub: Hub,
        rooms: Rooms,
        principal: Principal,
        session: str,
        schema: int,
        outgoing: Outgoing,
        failed: Callable[[BaseException], None],
    ) -> None:
        self.user = principal.user
        self.own = principal.own
        self.session = session
        self.schema = schema
        self.outgoing = outgoing
        self.put = outgoing.put
        self.offer = outgoing.offer
        self.straight = outgoing.straight
        self._principal = principal
        self._hub = hub
        self._rooms = rooms
        self._failed = failed
        self._followed: dict[str, Following] = {}
        self._visits: dict[str, Visit] = {}
        self._readable: set[str] = set()
        self._narrowed: set[str] | None = None
        self._paused: frozenset[str] = frozenset()
        self._marks: dict[str, str] = {}
        self._lost: frozenset[str] = frozenset()
        """Scopes revoked on this connection: a watermark that the peer gives for one may be older than that."""
        self._refused: dict[str, str | None] = {}
        """Scopes to follow after the next survey, with their marks."""
        self._held = 0
        self._surveying = asyncio.Lock()
        self._survey_due = self._attention = self._begun = False
        self._working: asyncio.Task[None] | None = None
        self._reflected = ""

    # ── what the peer asks ───────────────────────────────────────────────────────────────────────────────────────────

    async def open(self, hello: messages.Hello, heartbeat: float) -> None:
        """Send `welcome`; what was missed follows once it has begun. Raises Unavailable."""
        self._marks = dict(hello.watermark or {})
        self._narrowed = None if hello.scopes is None else set(hello.scopes)
        self._hub.track(self)
        async with self._surveying:
            readable, states = await self._survey()
            self._readable = {scope for scope in readable if self._concerns(scope)}
            heads = {scope: states[scope].head for scope in readable if self._covers(scope)}
            self._reflected = max((states[scope].clock for scope in heads), default="")
            revoked = [scope for scope in self._marks if scope not in readable]
            for scope in revoked:
                del self._marks[scope]
            clock = self._hub.frames.clock(self._reflected)
            self.send(Welcome(self.session, self.user, heads, revoked, clock, heartbeat))
            for scope in heads:
                self._follow(states[scope], self._marks.get(scope))

    @property
    def latest(self) -> str:
        """The highest reading among the writes told of."""
        told = (self._hub.told(scope) for scope in self._followed)
        return max(self._reflected, *told, "")

    def begin(self) -> None:
        """From now on, read and look up what there is to."""
        self._begun = True
        self._attend()

    async def visit(self, scope: str) -> bool:
        """Whether rooms of the scope may be joined; from then on its end is watched for. Raises Unavailable."""
        following = self._followed.get(scope)
        if following is not None and scope not in self._visits:
            self._let_in(following.state)
        while scope not in self._visits:
            async with self._surveying:
                readable, states = await self._survey(frozenset([scope]))
                self._settle(readable, states)
            if scope not in readable:
                return False
            self._let_in(states[scope])
        return True

    def _let_in(self, state: ScopeState) -> None:
        visit = Visit(self, state.scope)
        if self._hub.let_in(visit, state):
            self._visits[state.scope] = visit

    def tidy_visits(self) -> None:
        """End the visits of scopes in none of whose rooms it is."""
        visited = {room.partition("/")[0] for room in self._rooms.rooms_of(self)}
        for scope in self._visits.keys() - visited:
            self._hub.let_out(self._visits.pop(scope))

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
        self._paused -= {scope}
        self._readable.add(scope)
        if self._narrowed is not None:
            self._narrowed.add(scope)
        if mark is not None or scope not in self._followed:
            self._drop(scope)
            self._follow(state, mark or self._marks.get(scope))

    def pause(self, scopes: Iterable[str]) -> None:
        """Follow these no more, and remember where they stood."""
        for scope in self._readable.intersection(scopes):
            self._paused |= {scope}
            if self._narrowed is not None:
                self._narrowed.discard(scope)
            self._drop(scope)

    def close(self) -> None:
        """The connection is over."""
        self._begun = False
        if self._working is not None:
            self._working.cancel()
        for following in self._followed.values():
            following.phase = Phase.OVER
            self._hub.detach(following)
        for visit in self._visits.values():
            self._hub.let_out(visit)
        self._followed.clear()
        self._visits.clear()
        self._hub.untrack(self)

    # ── what the hub tells ───────────────────────────────────────────────────────────────────────────────────────────

    def offered(self, following: Following, batch: Batch) -> None:
        """A batch that did not simply fit."""
        match following.phase:
            case Phase.LIVE:
                self._deliver(following, batch)
            case Phase.READING if self._held + batch.size <= self._hub.buffer:
                following.held.append(batch)
                self._held += batch.size
            case Phase.READING:
                following.missed = True
            case Phase.DUE | Phase.LAGGING | Phase.OVER:
                pass  # the read or the `behind` that is to come covers it, if the peer follows at all

    def revoked(self, scope: str) -> None:
        """The user may not read a scope any more; the hub has let go of it."""
        following = self._followed.pop(scope, None)
        if following is not None:
            self._let_go(following)
        if following is not None or scope in self._visits:
            self._lose(scope)
        self.membership_moved()  # this user may be back already, and a survey may have found so before this came

    def membership_moved(self) -> None:
        self._survey_due = True
        self._attend()

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, frame: ServerFrame) -> None:
        self.put(encoded(frame))

    def drained(self) -> None:
        """The peer has taken all that waited: tell it where it was too slow."""
        for following in self._followed.values():
            if following.phase is Phase.LAGGING:
                self._fall_behind(following, self._hub.position(following.scope), "slow_reader")
        if self._visits:
            self._rooms.drained(self)

    def _deliver(self, following: Following, batch: Batch) -> None:
        if batch.to <= following.sent:
            return
        if batch.after != following.sent:
            self._make_due(following)
            return
        frame = batch.frame(self.schema)
        if frame is None:
            self._fall_behind(following, batch.to, "too_far")
        elif frame.size > self._hub.buffer:
            self._fall_behind(following, batch.to, "too_large")
        else:
            following.phase = Phase.LAGGING

    def _fall_behind(self, following: Following, head: int, cause: BehindCause) -> None:
        """What lies between is pulled; the next frame begins at `head`."""
        self._live_at(following, head)
        self.send(Behind(following.scope, head))
        self._hub.meter.fell_behind(cause)

    # ── following ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _concerns(self, scope: str) -> bool:
        """Whether this connection is told when the scope is lost."""
        return self._narrowed is None or scope in self._narrowed or scope in self._paused

    def _covers(self, scope: str) -> bool:
        """Whether this connection follows the scope whenever it may be read."""
        return self._concerns(scope) and scope not in self._paused

    def _follow(self, state: ScopeState, mark: str | None) -> None:
        """Follow a scope that was readable when it stood at `state`; if members have changed since, after a survey."""
        following = Following(self, mark, state)
        if not self._hub.attach(following, state):
            self._refused[state.scope] = mark
            self.membership_moved()
            return
        self._followed[state.scope] = following
        if state.head < self._hub.position(state.scope) or (state.head and not self._stands(following, state)):
            self._make_due(following)
        else:
            self._send_run(following, state, b"", whole=True)

    def _drop(self, scope: str) -> None:
        following = self._followed.pop(scope, None)
        if following is not None:
            self._let_go(following)
            self._hub.detach(following)
            mark = self._mark(following)
            if mark is not None:
                self._marks[scope] = mark

    def _let_go(self, following: Following) -> None:
        following.phase = Phase.OVER
        self._release(following)

    def _release(self, following: Following) -> None:
        self._held -= sum(batch.size for batch in following.held)
        following.held = []

    def _lose(self, scope: str) -> None:
        """A scope may not be read any more; what was said about it on this connection lapses."""
        self._readable.discard(scope)
        self._paused -= {scope}
        self._marks.pop(scope, None)
        self._lost |= {scope}
        if scope in self._visits:
            self._rooms.depart(self, scope)
            self.tidy_visits()
        self.send(ScopeRevoked(scope))

    def _make_due(self, following: Following) -> None:
        following.phase = Phase.DUE
        self._attend()

    def _live_at(self, following: Following, head: int) -> None:
        self._hub.regroup(following.scope)
        following.phase, following.sent, following.asked = Phase.LIVE, head, False

    async def _survey(self, also: frozenset[str] = frozenset()) -> tuple[Mapping[str, Grant], dict[str, ScopeState]]:
        """What the user may read, and the states of what is followed of it, at a moment when exactly that held.

        A change of membership raises the number of the user's own scope: where it stands still around the look-up of
        rights, these held at the states read with it.
        """
        own = self.own
        named = (await self._hub.states([own])).get(own) or ScopeState(own)
        while True:
            before = named.members
            self._hub.saw(named)
            self._survey_due = False
            try:
                readable = await self._hub.access.readable(self._principal)
                scopes = {own, *(scope for scope in readable if scope in also or self._covers(scope))}
                found = await self._hub.states(scopes)
            except Unavailable:
                self.membership_moved()  # the hub will not tell again of what this was to find
                raise
            states = {scope: found.get(scope) or ScopeState(scope) for scope in scopes}
            named = states[own]
            if named.members == before:
                return readable, states

    def _settle(self, readable: Mapping[str, Grant], states: Mapping[str, ScopeState]) -> None:
        """Tell of scopes lost and gained since the last survey."""
        for scope in (self._readable | self._visits.keys()) - readable.keys():
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

    def _attend(self) -> None:
        """There is something to do: do it beside what the peer asks."""
        self._attention = True
        if self._begun and self._working is None:
            self._working = asyncio.create_task(self._work())
            self._working.add_done_callback(self._worked)

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._working = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)
        elif self._attention:
            self._attend()

    async def _work(self) -> None:
        """Look up rights and read the feed as far as necessary."""
        while self._attention:
            self._attention = False
            try:
                if self._survey_due:
                    async with self._surveying:
                        self._settle(*await self._survey())
                for following in tuple(self._followed.values()):
                    await self._catch_up(following)
            except Unavailable:
                self._attention = True
                await self._hub.looked()

    async def _catch_up(self, following: Following) -> None:
        """Send one run up to the head, or `behind` if it holds too much for the stream."""
        while following.phase is Phase.DUE and self._followed.get(following.scope) is following:
            await self.outgoing.clear()
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
            following.offer(batch)

    async def _read(self, following: Following) -> None:
        """One read; leaves the scope LIVE when its answer was sent."""
        begin = self._begin(following, following.state)
        run = await self._hub.read(following.scope, begin.after, begin.base)
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
        self._send_run(following, state, body, whole=whole)

    def _send_run(self, following: Following, state: ScopeState, body: bytes, *, whole: bool) -> None:
        """Send what the feed holds for this reader (not all of it: not `whole`); from then on the scope is live."""
        begin = self._begin(following, state)
        if self._stands(following, state):
            self._live_at(following, state.head)
            return
        frame = None
        if whole and (following.asked or not begin.reset):  # a stream resets nobody unasked (SPEC 5)
            frame = self._hub.frames.whole_run(
                state, begin.after, body, schema=self.schema, base=begin.base, reset=begin.reset
            )
        if frame is None:
            self._fall_behind(following, state.head, "too_far")
        elif frame.size > self._hub.buffer:
            self._fall_behind(following, state.head, "too_large")
        else:
            self.put(frame)
            self._live_at(following, state.head)
            self._reflected = max(self._reflected, state.clock)

    def _stands(self, following: Following, state: ScopeState) -> bool:
        """Whether the peer has everything already."""
        begin = self._begin(following, state)
        return self._mark(following) is not None and not begin.reset and begin.after == state.head

    def _begin(self, following: Following, state: ScopeState) -> watermark.Start:
        mark, epoch = self._mark(following), self._hub.frames.epoch()
        return watermark.start(mark, epoch=epoch, head=state.head, floor=state.floor, schema=self.schema)

    def _mark(self, following: Following) -> str | None:
        """The watermark of what the peer has by now."""
        if following.sent < 0:
            return following.mark
        return str(watermark.Watermark(self._hub.frames.epoch(), following.sent, 0, self.schema))

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
