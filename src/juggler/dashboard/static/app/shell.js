// What is around every view: navigation, lock, theme, the state of the stream, the key, notes in passing.
import { act, call, dismiss, loginNeeded, said, toasts } from './api.js';
import { duration, plural, time } from './format.js';
import { html, render, signal, useEffect, useRef, useSignal } from './html.js';
import { Icon, Notice, prose } from './parts.js';
import { boot, connect, listeners, meta, now, stream } from './store.js';
import { link, route, VIEWS } from './views.js';

function Shell() {
  return html`
    <a class="skip" href="#view-title" onClick=${skip}>Skip to the content</a>
    <${Top} />
    <${Banners} />
    <main id="main">${loginNeeded.value ? html`<${Login} />` : html`<${Stage} />`}</main>
    <${Foot} />
    <${Toasts} />
    <${Patterns} />
    <div class="unseen" role="status" aria-live="polite">${said}</div>
  `;
}

function skip(event) {
  event.preventDefault(); // the address names the view, and stays
  document.getElementById('view-title')?.focus();
}

function Top() {
  return html`<header class="top">
    <a class="brand" href=${link('board')}><img src="icon.svg" alt="" width="24" height="24" /><span>Model Juggler</span></a>
    <nav aria-label="Views"><ul>
      ${VIEWS.map((one) => html`<li key=${one.id}><${Tab} view=${one} /></li>`)}
    </ul></nav>
    <div class="switches"><${Live} /><${Lock} /><${Theme} /></div>
  </header>`;
}

function Tab({ view }) {
  const self = useRef(null);
  const here = route.value.view === view.id;
  const count = view.count?.() ?? 0;
  useEffect(() => {
    // Not scrollIntoView: that would also move the place from which Tab goes on.
    const nav = self.current.closest('nav');
    if (here) nav.scrollLeft = self.current.offsetLeft - nav.offsetLeft - nav.clientWidth / 3;
  }, [here, boot.value]); // the first snapshot brings numbers, which need room
  return html`<a ref=${self} href=${link(view.id)} aria-current=${here ? 'page' : undefined}>
    ${view.title}${count > 0 && html` <span class="count">${count}</span>`}
  </a>`;
}

const STREAM = {
  connecting: ['draining', 'Connecting', 'idle'],
  live: ['ready', 'Live', 'ok'],
  lost: ['failed', 'No connection', 'bad'],
};

function Live() {
  const [icon, word, tone] = STREAM[stream.value];
  return html`<span class="live tone-${tone}" title="Whether this page hears from the juggler"><${Icon} name=${icon} /><span>${word}</span></span>`;
}

function Lock() {
  const on = Boolean(meta.value?.locked);
  const flip = () => act(on ? 'Allow swaps' : 'Lock', () => call(on ? 'DELETE' : 'PUT', 'lock'));
  return html`<button type="button" role="switch" aria-checked=${String(on)} class="lock" onClick=${flip}
    title=${on ? 'Swaps are forbidden now. Allow them again' : 'Do not swap anything now'}>
    <${Icon} name=${on ? 'lock' : 'unlock'} /><span>${on ? 'Locked' : 'Lock'}</span>
  </button>`;
}

// `early.js` applies the stored choice before the first paint.
const THEMES = { auto: 'as the system', light: 'light', dark: 'dark' };
const theme = signal(document.documentElement.dataset.theme ?? 'auto');

function choose(choice) {
  theme.value = choice;
  if (choice === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = choice;
  try {
    localStorage.setItem('juggler.theme', choice);
  } catch { /* storage is forbidden: it lasts as long as the page */ }
}

function Theme() {
  return html`<div class="choice icons" role="group" aria-label="Theme">
    ${Object.entries(THEMES).map(([one, word]) => html`<button key=${one} type="button" aria-pressed=${String(theme.value === one)}
      aria-label=${`Theme: ${word}`} title=${`Theme: ${word}`} onClick=${() => choose(one)}>
      <${Icon} name=${one} /></button>`)}
  </div>`;
}

function Banners() {
  const lock = meta.value?.locked;
  const lost = stream.value === 'lost' && !loginNeeded.value;
  if (!lock && !lost && !meta.value?.shutting_down) return null;
  return html`<section class="banners" aria-label="What matters now">
    ${lost && html`<div class="banner tone-bad">
      <${Icon} name="failed" /><p><strong>Connection lost.</strong> What you see is
      ${now.value ? ` from ${time(now.value)}` : ' nothing yet'}, and nothing is counted on. This page tries again by itself.</p>
      <button type="button" class="quiet" onClick=${connect}>Try now</button></div>`}
    ${lock && html`<div class="banner tone-warn"><${Icon} name="lock" />
      <p><strong>Locked${lock.by ? html` by <bdi>${lock.by}</bdi>` : ''}${lock.since_at ? `, since ${time(lock.since_at)}` : ''}.</strong> Nothing is
      loaded or unloaded to make room. Requests for what is loaded are served.</p></div>`}
    ${meta.value?.shutting_down && html`<div class="banner tone-warn"><${Icon} name="draining" />
      <p><strong>Shutting down.</strong> What runs may end; nothing new is taken.</p></div>`}
  </section>`;
}

// The view that the address names, loaded when it is first asked for.
function Stage() {
  const shown = useSignal(null); // { id, View } or { id, failed }
  const entered = useRef('');
  const { view: id } = route.value;
  useEffect(() => {
    const view = VIEWS.find((one) => one.id === id);
    let current = true;
    document.title = `${view.title} · Model Juggler`;
    view.load().then(
      (module) => current && (shown.value = { id, View: module.default }),
      () => current && (shown.value = { id, failed: true }),
    );
    return () => { current = false; };
  }, [id]);
  const ready = shown.value?.id === id;
  useEffect(() => {
    if (!ready) return;
    // Not on the first view: whoever opens the page begins at its top.
    if (entered.current && entered.current !== id) {
      window.scrollTo(0, 0);
      document.getElementById('view-title')?.focus();
    }
    entered.current = id;
  }, [ready, id]);
  if (ready && shown.value.failed) {
    return html`<${Notice} tone="bad" title="This view could not be fetched.">
      See whether the juggler still runs, then <a href="" onClick=${() => location.reload()}>load the page again</a>.<//>`;
  }
  if (!ready || (meta.value === null && stream.value !== 'lost')) return html`<p class="loading">Waiting for the juggler…</p>`;
  const { View } = shown.value;
  return html`<div class="view view-${id}" data-stale=${stream.value === 'lost' ? '' : undefined}><${View} route=${route.value} /></div>`;
}

function Login() {
  const field = useRef(null);
  const refused = useSignal('');
  useEffect(() => field.current.focus(), []);
  const submit = async (event) => {
    event.preventDefault();
    refused.value = '';
    try {
      await call('POST', 'login', { key: field.current.value });
    } catch (error) {
      refused.value = error.status === 401 || error.status === 403 ? 'That is not the key.' : error.message;
      field.current.select();
      return;
    }
    loginNeeded.value = false;
    connect();
  };
  return html`<form class="login" onSubmit=${submit}>
    <h1 id="view-title" tabindex="-1">The key, please</h1>
    <p>This juggler asks for the key that its configuration gives as <code>control.key</code>.</p>
    <label for="key">Key</label>
    <input id="key" ref=${field} type="password" autocomplete="current-password" required
      aria-describedby="refused" aria-invalid=${refused.value ? 'true' : undefined} />
    <p id="refused" class="refused" role="alert">${refused}</p>
    <button type="submit" class="main">Log in</button>
  </form>`;
}

function Foot() {
  const state = meta.value;
  if (!state) return null;
  const addresses = listeners.all.value.flatMap((one) => one.addresses);
  const connections = listeners.all.value.reduce((sum, one) => sum + (one.connections ?? 0), 0);
  return html`<footer class="foot">
    <span>Model Juggler ${state.version}</span>
    <span>up for ${duration(now.value - state.started_at)}</span>
    <span>${plural(connections, 'connection')} on ${addresses.join(', ') || 'no listener'}</span>
  </footer>`;
}

function Toasts() {
  return html`<div class="toasts" role="alert" aria-live="assertive" aria-atomic="false">
    ${toasts.value.map((one) => html`<div key=${one.id} class="toast tone-${one.tone}">
      <${Icon} name=${one.tone === 'bad' ? 'failed' : 'ready'} />
      <div><strong>${one.title}</strong><p>${prose(one.text)}</p>${one.hint && html`<p class="note">${prose(one.hint)}</p>`}</div>
      <button type="button" class="quiet bare" aria-label="Dismiss" onClick=${() => dismiss(one.id)}><${Icon} name="cross" /></button>
    </div>`)}
  </div>`;
}

// Fillings that bars and lanes lay over a colour.
function Patterns() {
  const stripes = (id, turn) => html`<pattern id=${id} width="7" height="7" patternUnits="userSpaceOnUse" patternTransform=${`rotate(${turn})`}>
    <rect class="cut" width="3" height="7" /></pattern>`;
  return html`<svg class="defs" width="0" height="0" aria-hidden="true" focusable="false"><defs>
    ${stripes('hatched', 45)}${stripes('leaving', -45)}
    <pattern id="dotted" width="6" height="6" patternUnits="userSpaceOnUse"><circle class="cut" cx="3" cy="3" r="1.5" /></pattern>
    <pattern id="crossed" width="8" height="8" patternUnits="userSpaceOnUse"><path class="cut-line" d="M0 0l8 8M8 0L0 8" /></pattern>
  </defs></svg>`;
}

connect();
const root = document.getElementById('app');
root.replaceChildren();
render(html`<${Shell} />`, root);
