"""Who is in which room and what they show, over all processes: the state that they replicate to each other (SPEC 6).

Each process, a node, tells the others of its own members and keeps what they tell of theirs. Its messages of changes
are numbered, so a gap is seen; a beat says now and then at which number it stands, with a count and a digest of its
members, so a loss is seen where nothing follows. Whoever lacks something asks for the whole. A node that is silent for
too many beats is gone with its members; one that stops says so. So whatever the channel loses, repeats or reorders,
all agree within a couple of beats once it works.

Pure: messages go out through `send`, changes through `changed`; time is counted in beats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw, Struct, field

from tidemark_protocol import messages

MAX_MESSAGE: Final = 48 << 10
"""Bytes of members that one message holds, a single larger one aside."""
MAX_SILENCE: Final = 6
"""Beats of ours that a node may let pass without a word."""

Number = Annotated[int, Meta(ge=0)]


class Member(Struct, frozen=True, gc=False):
    """One session in a room: whose it is, and the JSON of what it shows."""

    user: str
    state: Raw


Changes = dict[str, dict[str, Member | None]]
"""By room and session; None has left."""


class Beat(Struct, tag="beat"):
    """A node stands at `number`, with so many members and this digest of them; `answer`: beat back."""

    node: str
    number: Number
    count: int
    digest: int
    answer: bool = False


class Delta(Struct, tag="delta"):
    """What changed among a node's members; `number` is one above that of the message before."""

    node: str
    number: Number
    rooms: Changes


class Whole(Struct, tag="whole"):
    """One of `parts` parts of all members of a node as of `number`."""

    node: str
    number: Number
    part: Number
    parts: Annotated[int, Meta(ge=1, le=100_000)]
    rooms: dict[str, dict[str, Member]]


class Ask(Struct, tag="ask"):
    """A node lacks something `of` another one, which is to tell the whole."""

    node: str
    of: str


class Bye(Struct, tag="bye"):
    """A node stops."""

    node: str


class Cast(Struct, tag="cast"):
    """A broadcast of a member of the node, as the `frame` that is sent to those in the room; numbered on its own."""

    node: str
    number: Number
    room: str
    session: str
    frame: Raw


Message = Beat | Delta | Whole | Ask | Bye | Cast

_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


class Foreign(Exception):
    """Not a message of ours, or one of another version."""


def decoded(body: bytes) -> Message:
    """A message, or Foreign."""
    try:
        msgspec.json.decode(body)  # a Raw is passed on as it stands, and is not looked into
        message = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as fault:
        raise Foreign(str(fault)) from fault
    if isinstance(message, Whole) and message.part >= message.parts:
        raise Foreign("a part beyond the last")
    if not all(session.startswith(f"{message.node}-") for session in _spoken_for(message)):
        raise Foreign(f"{message.node} speaks for a session that is not its own")
    return message


def _spoken_for(message: Message) -> Iterator[str]:
    match message:
        case Delta() | Whole():
            for members in message.rooms.values():
                yield from members
        case Cast():
            yield message.session


class Roster:
    """The members of one node, by room and session. `digest` does not depend on their order."""

    __slots__ = ("count", "digest", "rooms")

    def __init__(self) -> None:
        self.rooms: dict[str, dict[str, Member]] = {}
        self.count = 0
        self.digest = 0

    def put(self, room: str, session: str, member: Member | None) -> bool:
        """Whether this changed anything."""
        members = self.rooms.get(room, {})
        known = members.get(session)
        if known == member:
            return False
        if known is not None:
            self._count(-1, room, session, known)
            del members[session]
        if member is not None:
            self._count(1, room, session, member)
            members[session] = member
        if members:
            self.rooms[room] = members
        else:
            del self.rooms[room]
        return True

    def items(self) -> Iterator[tuple[str, str, Member]]:
        for room, members in self.rooms.items():
            for session, member in members.items():
                yield room, session, member

    def _count(self, sign: int, room: str, session: str, member: Member) -> None:
        text = messages.encode([room, session, member])
        self.count += sign
        self.digest ^= int.from_bytes(blake2b(text, digest_size=6).digest(), "big")


class Peer(Struct, eq=False):
    """Another node. `number`: its state is known up to here; `synced`: nothing is known to be missing; `cast`: number
    of its last broadcast; `silent`: beats of ours since its last word; `asked`: since its last beat.
    """

    roster: Roster = field(default_factory=Roster)
    number: int = 0
    synced: bool = True
    cast: int = 0
    silent: int = 0
    asked: bool = False
    parts: dict[int, dict[str, dict[str, Member]]] = field(default_factory=dict)
    parts_of: tuple[int, int] = (0, 0)
    """Number and count of the parts that have come."""


class Presence:
    """All members as this node knows them.

    `changed` is called for each change of a member, its own ones too. What is told to other nodes is gathered: when
    `due`, call `flush`, and where the whole was asked for, `tell_whole`.
    """

    def __init__(
        self,
        node: str,
        *,
        send: Callable[[bytes], None],
        changed: Callable[[str, str, Member | None], None],
    ) -> None:
        self.node = node
        self.own = Roster()
        self.peers: dict[str, Peer] = {}
        self.asked = False
        """Somebody lacks something of ours."""
        self._send = send
        self._changed = changed
        self._number = 0
        self._cast = 0
        self._gathered: Changes = {}
        self._beat_due = False
        self._left: dict[str, int] = {}
        """Nodes that said goodbye, and beats since then: a late message of theirs means nothing."""
        self._ended = False

    # ── what happens here ────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, room: str, session: str, member: Member | None) -> None:
        """A session of this node shows this in a room; None: it left."""
        if self.own.put(room, session, member):
            self._gathered.setdefault(room, {})[session] = member
            self._changed(room, session, member)

    def cast(self, room: str, session: str, frame: bytes) -> None:
        """Hand a broadcast to the nodes that have members in the room, or may have."""
        if any(not peer.synced or room in peer.roster.rooms for peer in self.peers.values()):
            self._cast += 1
            self._tell(Cast(self.node, self._cast, room, session, Raw(frame)))

    @property
    def due(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._gathered) or self._beat_due

    @property
    def elsewhere(self) -> int:
        """Members on other nodes."""
        return sum(peer.roster.count for peer in self.peers.values())

    def flush(self) -> None:
        """Tell what was gathered."""
        gathered, self._gathered = self._gathered, {}
        changes = ((room, session, member) for room, found in gathered.items() for session, member in found.items())
        for rooms in _portions(changes):
            self._number += 1
            if self.peers:  # one that comes later asks for the whole
                self._tell(Delta(self.node, self._number, rooms))
        if self._beat_due:
            self._beat_due = False
            self._tell(self._standing())

    def tell_whole(self) -> None:
        """Tell all members of this node."""
        self.flush()
        self.asked = False
        portions = list(_portions(self.own.items())) or [{}]
        for part, rooms in enumerate(portions):
            self._tell(Whole(self.node, self._number, part, len(portions), _present(rooms)))

    def hail(self) -> None:
        """Ask all nodes where they stand, and tell them where this one does: something may have been lost."""
        self.flush()
        self._tell(self._standing(answer=True))

    def beat(self) -> None:
        """To be called at regular times: tell where this node stands, and forget those that are silent."""
        self._beat_due = True
        self.flush()
        for node, peer in tuple(self.peers.items()):
            peer.silent += 1
            if peer.silent > MAX_SILENCE:
                self._forget(node)
        self._left = {node: beats + 1 for node, beats in self._left.items() if beats < 2 * MAX_SILENCE}

    def bye(self) -> None:
        """This node stops: the others forget it at once. Nothing more is told."""
        self._tell(Bye(self.node))
        self._ended = True

    def _standing(self, *, answer: bool = False) -> Beat:
        return Beat(self.node, self._number, self.own.count, self.own.digest, answer)

    def _tell(self, message: Message) -> None:
        if not self._ended:
            self._send(messages.encode(message))

    # ── what others tell ─────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, message: Message) -> bool:
        """Take in a message; whether it was another node's and new. A broadcast is the caller's to hand on."""
        node = message.node
        if node == self.node or node in self._left:
            return False
        if isinstance(message, Bye):
            self._left[node] = 0
            return self._forget(node)
        peer = self.peers.get(node)
        if peer is None:
            peer = self.peers[node] = Peer()
            self._beat_due = True  # what was told while nobody was known it has not heard
        peer.silent = 0
        match message:
            case Beat():
                self._compare(peer, message)
            case Delta():
                self._apply(peer, message)
            case Whole():
                self._collect(peer, message)
            case Ask(of=of):
                self.asked |= of == self.node
            case Cast(number=number):
                fresh = number > peer.cast
                peer.cast = max(peer.cast, number)
                return fresh
        return True

    def _compare(self, peer: Peer, beat: Beat) -> None:
        self._beat_due |= beat.answer
        if beat.number < peer.number:
            return  # an old one, late
        roster, peer.asked = peer.roster, False
        peer.synced = (beat.number, beat.count, beat.digest) == (peer.number, roster.count, roster.digest)
        self._ask_if_behind(beat.node, peer)

    def _apply(self, peer: Peer, delta: Delta) -> None:
        if delta.number == peer.number + 1:
            peer.number = delta.number
            for room, members in delta.rooms.items():
                for session, member in members.items():
                    self._put(peer, room, session, member)
        elif delta.number > peer.number:
            peer.synced = False
            self._ask_if_behind(delta.node, peer)

    def _collect(self, peer: Peer, whole: Whole) -> None:
        if whole.number < peer.number or (whole.number == peer.number and peer.synced):
            return
        if (whole.number, whole.parts) != peer.parts_of:
            peer.parts_of, peer.parts = (whole.number, whole.parts), {}
        peer.parts[whole.part] = whole.rooms
        if len(peer.parts) == whole.parts:
            self._replace(peer, list(peer.parts.values()))
            peer.number, peer.synced, peer.asked = whole.number, True, False
            peer.parts = {}

    def _replace(self, peer: Peer, parts: list[dict[str, dict[str, Member]]]) -> None:
        stay = {(room, session) for rooms in parts for room, members in rooms.items() for session in members}
        for room, session, _ in tuple(peer.roster.items()):
            if (room, session) not in stay:
                self._put(peer, room, session, None)
        for rooms in parts:
            for room, members in rooms.items():
                for session, member in members.items():
                    self._put(peer, room, session, member)

    def _put(self, peer: Peer, room: str, session: str, member: Member | None) -> None:
        if member is not None:
            member = Member(member.user, member.state.copy())  # a Raw keeps the message that it came in
        if peer.roster.put(room, session, member):
            self._changed(room, session, member)

    def _ask_if_behind(self, node: str, peer: Peer) -> None:
        if not peer.synced and not peer.asked:
            peer.asked = True
            self._tell(Ask(self.node, node))

    def _forget(self, node: str) -> bool:
        peer = self.peers.pop(node, None)
        if peer is None:
            return False
        for room, session, _ in tuple(peer.roster.items()):
            self._put(peer, room, session, None)
        return True


def _portions(changes: Iterator[tuple[str, str, Member | None]]) -> Iterator[Changes]:
    """Changes in portions of at most `MAX_MESSAGE` bytes or so."""
    portion: Changes = {}
    size = 0
    for room, session, member in changes:
        weight = len(room) + len(session) + 64
        if member is not None:
            weight += len(member.user) + len(member.state)
        if portion and size + weight > MAX_MESSAGE:
            yield portion
            portion, size = {}, 0
        portion.setdefault(room, {})[session] = member
        size += weight
    if portion:
        yield portion


def _present(changes: Changes) -> dict[str, dict[str, Member]]:
    return {
        room: {session: member for session, member in members.items() if member is not None}
        for room, members in changes.items()
    }
