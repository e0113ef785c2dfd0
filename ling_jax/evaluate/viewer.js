"use strict";
// Everything that a trajectory holds becomes a text node: no string of it is ever read as markup.
const MOST_TEXT = 20000; // characters of a text, and tokens of a turn, before a button shows the rest
const BOUNDS = [-0.1, -0.5, -1, -2, -4]; // log-probs below these have the colours p1 to p5
const KEYS = "j k: next, previous trajectory · n p: next, previous turn · t: tokens · h: thinking · /: filter";
const trajectories = JSON.parse(document.getElementById("data").textContent);
const [list, main, tip, find, count] = ["list", "episode", "tip", "find", "count"].map(id => document.getElementById(id));
let current = -1;

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.map(child => child instanceof Node ? child : String(child)));
  return made;
}

function asText(content) { // a text, or the format's list of parts
  if (content == null) return "";
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return JSON.stringify(content, null, 1);
  return content.map(part => part.text ?? `[${part.type} ${part.source?.path ?? ""}]`).join("\n");
}

function pre(text, className) {
  const made = element("pre", className, text.slice(0, MOST_TEXT));
  if (text.length > MOST_TEXT) made.append(rest(text.length - MOST_TEXT, "characters", () => text.slice(MOST_TEXT)));
  return made;
}

function rest(left, what, more) { // a button that is replaced by what it shows
  const button = element("button", "", `${left.toLocaleString()} more ${what}`);
  button.addEventListener("click", () => button.replaceWith(more()));
  return button;
}

function number(value) { return typeof value === "number" ? String(Math.round(value * 1000) / 1000) : String(value); }

function about(trajectory) {
  const extra = trajectory.extra ?? {}, rewards = extra.rewards ?? {};
  const outcome = rewards.outcome ?? extra.reward;
  const name = [extra.stage, extra.environment, extra.difficulty != null ? `difficulty ${extra.difficulty}` : null];
  const title = name.filter(part => part != null && part !== "").join(" · ");
  const turns = trajectory.steps.filter(step => step.source === "agent" && !step.is_copied_context);
  const tokens = turns.reduce((sum, step) => sum + (step.metrics?.completion_tokens ?? 0), 0);
  return {extra, rewards, outcome, turns, tokens, status: extra.status ?? "",
    title: title || trajectory.trajectory_id || trajectory.session_id || "trajectory"};
}

function badges({rewards, outcome, status, extra}) {
  const made = [];
  if (outcome != null) made.push(element("span", `badge ${outcome > 0.5 ? "good" : "bad"}`, `outcome ${number(outcome)}`));
  if (status) made.push(element("span", `badge ${status.endsWith("failed") ? "bad" : "muted"}`, status));
  for (const [name, value] of Object.entries({...rewards, ...extra.parts}))
    if (name !== "outcome") made.push(element("span", "badge muted", `${name} ${number(value)}`));
  if (extra.reward != null) made.push(element("span", "badge muted", `reward ${number(extra.reward)}`));
  return made;
}

function item(index) {
  const told = about(trajectories[index]);
  const verdict = told.outcome == null ? "" : told.outcome > 0.5 ? "good" : "bad";
  const made = element("li", "", element("b", verdict, verdict ? (verdict === "good" ? "✓ " : "✗ ") : ""), told.title,
    element("small", "", `${told.turns.length} ${told.turns.length === 1 ? "turn" : "turns"} · ${told.tokens} tokens · ${told.status || "no status"}`));
  made.dataset.words = `${told.title} ${told.status} ${verdict === "good" ? "right" : "wrong"} ` +
    asText(trajectories[index].steps.find(step => step.source === "user")?.message).slice(0, 2000);
  made.addEventListener("click", () => show(index));
  return made;
}

function show(index) {
  if (index < 0 || index >= trajectories.length) return;
  list.children[current]?.removeAttribute("aria-current");
  current = index;
  list.children[current].setAttribute("aria-current", "true");
  list.children[current].scrollIntoView({block: "nearest"});
  const trajectory = trajectories[index], told = about(trajectory);
  const facts = ["task", "seed", "answer_seed", "effort", "model"].filter(name => told.extra[name] != null)
    .map(name => `${name} ${told.extra[name]}`);
  main.replaceChildren(element("h2", "", told.title), element("p", "", ...badges(told)),
    element("p", "muted", facts.join(" · ")));
  if (told.extra.error) main.append(element("p", "bad", told.extra.error));
  const tools = trajectory.agent?.tool_definitions ?? [];
  if (tools.length) main.append(folded(`${tools.length} tools`, () => pre(JSON.stringify(tools, null, 1))));
  let turn = 0;
  for (const step of trajectory.steps) main.append(stepOf(step, step.source === "agent" ? ++turn : 0));
  main.scrollTop = 0;
  tip.textContent = KEYS;
}

function folded(title, content) { // made when it is first opened: long trajectories stay light
  const made = element("details", "", element("summary", "", title));
  made.addEventListener("toggle", () => { if (made.open && made.children.length === 1) made.append(content()); });
  return made;
}

function stepOf(step, turn) {
  const made = element("section", `step ${step.source}`);
  const metrics = step.metrics ?? {}, logps = metrics.logprobs, extra = step.extra ?? {};
  made.append(element("b", "", turn ? `turn ${turn}` : step.source), element("span", "muted", facts(step, metrics)));
  if (step.reasoning_content != null) {
    const thinking = folded(`thinking, ${step.reasoning_content.length} characters`, () => pre(step.reasoning_content));
    thinking.classList.add("thinking");
    made.append(thinking);
  }
  const message = asText(step.message);
  if (message) made.append(pre(message));
  for (const call of step.tool_calls ?? []) made.append(callOf(call));
  for (const error of extra.errors ?? []) made.append(element("p", "bad", error));
  for (const result of step.observation?.results ?? []) made.append(element("div", "result", pre(asText(result.content))));
  if (logps?.length) {
    const tokens = folded(`${logps.length} tokens with log-probs`, () => tokensOf(metrics));
    tokens.classList.add("with-tokens");
    made.append(tokens);
  }
  return made;
}

function facts(step, metrics) {
  const logps = metrics.logprobs, versions = metrics.extra?.versions ?? [];
  const parts = [];
  if (step.is_copied_context) parts.push("given in the prompt");
  if (metrics.completion_tokens != null) parts.push(`${metrics.completion_tokens} tokens`);
  if (metrics.prompt_tokens != null) parts.push(`after ${metrics.prompt_tokens}`);
  if (logps?.length) parts.push(`mean log-prob ${number(logps.reduce((sum, logp) => sum + logp, 0) / logps.length)}`);
  if (versions.length) parts.push(`version ${versions.map(run => run[0]).join(", ")}`);
  if (step.extra?.unanswered) parts.push("cut off");
  return parts.join(" · ");
}

function callOf(call) {
  const made = element("div", "call", element("b", "", call.function_name));
  for (const [name, value] of Object.entries(call.arguments ?? {}))
    made.append(element("div", "muted", name), pre(asText(value)));
  return made;
}

function tokensOf(metrics) {
  const {logprobs, completion_token_ids: ids = [], extra = {}} = metrics;
  const versions = (extra.versions ?? []).flatMap(([version, times]) => Array(times).fill(version));
  const made = element("pre", "tokens");
  const add = (from, to) => {
    const part = document.createDocumentFragment();
    for (let i = from; i < to; i++) {
      const token = element("span", `p${BOUNDS.filter(bound => logprobs[i] < bound).length}`, extra.tokens?.[i] ?? `${ids[i]} `);
      if (i && versions[i] !== versions[i - 1]) token.classList.add("new");
      token.dataset.i = i;
      part.append(token);
    }
    if (to < logprobs.length) {
      const next = Math.min(to + MOST_TEXT, logprobs.length);
      part.append(rest(logprobs.length - to, "tokens", () => add(to, next)));
    }
    return part;
  };
  made.append(add(0, Math.min(MOST_TEXT, logprobs.length)));
  made.addEventListener("mouseover", ({target}) => {
    const i = target.dataset?.i;
    if (i == null) return;
    const logp = logprobs[i], version = versions[i] == null ? "" : ` · version ${versions[i]}`;
    tip.textContent = `token ${i}: ${JSON.stringify(extra.tokens?.[i] ?? "")} · id ${ids[i] ?? "?"} · ` +
      `log-prob ${logp.toFixed(4)} (${(100 * Math.exp(logp)).toPrecision(3)} %)${version}`;
  });
  const colours = [0, ...BOUNDS].map((bound, i) => element("span", `p${i}`, i ? ` below ${bound} ` : " log-prob near 0 "));
  return element("div", "", element("p", "muted", ...colours, " bar: a newer weight version"), made);
}

function toggle(selector) { // opens all of them, or closes all where one is open
  const found = [...main.querySelectorAll(selector)], open = !found.some(one => one.open);
  for (const one of found) one.open = open;
}

function near(direction) { // the next trajectory in the list that the filter leaves
  for (let i = current + direction; i >= 0 && i < trajectories.length; i += direction)
    if (!list.children[i].hidden) return show(i);
}

function scrollToTurn(direction) {
  const turns = [...main.querySelectorAll(".step.agent")], top = main.getBoundingClientRect().top + 2;
  const tops = turns.map(turn => turn.getBoundingClientRect().top - top);
  const to = direction > 0 ? tops.findIndex(at => at > 4) : tops.findLastIndex(at => at < -4);
  if (to >= 0) turns[to].scrollIntoView();
}

function filter() {
  const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const one of list.children)
    one.hidden = !words.every(word => one.dataset.words.toLowerCase().includes(word));
  const left = [...list.children].filter(one => !one.hidden).length;
  count.textContent = `${left} of ${trajectories.length} trajectories`;
}

const ACTIONS = {
  j: () => near(1), k: () => near(-1), ArrowDown: () => near(1), ArrowUp: () => near(-1),
  n: () => scrollToTurn(1), p: () => scrollToTurn(-1), t: () => toggle(".with-tokens"), h: () => toggle(".thinking"),
  "/": () => find.focus(),
};

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === find) {
    if (event.key === "Escape" || event.key === "Enter") main.focus();
    return;
  }
  const action = ACTIONS[event.key];
  if (action) { event.preventDefault(); action(); }
});
find.addEventListener("input", filter);
list.append(...trajectories.map((_, index) => item(index)));
filter();
show(0);
