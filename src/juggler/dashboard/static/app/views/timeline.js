// Timeline: one lane per instance, what it did when, and why it had to give way.
import { get } from '../api.js';
import { dateTime, duration, hour, time } from '../format.js';
import { html, useComputed, useEffect, useRef, useSignal } from '../html.js';
import { At, Cell, Choice, Empty, Head, Name, Notice, State, Swatch, Table, prose, useWidth } from '../parts.js';
import { gaps, hueOf, instances, now, spans as live, stateOf } from '../store.js';

const RANGES = [['900', '15 min'], ['3600', '1 h'], ['86400', '24 h']];
const RENEWED_S = 60; // warnings of thrashing come with the whole answer only
const ROWS = 300;

export default function Timeline() {
  const range = useSignal(900);
  const form = useSignal('chart');
  const answer = useSignal(null); // what the API said last
  const failure = useSignal(null);
  const chosen = useSignal(null); // number of the span that is told about
  const minute = useComputed(() => Math.floor(now.value / RENEWED_S));

  useEffect(() => {
    const gone = new AbortController();
    const to = now.peek();
    get(`timeline?from_at=${(to - range.value).toFixed(1)}&to_at=${to.toFixed(1)}`, AbortSignal.any([gone.signal, AbortSignal.timeout(15000)])).then(
      (data) => { answer.value = data; failure.value = null; },
      (error) => { if (!gone.signal.aborted) failure.value = error.message; },
    );
    return () => gone.abort();
  }, [range.value, minute.value, gaps.value]);

  // A long range moves on by less than a pixel a second: it is not drawn anew for that.
  const edge = useComputed(() => Math.ceil(now.value / Math.max(1, range.value / 900)) * Math.max(1, range.value / 900));
  const shown = useComputed(() => lanes(answer.value?.spans ?? [], live.value, edge.value - range.value));
  const thrash = answer.value?.thrash ?? [];
  return html`
    <${Head} title="Timeline">
      <${Choice} label="How far back" options=${RANGES} value=${String(range.value)} onPick=${(id) => { range.value = Number(id); }} />
      <${Choice} label="Shown as" options=${[['chart', 'Chart'], ['table', 'Table']]} value=${form.value} onPick=${(id) => { form.value = id; }} />
    <//>
    ${failure.value && html`<${Notice} tone="bad" title="The past could not be fetched.">${failure.value}<//>`}
    ${thrash.map((one) => html`<${Notice} key=${one.instances.join()} tone="warn" title="They push each other out.">
      <bdi>${prose(one.text)}</bdi><//>`)}
    ${shown.value.length === 0
      ? answer.value && html`<${Empty} title="Nothing happened">No instance was loaded or unloaded in this time.<//>`
      : form.value === 'chart'
        ? html`<${Chart} lanes=${shown.value} from=${edge.value - range.value} to=${edge.value} chosen=${chosen} /><${Legend} /><${GaveWay} lanes=${shown.value} />`
        : html`<${List} lanes=${shown.value} />`}
  `;
}

// Spans since `from`, by instance in the order of the board; what the stream brought overrides what was fetched.
function lanes(fetched, streamed, from) {
  const all = new Map(fetched.map((span) => [span.span, span]));
  for (const [number, span] of streamed) all.set(number, span);
  const recent = [...all.values()].filter((span) => span.to_at == null || span.to_at > from).sort((a, b) => a.from_at - b.from_at);
  const byInstance = Map.groupBy(recent, (span) => span.instance);
  const known = instances.keys.value.filter((id) => byInstance.has(id));
  const former = [...byInstance.keys()].filter((id) => !known.includes(id));
  return [...known, ...former].map((id) => ({ id, name: instances.find(id)?.name ?? id, hue: hueOf(id), spans: byInstance.get(id) }));
}

const NEWEST = 8;
// What failed, was idle or was sent away by hand has a reason too.
const gaveWay = (span) => span.evicted_by != null;

// The same reasons in words, for whoever cannot point at a marker.
function GaveWay({ lanes }) {
  const some = newestFirst(lanes).filter(({ span }) => gaveWay(span)).slice(0, NEWEST);
  return some.length > 0 && html`<section aria-labelledby="gave-way" class="gave-way"><h2 id="gave-way">Who gave way</h2>
    <ul>${some.map(({ lane, span }) => html`<li key=${span.span}><${At} at=${span.from_at} /><span class="line"><${Swatch} hue=${lane.hue} /><${Name}>${lane.name}<//></span>
      <bdi>${span.why}</bdi></li>`)}</ul></section>`;
}

const newestFirst = (lanes) => lanes.flatMap((lane) => lane.spans.map((span) => ({ lane, span }))).sort((a, b) => b.span.from_at - a.span.from_at);

const COLUMNS = [['Instance'], ['State'], ['From'], ['Until'], ['Lasted', 'number'], ['Why']];

function List({ lanes }) {
  const rows = newestFirst(lanes);
  return html`<${Table} label="Timeline" columns=${COLUMNS}>
    <tbody role="rowgroup">${rows.slice(0, ROWS).map(({ lane, span }) => html`<tr key=${span.span} role="row">
      <${Cell} class="lead"><${Swatch} hue=${lane.hue} /><${Name}>${lane.name}<//><//>
      <${Cell} label="State"><${State} state=${span.state} /><//>
      <${Cell} label="From"><${At} at=${span.from_at} /><//>
      <${Cell} label="Until">${span.to_at ? html`<${At} at=${span.to_at} />` : 'now'}<//>
      <${Cell} label="Lasted" class="number">${duration((span.to_at ?? now.value) - span.from_at)}<//>
      <${Cell} label="Why" class="wide">${span.why && html`<bdi>${span.why}</bdi>`}<//>
    </tr>`)}</tbody><//>
    ${rows.length > ROWS && html`<p class="note more">The newest ${ROWS} of ${rows.length}</p>`}`;
}

const HEIGHT = 34;
// Where a filling begins and how high it is: what holds more of the machine stands taller.
const BARS = {
  full: [5, 24],
  idle: [11, 18],
  hatched: [11, 18],
  leaving: [11, 18],
  dotted: [21, 8],
  crossed: [11, 18],
  none: [28, 1],
};
const STEPS_S = [60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600];

// `chosen`: signal with the number of a span.
function Chart({ lanes, from, to, chosen }) {
  const self = useRef(null);
  const width = useWidth(self);
  const ticks = ticksOf(from, to, width);
  const told = newestFirst(lanes).find((one) => one.span.span === chosen.value);
  return html`<div class="chart" ref=${self}>
    <p class="note" id="chart-keys">Arrow keys go from span to span and from lane to lane.</p>
    <div class="axis"><svg width="100%" height="22" aria-hidden="true" focusable="false">
      ${ticks.map((at) => html`<text key=${at} x="${share(at, from, to)}%" y="15">${hour(at)}</text>`)}</svg></div>
    <div class="lanes" role="group" aria-label="Timeline" aria-describedby="chart-keys" onKeyDown=${(event) => go(event, lanes, chosen)}>
      ${lanes.map((lane) => html`<${Lane} key=${lane.id} lane=${lane} from=${from} to=${to} ticks=${ticks} width=${width} chosen=${chosen} />`)}
    </div>
    <div class="told">${told ? html`<${Told} ...${told} />` : html`<span class="note">Point at a span, or go there with the keyboard, to read about it here.</span>`}</div>
  </div>`;
}

const share = (at, from, to) => Math.max(0, Math.min(100, ((at - from) / (to - from)) * 100));

function ticksOf(from, to, width) {
  const most = Math.max(2, Math.floor(width / 90));
  const step = STEPS_S.find((one) => (to - from) / one <= most) ?? STEPS_S.at(-1);
  const offset = new Date(to * 1000).getTimezoneOffset() * 60; // whole hours here, not in Greenwich
  const first = Math.ceil((from - offset) / step) * step + offset;
  const ticks = [];
  for (let at = first; at < to - step * 0.15; at += step) ticks.push(at);
  return ticks;
}

function Lane({ lane, from, to, ticks, width, chosen }) {
  const stop = lane.spans.find((span) => span.span === chosen.value) ?? lane.spans.at(-1); // where Tab enters
  return html`<div class="lane"><div class="lane-name"><${Swatch} hue=${lane.hue} /><${Name}>${lane.name}<//></div>
    <svg width="100%" height=${HEIGHT} class="hue-${lane.hue}" role="group" aria-label=${lane.name}>
      ${ticks.map((at) => html`<line key=${at} class="tick" x1="${share(at, from, to)}%" x2="${share(at, from, to)}%" y1="0" y2=${HEIGHT} />`)}
      ${lane.spans.map((span) => html`<${Span} key=${span.span} span=${span} name=${lane.name} from=${from} to=${to} width=${width}
        stop=${span === stop} chosen=${chosen} />`)}
      ${lane.spans.filter((span) => gaveWay(span) && span.from_at > from).map((span) => html`<svg key=${`e${span.span}`} class="mark" x="${share(span.from_at, from, to)}%" y="0" overflow="visible">
        <title>${span.why}</title><path d="M-4.5 0h9L0 7z" /><path class="stem" d="M0 0v${HEIGHT}" /></svg>`)}
    </svg></div>`;
}

function Span({ span, name, from, to, width, stop, chosen }) {
  const x = share(span.from_at, from, to);
  const end = share(span.to_at ?? to, from, to);
  const { word, drawn } = stateOf(span.state);
  const [top, height] = BARS[drawn];
  const wide = ((end - x) / 100) * width;
  const told = tell(span, name);
  // A span of a moment is drawn a pixel and a half wide: it happened, so it shows.
  return html`<svg x="${x}%" y="0" width="${Math.max(end - x, 150 / Math.max(width, 150))}%" height=${HEIGHT} class="span ${drawn} ${chosen.value === span.span ? 'chosen' : ''}"
    role="img" aria-label=${told} tabindex=${stop ? 0 : -1} data-span=${span.span}
    onFocus=${() => { chosen.value = span.span; }} onPointerEnter=${() => { chosen.value = span.span; }}>
    <title>${told}</title>
    <rect class="hit" width="100%" height=${HEIGHT} />
    <rect class="ground" y=${top} width="100%" height=${height} />
    <rect class="over" y=${top} width="100%" height=${height} />
    ${height > 10 && wide > word.length * 7 + 14 && html`<text x="6" y=${top + height / 2 + 4}>${word}</text>`}
    <rect class="ring" x="1" y="1" width="100%" height=${HEIGHT - 2} />
  </svg>`;
}

function tell(span, name) {
  const until = span.to_at ? `until ${time(span.to_at)}` : 'until now';
  const lasted = span.to_at ? `, ${duration(span.to_at - span.from_at)}` : '';
  return `${name}: ${stateOf(span.state).word.toLowerCase()} from ${time(span.from_at)} ${until}${lasted}${span.why ? `; ${span.why}` : ''}`;
}

function Told({ lane, span }) {
  return html`<${Swatch} hue=${lane.hue} /><${Name}>${lane.name}<//><${State} state=${span.state} />
    <span>${duration((span.to_at ?? now.value) - span.from_at)}</span>
    <span class="note">${dateTime(span.from_at)} – ${span.to_at ? time(span.to_at) : 'now'}</span>
    ${span.why && html`<bdi>${span.why}</bdi>`}`;
}

function go(event, lanes, chosen) {
  const at = Number(event.target.dataset?.span);
  const row = lanes.findIndex((lane) => lane.spans.some((span) => span.span === at));
  if (row < 0) return;
  const { spans } = lanes[row];
  const index = spans.findIndex((span) => span.span === at);
  const beside = (lane) => lane && (lane.spans.findLast((span) => span.from_at <= spans[index].from_at) ?? lane.spans[0]);
  const next = {
    ArrowLeft: spans[index - 1],
    ArrowRight: spans[index + 1],
    ArrowUp: beside(lanes[row - 1]),
    ArrowDown: beside(lanes[row + 1]),
    Home: spans[0],
    End: spans.at(-1),
  }[event.key];
  if (!next) return;
  event.preventDefault();
  chosen.value = next.span;
  event.currentTarget.querySelector(`[data-span="${next.span}"]`)?.focus();
}

const LEGEND = [['full', 'busy'], ['idle', 'ready'], ['hatched', 'loading'], ['leaving', 'giving way'], ['dotted', 'unloaded'], ['crossed', 'failed'], ['none', 'stopped']];

function Legend() {
  return html`<ul class="legend" aria-label="Legend">
    ${LEGEND.map(([drawn, word]) => html`<li key=${word}><svg width="28" height=${HEIGHT} class="hue-1" aria-hidden="true" focusable="false"><g class="span ${drawn}">
      ${['ground', 'over'].map((layer) => html`<rect key=${layer} class=${layer} y=${(HEIGHT - BARS[drawn][1]) / 2} width="28" height=${BARS[drawn][1]} />`)}</g></svg>${word}</li>`)}
    <li><svg width="14" height=${HEIGHT} aria-hidden="true" focusable="false"><g class="mark" transform="translate(7 8)"><path d="M-4.5 0h9L0 7z" /><path class="stem" d="M0 0v20" /></g></svg>had to give way to another</li>
  </ul>`;
}
