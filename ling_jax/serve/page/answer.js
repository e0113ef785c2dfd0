// An answer as it comes. Everything that a model wrote becomes a text node: no string of it is ever read as markup.
const BOUNDS = [-0.1, -0.5, -1, -2, -4]; // log-probs below these have the colours p1 to p5

export function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function visible(token) { // there is something to point at
  const escaped = token.replace(/[^\P{C}\n]/gu, found => `\\u{${found.codePointAt(0).toString(16)}}`);
  return escaped.replaceAll("\n", "⏎\n") || "∅";
}

function folded(className) {
  const made = element("details", className, element("summary"));
  made.hidden = true;
  return made;
}

export class Answer {
  constructor(name) {
    this.start = performance.now();
    this.reasoning = this.content = this.finish = "";
    this.tokens = []; // {text, id, logp, version}
    this.calls = []; // {id, name, arguments, shown, result}
    this.thinking = folded("thinking");
    this.thinking.append(this.thinkingText = element("pre"));
    this.text = element("div", "text");
    this.callList = element("div");
    this.facts = element("p", "muted facts");
    this.node = element("article", "answer", element("p", "muted", name), this.thinking, this.text, this.callList,
      this.makeTokens(), this.facts);
  }

  get empty() { return !this.reasoning && !this.content && !this.calls.length; }

  makeTokens() {
    this.tokenView = folded("tokens");
    this.tokenText = element("pre");
    const tip = element("p", "tip muted", "Point at a token. Colours are log-probs; a bar is a newer weight version.");
    this.tokenText.addEventListener("mouseover", ({target}) => {
      if (target.dataset.i != null) tip.textContent = this.aboutToken(Number(target.dataset.i));
    });
    this.tokenView.append(this.tokenText, tip);
    return this.tokenView;
  }

  add(chunk) {
    const choice = chunk.choices[0];
    if (!choice) return;
    const {delta} = choice;
    if (delta.reasoning_content) this.addReasoning(delta.reasoning_content);
    if (delta.content) this.text.append(delta.content);
    this.content += delta.content ?? "";
    for (const call of delta.tool_calls ?? []) this.addCall(call);
    if (choice.token_ids?.length) this.addTokens(choice);
    if (choice.finish_reason) this.finish = choice.finish_reason;
    this.showFacts();
  }

  addReasoning(text) {
    this.reasoning += text;
    this.thinkingText.append(text);
    this.thinking.hidden = false;
    this.thinking.firstChild.textContent = `Thinking, ${this.reasoning.length} characters`;
  }

  addCall({index, id, function: part}) {
    if (!this.calls[index]) {
      const shown = element("pre"), result = element("textarea");
      result.rows = 2;
      this.calls[index] = {id, name: part.name, arguments: "", shown, result};
      this.callList.append(element("div", "call", element("b", "", part.name), shown,
        element("label", "", "Result ", result)));
    }
    const call = this.calls[index];
    call.arguments += part.arguments;
    call.shown.textContent = indented(call.arguments);
  }

  addTokens({token_ids: ids, logprobs, weight_versions: runs}) {
    this.last = performance.now();
    if (!this.first) [this.first, this.tokensAtFirst] = [this.last, ids.length];
    const versions = runs.flatMap(([version, count]) => Array(count).fill(version));
    logprobs.content.forEach(({token, logprob}, i) => {
      const before = this.tokens.at(-1);
      const span = element("span", `p${BOUNDS.filter(bound => logprob < bound).length}`, visible(token));
      if (before && before.version !== versions[i]) span.classList.add("new");
      span.dataset.i = this.tokens.length;
      this.tokens.push({text: token, id: ids[i], logp: logprob, version: versions[i]});
      this.tokenText.append(span);
    });
    this.tokenView.hidden = false;
    this.tokenView.firstChild.textContent = `${this.tokens.length} tokens with log-probs`;
  }

  aboutToken(i) {
    const {text, id, logp, version} = this.tokens[i];
    const percent = (100 * Math.exp(logp)).toPrecision(3);
    return `token ${i}: ${JSON.stringify(text)} · id ${id} · log-prob ${logp.toFixed(4)} (${percent} %) · ` +
      `weight version ${version}`;
  }

  showFacts() {
    if (!this.first) return;
    const parts = [`${this.tokens.length} tokens`];
    const seconds = (this.last - this.first) / 1000;
    if (seconds > 0) parts.push(`${((this.tokens.length - this.tokensAtFirst) / seconds).toFixed(1)} tokens/s`);
    parts.push(`first token after ${((this.first - this.start) / 1000).toFixed(2)} s`);
    const versions = [...new Set(this.tokens.map(token => token.version))];
    parts.push(`weight version ${versions.join(", ")}`);
    if (this.finish) parts.push(this.finish);
    this.facts.textContent = parts.join(" · ");
  }

  stopped() {
    this.finish ||= "stopped";
    this.showFacts();
    if (!this.first) this.facts.textContent = "stopped";
  }

  failed(error) {
    const said = element("p", "bad", error.message);
    said.setAttribute("role", "alert");
    this.node.append(said);
  }

  message() { // of the conversation, as the server takes it
    const calls = this.calls.map(call => ({
      id: call.id, type: "function", function: {name: call.name, arguments: call.arguments},
    }));
    return {role: "assistant", content: this.content, ...(this.reasoning && {reasoning_content: this.reasoning}),
      ...(calls.length && {tool_calls: calls})};
  }

  results() {
    return this.calls.map(({id, result}) => ({role: "tool", tool_call_id: id, content: result.value}));
  }

  close() { // its results have been sent
    for (const {result} of this.calls) result.readOnly = true;
  }
}

function indented(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 1);
  } catch {
    return json; // not whole yet
  }
}
