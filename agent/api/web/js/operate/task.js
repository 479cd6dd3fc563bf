/** Let the arm do something by itself, and see how well the policy keeps up. */

import { get, Problem } from "../api.js";
import { enable, h, show, text } from "../dom.js";
import { clock, number, span } from "../format.js";

const LOAD_MS = 600_000;

export function task(shell) {
  const what = h("input", {
    id: "task-text", type: "text", maxlength: 200, required: true, autocomplete: "off", list: "task-texts",
    placeholder: "touch the red disc",
  });
  const texts = h("datalist", { id: "task-texts" });
  const policy = h("select", { id: "task-policy" });
  const duration = h("input", {
    id: "task-duration", type: "number", inputmode: "numeric", min: 1, max: 86400, step: 1, placeholder: "until stopped",
  });
  const record = h("input", { id: "task-record", type: "checkbox" });
  const unattended = h("input", { id: "task-unattended", type: "checkbox" });
  const begin = h("button.primary", {}, "Start the task");
  const why = h("p.muted");
  const form = h(
    "form.stack",
    { onsubmit: (event) => (event.preventDefault(), start()) },
    h("label", { for: "task-text" }, "What shall it do?"),
    what,
    texts,
    h("label", { for: "task-policy" }, "Policy"),
    policy,
    h(
      "details",
      {},
      h("summary", {}, "More"),
      h(
        "div.stack",
        {},
        h("label", { for: "task-duration" }, "Stop after, s", duration),
        h("label.check", {}, record, "Record it as an episode"),
        h("label.check", {}, unattended, "Go on when this page is closed"),
      ),
    ),
    begin,
    why,
  );
  const now = h("p.big");
  const facts = h("dl.facts");
  const alarm = h("p.problem", { role: "alert" });
  const ends = [
    h("button.good", { type: "button", onclick: () => stop(true) }, "Done: success"),
    h("button", { type: "button", onclick: () => stop(false) }, "Stop: failure"),
    h("button", { type: "button", onclick: () => stop(null) }, "Stop"),
  ];
  const running = h("div.stack", { hidden: true }, now, alarm, facts, h("div.actions.two", {}, ends));
  const last = h("p.muted");
  const element = h(
    "section.card",
    { "aria-labelledby": "task-title" },
    h("h2", { id: "task-title" }, "Task"),
    form,
    running,
    last,
  );
  let known = [];
  let starting = false;
  load();

  async function load() {
    try {
      known = (await get("/api/v1/policies")).policies;
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
    }
    policy.replaceChildren(
      ...known.map((each) =>
        h("option", { value: each.name, selected: each.in_use }, each.in_use ? `${each.name} (in use)` : each.name),
      ),
    );
    texts.replaceChildren(...[...new Set(known.flatMap((each) => each.tasks))].map((value) => h("option", { value })));
    shell.draw();
  }

  async function start() {
    const wanted = { task: what.value.trim(), record: record.checked, unattended: unattended.checked };
    if (policy.value) wanted.policy = policy.value;
    if (duration.value) wanted.duration_s = Number(duration.value);
    starting = true;
    shell.draw();
    await shell.act("/api/v1/task/start", wanted, { control: true, timeoutMs: LOAD_MS });
    starting = false;
    shell.draw();
  }

  const stop = (success) => shell.act("/api/v1/task/stop", { success }, { timeoutMs: 60_000 });

  return {
    element,
    draw() {
      const status = shell.status;
      const under = status?.task;
      show(form, !under);
      show(running, under);
      show(element, under || known.length || status?.policy);
      if (under) drawRunning(status, under);
      else drawForm(status);
      const over = status?.last_task;
      text(last, over && !under ? `Before: ${over.task}: ${over.over} after ${clock(over.seconds, false)}.` : "");
      show(last, over && !under);
    },
  };

  function drawForm(status) {
    const mode = status?.mode;
    const possible = mode === "idle" || mode === "hold" || mode === "training";
    const loading = starting || status?.policy?.state === "loading";
    const reason = !shell.mayControl
      ? "You may look and stop."
      : loading
        ? `Loading the policy: ${status?.policy?.reason ?? ""}`
        : !possible
          ? "Possible when the arm is idle or holds."
          : "";
    enable(begin, !reason, reason);
    text(why, reason);
    show(why, reason);
  }

  function drawRunning(status, under) {
    const run = status.policy;
    const execution = run?.execution;
    const left = under.duration_s ? ` of ${clock(under.duration_s, false)}` : "";
    text(now, `${under.task} · ${clock(under.seconds, false)}${left}`);
    const starved = execution?.starved;
    text(
      alarm,
      starved
        ? `Starved for ${number(execution.starving_s, 1)} s: no actions come. The arm holds.`
        : under.state === "taken over" ? "A person has the arm. Stop teleop to give it back." : "",
    );
    show(alarm, alarm.textContent);
    alarm.dataset.tone = starved ? "bad" : "plain";
    const rows = [
      ["Policy", `${under.policy}${run?.engine ? ` · ${run.engine}` : ""}`],
      ["Queue", execution ? `${execution.depth} actions ahead · ${execution.chunks} chunks` : "–"],
      ["Delay", run?.delay_p95_s ? `${span(run.delay_p50_s * 1000)} usual, ${span(run.delay_p95_s * 1000)} at worst` : "–"],
      ["Starved", execution ? `${execution.starved_ticks} of ${execution.ticks} ticks` : "–"],
      ["Seam", execution ? `${number(execution.seam, 1)}° where the last chunks meet` : "–"],
    ];
    if (under.interventions) rows.push(["Taken over", `${under.interventions} times`]);
    drawFacts(facts, rows);
  }
}

/** A list of names and values; elements are kept, so that nothing flickers. */
export function drawFacts(list, rows) {
  while (list.children.length < rows.length * 2) list.append(h("dt"), h("dd"));
  while (list.children.length > rows.length * 2) list.lastChild.remove();
  rows.forEach(([name, value], index) => {
    text(list.children[index * 2], name);
    text(list.children[index * 2 + 1], value);
  });
}
