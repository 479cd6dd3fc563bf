/** Live pictures. Each says how old it is, and says loudly when it does not change any more. */

import { abandonableGet, Problem } from "../api.js";
import { h, show, text } from "../dom.js";
import { span } from "../format.js";

const OLD_MS = 1000; // previews come five times a second
const ANSWER_MS = 4000;
const AGAIN_MS = 500;
const SAID = { connecting: "Connecting", frozen: "Frozen", stalled: "No picture", down: "Off" };

export function cameras(shell) {
  const seen = shell.session.cameras.map((name) => camera(shell, name));
  const element = h(
    "section.cameras",
    { "aria-label": "Cameras", data: { count: seen.length } },
    seen.map((each) => each.element),
  );
  if (!seen.length) element.append(h("p.empty", {}, "This station has no cameras."));
  return {
    element,
    draw: () => seen.forEach((each) => each.draw()),
    start: () => seen.forEach((each) => each.start()),
    stop: () => seen.forEach((each) => each.stop()),
  };
}

function camera(shell, name) {
  const canvas = h("canvas.picture", { width: 640, height: 480, role: "img", "aria-label": `Camera ${name}` });
  const context = canvas.getContext("2d", { alpha: false });
  const age = h("span.age");
  const badge = h("strong.badge", { hidden: true });
  const figure = h(
    "button.camera",
    { type: "button", "aria-label": `Camera ${name}: larger or smaller`, "aria-pressed": "false" },
    canvas,
    h("span.camera-line", {}, h("span.camera-name", {}, name), age),
    badge,
  );
  figure.addEventListener("click", () => {
    const large = figure.classList.toggle("large");
    figure.setAttribute("aria-pressed", String(large));
  });
  let running = 0;
  let takenNs = "0";
  let ageMs = null; // when it was drawn
  let drawnAt = 0;

  async function run(mine) {
    while (running === mine) {
      try {
        const response = await abandonableGet(
          `/api/v1/cameras/${encodeURIComponent(name)}/preview.jpg?after=${takenNs}`, ANSWER_MS,
        );
        if (response.status === 204) continue;
        const picture = await createImageBitmap(await response.blob());
        if (running !== mine) return;
        takenNs = response.headers.get("X-Captured-Ns");
        ageMs = Number(response.headers.get("X-Age-Ms"));
        drawnAt = performance.now();
        if (canvas.width !== picture.width || canvas.height !== picture.height) {
          canvas.width = picture.width;
          canvas.height = picture.height;
        }
        context.drawImage(picture, 0, 0);
        picture.close();
        figure.dataset.drawn = "";
      } catch (problem) {
        if (!(problem instanceof Problem) && !(problem instanceof DOMException)) throw problem;
        await new Promise((done) => setTimeout(done, AGAIN_MS));
      }
    }
  }

  return {
    element: figure,
    start() {
      running += 1;
      run(running);
    },
    stop() {
      running += 1;
    },
    draw() {
      const told = shell.status?.cameras?.[name];
      const now = ageMs === null ? null : ageMs + performance.now() - drawnAt;
      const old = now !== null && now > OLD_MS;
      const state = told?.state ?? "down";
      const said = shell.live.stale
        ? "No connection"
        : state !== "streaming"
          ? SAID[state] ?? state
          : now === null
            ? "Waiting for a picture"
            : old
              ? "Late"
              : "";
      text(age, now === null ? "" : span(now));
      figure.dataset.state = !said ? "good" : state === "streaming" && now === null ? "waiting" : "bad";
      show(badge, Boolean(said));
      text(badge, said && now !== null ? `${said} · ${span(now)}` : said);
      badge.title = told?.reason ?? "";
    },
  };
}
