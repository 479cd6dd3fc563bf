/** One episode: all cameras in step, the joints below, and what there is to say about it. */

import { get, Problem } from "../api.js";
import { confirm } from "../dialog.js";
import { enable, h, icon, ICONS, set, show, text } from "../dom.js";
import { clock, plural, span } from "../format.js";
import { complain } from "../notice.js";
import { drawFacts } from "../operate/task.js";
import { plots } from "./plots.js";

const POINTS = 1500;
const DRIFT_S = 0.06; // two frames; closer than that nobody sees, and every correction costs a hiccup
const SPEEDS = [0.25, 0.5, 1, 2];

export function player(shell, number, { judge, erase, restore, neighbour }) {
  const { about } = shell.session;
  const title = h("h2", { id: "player-title" }, `Episode ${number}`);
  const videos = h("div.videos");
  const curves = h("div.plots");
  const position = h("input.position", { type: "range", min: 0, step: "any", value: 0, "aria-label": "Position" });
  const time = h("span.time");
  const play = h("button.round", { type: "button", "aria-label": "Play", onclick: toggle }, icon(ICONS.play));
  const speed = h(
    "select",
    { "aria-label": "Speed", onchange: () => clips.forEach(({ video }) => (video.playbackRate = Number(speed.value))) },
    SPEEDS.map((value) => h("option", { value, selected: value === 1 }, `${value}×`)),
  );
  const facts = h("dl.facts");
  const marks = {
    true: markButton("Success", true),
    false: markButton("Failure", false),
    null: markButton("Not judged", null),
  };
  const bin = h("button.danger-quiet", { type: "button", onclick: askToErase }, icon(ICONS.bin), "Delete");
  const back = h("button", { type: "button", onclick: () => restore(number), hidden: true }, icon(ICONS.undo), "Restore");
  const element = h(
    "section.player",
    { "aria-labelledby": "player-title" },
    h(
      "div.player-head",
      {},
      h("a.button.quiet.to-list", { href: "#/episodes" }, icon(ICONS.back), "All episodes"),
      title,
      h(
        "div.row",
        {},
        h("button.round", { type: "button", "aria-label": "Newer episode", onclick: () => leaf(-1) }, icon(ICONS.back)),
        h("button.round", { type: "button", "aria-label": "Older episode", onclick: () => leaf(1) }, icon(ICONS.next)),
      ),
    ),
    videos,
    h("div.transport", {}, play, position, time, speed),
    curves,
    h("div.card.judge", {}, h("div.actions.three", { role: "group", "aria-label": "Judgement" }, Object.values(marks)), bin, back),
    facts,
  );
  let clips = [];
  let length = 0;
  let drawn = null;
  let closed = false;
  let playing = false;
  position.addEventListener("input", () => seek(Number(position.value)));
  load();

  async function load() {
    let replay;
    let shown;
    try {
      [replay, shown] = await Promise.all([
        get(`/api/v1/episodes/${number}/replay?points=${POINTS}`),
        get(`/api/v1/episodes/${number}`),
      ]);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if (!closed) complain(problem);
      return;
    }
    if (closed) return;
    length = replay.frames / replay.fps;
    position.max = length;
    clips = replay.clips.map((clip) => ({ ...clip, video: videoOf(clip) }));
    videos.replaceChildren(...clips.map(({ camera, video }) => h("figure.clip", {}, video, h("figcaption", {}, camera))));
    drawn = { ...plots(curves, about.joints, replay, seek), fps: replay.fps };
    describe(shown.episode);
    seek(0);
    tick();
  }

  function videoOf(clip) {
    const video = h("video", {
      src: clip.url, muted: true, playsinline: true, preload: "auto", "aria-label": `Camera ${clip.camera}`,
    });
    video.muted = true; // the attribute alone does not count for elements made by scripts
    video.addEventListener("error", () => {
      video.replaceWith(h("p.empty", {}, "This browser cannot show the video's codec."));
    });
    return video;
  }

  /** Seconds from the episode's beginning. The first camera is the clock. */
  function now() {
    return clips.length ? clips[0].video.currentTime - clips[0].from_s : Number(position.value);
  }

  function seek(seconds) {
    const to = Math.min(length, Math.max(0, seconds));
    for (const { video, from_s: from } of clips) video.currentTime = from + Math.min(to, length - 0.01);
    place(to);
  }

  function place(seconds) {
    position.value = seconds;
    set(position, { "aria-valuetext": clock(seconds) });
    text(time, `${clock(seconds)} / ${clock(length)}`);
    drawn?.at(seconds);
  }

  function toggle() {
    if (playing) return pause();
    if (now() >= length - 0.05) seek(0);
    playing = true;
    for (const { video } of clips) video.play().catch(() => pause());
    face();
  }

  function pause() {
    playing = false;
    for (const { video } of clips) video.pause();
    face();
  }

  function face() {
    play.replaceChildren(icon(playing ? ICONS.pause : ICONS.play));
    set(play, { "aria-label": playing ? "Pause" : "Play" });
  }

  function tick() {
    if (closed) return;
    if (playing && clips.length) {
      const at = now();
      place(Math.min(at, length));
      for (const { video, from_s: from } of clips.slice(1)) {
        if (Math.abs(video.currentTime - from - at) > DRIFT_S) video.currentTime = from + at;
      }
      if (at >= length - 0.02 || clips[0].video.ended) pause();
    }
    requestAnimationFrame(tick);
  }

  function describe(episode) {
    text(title, `${number} · ${episode.task}`);
    for (const [value, mark] of Object.entries(marks)) {
      set(mark, { "aria-pressed": String(String(episode.success) === value) });
      enable(mark, shell.mayControl, "Needs a token with control.");
    }
    show(bin, !episode.deleted);
    show(back, episode.deleted);
    enable(bin, shell.mayControl, "Needs a token with control.");
    const rows = [
      ["Recorded", episode.started_at ? new Date(episode.started_at).toLocaleString() : "–"],
      ["Length", `${clock(episode.seconds)}, ${plural(episode.frames, "frame")}`],
      ["Source", episode.source],
      ["Ended", episode.ended ?? "–"],
    ];
    for (const [camera, seen] of Object.entries(episode.cameras ?? {})) {
      rows.push([`Camera ${camera}`, `${plural(seen.repeats, "repeated frame")}, ${span(seen.age_ms_mean)} old on average`]);
    }
    if (episode.limited_rows) rows.push(["Limited", `${plural(episode.limited_rows, "row")}: ${Object.keys(episode.limits).join(", ")}`]);
    if (episode.gaps?.length) rows.push(["Gaps", plural(episode.gaps.length, "gap")]);
    drawFacts(facts, rows);
  }

  function markButton(label, success) {
    return h("button", { type: "button", "aria-pressed": "false", onclick: () => mark(success) }, label);
  }

  async function mark(success) {
    const episode = await judge(number, success);
    if (episode && !closed) describe(episode);
  }

  async function askToErase() {
    const sure = await confirm({
      title: `Delete episode ${number}?`,
      body: "It is hidden from lists and from training. You can bring it back.",
      yes: "Delete",
      danger: true,
    });
    if (sure) await erase(number);
  }

  function step(frames) {
    pause();
    seek(now() + frames / (drawn?.fps ?? 30));
  }

  function leaf(step) {
    const other = neighbour(number, step);
    if (other !== undefined) location.hash = `#/episodes/${other}`;
  }

  return {
    element,
    key(key) {
      if (key === "r" && shell.mayControl) mark(true);
      if (key === "k") toggle();
      if (key === "ArrowLeft") step(-1);
      if (key === "ArrowRight") step(1);
    },
    close() {
      closed = true;
      drawn?.close();
      for (const { video } of clips) {
        video.removeAttribute("src");
        video.load(); // lets go of the connection
      }
    },
  };
}
