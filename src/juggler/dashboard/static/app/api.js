// Calls of the control API, and what is said in passing. See README.md.
import { sentence } from './format.js';
import { signal } from './html.js';

// Relative to the page: a proxy may put a prefix in front.
export const API = new URL('api/v1/', document.baseURI).pathname;
const DEADLINE_MS = 15000;

export const loginNeeded = signal(false);

export class ApiError extends Error {
  constructor(status, code, message, hint = null, data = null) {
    super(message);
    Object.assign(this, { status, code, hint, data });
  }
}

export async function call(method, path, body, abort) {
  const options = { method, signal: abort ?? AbortSignal.timeout(DEADLINE_MS) };
  if (body !== undefined) {
    options.headers = { 'Content-Type': 'application/json' };
    options.body = JSON.stringify(body);
  }
  let response;
  let data = null;
  try {
    response = await fetch(API + path, options);
    if (response.headers.get('Content-Type')?.includes('json')) data = await response.json();
  } catch (failure) {
    if (abort?.aborted && abort.reason.name !== 'TimeoutError') throw failure;
    throw new ApiError(0, 'no_answer', 'The juggler does not answer.', 'See whether it still runs.');
  }
  if (response.ok) return data;
  const { status } = response;
  if (status === 401) loginNeeded.value = true;
  const { code = `http_${status}`, message = `The answer was ${status}`, hint } = data?.error ?? {};
  throw new ApiError(status, code, message, hint, data);
}

export const get = (path, abort) => call('GET', path, undefined, abort);
export const endpointPath = (endpoint) => `endpoints/${encodeURIComponent(endpoint)}`;

export async function act(what, work) {
  try {
    return (await work()) ?? {};
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    const { status, code, message, hint } = error;
    if (status !== 401) toast({ tone: 'bad', title: `${what}: not done`, text: `${sentence(message)} (${code})`, hint });
    return null;
  }
}

export const toasts = signal([]);
const MOST = 4;
let last = 0;

export function toast(one) {
  const id = ++last;
  toasts.value = [...toasts.value, { id, ...one }].slice(-MOST);
  setTimeout(() => dismiss(id), one.tone === 'bad' ? 20000 : 5000);
}

export function dismiss(id) {
  toasts.value = toasts.value.filter((one) => one.id !== id);
}

export const said = signal('');
let pending = [];

// What changes in the same moment is said together.
export function announce(text) {
  if (pending.push(text) > 1) return;
  setTimeout(() => {
    said.value = `${pending.slice(-5).join('. ')}.`;
    pending = [];
  }, 400);
}
