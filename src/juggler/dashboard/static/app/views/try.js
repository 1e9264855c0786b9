// Try it: one request to an endpoint, through the queue as anybody's, with the time it takes.
import { API, loginNeeded } from '../api.js';
import { exact, sentence, size } from '../format.js';
import { html, useEffect, useRef, useSignal } from '../html.js';
import { Empty, Head, Notice, Pick, State } from '../parts.js';
import { endpoints, instances, waiting } from '../store.js';

const json = (data) => JSON.stringify(data, null, 2);
const CHAT = ['Chat, streamed', 'POST', '/v1/chat/completions', json({ messages: [{ role: 'user', content: 'Say hello in one sentence.' }], max_tokens: 64, stream: true })];
const IMAGE = ['Text to image', 'POST', '/sdapi/v1/txt2img', json({ prompt: 'a red fox in the snow', steps: 20, width: 512, height: 512 })];
const MODELS = ['List of models', 'GET', '/v1/models', ''];
const RAW = ['Raw request', 'GET', '/', ''];
const TEMPLATES = {
  sdwebui: [IMAGE, RAW],
  demo: [IMAGE, RAW],
  comfyui: [['State of the system', 'GET', '/system_stats', ''], RAW],
  command: [CHAT, IMAGE, RAW],
  ollama: [['Chat, streamed', 'POST', '/v1/chat/completions', json({ model: 'NAME', messages: [{ role: 'user', content: 'Say hello in one sentence.' }], stream: true })], ['List of models', 'GET', '/api/tags', ''], RAW],
};
const templatesOf = (type) => TEMPLATES[type] ?? [CHAT, MODELS, RAW];
const METHODS = ['GET', 'POST', 'PUT', 'PATCH', 'DELETE'];
const SHOWN_CHARS = 200_000;
const IDLE = { phase: 'idle' };

export default function Try({ route }) {
  const all = endpoints.all.value;
  const chosen = useSignal(route.rest[0] ?? '');
  const template = useSignal(0);
  const form = useSignal({ method: 'POST', path: '/', body: '' });
  const trial = useSignal(IDLE);
  const abort = useRef(null);
  const one = all.find((each) => each.endpoint === chosen.value) ?? all[0];
  const templates = templatesOf(one?.type);
  const fill = (index) => {
    const [, method, path, body] = templates[index];
    template.value = index;
    form.value = { method, path, body };
  };
  useEffect(() => { if (one) fill(0); }, [one?.endpoint]);
  useEffect(() => () => abort.current?.abort(), []);
  if (!one) return html`<${Head} title="Try it" /><${Empty} title="No endpoints">The configuration names none.<//>`;

  const set = (name) => (event) => { form.value = { ...form.value, [name]: event.target.value }; };
  const busy = trial.value.phase === 'sent' || trial.value.phase === 'answer';
  const submit = (event) => {
    event.preventDefault();
    if (busy) return;
    abort.current = new AbortController();
    send(one.endpoint, form.peek(), trial, abort.current.signal);
  };
  return html`<${Head} title="Try it" note="One request, through the queue like everybody’s" />
    <div class="try"><form onSubmit=${submit}>
      <div class="fields"><${Pick} label="Endpoint" value=${one.endpoint} options=${all.map((each) => [each.endpoint, each.endpoint])} onPick=${(id) => { chosen.value = id; }} />
        <${Pick} label="Template" value=${String(template.value)} options=${templates.map(([name], index) => [String(index), name])} onPick=${(id) => fill(Number(id))} /></div>
      <div class="fields"><${Pick} label="Method" value=${form.value.method} options=${METHODS.map((name) => [name, name])} onPick=${(method) => { form.value = { ...form.value, method }; }} />
        <label class="field wide"><span>Path</span><input value=${form.value.path} onInput=${set('path')} pattern="/.*" required spellcheck="false" /></label></div>
      ${form.value.method !== 'GET' && html`<label class="field tall"><span>Body</span><textarea rows="12" spellcheck="false" value=${form.value.body} onInput=${set('body')}></textarea></label>`}
      <div class="fields"><button type="submit" class="main" aria-disabled=${busy ? 'true' : undefined}>Send</button>
        ${busy && html`<button type="button" onClick=${() => abort.current.abort()}>Cancel</button>`}</div>
    </form>
    <section class="answer" aria-labelledby="answer-title"><h2 id="answer-title">Answer</h2>
      ${trial.value.phase === 'idle' ? html`<p class="note">It is shown here as it comes.</p>` : html`<${Progress} trial=${trial.value} endpoint=${one} /><${Answer} trial=${trial.value} />`}
    </section></div>`;
}

// `trial` becomes { phase: sent|answer|done|failed|cancelled, began, headAt, endAt, status, type, queue, load, text, image, bytes, error }.
async function send(endpoint, { method, path, body }, trial, gone) {
  const began = performance.now();
  const seconds = () => (performance.now() - began) / 1000;
  const tell = (more) => { trial.value = { ...trial.peek(), ...more }; };
  trial.value = { phase: 'sent', began };
  try {
    const response = await fetch(`${API}try/${encodeURIComponent(endpoint)}?${new URLSearchParams({ method, path })}`, {
      method: 'POST', signal: gone, headers: { 'Content-Type': 'application/json' }, ...(method !== 'GET' && { body }),
    });
    if (response.status === 401) loginNeeded.value = true;
    if (!response.ok) {
      const { error } = await response.json().catch(() => ({}));
      tell({ phase: 'failed', endAt: seconds(), error: error ? `${sentence(error.message)} ${error.hint ? sentence(error.hint) : ''}` : `The answer was ${response.status}.` });
      return;
    }
    const said = (name) => response.headers.get(`X-Try-${name}`);
    const number = (name) => (said(name) === null ? null : Number(said(name)));
    const type = said('Type') ?? '';
    tell({ phase: 'answer', headAt: seconds(), status: number('Status'), type, source: said('Source'), queue: number('Queue'), load: number('Load'), bytes: 0, text: '' });
    const isJson = type.includes('json');
    const pieces = []; // of what is looked into when it is complete: a picture, or JSON that may hold one
    const decoder = new TextDecoder();
    const stream = type.includes('event-stream') ? streamed() : null;
    let text = '';
    let bytes = 0;
    for (const reader = response.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      bytes += value.length;
      if (bytes === value.length) tell({ firstAt: seconds() });
      if (type.startsWith('image/')) pieces.push(value);
      else if (stream) text = stream(decoder.decode(value, { stream: true }));
      else {
        const piece = decoder.decode(value, { stream: true });
        if (isJson) pieces.push(piece);
        if (text.length < SHOWN_CHARS) text = (text + piece).slice(0, SHOWN_CHARS);
      }
      tell({ bytes, text });
    }
    const whole = isJson ? pieces.join('') : '';
    const picture = type.startsWith('image/') ? pictureOf(await base64(new Blob(pieces))) : isJson ? pictureIn(whole) : null;
    tell({ phase: 'done', endAt: seconds(), picture, text: picture ? '' : isJson ? pretty(whole) : text });
  } catch (error) {
    if (gone.aborted) tell({ phase: 'cancelled', endAt: seconds() });
    else tell({ phase: 'failed', endAt: seconds(), error: trial.peek().headAt ? 'The answer ended early.' : 'The juggler does not answer.' });
  }
}

// Takes pieces of an event stream; gives the text that its deltas have made so far, or the events as they are.
function streamed() {
  let rest = '';
  let text = '';
  return (piece) => {
    rest += piece;
    if (!piece.includes('\n')) return text;
    const lines = rest.split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith('data:') && line.slice(5).trim() !== '[DONE]' && text.length < SHOWN_CHARS) {
        let data = null;
        try { data = JSON.parse(line.slice(5)); } catch { /* not JSON: shown as it is */ }
        const { delta, text: plain } = data?.choices?.[0] ?? {};
        text += delta ? (delta.reasoning_content ?? '') + (delta.content ?? '') : plain ?? (data?.choices ? '' : `${line.slice(5).trim()}\n`);
      }
    }
    return text;
  };
}

function pretty(text) {
  try { return json(JSON.parse(text)).slice(0, SHOWN_CHARS); } catch { return text.slice(0, SHOWN_CHARS); }
}

// A picture is shown only if it begins as one of three kinds does; nothing else becomes an address.
const MAGIC = [[/^iVBORw0KGgo/, 'png'], [/^\/9j\//, 'jpeg'], [/^UklGR.{7}XRUJQ/, 'webp']];

export function pictureOf(text) {
  const kind = MAGIC.find(([begins]) => begins.test(text))?.[1];
  return kind && /^[A-Za-z0-9+/]+=*$/.test(text) ? `data:image/${kind};base64,${text}` : null;
}

function pictureIn(text) {
  try {
    const data = JSON.parse(text);
    const first = data.images?.[0] ?? data.data?.[0]?.b64_json;
    return typeof first === 'string' ? pictureOf(first.replace(/^data:[^,]*,/, '')) : null;
  } catch { return null; }
}

const base64 = (blob) => new Promise((done) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result.split(',')[1] ?? '');
  reader.readAsDataURL(blob);
});

function Progress({ trial, endpoint }) {
  const clock = useSignal(0);
  const runs = trial.phase === 'sent' || trial.phase === 'answer';
  useEffect(() => {
    if (!runs) return;
    const timer = setInterval(() => { clock.value = (performance.now() - trial.began) / 1000; }, 100);
    return () => clearInterval(timer);
  }, [runs, trial.began]);
  const so = trial.endAt ?? clock.value;
  const instance = instances.find(endpoint.instance);
  const mine = waiting.all.value.find((one) => one.endpoint === endpoint.endpoint && one.client === '127.0.0.1');
  const waited = trial.queue != null ? trial.queue + trial.load : null;
  const figures = [
    ['Waited', waited === null ? (trial.phase === 'sent' && mine ? `${exact(so)} so far` : '-') : `${exact(waited)}${trial.load >= 0.05 ? `, ${exact(trial.load)} of it loading` : ''}`],
    ['First byte after', trial.firstAt ? exact(trial.firstAt) : '-'],
    [runs ? 'So far' : 'Total', exact(so)],
    ['Status', trial.status ? `${trial.status}${trial.source ? ` (${trial.source} by the juggler)` : ''}` : '-'],
    ['Size', trial.bytes == null ? '-' : size(trial.bytes)],
  ];
  return html`<dl class="facts">${figures.map(([what, value]) => html`<div key=${what}><dt>${what}</dt><dd>${value}</dd></div>`)}</dl>
    ${trial.phase === 'sent' && instance && html`<p class="line"><${State} state=${instance.state} />${mine?.why && html`<span class="note"><bdi>${sentence(mine.why)}</bdi></span>`}</p>`}
    <p class="unseen" role="status">${trial.phase === 'done' ? 'The answer is complete' : ''}</p>`;
}

function Answer({ trial }) {
  return html`${trial.phase === 'cancelled' && html`<${Notice} tone="info" title="Cancelled." />`}
    ${trial.error && html`<${Notice} tone="bad" title="It did not work out.">${trial.error}<//>`}
    ${trial.picture && html`<img class="picture" src=${trial.picture} alt="What the endpoint has drawn" />`}
    ${trial.text && html`<pre class="reply" tabindex="0" aria-label="Text of the answer">${trial.text}</pre>`}`;
}
