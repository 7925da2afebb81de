"""Runs for clients of an older schema number: the one case in which documents are rewritten (SPEC 10)."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from tidemark_protocol.conversion import Conversions, Translation
from tidemark_protocol.model import Declaration


class _Change(Struct, gc=False):
    """A change of a run, its document as it stands."""

    entity: str
    row: str
    version: int
    doc: Raw


_NULL: Final = b"null"
_changes: Final = msgspec.json.Decoder(list[_Change])
_doc: Final = msgspec.json.Decoder(dict[str, Raw])
_text: Final = msgspec.json.Decoder()
_encoder: Final = msgspec.json.Encoder()


class Shapes:
    """Documents as the clients of each schema number know them."""

    def __init__(self, declaration: Declaration) -> None:
        self._conversions = Conversions(declaration)

    def rewritten(self, number: int, changes: bytes) -> bytes:
        """Changes joined by commas, in the shape of `number`: the very same where nothing differs.

        Values that are not mapped keep their bytes.
        """
        if not changes or not self._conversions.changed_since(number):
            return changes
        found = _changes.decode(b"[%b]" % changes)
        touched = False
        for change in found:
            translation = self._conversions.translation(change.entity, number)
            if translation is not None and bytes(change.doc) != _NULL:
                change.doc = Raw(_encoder.encode(_older(translation, _doc.decode(change.doc))))
                touched = True
        return _encoder.encode(found)[1:-1] if touched else changes


def _older(translation: Translation, doc: dict[str, Any]) -> dict[str, Any]:
    for name in translation.texts_back:
        if name in doc:
            doc[name] = _text.decode(doc[name])
    return translation.downward(doc)
