/** What was recorded: find one, look at it again, judge it, delete it and bring it back. */

import { get, Problem, remove } from "../api.js";
import { h, icon, ICONS, show, text } from "../dom.js";
import { clock, plural, span } from "../format.js";
import { complain, notice } from "../notice.js";
import { player } from "./player.js";

const SOURCES = { teleop: "Teleop", policy: "Policy", intervention: "Corrected", unknown: "Other tool" };

export function episodes(shell) {
  let all = [];
  let open = null;
  let chosen = null; // number of the episode that is looked at

  const search = h("input", { id: "episode-search", type: "search", placeholder: "Task, number", oninput: drawList });
  const judged = h(
    "select",
    { id: "episode-judged", onchange: drawList },
    ...[["", "All"], ["true", "Successes"], ["false", "Failures"], ["null", "Not judged"], ["deleted", "Deleted"]].map(
      ([value, name]) => h("option", { value }, name),
    ),
  );
  const count = h("p.muted", { role: "status" });
  const list = h("ul.episode-list", { "aria-label": "Episodes" });
  const empty = h("p.empty", { hidden: true });
  const place = h("div.episode-place");
  const element = h(
    "div.episodes",
    {},
    h(
      "section.episode-index",
      { "aria-labelledby": "episodes-title" },
      h("h1", { id: "episodes-title" }, "Episodes"),
      h(
        "div.filters",
        {},
        h("label", { for: "episode-search" }, "Find", search),
        h("label", { for: "episode-judged" }, "Show", judged),
      ),
      count,
      list,
      empty,
    ),
    place,
  );
  shell.live.addEventListener("happened", ({ detail }) => {
    if (detail.kind === "episode" && shell.view?.element === element) load();
  });

  async function load() {
    try {
      all = (await get("/api/v1/episodes?deleted=true")).episodes.reverse();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      complain(problem);
    }
    drawList();
  }

  function drawList() {
    const words = search.value.trim().toLowerCase();
    const wanted = judged.value;
    const found = all.filter((episode) => {
      if (episode.deleted !== (wanted === "deleted")) return false;
      if (words && !episode.task.toLowerCase().includes(words) && String(episode.episode) !== words) return false;
      return wanted === "" || wanted === "deleted" || String(episode.success) === wanted;
    });
    const seconds = found.reduce((sum, episode) => sum + episode.seconds, 0);
    text(count, found.length ? `${plural(found.length, "episode")}, ${span(seconds * 1000)} in all` : "");
    list.replaceChildren(...found.map(line));
    show(empty, !found.length);
    text(empty, all.length ? "None of them fits." : "Nothing has been recorded yet. Start teleop, then record.");
  }

  function line(episode) {
    return h(
      "li",
      {},
      h(
        "a.episode-line",
        { href: `#/episodes/${episode.episode}`, "aria-current": episode.episode === chosen ? "true" : null },
        h("span.episode-number", {}, `${episode.episode}`),
        h(
          "span.episode-what",
          {},
          h("span.episode-task", {}, episode.task),
          h(
            "span.muted",
            {},
            `${clock(episode.seconds)} · ${SOURCES[episode.source] ?? episode.source}${episode.salvaged ? " · cut short" : ""}`,
          ),
        ),
        judgement(episode.success),
      ),
    );
  }

  async function openEpisode(number) {
    open?.close();
    open = null;
    chosen = number;
    element.classList.toggle("one", number !== null);
    if (number === null) {
      place.replaceChildren(h("p.empty", {}, "Choose an episode to look at it again."));
      return;
    }
    open = player(shell, number, { judge, erase, restore, neighbour });
    place.replaceChildren(open.element);
  }

  async function judge(number, success) {
    const answer = await shell.act(`/api/v1/episodes/${number}/mark`, { success });
    if (answer) await load();
    return answer?.episode ?? null;
  }

  async function erase(number) {
    try {
      await remove(`/api/v1/episodes/${number}`);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      complain(problem);
      return;
    }
    notice(`Episode ${number} is deleted.`, {
      hint: "It is hidden from lists and from training; its files stay.",
      action: { label: "Undo", run: () => restore(number) },
    });
    location.hash = "#/episodes";
    await load();
  }

  async function restore(number) {
    const answer = await shell.act(`/api/v1/episodes/${number}/restore`);
    if (!answer) return;
    notice(`Episode ${number} is back.`, { tone: "good" });
    location.hash = `#/episodes/${number}`;
    await load();
  }

  /** The episode before or after this one, as the list shows them. */
  function neighbour(number, step) {
    const shown = [...list.querySelectorAll("a")].map((link) => Number(link.hash.split("/")[2]));
    return shown[shown.indexOf(number) + step];
  }

  return {
    element,
    enter([number]) {
      const wanted = number === undefined || number === "" ? null : Number(number);
      if (wanted !== chosen || !open) openEpisode(wanted);
      load();
    },
    leave() {
      openEpisode(null);
    },
    key: (key) => open?.key(key),
  };
}

export function judgement(success) {
  if (success === null) return h("span.judged", { data: { judged: "none" }, "aria-label": "not judged" }, "–");
  return h(
    "span.judged",
    { data: { judged: String(success) }, "aria-label": success ? "success" : "failure" },
    icon(success ? ICONS.yes : ICONS.no),
  );
}
