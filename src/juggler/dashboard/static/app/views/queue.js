// Queue: who waits for what and why, and what runs.
import { call } from '../api.js';
import { amounts, counter, duration, exact, plural, sentence, size } from '../format.js';
import { html } from '../html.js';
import { Action, Cell, Empty, Head, Name, Row, State, Swatch, Table } from '../parts.js';
import { hueOf, instances, meta, now, running, waiting, waitingCount } from '../store.js';

// Rows drawn per list; a queue may hold thousands.
const MOST = 200;

export default function Queue() {
  const count = waitingCount.value;
  const active = running.keys.value.length;
  return html`
    <${Head} title="Queue" note=${count ? `${plural(count, 'request')} waiting, ${active} running` : ''} />
    <section aria-labelledby="waiting-title"><h2 id="waiting-title">Waiting</h2>
      ${count ? html`<${Waiting} />` : html`<${Empty} title="Nobody waits">Requests that cannot be served at once are listed here, with the reason.<//>`}
    </section>
    <section aria-labelledby="running-title"><h2 id="running-title">Running</h2>
      ${active ? html`<${Running} />` : html`<${Empty} title="Nothing runs">Requests that a backend is answering are listed here.<//>`}
    </section>
  `;
}

const WAITING = [['Request'], ['Why it waits'], ['Waits for', 'number'], ['Served in', 'number'], ['Actions', 'acts']];

// Grouped by what they wait for: one instance comes after the other, and each has its own order.
function Waiting() {
  const all = waiting.all.value;
  const unseen = waitingCount.value - Math.min(all.length, MOST); // the juggler, too, lists only the first ones
  const groups = Map.groupBy(all, (one) => one.instance);
  const first = (id) => Math.min(...groups.get(id).map((one) => one.arrived_at));
  const order = [...groups.keys()].sort((a, b) => first(a) - first(b));
  let left = MOST;
  return html`<${Table} label="Waiting requests" columns=${WAITING} class="queue">
    ${order.map((id) => {
      const rows = groups.get(id).sort((a, b) => a.position - b.position).slice(0, left);
      left -= rows.length;
      return rows.length > 0 && html`<tbody key=${id} role="rowgroup">
        <${Group} id=${id} count=${groups.get(id).length} />
        ${rows.map((one) => html`<${Request} key=${one.request} one=${one} />`)}
      </tbody>`;
    })}
  <//>
  ${unseen > 0 && html`<p class="note more">and ${unseen.toLocaleString()} more</p>`}`;
}

function Group({ id, count }) {
  const one = instances.find(id);
  return html`<tr role="row" class="group-row"><th role="rowheader" scope="rowgroup" colspan=${WAITING.length}>
    <span class="line"><${Swatch} hue=${hueOf(id)} /><${Name}>${one?.name ?? id}<//>${one && html`<${State} state=${one.state} />`}
    <span class="note">${count} waiting</span></span></th></tr>`;
}

function Request({ one }) {
  const endless = meta.value.locked && Object.keys(one.needs_bytes).length > 0; // until somebody takes the lock off
  const left = one.expected_s == null || endless ? null : one.expected_s - (now.value - one.seen_at);
  const path = `requests/${one.request}`;
  return html`<${Row}>
    <${Cell} class="lead"><${What} one=${one} /><//>
    <${Cell} label="Why it waits" class="wide"><${Why} one=${one} /><//>
    <${Cell} label="Waits for" class="number">${counter(now.value - one.arrived_at)}
      ${one.due_at && now.value > one.due_at && html`<span class="note">longer than promised</span>`}<//>
    <${Cell} label="Served in" class="number">${left === null ? '-' : left > 0 ? `about ${duration(Math.max(1, left))}` : 'any moment'}<//>
    <${Cell} class="acts"><div class="buttons">
      <${Action} icon="front" label="To front" what=${`Request ${one.request} to front`} off=${one.position === 1 && 'It is the next of its backend'} run=${() => call('POST', `${path}/front`)} />
      <${Action} icon="cross" label="Cancel" what=${`Cancel request ${one.request}`} run=${() => call('DELETE', path)} />
    </div><//>
  <//>`;
}

function What({ one }) {
  return html`<span class="line"><span class="place">${one.position}</span><span><${Target} one=${one} />
    ${one.endpoint !== one.instance && html`<span class="note"><bdi>${one.endpoint}</bdi></span>`}</span></span>`;
}

// An operator's load has neither method nor target.
function Target({ one, more = '' }) {
  return html`<bdi class="target">${one.method ? `${one.method} ${one.target}` : 'Load'}</bdi>
    <span class="note">from <bdi>${one.client}</bdi>${` · no. ${one.request}${more}`}</span>`;
}

// "Needs 14.2 GiB, 6.1 GiB are free", where memory is the reason, and what stands in the way.
function Why({ one }) {
  const short = Object.entries(one.needs_bytes ?? {}).filter(([pool, bytes]) => pool !== 'exclusive' && bytes > (one.free_bytes?.[pool] ?? Infinity));
  const memory = one.phase === 'queued' && short.length > 0
    && `Needs ${amounts(Object.fromEntries(short))}, ${short.map(([pool]) => size(one.free_bytes[pool])).join(' and ')} free.`;
  const text = [memory, one.why && sentence(one.why)].filter(Boolean).join(' ');
  return html`<bdi>${text || 'Its turn is next.'}</bdi>`;
}

const RUNNING = [['Request'], ['Endpoint'], ['Runs for', 'number'], ['Waited', 'number']];
const CLASSES = { light: ' · light: wakes nothing', 'held-open': ' · held open: keeps nothing loaded' };

function Running() {
  const all = running.all.value;
  return html`<${Table} label="Running requests" columns=${RUNNING} class="running">
    <tbody role="rowgroup">${all.slice(0, MOST).map((one) => html`<${Active} key=${one.request} one=${one} />`)}</tbody>
  <//>
  ${all.length > MOST && html`<p class="note more">and ${all.length - MOST} more</p>`}`;
}

function Active({ one }) {
  const since = one.granted_at ?? one.arrived_at;
  const waited = (one.queue_s ?? 0) + (one.load_s ?? 0);
  return html`<${Row}>
    <${Cell} class="lead"><${Target} one=${one} more=${CLASSES[one.class]} /><//>
    <${Cell} label="Endpoint"><span class="line"><${Swatch} hue=${hueOf(one.instance)} /><${Name}>${instances.find(one.instance)?.name ?? one.endpoint}<//></span><//>
    <${Cell} label="Runs for" class="number">${counter(now.value - since)}<//>
    <${Cell} label="Waited" class="number">${waited < 0.05 ? 'not at all' : exact(waited)}
      ${one.load_s > 0.05 && html`<span class="note">${exact(one.load_s)} of it loading</span>`}<//>
  <//>`;
}
