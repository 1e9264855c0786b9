// Config: the file with its problems, what is in effect, and what reading it again would change.
import { API, call, get } from '../api.js';
import { dateTime, plural } from '../format.js';
import { html, useEffect, useSignal } from '../html.js';
import { Action, Ago, Choice, Empty, Head, Icon, Notice, prose } from '../parts.js';
import { meta } from '../store.js';

const DEADLINE_MS = 90000; // looks at model files and certificates take their time

export default function Config() {
  const report = useSignal(null);
  const failure = useSignal(null);
  const outcome = useSignal(null); // of what was asked for here
  const form = useSignal('text');
  const loaded = meta.value?.config?.loaded_at;
  useEffect(() => {
    const gone = new AbortController();
    get('config', gone.signal).then(
      (data) => { report.value = data; failure.value = null; },
      (error) => { if (!gone.signal.aborted) failure.value = error.message; },
    );
    return () => gone.abort();
  }, [loaded]);
  const reload = (dry) => async () => {
    outcome.value = await read(dry);
    return {};
  };
  const config = report.value;
  const last = outcome.value ?? meta.value?.config?.last_reload;
  return html`
    <${Head} title="Config" note=${config?.path ? html`<bdi>${config.path}</bdi>` : ''}>
      <${Action} label="Check" what="Check what a reload would change" run=${reload(true)} off=${config && !config.path && 'This juggler runs without a file'} />
      <${Action} main label="Reload" what="Reload the configuration" run=${reload(false)} off=${config && !config.path && 'This juggler runs without a file'} />
      <a class="button" href="${API}config/schema" download="juggler.schema.json">Schema</a>
    <//>
    ${failure.value && html`<${Notice} tone="bad" title="The configuration could not be fetched.">${failure.value}<//>`}
    ${last && html`<${Outcome} one=${last} />`}
    ${config && html`<section aria-labelledby="problems"><h2 id="problems">Problems</h2>
      ${config.problems.length === 0
        ? html`<p class="note">None in what is in effect, read <${Ago} at=${config.loaded_at} />.</p>`
        : html`<${Problems} all=${config.problems} />`}</section>
    <section aria-labelledby="written"><div class="head"><h2 id="written">${form.value === 'text' ? 'The file' : 'In effect'}</h2>
      <div class="tools"><${Choice} label="Shown as" options=${[['text', 'As written'], ['effective', 'In effect']]} value=${form.value} onPick=${(id) => { form.value = id; }} /></div></div>
      ${form.value === 'effective' ? html`<pre class="listing" tabindex="0">${JSON.stringify(config.effective, null, 2)}</pre>`
        : config.text_masked == null ? html`<${Empty} title="No file">It was started without one.<//>` : html`<${Listing} text=${config.text_masked} problems=${config.problems} />`}
      <p class="note">Secrets are masked.</p></section>`}
  `;
}

// A file that is wrong is an answer, not a failure: it says what.
async function read(dry) {
  try {
    return await call('POST', `reload?dry_run=${dry}`, undefined, AbortSignal.timeout(DEADLINE_MS));
  } catch (error) {
    if (error.status === 422 && error.data?.problems) return error.data;
    throw error;
  }
}

function Outcome({ one }) {
  const title = one.dry_run ? 'A reload would do this' : one.ok ? 'Reloaded' : 'Not reloaded';
  return html`<${Notice} tone=${one.ok ? 'info' : 'bad'} title="${title}:">
    <bdi>${prose(one.summary)}</bdi> <span class="note">${dateTime(one.at)}, by ${one.by}</span>
    ${one.changes.length > 0 && html`<details open=${one.dry_run}><summary>${plural(one.changes.length, 'change')}</summary>
      <ul>${one.changes.map((change, index) => html`<li key=${index}><bdi>${change.kind} ${change.name}</bdi>: ${change.change}${change.what?.length > 0 && ` (${change.what.join(', ')})`}</li>`)}</ul></details>`}
    ${one.problems.length > 0 && html`<${Problems} all=${one.problems} />`}<//>`;
}

const Problems = ({ all }) => html`<ul class="problems">${all.map((one, index) => html`<li key=${index} class="trouble tone-${one.severity === 'error' ? 'bad' : 'warn'}">
  <${Icon} name="failed" /><div><strong>${one.severity}</strong>${one.line != null && html` <span class="target">${one.line}:${one.column}</span>`} <bdi>${prose(one.message)}</bdi>
    ${one.hint && html`<p class="note">${prose(one.hint)}</p>`}${one.excerpt && html`<pre>${one.excerpt}</pre>`}</div></li>`)}</ul>`;

function Listing({ text, problems }) {
  const wrong = new Map(problems.map((one) => [one.line, one.severity]));
  return html`<pre class="listing" tabindex="0">${text.replace(/\n$/, '').split('\n').map((line, index) => html`<code key=${index}
    class=${wrong.has(index + 1) ? 'wrong' : ''}><span class="place" aria-hidden="true">${index + 1}</span>${line}${'\n'}</code>`)}</pre>`;
}
