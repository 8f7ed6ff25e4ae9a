// The samples of a step, problem by problem.
import { element, fetchJson, problem, shortNumber } from "./page.js";
import { tokenView } from "./tokens.js";
import { conversationView, textView } from "./tools.js";

const KINDS = { all: "all samples", trained: "trained", rejected: "rejected", truncated: "truncated" };

export class Rollouts {
  constructor(identifier) {
    this.identifier = identifier;
    this.steps = [];
    this.offset = 0;
    this.step = element("select", { "aria-label": "Step", onchange: () => this.restart() });
    const move = (by, label) => element("button", { type: "button", onclick: () => this.move(by) }, label);
    const field = (label, type, width) => element("input", {
      type, placeholder: label, "aria-label": label, size: width, step: "any", onchange: () => this.restart(),
    });
    this.text = field("text", "search", 20);
    this.low = field("reward from", "number", 8);
    this.high = field("reward to", "number", 8);
    this.shortest = field("tokens from", "number", 8);
    this.longest = field("tokens to", "number", 8);
    this.only = element("select", { "aria-label": "Samples", onchange: () => this.restart() },
      Object.entries(KINDS).map(([value, label]) => element("option", { value }, label)));
    this.note = element("p", { class: "faint", role: "status" });
    this.list = element("div");
    this.more = element("button", { type: "button", hidden: true, onclick: () => this.load(true) }, "More problems");
    this.root = element("details", { class: "rollouts", ontoggle: () => { if (this.root.open) this.open(); } },
      element("summary", {}, "Samples"),
      element("div", { class: "bar" }, move(-1, "Earlier step"), this.step, move(1, "Later step"),
        this.only, this.text, this.low, this.high, this.shortest, this.longest), this.note, this.list, this.more);
  }

  async open() {
    this.note.textContent = "loading…";
    try {
      this.steps = await fetchJson(`/api/runs/${this.identifier}/rollouts`);
    } catch (error) {
      this.note.textContent = "";
      this.list.replaceChildren(problem(error.message));
      return;
    }
    if (!this.steps.length) {
      this.note.textContent = "This run writes no samples; set rollout.dump_to_file: true to see them.";
      return;
    }
    this.step.replaceChildren(...this.steps.map((step) => element("option", { value: step }, `step ${step}`)));
    this.step.value = String(this.steps.at(-1));
    this.restart();
  }

  move(by) {
    const at = this.steps.indexOf(Number(this.step.value)) + by;
    if (at < 0 || at >= this.steps.length) return;
    this.step.value = String(this.steps[at]);
    this.restart();
  }

  restart() {
    this.load(false);
  }

  async load(more) {
    const query = new URLSearchParams();
    const fields = { text: this.text, low: this.low, high: this.high, shortest: this.shortest, longest: this.longest, only: this.only };
    for (const [name, field] of Object.entries(fields)) {
      if (field.value !== "") query.set(name, field.value);
    }
    query.set("offset", more ? this.offset : 0);
    this.note.textContent = "loading…";
    try {
      const page = await fetchJson(`/api/runs/${this.identifier}/rollouts/${this.step.value}?${query}`);
      this.show(page, more);
    } catch (error) {
      this.note.textContent = "";
      this.list.replaceChildren(problem(error.message));
    }
  }

  show(page, more) {
    this.note.textContent = `${page.admitted} of ${page.samples} samples of ${page.problems} problems`;
    const groups = page.groups.map((group) => this.group(group, page.step));
    if (more) this.list.append(...groups);
    else this.list.replaceChildren(...groups);
    this.offset = page.offset + page.groups.length;
    this.more.hidden = this.offset >= page.problems;
  }

  group(group, step) {
    const left = group.count - group.samples.length;
    return element("details", {},
      element("summary", {}, element("span", { class: "mean" }, shortNumber(group.reward)), " ", line(group.prompt)),
      element("p", { class: "faint" }, group.task ? `task ${group.task}` : "", left > 0 ? ` ${left} more samples` : ""),
      element("pre", {}, group.prompt), this.samples(group, step), this.history(group.problem));
  }

  samples(group, step) {
    return element("ol", {}, group.samples.map((sample) => element("li", {},
      element("p", { class: "faint" },
        `reward ${shortNumber(sample.reward)}, ${sample.length} tokens, ${versions(sample.versions)}`,
        sample.truncated ? ", truncated" : "", sample.rejected ? ", rejected" : ""),
      textView(sample.completion),
      conversationView(`/api/runs/${this.identifier}/rollouts/${step}/${sample.row}`),
      tokenView(`/api/runs/${this.identifier}/rollouts/${step}/${sample.row}`))));
  }

  // The same problem in other steps, loaded when it is opened.
  history(problemName) {
    const body = element("div");
    const load = async () => {
      const query = new URLSearchParams({ problem: problemName });
      try {
        const found = await fetchJson(`/api/runs/${this.identifier}/problem?${query}`);
        body.replaceChildren(
          found.not_searched ? element("p", { class: "faint" }, `${found.not_searched} earlier steps were not searched`) : "",
          found.damaged ? problem(`${found.damaged} files cannot be read`) : "",
          ...found.steps.map((group) => element("details", {},
            element("summary", {}, `step ${group.step}: mean reward ${shortNumber(group.reward)}, ${group.count} samples`),
            this.samples(group, group.step))));
      } catch (error) {
        body.replaceChildren(problem(error.message));
      }
    };
    return element("details", { ontoggle: (event) => { if (event.target.open && !body.hasChildNodes()) load(); } },
      element("summary", {}, "This problem over the training"), body);
  }
}

export function line(prompt) {
  return prompt.replace(/\s+/g, " ").slice(-120);
}

function versions([head, tail]) {
  return head === tail ? `version ${head}` : `versions ${head} to ${tail}`;
}
