// The figures of /metrics, read while their fold is open.
import {element} from "./answer.js";
import {metricsOf} from "./server.js";

const POLL = 2000; // ms

function mean(now, name, digits) {
  const count = now[`${name}_count`];
  return count ? `${(1000 * now[`${name}_sum`] / count).toFixed(digits)} ms` : "–";
}

function rows(now, before) { // [name, value] of two readings, the earlier one maybe missing
  const seconds = before && (now.at - before.at) / 1000;
  const rate = before ? (now.generated_tokens_total - before.generated_tokens_total) / seconds : 0;
  return [
    ["weight version", now.weight_version],
    ["slots in use", `${now.slots_in_use} of ${now.slots}`],
    ["answers under way or waiting", now.pending],
    ["tokens a second now", rate.toFixed(1)],
    ["tokens of answers", now.generated_tokens_total],
    ["tokens of prompts", now.prompt_tokens_total],
    ["of these from the cache", now.cached_tokens_total],
    ["first token, mean", mean(now, "first_token_seconds", 0)],
    ["between tokens, mean", mean(now, "token_seconds", 1)],
  ];
}

function table(name, found) {
  return element("table", "", element("caption", "", name),
    ...found.map(([what, value]) => element("tr", "", element("th", "", what), element("td", "", String(value)))));
}

// Shows the statistics of the models in `place`, which stands in a <details>.
export function showStatistics(place, models) {
  const fold = place.closest("details"), before = new Map();
  let timer = 0;
  async function show() {
    clearTimeout(timer);
    if (!fold.open) return;
    if (!document.hidden) {
      try {
        const tables = [];
        for (const {base, name} of models()) {
          const now = {...await metricsOf(base), at: performance.now()};
          tables.push(table(name, rows(now, before.get(base))));
          before.set(base, now);
        }
        place.replaceChildren(...tables);
      } catch {
        place.replaceChildren("the server does not answer");
      }
    }
    timer = setTimeout(show, POLL);
  }
  fold.addEventListener("toggle", show);
}
