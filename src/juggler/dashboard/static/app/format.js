// Numbers as people read them; sizes and durations as the command line prints them.

const UNITS = ['KiB', 'MiB', 'GiB'];

export function size(bytes) {
  if (bytes == null) return '-';
  if (bytes < 1024) return `${bytes} B`;
  let value = bytes / 1024;
  let unit = 0;
  while (value >= 1024 && unit < 2) {
    value /= 1024;
    unit += 1;
  }
  return `${value.toFixed(1)} ${UNITS[unit]}`;
}

// The pool of one place that stands in where nothing is known of the memory: no bytes.
export const isExclusive = (pool) => pool.pool === 'exclusive' && pool.capacity_bytes === 1;

export function amounts(amounts) {
  const some = Object.entries(amounts ?? {}).filter(([, bytes]) => bytes > 0);
  if (some.length === 1) return some[0][0] === 'exclusive' ? 'the only place' : size(some[0][1]);
  return some.map(([pool, bytes]) => `${size(bytes)} ${pool}`).join(', ');
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return '-';
  const whole = Math.max(0, seconds);
  if (whole < 120) return `${Math.round(whole)} s`;
  if (whole < 7200) return `${Math.round(whole / 60)} min`;
  if (whole < 172800) return `${(whole / 3600).toFixed(1)} h`;
  return `${Math.round(whole / 86400)} days`;
}

export const exact = (seconds) => (seconds != null && seconds < 10 ? `${seconds.toFixed(1)} s` : duration(seconds));

export function counter(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (value) => String(value).padStart(2, '0');
  const minutes = Math.floor(whole / 60);
  const rest = two(whole % 60);
  return minutes < 60 ? `${minutes}:${rest}` : `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${rest}`;
}

const clock = (options) => {
  const format = new Intl.DateTimeFormat(undefined, { hourCycle: 'h23', ...options });
  return (at) => format.format(at * 1000);
};
export const hour = clock({ hour: '2-digit', minute: '2-digit' });
export const time = clock({ timeStyle: 'medium' });
export const dateTime = clock({ dateStyle: 'medium', timeStyle: 'medium' });

export const percent = (share) => (share == null ? '-' : `${share > 0 && share < 0.005 ? '<1' : Math.round(share * 100)} %`);
export const plural = (count, noun, many = `${noun}s`) => `${count.toLocaleString()} ${count === 1 ? noun : many}`;

// A clause as a sentence; a name at its head ("gemma: it is ...") stays as it is.
export const sentence = (text) => (/^[^\s:]*:|^$/.test(text) ? text : text.charAt(0).toUpperCase() + text.slice(1)).replace(/\.?$/, '.');
