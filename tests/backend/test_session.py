"""One connection from its first frame to its close code, over a socket that the test holds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import repeat
from typing import Any, Final

from tests.backend.hub_world import CLIENT, CLOCK, OWN, World
from tidemark.settings import Settings
from tidemark.store.base import Unavailable
from tidemark.sync.access import Principal
from tidemark.sync.session import Session
from tidemark.sync.streams import Streams
from tidemark.wake.base import Wakeup
from tidemark_protocol.errors import RequestError
from tidemark_protocol.messages import Mutation, PushResponse, Result

BUFFER = 2_000
EXPIRES = 1_000
"""Seconds."""


class Line:
    """A websocket between the session and the test; a peer may stop reading."""

    kind: Final = "websocket"
    wire: Final = None

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[str | bytes | None] = asyncio.Queue()
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.reads = asyncio.Event()
        self.reads.set()
        self.code: int | None = None
        self.taken = 0

    async def receive(self) -> str | bytes | None:
        """The session reads."""
        frame = await self.incoming.get()
        self.taken += 1
        return frame

    async def send(self, text: str) -> None:
        """The session sends."""
        await self.reads.wait()
        self.sent.put_nowait(json.loads(text))

    async def close(self, code: int, reason: str) -> None:
        """The session closes."""
        await self.reads.wait()
        assert len(reason.encode()) <= 123
        self.code = code

    def say(self, kind: str, **fields: Any) -> None:
        """The peer sends."""
        self.incoming.put_nowait(json.dumps({"t": kind, **fields}))

    def hello(self) -> None:
        """The peer says hello."""
        self.say("hello", token="ada", client=CLIENT, schema=3)

    async def hear(self, kind: str) -> dict[str, Any]:
        """The next frame of a kind."""
        async with asyncio.timeout(5):
            while (frame := await self.sent.get())["t"] != kind:
                pass
        return frame


class FakeEngine:
    """Answers pushes when the test lets it."""

    node = "00000000000000aa"

    def __init__(self, world: World, **settings: Any) -> None:
        self.settings = Settings(stream_buffer=BUFFER, **settings)
        self.hub = world.hub
        self.rooms = world.rooms
        self.streams = Streams(self.settings, lambda: 0.5)
        self.answers = asyncio.Event()
        self.answers.set()
        self.pushing = 0
        self.failure: Exception | None = None

    def clock(self, *readings: str) -> str:
        """A reading."""
        return max(CLOCK, *readings)

    def check_schema(self, number: int) -> None:
        """Serves 3."""
        if number != 3:
            raise RequestError("schema_mismatch", "only 3")

    async def push(self, principal: Principal, client: str, schema: int, mutations: list[Mutation]) -> PushResponse:
        """All are superseded."""
        assert (principal.user, client, schema) == ("ada", CLIENT, 3)
        self.pushing += 1
        assert self.pushing == 1, "two pushes of one connection at once"
        await self.answers.wait()
        self.pushing -= 1
        if self.failure is not None:
            raise self.failure
        return PushResponse([Result(mutation.seq, "superseded") for mutation in mutations], CLOCK)


class Setting:
    """A world, an engine, a line and the session on it."""

    def __init__(self, **settings: Any) -> None:
        self.world = World(repeat(0), BUFFER)
        self.engine = FakeEngine(self.world, **settings)
        self.line = Line()
        self.now = 0
        self.session = Session(self.engine, self.line, name="s1", authenticate=self.authenticate, now=lambda: self.now)
        self.run = asyncio.create_task(self.session.run())

    async def authenticate(self, token: str) -> Principal:
        """A token is its user's name."""
        if token == "away":
            raise RequestError("unavailable", "no keys")
        if token not in {"ada", "eve"}:
            raise RequestError("unauthenticated", "bad")
        return Principal(token, f"user:{token}", admin=False, expires=EXPIRES)

    async def over(self) -> int | None:
        """Wait for the session's end; its close code."""
        async with asyncio.timeout(10):
            await self.run
        return self.line.code


@asynccontextmanager
async def connected(**settings: Any) -> AsyncIterator[Setting]:
    """A session that has been welcomed."""
    setting = Setting(**settings)
    await setting.world.hub.start()
    setting.line.hello()
    await setting.line.hear("changes")
    yield setting
    setting.line.incoming.put_nowait(None)
    await setting.over()
    await setting.world.hub.stop()


async def test_a_peer_that_leaves_ends_the_session() -> None:
    """When the peer is gone nothing is left behind."""
    async with connected() as setting:
        setting.line.incoming.put_nowait(None)
        assert await setting.over() is None
        for _ in range(3):
            setting.world.look()
            await asyncio.sleep(0.01)
        assert setting.world.hub.topics == 0


async def test_changes_come_while_a_push_is_under_way() -> None:
    """A slow push holds up neither changes nor pings."""
    async with connected() as setting:
        setting.engine.answers.clear()
        setting.line.say("push", id=1, schema=3, mutations=[{"seq": 1}])
        await setting.world.commit(OWN, [("a", False)])
        assert (await setting.line.hear("changes"))["to"] == 1
        setting.line.say("ping", n=7)
        assert (await setting.line.hear("pong"))["n"] == 7
        setting.engine.answers.set()
        assert (await setting.line.hear("result"))["id"] == 1


async def test_pushes_are_settled_one_after_the_other() -> None:
    """Pushes that come at once are answered in their order, one at a time."""
    async with connected() as setting:
        for number in range(5):
            setting.line.say("push", id=number, schema=3, mutations=[{"seq": 1}])
        assert [(await setting.line.hear("result"))["id"] for _ in range(5)] == [0, 1, 2, 3, 4]


async def test_a_push_that_cannot_be_settled_is_named() -> None:
    """A push refused whole is answered by an error that bears its id."""
    async with connected() as setting:
        for failure, code in (
            (RequestError("unavailable", "away"), "unavailable"),
            (Unavailable("away"), "unavailable"),
            (RequestError("too_large", "much"), "too_large"),
        ):
            setting.engine.failure = failure
            setting.line.say("push", id="p", schema=3, mutations=[])
            frame = await setting.line.hear("error")
            assert (frame["code"], frame["id"]) == (code, "p")


async def test_a_fault_of_ours_closes_with_1011() -> None:
    """What nobody foresaw ends the connection, not the service."""
    async with connected() as setting:
        setting.engine.failure = ZeroDivisionError()
        setting.line.say("push", id="p", schema=3, mutations=[])
        assert await setting.over() == 1011


async def test_a_fault_of_ours_while_reading_closes_in_order() -> None:
    """A frame that trips us up ends its connection with 1011, and the server is not told of a task that was cancelled.

    A server would log that as a second fault, without the cause.
    """
    async with connected() as setting:
        setting.engine.rooms.leave = None  # type: ignore[method-assign,assignment]
        setting.line.say("leave", room=OWN)
        assert await setting.over() == 1011
        assert not setting.run.cancelled()


async def test_a_room_is_left_while_rights_cannot_be_looked_up() -> None:
    """Who leaves a room need not wait until it is known who may be there."""
    async with connected() as setting:
        setting.line.say("join", room=OWN)
        await setting.line.hear("presence")
        setting.world.store.away = True
        setting.world.wake.on_wake(Wakeup(OWN, 0, 1))
        assert setting.world.hub.unsettled(OWN)
        setting.line.say("leave", room=OWN)
        setting.line.say("ping", n=1)
        await setting.line.hear("pong")
        assert not setting.world.rooms.rooms
        setting.world.store.away = False


async def test_a_peer_that_does_not_read_is_not_read() -> None:
    """Answers are bounded: while they wait no more questions are taken (I40)."""
    async with connected() as setting:
        setting.line.reads.clear()
        before = setting.line.taken
        for number in range(500):
            setting.line.say("ping", n=number)
        await asyncio.sleep(0.05)
        assert setting.line.taken - before < 100
        setting.line.reads.set()
        assert [(await setting.line.hear("pong"))["n"] for _ in range(500)] == list(range(500))


async def test_a_peer_that_takes_nothing_is_dropped() -> None:
    """A stalled connection does not live for ever."""
    async with connected(stall_timeout=50) as setting:
        setting.line.reads.clear()
        setting.line.say("ping")
        assert await setting.over() is None


async def test_an_expired_token_closes_and_says_no_more() -> None:
    """At the token's end the stream closes with 4401; what waited is not sent (I41)."""
    async with connected() as setting:
        setting.now = EXPIRES * 1_000
        setting.line.say("ping")
        assert await setting.over() == 4401
        assert setting.line.sent.empty()


async def test_a_hello_that_never_comes() -> None:
    """The timer alone ends a connection on which nothing is said."""
    setting = Setting(hello_timeout=20)
    await setting.world.hub.start()
    setting.now = 20
    assert await setting.over() == 4408
    await setting.world.hub.stop()


async def test_a_hello_whose_turn_does_not_come() -> None:
    """One who said hello and was not let in is asked to come back later, not told that it had said nothing."""
    setting = Setting(max_opening=1, hello_timeout=50)
    await setting.world.hub.start()
    setting.line.hello()
    async with setting.engine.streams:
        while not setting.line.taken:  # noqa: ASYNC110  (what is waited for has no event)
            await asyncio.sleep(0)
        setting.now = 50
        assert await setting.over() == 1013
    await setting.world.hub.stop()


async def test_auth_of_another_user_closes() -> None:
    """A token of somebody else ends the stream; a bad one does not."""
    async with connected() as setting:
        setting.line.say("auth", token="bad")
        assert (await setting.line.hear("error"))["code"] == "unauthenticated"
        setting.line.say("auth", token="ada")
        assert (await setting.line.hear("authed"))["exp"] == EXPIRES
        setting.line.say("auth", token="eve")
        assert await setting.over() == 4401


async def test_a_hello_without_a_database_is_to_come_back() -> None:
    """When the database or the keys are away the peer is told to reconnect."""
    for token in ("ada", "away"):
        setting = Setting()
        setting.world.store.away = True
        setting.line.say("hello", token=token, client=CLIENT, schema=3)
        assert await setting.over() == 1012


async def test_stopping_answers_pushes_first() -> None:
    """The end of the service waits for a push under way, then closes with 1012; newcomers are sent away at once."""
    async with connected() as setting:
        setting.engine.answers.clear()
        setting.line.say("push", id="p", schema=3, mutations=[{"seq": 1}])
        await asyncio.sleep(0.01)
        stopping = asyncio.create_task(setting.engine.streams.end())
        await asyncio.sleep(0.01)
        assert not stopping.done() and setting.line.code is None
        setting.engine.answers.set()
        await stopping
        assert (await setting.line.hear("result"))["id"] == "p"
        assert await setting.over() == 1012
        late = Line()
        await Session(setting.engine, late, name="s2", authenticate=setting.authenticate, now=lambda: 0).run()
        assert late.code == 1012


async def test_stopping_takes_no_more_pushes() -> None:
    """Once the service stops every push that was taken is answered, and none is taken that would not be."""
    async with connected() as setting:
        setting.engine.answers.clear()
        for name in ("under way", "waits"):
            setting.line.say("push", id=name, schema=3, mutations=[])
        await asyncio.sleep(0.01)
        stopping = asyncio.create_task(setting.engine.streams.end())
        await asyncio.sleep(0.01)
        setting.line.say("push", id="late", schema=3, mutations=[])
        await asyncio.sleep(0.01)
        setting.engine.answers.set()
        await stopping
        frames = [setting.line.sent.get_nowait() for _ in range(setting.line.sent.qsize())]
        assert [frame["id"] for frame in frames if frame["t"] == "result"] == ["under way", "waits"]


async def test_a_stop_as_a_peer_leaves_with_a_push() -> None:
    """A push whose peer is gone before it could begin holds up no end."""
    async with connected() as setting:
        setting.line.say("push", id="p", schema=3, mutations=[])
        setting.line.incoming.put_nowait(None)
        while setting.line.taken < 3:  # noqa: ASYNC110  (what is waited for has no event)
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await setting.session.end()


async def test_following_and_unfollowing() -> None:
    """Frames of the peer reach the follower."""
    async with connected() as setting:
        setting.line.say("unfollow", scopes=[OWN])
        setting.line.say("ping", n=1)
        await setting.line.hear("pong")
        await setting.world.commit(OWN, [("a", False)])
        setting.line.say("follow", scopes=[OWN])
        frame = await setting.line.hear("changes")
        assert (frame["from"], frame["to"], frame["reset"]) == (0, 1, False)
