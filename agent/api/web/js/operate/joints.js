/** Where each joint is, where it was sent, how far it may go, and how its servo is. */

import { h, set, text } from "../dom.js";
import { JOINT_NAMES, number } from "../format.js";

const OLD_MS = 1500;
const COLUMNS = { Temp: "temperature" };
const WARM_C = 10; // degrees below the limit

export function joints(shell) {
  const { about } = shell.session;
  const rows = about.joints.map((joint) => row(joint));
  const element = h(
    "section.card.joints",
    { "aria-labelledby": "joints-title" },
    h(
      "div.card-head",
      {},
      h("h2", { id: "joints-title" }, "Joints"),
      h(
        "p.legend.muted",
        {},
        h("span.key.measured", { "aria-hidden": "true" }), "measured ",
        h("span.key.sent", { "aria-hidden": "true" }), "commanded",
      ),
    ),
    h(
      "div.joint-table",
      { role: "table", "aria-labelledby": "joints-title" },
      h(
        "div.joint.joint-head",
        { role: "row" },
        ...["Joint", "Range", "Measured", "Commanded", "Temp", "Voltage", "Load"].map((name) =>
          h("span", { role: "columnheader", data: { column: COLUMNS[name] ?? name.toLowerCase() } }, name),
        ),
      ),
      rows.map((each) => each.element),
    ),
  );
  return {
    element,
    draw() {
      const { live, status } = shell;
      const old = live.stale || performance.now() - live.jointsAt > OLD_MS;
      element.classList.toggle("old", old);
      rows.forEach((each, index) => each.draw(index, old ? null : live.joints, status?.servos?.[each.name]));
    },
  };

  function row({ name, unit, low, high }) {
    const measured = h("span.marker.measured");
    const sent = h("span.marker.sent");
    const track = h("span.track", { role: "cell", "aria-hidden": "true" }, measured, sent);
    const cells = {
      measured: cell("measured"),
      sent: cell("commanded"),
      temperature: cell("temperature"),
      voltage: cell("voltage"),
      load: cell("load"),
    };
    const title = h("span.joint-name", { role: "rowheader" }, JOINT_NAMES[name] ?? name);
    const alarm = h("span.joint-alarm");
    title.append(alarm);
    const from = low ?? (unit === "%" ? 0 : -180);
    const to = high ?? (unit === "%" ? 100 : 180);
    set(track, { title: `${from.toFixed(0)} to ${to.toFixed(0)}${unit}` });
    const place = (value) => `${(100 * Math.min(1, Math.max(0, (value - from) / (to - from)))).toFixed(2)}%`;
    return {
      name,
      element: h("div.joint", { role: "row" }, title, track, Object.values(cells)),
      draw(index, now, servo) {
        const is = now?.measured?.[index];
        const to = now?.sent?.[index];
        measured.hidden = is === undefined;
        sent.hidden = to === undefined;
        if (is !== undefined) measured.style.left = place(is);
        if (to !== undefined) sent.style.left = place(to);
        text(cells.measured, is === undefined ? "–" : `${is.toFixed(1)}${unit}`);
        text(cells.sent, to === undefined ? "–" : `${to.toFixed(1)}${unit}`);
        sent.dataset.limited = now?.limited?.includes(name) ?? false;
        value(cells.temperature, servo?.temperature_c, 0, "°C", heat(servo?.temperature_c));
        value(cells.voltage, servo?.voltage_v, 1, "V", servo?.voltage_v < about.min_voltage_v ? "bad" : "");
        value(cells.load, servo?.load_pct, 0, "%", Math.abs(servo?.load_pct ?? 0) > 80 ? "warn" : "");
        text(alarm, servo?.alarms?.length ? servo.alarms.join(", ") : "");
      },
    };
  }

  function heat(celsius) {
    if (celsius === null || celsius === undefined) return "";
    if (celsius >= about.max_temperature_c) return "bad";
    return celsius >= about.max_temperature_c - WARM_C ? "warn" : "";
  }
}

function cell(column) {
  return h("span.value", { role: "cell", data: { column } });
}

function value(element, amount, digits, unit, tone) {
  text(element, amount === null || amount === undefined ? "–" : `${number(amount, digits)} ${unit}`);
  element.dataset.tone = tone;
}
