/** Short messages, some with a way back. */

import { h } from "./dom.js";

const STAY_MS = 6000;
const UNDO_MS = 12000;

const box = () => document.getElementById("notices");

/** `tone`: "good", "bad" or "plain". `action`: {label, run}. Errors stay until they are closed. */
export function notice(message, { hint = "", tone = "plain", action = null } = {}) {
  const close = () => element.remove();
  const element = h(
    "div.notice",
    { data: { tone }, role: tone === "bad" ? "alert" : "status" },
    h("div.notice-words", {}, h("p", {}, message), hint ? h("p.muted", {}, hint) : null),
    action
      ? h("button.quiet", { type: "button", onclick: () => (close(), action.run()) }, action.label)
      : null,
    h("button.quiet.close", { type: "button", "aria-label": "Close message", onclick: close }, "×"),
  );
  const shown = box();
  while (shown.children.length >= 3) shown.firstChild.remove();
  shown.append(element);
  if (tone !== "bad") setTimeout(close, action ? UNDO_MS : STAY_MS);
  return close;
}

export function complain(problem) {
  notice(problem.message, { hint: problem.hint, tone: "bad" });
}
