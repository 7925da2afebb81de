"""Two small pages for people: where to begin, and what the routes take. Nothing is loaded from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any, Final

import msgspec

from tidemark_protocol.schema import Declaration, Field

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #16323f; --soft: #56707c; --paper: #fbfdfd; --line: #d5e3e6; --sea: #0b7285; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dcebee; --soft: #93abb3; --paper: #0e1b21; --line: #24404a; --sea: #4fc3d9; }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 52rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif }
h1 { margin: 0; font-size: 1.9rem } h2 { margin: 2.2rem 0 .6rem; font-size: 1.15rem; color: var(--sea) }
p, li { color: var(--soft) } a { color: var(--sea) }
pre { margin: .6rem 0; padding: .8rem 1rem; overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem;
  font: 13px/1.5 ui-monospace, monospace }
code { font-family: ui-monospace, monospace; font-size: .92em }
table { width: 100%; border-collapse: collapse; font-size: .92rem }
td, th { padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
details { border-bottom: 1px solid var(--line); padding: .4rem 0 } summary { cursor: pointer }
.verb { display: inline-block; min-width: 4.2rem; color: var(--sea); font-weight: 600 }
"""


def start_page(declaration: Declaration, token_command: str) -> bytes:
    """What to do next, for whoever opens the service in a browser; the curl lines use the first declared entity."""
    rows = "".join(_entity_row(name, entity) for name, entity in declaration.entities.items())
    return _page(
        "Tidemark",
        f"""<h1>Tidemark is running</h1>
<p>Clients write to their own database first and push when they can; this service merges, keeps and passes it on.</p>
<h2>1. Get a token</h2>
<pre>TOKEN=$({escape(token_command)})</pre>
<h2>2. Pull, and follow</h2>
<pre id="pull">curl -s ORIGIN/sync/pull -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \\
  -d '{{"client": "6f9619ff-8b86-4d01-b42d-00cf4fc964ff", "schema": {declaration.number}}}'
curl -s ORIGIN/sync/events -H "Authorization: Bearer $TOKEN"</pre>
<p>Or let <code>tide</code>, the command-line peer, do it: <code>tide --help</code>.</p>
<h2>What is declared (schema {declaration.number})</h2>
<table><tr><th>Entity</th><th>Scope</th><th>Fields</th></tr>{rows}</table>
<h2>More</h2>
<ul><li><a href="docs">The routes</a> and their <a href="docs/openapi.json">OpenAPI description</a></li>
<li><a href="health/ready">Health</a>, <a href="metrics">metrics</a>,
<a href="sync/time">the server's time</a></li></ul>
<script>for (const p of document.querySelectorAll("#pull"))
  p.textContent = p.textContent.replaceAll("ORIGIN", location.origin)</script>""",
    )


def docs_page(described: dict[str, Any]) -> bytes:
    """The OpenAPI description to read."""
    operations = "".join(
        _operation_block(path, verb, operation)
        for path, item in described["paths"].items()
        for verb, operation in item.items()
        if verb != "parameters"
    )
    schemas = "".join(
        f"<details><summary><code>{escape(name)}</code></summary>{_shown(schema)}</details>"
        for name, schema in described["components"]["schemas"].items()
    )
    info = described["info"]
    return _page(
        "Tidemark: the routes",
        f"""<h1>{escape(info["title"])} {escape(info["version"])}</h1><p>{escape(info["description"])}
<a href="docs/openapi.json">OpenAPI 3.1</a></p><h2>Routes</h2>{operations}<h2>Shapes</h2>{schemas}""",
    )


def _entity_row(name: str, entity: Any) -> str:
    fields = ", ".join(_field(field) for field in entity.fields.values())
    return f"<tr><td><code>{escape(name)}</code></td><td>{escape(entity.scope.kind)}</td><td>{fields}</td></tr>"


def _field(field: Field) -> str:
    return f"<code>{escape(field.name)}</code> {escape(field.type)}"


def _operation_block(path: str, verb: str, operation: dict[str, Any]) -> str:
    answers = "".join(
        f"<tr><td>{escape(status)}</td><td>{escape(answer['description'])}</td></tr>"
        for status, answer in operation["responses"].items()
    )
    body = operation.get("requestBody")
    taken = f"<p>Body:</p>{_shown(body['content'])}" if body else ""
    return f"""<details><summary><span class="verb">{verb.upper()}</span> <code>{escape(path)}</code>
{escape(operation["summary"])}</summary>{taken}<table>{answers}</table></details>"""


def _shown(value: Any) -> str:
    return f"<pre>{escape(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())}</pre>"


def _page(title: str, body: str) -> bytes:
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>
<style>{_STYLE}</style></head><body>{body}</body></html>""".encode()
