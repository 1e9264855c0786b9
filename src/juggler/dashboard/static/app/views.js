// The views, and where this is: `#/view/rest?param=value`. See README.md.
import { signal } from './html.js';
import { waitingCount } from './store.js';

export const VIEWS = [
  { id: 'board', title: 'Board', load: () => import('./views/board.js') },
  { id: 'queue', title: 'Queue', load: () => import('./views/queue.js'), count: () => waitingCount.value },
  { id: 'timeline', title: 'Timeline', load: () => import('./views/timeline.js') },
  { id: 'requests', title: 'Requests', load: () => import('./views/requests.js') },
  { id: 'history', title: 'History', load: () => import('./views/history.js') },
  { id: 'logs', title: 'Logs', load: () => import('./views/logs.js') },
  { id: 'config', title: 'Config', load: () => import('./views/config.js') },
  { id: 'connect', title: 'Connect', load: () => import('./views/connect.js') },
  { id: 'try', title: 'Try it', load: () => import('./views/try.js') },
];

export const hasView = (id) => VIEWS.some((one) => one.id === id);

function parse(hash) {
  const [path, query] = hash.replace(/^#\/?/, '').split('?');
  const [view, ...rest] = path.split('/').map(plain);
  return hasView(view) ? { view, rest, params: new URLSearchParams(query) } : { view: 'board', rest: [], params: new URLSearchParams() };
}

function plain(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // typed by hand, with a % that means itself
  }
}

export const route = signal(parse(location.hash));
window.addEventListener('hashchange', () => {
  route.value = parse(location.hash);
});

export function link(view, rest = [], params = {}) {
  const query = new URLSearchParams(params).toString();
  return `#/${[view, ...rest].map(encodeURIComponent).join('/')}${query && `?${query}`}`;
}
