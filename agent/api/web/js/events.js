/** What happened, newest first. */

import { get, Problem } from "./api.js";
import { h, show, text } from "./dom.js";
import { dayOf, sentence, timeOfDay } from "./format.js";
import { complain } from "./notice.js";

const KINDS = {
  mode: "Mode",
  recording: "Recording",
  episode: "Episode",
  task: "Task",
  policy: "Policy",
  camera: "Camera",
  child: "Process",
  lease: "Control",
  federation: "Learning",
};

export function happenings(shell) {
  const kind = h(
    "select",
    { id: "event-kind", onchange: draw },
    h("option", { value: "" }, "Everything"),
    ...Object.entries(KINDS).map(([value, name]) => h("option", { value }, name)),
  );
  const list = h("ol.timeline", { "aria-label": "Events, newest first" });
  const empty = h("p.empty", { hidden: true }, "Nothing has happened yet.");
  const element = h(
    "section.events",
    { "aria-labelledby": "events-title" },
    h("h1", { id: "events-title" }, "Events"),
    h("div.filters", {}, h("label", { for: "event-kind" }, "Show", kind)),
    list,
    empty,
  );
  let shown = null; // number of the newest event in the list, and what it was filtered by

  async function load() {
    try {
      const { events } = await get("/api/v1/events");
      const known = shell.live.events[0]?.seq ?? Infinity;
      shell.live.events.unshift(...events.filter((event) => event.seq < known));
      shell.live.remember(events);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      complain(problem);
    }
    shown = null;
    draw();
  }

  function draw() {
    const { events, lastSeq } = shell.live;
    const wanted = `${lastSeq} ${kind.value} ${events.length}`;
    if (wanted === shown) return;
    shown = wanted;
    const found = events.filter((event) => !kind.value || event.kind === kind.value).reverse();
    const lines = [];
    let day = "";
    for (const event of found) {
      if (dayOf(event.at) !== day) {
        day = dayOf(event.at);
        lines.push(h("li.day", {}, h("h2", {}, day)));
      }
      lines.push(line(event));
    }
    list.replaceChildren(...lines);
    show(empty, !found.length);
  }

  return { element, enter: load, draw };
}

function line({ at, kind, text: words, data }) {
  const time = h("time", { datetime: at });
  text(time, timeOfDay(at));
  return h(
    "li.event",
    { data: { tone: tone(kind, data) } },
    time,
    h("span.event-kind", {}, KINDS[kind] ?? kind),
    h("span.event-text", {}, sentence(words)),
  );
}

function tone(kind, data) {
  if (kind === "mode" && (data.after === "estop" || data.after === "fault")) return "bad";
  if (kind === "child" && (data.given_up || data.how)) return "warn";
  if (kind === "camera" && data.state !== "streaming") return "warn";
  if (kind === "episode") return data.outcome === "committed" ? "good" : data.outcome === "rejected" ? "bad" : "plain";
  return "plain";
}
