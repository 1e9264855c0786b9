// What this page knows of the juggler: signals, fed by one stream of events. See README.md.
import { announce, API, get, loginNeeded } from './api.js';
import { batch, computed, effect, signal } from './html.js';

// States of an instance: word, icon, tone, and how bars and lanes draw it.
const STATES = {
  stopped: ['Stopped', 'stopped', 'idle', 'none', 'Holds no memory; the next request starts it'],
  starting: ['Starting', 'loading', 'info', 'hatched', 'The process is being started and loads its model'],
  attaching: ['Attaching', 'attaching', 'info', 'hatched', 'A server that runs already is being asked'],
  loading: ['Loading', 'loading', 'info', 'hatched', 'Its model is being loaded'],
  waking: ['Waking', 'loading', 'info', 'hatched', 'The process runs; its model is being loaded again'],
  ready: ['Ready', 'ready', 'ok', 'idle', 'Loaded, with nothing to do'],
  busy: ['Busy', 'busy', 'ok', 'full', 'Loaded, and at work'],
  draining: ['Draining', 'draining', 'warn', 'leaving', 'Takes nothing new; what runs may end'],
  unloading: ['Unloading', 'unloading', 'warn', 'leaving', 'Gives its memory back'],
  stopping: ['Stopping', 'unloading', 'warn', 'leaving', 'The process is being ended'],
  unloaded: ['Unloaded', 'unloaded', 'idle', 'dotted', 'The process runs, but holds next to no memory'],
  failed: ['Failed', 'failed', 'bad', 'crossed', 'It did not start, or it died'],
  down: ['Down', 'down', 'bad', 'crossed', 'A server that others run; it is not there now'],
};

export function stateOf(state) {
  const [word, icon, tone, drawn, meaning] = STATES[state] ?? [`${state}`, 'stopped', 'idle', 'idle', ''];
  return { word, icon, tone, drawn, meaning };
}
export const isComing = (state) => stateOf(state).drawn === 'hatched';
export const isLeaving = (state) => stateOf(state).drawn === 'leaving';
export const isUp = (state) => state === 'ready' || state === 'busy';

// The juggler's clock. It stands while the stream is down: nothing is counted that nobody vouches for.
export const now = signal(0);
let clock = null;

function setClock(at) {
  if (!clock) now.value = at;
  clock = { at, mark: performance.now() };
}

setInterval(() => {
  if (clock) now.value = clock.at + (performance.now() - clock.mark) / 1000;
  // A stream can be dead without knowing it.
  if (!document.hidden && performance.now() - heardAt > SILENT_MS && !loginNeeded.peek()) connect();
}, 1000);

class Collection {
  constructor(name, key) {
    Object.assign(this, { name, key, keys: signal([]), items: new Map() });
    this.all = computed(() => this.keys.value.map((one) => this.items.get(one).value));
  }

  find(key) {
    void this.keys.value;
    return this.items.get(key)?.value;
  }

  replace(items, at) {
    this.items = new Map();
    this.keys.value = [];
    this.merge(items, at);
  }

  merge(items, at) {
    const fresh = [];
    for (const item of items) {
      const key = item[this.key];
      const known = this.items.get(key);
      item.seen_at = at;
      if (known) {
        if (this === instances && known.peek().state !== item.state) announce(`${item.name}: ${stateOf(item.state).word}`);
        known.value = item;
      } else {
        this.items.set(key, signal(item));
        fresh.push(key);
      }
    }
    if (fresh.length) this.keys.value = [...this.keys.peek(), ...fresh];
  }

  remove(keys) {
    const gone = keys.filter((key) => this.items.delete(key));
    if (gone.length) this.keys.value = this.keys.peek().filter((key) => this.items.has(key));
  }
}

export const pools = new Collection('pools', 'pool');
export const instances = new Collection('instances', 'instance');
export const endpoints = new Collection('endpoints', 'endpoint');
export const waiting = new Collection('waiting', 'request');
export const running = new Collection('running', 'request');
export const listeners = new Collection('listeners', 'server');
const collections = [pools, instances, endpoints, waiting, running, listeners];

// Of the whole queue; `waiting` lists its first ones.
export const waitingCount = computed(() => instances.all.value.reduce((sum, one) => sum + one.waiting, 0));

export const hueOf = (instance) => (instances.keys.value.indexOf(instance) % 8) + 1;

export const meta = signal(null);
export const boot = computed(() => meta.value?.boot);
export const finished = signal({ requests: [], skipped: 0 });
export const spans = signal(new Map());
export const gaps = signal(0); // counts up when something may have been missed: the past is to be fetched anew
const KEPT = 1000;

export const stream = signal('connecting');
const LOST_AFTER_MS = 2000;
const AGAIN_MS = [1000, 2000, 4000, 8000, 15000];
const SILENT_MS = 25000;

let source = null;
let failures = 0;
let heardAt = 0;
let heardId = '';
let lostTimer = 0;
let againTimer = 0;

export function connect() {
  clearTimeout(againTimer);
  source?.close();
  heardAt = performance.now();
  expectLife();
  source = new EventSource(`${API}events`);
  source.onopen = live;
  source.onerror = down;
  on('snapshot', takeSnapshot);
  on('change', takeChange);
  on('finished', ({ requests, skipped = 0 }) => {
    const known = finished.peek();
    finished.value = {
      requests: [...requests.sort((a, b) => b.ended_at - a.ended_at), ...known.requests].slice(0, KEPT),
      skipped: known.skipped + skipped,
    };
  });
  on('spans', (data) => keep(data.spans));
  on('alive', () => {});
}

function on(name, take) {
  source.addEventListener(name, (event) => {
    const data = JSON.parse(event.data);
    heardAt = performance.now();
    batch(() => {
      if (data.now_at) setClock(data.now_at);
      take(data, event.lastEventId);
    });
    heardId = event.lastEventId;
  });
}

// Its id is that of the last message before it: if this page heard that one, it has missed nothing.
function takeSnapshot(data, id) {
  if (id !== heardId) {
    finished.value = { ...finished.peek(), requests: [] }; // `skipped` only ever grows: the view looks at differences
    spans.value = new Map();
    gaps.value += 1;
  }
  for (const one of collections) {
    one.replace(data[one.name] ?? [], data.now_at);
    delete data[one.name];
  }
  meta.value = data;
}

function takeChange({ now_at: at, removed = {}, ...changed }) {
  for (const one of collections) {
    one.merge(changed[one.name] ?? [], at);
    one.remove(removed[one.name] ?? []);
    delete changed[one.name];
  }
  if (Object.keys(changed).length) meta.value = { ...meta.peek(), ...changed };
}

function keep(items) {
  const next = new Map(spans.peek());
  for (const item of items) next.set(item.span, item);
  for (const old of next.keys()) {
    if (next.size <= KEPT) break;
    next.delete(old);
  }
  spans.value = next;
}

function live() {
  clearTimeout(lostTimer);
  lostTimer = failures = 0;
  heardAt = performance.now();
  if (stream.peek() === 'lost') announce('The connection is back');
  stream.value = 'live';
}

function down() {
  clock = null;
  expectLife();
  // A broken connection is the browser's to mend; an answer that is no stream ends the source.
  if (source.readyState === EventSource.CLOSED) again();
}

function expectLife() {
  if (stream.peek() === 'lost') return;
  lostTimer ||= setTimeout(() => {
    clock = null;
    stream.value = 'lost';
    announce('The connection to the juggler is lost');
  }, LOST_AFTER_MS);
}

async function again() {
  const pause = AGAIN_MS[Math.min(failures++, AGAIN_MS.length - 1)];
  const ended = source;
  await get('status').catch(() => null); // an event source does not say that it was a 401: this call does
  if (source === ended && !loginNeeded.peek()) againTimer = setTimeout(connect, pause);
}

effect(() => {
  if (!loginNeeded.value) return;
  source?.close();
  clearTimeout(lostTimer);
  clearTimeout(againTimer);
  lostTimer = 0;
  clock = null;
  stream.value = 'connecting';
});
