/** Measured and commanded joints over time: drawn once, with a line that moves along. */

import { h, text } from "../dom.js";
import { JOINT_NAMES } from "../format.js";

const HEIGHT = 84;
const PAD = 6;

/** Fills `place`; `seek(seconds)` is called when somebody points at a time. Returns {at(seconds), close()}. */
export function plots(place, joints, { times_s: times, state, action }, seek) {
  const length = times.at(-1) || 1;
  const made = joints.map((joint, index) => plot(joint, index));
  place.replaceChildren(...made.map((each) => each.element));
  const draw = () => made.forEach((each) => each.draw());
  new ResizeObserver(draw).observe(place);
  const theme = matchMedia("(prefers-color-scheme: dark)");
  theme.addEventListener("change", draw);

  function plot({ name, unit }, index) {
    const canvas = h("canvas.curve");
    const line = h("span.now");
    const value = h("span.curve-value");
    const box = h("div.curve-box", {}, canvas, line);
    const element = h(
      "figure.plot",
      {},
      h("figcaption", {}, h("span", {}, JOINT_NAMES[name] ?? name), value),
      box,
    );
    const point = (event) => {
      const { left, width } = box.getBoundingClientRect();
      seek(((event.clientX - left) / width) * length);
    };
    box.addEventListener("pointerdown", (event) => {
      box.setPointerCapture(event.pointerId);
      point(event);
    });
    box.addEventListener("pointermove", (event) => event.buttons && point(event));
    const values = [...state, ...action].map((row) => row[index]);
    const low = Math.min(...values);
    const high = Math.max(...values);
    const reach = Math.max(high - low, 1);

    function draw() {
      const width = box.clientWidth;
      if (!width) return;
      const scale = window.devicePixelRatio || 1;
      canvas.width = width * scale;
      canvas.height = HEIGHT * scale;
      const context = canvas.getContext("2d");
      context.scale(scale, scale);
      const { color, caretColor } = getComputedStyle(canvas); // a canvas cannot read light-dark()
      curve(context, width, action, caretColor, 1.25);
      curve(context, width, state, color, 1.75);
    }

    function curve(context, width, rows, colour, thick) {
      context.strokeStyle = colour;
      context.lineWidth = thick;
      context.lineJoin = "round";
      context.beginPath();
      rows.forEach((row, step) => {
        const x = (times[step] / length) * width;
        const y = PAD + (1 - (row[index] - low) / reach) * (HEIGHT - 2 * PAD);
        if (step) context.lineTo(x, y);
        else context.moveTo(x, y);
      });
      context.stroke();
    }

    return {
      element,
      draw,
      at(seconds) {
        line.style.left = `${Math.min(100, (seconds / length) * 100).toFixed(2)}%`;
        const step = Math.min(state.length - 1, Math.round((seconds / length) * (state.length - 1)));
        text(value, `${state[step][index].toFixed(1)}${unit} · sent ${action[step][index].toFixed(1)}${unit}`);
      },
    };
  }

  return {
    at: (seconds) => made.forEach((each) => each.at(seconds)),
    close: () => theme.removeEventListener("change", draw), // which would keep every episode that was looked at
  };
}
