"""Between a row's state (SPEC 3) and its row in the feed: the document as ready-made JSON, the clocks beside it."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

import msgspec

from tidemark.store.base import FeedRow, RowImage, RowKey
from tidemark_protocol import clock
from tidemark_protocol.merge import RowState, split
from tidemark_protocol.model import Entity, Field
from tidemark_protocol.rows import key_texts

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(dict[str, Any])
_clocks: Final = msgspec.json.Decoder(dict[str, str])


def key_values(entity: Entity, row: str) -> dict[str, str]:
    """The key columns of a document: the row's key, or its parts when it joins several columns."""
    return dict(zip(entity.key.columns, key_texts(entity, row), strict=True))


def document(entity: Entity, row: str, state: RowState) -> bytes:
    """A live row's document as it travels (SPEC 5): key, declared fields, `created_at`, `updated_at`."""
    doc: dict[str, Any] = key_values(entity, row)
    fields = state.fields
    for name in entity.fields:
        doc[name] = fields.get(name)
    doc["created_at"] = state.created_at
    doc["updated_at"] = clock.instant(state.latest)
    return _encoder.encode(doc)


def to_feed(key: RowKey, state: RowState, version: int, doc: str | None, arrived: int) -> FeedRow:
    """The feed's row for a state; `doc` is its document when the row is live."""
    return FeedRow(
        scope=key.scope,
        entity=key.entity,
        row=key.row,
        version=version,
        deleted=state.deleted,
        doc=doc if doc is not None else _encoder.encode(state.fields).decode(),
        root=state.root,
        clocks=_encoder.encode(state.clocks).decode() if state.clocks else "",
        arrived=arrived,
        residue=state.deleted or any(is_removed_key(state, path) for path in state.clocks),
    )


def from_feed(entity: Entity, held: FeedRow) -> RowState:
    """The state that a feed row says."""
    doc = _decoder.decode(held.doc)
    clocks = _clocks.decode(held.clocks) if held.clocks else {}
    if held.deleted:
        return RowState(held.root, True, doc, clocks)
    created = doc["created_at"]
    return RowState(held.root, False, {name: doc.get(name) for name in entity.fields}, clocks, created)


def held_state(held: FeedRow) -> RowState:
    """The same of any entity, declared or not any more: `fields` of a live row hold its whole document."""
    clocks = _clocks.decode(held.clocks) if held.clocks else {}
    return RowState(held.root, held.deleted, _decoder.decode(held.doc), clocks)


def image(key: RowKey, state: RowState, *, new: bool) -> RowImage:
    return RowImage(key, state.fields, state.created_at, clock.instant(state.latest), new)


def change(row: FeedRow) -> str:
    """A feed row as a change on the wire; keys and entity names hold nothing that JSON escapes."""
    doc = "null" if row.deleted else row.doc
    return f'{{"entity":"{row.entity}","row":"{row.row}","version":{row.version},"doc":{doc}}}'


def is_removed_key(state: RowState, path: str) -> bool:
    """Whether a path's clock remembers the removal of a map key."""
    if "/" not in path:
        return False
    field, key = split(path)
    return key not in (state.fields.get(field) or {})


def target_of(state: RowState, field: Field) -> str | None:
    """The key of the row that a reference names; an integer is a key by its text."""
    value = state.fields.get(field.name)
    return None if value is None else str(value)


def values_of(row: Mapping[str, Any], fields: tuple[str, ...]) -> tuple[Any, ...] | None:
    """A row's values under a unique index; None when one is null, since nulls never collide."""
    values = tuple(row.get(name) for name in fields)
    return None if None in values else values


def row_hash(entity: str, row: str) -> int:
    """The 63 bits under which the journal finds a row's entries."""
    return hash63(f"{entity}/{row}".encode())


def hash63(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest()) >> 1
