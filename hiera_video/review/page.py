"""The page of a review: one video at a time, and keys for everything."""

from html import escape

STYLE = """
:root { --ink: #111827; --soft: #6b7280; --line: #e5e7eb; --blue: #2563eb; --back: #f9fafb }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { display: grid; grid-template-columns: minmax(0, 1fr) 360px; gap: 24px; padding: 20px;
  max-width: 1280px; margin: 0 auto }
header { grid-column: 1 / -1; display: flex; gap: 20px; align-items: baseline; flex-wrap: wrap }
h1 { font-size: 20px; margin: 0 }
video { width: 100%; max-height: 62vh; background: #000; border-radius: 8px }
.soft { color: var(--soft) }
code { font-size: 13px; overflow-wrap: anywhere }
button { display: flex; width: 100%; gap: 10px; align-items: center; margin: 0 0 6px;
  padding: 6px 10px; font: inherit; text-align: left; background: #fff;
  border: 1px solid var(--line); border-radius: 8px; cursor: pointer }
button.chosen { border-color: var(--blue); box-shadow: inset 0 0 0 1px var(--blue) }
button meter { margin-left: auto; width: 80px }
kbd { font: 12px ui-monospace, monospace; background: var(--back); border: 1px solid var(--line);
  border-radius: 4px; padding: 0 5px; min-width: 20px; text-align: center }
input { width: 100%; font: inherit; padding: 6px 10px; border: 1px solid var(--line);
  border-radius: 8px; margin-bottom: 6px }
table { width: 100%; border-collapse: collapse } td { padding: 2px 8px 2px 0 }
.error { color: #b91c1c }
#listed b, .left { color: #b91c1c }
"""

KEYS = (
    ("1-5", "that class is right"),
    ("Enter", "the label is right"),
    ("/", "another class: type, Enter"),
    ("&rarr; &larr;", "next, previous"),
    ("[ ]", "the segment begins, ends here"),
    ("x", "leave it out"),
    ("u", "take it back"),
    ("o", "worst, least certain"),
    ("Space", "play, pause"),
)

SCRIPT = r"""
"use strict";
const token = new URLSearchParams(location.search).get("token");
const $ = (id) => document.getElementById(id);
const video = $("video");
let state, order = "worst", at = 0, draft;
let busy = false;  // an answer is waited for: keys would be of another video

const row = () => state.orders[order][at];
const item = () => state.items[row()];
const said = () => state.corrections[row()];
const address = (kind) => `/${kind}/${row()}?token=${encodeURIComponent(token)}`;

function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function begin() {
  const now = said();
  draft = {
    labels: [...(now ? now.labels : item().labels)],
    segment: (now && now.segment) || item().segment,
  };
  video.dataset.small = "";
  play(item().playable ? "video" : "small");
  $("filter").value = "";
  $("filter").blur();
  draw();
}

function play(kind) {
  video.dataset.small = kind === "small" ? "yes" : "";
  let fragment = "";
  if (kind === "video" && draft.segment) fragment = `#t=${draft.segment[0]},${draft.segment[1]}`;
  video.src = address(kind) + fragment;
  video.play().catch(() => {});
}

video.addEventListener("error", () => {
  if (!video.dataset.small) play("small");
  else tell("this video cannot be played", true);
});
// A segment plays again and again.
video.addEventListener("timeupdate", () => {
  if (video.dataset.small || !draft.segment || video.paused || video.seeking) return;
  if (video.currentTime >= draft.segment[1]) video.currentTime = draft.segment[0];
});

function draw() {
  const it = item(), now = said();
  $("place").textContent = `${at + 1} of ${state.orders[order].length}, ` +
    (order === "worst" ? "the worst first" : "the least certain first");
  $("done").textContent = `${Object.keys(state.corrections).length} seen`;
  $("path").textContent = it.path;
  $("segment").textContent = draft.segment
    ? `${draft.segment[0].toFixed(2)} to ${draft.segment[1].toFixed(2)} s` : "";
  $("listed").replaceChildren("label: ", element("b", it.labels.join(", ") || "none"));
  $("now").textContent = !now ? "" : now.left_out ? "left out" : "kept: " + now.labels.join(", ");
  const best = it.best.map(([name, score], k) => choice(name, `${k + 1}`, score));
  $("classes").replaceChildren(...best);
  const others = $("filter").value ? state.names.filter(matches).slice(0, 8) : [];
  $("others").replaceChildren(...others.map((name) => choice(name, "", null)));
}

const matches = (name) => name.toLowerCase().includes($("filter").value.toLowerCase());

function choice(name, key, score) {
  const button = element("button", "");
  button.append(element("kbd", key), element("span", name));
  if (draft.labels.includes(name)) button.classList.add("chosen");
  if (score !== null) {
    const meter = document.createElement("meter");
    meter.value = score;
    meter.title = score.toFixed(3);
    button.append(meter);
  }
  button.addEventListener("click", () => choose(name));
  return button;
}

function choose(name) {
  if (busy) return;
  if (!state.multilabel) {
    draft.labels = [name];
    keep();
    return;
  }
  const has = draft.labels.includes(name);
  draft.labels = has ? draft.labels.filter((n) => n !== name) : [...draft.labels, name];
  draw();
}

async function send(of, body) {
  busy = true;
  const answer = await fetch("/correct", {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Token": token },
    body: JSON.stringify({ row: of, ...body }),
  }).finally(() => { busy = false; });
  if (!answer.ok) {
    tell(await answer.text(), true);
    return false;
  }
  const { rows } = await answer.json();
  tell(`${rows} rows corrected in ${state.target}`, false);
  return true;
}

async function keep(leftOut = false) {
  const body = { labels: draft.labels, segment: draft.segment, left_out: leftOut };
  const of = row();
  if (!(await send(of, body))) return;
  state.corrections[of] = body;
  step(1);
}

async function takeBack() {
  const of = row();
  if (!(await send(of, { labels: null }))) return;
  delete state.corrections[of];
  begin();
}

function step(by) {
  const count = state.orders[order].length;
  at = Math.min(Math.max(at + by, 0), count - 1);
  begin();
}

function tell(text, isError) {
  $("message").textContent = text;
  $("message").className = isError ? "error" : "soft";
}

function moveEdge(which) {
  if (!draft.segment) return;
  if (video.dataset.small) {
    tell("made anew for the browser: its times cannot be moved", true);
    return;
  }
  const moved = [...draft.segment];
  moved[which] = Number(video.currentTime.toFixed(3));
  if (moved[0] < moved[1]) draft.segment = moved;
  else tell("a segment begins before it ends", true);
  draw();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || busy || !state) return;
  if (event.target === $("filter")) {
    if (event.key === "Enter") {
      const found = state.names.filter(matches);
      if (found.length) choose(found[0]);
      else tell("no class has that in its name", true);
      $("filter").value = "";
      $("filter").blur();
      event.preventDefault();
    } else if (event.key === "Escape") {
      $("filter").blur();
    }
    return;
  }
  const keys = {
    ArrowRight: () => step(1), j: () => step(1), ArrowLeft: () => step(-1), k: () => step(-1),
    Enter: () => keep(), x: () => keep(true), u: takeBack,
    o: () => { order = order === "worst" ? "unsure" : "worst"; at = 0; begin(); },
    "/": () => $("filter").focus(),
    "[": () => moveEdge(0), "]": () => moveEdge(1),
    " ": () => (video.paused ? video.play() : video.pause()),
  };
  const best = item().best[Number(event.key) - 1];
  const work = best ? () => choose(best[0]) : keys[event.key];
  if (work) {
    event.preventDefault();
    work();
  }
});
$("filter").addEventListener("input", draw);

fetch(`/items?token=${encodeURIComponent(token)}`).then((answer) => answer.json()).then((found) => {
  state = found;
  // What was seen before is passed over.
  at = Math.max(state.orders[order].findIndex((r) => !(r in state.corrections)), 0);
  begin();
  document.body.dataset.ready = "yes";
});
"""


def review_page(title: str, nonce: str) -> str:
    """nonce: without which the browser runs nothing."""
    keys = "".join(f"<tr><td><kbd>{key}</kbd><td>{what}" for key, what in KEYS)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>
<link rel="icon" href="data:,"><style nonce="{nonce}">{STYLE}</style>
<main>
<header><h1>{escape(title)}</h1><span id="place" class="soft"></span>
<span id="done" class="soft"></span><span id="message" class="soft"></span></header>
<section><video id="video" controls muted loop></video>
<div><code id="path"></code> <span id="segment" class="soft"></span></div></section>
<aside><p id="listed"></p><p id="now" class="left"></p><div id="classes"></div>
<input id="filter" placeholder="/ another class" autocomplete="off"><div id="others"></div>
<table class="soft">{keys}</table></aside>
</main><script nonce="{nonce}">{SCRIPT}</script></html>
"""
