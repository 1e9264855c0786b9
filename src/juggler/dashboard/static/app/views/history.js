// History: memory, requests, loads and bytes over hours.
import { get } from '../api.js';
import { dateTime, duration, hour, size, time } from '../format.js';
import { html, useComputed, useEffect, useRef, useSignal } from '../html.js';
import { At, Cell, Choice, Empty, Head, Notice, Table, useWidth } from '../parts.js';
import { now, pools } from '../store.js';

const RANGES = [['3600', '1 h'], ['21600', '6 h'], ['86400', '24 h']];
const STEPS = { 3600: 30, 21600: 180, 86400: 600 };
const HEIGHT = 120;
const count = (value) => (value == null ? '-' : value.toLocaleString());

export default function History() {
  const range = useSignal(3600);
  const form = useSignal('chart');
  const answer = useSignal(null);
  const failure = useSignal('');
  const at = useSignal(null); // index of the moment that is told about; null: the last
  const turn = useComputed(() => Math.floor(now.value / 30));
  useEffect(() => {
    const gone = new AbortController();
    const to = now.peek();
    get(`history/series?from_at=${(to - range.value).toFixed(1)}&to_at=${to.toFixed(1)}&step_s=${STEPS[range.value]}`, AbortSignal.any([gone.signal, AbortSignal.timeout(15000)])).then(
      (data) => { answer.value = data; failure.value = ''; },
      (error) => { if (!gone.signal.aborted) failure.value = error.message; },
    );
    return () => gone.abort();
  }, [range.value, turn.value]);

  const data = answer.value;
  const charts = data ? chartsOf(data) : [];
  const last = (data?.at.length ?? 0) - 1;
  const index = Math.min(at.value ?? last, last);
  return html`
    <${Head} title="History">
      <${Choice} label="How far back" options=${RANGES} value=${String(range.value)} onPick=${(id) => { at.value = null; range.value = Number(id); }} />
      <${Choice} label="Shown as" options=${[['chart', 'Charts'], ['table', 'Table']]} value=${form.value} onPick=${(id) => { form.value = id; }} />
    <//>
    ${failure.value && html`<${Notice} tone="bad" title="The past could not be fetched.">${failure.value}<//>`}
    ${data && last < 1 && html`<${Empty} title="Nothing yet">The first numbers come within a minute.<//>`}
    ${last >= 1 && (form.value === 'table' ? html`<${List} data=${data} charts=${charts} />` : html`
      <label class="moment"><span>At <strong>${dateTime(data.at[index])}</strong></span>
        <input type="range" min="0" max=${last} value=${index} aria-valuetext=${time(data.at[index])} onInput=${(event) => { at.value = Number(event.target.value); }} /></label>
      <div class="graphs">${charts.map((one) => html`<${Graph} key=${one.title} one=${one} times=${data.at} index=${index} at=${at} step=${data.step_s} />`)}</div>`)}`;
}

// Each: title, kind, series of { name, look, values }, format, top (least upper end), limit.
function chartsOf(data) {
  const memory = Object.entries(data.pools).filter(([name]) => name !== 'exclusive').map(([name, { used_bytes: used, foreign_bytes: foreign }]) => {
    const limit = pools.find(name)?.capacity_bytes;
    return { title: `Memory of ${name}`, kind: 'area', format: size, limit, top: limit ?? 1, series: [{ name: 'models', look: 'models', values: used }, { name: 'others', look: 'others', values: foreign }] };
  });
  const bars = (title, name, values, format, top) => ({ title, kind: 'bars', format, top, series: [{ name, look: 'models', values }] });
  return [...memory, bars('Requests', 'ended', data.requests, count, 4), bars('Loads', 'begun', data.loads, count, 4), bars('Sent back', 'bytes', data.bytes_down, size, 1024)];
}

const sum = (values) => values.reduce((total, value) => total + (value ?? 0), 0);
const most = (values) => values.reduce((top, value) => Math.max(top, value ?? 0), 0);

function summary({ kind, series, format, limit }) {
  if (kind === 'bars') return `${format(sum(series[0].values))} in all, at most ${format(most(series[0].values))} at a time`;
  return `${series.map(({ name, values }) => `${name} at most ${format(most(values))}`).join(', ')}${limit ? ` of ${format(limit)}` : ''}`;
}

function Graph({ one, times, index, at, step }) {
  const self = useRef(null);
  const width = useWidth(self);
  const { series, kind, format, limit } = one;
  const top = Math.max(one.top, ...series[0].values.map((_, i) => sum(series.map(({ values }) => values[i]))));
  const x = (i) => (i / (times.length - 1)) * width;
  const y = (value) => HEIGHT - (value / top) * (HEIGHT - 4);
  const pick = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    at.value = Math.max(0, Math.min(times.length - 1, Math.round(((event.clientX - box.left) / box.width) * (times.length - 1))));
  };
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => [part, times[Math.round(part * (times.length - 1))]]);
  return html`<article class="graph"><h2>${one.title}</h2>
    <p class="numbers">${series.map(({ name, look, values }) => html`<span key=${name}>${series.length > 1 && html`<span class="swatch ${look}" aria-hidden="true"></span>`}${series.length > 1 ? `${name} ` : ''}<strong>${format(values[index])}</strong></span>`)}
      ${kind === 'bars' ? html`<span class="note">in ${duration(step)}</span>` : limit && html`<span class="note">of ${format(limit)}</span>`}</p>
    <svg ref=${self} width="100%" height=${HEIGHT + 18} role="img" aria-label=${`${one.title}: ${summary(one)}`} onPointerMove=${pick} onPointerLeave=${() => { at.value = null; }}>
      <line class="tick" x1="0" x2="100%" y1=${HEIGHT} y2=${HEIGHT} />
      ${limit && html`<line class="limit" x1="0" x2="100%" y1=${y(limit)} y2=${y(limit)} />`}
      ${width > 0 && series.map(({ look, values }, layer) => html`<path key=${look} class=${look} d=${kind === 'area' ? area(series, layer, x, y) : bars(values, x, y, width / times.length)} />`)}
      <line class="cursor" x1=${x(index)} x2=${x(index)} y1="0" y2=${HEIGHT} />
      ${ticks.map(([part, when]) => html`<text key=${part} class=${part === 0 ? 'begin' : part === 1 ? 'end' : ''} x="${part * 100}%" y=${HEIGHT + 14}>${hour(when)}</text>`)}
    </svg><p class="note">${summary(one)}</p></article>`;
}

// One layer on those below it; it has gaps where nothing is known.
function area(series, layer, x, y) {
  const below = (i) => sum(series.slice(0, layer).map(({ values }) => values[i]));
  const { values } = series[layer];
  const steps = [];
  for (let i = 0; i < values.length; i += 1) {
    if (values[i] == null) continue;
    const begin = i;
    while (i + 1 < values.length && values[i + 1] != null) i += 1;
    const run = Array.from({ length: i - begin + 1 }, (_, k) => begin + k);
    const upper = run.map((k) => `${x(k).toFixed(1)} ${y(below(k) + values[k]).toFixed(1)}`);
    const lower = run.toReversed().map((k) => `${x(k).toFixed(1)} ${y(below(k)).toFixed(1)}`);
    steps.push(`M${upper.join('L')}L${lower.join('L')}z`);
  }
  return steps.join('');
}

function bars(values, x, y, room) {
  const half = Math.max(0.5, room * 0.35);
  return values.map((value, i) => (value ? `M${(x(i) - half).toFixed(1)} ${HEIGHT}V${y(value).toFixed(1)}h${(2 * half).toFixed(1)}V${HEIGHT}z` : '')).join('');
}

// Moments of which something is known, the newest first.
function List({ data, charts }) {
  const columns = charts.flatMap((one) => one.series.map(({ name, values }) => ({ heading: one.series.length > 1 ? `${one.title.replace('Memory of ', '')}, ${name}` : one.title, values, format: one.format })));
  const rows = data.at.map((_, i) => i).filter((i) => columns.some(({ values }) => values[i])).reverse();
  if (!rows.length) return html`<${Empty} title="Nothing happened">Nothing was loaded or asked for in this time.<//>`;
  return html`<${Table} label="History" columns=${[['At'], ...columns.map(({ heading }) => [heading, 'number'])]}><tbody role="rowgroup">
    ${rows.map((i) => html`<tr key=${i} role="row"><${Cell} label="At"><${At} at=${data.at[i]} /><//>${columns.map(({ heading, values, format }) => html`<${Cell} key=${heading} label=${heading} class="number">${format(values[i])}<//>`)}</tr>`)}</tbody><//>`;
}
