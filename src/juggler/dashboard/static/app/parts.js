// Parts that views are made of. See README.md.
import { act } from './api.js';
import { dateTime, duration, time } from './format.js';
import { html, useLayoutEffect, useRef, useSignal } from './html.js';
import { now, stateOf } from './store.js';

// 16 by 16, in the colour of the text around them.
const LINES = {
  stopped: 'M4 4h8v8H4z',
  loading: 'M8 2v8M4.7 6.7 8 10l3.3-3.3M3 13.5h10',
  unloading: 'M8 10V2M4.7 5.3 8 2l3.3 3.3M3 13.5h10',
  attaching: 'M6.5 9.5l3-3M7.5 4.5 9 3a2.8 2.8 0 0 1 4 4l-1.5 1.5M8.5 11.5 7 13a2.8 2.8 0 0 1-4-4l1.5-1.5',
  ready: 'M14 8A6 6 0 1 1 2 8a6 6 0 0 1 12 0zM5.2 8.2l2 2 3.6-4.2',
  draining: 'M4 2h8M4 14h8M5 2v2.5L8 8l3-3.5V2M5 14v-2.5L8 8l3 3.5V14',
  unloaded: 'M13.5 9.5A6 6 0 1 1 6.5 2.5a4.8 4.8 0 0 0 7 7z',
  failed: 'M8 2 15 14H1zM8 6.5v3.5M8 12v.01',
  down: 'M14 8A6 6 0 1 1 2 8a6 6 0 0 1 12 0zM4 4l8 8',
  pin: 'M6 2h4l-.5 4.5L12 9H4l2.5-2.5zM8 9v5.5',
  logs: 'M3 3.5h10M3 6.5h7M3 9.5h10M3 12.5h5',
  open: 'M9 2.5h4.5V7M13.5 2.5 7.5 8.5M12 9.5v4H2.5V4h4',
  lock: 'M3.5 7.5h9v6.5h-9zM5.5 7.5V5a2.5 2.5 0 0 1 5 0v2.5',
  unlock: 'M3.5 7.5h9v6.5h-9zM5.5 7.5V5a2.5 2.5 0 0 1 4.8-1',
  light: 'M11 8a3 3 0 1 1-6 0 3 3 0 0 1 6 0zM8 1v1.5M8 13.5V15M1 8h1.5M13.5 8H15M3 3l1 1M12 12l1 1M13 3l-1 1M4 12l-1 1',
  dark: 'M13.5 9.5A6 6 0 1 1 6.5 2.5a4.8 4.8 0 0 0 7 7z',
  cross: 'M4 4l8 8M12 4l-8 8',
  front: 'M3 2.5h10M8 14V5.5M4.7 8.8 8 5.5l3.3 3.3',
  note: 'M14 8A6 6 0 1 1 2 8a6 6 0 0 1 12 0zM8 7.5V11M8 5v.01',
  empty: 'M2 9.5h3.5l1 2h3l1-2H14M2 9.5 4 3h8l2 6.5V13H2z',
};
const FILLED = {
  busy: 'M8 1.25a6.75 6.75 0 1 0 0 13.5a6.75 6.75 0 0 0 0-13.5zM6.5 5l4.5 3-4.5 3z',
  auto: 'M8 1.25a6.75 6.75 0 1 0 0 13.5a6.75 6.75 0 0 0 0-13.5zM8 2.75v10.5a5.25 5.25 0 0 1 0-10.5z',
};

// Words of the juggler for people: what stands in backticks is a word of a configuration or a command.
export const prose = (text) => text.split(/`([^`'\n]+)`/).map((part, index) => (index % 2 ? html`<code>${part}</code>` : part));

export function Icon({ name, class: more = '' }) {
  const filled = FILLED[name];
  return html`<svg class="icon ${more}" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true" focusable="false">
    ${filled
      ? html`<path d=${filled} fill="currentColor" fill-rule="evenodd" />`
      : html`<path d=${LINES[name]} fill="none" stroke="currentColor" stroke-width="1.5" stroke-linecap="round" stroke-linejoin="round" />`}
  </svg>`;
}

export function Head({ title, note, children }) {
  return html`<header class="head">
    <h1 id="view-title" tabindex="-1">${title}</h1>
    ${note && html`<p class="note">${note}</p>`}
    <div class="tools">${children}</div>
  </header>`;
}

export const Name = ({ children }) => html`<bdi class="name">${children}</bdi>`;

export function State({ state }) {
  const { word, icon, tone, meaning } = stateOf(state);
  return html`<span class="state tone-${tone}" title=${meaning}><${Icon} name=${icon} />${word}</span>`;
}

export const Swatch = ({ hue }) => html`<span class="swatch hue-${hue}" aria-hidden="true"></span>`;

// Where it makes no sense (`off` says why), it keeps its place and the focus, but does nothing.
export function Action({ what, label, run, icon, bare, main, off, pressed }) {
  const busy = useSignal(false);
  const click = async () => {
    if (off || busy.peek()) return;
    busy.value = true;
    try {
      await act(what, run);
    } finally {
      busy.value = false;
    }
  };
  return html`<button type="button" class="${main ? 'main' : 'quiet'} ${bare ? 'bare' : ''}" onClick=${click}
    aria-label=${what} title=${off || what} aria-disabled=${off || busy.value ? 'true' : undefined}
    aria-busy=${busy.value ? 'true' : undefined} aria-pressed=${pressed === undefined ? undefined : String(pressed)}>
    ${icon && html`<${Icon} name=${icon} />`}${!bare && html`<span>${label}</span>`}
  </button>`;
}

export function useWidth(ref) {
  const width = useSignal(0);
  useLayoutEffect(() => {
    width.value = ref.current.clientWidth;
    const watch = new ResizeObserver(() => { width.value = ref.current?.clientWidth ?? 0; });
    watch.observe(ref.current);
    return () => watch.disconnect();
  }, []);
  return width.value;
}

export function Ago({ at }) {
  if (at == null) return html`<span class="faint">never</span>`;
  const ago = now.value - at;
  return html`<time title=${dateTime(at)}>${ago < 5 ? 'just now' : `${duration(ago)} ago`}</time>`;
}

export const At = ({ at }) => html`<time title=${dateTime(at)}>${time(at)}</time>`;

export function Choice({ label, options, value, onPick }) {
  return html`<div class="choice" role="group" aria-label=${label}>
    ${options.map(([id, text]) => html`<button key=${id} type="button" aria-pressed=${String(id === value)}
      onClick=${() => onPick(id)}>${text}</button>`)}
  </div>`;
}

export const Pick = ({ label, options, value, onPick }) => html`<label class="field"><span>${label}</span>
  <select value=${value} onChange=${(event) => onPick(event.target.value)}>${options.map(([id, text]) => html`<option key=${id} value=${id} selected=${id === value}>${text}</option>`)}</select></label>`;

export const Empty = ({ title, children }) => html`<div class="empty"><${Icon} name="empty" /><p><strong>${title}</strong></p><p>${children}</p></div>`;

export const Notice = ({ tone, title, children }) => html`<div class="notice tone-${tone}">
  <${Icon} name=${tone === 'info' ? 'note' : 'failed'} /><div><strong>${title}</strong> ${children}</div></div>`;

// The roles are said because a table that is laid out as cards is no table to a browser.
export function Table({ label, columns, class: more = '', children }) {
  return html`<table role="table" aria-label=${label} class="cards ${more}">
    <thead role="rowgroup"><tr role="row">
      ${columns.map(([text, kind]) => html`<th key=${text} role="columnheader" scope="col" class=${kind}>${text}</th>`)}
    </tr></thead>
    ${children}
  </table>`;
}

export const Cell = ({ label, class: more = '', children, ...rest }) => html`<td role="cell" class=${more} data-label=${label} ...${rest}>${children}</td>`;

// When it goes while it has the focus, the view's title gets it.
export function Row({ class: more, children }) {
  const self = useRef(null);
  useLayoutEffect(() => {
    const row = self.current;
    return () => {
      if (row?.contains(document.activeElement)) document.getElementById('view-title')?.focus();
    };
  }, []);
  return html`<tr ref=${self} role="row" class=${more}>${children}</tr>`;
}
