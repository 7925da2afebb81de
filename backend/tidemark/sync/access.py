"""Who may do what in which scope (SPEC 1, 7 and 8)."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from tidemark.store.base import Store
from tidemark_protocol.schema import Declaration

from .lookups import Lookups

Grant = Literal["read", "write", "manage"]
_RANK = {"read": 0, "write": 1, "manage": 2}


class Principal(Struct, frozen=True):
    """The caller, as its token says: `user` is `sub`, `own` that user's own scope, `expires` Unix seconds."""

    user: str
    own: str
    admin: bool
    expires: int


class Access:
    """Answers from the members table and the declared roles."""

    def __init__(self, store: Store, declaration: Declaration) -> None:
        self._memberships = Lookups(store.memberships)
        self._roles = declaration.scopes

    def grant_of(self, scope: str, role: str | None) -> Grant | None:
        """What a role allows in a scope; None when it is no member, or its role is not declared (any more)."""
        if role is None:
            return None
        kind = scope.partition(":")[0]
        return self._roles.get(kind, {}).get(role)

    async def readable(self, principal: Principal) -> dict[str, Grant]:
        """Every scope the caller may read, its own first, with what it may do there."""
        scopes: dict[str, Grant] = {principal.own: "write"}
        found = await self._memberships([principal.user])
        for scope, role in sorted(found.get(principal.user, {}).items()):
            grant = self.grant_of(scope, role)
            if grant is not None:
                scopes[scope] = grant
        return scopes


def allows(grant: Grant | None, needed: Grant) -> bool:
    return grant is not None and _RANK[grant] >= _RANK[needed]
