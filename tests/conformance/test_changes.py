"""Runs: what a scope's replicas are given (SPEC 5)."""

from __future__ import annotations

import json

import pytest

from tests.conformance.writing import at, delete, document, pages, put, read, save, saved, uuid, write
from tidemark.store.base import FeedRow, Run, ScopeState, Store
from tidemark_protocol import digest

W = "workspace:7"
ALL = 1 << 20


async def test_an_unknown_scope_has_no_run(store: Store) -> None:
    """None is not the same as nothing new."""
    assert await store.run(W, 0, 0, 10, ALL) is None


async def test_an_empty_scope_has_an_empty_run(store: Store) -> None:
    """A scope that exists without changes is read to its head."""
    await store.transact(lambda transaction: transaction.lock([W], [W]))
    assert await store.run(W, 0, 0, 10, ALL) == Run(ScopeState(W), 0, 0, b"")


async def test_a_run_is_the_wire_form(store: Store) -> None:
    """Changes stand in version order, joined by commas, their documents as they were saved, deletions as null."""
    first, third = put(W, "names", uuid(1), name='quo"te ä ☃ 😀 \\'), put(W, "names", uuid(3), name="x")
    await write(store, first, put(W, "names", uuid(2)), third)
    await write(store, delete(W, "names", uuid(2)))
    run = await store.run(W, 0, 0, 10, ALL)
    assert run is not None
    assert document(first).encode() in run.body
    assert json.loads(b"[" + run.body + b"]") == [
        {"entity": "names", "row": uuid(1), "version": 1, "doc": json.loads(document(first))},
        {
            "entity": "names",
            "row": uuid(3),
            "version": 3,
            "doc": json.loads(document(third)),
        },
        {"entity": "names", "row": uuid(2), "version": 4, "doc": None},
    ]
    assert (run.count, run.to, run.state.head) == (3, 4, 4)


async def test_only_changes_above_after_come(store: Store) -> None:
    """`after` itself is not among them; at the head nothing is."""
    await write(store, *(put(W, "names", uuid(n), name=str(n)) for n in range(1, 6)))
    assert [change.version for change in read(await store.run(W, 3, 0, 10, ALL))] == [4, 5]
    run = await store.run(W, 5, 0, 10, ALL)
    assert run is not None
    assert (run.count, run.to, run.body) == (0, 5, b"")


async def test_other_scopes_do_not_come(store: Store) -> None:
    """A run is of one scope."""
    await write(store, put(W, "tags", "t"), put("workspace:8", "tags", "t"), put("workspace:77", "tags", "t"))
    assert len(read(await store.run(W, 0, 0, 10, ALL))) == 1


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 7])
async def test_pages_make_up_the_whole(store: Store, limit: int) -> None:
    """Pages of any size hold each change once, in order, and lead to the head (I29)."""
    await write(store, *(put(W, "names", uuid(n), name=str(n)) for n in range(6)))
    await write(store, put(W, "names", uuid(2), name="again"), delete(W, "names", uuid(4)))
    whole = read(await store.run(W, 0, 0, 100, ALL))
    assert len(whole) == 6
    assert await pages(store, W, 0, 0, limit) == whole


async def test_a_page_with_everything_leads_to_the_head(store: Store) -> None:
    """Also when the head's own change is hidden, or was one of members."""
    await write(store, put(W, "names", uuid(1)), put(W, "names", uuid(2), name="x"))
    await write(store, delete(W, "names", uuid(2)))
    run = await store.run(W, 0, 3, 10, ALL)
    assert run is not None
    assert (run.count, run.to) == (1, 3)


async def test_tombstones_from_before_the_run_are_hidden(store: Store) -> None:
    """Those at or under `base` do not come, later ones do."""
    await write(store, *(put(W, "names", uuid(n), name=str(n)) for n in range(1, 5)))
    await write(store, delete(W, "names", uuid(1)), delete(W, "names", uuid(2)))
    await write(store, delete(W, "names", uuid(3)))
    seen = {base: [c.version for c in read(await store.run(W, 0, base, 10, ALL))] for base in (0, 5, 6, 7)}
    assert seen == {0: [4, 5, 6, 7], 5: [4, 6, 7], 6: [4, 7], 7: [4]}


async def test_a_row_that_never_showed_does_not_come(store: Store) -> None:
    """A tombstone of version 0 is no change."""
    await write(store, delete(W, "names", uuid(1)))
    run = await store.run(W, 0, 0, 10, ALL)
    assert run is not None
    assert (run.count, run.to) == (0, 0)
    assert [row.version for row in await store.rows_of(W)] == [0]


async def test_the_size_of_a_page_is_bounded(store: Store) -> None:
    """A page is no larger than `max_bytes` unless one change alone is; it holds one at least."""
    await write(store, *(put(W, "names", uuid(n), name="ä" * 20 * n) for n in range(30)))
    whole = read(await store.run(W, 0, 0, 100, ALL))
    for max_bytes in (0, 1, 500, 2_000, 10_000):
        after, counts = 0, []
        while after < 30:
            run = await store.run(W, after, 0, 100, max_bytes)
            assert run is not None
            assert run.count == 1 or (run.count and len(run.body) <= max_bytes)
            counts.append(run.count)
            after = run.to
        assert sum(counts) == 30
        assert max_bytes >= 500 or max(counts) == 1
        assert max_bytes < 10_000 or max(counts) > 1
        assert await pages(store, W, 0, 0, 100, max_bytes) == whole


async def test_the_digest_belongs_to_the_changes(store: Store) -> None:
    """The state of a run says what its rows add up to (I28)."""
    await write(store, *(put(W, "names", uuid(n), name=str(n)) for n in range(20)))
    await write(store, *(delete(W, "names", uuid(n)) for n in range(0, 20, 3)))
    run = await store.run(W, 0, 0, 100, ALL)
    live = [(c.entity, c.row, c.version) for c in read(run) if c.doc is not None]
    assert run is not None
    assert digest.text(run.state.live, run.state.total) == digest.of_rows(live)


async def test_rows_of_gives_every_row_as_it_was_saved(store: Store) -> None:
    """Tombstones and rows that never showed included, other scopes not."""
    rows = [
        FeedRow(W, "tags", "a", 1, False, '{"x":1}', "r1", "", 5, False),
        FeedRow(W, "tags", "b", 2, True, "{}", "r2", '{"color":"r3"}', 6, True),
        FeedRow(W, "tags", "c", 0, True, "{}", "r4", "", 7, True),
    ]
    await save(store, saved(feed=[*rows, FeedRow("workspace:8", "tags", "a", 1, False, "{}", "r1", "", 5)]))
    assert sorted(await store.rows_of(W), key=lambda row: row.row) == rows


async def test_documents_come_back_byte_for_byte(store: Store) -> None:
    """Whatever characters they hold, as themselves or escaped, and however their sizes fit into pages."""
    texts = [
        "\\ ' \" % %s ; -- $1 ? {} \u2028 \x7f é ☃ 😀",
        "\x01\n\t",
        *("é" * 40_000 for _ in range(40)),
        "",
        "x" * 400_000,
    ]
    docs = [json.dumps({"x": text}, ensure_ascii=escaped) for text in texts for escaped in (True, False)]
    feed = [
        FeedRow(W, "names", uuid(version), version, False, doc, at(1), "", 1) for version, doc in enumerate(docs, 1)
    ]
    await store.transact(lambda transaction: transaction.lock([W], [W]))
    await save(store, saved(scopes=[ScopeState(W, head=len(feed), live=len(feed))], feed=feed))
    bodies: list[bytes] = []
    to = 0
    while to < len(feed):
        run = await store.run(W, to, 0, 1_000, 100_000)
        assert run is not None
        assert run.count == 1 or len(run.body) <= 100_000
        bodies.append(run.body)
        to = run.to
    assert b",".join(bodies).decode() == ",".join(
        f'{{"entity":"names","row":"{row.row}","version":{row.version},"doc":{row.doc}}}' for row in feed
    )
