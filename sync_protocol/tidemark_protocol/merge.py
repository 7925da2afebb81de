"""What a write does: surviving writes, in clock order (SPEC 3).

A row's state is its surviving paths with their clocks. `apply` is a pure function of (state, write); for any set of
accepted writes the outcome depends neither on their order nor on how often each comes.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from . import clock

Op = Literal["put", "patch", "delete"]
Values = dict[str, Any]
"""For a put the complete row, field → value; for a patch path → value (None at `field/key` removes it)."""


class Write(msgspec.Struct, frozen=True, gc=False):
    """A validated write of one row: canonical values only."""

    op: Op
    at: str
    values: Values


class RowState(msgspec.Struct):
    """One row as its scope knows it.

    `root` is the clock of the latest surviving put or delete. `clocks` holds the clocks of surviving paths below the
    root, all above `root`. While `deleted`, `fields` holds only the values of those paths (the tombstone's).
    """

    root: str
    deleted: bool
    fields: dict[str, Any]
    clocks: dict[str, str] = {}
    created_at: str = ""

    @property
    def latest(self) -> str:
        """The highest clock that survives on the row."""
        return max(self.root, *self.clocks.values()) if self.clocks else self.root

    @property
    def visible(self) -> bool:
        return not self.deleted


class Effect(msgspec.Struct, frozen=True, gc=False):
    """What a write did to a row.

    `verdict` is `applied` (for some path it survives, now or since before), `superseded`, or `clock_reused`.
    `state` is the row afterwards (the very object given in when nothing was stored). `took_effect`: something of the
    state moved. `superseded_paths` are paths that lost; `overwritten` maps each path taken to the
    visible value it held (None for a map key that was absent).
    """

    verdict: Literal["applied", "superseded", "clock_reused"]
    state: RowState
    took_effect: bool = False
    superseded_paths: tuple[str, ...] = ()
    overwritten: dict[str, Any] = {}
    hidden: bool = False
    """A patch that survives on a tombstone: nothing shows (`superseded`, reason `deleted`)."""


def split(path: str) -> tuple[str, str | None]:
    """A path's field and, for `field/key`, the unescaped key."""
    field, slash, key = path.partition("/")
    return (field, unescape(key)) if slash else (field, None)


def escape(key: str) -> str:
    """A map key as it stands in a path (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def unescape(token: str) -> str:
    return token.replace("~1", "/").replace("~0", "~")


def apply(state: RowState | None, write: Write) -> Effect:
    """Apply `write` to `state` (None: a row never heard of; a patch of it is refused before, `row_unknown`)."""
    if write.op == "patch":
        if state is None:
            raise ValueError("a patch needs a row")
        return _patch(state, write)
    return _root(state, write)


def _root(state: RowState | None, write: Write) -> Effect:
    delete = write.op == "delete"
    if state is None:
        created = "" if delete else clock.instant(write.at)
        return Effect("applied", RowState(write.at, delete, {} if delete else write.values, {}, created), True)
    if state.root > write.at:
        return Effect("superseded", state)
    if state.root == write.at:
        return Effect("applied" if _same_root(state, write) else "clock_reused", state)
    later = {path: at for path, at in state.clocks.items() if at > write.at}
    fields: dict[str, Any] = {} if delete else dict(write.values)
    for path in sorted(later):  # a field before its keys
        _carry(state.fields, fields, path)
    if delete:
        created = ""
    else:
        created = state.created_at if state.visible else clock.instant(write.at)
    # A delete hides what later writes keep too, and a later put may take it from the tombstone unseen.
    kept = {} if delete else later
    overwritten = {} if state.deleted else {path: v for path, v in state.fields.items() if path not in kept}
    return Effect("applied", RowState(write.at, delete, fields, later, created), True, (), overwritten)


def _patch(state: RowState, write: Write) -> Effect:
    at = write.at
    root_wins = state.root >= at
    lost: list[str] = []
    known: list[str] = []
    taken: list[str] = []
    for path, value in write.values.items():
        field, slash, _ = path.partition("/")
        held = state.clocks.get(path)
        if root_wins or (held is not None and held > at) or (slash and state.clocks.get(field, "") >= at):
            lost.append(path)
        elif held == at:
            if not _same_path(state, path, value):
                return Effect("clock_reused", state)
            known.append(path)
        else:
            taken.append(path)
    if not taken:
        if not known:
            return Effect("superseded", state, hidden=state.deleted)
        return Effect("applied", state, False, tuple(lost), hidden=state.deleted)
    fields = dict(state.fields)
    clocks = dict(state.clocks)
    overwritten: dict[str, Any] = {}
    for path in taken:
        field, key = split(path)
        value = write.values[path]
        if key is None:
            overwritten[path] = fields.get(field)
            below = [p for p in clocks if p.startswith(field + "/")]
            fields[field] = value
            for inner in below:
                if clocks[inner] <= at:
                    del clocks[inner]
                else:
                    _carry(state.fields, fields, inner)
        else:
            entries = dict(fields.get(field, {}))
            overwritten[path] = entries.get(key)
            if value is None:
                entries.pop(key, None)
            else:
                entries[key] = value
            fields[field] = entries
        clocks[path] = at
    after = RowState(state.root, state.deleted, fields, clocks, state.created_at)
    return Effect("applied", after, True, tuple(lost), {} if state.deleted else overwritten, hidden=state.deleted)


def _carry(source: dict[str, Any], target: dict[str, Any], path: str) -> None:
    """Lay the value that `source` holds at `path` (a later write's) over `target`."""
    field, key = split(path)
    if key is None:
        target[field] = source[field]
        return
    entries = dict(target.get(field) or {})
    held = source.get(field, {})
    if key in held:
        entries[key] = held[key]
    else:
        entries.pop(key, None)
    target[field] = entries


def _same_root(state: RowState, write: Write) -> bool:
    """Whether the put or delete that holds the root may be this very write: all it set, later paths aside, is there."""
    if state.deleted or write.op == "delete":
        return state.deleted and write.op == "delete"
    return all(
        field in state.clocks or _equal_but_for_keys(state, field, value) for field, value in write.values.items()
    )


def _same_path(state: RowState, path: str, value: Any) -> bool:
    field, key = split(path)
    if key is not None:
        return same_value(state.fields.get(field, {}).get(key), value)
    return _equal_but_for_keys(state, field, value)


def _equal_but_for_keys(state: RowState, field: str, value: Any) -> bool:
    held = state.fields.get(field)
    prefix = field + "/"
    own = {unescape(path[len(prefix) :]) for path in state.clocks if path.startswith(prefix)}
    if own and isinstance(held, dict) and isinstance(value, dict):
        held = {k: v for k, v in held.items() if k not in own}
        value = {k: v for k, v in value.items() if k not in own}
    return same_value(held, value)


def same_value(left: Any, right: Any) -> bool:
    """JSON equality: unlike Python's, `true` is not `1` (and `1` is `1.0`, one number)."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_value(v, right[k]) for k, v in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_value, left, right))
    return bool(left == right)
