"""Proof that a store holds exactly the server's rows (SPEC 5, digest)."""

from __future__ import annotations

from msgspec import Struct

from tidemark_protocol import digest
from tidemark_protocol.messages import Trailer

from .errors import Temporary
from .peer import Peer
from .server import Server


class Check(Struct, frozen=True):
    """One scope at `version`: the digest of the rows on the disk, and the server's."""

    scope: str
    version: int
    ours: str
    theirs: str | None

    @property
    def equal(self) -> bool:
        return self.ours == self.theirs


def verify_scopes(peer: Peer, server: Server, *, full: bool) -> list[Check]:
    """Compare each scope after a pull; `full` asks for the server's present digest together with all its rows."""
    told = _fetched(peer, server) if full else {}
    return [
        Check(standing.scope, standing.version, peer.replica.computed(standing.scope), theirs)
        for standing in peer.replica.standings()
        for theirs in [told.get(standing.scope, standing.digest)]
    ]


def _fetched(peer: Peer, server: Server) -> dict[str, str]:
    """Scope → digest of every row fetched anew, which must be what the server says about itself."""
    rows: dict[str, dict[tuple[str, str], int]] = {}
    said: dict[str, str | None] = {}
    for item in server.pull(peer.client, peer.declaration.number, {}):
        if isinstance(item, Trailer):
            continue
        held = rows.setdefault(item.scope, {})
        for change in item.changes:
            if change.doc is None:
                held.pop((change.entity, change.row), None)
            else:
                held[change.entity, change.row] = change.version
        said[item.scope] = item.digest
    found = {
        scope: digest.of_rows((entity, row, version) for (entity, row), version in held.items())
        for scope, held in rows.items()
    }
    for scope, text in found.items():
        if said[scope] != text:
            raise Temporary(f"{scope} changed while it was fetched, or the server's own digest is wrong. Verify again.")
    return found
