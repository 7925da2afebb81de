"""Reading what changed between schema numbers (SPEC 10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemark_protocol.checks import Invalid, canonical
from tidemark_protocol.model import Conversion, Entity

from .tree import NAME, Faults, Reader, below, spell, suggest


def read_changes(
    reader: Reader, number: int | None, trees: Mapping[str, Any], entities: Mapping[str, Entity]
) -> dict[int, dict[str, Conversion]]:
    """Number → entity → conversion, judged backwards from what is declared now."""
    changes: dict[int, dict[str, Conversion]] = {}
    names = {name: _names(trees[name].get("fields")) for name in entities}
    touched: dict[str, set[str]] = {name: set() for name in entities}
    given = reader.mapping("changes", "schema numbers")
    for key in sorted(given, key=lambda key: -int(key) if _is_number(key) else 0):
        path = below(reader.at("changes"), key)
        if not _is_number(key) or not 2 <= int(key) <= (number or int(key)):
            reader.faults.note(path, f"must be a schema number from 2 to {number or 'the present one'}")
            continue
        if not isinstance(given[key], dict):
            reader.faults.note(path, f"must be a mapping of entities, here stands {spell(given[key])}")
            continue
        step: dict[str, Conversion] = {}
        for name, tree in given[key].items():
            at = below(path, name)
            if name not in trees:
                reader.faults.note(at, f"there is no entity {name}{suggest(name, trees)}")
            conversion = _conversion(tree, at, reader.faults)
            if name in entities:
                _check_values(conversion, entities[name], touched[name], at, reader.faults)
                names[name] = _fields_before(conversion, names[name], at, reader.faults)
                _check_reserved(conversion, entities[name], at, reader.faults)
            step[name] = conversion
        changes[int(key)] = step
    return changes


def _names(tree: Any) -> set[str]:
    return set(tree) if isinstance(tree, dict) else set()


def _is_number(key: str) -> bool:
    return key.isascii() and key.isdecimal() and len(key) <= 10


def _conversion(tree: Any, path: str, faults: Faults) -> Conversion:
    reader = Reader(tree, path, faults, known=("rename", "remove", "values"), what="a change")
    rename: dict[str, str] = {}
    for old, new in reader.mapping("rename", "old to new names").items():
        if NAME.fullmatch(old) is None or not isinstance(new, str):
            faults.note(below(reader.at("rename"), old), "must lead from a field's old name to its new one")
        elif new in rename.values():
            faults.note(below(reader.at("rename"), old), f"another field becomes {new} too")
        else:
            rename[old] = new
    remove: list[str] = []
    for i, old in enumerate(reader.items("remove", "fields' names")):
        if not isinstance(old, str) or NAME.fullmatch(old) is None or old in remove or old in rename:
            faults.note(below(reader.at("remove"), i), f"must name a removed field once, here stands {spell(old)}")
        else:
            remove.append(old)
    values: dict[str, dict[str, str]] = {}
    for name, pairs in reader.mapping("values", "fields").items():
        if isinstance(pairs, dict) and pairs and all(isinstance(new, str) for new in pairs.values()):
            values[name] = dict(pairs)
        else:
            faults.note(below(reader.at("values"), name), "must be a mapping of old texts to new ones")
    return Conversion(rename, tuple(remove), values)


def _fields_before(conversion: Conversion, after: set[str], path: str, faults: Faults) -> set[str]:
    """The names one number earlier, as far as the changes tell."""
    renamed = set(conversion.rename.values())
    for old, new in conversion.rename.items():
        at = f"{path}.rename.{old}"
        if new not in after:
            faults.note(at, f"there is no field {new} after this change{suggest(new, after)}")
        if old in after - renamed:
            faults.note(at, f"there is still a field {old} after this change")
    for old in conversion.remove:
        if old in after - renamed:
            faults.note(f"{path}.remove", f"there is still a field {old} after this change")
    for name in conversion.values:
        if name not in after:
            faults.note(f"{path}.values.{name}", f"there is no field {name} after this change{suggest(name, after)}")
    return (after - renamed) | set(conversion.rename) | set(conversion.remove)


def _check_reserved(conversion: Conversion, entity: Entity, path: str, faults: Faults) -> None:
    """Old names beside the key and the times, which stand in every document."""
    old = {f"{path}.rename.{name}": name for name in conversion.rename}
    for at, name in (*old.items(), *((f"{path}.remove", name) for name in conversion.remove)):
        if name in entity.read_only:
            faults.note(at, f"{name} is the key, the scope column or a time, and never was a field")


def _check_values(conversion: Conversion, entity: Entity, touched: set[str], path: str, faults: Faults) -> None:
    """Hold the new values against the fields of now, except those that a later change (`touched`) took further."""
    for name, pairs in conversion.values.items():
        field = entity.fields.get(name)
        if field is None or name in touched:
            continue
        at = f"{path}.values.{name}"
        if field.type not in {"enum", "text"}:
            faults.note(at, f"only values of enum and text fields are converted, {name} is a {field.type}")
            continue
        for old, new in pairs.items():
            try:
                canonical(field, new)
            except Invalid as invalid:
                faults.note(below(at, old), f"{invalid}, here stands {spell(new)}")
    touched |= {*conversion.values, *conversion.rename, *conversion.rename.values(), *conversion.remove}
