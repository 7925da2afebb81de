"""What wakes and messages look like on their way."""

from __future__ import annotations

from itertools import count, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemark.wake.base import Wakeup
from tidemark.wake.wire import LOOK, MAX_HELD, MAX_SCOPES, MAX_WAITING, Inbox, Outbox

ALICE, BOB = "00000000000000aa", "00000000000000bb"
SCOPES = st.from_regex(r"[a-z]{1,32}:[a-z0-9%._~-]{1,384}", fullmatch=True)
WAKEUPS = st.builds(Wakeup, SCOPES, st.integers(0, 2**63 - 1), st.integers(0, 2**31))
TEXTS = st.text(max_size=300) | st.text("a\0\n", max_size=3) | st.text("aä€😀", min_size=200, max_size=400)
MESSAGES = st.lists(st.binary(max_size=600) | TEXTS.map(str.encode), max_size=8)
MOST = st.sampled_from([500, 600, 7_900])


class Heard:
    """Reads as `reader`, and keeps what it was told."""

    def __init__(self, reader: str = "reader") -> None:
        self.wakeups: list[Wakeup | None] = []
        self.messages: list[bytes] = []
        self.inbox = Inbox(reader, self.wakeups.append, self.messages.append)

    def read(self, *payloads: bytes) -> Heard:
        """Read payloads."""
        for payload in payloads:
            self.inbox.read(payload)
        return self


def outbox(*messages: bytes, sender: str = ALICE, most: int = 500) -> Outbox:
    """One in which messages wait."""
    box = Outbox(sender, most)
    for message in messages:
        box.message(message)
    return box


@given(st.lists(WAKEUPS, max_size=40, unique_by=lambda wakeup: wakeup.scope), MESSAGES, MOST)
def test_payloads_fit_and_say_all(wakeups: list[Wakeup], messages: list[bytes], most: int) -> None:
    """Every payload is text of bounded size, without the null character; read again, nothing is missing."""
    box = outbox(*messages, most=most)
    for wakeup in wakeups:
        box.wake(*wakeup)
    payloads = box.take()
    assert all(len(payload) <= most and "\0" not in payload.decode() for payload in payloads)
    heard = Heard().read(*payloads)
    assert (heard.wakeups, heard.messages) == (wakeups, messages)
    assert box.take() == []


@given(MESSAGES, MESSAGES, MOST, st.randoms(use_true_random=False), st.data())
def test_what_is_lost_or_doubled_corrupts_nothing(
    alices: list[bytes], bobs: list[bytes], most: int, chance: object, data: st.DataObject
) -> None:
    """Of two senders' payloads, interleaved, some lost or doubled: what arrives was sent, in each sender's order."""
    numbered = count()
    alices = [b"alice %d " % next(numbered) + message for message in alices]
    bobs = [b"bob %d " % next(numbered) + message for message in bobs]
    waiting = [outbox(*alices, most=most).take(), outbox(*bobs, sender=BOB, most=most).take()]
    heard, whole = Heard(), True
    while any(waiting):
        payload = data.draw(st.sampled_from([line for line in waiting if line])).pop(0)
        times = data.draw(st.sampled_from([1, 1, 1, 1, 0, 2]))
        whole = whole and times == 1
        heard.read(*[payload] * times)
    for sent in (alices, bobs):
        arrived = [sent.index(message) for message in heard.messages if message in sent]
        assert arrived == sorted(arrived)
        assert not whole or len(arrived) == len(sent)
    assert set(heard.messages) <= {*alices, *bobs}
    assert heard.wakeups == []


def test_parts_of_different_messages_never_meet() -> None:
    """Whichever parts of two messages are lost, a message arrives if and only if all of its own are there."""
    messages = b"a" * 1_000, b"b" * 1_000
    payloads = outbox(*messages).take()
    half = len(payloads) // 2
    assert half == 3
    for kept in product([True, False], repeat=len(payloads)):
        heard = Heard().read(*(payload for payload, keep in zip(payloads, kept, strict=True) if keep))
        whole = all(kept[:half]), all(kept[half:])
        assert heard.messages == [message for message, there in zip(messages, whole, strict=True) if there]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"*",
        b"hello",
        b"wakes",
        b"wakes a b",
        b"wakes a\na b c",
        b"wakes a\nuser:ada 1",
        b"wakes a\nuser:ada 1 2 3",
        b"wakes a\nuser:ada -1 0",
        b"part a 1 0 1 gzip\nx",
        b"part a 1 x 1 plain\nx",
        b"part a 1 0 1 base64\n!",
        b"\xff\0",
    ],
)
def test_a_payload_that_cannot_be_read_says_look(payload: bytes) -> None:
    """Anything else means: look at everything."""
    assert Heard().read(payload).wakeups == [None]


def test_what_comes_back_is_known() -> None:
    """A process is told nothing of what it said itself, but hears that it heard it."""
    box, own, other = outbox(b"hello"), Heard(ALICE), Heard(BOB)
    box.wake("user:ada", 1, 0)
    payloads = box.take()
    for heard in (own, other):
        heard.read(*payloads)
    assert (own.wakeups, own.messages, own.inbox.echoed) == ([], [], True)
    assert (other.wakeups, other.messages, other.inbox.echoed) == ([Wakeup("user:ada", 1, 0)], [b"hello"], False)
    assert other.read(box.echo()).wakeups == [Wakeup("user:ada", 1, 0)]
    own.inbox.echoed = False
    assert own.read(box.echo()).inbox.echoed


def test_wakes_of_one_scope_become_one() -> None:
    """The highest numbers count."""
    box = outbox()
    for head in (1, 3, 2):
        box.wake("workspace:1", head, 4 - head)
    assert Heard().read(*box.take()).wakeups == [Wakeup("workspace:1", 3, 3)]


def test_too_much_becomes_look() -> None:
    """More scopes, or more bytes, than may wait are one hint; what comes after it was said is told again."""
    scopes = outbox(b"lost too")
    for number in range(MAX_SCOPES + 1):
        scopes.wake(f"workspace:{number}", 1, 0)
    messages = outbox(*[bytes(1 << 20)] * (MAX_WAITING // (1 << 20)), b"!", b"lost too")
    messages.wake("workspace:1", 1, 0)
    for box in (scopes, messages):
        assert box.take() == [f"wakes {ALICE}\n{LOOK}".encode()]
        box.message(b"hello")
        assert Heard().read(*box.take()).messages == [b"hello"]


def test_messages_that_never_end_are_given_up() -> None:
    """What is held of many messages whose rest does not come is bounded; those begun last survive."""
    message = bytes(range(256)) * 4_096
    boxes = [outbox(message, sender=f"{number:016}", most=7_900).take() for number in range(20)]
    heard = Heard()
    for payloads in boxes:
        heard.read(*payloads[:-1])
    for payloads in boxes:
        heard.read(payloads[-1])
    assert 0 < len(heard.messages) <= MAX_HELD // len(message)
    assert heard.messages == [message] * len(heard.messages)
