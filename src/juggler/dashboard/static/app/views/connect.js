// Connect: what to write where, in the clients people use.
import { get } from '../api.js';
import { html, useEffect, useRef, useSignal } from '../html.js';
import { Choice, Empty, Head, Icon, Name, Notice } from '../parts.js';
import { endpoints } from '../store.js';

export default function Connect() {
  const answer = useSignal(null);
  const failure = useSignal(null);
  const picked = useSignal(null);
  const known = endpoints.keys.value.join();
  useEffect(() => {
    const gone = new AbortController();
    get('connect', gone.signal).then(
      (data) => { answer.value = data; failure.value = null; },
      (error) => { if (!gone.signal.aborted) failure.value = error.message; },
    );
    return () => gone.abort();
  }, [known]);
  const { clients = [], warnings = [] } = answer.value ?? {};
  const byEndpoint = Map.groupBy(clients, (one) => one.endpoint);
  const names = [...byEndpoint.keys()];
  const shown = byEndpoint.has(picked.value) ? picked.value : names[0];
  return html`
    <${Head} title="Connect" note="What to write where, in the programs that ask.">
      ${names.length > 1 && html`<${Choice} label="Endpoint" value=${shown} onPick=${(id) => { picked.value = id; }}
        options=${names.map((id) => [id, html`<bdi>${endpoints.find(id)?.name ?? id}</bdi>`])} />`}
    <//>
    ${failure.value && html`<${Notice} tone="bad" title="The settings could not be fetched.">${failure.value}<//>`}
    ${warnings.map((text) => html`<${Notice} key=${text} tone="warn" title=""><bdi>${text}</bdi><//>`)}
    ${answer.value && !shown && html`<${Empty} title="No endpoints">The configuration has none that a client is known for.<//>`}
    ${shown && html`<ul class="clients">${byEndpoint.get(shown).map((one) => html`<${Client} key=${one.client} one=${one} />`)}</ul>`}
  `;
}

function Client({ one }) {
  return html`<li class="pool client"><h2>${one.client}</h2>
    <dl>${one.settings.map(({ name, value }) => html`<div key=${name}><dt>${name}</dt><dd><bdi class="target">${value}</bdi>
      <${Copy} text=${value} what="${one.client}: ${name}" /></dd></div>`)}</dl>
    ${!one.works && html`<p class="tone-warn state"><${Icon} name="failed" />Does not work with this address</p>`}
    ${one.note && html`<p class="note">${one.note}</p>`}</li>`;
}

// Without the clipboard (a page that is not on this machine, and not on HTTPS) the text is marked, to be copied by hand.
function Copy({ text, what }) {
  const self = useRef(null);
  const done = useSignal('');
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      done.value = 'Copied';
    } catch {
      getSelection().selectAllChildren(self.current.previousElementSibling);
      done.value = 'Marked: press Ctrl+C';
    }
    setTimeout(() => { done.value = ''; }, 3000);
  };
  return html`<span ref=${self} class="copy"><button type="button" class="quiet" onClick=${copy} aria-label="Copy ${what}">Copy</button>
    <span class="note" role="status">${done}</span></span>`;
}
