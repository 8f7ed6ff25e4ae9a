// Two evaluations of a run, problem by problem: what became better, and the answers of both.
import { element, fetchJson, problem, shortNumber } from "./page.js";
import { textView } from "./tools.js";

export class Evaluations {
  constructor(identifier) {
    this.path = `/api/runs/${identifier}/evaluations`;
    const select = (label) => element("select", { "aria-label": label, onchange: () => this.compare() });
    this.first = select("First evaluation");
    this.second = select("Second evaluation");
    this.choice = element("div", { class: "bar", hidden: true }, this.first, "compared with", this.second);
    this.body = element("div");
    this.root = element("details", { class: "rollouts", ontoggle: (event) => {
      if (event.target === this.root && this.root.open) this.open();
    } }, element("summary", {}, "Evaluations"), this.choice, this.body);
  }

  async open() {
    let steps = [];
    this.body.replaceChildren(element("p", { class: "faint" }, "loading…"));
    try {
      steps = await fetchJson(this.path);
    } catch (error) {
      this.body.replaceChildren(problem(error.message));
      return;
    }
    this.choice.hidden = steps.length < 2;
    if (steps.length < 2) {
      this.body.replaceChildren(element("p", { class: "faint" }, "There are no two evaluations to compare; set valid_dataset and "
        + "evaluator.freq_steps to have the model evaluated while it trains."));
      return;
    }
    for (const [field, chosen] of [[this.first, steps[0]], [this.second, steps.at(-1)]]) {
      field.replaceChildren(...steps.map((step) => element("option", { value: step }, step ? `after step ${step}` : "before training")));
      field.value = String(chosen);
    }
    this.compare();
  }

  async compare() {
    const [first, second] = [this.first.value, this.second.value];
    try {
      const { sets } = await fetchJson(`${this.path}/${first}/${second}`);
      this.body.replaceChildren(this.summary(sets), ...sets.flatMap((set) => [
        this.problems(set, "better", set.n_better), this.problems(set, "worse", set.n_worse)]));
    } catch (error) {
      this.body.replaceChildren(problem(error.message));
    }
  }

  summary(sets) {
    const heads = ["set", "problems", "first", "second", "change", "better", "worse", "only in one"];
    const cells = (set) => [set.set, set.n_better + set.n_worse + set.equal, shortNumber(set.first.mean), shortNumber(set.second.mean),
      withInterval(set.change), set.n_better, set.n_worse, `${set.only_first} / ${set.only_second}`];
    const kind = (at) => (at ? "number" : "name");
    return element("div", { class: "scroll" }, element("table", {},
      element("thead", {}, element("tr", {}, heads.map((text, at) => element("th", { scope: "col", class: kind(at) }, text)))),
      element("tbody", {}, sets.map((set) => element("tr", {}, cells(set).map((cell, at) =>
        element("td", { class: kind(at) }, String(cell))))))));
  }

  problems(set, direction, count) {
    if (!count) return "";
    const shown = set[direction];
    return element("section", {}, element("h3", {}, `${set.set}: ${direction} on ${count} problems`),
      shown.map((one) => this.problem(set.set, one)),
      count > shown.length ? element("p", { class: "faint" }, `${count - shown.length} more`) : "");
  }

  problem(set, one) {
    const body = element("div");
    return element("details", { ontoggle: (event) => { if (event.target.open && !body.hasChildNodes()) this.answers(set, one.key, body); } },
      element("summary", {}, element("span", { class: "mean" }, `${shortNumber(one.first)} → ${shortNumber(one.second)}`), " ", one.name), body);
  }

  async answers(set, key, body) {
    const query = new URLSearchParams({ of: set, problem: key });
    const steps = [this.first.value, this.second.value];
    try {
      const found = await Promise.all(steps.map((step) => fetchJson(`${this.path}/${step}?${query}`)));
      body.replaceChildren(element("pre", {}, found[0].prompt), element("div", { class: "sides" }, found.map((one, at) =>
        element("section", {}, element("h4", {}, Number(steps[at]) ? `after step ${steps[at]}` : "before training"),
          one.samples.map((sample) => [
            element("p", { class: "faint" }, `reward ${shortNumber(sample.reward)}, ${sample.length} tokens`, sample.truncated ? ", truncated" : ""),
            textView(sample.completion)])))));
    } catch (error) {
      body.replaceChildren(problem(error.message));
    }
  }
}

function withInterval({ mean, half_width: width }) {
  return `${mean < 0 ? "−" : "+"}${shortNumber(Math.abs(mean))}${width === null ? "" : ` ± ${shortNumber(width)}`}`;
}
