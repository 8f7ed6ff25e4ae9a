// A conversation with its tool calls and their results. Each part is text of a model or a tool: it is shown as text only.
import { element, fetchJson, problem } from "./page.js";

const MAX_PARTS = 500;
// What begins and ends a part, in the formats that chat templates use. Without an end the part reaches to the end of the text.
const MARKS = [
  { kind: "call", open: "<tool_call>", close: "</tool_call>" },
  { kind: "result", open: "<tool_response>", close: "</tool_response>" },
  { kind: "call", open: "[TOOL_CALLS]", close: "</s>", optional: true },
  { kind: "call", open: "<|python_tag|>", close: "<|eom_id|>", optional: true },
];

// The parts of a text: {kind: "text" | "call" | "result", text}. Linear in the length of the text, whatever it contains.
export function parts(text) {
  const found = [];
  const marks = MARKS.map((mark) => ({ ...mark, at: text.indexOf(mark.open) })).filter((mark) => mark.at >= 0);
  let at = 0;
  while (marks.length && found.length < MAX_PARTS) {
    const mark = marks.reduce((first, other) => (other.at < first.at ? other : first));
    const start = mark.at + mark.open.length;
    const closed = text.indexOf(mark.close, start);
    if (closed < 0 && !mark.optional) {
      marks.splice(marks.indexOf(mark), 1);
      continue;
    }
    const end = closed < 0 ? text.length : closed;
    if (mark.at > at) found.push({ kind: "text", text: text.slice(at, mark.at) });
    found.push({ kind: mark.kind, text: text.slice(start, end) });
    at = closed < 0 ? end : end + mark.close.length;
    for (const other of [...marks]) {
      if (other.at < at) other.at = text.indexOf(other.open, at);
      if (other.at < 0) marks.splice(marks.indexOf(other), 1);
    }
  }
  if (at < text.length) found.push({ kind: "text", text: text.slice(at) });
  return found.filter((part) => part.kind !== "text" || part.text.trim());
}

// The calls in a text that is marked as calls: [{name, args}]; empty if it cannot be read.
export function callsIn(text) {
  try {
    const value = JSON.parse(text);
    return (Array.isArray(value) ? value : [value])
      .filter((call) => typeof call?.name === "string")
      .map((call) => ({ name: call.name, args: read(call.arguments ?? call.parameters ?? {}) }));
  } catch {
    return xmlCall(text);
  }
}

// Arguments that are an object, or the text of one.
function read(value) {
  if (typeof value !== "string") return value;
  try {
    return JSON.parse(value);
  } catch {
    return value;
  }
}

// <function=NAME><parameter=KEY>VALUE</parameter>…</function>
function xmlCall(text) {
  const [before, ...rest] = text.split("<parameter=");
  const name = between(before, "<function=", ">");
  if (name === null) return [];
  const pairs = rest.map((part) => [part.split(">", 1)[0], between(part, ">", "</parameter>") ?? ""]);
  return [{ name: name.trim(), args: Object.fromEntries(pairs.map(([key, value]) => [key, value.trim()])) }];
}

function between(text, open, close) {
  const start = text.indexOf(open);
  const end = start < 0 ? -1 : text.indexOf(close, start + open.length);
  return end < 0 ? null : text.slice(start + open.length, end);
}

function plain(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}

function callView(text) {
  const calls = callsIn(text.trim());
  if (!calls.length) return box("call", "call that cannot be read", element("pre", {}, text.trim()));
  return calls.map(({ name, args }) => {
    const fields = args !== null && typeof args === "object" && !Array.isArray(args) ? Object.entries(args) : [["", args]];
    return box("call", `call ${name}`, element("dl", {}, fields.map(([key, value]) => [
      element("dt", {}, key), element("dd", {}, element("pre", {}, plain(value)))])));
  });
}

function resultView(text) {
  const value = read(text.trim());
  return box("result", "result", element("pre", {}, plain(value)));
}

function box(kind, title, body) {
  return element("section", { class: `tool ${kind}` }, element("h4", {}, title), body);
}

// A text of a model: calls and results are boxes, everything else is text.
export function textView(text) {
  return parts(text).map((part) => {
    if (part.kind === "call") return callView(part.text);
    return part.kind === "result" ? resultView(part.text) : element("pre", {}, part.text);
  });
}

// The turns of a sample whose tokens are at an address, loaded when they are opened.
export function conversationView(address) {
  const body = element("div", { class: "conversation" });
  const root = element("details", { ontoggle: () => { if (root.open && !body.hasChildNodes()) load(address, body); } },
    element("summary", {}, "Conversation"), body);
  return root;
}

async function load(address, body) {
  body.replaceChildren(element("p", { class: "faint" }, "loading…"));
  try {
    const sample = await fetchJson(address);
    body.replaceChildren(...segments(sample).flatMap(view).flat(Infinity),
      sample.left_out ? element("p", { class: "faint" }, `${sample.left_out} more tokens`) : "");
  } catch (error) {
    body.replaceChildren(problem(error.message));
  }
}

// Runs of tokens that the policy generated, and what is between them: [{generated, text, afterCall}].
export function segments({ tokens, loss_mask: mask }) {
  const found = [];
  tokens.forEach((token, at) => {
    if (at && mask[at] === mask[at - 1]) found.at(-1).texts.push(token);
    else found.push({ generated: mask[at], texts: [token] });
  });
  const joined = found.map(({ generated, texts }) => ({ generated, text: texts.join("") }));
  return joined.map((one, at) => ({
    ...one,
    turn: joined.slice(0, at + 1).filter((other) => other.generated).length,
    afterCall: !one.generated && at > 0 && parts(joined[at - 1].text).some((part) => part.kind === "call"),
  }));
}

function view({ generated, text, turn, afterCall }) {
  if (generated) return [element("h4", {}, `turn ${turn}`), textView(text)];
  if (afterCall && !parts(text).some((part) => part.kind === "result")) return resultView(text);
  return parts(text).map((part) => (part.kind === "result" ? resultView(part.text) : element("pre", { class: "faint" }, part.text)));
}
