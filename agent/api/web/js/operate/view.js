/** The view beside the arm: what it sees, what it does, and what it can be asked for. */

import { h } from "../dom.js";
import { arm } from "./arm.js";
import { cameras } from "./cameras.js";
import { joints } from "./joints.js";
import { recording } from "./recording.js";
import { task } from "./task.js";

export function operate(shell) {
  const seen = cameras(shell);
  const parts = { arm: arm(shell), recording: recording(shell), task: task(shell), joints: joints(shell) };
  const element = h(
    "div.operate",
    {},
    h("div.operate-main", {}, seen.element, parts.joints.element),
    h("div.operate-side", {}, parts.arm.element, parts.recording.element, parts.task.element),
  );
  return {
    element,
    draw() {
      seen.draw();
      for (const part of Object.values(parts)) part.draw();
    },
    enter: () => seen.start(),
    leave: () => seen.stop(),
    key(key) {
      if (key === "t") parts.arm.toggle();
      if (key === "r") parts.recording.toggle();
    },
  };
}
