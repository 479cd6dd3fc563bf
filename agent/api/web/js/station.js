/** How the machine is: processes, timing, disk; diagnostics to attach to a question; shortcuts; the way out. */

import { complain } from "./notice.js";
import { Problem, remove } from "./api.js";
import { h, show, text } from "./dom.js";
import { bytes, number, span } from "./format.js";
import { drawFacts } from "./operate/task.js";
import { SHORTCUTS } from "./keys.js";

export function station(shell) {
  const { session } = shell;
  const about = h("dl.facts");
  const loop = h("dl.facts");
  const rows = h("tbody");
  const out = h("button", { type: "button", onclick: logOut }, "Log out");
  show(out, !session.local);
  const element = h(
    "div.station",
    {},
    h("h1", {}, session.station),
    h(
      "div.columns",
      {},
      h("section.card", { "aria-labelledby": "about-title" }, h("h2", { id: "about-title" }, "This station"), about),
      h("section.card", { "aria-labelledby": "loop-title" }, h("h2", { id: "loop-title" }, "Control loop"), loop),
      h(
        "section.card.wide",
        { "aria-labelledby": "processes-title" },
        h("h2", { id: "processes-title" }, "Processes"),
        h(
          "div.scroll",
          {},
          h(
            "table",
            {},
            h("thead", {}, h("tr", {}, ...["Process", "State", "Restarts", "Last end"].map((name) => h("th", { scope: "col" }, name)))),
            rows,
          ),
        ),
      ),
      h(
        "section.card",
        { "aria-labelledby": "help-title" },
        h("h2", { id: "help-title" }, "Something is wrong?"),
        h("p", {}, "Download what a person needs who helps you: status, events, settings without secrets, versions and the newest log lines."),
        h("a.button", { href: "/api/v1/diagnostics", download: "" }, "Download diagnostics"),
      ),
      h(
        "section.card",
        { "aria-labelledby": "keys-title" },
        h("h2", { id: "keys-title" }, "Keys"),
        h("dl.facts.keys", {}, SHORTCUTS.flatMap(([keys, what]) => [h("dt", {}, h("kbd", {}, keys)), h("dd", {}, what)])),
        h("p.muted", {}, "STOP is a software stop. It is no substitute for the switch of the arm's power supply."),
      ),
      h(
        "section.card",
        { "aria-labelledby": "you-title" },
        h("h2", { id: "you-title" }, "You"),
        h(
          "p",
          {},
          session.local
            ? "You are at the station's own machine."
            : `You came with the token ${session.name}, which may ${session.role === "control" ? "look, stop and take control" : "look and stop"}.`,
        ),
        out,
      ),
    ),
  );

  async function logOut() {
    try {
      await remove("/api/v1/session");
      shell.control.leave();
      location.assign("/");
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      complain(problem);
    }
  }

  return {
    element,
    draw() {
      const { status } = shell;
      if (!status) return;
      drawFacts(about, [
        ["Version", status.version],
        ["Arm", `${session.about.model.toUpperCase()}${session.about.has_leader ? ", with a leader" : ""}`],
        ["Running for", span(status.uptime_s * 1000)],
        ["Settings", status.config_hash],
        ["Dataset", session.about.dataset],
        ["Disk", `${bytes(status.recorder?.free_bytes)} free`],
        ["E-stop", session.about.estop === "limp" ? "torque off: the arm drops" : "holds with torque"],
      ]);
      const timing = status.arm?.loop;
      drawFacts(loop, [
        ["Rate", timing ? `${number(timing.rate_hz, 1)} Hz` : "–"],
        ["Period error", timing ? `${number(timing.period_error_p50_ms, 2)} ms usual, ${number(timing.period_error_p99_ms, 2)} ms p99` : "–"],
        ["Overruns", timing ? timing.overruns : "–"],
        ["Scheduling", timing?.scheduling ?? "–"],
        ["Bus errors", status.arm?.bus_errors ?? "–"],
        ["Leader", status.arm?.leader_connected ? "connected" : status.arm?.leader_reason || "not connected"],
      ]);
      drawProcesses(status.children);
    },
  };

  function drawProcesses(children) {
    const names = Object.keys(children);
    while (rows.children.length < names.length) {
      rows.append(h("tr", {}, h("th", { scope: "row" }), h("td"), h("td"), h("td")));
    }
    while (rows.children.length > names.length) rows.lastChild.remove();
    names.forEach((name, index) => {
      const { pid, restarts, last_exit: last, failed } = children[name];
      const line = rows.children[index];
      line.dataset.tone = failed ? "bad" : pid ? "good" : "warn";
      [name, failed ? "given up" : pid ? "runs" : "starting", restarts, failed ?? last ?? "–"].forEach((value, cell) =>
        text(line.children[cell], value),
      );
    });
  }
}
