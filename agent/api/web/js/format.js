/** Numbers and times as people read them. */

export const JOINT_NAMES = {
  shoulder_pan: "Shoulder pan",
  shoulder_lift: "Shoulder lift",
  elbow_flex: "Elbow",
  wrist_flex: "Wrist flex",
  wrist_roll: "Wrist roll",
  gripper: "Gripper",
};

export const MODES = {
  starting: { name: "Starting", tone: "busy" },
  idle: { name: "Idle", tone: "rest" },
  aligning: { name: "Aligning", tone: "moves" },
  teleop: { name: "Teleop", tone: "moves" },
  executing: { name: "Executing", tone: "moves" },
  training: { name: "Training", tone: "learns" },
  hold: { name: "Hold", tone: "holds" },
  homing: { name: "Parking", tone: "moves" },
  estop: { name: "Stopped", tone: "stopped" },
  fault: { name: "Fault", tone: "stopped" },
  stopping: { name: "Shutting down", tone: "busy" },
};

export function sentence(text) {
  const trimmed = (text || "").trim();
  return trimmed ? trimmed[0].toUpperCase() + trimmed.slice(1) : "";
}

export function number(value, digits = 0) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

/** "0:07.4", "12:07". */
export function clock(seconds, tenths = true) {
  const shown = Number(seconds.toFixed(tenths ? 1 : 0)); // first, or 59.96 s would be 0:60.0
  const minutes = Math.floor(shown / 60);
  const rest = (shown - minutes * 60).toFixed(tenths ? 1 : 0);
  return `${minutes}:${rest.padStart(tenths ? 4 : 2, "0")}`;
}

/** "38 ms", "2.4 s", "3 min", "5 h". */
export function span(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  const seconds = ms / 1000;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  const minutes = seconds / 60;
  if (minutes < 120) return `${Math.round(minutes)} min`;
  const hours = minutes / 60;
  return hours < 48 ? `${Math.round(hours)} h` : `${Math.round(hours / 24)} days`;
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let amount = value;
  let unit = 0;
  while (amount >= 1000 && unit < units.length - 1) {
    amount /= 1000;
    unit += 1;
  }
  return `${amount.toFixed(amount < 10 && unit > 0 ? 1 : 0)} ${units[unit]}`;
}

export function timeOfDay(iso) {
  return new Date(iso).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
}

export function dayOf(iso) {
  return new Date(iso).toLocaleDateString([], { weekday: "long", day: "numeric", month: "long" });
}

export function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}
