// What the page asks of a server; `base` is the path of its endpoints, relative to the page.

function headers(key) {
  return key ? {Authorization: `Bearer ${key}`} : {};
}

async function checked(response) { // raises Error with the server's message
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Error(body?.error?.message ?? `the server answered ${response.status}`);
}

export async function getJson(path, key = "") {
  return (await checked(await fetch(path, {headers: headers(key)}))).json();
}

// The chunks of a chat completion. Raises Error with the server's message, AbortError where `signal` ends it.
export async function* chunksOf(base, body, key, signal) {
  const response = await checked(await fetch(`${base}v1/chat/completions`, {
    method: "POST", body: JSON.stringify(body), signal,
    headers: {"Content-Type": "application/json", ...headers(key)},
  }));
  for await (const data of eventsOf(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    yield chunk;
  }
  throw new Error("the stream ended before the answer did");
}

async function* eventsOf(body) { // the data of server-sent events
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let left = ""; ;) {
      const {done, value} = await reader.read();
      if (done) return;
      const events = (left + value).split("\n\n");
      left = events.pop();
      for (const event of events) yield event.replace(/^data: /, "");
    }
  } finally {
    reader.cancel().catch(() => {}); // also of a stream that has failed
  }
}

export async function metricsOf(base) { // {name without ling_: value}, of the samples without labels
  const text = await (await checked(await fetch(`${base}metrics`))).text();
  return Object.fromEntries([...text.matchAll(/^ling_(\w+) (\S+)$/gm)].map(([, name, value]) => [name, Number(value)]));
}
