import {Answer, element} from "./answer.js";
import {chunksOf, getJson} from "./server.js";
import {showStatistics} from "./statistics.js";

const OTHER = "compare/"; // path of the second model's endpoints
const [chat, ask, text, send, stop, form, fold, both, names, statistics] =
  ["chat", "ask", "text", "send", "stop", "form", "settings", "both", "names", "statistics"].map(id => document.getElementById(id));
let models = []; // {base, name, messages, answer: the last one}
let running = null; // AbortController of the answers that come

async function findModels() { // their names need the key, where the server asks for one
  if (!models.length) {
    const {compared} = await getJson("health");
    both.hidden = !compared;
    models = (compared ? ["", OTHER] : [""]).map(base => ({base, name: "", messages: [], answer: null}));
  }
  for (const model of models) model.name ||= (await getJson(`${model.base}v1/models`, form.key.value)).data[0].id;
  names.textContent = models.map(model => model.name).join(" and ");
  document.title = `${names.textContent} · ling_jax`;
}

function settings() { // the fields of a request; raises Error that names a setting
  const fields = {};
  if (form.reasoning_effort.value) fields.reasoning_effort = form.reasoning_effort.value;
  for (const name of ["temperature", "top_p", "max_tokens", "seed"])
    if (form[name].value !== "") fields[name] = Number(form[name].value);
  if (form.tools.value.trim()) {
    try {
      fields.tools = JSON.parse(form.tools.value);
    } catch (error) {
      throw new Error(`tools are no JSON: ${error.message}`);
    }
  }
  return fields;
}

function validSettings() {
  if (form.checkValidity()) return true;
  fold.open = true; // a message needs a field that can be seen
  return form.reportValidity();
}

// Whether the model could not be asked.
async function answerOf(model, added, fields, signal, place) {
  const before = model.messages.length, answer = new Answer(model.name);
  place.append(answer.node);
  scrollDown(true);
  model.messages.push(...added);
  const system = form.system.value.trim();
  const messages = [...(system ? [{role: "system", content: system}] : []), ...model.messages];
  const body = {model: model.name, messages, stream: true, logprobs: true, return_token_ids: true, ...fields};
  let whole = false;
  try {
    for await (const chunk of chunksOf(model.base, body, form.key.value, signal)) {
      const near = nearEnd();
      answer.add(chunk);
      scrollDown(near);
    }
    whole = true;
  } catch (error) {
    if (error.name === "AbortError") answer.stopped(); else answer.failed(error);
    scrollDown(true);
  }
  if (!whole && answer.empty) {
    model.messages.length = before; // as if it had not been asked
    return !answer.finish;
  }
  model.messages.push(answer.message());
  model.answer?.close();
  model.answer = answer;
  return false;
}

async function sendMessage() { // to all models at a time
  if (running || !validSettings()) return;
  const said = text.value.trim(), user = said ? [{role: "user", content: said}] : [];
  const asked = models.slice(0, form.both.checked ? models.length : 1)
    .map(model => [model, [...(model.answer?.results() ?? []), ...user]]).filter(([, added]) => added.length);
  if (!asked.length) return;
  const place = element("div", "answers");
  const turn = element("section", asked.length > 1 ? "turn both" : "turn", place);
  if (said) turn.prepend(element("div", "asked", said));
  chat.append(turn);
  text.value = "";
  const controller = running = new AbortController();
  showRunning();
  try {
    await findModels();
    const fields = settings();
    const failed = await Promise.all(asked.map(([model, added]) =>
      answerOf(model, added, fields, controller.signal, place)));
    if (failed.every(Boolean)) text.value ||= said;
  } catch (error) {
    place.append(element("p", "bad", error.message));
    text.value ||= said;
  }
  if (running === controller) running = null;
  showRunning();
}

function showRunning() {
  send.hidden = Boolean(running);
  stop.hidden = !running;
}

function newChat() {
  running?.abort();
  running = null;
  models = models.map(model => ({...model, messages: [], answer: null}));
  chat.replaceChildren();
  showRunning();
  text.focus();
}

function nearEnd() { return chat.scrollHeight - chat.scrollTop - chat.clientHeight < 60; }

function scrollDown(wanted) { if (wanted) chat.scrollTop = chat.scrollHeight; }

text.addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  sendMessage();
});
ask.addEventListener("submit", event => { event.preventDefault(); sendMessage(); });
form.addEventListener("submit", event => event.preventDefault());
stop.addEventListener("click", () => running?.abort());
document.addEventListener("keydown", event => { if (event.key === "Escape") running?.abort(); });
document.getElementById("new").addEventListener("click", newChat);
if (matchMedia("(max-width: 760px)").matches) fold.open = false;
showStatistics(statistics, () => models);
findModels().catch(error => { names.textContent = error.message; });
