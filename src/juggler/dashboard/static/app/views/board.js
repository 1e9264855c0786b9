// Board: what holds the memory, and what every endpoint does.
import { call, endpointPath } from '../api.js';
import { amounts, duration, isExclusive, percent, plural, size } from '../format.js';
import { html, useRef } from '../html.js';
import { Action, Ago, Cell, Empty, Head, Icon, Name, Notice, Row, State, Swatch, Table, prose, useWidth } from '../parts.js';
import { endpoints, hueOf, instances, isComing, isLeaving, isUp, meta, now, pools, stateOf, waitingCount } from '../store.js';
import { hasView, link } from '../views.js';

export default function Board() {
  return html`
    <${Head} title="Board"><${Today} /><//>
    <${Notices} />
    <section aria-labelledby="memory-title"><h2 id="memory-title">Memory</h2>
      <div class="pools">${pools.keys.value.map((pool) => html`<${Memory} key=${pool} pool=${pool} />`)}</div>
    </section>
    <section aria-labelledby="endpoints-title"><h2 id="endpoints-title">Endpoints</h2><${Instances} /></section>
  `;
}

function Today() {
  const today = meta.value?.today;
  if (!today) return null;
  const figures = [
    [today.requests.toLocaleString(), today.requests === 1 ? 'request today' : 'requests today', ''],
    today.share_waiting != null && [percent(today.share_waiting), 'of the time of those answered was waiting for loads', 'A high share says: more memory, or fewer models, would help.'],
    waitingCount.value > 0 && [waitingCount.value.toLocaleString(), 'waiting now', 'Not yet counted in the share of time.'],
    [today.swaps.toLocaleString(), today.swaps === 1 ? 'swap' : 'swaps', 'Loads for which another had to give way.'],
    [today.failures.toLocaleString(), today.failures === 1 ? 'failure' : 'failures', ''],
  ];
  return html`<ul class="figures">${figures.filter(Boolean).map(([value, what, hint]) => html`<li key=${what} title=${hint}><strong>${value}</strong> ${what}</li>`)}</ul>`;
}

// What an operator should know before anything else.
function Notices() {
  const { config, warmup = [] } = meta.value ?? {};
  const failed = warmup.filter((one) => one.error);
  const reload = config?.last_reload;
  const more = hasView('config') && html` <a href=${link('config')}>Read them</a>`;
  return html`
    ${config?.problems > 0 && html`<${Notice} tone="warn" title=${`The configuration has ${plural(config.problems, 'problem')}.`}>${more}<//>`}
    ${reload && !reload.ok && !reload.dry_run && html`<${Notice} tone="warn" title="The last reload changed nothing:"><bdi>${reload.result === 'refused' ? reload.message : 'the file has problems'}</bdi>.${more}<//>`}
    ${failed.map((one) => html`<${Notice} key=${one.endpoint} tone="bad" title="Warm-up failed:"><${Name}>${one.endpoint}<//>: ${one.error}<//>`)}
  `;
}

const ORIGINS = {
  declared: 'declared in the configuration',
  learned: 'learned from earlier runs',
  measured: 'measured in this run',
  estimated: "estimated from the model's file",
  unknown: 'unknown: taken for the whole pool',
};

const originOf = ({ origin }) => ORIGINS[origin] ?? origin ?? 'not known';

function Memory({ pool: name }) {
  const pool = pools.find(name);
  if (!pool) return null;
  const exclusive = isExclusive(pool);
  const free = Math.max(0, pool.capacity_bytes - pool.used_bytes - pool.foreign_bytes);
  return html`<article class="pool">
    <h3><bdi>${exclusive ? 'One at a time' : name}</bdi></h3>
    <p class="numbers">${exclusive
      ? 'Nothing is known of this machine’s memory, so one instance is loaded at a time.'
      : html`<strong>${size(pool.used_bytes)}</strong> of ${size(pool.capacity_bytes)}
        ${pool.foreign_bytes > 0 && html` · <strong>${size(pool.foreign_bytes)}</strong> others`} · <strong>${size(free)}</strong> free`}</p>
    <${Bar} pool=${pool} free=${free} />
    ${!exclusive && html`<details><summary>Numbers, and where they come from</summary><${Numbers} pool=${pool} free=${free} /></details>`}
  </article>`;
}

const nameOf = (instance) => instances.find(instance)?.name ?? instance;

// About how many pixels a label takes.
const lengthOf = (text) => text.length * 8 + 14;

function Bar({ pool, free }) {
  const self = useRef(null);
  const width = useWidth(self);
  const total = Math.max(pool.capacity_bytes, pool.used_bytes + pool.foreign_bytes) || 1;
  const parts = pool.holders.map((one) => ({
    key: one.instance,
    bytes: one.bytes,
    label: nameOf(one.instance),
    kind: stateOf(one.state).drawn,
    hue: hueOf(one.instance),
    told: `${nameOf(one.instance)}: ${size(one.bytes)}, ${stateOf(one.state).word.toLowerCase()}, ${originOf(one)}`,
  }));
  if (pool.foreign_bytes > 0) {
    const users = pool.foreign_users || 'other programs';
    parts.push({ key: ' others', bytes: pool.foreign_bytes, label: 'others', kind: 'others', told: `Others: ${size(pool.foreign_bytes)}, ${users}` });
  }
  let from = 0;
  const drawn = parts.map((one) => {
    const x = (from / total) * 100;
    from += one.bytes;
    const pixels = (one.bytes / total) * width;
    const full = `${one.label} ${size(one.bytes)}`;
    const fits = lengthOf(full) < pixels && !isExclusive(pool) ? full : lengthOf(one.label) < pixels ? one.label : '';
    return { ...one, x, width: (one.bytes / total) * 100, fits };
  });
  const told = [...parts.map((one) => one.told), `free: ${size(free)}`].join('; ');
  return html`<svg ref=${self} class="bar" width="100%" height="36" role="img" aria-label=${isExclusive(pool) ? drawn.map((one) => one.label).join() || 'free' : told}>
    <rect class="free" x="0" y="0" width="100%" height="36" rx="4" />
    ${drawn.map((one) => html`<svg key=${one.key} x="${one.x}%" y="0" width="${one.width}%" height="36" aria-hidden="true" class="part ${one.kind} hue-${one.hue ?? 0}">
      <title>${one.told}</title>
      <rect class="ground" x="0" y="0" width="100%" height="36" />
      <rect class="over" x="0" y="0" width="100%" height="36" />
      <text x="10" y="23"><tspan class="strong">${one.label.slice(0, one.fits.length)}</tspan>${one.fits.slice(one.label.length)}</text>
      <rect class="edge" x="100%" y="0" width="2" height="36" transform="translate(-2)" />
    </svg>`)}
  </svg>`;
}

function Numbers({ pool, free }) {
  return html`<${Table} label=${`Memory of ${pool.pool}`} class="narrow" columns=${[['Who'], ['State'], ['Holds', 'number'], ['Known how']]}>
    <tbody role="rowgroup">
      ${pool.holders.map((one) => html`<tr key=${one.instance} role="row">
        <${Cell} class="lead"><${Swatch} hue=${hueOf(one.instance)} /><${Name}>${nameOf(one.instance)}<//><//>
        <${Cell} label="State"><${State} state=${one.state} /><//>
        <${Cell} label="Holds" class="number">${size(one.bytes)}<//>
        <${Cell} label="Known how">${originOf(one)}<//>
      </tr>`)}
      ${pool.foreign_bytes > 0 && html`<tr role="row">
        <${Cell} class="lead"><span class="swatch others" aria-hidden="true"></span>Others<//><${Cell} label="State">-<//>
        <${Cell} label="Holds" class="number">${size(pool.foreign_bytes)}<//>
        <${Cell} label="Known how">measured now${pool.foreign_users && html`: <bdi>${pool.foreign_users}</bdi>`}<//></tr>`}
      <tr role="row"><${Cell} class="lead"><span class="swatch free" aria-hidden="true"></span>Free<//><${Cell} label="State">-<//>
        <${Cell} label="Holds" class="number">${size(free)}<//><${Cell} label="Known how">what is left of ${size(pool.capacity_bytes)}<//></tr>
    </tbody>
  <//>`;
}

const COLUMNS = [['Endpoint'], ['State'], ['Memory'], ['Last used'], ['Running', 'number'], ['Waiting', 'number'], ['Actions', 'acts']];

function Instances() {
  if (!instances.keys.value.length) return html`<${Empty} title="No endpoints">The configuration names none.<//>`;
  return html`<${Table} label="Endpoints" columns=${COLUMNS} class="instances">
    ${instances.keys.value.map((id) => html`<${Instance} key=${id} id=${id} />`)}
  <//>`;
}

function Instance({ id }) {
  const one = instances.find(id);
  if (!one) return null;
  return html`<tbody role="rowgroup" class="instance">
    <${Row}>
      <${Cell} class="lead"><${Swatch} hue=${hueOf(id)} /><${Names} one=${one} /><//>
      <${Cell} label="State"><${State} state=${one.state} /><${Progress} one=${one} /><//>
      <${Cell} label="Memory"><${Held} one=${one} /><//>
      <${Cell} label="Last used"><${Used} one=${one} /><//>
      <${Cell} label="Running" class="number">${one.running}${one.slots > 1 && html`<span class="faint"> of ${one.slots}</span>`}<//>
      <${Cell} label="Waiting" class="number">${one.waiting > 0 ? html`<a href=${link('queue')}>${one.waiting}</a>` : '0'}<//>
      <${Cell} class="acts"><${Buttons} one=${one} /><//>
    <//>
    ${one.error && html`<${Row} class="failure"><${Cell} colspan=${COLUMNS.length}><${Failure} error=${one.error} seenAt=${one.seen_at} /><//><//>`}
  </tbody>`;
}

function Names({ one }) {
  const served = one.endpoints.map((id) => endpoints.find(id)).filter(Boolean);
  const servers = [...new Set(served.map((endpoint) => endpoint.server))];
  const others = served.map((endpoint) => endpoint.name).filter((name) => name !== one.name);
  return html`<div class="names"><${Name}>${one.name}<//>
    <span class="note"><bdi>${servers.join(', ')}</bdi>${' · '}${one.type}${one.attached ? ', attached' : ''}
      ${others.length > 0 && html`${' · also '}<bdi>${others.join(', ')}</bdi>`}</span></div>`;
}

// How far a load has come, by what loads took before; else since when it is so.
function Progress({ one }) {
  if (isComing(one.state) && one.load_began_at) {
    const since = Math.max(0, now.value - one.load_began_at);
    const left = one.load_expected_s == null ? null : one.load_expected_s - since;
    if (left === null) return html`<span class="note">for ${duration(since)}</span>`;
    return html`<progress max=${one.load_expected_s} value=${Math.min(since, one.load_expected_s)} aria-label="Loaded"></progress>
      <span class="note">${left > 0 ? `about ${duration(Math.max(1, left))} more` : `${duration(-left)} longer than usual`}</span>`;
  }
  return one.since_at ? html`<span class="note">for ${duration(now.value - one.since_at)}</span>` : null;
}

function Held({ one }) {
  const held = amounts(one.held_bytes);
  const needs = amounts(one.needs_bytes);
  const origin = html`<span class="note">${one.memory_origin ?? ''}</span>`;
  if (held) return html`<span>${held}</span>${isUp(one.state) || held === needs ? origin : html`<span class="note">of ${needs}</span>`}`;
  if (needs) return html`<span class="faint">needs ${needs}</span>${origin}`;
  return html`<span class="faint">not known</span>`;
}

function Used({ one }) {
  const unload = one.idle_since_at && one.idle_unload_s != null && isUp(one.state) && !one.pinned
    ? one.idle_since_at + one.idle_unload_s - now.value : null;
  return html`<${Ago} at=${one.last_used_at} />
    ${one.pinned ? html`<span class="note"><${Icon} name="pin" />pinned${one.pinned_by ? ` (${one.pinned_by})` : ''}</span>`
      : unload !== null && html`<span class="note">unloads in ${duration(unload)}</span>`}`;
}

function Buttons({ one }) {
  const path = endpointPath(one.endpoints[0]);
  const post = (verb) => () => call('POST', `${path}/${verb}?wait_s=2`);
  const up = isUp(one.state);
  const alive = up || one.state === 'unloaded' || isComing(one.state);
  const leaving = isLeaving(one.state);
  const canUnload = one.soft_unload || !one.attached;
  const busy = leaving && 'It is on its way out';
  const served = one.endpoints.map((id) => endpoints.find(id)).filter(Boolean);
  return html`<div class="buttons">
    ${up
      ? html`<${Action} key="load" main label="Unload" what=${`Unload ${one.name}`} run=${post('unload')} off=${!canUnload && 'This server cannot be told to unload'} />`
      : html`<${Action} key="load" main label="Load" what=${`Load ${one.name}`} run=${post('load')} off=${isComing(one.state) ? 'It is being loaded' : busy} />`}
    <${Action} label="Stop" what=${`Stop ${one.name}`} run=${post('stop')} off=${one.attached ? 'Somebody else runs this server' : !alive && 'It does not run'} />
    <${Action} label="Restart" what=${`Restart ${one.name}`} run=${post('restart')} off=${one.attached ? 'Somebody else runs this server' : !alive && (busy || 'It does not run')} />
    <span class="group">
      <${Action} bare icon="pin" what=${`Pin ${one.name}: it gives way to nobody`} label="Pin" pressed=${one.pinned}
        off=${one.pinned_by === 'configuration' && 'The configuration says so'} run=${() => call(one.pinned ? 'DELETE' : 'PUT', `${path}/pin`)} />
      ${hasView('logs') && html`<a class="button quiet bare" href=${link('logs', [one.instance])} aria-label=${`Logs of ${one.name}`} title=${`Logs of ${one.name}`}><${Icon} name="logs" /></a>`}
      ${served.map((endpoint) => html`<${Open} key=${endpoint.endpoint} endpoint=${endpoint} />`)}
    </span>
  </div>`;
}

// The address that most likely works from where the browser is.
function Open({ endpoint }) {
  const usable = (endpoint.urls ?? []).filter((url) => /^https?:\/\//.test(url));
  if (!usable.length) return null;
  const here = usable.find((url) => URL.canParse(url) && new URL(url).hostname === location.hostname);
  const label = `Open ${endpoint.name} in a new tab`;
  return html`<a class="button quiet bare" href=${here ?? usable[0]} target="_blank" rel="noopener noreferrer" aria-label=${label} title=${label}><${Icon} name="open" /></a>`;
}

function Failure({ error, seenAt }) {
  const again = error.retry_in_s > 0 ? seenAt + error.retry_in_s - now.value : 0;
  return html`<div class="trouble tone-bad"><${Icon} name="failed" /><div>
    <p><strong>${prose(error.message)}</strong>${error.exit_status != null && ` (exit status ${error.exit_status})`}</p>
    ${error.hint && html`<p>${prose(error.hint)}</p>`}
    ${again > 0 && html`<p class="note">Tried again in ${duration(again)}, or when you press Load.</p>`}
    ${error.log_tail?.length > 0 && html`<details><summary>Its last ${plural(error.log_tail.length, 'line')}</summary>
      <pre tabindex="0" aria-label="Last lines of its log">${error.log_tail.join('\n')}</pre></details>`}
  </div></div>`;
}
