/** Learning with others: whether, with what, when; and what leaves the house. */

import { get, post, Problem } from "./api.js";
import { confirm } from "./dialog.js";
import { enable, h, set, show, text } from "./dom.js";
import { sentence } from "./format.js";
import { complain, notice } from "./notice.js";
import { drawFacts } from "./operate/task.js";

const STATES = {
  off: "Takes no part now",
  waiting: "Tries again in a moment",
  joining: "Joining",
  online: "Waits for a round",
  working: "Learns",
  finishing: "Returns what it has learnt",
};

const OUTCOMES = {
  promoted: "in use",
  kept: "kept, not used",
  worse: "worse, not used",
  failed: "could not be tried",
  "rolled back": "taken back",
};

const LOOK_MS = 2000;

export function learning(shell) {
  const none = h(
    "section.card",
    { "aria-labelledby": "alone-title" },
    h("h2", { id: "alone-title" }, "This station learns alone"),
    h("p", {}, "What it records stays here. Nothing leaves this machine."),
    h("p.muted", {}, "To learn with others while nobody needs the arm, enrol it on its own machine: ", h("code", {}, "so-agent fl enroll"), "."),
  );
  const now = h("p.big");
  const why = h("p.muted");
  const others = h("ul.reasons");
  const bar = h("progress.bar", { "aria-label": "Steps of this round" });
  const round = h("dl.facts");
  const pause = h("button", { type: "button", onclick: () => change("pause") }, "Pause");
  const resume = h("button.primary", { type: "button", onclick: () => change("resume") }, "Resume");
  const hurry = h("button", { type: "button", onclick: () => change("resume", { now: true }) }, "Do not wait: join now");
  const state = h(
    "section.card",
    { "aria-labelledby": "round-title" },
    h("h2", { id: "round-title" }, "Learning with others"),
    now,
    why,
    others,
    bar,
    round,
    h("div.actions.two", {}, resume, pause, hurry),
  );

  const datasets = h("div.stack");
  const consent = h(
    "section.card",
    { "aria-labelledby": "consent-title" },
    h("h2", { id: "consent-title" }, "Your consent"),
    h("p.muted", {}, "Only from these datasets it learns for others. You can change your mind at any time."),
    datasets,
  );

  const leaves = h(
    "section.card",
    { "aria-labelledby": "leaves-title" },
    h("h2", { id: "leaves-title" }, "What leaves the house"),
    h(
      "ul.leaves",
      {},
      h("li", { data: { leaves: "yes" } }, "An adapter: some megabytes of numbers that change the policy. With it, how many rows it was made from, and losses."),
      shell.session.about.share_statistics
        ? h("li", { data: { leaves: "yes" } }, "Mean and spread of your arm's joints: federation.share_statistics is on.")
        : null,
      h("li", { data: { leaves: "no" } }, "No picture, no video, no joint of any episode."),
      h("li", { data: { leaves: "no" } }, "No task text, no name, nothing of this page."),
    ),
    h("dl.facts"),
  );
  const where = leaves.querySelector("dl");

  const tried = h("tbody");
  const rollback = h("button", { type: "button", onclick: askToRollBack }, "Back to the policy before…");
  const results = h(
    "section.card.wide",
    { "aria-labelledby": "results-title" },
    h("h2", { id: "results-title" }, "What came of it"),
    h(
      "div.scroll",
      {},
      h(
        "table",
        {},
        h("thead", {}, h("tr", {}, ...["Round", "Before", "After", "Outcome"].map((name) => h("th", { scope: "col" }, name)))),
        tried,
      ),
    ),
    h("p.muted", {}, "Before and after: the loss on episodes of yours that nobody learnt from. Less is better."),
    rollback,
  );
  const element = h(
    "div.learning",
    {},
    h("h1", {}, "Learning"),
    none,
    h("div.columns.pairs", {}, state, consent, leaves, results),
  );
  let told = null;
  let timer = 0;

  async function look() {
    try {
      told = await get("/api/v1/fl");
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      told = null; // an agent without federation, or none that answers: the header says so
    }
    drawConsent();
    shell.draw();
  }

  async function change(what, body = {}) {
    if (await shell.act(`/api/v1/fl/${what}`, body)) await look();
  }

  async function askToRollBack() {
    const sure = await confirm({
      title: "Use the policy from before?",
      body: `Tasks use ${told.federation.promotion.previous} again. The newer one is kept, but not used.`,
      yes: "Use it again",
    });
    if (!sure) return;
    const answer = await shell.act("/api/v1/fl/rollback");
    if (answer) notice(`Tasks use ${answer.policy} again.`, { tone: "good" });
    await look();
  }

  async function agree(box, dataset) {
    const on = box.checked;
    if (on) {
      const sure = await confirm({
        title: `Learn from ${dataset} for others?`,
        body: [
          "What is learnt from its episodes leaves this machine as an adapter. The episodes themselves never do.",
          "An adapter is made from your data, and can tell a little about it.",
        ],
        yes: "I agree",
      });
      if (!sure) {
        box.checked = false;
        return;
      }
    }
    try {
      await post("/api/v1/fl/consent", { dataset, on });
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      box.checked = !on;
      complain(problem);
    }
    await look();
  }

  function drawConsent() {
    const given = Object.entries(told?.consent ?? {});
    const key = JSON.stringify(given);
    if (datasets.dataset.key === key) return;
    datasets.dataset.key = key;
    datasets.replaceChildren(
      ...given.map(([name, since]) => {
        const box = h("input", { type: "checkbox", checked: Boolean(since) });
        box.disabled = !shell.mayControl;
        box.addEventListener("change", () => agree(box, name));
        const when = since ? `since ${new Date(since).toLocaleDateString()}` : "not used";
        return h("label.check", {}, box, h("span", {}, name, h("span.muted", {}, ` · ${when}`)));
      }),
    );
    if (!given.length) datasets.append(h("p.muted", {}, "Nothing has been recorded yet."));
  }

  return {
    element,
    enter() {
      clearInterval(timer);
      timer = setInterval(look, LOOK_MS);
      look();
    },
    leave() {
      clearInterval(timer);
    },
    draw() {
      const federation = told?.federation;
      const enrolled = federation?.enrolled;
      show(none, told && !enrolled);
      for (const part of [state, consent, leaves, results]) show(part, enrolled);
      if (enrolled) drawMember(federation);
    },
  };

  function drawMember(federation) {
    text(now, federation.paused ? "Paused" : STATES[federation.state] ?? federation.state);
    text(why, sentence(federation.reason));
    const rest = federation.against.slice(1);
    show(others, rest.length);
    if (others.dataset.key !== rest.join("|")) {
      others.dataset.key = rest.join("|");
      others.replaceChildren(...rest.map((reason) => h("li.muted", {}, sentence(reason))));
    }
    const { progress } = federation;
    show(bar, progress);
    show(round, progress);
    if (progress) {
      set(bar, { max: progress.steps || 1, value: progress.step });
      drawFacts(round, [
        ["Run", progress.run],
        ["Round", `${progress.round} of ${progress.rounds}`],
        ["Doing", `${progress.doing}, step ${progress.step} of ${progress.steps}`],
        ["Loss", progress.loss === null ? "–" : progress.loss.toFixed(4)],
      ]);
    }
    show(resume, federation.paused);
    show(pause, !federation.paused);
    show(hurry, !federation.paused && federation.state === "off");
    for (const button of [resume, pause, hurry, rollback]) enable(button, shell.mayControl, "Needs a token with control.");
    drawFacts(where, [
      ["To", federation.superlink],
      ["This station is known as", federation.key],
      ["The trainer is kept apart by", federation.isolation?.by ?? "–"],
    ]);
    drawTried(federation.promotion);
  }

  function drawTried(promotion) {
    const candidates = [...(promotion?.candidates ?? [])].reverse();
    show(results, candidates.length);
    show(rollback, promotion?.previous);
    const key = JSON.stringify(candidates);
    if (tried.dataset.key === key) return;
    tried.dataset.key = key;
    const loss = (value) => (value === null ? "–" : value.toFixed(4));
    tried.replaceChildren(
      ...candidates.map((each) =>
        h(
          "tr",
          { title: each.reason },
          h("th", { scope: "row" }, `${each.run}, ${each.round}`),
          h("td", {}, loss(each.before)),
          h("td", {}, loss(each.after)),
          h("td", {}, OUTCOMES[each.outcome] ?? each.outcome),
        ),
      ),
    );
  }
}
