/** Record episodes: what it is about, start, keep, discard, again. */

import { get, Problem } from "../api.js";
import { confirm } from "../dialog.js";
import { enable, h, show, text } from "../dom.js";
import { bytes, clock, plural, span } from "../format.js";
import { notice } from "../notice.js";

const BYTES_A_SECOND = 220_000; // of one 640x480 camera, as measured; see docs/dataset.md
const COMMIT_MS = 60_000;
const TASK_KEY = "so-agent.task";

export function recording(shell) {
  const { about } = shell.session;
  const known = h("datalist", { id: "known-tasks" });
  const task = h("input", {
    id: "record-task", type: "text", maxlength: about.task_max_chars, list: "known-tasks", required: true,
    autocomplete: "off", placeholder: "pick up the red cube", value: localStorage.getItem(TASK_KEY) ?? "",
  });
  const count = field("record-count", { min: 1, max: 10000, step: 1, value: 1 });
  const length = field("record-length", { min: 1, max: about.max_episode_s, step: 1, placeholder: "open" });
  const pause = field("record-pause", { min: 0, max: 3600, step: 1, value: 5 });
  const begin = h("button.record", {}, h("span.record-dot", { "aria-hidden": "true" }), "Record");
  const why = h("p.muted");
  const form = h(
    "form.stack",
    { onsubmit: (event) => (event.preventDefault(), start()) },
    h("label", { for: "record-task" }, "What does the arm do?"),
    task,
    known,
    h(
      "details",
      {},
      h("summary", {}, "Several episodes"),
      h(
        "div.fields",
        {},
        h("label", { for: "record-count" }, "Episodes", count),
        h("label", { for: "record-length" }, "Seconds each", length),
        h("label", { for: "record-pause" }, "Pause between, s", pause),
      ),
    ),
    begin,
    why,
  );

  const time = h("span.big-time");
  const facts = h("p.muted");
  const bar = h("progress.bar", { "aria-label": "Length of the episode" });
  const does = {
    good: h("button.good", { type: "button", onclick: () => end("stop", { success: true }) }, "Keep: success"),
    bad: h("button", { type: "button", onclick: () => end("stop", { success: false }) }, "Keep: failure"),
    again: h("button", { type: "button", onclick: () => again() }, "Record again"),
    drop: h("button.danger-quiet", { type: "button", onclick: () => askToDiscard() }, "Discard…"),
    keep: h("button.quiet.wide", { type: "button", onclick: () => end("stop") }, "Keep without judging"),
  };
  const running = h(
    "div.stack",
    { hidden: true },
    h("div.recording-line", {}, h("span.record-dot.on", { "aria-hidden": "true" }), time),
    bar,
    facts,
    h("div.actions.two", {}, Object.values(does)),
  );
  const disk = h("p.muted.disk");
  const element = h(
    "section.card",
    { "aria-labelledby": "record-title" },
    h("h2", { id: "record-title" }, "Recording"),
    form,
    running,
    disk,
  );
  let ending = false; // a commit may take a minute, in which nothing else can be asked for
  suggest(known);

  async function start() {
    const wanted = { task: task.value.trim(), episodes: Number(count.value) || 1, reset_s: Number(pause.value) || 0 };
    if (length.value) wanted.episode_s = Number(length.value);
    localStorage.setItem(TASK_KEY, wanted.task);
    await shell.act("/api/v1/record/start", wanted, { control: true });
  }

  async function again() {
    const answer = await shell.act("/api/v1/record/rerecord", {}, { control: true });
    if (answer) notice("Thrown away. The next one starts after the pause.");
  }

  /** It lies beside the buttons that keep, and nothing brings back what it throws away. */
  async function askToDiscard() {
    const sure = await confirm({
      title: "Throw this episode away?",
      body: "Nothing of it is kept, and recording ends.",
      yes: "Throw it away",
      danger: true,
    });
    if (sure) await end("discard");
  }

  async function end(how, body = {}) {
    ending = true;
    shell.draw();
    const answer = await shell.act(`/api/v1/record/${how}`, body, { control: how === "discard", timeoutMs: COMMIT_MS });
    ending = false;
    shell.draw();
    if (answer) tell(answer.results.at(-1), how);
    suggest(known);
  }

  return {
    element,
    draw() {
      const status = shell.status;
      const session = status?.recording;
      show(form, !session);
      show(running, session);
      element.classList.toggle("is-recording", Boolean(session));
      if (session) drawSession(session);
      else drawForm(status);
      text(disk, room(status, shell.session));
    },
    toggle() {
      if (!running.hidden) does.good.click();
      else if (!begin.disabled) form.requestSubmit();
    },
  };

  function drawForm(status) {
    const moves = status?.mode === "teleop" || status?.mode === "executing";
    const ready = status?.recorder?.state === "ready";
    const reason = !shell.mayControl
      ? "You may look and stop."
      : !moves
        ? "Recording needs a moving arm: start teleop first."
        : !ready
          ? status?.recorder?.reason || "The recorder is not ready yet."
          : "";
    enable(begin, !reason, reason);
    text(why, reason);
    show(why, reason);
  }

  function drawSession(session) {
    const resetting = session.phase === "reset";
    text(time, resetting ? "Put things back" : clock(session.seconds));
    const longest = Number(length.value) || about.max_episode_s;
    bar.max = longest;
    bar.value = resetting ? 0 : session.seconds;
    show(bar, session.episodes > 1 && !resetting);
    const lost = Object.entries(session.repeats).filter(([, repeats]) => repeats > 0);
    const repeats = lost.length ? ` · repeated frames: ${lost.map(([name, n]) => `${name} ${n}`).join(", ")}` : "";
    const which = session.episodes > 1 ? `Episode ${session.episode} of ${session.episodes} · ` : "";
    text(facts, `${which}${session.task} · ${plural(session.frames, "frame")}${repeats}`);
    for (const each of Object.values(does)) each.disabled = ending;
    for (const name of ["again", "drop"]) {
      enable(does[name], shell.mayControl && !ending && !(name === "again" && resetting));
    }
  }
}

function field(id, attributes) {
  return h("input", { id, type: "number", inputmode: "numeric", ...attributes });
}

function tell(result, how) {
  if (!result) return;
  if (result.outcome === "committed") {
    notice(`Episode ${result.episode} is kept: ${plural(result.frames, "frame")}.`, {
      tone: "good",
      action: { label: "Look at it", run: () => (location.hash = `#/episodes/${result.episode}`) },
    });
  } else if (how !== "discard" || result.outcome !== "discarded") {
    notice(`Not kept: ${result.outcome}.`, { hint: result.reason, tone: "bad" });
  } else {
    notice("Discarded.");
  }
}

function room(status, { about, cameras }) {
  const free = status?.recorder?.free_bytes;
  if (!free) return "";
  const usable = Math.max(0, free - about.min_free_gb * 1e9);
  const seconds = usable / (BYTES_A_SECOND * Math.max(1, cameras.length));
  const left = seconds > 48 * 3600 ? "days" : `about ${span(seconds * 1000)}`;
  return usable ? `${bytes(free)} free: ${left} of recording.` : `${bytes(free)} free: too little to record.`;
}

/** Task texts of the last episodes: the same words every time make a better dataset. */
async function suggest(list) {
  try {
    const { episodes } = await get("/api/v1/episodes");
    const tasks = [...new Set(episodes.map((episode) => episode.task).reverse())].slice(0, 12);
    list.replaceChildren(...tasks.map((value) => h("option", { value })));
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem; // no suggestions, then
  }
}
