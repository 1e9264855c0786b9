// Requests: where the time of each one went, the newest first; what waiting cost today, and before.
import { get } from '../api.js';
import { dateTime, exact, percent, plural, size, time } from '../format.js';
import { html, useComputed, useEffect, useRef, useSignal } from '../html.js';
import { At, Cell, Choice, Empty, Head, Icon, Name, Notice, Pick, Swatch, Table } from '../parts.js';
import { endpoints, finished, gaps, hueOf, meta } from '../store.js';

const PAGE = 100;
const OUTCOMES = [['', 'Any outcome'], ['ok', 'OK'], ['error', 'Error'], ['refused', 'Refused'], ['client_left', 'Client left'], ['cancelled', 'Cancelled']];
const WORDS = Object.fromEntries(OUTCOMES);
const PHASES = [['queue', 'waited for its turn'], ['evict', 'others gave way'], ['load', 'loading'], ['first', 'until the first byte'], ['stream', 'the rest of the answer']];

export default function Requests() {
  const endpoint = useSignal('');
  const outcome = useSignal('');
  const form = useSignal('chart');
  const fetched = useSignal(null); // { records, more }
  const failure = useSignal('');
  const frozen = useSignal(null); // what is shown while it stands still
  const skipped = useSignal(finished.peek().skipped); // as many were skipped when the list was fetched
  const busy = useSignal(false);
  const newest = useRef(null); // of the calls; what others still bring comes too late

  const fetchPage = async (before) => {
    const query = new URLSearchParams({ limit: PAGE, ...(before && { before }), ...(endpoint.peek() && { endpoint: endpoint.peek() }), ...(outcome.peek() && { outcome: outcome.peek() }) });
    const seen = finished.peek().skipped;
    const mine = {};
    newest.current = mine;
    busy.value = true;
    try {
      const data = await get(`requests?${query}`);
      if (newest.current !== mine) return;
      fetched.value = { records: before ? [...fetched.peek().records, ...data.requests] : data.requests, more: data.more };
      if (!before) skipped.value = seen;
      failure.value = '';
    } catch (error) {
      if (newest.current === mine) failure.value = error.message;
    } finally {
      if (newest.current === mine) busy.value = false;
    }
  };
  useEffect(() => { fetchPage(); }, [endpoint.value, outcome.value, gaps.value]);
  const filter = (which) => (id) => {
    which.value = id;
    fetched.value = frozen.value = null;
  };

  const all = useComputed(() => {
    const fits = (one) => (!endpoint.value || one.endpoint === endpoint.value) && (!outcome.value || one.outcome === outcome.value);
    const known = new Map([...finished.value.requests.filter(fits), ...(fetched.value?.records ?? [])].map((one) => [one.record, one]));
    return [...known.values()].sort((a, b) => b.record - a.record);
  });
  const shown = frozen.value === null ? all.value : all.value.filter((one) => one.record <= frozen.value);
  const newer = all.value.length - shown.length;
  const missed = finished.value.skipped - skipped.value;
  return html`
    <${Head} title="Requests">
      <${Pick} label="Endpoint" value=${endpoint.value} onPick=${filter(endpoint)}
        options=${[['', 'All endpoints'], ...endpoints.all.value.map((one) => [one.endpoint, one.endpoint])]} />
      <${Pick} label="Outcome" value=${outcome.value} onPick=${filter(outcome)} options=${OUTCOMES} />
      <button type="button" aria-pressed=${String(frozen.value !== null)} onClick=${() => { frozen.value = frozen.value === null ? all.value[0]?.record ?? 0 : null; }}>Pause</button>
      <${Choice} label="Shown as" options=${[['chart', 'Waterfall'], ['table', 'Table']]} value=${form.value} onPick=${(id) => { form.value = id; }} />
    <//>
    <${Sums} />
    ${failure.value && html`<${Notice} tone="bad" title="The past could not be fetched.">${failure.value}<//>`}
    ${missed > 0 && html`<${Notice} tone="info" title=${`${plural(missed, 'request')} ended too fast to be told live.`}>
      <button type="button" onClick=${() => fetchPage()}>Fetch them</button><//>`}
    ${newer > 0 && html`<p class="note">${plural(newer, 'request')} since the pause</p>`}
    ${shown.length === 0
      ? fetched.value && html`<${Empty} title="No requests">What has ended is listed here, with where its time went.<//>`
      : form.value === 'chart' ? html`<${Legend} /><${Waterfall} rows=${shown} />` : html`<${List} rows=${shown} />`}
    ${fetched.value?.more && html`<p class="more"><button type="button" aria-busy=${busy.value ? 'true' : undefined}
      onClick=${() => busy.peek() || fetchPage(fetched.peek().records.at(-1).record)}>Older requests</button></p>`}
    <${Days} />`;
}

const shareOf = ({ total_s: total }, part) => (total > 0 ? percent(part / total) : '-');

function Sums() {
  const today = meta.value?.today;
  if (!today?.requests) return null;
  return html`<ul class="figures sums">
    <li><strong>${today.requests.toLocaleString()}</strong> ${today.requests === 1 ? 'request' : 'requests'} today</li>
    <li title="Of the time that all requests took together.">waiting for loads: <strong>${shareOf(today, today.loading_s)}</strong> of all request time</li>
    <li title="Loads included; the rest was for others to finish.">waiting at all: <strong>${shareOf(today, today.waited_s)}</strong></li>
  </ul>`;
}

// Seconds of each phase; what was never let in only waited.
function phases(one) {
  const evict = Math.min(one.evicted_s ?? 0, one.queue_s);
  const first = one.granted_at ? one.first_byte_s ?? one.ended_at - one.granted_at : 0;
  const stream = one.granted_at && one.first_byte_s != null ? Math.max(0, one.ended_at - one.granted_at - first) : 0;
  return { queue: one.queue_s - evict, evict, load: one.load_s, first, stream };
}
// Seconds, and where they are few, thousandths of them.
const brief = (seconds) => (seconds < 0.1 ? `${Math.round(seconds * 1000)} ms` : exact(seconds));
const lasted = (one) => Math.max(0, one.ended_at - one.arrived_at);

const Legend = () => html`<ul class="legend above" aria-label="Legend">${PHASES.map(([id, text]) => html`<li key=${id}>
  <svg width="16" height="10" aria-hidden="true" focusable="false"><g class="phase ${id}"><rect width="16" height="10" /><rect class="over" width="16" height="10" /></g></svg>${text}</li>`)}</ul>`;

function Waterfall({ rows }) {
  const open = useSignal(null);
  // One that took far longer than the others does not make them all invisible: it is cut.
  const sorted = rows.map(lasted).sort((a, b) => a - b);
  const scale = Math.min(sorted.at(-1), 2 * sorted[Math.floor(sorted.length * 0.95)]) || 1;
  const go = (event) => {
    const step = { ArrowDown: 'nextElementSibling', ArrowUp: 'previousElementSibling' }[event.key];
    const next = step && event.target.closest('li')[step]?.querySelector('button');
    if (!next) return;
    event.preventDefault();
    next.focus();
  };
  return html`<ul class="falls" aria-label="Requests, the newest first" onKeyDown=${go}>
    ${rows.map((one) => html`<li key=${one.record}><${Fall} one=${one} scale=${scale} open=${open} /></li>`)}</ul>`;
}

function Fall({ one, scale, open }) {
  const isOpen = open.value === one.record;
  let x = 0;
  const parts = phases(one);
  return html`<button type="button" class="fall quiet" aria-expanded=${String(isOpen)} onClick=${() => { open.value = isOpen ? null : one.record; }}>
      <${At} at=${one.ended_at} /><span class="who"><${Swatch} hue=${hueOf(one.instance)} /><bdi>${one.endpoint.replace(/^.*?\//, '')}</bdi></span>
      <svg width="100%" height="16" aria-hidden="true" focusable="false">${PHASES.map(([id]) => {
        const from = x;
        x += (parts[id] / scale) * 100;
        return parts[id] > 0 && html`<svg key=${id} class="phase ${id}" x="${from}%" width="${parts[id] / scale * 100}%" height="16"><rect width="100%" height="16" /><rect class="over" width="100%" height="16" /></svg>`;
      })}${lasted(one) > scale && html`<svg x="100%" overflow="visible"><path class="beyond" d="M-14 0h9l5 8l-5 8h-9l5-8z" /></svg>`}</svg>
      <span class="took">${brief(lasted(one))}</span><${Outcome} one=${one} />
    </button>
    ${isOpen && html`<${Details} one=${one} parts=${parts} />`}`;
}

function Outcome({ one }) {
  const bad = one.outcome === 'error' || one.outcome === 'refused' || one.status >= 400;
  return html`<span class="state tone-${bad ? 'bad' : one.outcome === 'ok' ? 'ok' : 'warn'}"><${Icon} name=${bad ? 'failed' : one.outcome === 'ok' ? 'ready' : 'draining'} />
    ${one.outcome === 'ok' ? one.status ?? 'OK' : WORDS[one.outcome] ?? one.outcome}</span>`;
}

function Details({ one, parts }) {
  const facts = [
    ['Request', html`<bdi class="target">${one.method} ${one.target}</bdi>`], ['From', html`<bdi>${one.client}</bdi>`],
    ['Arrived', dateTime(one.arrived_at)], ['Ended', time(one.ended_at)],
    ...PHASES.filter(([id]) => parts[id] > 0.0005).map(([id, text]) => [text, brief(parts[id])]),
    ['Status', one.status ?? 'none was sent'], one.error && ['Error', html`<bdi>${one.error}</bdi>`],
    ['Sent to it', size(one.bytes_up)], ['Sent back', size(one.bytes_down)], ['Treated as', one.class],
  ].filter(Boolean);
  return html`<dl class="facts">${facts.map(([what, value]) => html`<div key=${what}><dt>${what}</dt><dd>${value}</dd></div>`)}</dl>`;
}

const COLUMNS = [['Ended'], ['Endpoint'], ['Request'], ['Outcome'], ['Waited', 'number'], ['Loading', 'number'], ['First byte', 'number'], ['Took', 'number'], ['Sent back', 'number']];

const List = ({ rows }) => html`<${Table} label="Requests" columns=${COLUMNS}><tbody role="rowgroup">
  ${rows.map((one) => html`<tr key=${one.record} role="row">
    <${Cell} label="Ended"><${At} at=${one.ended_at} /><//><${Cell} label="Endpoint"><${Swatch} hue=${hueOf(one.instance)} /><${Name}>${one.endpoint}<//><//>
    <${Cell} label="Request" class="wide"><bdi class="target">${one.method} ${one.target}</bdi><span class="note">from <bdi>${one.client}</bdi></span><//>
    <${Cell} label="Outcome"><${Outcome} one=${one} />${one.error && html`<span class="note"><bdi>${one.error}</bdi></span>`}<//>
    <${Cell} label="Waited" class="number">${brief(one.queue_s)}<//><${Cell} label="Loading" class="number">${brief(one.load_s)}<//>
    <${Cell} label="First byte" class="number">${one.first_byte_s == null ? '-' : brief(one.first_byte_s)}<//><${Cell} label="Took" class="number">${brief(lasted(one))}<//>
    <${Cell} label="Sent back" class="number">${size(one.bytes_down)}<//></tr>`)}</tbody><//>`;

const DAYS = [['Day'], ['Requests', 'number'], ['Waiting', 'number'], ['For loads', 'number'], ['Swaps', 'number'], ['Failures', 'number']];

function Days() {
  const days = useSignal([]);
  useEffect(() => {
    get('history/days?days=30').then((data) => { days.value = data.days.filter((one) => one.requests > 0); }, () => {});
  }, []);
  return days.value.length > 0 && html`<section class="days" aria-labelledby="days-title"><h2 id="days-title">The last 30 days</h2>
    <${Table} label="The last 30 days" columns=${DAYS}><tbody role="rowgroup">${days.value.map((one) => html`<tr key=${one.day} role="row">
      ${[one.day, one.requests.toLocaleString(), shareOf(one, one.waited_s), shareOf(one, one.loading_s), one.swaps, one.failures]
        .map((value, at) => html`<${Cell} key=${at} label=${DAYS[at][0]} class=${DAYS[at][1]}>${value}<//>`)}</tr>`)}</tbody><//></section>`;
}
