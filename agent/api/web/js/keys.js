/** Keyboard: Space and Esc stop the arm, from everywhere but a text field. */

import { closeDialogs } from "./dialog.js";

export const SHORTCUTS = [
  ["Space or Esc", "STOP"],
  ["R", "record, or keep what is being recorded"],
  ["T", "start or stop teleop"],
  ["1 to 5", "the views"],
];

const WRITES = "input:not([type=checkbox]):not([type=radio]):not([type=range]), textarea, select";

export function listen({ stop, atRest, go, act }) {
  window.addEventListener(
    "keydown",
    (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
      const writing = event.target instanceof Element && event.target.matches(WRITES);
      if (event.key === "Escape") {
        // An arm that is known to lie still is not in the way of closing a question.
        const closed = closeDialogs();
        if (!(closed && atRest())) stop("Esc on the page");
        event.preventDefault();
      } else if (event.key === " " && !writing) {
        event.preventDefault();
        event.stopPropagation();
        if (!event.repeat) stop("Space on the page");
      } else if (!writing && !event.repeat && /^[1-5]$/.test(event.key)) {
        go(Number(event.key) - 1);
      } else if (!writing && !event.repeat && (event.key === "r" || event.key === "t")) {
        act(event.key);
      }
    },
    true,
  );
  // A focused button acts when Space is let go.
  window.addEventListener(
    "keyup",
    (event) => {
      const writing = event.target instanceof Element && event.target.matches(WRITES);
      if (event.key === " " && !writing) event.preventDefault();
    },
    true,
  );
}
