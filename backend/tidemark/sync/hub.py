"""Who follows which scope in this process, and what has been told to them (SPEC 6).

    this process's commits ──committed──┐
    other processes' wakes ────woken────┼──► Topic ──Batch──► Follower (one for each connection and scope)
    heads looked up now and then ───────┘      └─ reads the feed from its position when what came does not fit

A topic is a scope that somebody follows, with the version up to which it has told. What comes from a commit of this
process and begins at that version is passed on as it is; anything else only says that there is more to read. So no
change is missed or repeated, whatever is lost, late or doubled.

**Revocation** (SPEC 6): a topic remembers the `members` number of its scope under which all its followers were found
to be readers. Nothing of a state with a higher number is passed on before their rights were looked up again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Final

import structlog

from tidemark.meter import SILENT, Meter, Origin
from tidemark.store.base import Run, ScopeState, Store, Unavailable
from tidemark.wake.base import OnMessage, Wake, Wakeup

from .access import Access
from .commit import Commit
from .fanout import Fanout, sliced
from .frames import Batch, FrameMaker
from .lookups import Lookups
from .topic import Follower, Topic, Tracker, Watch

MAX_CHANGES: Final = 5_000
"""Changes that one run on the stream may hold; what is further behind is pulled."""

_SETTLED_WITHIN: Final = 5.0

_log = structlog.get_logger(__name__)


class Hub:
    """All topics of this process. `buffer` is in bytes, `poll_interval` in ms, `monotonic` gives seconds."""

    def __init__(
        self,
        *,
        store: Store,
        access: Access,
        wake: Wake,
        frames: FrameMaker,
        buffer: int,
        poll_interval: int,
        monotonic: Callable[[], float] = time.monotonic,
        meter: Meter = SILENT,
    ) -> None:
        self.store = store
        self.access = access
        self.frames = frames
        self.buffer = buffer
        self.fanout = Fanout()
        self.states = Lookups(store.states)
        self.meter = meter
        self.on_deaf: Callable[[], None] = lambda: None
        """Called when something that other processes sent may have been lost."""
        self.on_settled: Callable[[str], None] = lambda _: None
        """Called when those who may not read a scope any more have been told."""
        self._wake = wake
        self.on_message: OnMessage = lambda _: None
        """What to do with a message of another process; to be set before the start."""
        self._poll_interval = poll_interval / 1_000
        self._monotonic = monotonic
        self._topics: dict[str, Topic] = {}
        self._reads: dict[tuple[str, int, int], asyncio.Task[Run | None]] = {}
        self._settling: dict[str, tuple[asyncio.Future[None], float]] = {}
        """Scopes that somebody waits for until it is known who may read them, and until when (the loop's time)."""
        self._look = asyncio.Event()
        self._looked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        meter.watch("topics", lambda: len(self._topics))

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        self._task = self._begin(self._keep_looking())
        await self._wake.start(self._woken, self.on_message, self.store.epoch)

    async def stop(self) -> None:
        """Listen no more."""
        await self._wake.stop()
        readings = (topic.reading for topic in self._topics.values())
        tasks = [task for task in (self._task, *readings, *self._reads.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(_report)
        return task

    # ── what happened ────────────────────────────────────────────────────────────────────────────────────────────────

    def committed(self, commit: Commit) -> None:
        """A commit of this process, in commit order for each scope."""
        state = commit.state
        self._wake.publish(state.scope, state.head, state.members)
        topic = self._topics.get(state.scope)
        if topic is None:
            return
        if topic.reading is not None:
            self._keep(topic, commit)
        elif topic.followers:
            self._pass_on_commit(topic, commit)
        self._heard(topic, state.head, state.members)

    def _woken(self, wakeup: Wakeup | None) -> None:
        if wakeup is None:
            self._look.set()
            self.on_deaf()
            return
        topic = self._topics.get(wakeup.scope)
        if topic is not None:
            self._heard(topic, wakeup.head, wakeup.members)

    def saw(self, state: ScopeState) -> None:
        """A state read from the store, by whomever."""
        topic = self._topics.get(state.scope)
        if topic is not None:
            self._heard(topic, state.head, state.members)

    def _heard(self, topic: Topic, head: int, members: int) -> None:
        """The scope stands at least here."""
        moved = head > topic.head or members > topic.number
        topic.head, topic.number = max(topic.head, head), max(topic.number, members)
        if moved:
            for watch in topic.watches:
                watch.moved()
        if not (topic.followers or topic.visits):
            if topic.number > topic.members:
                self._members_moved(topic, topic.number)
        elif topic.lags and topic.reading is None:
            topic.reading = self._begin(self._catch_up(topic))

    # ── who follows ──────────────────────────────────────────────────────────────────────────────────────────────────

    def attach(self, follower: Follower, state: ScopeState) -> bool:
        """Follow a scope, as one who was found to be a reader when it stood at `state`, a state read from the store.

        False: members have changed since then; ask again.
        """
        topic = self._topic(state.scope)
        if not self._admits(topic, state):
            return False
        if not topic.followers:
            topic.position, topic.clock = state.head, state.clock
        topic.dissolve()
        topic.followers.add(follower)
        self._heard(topic, state.head, state.members)
        return True

    def detach(self, follower: Follower) -> None:
        topic = self._topics[follower.scope]
        topic.dissolve()
        topic.followers.discard(follower)

    def regroup(self, scope: str) -> None:
        """A follower of the scope is to be told live from now on."""
        self._topics[scope].dissolve()

    def let_in(self, visit: Follower, state: ScopeState) -> bool:
        """Tell `visit` when it may not read the scope any more; otherwise as `attach`."""
        topic = self._topic(state.scope)
        if not self._admits(topic, state):
            return False
        topic.visits[visit] = None
        self._heard(topic, state.head, state.members)
        return True

    def let_out(self, visit: Follower) -> None:
        self._topics[visit.scope].visits.pop(visit, None)

    def _admits(self, topic: Topic, state: ScopeState) -> bool:
        """Whether rights found at `state` are as new as those of the ones who are there."""
        if topic.followers or topic.visits:
            return topic.members <= state.members
        if topic.members != state.members:
            self._members_moved(topic, state.members)
        return True

    def track(self, tracker: Tracker) -> None:
        """Tell it when the members number of its user's own scope moves."""
        self._topic(tracker.own).trackers[tracker] = None

    def untrack(self, tracker: Tracker) -> None:
        topic = self._topics.get(tracker.own)
        if topic is not None:
            topic.trackers.pop(tracker, None)

    @property
    def topics(self) -> int:
        """How many scopes are kept in mind."""
        return len(self._topics)

    def told(self, scope: str) -> str:
        """The highest reading among the writes told of a followed scope."""
        return self._topics[scope].clock

    def position(self, scope: str) -> int:
        """Up to where a followed scope has been told."""
        return self._topics[scope].position

    def watch(self, scopes: Iterable[str]) -> Watch:
        return Watch(self, scopes)

    def add_watch(self, watch: Watch, scopes: Iterable[str]) -> None:
        """New topics make it look at once: so the watch soon knows where they stand."""
        for scope in scopes:
            topic = self._topic(scope)
            topic.watches[watch] = None
            if topic.head < 0:
                self._look.set()

    def remove_watch(self, watch: Watch, scopes: Iterable[str]) -> None:
        for scope in scopes:
            self._topics[scope].watches.pop(watch, None)

    def _topic(self, scope: str) -> Topic:
        return self._topics.get(scope) or self._topics.setdefault(scope, Topic(scope))

    def _tidy(self) -> None:
        """Forget topics that nobody has cared for since the last look.

        Not at once: one who waits for changes goes and comes, and finds out by what is still known here.
        """
        for topic in tuple(self._topics.values()):
            if topic.idle and topic.forgotten:
                del self._topics[topic.scope]
                self._settling.pop(topic.scope, None)
            topic.forgotten = topic.idle

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def read(self, scope: str, after: int, base: int) -> Run | None:
        """What the feed holds after a version, as far as a stream carries it.

        One read for all who ask for the same before it begins, as many do who come back at once.
        """
        key = scope, after, base
        task = self._reads.get(key)
        if task is None:
            task = self._reads[key] = asyncio.create_task(self._begin_read(key))
        return await asyncio.shield(task)

    async def _begin_read(self, key: tuple[str, int, int]) -> Run | None:
        del self._reads[key]
        scope, after, base = key
        return await self.store.run(scope, after, base, MAX_CHANGES, self.buffer)

    async def _catch_up(self, topic: Topic) -> None:
        """Read the feed from the topic's position until nothing is left to tell."""
        try:
            while topic.lags:
                began = self._monotonic()
                if topic.followers:
                    await self._read(topic, began)
                else:
                    await self._look_after_visits(topic)
                for commit in topic.kept:
                    self._pass_on_commit(topic, commit)
                topic.kept.clear()
        except Unavailable as error:
            _log.info("scope_unreadable", scope=topic.scope, reason=str(error))  # the next look tries again
        finally:
            topic.reading = None
            topic.kept.clear()

    async def _read(self, topic: Topic, began: float) -> None:
        """Tell what the feed holds beyond the topic's position; if that is too much, that it is."""
        start, head, number = topic.position, topic.head, topic.number
        run = await self.store.run(topic.scope, start, 0, MAX_CHANGES, self.buffer)
        state = ScopeState(topic.scope, start, members=topic.members) if run is None else run.state
        # A hint is true by the time it is given: one that this snapshot does not bear out never was.
        topic.head = state.head if topic.head == head else topic.head
        topic.number = state.members if topic.number == number else topic.number
        if state.members > topic.members:
            await self._ask_again(topic, state.members)
        if run is not None and state.head > start == topic.position:
            whole = run.to == state.head and state.floor <= start
            self._pass_on(topic, self.frames.batch(start, state, run.body if whole else None), began, "elsewhere")

    async def _look_after_visits(self, topic: Topic) -> None:
        """Nobody follows, so that only who may stay matters."""
        number = topic.number
        state = (await self.states([topic.scope])).get(topic.scope) or ScopeState(topic.scope)
        topic.number = state.members if topic.number == number else topic.number
        if state.members > topic.members:
            await self._ask_again(topic, state.members)

    async def _ask_again(self, topic: Topic, number: int) -> None:
        """Members changed: find those who are no readers any more, and let them go before anything else is said."""
        roles = await self.store.members(topic.scope)
        for follower in (*topic.followers, *topic.visits):
            grant = self.access.grant_of(topic.scope, roles.get(follower.user))
            if follower.own != topic.scope and grant is None:
                topic.dissolve()
                topic.followers.discard(follower)
                topic.visits.pop(follower, None)
                follower.revoked()
        self._members_moved(topic, number)

    def _members_moved(self, topic: Topic, number: int) -> None:
        topic.members = number
        for tracker in tuple(topic.trackers):
            tracker.membership_moved()
        if not self.unsettled(topic.scope):
            self.on_settled(topic.scope)
            settling, _ = self._settling.pop(topic.scope, (None, 0))
            if settling is not None:
                settling.set_result(None)

    async def settled(self, scope: str) -> None:
        """Wait until it is known who may read a scope; Unavailable when that has taken too long, for all who ask."""
        loop = asyncio.get_running_loop()
        while self.unsettled(scope):
            settling, until = self._settling.setdefault(scope, (loop.create_future(), loop.time() + _SETTLED_WITHIN))
            try:
                async with asyncio.timeout_at(until):
                    await asyncio.shield(settling)
            except TimeoutError as late:
                raise Unavailable("who is a member cannot be looked up") from late

    def unsettled(self, scope: str) -> bool:
        """Whether members have changed and it is not known yet who of those here lost the scope."""
        topic = self._topics.get(scope)
        return topic is not None and topic.number > topic.members

    def _pass_on_commit(self, topic: Topic, commit: Commit) -> None:
        """Pass on the very bytes of a commit, if it is the next one and nothing has changed in who may read."""
        state = commit.state
        if commit.count and topic.position == commit.after and topic.members >= state.members:
            batch = self.frames.batch(commit.after, state, commit.changes)
            self._pass_on(topic, batch, self._monotonic(), "here")

    def _keep(self, topic: Topic, commit: Commit) -> None:
        """For after the read, as far as it fits into the buffer; what does not is read again."""
        if sum(len(kept.changes) for kept in topic.kept) + len(commit.changes) <= self.buffer:
            topic.kept.append(commit)

    def _pass_on(self, topic: Topic, batch: Batch, began: float, origin: Origin) -> None:
        topic.position, topic.clock = batch.to, batch.state.clock
        receivers = len(topic.followers)

        def tell(some: Sequence[Follower]) -> None:
            for follower in some:
                follower.offer(batch)

        def told() -> None:
            lag = self._monotonic() - began
            self.meter.fanned_out("changes", receivers, batch.size * receivers, lag, origin)

        if receivers <= self.fanout.few:
            self.fanout.deliver(topic, sliced(tuple(topic.followers)), tell, told)
            return
        lane = topic.lane_behind(batch.after, self.fanout, self.buffer)
        self.fanout.deliver(topic, sliced(lane.apart), tell)
        self.fanout.deliver(topic, lane.slices, partial(topic.tell, lane, batch), told)

    # ── looking now and then ─────────────────────────────────────────────────────────────────────────────────────────

    async def _keep_looking(self) -> None:
        """Look at all heads every poll interval, and at once when a wake says that anything may have moved."""
        while True:
            try:
                async with asyncio.timeout(self._poll_interval):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            try:
                await self._look_at_all()
            except Unavailable as error:
                _log.info("heads_unreadable", reason=str(error))
            except Exception:  # noqa: BLE001  (who no longer looked would miss what wakes lose, for ever)
                _log.exception("look_failed")

    async def _look_at_all(self) -> None:
        self._tidy()
        scopes = list(self._topics)
        if scopes:
            states = await self.states(scopes)
            for scope in scopes:
                self.saw(states.get(scope) or ScopeState(scope))
        self._looked.set()
        self._looked.clear()

    async def looked(self) -> None:
        """Wait until the store has answered a look: it is there again."""
        await self._looked.wait()


def _report(task: asyncio.Task[None]) -> None:
    """What nobody awaits must not fail in silence."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("hub_failed", exc_info=error)
