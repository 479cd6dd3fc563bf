/** Learning with others: whether, with what, when; and what leaves the house. */

import { h, show, text } from "./dom.js";
import { sentence } from "./format.js";
import { drawFacts } from "./operate/task.js";

export function learning(shell) {
  const none = h(
    "div.card",
    {},
    h("p", {}, "This station learns from its own episodes only. Nothing leaves it."),
    h("p.muted", {}, "To learn with others when the arm is idle, an invitation of a fleet is needed: ", h("code", {}, "so-agent fl enroll"), "."),
  );
  const facts = h("dl.facts");
  const member = h("section.card", { "aria-labelledby": "round-title" }, h("h2", { id: "round-title" }, "Federation"), facts);
  const element = h("div.learning", {}, h("h1", {}, "Learning"), none, member);
  return {
    element,
    draw() {
      const federation = shell.status?.federation;
      show(none, !federation);
      show(member, federation);
      if (!federation) return;
      drawFacts(
        facts,
        Object.entries(federation)
          .filter(([, value]) => typeof value !== "object" || value === null)
          .map(([name, value]) => [sentence(name.replaceAll("_", " ")), value === null ? "–" : String(value)]),
      );
    },
  };
}
