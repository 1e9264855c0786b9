// Logs: what one instance, or the juggler, says; it follows until it is paused.
import { get } from '../api.js';
import { plural, time } from '../format.js';
import { html, useEffect, useLayoutEffect, useRef, useSignal } from '../html.js';
import { Head, Notice, Pick } from '../parts.js';
import { boot } from '../store.js';
import { link } from '../views.js';

const MOST = 2000;
const PAGE = 1000;
const LEVELS = ['debug', 'info', 'warning', 'error'];
const AGAIN_MS = 2000;

export default function Logs({ route }) {
  const log = route.rest[0] ?? 'juggler';
  const known = useSignal([]);
  useEffect(() => {
    get('logs').then((data) => { known.value = data.logs.map((one) => one.log); }, () => {});
  }, [boot.value]);
  const names = known.value.includes(log) ? known.value : [log, ...known.value];
  return html`<${Log} key=${`${boot.value} ${log}`} log=${log} choose=${html`<${Pick} label="Log" value=${log} options=${names.map((one) => [one, one === 'juggler' ? 'The juggler' : one])}
    onPick=${(id) => { location.hash = link('logs', [id]); }} />`} />`;
}

function Log({ log, choose }) {
  const paused = useSignal(false);
  const kept = useSignal({ lines: [], begun: [], last: null, lost: 0, cut: false });
  const failure = useSignal('');
  const search = useSignal('');
  const level = useSignal('debug');
  const atEnd = useSignal(true);
  const box = useRef(null);

  useEffect(() => {
    if (paused.value) return;
    const gone = new AbortController();
    follow(log, kept, failure, gone.signal);
    return () => gone.abort();
  }, [paused.value]);
  const toEnd = () => { box.current.scrollTop = box.current.scrollHeight; };
  useLayoutEffect(() => {
    if (atEnd.peek() && !paused.peek()) toEnd();
  });
  const least = log === 'juggler' ? LEVELS.indexOf(level.value) : -1;
  const fits = (one) => least <= 0 || !LEVELS.includes(one.level) || LEVELS.indexOf(one.level) >= least;
  const wanted = search.value.toLowerCase();
  const lines = kept.value.lines.filter(fits);
  const drawn = lines.map((one) => html`<${Line} key=${one.seq} one=${one} own=${log !== 'juggler' && one.stream === 'juggler'} wanted=${wanted} />`);
  const found = wanted ? lines.filter((one) => plain(one.text).toLowerCase().includes(wanted)).length : 0;
  // Enter goes to the next line that has it, Shift+Enter to the one before.
  const jump = (event) => {
    if (event.key !== 'Enter') return;
    const marks = [...box.current.querySelectorAll('.found')];
    const here = marks.findIndex((one) => one.classList.contains('here'));
    const next = event.shiftKey ? (here > 0 ? here : marks.length) - 1 : (here + 1) % marks.length;
    marks.forEach((one, index) => one.classList.toggle('here', index === next));
    marks[next]?.scrollIntoView({ block: 'center' });
  };
  return html`
    <${Head} title="Logs">${choose}
      ${log === 'juggler' && html`<${Pick} label="Level" value=${level.value} options=${LEVELS.map((one) => [one, one === 'debug' ? 'Everything' : `${one} and worse`])} onPick=${(id) => { level.value = id; }} />`}
      <label class="field"><span>Search</span><input type="search" value=${search.value} onInput=${(event) => { search.value = event.target.value; }} onKeyDown=${jump} />
        ${wanted && html`<span class="note" role="status">${plural(found, 'line')}</span>`}</label>
      <button type="button" aria-pressed=${String(paused.value)} onClick=${() => { paused.value = !paused.value; }}>Pause</button>
    <//>
    ${failure.value && html`<${Notice} tone="bad" title="The log could not be read.">${failure.value}<//>`}
    ${kept.value.lost > 0 && html`<${Notice} tone="warn" title=${`${plural(kept.value.lost, 'line')} came too fast to be kept.`} />`}
    <div class="log-frame">
      <div class="log" ref=${box} tabindex="0" role="region" aria-label=${`Log of ${log}`} onScroll=${({ target: { scrollTop, clientHeight, scrollHeight } }) => { atEnd.value = scrollTop + clientHeight > scrollHeight - 8; }}>
        ${kept.value.cut && html`<p class="note">Earlier lines are not shown: the newest ${MOST.toLocaleString()} are.</p>`}
        ${drawn}
        ${kept.value.begun.map((one) => html`<${Line} key=${one.stream} one=${one} own=${log !== 'juggler' && one.stream === 'juggler'} wanted=${wanted} />`)}
        ${!drawn.length && kept.value.last !== null && html`<p class="note">${kept.value.lines.length ? 'No line of this level.' : 'It has said nothing yet.'}</p>`}
      </div>
      ${!atEnd.value && html`<button type="button" class="to-end" onClick=${toEnd}>Jump to the end</button>`}
    </div>`;
}

// One call at a time, each waiting for what comes next; ends with `gone`.
async function follow(log, kept, failure, gone) {
  while (!gone.aborted) {
    const { last, lost } = kept.peek();
    const where = last === null ? '' : `&after=${last}&wait_s=20`;
    try {
      const data = await get(`logs/${encodeURIComponent(log)}?limit=${PAGE}&ansi=true${where}`, AbortSignal.any([gone, AbortSignal.timeout(35000)]));
      const old = kept.peek();
      const lines = [...old.lines, ...data.lines];
      kept.value = {
        lines: lines.slice(-MOST),
        begun: data.begun ?? [],
        last: data.lines.at(-1)?.seq ?? data.last,
        lost: last === null ? 0 : lost + data.lost,
        cut: old.cut || lines.length > MOST,
      };
      failure.value = '';
    } catch (error) {
      if (gone.aborted) return;
      failure.value = error.message;
      await new Promise((done) => { setTimeout(done, AGAIN_MS); });
    }
  }
}

function Line({ one, own, wanted }) {
  const parts = coloured(one.text);
  const tone = { warning: 'warn', error: 'bad', critical: 'bad' }[one.level];
  const has = wanted && plain(one.text).toLowerCase().includes(wanted);
  return html`<div class="log-line ${has ? 'found' : ''} ${own ? 'own' : ''} ${tone ? `tone-${tone}` : ''}">
    <span class="stamp">${time(one.at)}</span>${one.level && html`<span class="level">${one.level}</span>`}<span>${(has ? marked(parts, wanted) : parts).map(([text, look, hit]) => {
      if (hit) return html`<mark class=${look}>${text}</mark>`;
      return look ? html`<span class=${look}>${text}</span>` : text;
    })}</span></div>`;
}

const ESCAPE = /\x1b\[([0-9;:]*)m/;
const plain = (text) => text.split(ESCAPE).filter((_, index) => index % 2 === 0).join('');

// Pieces of a line and the classes of their colours (SGR, ECMA-48); colours beyond the sixteen are left out.
export function coloured(text) {
  const pieces = [];
  let look = new Map();
  text.split(ESCAPE).forEach((part, index) => {
    if (index % 2) look = changed(look, part.split(/[;:]/).map(Number));
    else if (part) pieces.push([part, [...look.values()].join(' ')]);
  });
  return pieces;
}

function changed(before, codes) {
  let look = new Map(before);
  for (let at = 0; at < codes.length; at += 1) {
    const code = codes[at];
    if (code === 0) look = new Map();
    else if (code === 1) look.set('weight', 'sgr-bold');
    else if (code === 2) look.set('weight', 'sgr-dim');
    else if (code === 22) look.delete('weight');
    else if (code === 3) look.set('slant', 'sgr-slant');
    else if (code === 23) look.delete('slant');
    else if (code === 4) look.set('line', 'sgr-line');
    else if (code === 24) look.delete('line');
    else if ((code >= 30 && code <= 37) || (code >= 90 && code <= 97)) look.set('fore', `sgr-${code % 10}`);
    else if (code === 39) look.delete('fore');
    else if (code === 38 || code === 48) at += codes[at + 1] === 5 ? 2 : 4; // what follows belongs to it
  }
  return look;
}

// The same pieces, cut where the searched text begins and ends.
function marked(pieces, wanted) {
  const whole = pieces.map(([text]) => text).join('').toLowerCase();
  const result = [];
  let begin = 0;
  for (const [text, look] of pieces) {
    let from = 0;
    while (from < text.length) {
      const at = begin + from;
      const hit = whole.lastIndexOf(wanted, at);
      const inside = hit >= 0 && at < hit + wanted.length;
      const next = whole.indexOf(wanted, at);
      const end = inside ? hit + wanted.length : next < 0 ? Infinity : next;
      const to = Math.min(text.length, end - begin);
      result.push([text.slice(from, to), look, inside]);
      from = to;
    }
    begin += text.length;
  }
  return result;
}
