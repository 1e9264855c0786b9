// Runs before the first paint, so that a chosen theme does not flash in late. Not a module: those wait.
try {
  const theme = localStorage.getItem('juggler.theme');
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
} catch { /* storage is forbidden: the system's theme it is */ }
