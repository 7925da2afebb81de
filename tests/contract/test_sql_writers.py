"""What another program writes in SQL reaches whoever may read it, and nobody else (SPEC section 10)."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest

from tests.contract.client import Device, Json, changes, fresh, key
from tests.contract.replica import Replica
from tests.contract.shop import INTERVAL, Shop, Sql, eventually
from tests.contract.stream import Follower, Stream, following

SLACK = 0.25
"""Seconds that a row may take from the service to a client, on a machine that has other things to do."""


def order(follower: Follower, scope: str, row: str) -> Json | None:
    """The order that a follower holds."""
    found = follower.replica.copy(scope).rows.get(("orders", row))
    return None if found is None else found[1]


def follow_until(follower: Follower, scope: str, row: str, **fields: Any) -> None:
    """Follow until the order has these fields."""
    deadline = time.monotonic() + 15
    while not ((found := order(follower, scope, row)) and fields.items() <= found.items()):
        follower.take(follower.stream.receive(deadline - time.monotonic()))


def follow_to_head(follower: Follower, shop: Shop, *scopes: str) -> None:
    """Follow until the replica has all that SQL has written so far: what one that begins now pulls, digest and all."""
    shop.drained()
    whole = Replica()
    whole.pull(follower.stream.device, scopes=scopes)
    assert whole.proved == len(scopes)
    for scope in scopes:
        follower.reach(scope, whole.copy(scope).to)
        assert follower.replica.copy(scope).rows == whole.copy(scope).rows


def middle(seconds: list[float]) -> float:
    """The median."""
    return sorted(seconds)[len(seconds) // 2]


# How it arrives


def test_a_stream_brings_what_sql_writes_within_two_intervals(shop: Shop) -> None:
    """Rows reach a connected stream within two polling intervals, frames join, the digest at the head agrees (I53)."""
    ada, scope, tenant = shop.workspace()
    took = []
    with following(ada, scopes=[scope]) as follower:
        for number in range(9):
            row = shop.insert(tenant, f"c{number}")
            written = time.monotonic()
            follow_until(follower, scope, row, customer=f"c{number}")
            took.append(time.monotonic() - written)
        assert len(follower.replica.copy(scope).rows) == 9
        assert follower.replica.proved >= 9
    assert middle(took) < 2 * INTERVAL[shop.dialect] + SLACK, took


def test_a_long_poll_ends_with_what_sql_writes(shop: Shop) -> None:
    """A pull that waits answers with a row written in SQL within two polling intervals (I53)."""
    ada, _, tenant = shop.workspace()
    replica = Replica()
    replica.pull(ada)
    took = []
    with ThreadPoolExecutor(1) as threads:
        for _ in range(5):
            waiting = threads.submit(ada.pull, replica.watermark, wait=20)
            row = shop.insert(tenant)
            written = time.monotonic()
            (run,) = waiting.result()["scopes"]
            took.append(time.monotonic() - written)
            replica.apply(run, asked=True)
            assert [change["row"] for change in run["changes"]] == [row]
    assert middle(took) < 2 * INTERVAL[shop.dialect] + SLACK, took


def test_a_row_has_its_whole_canonical_document(shop: Shop) -> None:
    """A row inserted in SQL has every declared field, its table's defaults, both times and nothing else (I37, I53)."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(
        tenant, "Zoë", total="12.5", labels="""'{"a": {"b": [1, 2.5]}, "c": false}'""", details="'[1, null]'"
    )
    doc = shop.arrives(ada, row, scope)
    assert doc["created_at"] == doc["updated_at"]
    del doc["created_at"], doc["updated_at"]
    assert doc == {
        "order_key": row,
        "customer": "Zoë",
        "total": "12.50",
        "status": "open",
        "labels": {"a": {"b": [1, 2.5]}, "c": False},
        "details": [1, None],
        "number": None,
    }


def test_tables_that_tidemark_made_are_written_in_sql_too(shop: Shop) -> None:
    """Captured tables of Tidemark's own take rows by SQL in workspaces and in users' own scopes (I53)."""
    ada, scope, tenant = shop.workspace()
    note = key()
    shop.sql.run(f"INSERT INTO tags (workspace_id, tag, color) VALUES ('{tenant}', 'red', 'r')")
    shop.sql.run(f"INSERT INTO notes (user_id, id, title) VALUES ('{ada.user}', '{note}', 'mine')")
    eventually(lambda: {"red", note} <= ada.docs().keys())
    assert ada.doc("tags", "red", scope)["color"] == "r"  # type: ignore[index]
    assert ada.doc("notes", note, ada.scope)["title"] == "mine"  # type: ignore[index]


def test_a_transaction_of_many_rows_is_proved_by_its_digest(shop: Shop) -> None:
    """Many rows inserted, changed and deleted in one transaction leave replicas what the table holds (I32, I53)."""
    ada, scope, tenant = shop.workspace()
    with following(ada, scopes=[scope]) as follower:
        shop.sql.begin()
        rows = [shop.insert(tenant, f"c{number}") for number in range(300)]
        shop.sql.run(f"UPDATE shop_orders SET customer = 'even' WHERE tenant_id = '{tenant}' AND order_key % 2 = 0")
        shop.sql.run(f"DELETE FROM shop_orders WHERE tenant_id = '{tenant}' AND order_key % 3 = 0")
        shop.sql.commit()
        follow_to_head(follower, shop, scope)
        held = {name: doc["customer"] for (_, name), (_, doc) in follower.replica.copy(scope).rows.items()}
    table = shop.sql.run(f"SELECT order_key, customer FROM shop_orders WHERE tenant_id = '{tenant}'")
    assert held == {str(name): customer for name, customer in table}
    assert 0 < len(held) < len(rows)


def test_a_transaction_too_large_for_a_stream(shop: Shop) -> None:
    """What one statement in SQL writes beyond a stream's buffer is told by `behind`, and pulled without a gap (I38)."""
    ada, scope, tenant = shop.workspace()
    with following(ada, scopes=[scope]) as follower:
        shop.fill(tenant, 4_000)
        last = shop.insert(tenant, "last")
        follow_until(follower, scope, last)
        follow_to_head(follower, shop, scope)
        assert len(follower.replica.copy(scope).rows) == 4_001


def test_what_changes_nothing_declared_is_no_change(shop: Shop) -> None:
    """Updates of own columns, or to the same values, take no version and come in no frame (I12)."""
    ada, _, tenant = shop.workspace()
    row = shop.insert(tenant)
    shop.drained()
    before = ada.pull()
    with Stream(ada, {run["scope"]: run["watermark"] for run in before["scopes"]}) as stream:
        stream.welcome()
        shop.update(row, remark="'changed'", customer="customer")
        shop.sql.begin()
        shop.update(row, customer="'somebody'")
        shop.update(row, customer="'ada'")
        shop.sql.commit()
        shop.drained()
        stream.ping()
        assert stream.rows() == set()
    assert shop.stored(row, "remark") == ("changed",)


def test_a_changed_key_is_another_row(shop: Shop) -> None:
    """A key changed in SQL is a delete of the one and a new row under the other (I53)."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(tenant, "moves")
    other = str(10**9 + int(row))
    with following(ada, scopes=[scope]) as follower:
        follow_until(follower, scope, row)
        shop.update(row, order_key=other)
        follow_until(follower, scope, other, customer="moves")
        follow_to_head(follower, shop, scope)
        assert order(follower, scope, row) is None


def test_replace_is_seen(shop: Shop) -> None:
    """Upserts and REPLACE report the rows they make, those they change, and those that they push out (I53)."""
    ada, scope, tenant = shop.workspace()
    first = shop.insert(tenant, "first", number="'n1'")
    columns = "order_key, tenant_id, customer, number"
    if shop.dialect == "postgresql":
        shop.sql.run(
            f"INSERT INTO shop_orders ({columns}) VALUES ({first}, '{tenant}', 'again', 'n1') "
            "ON CONFLICT (order_key) DO UPDATE SET customer = excluded.customer"
        )
        shop.arrives(ada, first, scope, customer="again")
        return
    shop.arrives(ada, first, scope, customer="first")
    other = str(2 * 10**9 + int(first))
    shop.sql.run(f"REPLACE INTO shop_orders ({columns}) VALUES ({other}, '{tenant}', 'other', 'n1')")
    shop.arrives(ada, other, scope, customer="other")
    shop.goes(ada, first, scope)


# Who gets it


@pytest.fixture
def mallory(shop: Shop) -> Device:
    """Somebody who is no member of the other workspaces."""
    return shop.service.device(fresh("mallory"))


def test_who_is_no_member_learns_nothing(shop: Shop, mallory: Device) -> None:
    """SQL writes in scopes of others come by no stream, pull, event or error to who may not read them (I33)."""
    ada, scope, tenant = shop.workspace()
    _, mine, own = shop.workspace(mallory)
    marker = fresh("secret").replace("-", "")[:20]
    with Stream(mallory) as stream:
        stream.welcome()
        row = shop.insert(tenant, marker)
        shop.arrives(ada, row, scope, customer=marker)
        shop.update(row, customer=f"'{marker}2'", number=f"'{marker}'")
        bad = shop.insert(tenant, marker * 9)
        gone = shop.insert(tenant, marker)
        shop.drained()
        shop.delete(gone)
        shop.drained()
        fence = shop.insert(own, "mine", number=f"'{marker[:3]}'")
        stream.change(fence)
        stream.ping()
        assert stream.rows() == {fence}
        seen = str(stream.frames)
    texts = [seen, mallory.post("/sync/pull", mallory.pull_body({scope: "x.1.0.3"}, scopes=[scope, mine])).text]
    texts += [
        mallory.get("/sync/events", **asked).text for asked in ({}, {"scope": scope}, {"row": row}, {"by": "sql"})
    ]
    refused = mallory.push(
        mallory.put("orders", row, customer="m", scope=mine),
        mallory.put("orders", bad, customer="m", scope=mine),
        mallory.put("orders", customer="m", scope=scope),
        mallory.put("orders", row, customer="m", scope=scope),
        mallory.put("orders", gone, customer="m", number="n", scope=mine),
    )
    assert all(result["status"] == "rejected" for result in refused[:4]), refused
    assert not any(marker in text for text in [*texts, str(refused)])


def test_a_row_moved_between_scopes(shop: Shop) -> None:
    """A row moved in SQL goes from the members of the one scope and comes to those of the other (I36, I53)."""
    ada, one, tenant = shop.workspace()
    bob, two, other = shop.workspace()
    both = shop.service.device()
    for scope in (one, two):
        shop.service.admin().grant(scope, both.user, "viewer")
    row = shop.insert(tenant, "before")
    shop.arrives(ada, row, one)
    with following(ada) as left, following(bob) as joined, following(both) as all_of_it:
        follow_until(left, one, row)
        shop.update(row, tenant_id=f"'{other}'", customer="'moved'")
        follow_until(joined, two, row, customer="moved")
        follow_to_head(left, shop, one)
        assert order(left, one, row) is None
        assert "moved" not in str(left.stream.frames)
        follow_to_head(all_of_it, shop, one, two)
        assert order(all_of_it, one, row) is None
        moved = order(all_of_it, two, row)
        assert moved is not None and moved["customer"] == "moved"


class Pouring:
    """A thread of another program that inserts one row after the other, in a session of its own."""

    def __init__(self, shop: Shop, tenant: str) -> None:
        self.begun: list[str] = []
        self._over = Event()
        self._shop, self._tenant = shop, tenant

    def pour(self) -> None:
        """Insert until told to end."""
        with Sql(self._shop.database) as sql:
            while not self._over.is_set():
                self.begun.append("")
                self.begun[-1] = self._shop.insert(self._tenant, "poured", sql)

    def end(self) -> None:
        """Tell it to end."""
        self._over.set()


def test_revocation_while_sql_pours_in(shop: Shop) -> None:
    """Of what SQL inserts after a membership's end was answered nothing reaches the former member (I39)."""
    _, scope, tenant = shop.workspace()
    bob = shop.service.device()
    admin = shop.service.admin()
    admin.grant(scope, bob.user, "viewer")
    pouring = Pouring(shop, tenant)
    with ThreadPoolExecutor(1) as threads, Stream(bob, scopes=[scope]) as stream:
        stream.welcome()
        poured = threads.submit(pouring.pour)
        try:
            eventually(lambda: stream.until("changes") and len(stream.rows()) > 5)
            admin.expel(scope, bob.user)
            before = len(pouring.begun)
            eventually(lambda: len(pouring.begun) > before + 20)
            stream.until("scope_revoked")
            stream.ping()
        finally:
            pouring.end()
            poured.result()
        allowed = set(pouring.begun[:before])
        assert stream.rows() <= allowed
        answer = bob.pull({scope: "x.1.0.3"})
        assert answer["revoked"] == [scope]
        assert not {change["row"] for change in changes(answer["scopes"])} & set(pouring.begun)
    admin.grant(scope, bob.user, "viewer")
    shop.drained()
    replica = Replica()
    replica.pull(bob, scopes=[scope])
    assert {row for _, row in replica.versions(scope)} == set(pouring.begun)


# What cannot be


UNFIT = {
    "a value outside its enum": {"status": "'weird'"},
    "a text that is too long": {"customer": f"'{'x' * 41}'"},
    "no scope": {"tenant_id": "NULL"},
    "an empty scope": {"tenant_id": "''"},
    "a map that is none": {"labels": "'[1]'"},
}


@pytest.mark.parametrize("fault", UNFIT)
def test_a_row_that_cannot_be_is_absent_until_it_is_mended(shop: Shop, fault: str) -> None:
    """An unfit row goes from replicas, is named in the journal, delays no other, and comes back when mended (I55)."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(tenant, "fits", number="'n'")
    shop.arrives(ada, row, scope)
    with following(ada, scopes=[scope]) as follower:
        follow_until(follower, scope, row)
        shop.update(row, **UNFIT[fault])
        other = shop.insert(tenant, "other")
        follow_until(follower, scope, other)
        follow_to_head(follower, shop, scope)
        assert order(follower, scope, row) is None
        told = [event["outcome"] for event in ada.events(row=row, by="sql", scope=scope)]
        assert ("rejected" in told) == ("tenant_id" not in UNFIT[fault]), told
        shop.update(row, status="'paid'", customer="'mended'", tenant_id=f"'{tenant}'", labels="'{}'")
        follow_until(follower, scope, row, customer="mended", status="paid", number="n")


def test_a_key_outside_its_pattern_is_absent(shop: Shop) -> None:
    """A row whose key has no spelling is absent; under a key that has one it is there, its neighbours always (I55)."""
    ada, scope, tenant = shop.workspace()
    shop.sql.run(f"INSERT INTO tags (workspace_id, tag, color) VALUES ('{tenant}', 'no key', 'a')")
    shop.sql.run(f"INSERT INTO tags (workspace_id, tag, color) VALUES ('{tenant}', 'key', 'b')")
    eventually(lambda: ada.doc("tags", "key", scope))
    shop.drained()
    assert ada.docs("tags", scope).keys() == {"key"}
    shop.sql.run(f"UPDATE tags SET tag = 'a-key' WHERE workspace_id = '{tenant}' AND tag = 'no key'")
    eventually(lambda: ada.doc("tags", "a-key", scope))
    assert ada.docs("tags", scope).keys() == {"key", "a-key"}


def test_a_put_over_an_unfit_row_mends_it(shop: Shop) -> None:
    """A client's put under the key of a row that cannot be makes it one that can be, own columns kept (I55)."""
    ada, scope, tenant = shop.workspace()
    row = shop.insert(tenant, status="'weird'", remark="'kept'")
    shop.drained()
    assert ada.doc("orders", row, scope) is None
    ada.apply(ada.put("orders", row, customer="client", scope=scope))
    shop.arrives(ada, row, scope, customer="client", status="open")
    shop.drained()
    assert shop.stored(row, "customer", "status", "remark") == ("client", "open", "kept")


def test_a_key_of_a_row_without_a_scope_is_taken(shop: Shop) -> None:
    """A put of a key that the table holds outside every scope is refused as taken, and leaves the row alone (I54)."""
    ada, scope, _ = shop.workspace()
    row = shop.insert(None, "nobody")
    shop.drained()
    (result,) = ada.push(ada.put("orders", row, customer="mine", scope=scope))
    assert (result["status"], result["error"]["code"]) == ("rejected", "row_taken")
    assert shop.stored(row, "customer", "tenant_id") == ("nobody", None)
