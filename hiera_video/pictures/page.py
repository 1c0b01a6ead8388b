"""The frame of an HTML page that needs no other file: style, sections and tables."""

from collections.abc import Sequence
from html import escape

# A browser then fetches nothing and runs nothing.
SECURITY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { --ink: #111827; --soft: #6b7280; --line: #e5e7eb; --blue: #2563eb; --back: #f9fafb }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1060px; margin: 0 auto; padding: 32px 20px 64px }
h1 { font-size: 26px; margin: 0 }
h2 { font-size: 18px; margin: 40px 0 12px }
.sub, .remark, figcaption { color: var(--soft) }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 24px 0 }
.card, .panel, figure { background: #fff; border: 1px solid var(--line); border-radius: 8px }
.card { padding: 12px 18px; min-width: 130px }
.card b { display: block; font-size: 26px; line-height: 1.2 }
.card.bad b { color: #b91c1c }
.panel { padding: 16px; overflow: auto }
.grid2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 12px }
figure { margin: 0; padding: 12px }
svg { width: 100%; height: auto }
svg text { font-size: 11px; fill: var(--soft) }
svg .grid { stroke: var(--line) }
.key {
  display: inline-block; border-left: 12px solid var(--c); padding-left: 6px; margin-right: 10px;
  color: var(--ink); line-height: 1.2
}
table { border-collapse: collapse; width: 100% }
td, th {
  text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line);
  vertical-align: top
}
th { font-weight: 500; color: var(--soft); white-space: nowrap }
code { font-size: 13px; overflow-wrap: anywhere }
.bars { max-height: 460px; overflow: auto }
.bar {
  display: grid; grid-template-columns: 200px 1fr 48px 300px; gap: 10px; align-items: center
}
.bar .name, .bar .remark { white-space: nowrap; overflow: hidden; text-overflow: ellipsis }
.bar .value { text-align: right }
.track { background: var(--line); border-radius: 4px; height: 10px }
.track i { display: block; height: 10px; border-radius: 4px; background: var(--blue) }
.matrix { image-rendering: pixelated; border: 1px solid var(--line) }
.side { display: flex; flex-wrap: wrap; gap: 24px }
.videos { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 12px }
.pairs { display: grid; grid-template-columns: 1fr 1fr; gap: 12px }
.video { padding: 10px }
.video img { max-width: 100%; height: auto }
img { max-width: 100% }
.shots img { height: auto; margin-bottom: 12px }
.wrong { color: #b91c1c }
.right { color: #047857 }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """parts: HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>"
        f'<meta http-equiv="Content-Security-Policy" content="{SECURITY}">'
        f"<style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def section(title: str, content: str) -> str:
    """content: HTML; without any there is no section."""
    return f"<h2>{escape(title)}</h2>{content}" if content else ""


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Cells are HTML."""
    top = ""
    if head:
        top = "<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"
    lines = []
    for row in rows:
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>")
    return f'<div class="panel"><table>{top}{"".join(lines)}</table></div>'


def panel(picture: str, said: str, path: str) -> str:
    """A video. picture: HTML."""
    return (
        f'<div class="panel video">{picture}<div>{escape(said)}</div>'
        f"<code>{escape(path)}</code></div>"
    )


def card_table(card: dict[str, object]) -> str:
    """A nested dict as a table of two columns."""
    rows = [[escape(key.replace("_", " ")), _value(value)] for key, value in card.items()]
    return table(rows)


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "<br>".join(f"{escape(str(key))} {_value(v)}" for key, v in value.items())
    if isinstance(value, list):
        return escape(", ".join(map(str, value)))
    return f"<code>{escape(str(value))}</code>"
