// Elements and requests. Text only ever reaches the page as text, never as markup.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

// Events of the visitor: "signin" when a token is needed, "user" with the name of whoever is signed in.
export const visitor = new EventTarget();

export async function fetchJson(path) {
  const response = await fetch(path, { headers: { accept: "application/json" } });
  const user = response.headers.get("grpo-user");
  visitor.signedIn = Boolean(user);
  if (user) visitor.dispatchEvent(new CustomEvent("user", { detail: decodeURIComponent(user) }));
  if (!response.ok) {
    const body = await response.json().catch(() => ({}));
    if (response.status === 401) visitor.dispatchEvent(new Event("signin"));
    throw new Error(typeof body.detail === "string" ? body.detail : `${response.status} ${response.statusText}`);
  }
  return response.json();
}

export function shortNumber(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

export function ago(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const past = Math.max(0, Date.now() / 1000 - seconds);
  if (past < 90) return `${Math.round(past)} s ago`;
  if (past < 5400) return `${Math.round(past / 60)} min ago`;
  if (past < 172800) return `${Math.round(past / 3600)} h ago`;
  return new Date(seconds * 1000).toISOString().slice(0, 10);
}

export function stateLabel(run) {
  const known = ["running", "succeeded", "stopped", "failed", "collapsed", "interrupted", "damaged"];
  return element("span", { class: `state ${known.includes(run.state) ? run.state : ""}` }, run.state);
}

export function problem(text) {
  return element("p", { class: "problem", role: "alert" }, text);
}
