/** What the arm can be asked for now. The most likely thing is the largest. */

import { confirm } from "../dialog.js";
import { enable, h, show, text } from "../dom.js";

const LOOK = "You may look and stop. Moving the arm needs a token with control.";

export function arm(shell) {
  const does = {
    teleop: button("Start teleop", "primary", () => shell.act("/api/v1/teleop/start", {}, { control: true })),
    stopTeleop: button("Stop teleop", "primary", () => shell.act("/api/v1/teleop/stop")),
    takeOver: button("Take over with the leader", "primary", () => shell.act("/api/v1/teleop/start", {}, { control: true })),
    giveBack: button("Give back to the policy", "primary", () => shell.act("/api/v1/teleop/stop", {}, { control: true })),
    hold: button("Hold", "", () => shell.act("/api/v1/hold")),
    park: button("Park", "", () => shell.act("/api/v1/park", {}, { control: true })),
    reset: button("Reset…", "primary", reset),
    release: button("Release…", "", release),
  };
  const hint = h("p.muted");
  const element = h(
    "section.card",
    { "aria-labelledby": "arm-title" },
    h("h2", { id: "arm-title" }, "Arm"),
    hint,
    h("div.actions", {}, Object.values(does)),
  );

  async function release() {
    const sure = await confirm({
      title: "Release the arm?",
      body: ["Torque goes off right where the arm is, and it drops.", "Hold it with your hand first."],
      yes: "I hold it: release",
      danger: true,
    });
    if (sure) await shell.act("/api/v1/release", { confirm: true }, { control: true });
  }

  async function reset() {
    const sure = await confirm({
      title: "Is the arm safe?",
      body: "Look at it: nothing is caught, nobody's hand is near. After the reset it holds where it is, or stays limp.",
      yes: "It is safe: reset",
    });
    if (sure) await shell.act("/api/v1/reset", {}, { control: true });
  }

  return {
    element,
    draw() {
      const status = shell.status;
      const mode = status?.mode;
      const theirs = Boolean(status?.lease) && !shell.control.mine;
      const offered = offers(status, shell.session);
      for (const [name, each] of Object.entries(does)) show(each, offered.includes(name));
      for (const name of ["teleop", "takeOver", "giveBack", "hold", "park", "release", "reset"]) {
        enable(does[name], shell.mayControl, LOOK);
      }
      if (mode === "estop" && !shell.session.may_reset) enable(does.reset, false, "Only at the station itself.");
      text(hint, explain(status, shell.session, theirs));
      show(hint, hint.textContent);
    },
    toggle() {
      const pressed = [does.stopTeleop, does.giveBack, does.teleop, does.takeOver].find((each) => !each.hidden);
      if (pressed && !pressed.disabled) pressed.click();
    },
  };
}

function button(label, kind, act) {
  return h(`button${kind ? `.${kind}` : ""}`, { type: "button", onclick: act }, label);
}

function offers(status, session) {
  const leader = session.about.has_leader;
  switch (status?.mode) {
    case "idle":
    case "training":
      return leader ? ["teleop"] : [];
    case "aligning":
    case "teleop":
      return status.task ? ["giveBack", "hold"] : ["stopTeleop"];
    case "executing":
      return leader ? ["takeOver", "hold"] : ["hold"];
    case "hold":
      return leader ? ["teleop", "park", "release"] : ["park", "release"];
    case "homing":
      return ["hold"];
    case "estop":
    case "fault":
      return ["reset", "release"];
    default:
      return [];
  }
}

function explain(status, session, theirs) {
  if (!status) return "";
  switch (status.mode) {
    case "idle":
      return session.about.has_leader
        ? "Torque is off. Teleop moves the arm slowly onto the leader's pose, then follows it."
        : "Torque is off. This station has no leader arm.";
    case "aligning":
      return "The arm moves slowly onto the leader's pose. Keep the leader still.";
    case "teleop":
      return status.lease?.moves && theirs
        ? "The arm holds when whoever controls it is gone."
        : "The arm follows the leader. Stop, and it holds where it is.";
    case "hold":
      return "Torque is on, and the arm stays where it is. Park lays it down and switches torque off.";
    case "homing":
      return "The arm moves slowly to its park pose, then torque goes off.";
    case "estop":
      return session.may_reset
        ? "It stays stopped. Make sure that it is safe, then reset it."
        : "Reset it at the station's own machine: `so-agent reset`, or this page there.";
    case "fault":
      return "Clear the reason, then reset.";
    case "training":
      return "The arm rests, and this machine learns. It stops by itself when the arm is wanted.";
    default:
      return "";
  }
}
