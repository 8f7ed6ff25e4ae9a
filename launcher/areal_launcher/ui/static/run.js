// One run, live.
import { Chart } from "./charts.js";
import { Evaluations } from "./evaluations.js";
import { Rollouts } from "./rollouts.js";
import { element, fetchJson, problem, shortNumber, stateLabel } from "./page.js";

const POINTS = 1000;
const EVENTS_SHOWN = 200;
const VERSION = "version";
const MAX_UPDATES = 200;

export class RunView {
  constructor(main, identifier, where, connection) {
    this.main = main;
    this.identifier = identifier;
    this.where = where;
    this.connection = connection;
    this.run = null;
    this.charts = new Map();
    this.points = null;
    this.range = null;
    this.fetching = false;
    this.again = false;
    this.added = new Set();
    this.head = element("div");
    this.grid = element("div", { class: "charts" });
    this.more = element("select", { "aria-label": "Add a chart", onchange: () => this.add(this.more.value) });
    this.all = element("button", { type: "button", hidden: true, onclick: () => this.loadAll() }, "Load the whole run");
    this.reset = element("button", { type: "button", hidden: true, onclick: () => this.zoom(null) }, "All steps");
    this.lists = element("div");
    this.files = element("div");
    this.text = element("pre");
    const configuration = element("details", { ontoggle: () => this.loadConfiguration() },
      element("summary", {}, "Configuration"), this.text);
    main.replaceChildren(this.head, element("div", { class: "bar" }, this.more, this.reset, this.all), this.grid, this.lists,
      this.files, configuration);
    this.resized = () => this.charts.forEach((chart) => chart.resize());
    addEventListener("resize", this.resized);
    this.listen();
  }

  listen() {
    this.source = new EventSource(`/api/runs/${this.identifier}/live`);
    this.source.onmessage = (message) => this.update(JSON.parse(message.data));
    this.source.onopen = () => { this.connection.textContent = ""; };
    this.source.onerror = () => {
      this.connection.textContent = "disconnected; trying again";
      if (this.run === null) this.explain();
    };
    this.source.addEventListener("refused", () => {
      this.source.close();
      this.explain();
    });
    this.source.addEventListener("deleted", () => {
      this.source.close();
      this.head.prepend(problem("This run was deleted."));
    });
  }

  async explain() {
    try {
      await fetchJson(`/api/runs/${this.identifier}`);
    } catch (error) {
      this.source.close();
      this.head.replaceChildren(problem(error.message), element("p", {}, element("a", { href: "#/" }, "All runs")));
    }
  }

  update(run) {
    this.run = run;
    this.where.textContent = run.name;
    document.title = `${run.name} – grpo`;
    this.drawHead();
    this.drawLists();
    this.drawFiles();
    this.all.hidden = !run.more;
    this.makeCharts();
    this.refresh();
  }

  // The curves of a cluster's run begin when the page first saw it; its file of statistics has the others.
  async loadAll() {
    this.all.disabled = true;
    this.all.textContent = "Loading from the volume…";
    try {
      this.update(await fetchJson(`/api/runs/${this.identifier}/all`));
    } catch (error) {
      this.head.prepend(problem(error.message));
    }
    this.all.textContent = "Load the whole run";
    this.all.disabled = false;
  }

  drawFiles() {
    if (this.files.hasChildNodes()) return;
    this.files.append(...this.run.files
      ? [new Rollouts(this.identifier).root, new Evaluations(this.identifier).root]
      : [element("p", { class: "faint" }, "Samples and evaluations are files on the volume of the run, which this page does not read.")]);
  }

  drawHead() {
    const run = this.run;
    const steps = `${run.step}${run.total ? ` / ${run.total}` : ""}`;
    const figures = [["step", steps], ...run.figures.map(({ label, value }) => [label, shortNumber(value)])];
    this.head.replaceChildren(...[
      element("p", {}, stateLabel(run), run.loading ? element("span", { class: "faint" }, " reading statistics…") : null),
      run.reason ? problem(run.reason) : null,
      ...run.problems.map(problem),
      element("dl", { class: "figures" },
        figures.map(([label, text]) => element("div", {}, element("dt", {}, label), element("dd", {}, text)))),
      run.step === 0 && !run.loading ? element("p", { class: "faint" }, "No step has finished yet.") : null,
    ].filter((part) => part !== null));
  }

  drawLists() {
    const { servers, events } = this.run;
    const parts = [];
    if (servers.length) {
      parts.push(this.table("Servers", ["server", "address", "state", "weights", "restarts"],
        servers.map((server) => [server.name, server.address, server.state, server.weights, server.restarts])));
    }
    if (events.length) {
      parts.push(this.table("Events", ["step", "event"],
        events.slice(-EVENTS_SHOWN).reverse().map((event) => [event.step, event.text])));
    }
    this.lists.replaceChildren(...parts);
  }

  table(title, heads, rows) {
    return element("section", {}, element("h2", {}, title), element("div", { class: "scroll" }, element("table", {},
      element("thead", {}, element("tr", {}, heads.map((text) => element("th", { scope: "col" }, text)))),
      element("tbody", {}, rows.map((row) =>
        element("tr", {}, row.map((cell) => element("td", { class: "name" }, String(cell)))))))));
  }

  makeCharts() {
    const wanted = [...this.run.charts, ...[...this.added].map((name) => ({ title: name, unit: "", statistics: [name] }))];
    for (const { title, unit, statistics } of wanted) {
      const key = JSON.stringify([title, statistics]);
      if (this.charts.has(key)) continue;
      for (const [other, chart] of this.charts) {
        if (JSON.parse(other)[0] !== title) continue;
        chart.destroy();
        chart.root.remove();
        this.charts.delete(other);
      }
      const chart = new Chart({
        title, unit,
        lines: statistics.map((name) => ({ label: name, key: name })),
        events: () => [...this.run.events, ...this.updates()],
        zoomed: (range) => this.zoom(range),
      });
      this.charts.set(key, chart);
      this.grid.append(chart.root);
      this.points = null;
    }
    const shown = new Set([...this.charts.values()].flatMap((chart) => chart.lines.map((line) => line.key)));
    const rest = this.run.statistics.filter((name) => !shown.has(name));
    if (this.more.options.length !== rest.length + 1) {
      this.more.replaceChildren(element("option", { value: "" }, "Add a chart…"),
        ...rest.map((name) => element("option", { value: name }, name)));
    }
  }

  add(name) {
    if (!name) return;
    this.added.add(name);
    this.makeCharts();
    this.refresh();
  }

  names() {
    const drawn = [...this.charts.values()].flatMap((chart) => chart.lines.map((line) => line.key));
    return drawn.length && this.run.statistics.includes(VERSION) ? [...new Set([...drawn, VERSION])] : drawn;
  }

  // The steps that published weights, where few enough are shown to be told apart.
  updates() {
    const { steps = [], means = {}, low = {} } = this.points ?? {};
    const versions = means[VERSION];
    if (!versions || steps.length > MAX_UPDATES || Object.keys(low).length) return [];
    return steps.filter((_, at) => versions[at] !== null && versions[at] !== versions[at - 1]).map((step) => ({ step, kind: "weights" }));
  }

  zoom(range) {
    this.range = range;
    this.points = null;
    this.reset.hidden = range === null;
    this.refresh();
  }

  // Loads what is new, one request at a time.
  async refresh() {
    this.again = true;
    if (this.fetching) return;
    this.fetching = true;
    try {
      while (this.again) {
        this.again = false;
        await this.load();
      }
    } catch (error) {
      this.connection.textContent = `the series could not be loaded: ${error.message}`;
    } finally {
      this.fetching = false;
    }
  }

  async load() {
    const names = this.names();
    if (!names.length) return;
    const query = new URLSearchParams(names.map((name) => ["name", name]));
    query.set("points", POINTS);
    const known = this.points;
    if (this.range) {
      query.set("first", this.range[0]);
      query.set("last", this.range[1]);
    } else if (known && known.changes === this.run.changes && known.steps.length && !Object.keys(known.low).length) {
      query.set("after", known.steps.at(-1));
    }
    const loaded = await fetchJson(`/api/runs/${this.identifier}/series?${query}`);
    this.points = loaded.replace || !this.points ? loaded : joined(this.points, loaded);
    this.charts.forEach((chart) => chart.draw(this.points));
  }

  async loadConfiguration() {
    const response = await fetch(`/api/runs/${this.identifier}/configuration`);
    this.text.textContent = response.ok ? await response.text() : "It could not be loaded.";
  }

  close() {
    this.source.close();
    removeEventListener("resize", this.resized);
    this.charts.forEach((chart) => chart.destroy());
  }
}

function joined(known, added) {
  const means = {};
  for (const name of new Set([...Object.keys(known.means), ...Object.keys(added.means)])) {
    means[name] = [...(known.means[name] ?? known.steps.map(() => null)),
      ...(added.means[name] ?? added.steps.map(() => null))];
  }
  return { ...added, steps: [...known.steps, ...added.steps], means };
}
