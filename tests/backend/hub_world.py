"""A small world around the hub: a store that lingers and fails, a wake that is told what to do, a peer with rows."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator

from tidemark.store.base import FeedRow, Run, Saved, ScopeState, Transaction, Unavailable
from tidemark.store.memory import MemoryStore
from tidemark.sync.access import Access, Principal
from tidemark.sync.commit import Commit
from tidemark.sync.feed import change
from tidemark.sync.follower import StreamFollower
from tidemark.sync.frames import Frame, FrameMaker
from tidemark.sync.hub import Hub
from tidemark.sync.outgoing import QueuedOutgoing
from tidemark.sync.rooms import RoomLimits, Rooms
from tidemark.wake.base import OnMessage, OnWake, Wakeup
from tidemark_protocol import digest
from tidemark_protocol.messages import Behind, Changes, Hello, ScopeAdded, ScopeRevoked, Welcome, decode_server_frame
from tidemark_protocol.model import Declaration
from tidemark_protocol.replica import Apply, Copy, Pull, judge

CLIENT = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
OWN = "user:ada"
SHARED = "workspace:1"
OTHER = "workspace:2"
SCOPES = (OWN, SHARED, OTHER)
DECLARATION = Declaration(3, 1, {"workspace": {"viewer": "read"}}, {})
CLOCK = "0192f3a4b5c6-0000-00000000000000aa"


class SlowStore(MemoryStore):
    """A memory store whose reads take a few turns of the event loop, before and after their snapshot."""

    def __init__(self, turns: Iterator[int]) -> None:
        super().__init__(DECLARATION, chance=bytes)
        self.turns = turns
        self.away = False
        self.after_memberships: Callable[[], Awaitable[None]] | None = None
        """What happens once, right after memberships were looked up."""

    async def linger(self) -> None:
        """Let others have their turns."""
        for _ in range(next(self.turns)):
            await asyncio.sleep(0)
        if self.away:
            raise Unavailable("away")

    async def run(self, scope: str, after: int, base: int, limit: int, max_bytes: int) -> Run | None:
        """As the store below, late."""
        await self.linger()
        found = await super().run(scope, after, base, limit, max_bytes)
        await self.linger()
        return found

    async def states(self, scopes: Collection[str]) -> dict[str, ScopeState]:
        """As the store below, late."""
        await self.linger()
        found = await super().states(scopes)
        await self.linger()
        return found

    async def memberships(self, users: Collection[str]) -> dict[str, dict[str, str]]:
        """As the store below, late."""
        await self.linger()
        found = await super().memberships(users)
        meanwhile, self.after_memberships = self.after_memberships, None
        if meanwhile is not None:
            await meanwhile()
        await self.linger()
        return found

    async def members(self, scope: str) -> dict[str, str]:
        """As the store below, late."""
        await self.linger()
        found = await super().members(scope)
        await self.linger()
        return found


class ToldWake:
    """Wakes when the test says so; remembers what was published and sent."""

    spans = True

    def __init__(self) -> None:
        self.published: list[Wakeup] = []
        self.sent: list[bytes] = []
        self.on_wake: OnWake = lambda _: None
        self.on_message: OnMessage = lambda _: None
        self.namespace = ""

    async def start(self, on_wake: OnWake, on_message: OnMessage, namespace: str) -> None:
        """Keep it for the test."""
        self.on_wake, self.on_message, self.namespace = on_wake, on_message, namespace

    def publish(self, scope: str, head: int, members: int) -> None:
        """Keep it for the test."""
        self.published.append(Wakeup(scope, head, members))

    def send(self, message: bytes) -> None:
        """Keep it for the test."""
        self.sent.append(message)

    async def stop(self) -> None:
        """Nothing to let go."""


class Straight(QueuedOutgoing):
    """A queue that may be written to straight while little waits in it."""

    def __init__(self, world: World, drained: Callable[[], None], faults: list[BaseException]) -> None:
        super().__init__(world.hub.buffer, 3_600, drained, drained)
        self._faults = faults
        self._most = world.hub.buffer // 4
        self._disturbed = world.hub.fanout.disturbed

    def straight(self) -> Callable[[bytes], None] | None:
        """As a transport: not while it is congested."""
        return None if self.waiting > self._most else self._write

    def put(self, frame: Frame) -> None:
        """As before."""
        before = self.waiting
        super().put(frame)
        if before <= self._most < self.waiting:
            self._disturbed()

    def sent(self) -> None:
        """As before."""
        before = self.waiting
        super().sent()
        if self.waiting <= self._most < before:
            self._disturbed()

    def _write(self, wire: bytes) -> None:
        if self.waiting > self._most:
            self._faults.append(AssertionError("written to, and was congested"))
        self.put(Frame(wire[wire.index(b"{") :]))


class World:
    """A store, its hub, and ways to write."""

    def __init__(self, turns: Iterator[int], buffer: int, *, lanes: bool = True) -> None:
        self.store = SlowStore(turns)
        self.wake = ToldWake()
        self.hub = Hub(
            store=self.store,
            access=Access(self.store, DECLARATION),
            wake=self.wake,
            frames=FrameMaker(
                lambda: self.store.epoch, lambda reading: max(reading, CLOCK), lambda _, changes: changes
            ),
            buffer=buffer,
            poll_interval=3_600_000,
        )
        self.hub.fanout.few = 0 if lanes else 1_000
        self.rooms = Rooms(
            node="0" * 16, send=self.wake.send, limits=RoomLimits(), fanout=self.hub.fanout, monotonic=lambda: 0.0
        )
        self.late: list[Commit] = []
        """Commits of this process that its hub has not been told of yet."""
        self.unread: dict[str, set[int]] = {scope: set() for scope in SCOPES}
        """Versions that were committed while ada was no member."""

    def is_member(self, scope: str) -> bool:
        """Whether ada may read."""
        return scope == OWN or (scope, "ada") in self.store.roles

    async def commit(
        self, scope: str, rows: list[tuple[str, bool]], *, size: int = 0, here: bool = True, late: bool = False
    ) -> None:
        """Write rows (name, deleted) in one commit, by this process (its hub hears of it at once or later) or not."""

        async def body(transaction: Transaction) -> Commit:
            state = (await transaction.lock([scope], [scope]))[scope]
            after = state.head
            written = []
            for name, deleted in dict(rows).items():
                state.head += 1
                doc = "{}" if deleted else f'{{"id":"{name}","text":"{"x" * size}"}}'
                written.append(FeedRow(scope, "notes", name, state.head, deleted, doc, CLOCK, "", 0))
            held = {row.row: row for row in await self.store.rows_of(scope)} | {row.row: row for row in written}
            live = [row for row in held.values() if not row.deleted]
            state.live = len(live)
            state.total = sum(digest.term("notes", row.row, row.version) for row in live) % digest.MODULUS
            await transaction.save(Saved([state], written, [], [], [], []))
            return Commit(after, state, len(written), ",".join(change(row) for row in written).encode())

        commit = await self.store.transact(body)
        if not self.is_member(scope):
            self.unread[scope] |= set(range(commit.after + 1, commit.state.head + 1))
        if here:
            self.late.append(commit)
        if here and not late:
            self.deliver()

    def deliver(self) -> None:
        """The hub hears of the commits it has not heard of, in their order."""
        commits, self.late = self.late, []
        for commit in commits:
            self.hub.committed(commit)

    async def set_member(self, scope: str, role: str | None, *, here: bool = True) -> None:
        """Give ada a role in a scope or take it away; true at once when this returns."""

        async def body(transaction: Transaction) -> list[ScopeState]:
            states = await transaction.lock([OWN, scope], [OWN, scope])
            for state in states.values():
                state.members += 1
            await transaction.set_role(scope, "ada", role)
            await transaction.save(Saved(list(states.values()), [], [], [], [], []))
            return list(states.values())

        states = await self.store.transact(body)
        if role is not None:
            self.unread[scope].clear()
        for state in states if here else ():
            self.hub.committed(Commit(state.head, state, 0, b""))

    def tell(self, scope: str) -> None:
        """A wake of another process arrives."""
        state = self.store.scopes.get(scope)
        if state is not None:
            self.wake.on_wake(Wakeup(scope, state.head, state.members))

    def look(self) -> None:
        """A wake says that anything may have moved."""
        self.wake.on_wake(None)

    def rows(self, scope: str) -> dict[str, int]:
        """The live rows of a scope with their versions."""
        return {row.row: row.version for row in self.store.feed.values() if row.scope == scope and not row.deleted}

    def head(self, scope: str) -> int:
        """The scope's head."""
        return self.store.scopes.get(scope, ScopeState(scope)).head


class Peer:
    """A replica at the other end of a stream: it applies what comes and distrusts every frame."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.faults: list[BaseException] = []
        self.outgoing = Straight(world, self._drained, self.faults)
        principal = Principal("ada", OWN, admin=False, expires=0)
        self.follower = StreamFollower(world.hub, world.rooms, principal, "s", 3, self.outgoing, self.faults.append)
        self.copies: dict[str, Copy] = {}
        self.rows: dict[str, dict[str, int]] = {}
        self.ends: dict[str, int] = {}
        self.jumps: Counter[str] = Counter()
        self.lapsed: set[str] = set()
        """Scopes that a pull found revoked before the stream said so."""
        self.kinds: list[str] = []
        self.eager = False

    async def open(self, watermark: dict[str, str] | None = None, scopes: list[str] | None = None) -> None:
        """Say hello."""
        await self.follower.open(Hello("t", CLIENT, 3, watermark, scopes), 25)
        self.follower.begin()

    async def close(self) -> None:
        """Go away; a fault of the work shows."""
        self.follower.close()
        assert not self.faults

    def _drained(self) -> None:
        self.follower.drained()

    @property
    def waiting(self) -> bool:
        """Whether a frame waits to be read."""
        return self.outgoing.waiting > 0

    async def read(self) -> None:
        """Take one frame and apply it."""
        frame = decode_server_frame(await self.outgoing.take())
        self.outgoing.sent()
        self.kinds.append(type(frame).__name__)
        match frame:
            case Changes():
                self._apply(frame)
            case Behind(scope=scope, head=head):
                assert self.world.is_member(scope) or head <= self._last_readable(scope)
                self._pull(scope)
                self.ends[scope] = head
            case ScopeRevoked(scope=scope):
                for kept in (self.copies, self.rows, self.ends):
                    kept.pop(scope, None)
            case ScopeAdded(scope=scope):
                self.ends.pop(scope, None)
            case Welcome(revoked=revoked):
                assert not {scope for scope in revoked if self.world.is_member(scope)}

    def _last_readable(self, scope: str) -> int:
        return min(self.world.unread[scope], default=self.world.head(scope) + 1) - 1

    def _apply(self, run: Changes) -> None:
        scope = run.scope
        assert not {change.version for change in run.changes} & self.world.unread[scope], "read after revocation"
        if self.jumps[scope] and run.from_ != self.ends.get(scope, run.from_):
            self.jumps[scope] -= 1
        else:
            assert run.from_ == self.ends.get(scope, run.from_), f"a gap or a repetition in {scope}"
        self.ends[scope] = run.to
        assert run.to == run.head
        match judge(self.copies.get(scope, Copy()), run, asked=True):
            case Apply(changes=changes, copy=copy, replace=replaces, digest=proof):
                rows = {} if replaces else self.rows.get(scope, {})
                for changed in changes:
                    rows.pop(changed.row, None)
                    if changed.doc is not None:
                        rows[changed.row] = changed.version
                self.rows[scope], self.copies[scope] = rows, copy
                if proof is not None:
                    assert digest.of_rows(("notes", row, version) for row, version in rows.items()) == proof
            case Pull():
                assert scope in self.lapsed, "a frame that does not fit"
                self._pull(scope)

    def _pull(self, scope: str) -> None:
        """What a pull would bring, at once; one that says the scope is revoked drops its rows."""
        if self.world.is_member(scope):
            head = self.world.head(scope)
            mark = f"{self.world.store.epoch}.{head}.0.3"
            self.copies[scope] = Copy(head, head, mark)
            self.rows[scope] = self.world.rows(scope)
        else:
            self.copies.pop(scope, None)
            self.rows.pop(scope, None)
            self.lapsed.add(scope)

    def watermark(self, *scopes: str) -> dict[str, str]:
        """What it holds of some scopes."""
        copies = {scope: self.copies.get(scope) for scope in scopes}
        return {scope: copy.watermark for scope, copy in copies.items() if copy is not None and copy.watermark}


async def settle(peer: Peer) -> None:
    """Give everybody turns until nothing is left to do, reading all that comes."""
    quiet = 0
    while quiet < 60:
        await asyncio.sleep(0)
        quiet += 1
        while peer.waiting:
            quiet = 0
            await peer.read()
