"""A schema file's text as a plain tree, and a reader that notes faults instead of stopping at them.

YAML 1.2 core schema: `on`, `off`, `yes`, `no` and days are text. Repeated keys are faults; aliases are expanded up to
a bound; keys are always read as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tidemark_protocol.errors import DeclarationError, Fault

NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")

_MAX_LENGTH = 1 << 20
_MAX_NODES = 100_000
_MAX_DEPTH = 40
_TAG = "tag:yaml.org,2002:"
_KEYWORDS: Final[dict[str, Any]] = {
    "": None,
    "~": None,
    **dict.fromkeys(("null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]{1,40}")
_BASED = re.compile(r"0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")


class Declared(NamedTuple):
    """The names that a schema file declares, of things sound or not."""

    kinds: tuple[str, ...]
    entities: tuple[str, ...]


class Faults(list[Fault]):
    """What is wrong so far."""

    def note(self, path: str, message: str) -> None:
        """Add a fault, once."""
        fault = Fault(path, message)
        if fault not in self:
            self.append(fault)


def below(path: str, name: str | int) -> str:
    """The path of a key or list position in what stands at `path`."""
    if isinstance(name, int):
        return f"{path}[{name}]"
    return f"{path}.{name}" if path else name


def load(text: str, faults: Faults) -> Any:
    """The tree of a schema file's text; DeclarationError where it is not YAML at all."""
    if len(text) > _MAX_LENGTH:
        raise DeclarationError([Fault("", f"the file is longer than {_MAX_LENGTH} characters")])
    try:
        root = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        raise DeclarationError([Fault("", f"not YAML: {error.problem or error.context}{where}")]) from None
    except (YAMLError, ValueError) as error:
        raise DeclarationError([Fault("", f"not YAML: {' '.join(str(error).split())}")]) from None
    except RecursionError:
        raise DeclarationError([Fault("", "nested too deep")]) from None
    return None if root is None else _Builder(faults).build(root, "", 1)


class _Builder:
    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.nodes = 0

    def build(self, node: Node, path: str, depth: int) -> Any:
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            raise DeclarationError([Fault(path, f"more than {_MAX_NODES} values once its aliases are expanded")])
        if depth > _MAX_DEPTH:
            raise DeclarationError([Fault(path, f"nested more than {_MAX_DEPTH} deep")])
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, SequenceNode) and str(node.tag) == _TAG + "seq":
            return [self.build(entry, below(path, i), depth + 1) for i, entry in enumerate(node.value)]
        if isinstance(node, MappingNode) and str(node.tag) == _TAG + "map":
            return self._mapping(node, path, depth)
        self.faults.note(path, f"the tag {node.tag} has no meaning here")
        return None

    def _mapping(self, node: MappingNode, path: str, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                self.faults.note(path, f"a key is not a word (line {line})")
                continue
            key = self._text(key_node, path)
            value = self.build(value_node, below(path, key), depth + 1)
            if key in result:
                self.faults.note(below(path, key), f"given twice (again in line {line})")
            else:
                result[key] = value
        return result

    def _scalar(self, node: ScalarNode, path: str) -> Any:
        text = self._text(node, path)
        tag = str(node.tag).removeprefix(_TAG)
        if tag in {"str", "timestamp", "merge"}:
            return text
        if tag not in {"null", "bool", "int", "float"}:
            self.faults.note(path, f"the tag {node.tag} has no meaning here")
            return None
        if text in _KEYWORDS:
            return _KEYWORDS[text]
        if _INTEGER.fullmatch(text):
            return int(text)
        if _BASED.fullmatch(text):
            return int(text, 0)
        return float(text) if _FLOAT.fullmatch(text) else text

    def _text(self, node: ScalarNode, path: str) -> str:
        text = str(node.value)
        try:
            # Written as escapes, one character of JSON may stand here as the two halves of a pair.
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            self.faults.note(path, f"half a surrogate pair (line {node.start_mark.line + 1})")
            return ascii(text)


class Reader:
    """Takes typed values from a mapping of the tree; what is wrong is noted and read as if it were not there."""

    def __init__(self, tree: Any, path: str, faults: Faults, *, known: Iterable[str], what: str) -> None:
        self.path = path
        self.faults = faults
        self.given: dict[str, Any] = self._checked(tree, tuple(known), what)

    def _checked(self, tree: Any, known: tuple[str, ...], what: str) -> dict[str, Any]:
        if not isinstance(tree, dict):
            self.note("", f"{what} is a mapping, here stands {spell(tree)}")
            return {}
        for key in tree:
            if key not in known:
                self.note(key, f"{what} has no such key{suggest(key, known)}")
        return {key: value for key, value in tree.items() if key in known}

    def note(self, key: str, message: str) -> None:
        """Note a fault of `key`, or of the whole where it is empty."""
        self.faults.note(below(self.path, key) if key else self.path, message)

    def at(self, key: str) -> str:
        """The path of `key`."""
        return below(self.path, key)

    def text(self, key: str, *, required: bool = False) -> str | None:
        """A text that is not empty."""
        value = self._value(key, required=required)
        if value is None:
            return None
        if isinstance(value, str) and value and "\0" not in value:
            return value
        self.note(key, f"must be a text, here stands {spell(value)}")
        return None

    def integer(self, key: str, low: int, high: int, *, required: bool = False) -> int | None:
        """An integer from `low` to `high`."""
        value = self._value(key, required=required)
        if value is None:
            return None
        if type(value) is int and low <= value <= high:
            return value
        self.note(key, f"must be an integer from {low} to {high}, here stands {spell(value)}")
        return None

    def boolean(self, key: str) -> bool:
        """True or false; false where it is not given."""
        value = self._value(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        self.note(key, f"must be true or false, here stands {spell(value)}")
        return False

    def choice(self, key: str, choices: Iterable[str], *, required: bool = False) -> str | None:
        """One of a few words."""
        value = self._value(key, required=required)
        if value is None:
            return None
        options = tuple(choices)
        if isinstance(value, str) and value in options:
            return value
        near = suggest(value, options) if isinstance(value, str) else ""
        self.note(key, f"must be one of {', '.join(options)}, here stands {spell(value)}{near}")
        return None

    def items(self, key: str, what: str) -> list[Any]:
        """A list; empty where it is not given."""
        value = self._value(key)
        if value is None:
            return []
        if isinstance(value, list):
            return value
        self.note(key, f"must be a list of {what}, here stands {spell(value)}")
        return []

    def mapping(self, key: str, what: str) -> dict[str, Any]:
        """A mapping with free keys; empty where it is not given."""
        value = self._value(key)
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        self.note(key, f"must be a mapping of {what}, here stands {spell(value)}")
        return {}

    def _value(self, key: str, *, required: bool = False) -> Any:
        value = self.given.get(key)
        if value is None and (required or key in self.given):
            self.note(key, "is empty" if key in self.given else "is missing")
        return value


def spell(value: Any) -> str:
    """A value of the tree as a message shows it."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def suggest(word: str, known: Iterable[str]) -> str:
    """`: did you mean …?` where a known word is near."""
    near = get_close_matches(word, list(known), 1, 0.6)
    return f": did you mean {near[0]}?" if near else ""
