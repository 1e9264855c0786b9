// Makes calls with Node's own fetch or the npm package openai: one JSON object per line in, one per line out.
//
// In:  {id, library, base, method, path, body, stream, retries, limit_ms}; `npm` as the first argument is the package's module.
// Out: {id, began: true} when the head of a stream is there, then {id, outcome: {...}} as libraries.py has it.

import { createInterface } from "node:readline";

const OpenAI = process.argv[2] ? (await import(process.argv[2])).default : null;

function say(message) {
  process.stdout.write(JSON.stringify(message) + "\n");
}

function takeEvent(line, outcome) {
  if (line.startsWith(":")) outcome.comments += 1;
  else if (line.startsWith("data: ")) outcome.events.push(line.slice(6));
  else if (line) outcome.events.push(line);
}

async function withFetch(order, outcome) {
  const headers = { Authorization: "Bearer sk-none" };
  let body;
  if (order.body !== null) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(order.body);
  }
  const answer = await fetch(order.base + order.path, {
    method: order.method, headers, body, signal: AbortSignal.timeout(order.limit_ms),
  });
  outcome.status = answer.status;
  outcome.headers = Object.fromEntries(answer.headers);
  say({ id: order.id, began: true });
  if (order.stream && answer.ok) {
    let rest = "";
    for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
      const lines = (rest + piece).split(/\r?\n/);
      rest = lines.pop();
      lines.forEach((line) => takeEvent(line, outcome));
    }
    takeEvent(rest, outcome);
  } else {
    outcome.body = Buffer.from(await answer.arrayBuffer()).toString("base64");
  }
}

async function withOpenAI(order, outcome) {
  outcome.requests = 0;
  const client = new OpenAI({
    baseURL: `${order.base}/v1`, apiKey: "sk-none", timeout: order.limit_ms, ...(order.retries ? {} : { maxRetries: 0 }),
    fetch: (...words) => { outcome.requests += 1; return fetch(...words); },
  });
  const methods = {
    "/v1/models": () => client.models.list(),
    "/v1/chat/completions": () => client.chat.completions.create(order.body),
    "/v1/completions": () => client.completions.create(order.body),
    "/v1/embeddings": () => client.embeddings.create(order.body),
  };
  const answer = await methods[order.path]();
  say({ id: order.id, began: true });
  if (order.stream) {
    for await (const event of answer) outcome.events.push(JSON.stringify(event));
  } else {
    outcome.body = Buffer.from(JSON.stringify(answer.body ?? answer)).toString("base64");
  }
}

async function perform(order) {
  const outcome = {
    status: null, headers: {}, body: "", events: [], comments: 0, error: "", message: "", requests: 1, seconds: 0,
  };
  const start = performance.now();
  try {
    await (order.library === "fetch" ? withFetch : withOpenAI)(order, outcome);
  } catch (error) {
    outcome.error = error.constructor.name;
    outcome.message = `${error.message}${error.cause ? `: ${error.cause.message}` : ""}`;
    if (typeof error.status === "number") outcome.status = error.status;
    if (error.headers?.entries) outcome.headers = Object.fromEntries(error.headers.entries());
    if (error.error) outcome.body = Buffer.from(JSON.stringify({ error: error.error })).toString("base64");
  }
  outcome.seconds = (performance.now() - start) / 1000;
  say({ id: order.id, outcome });
}

say({ ready: process.version });
for await (const line of createInterface({ input: process.stdin })) perform(JSON.parse(line));
