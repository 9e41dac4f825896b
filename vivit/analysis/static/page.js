// Light or dark as the reader's system has it, until the button says otherwise.
const theme = document.getElementById('theme'), dark = matchMedia('(prefers-color-scheme: dark)');
const setTheme = name => { document.documentElement.dataset.theme = name;
                           theme.textContent = name === 'dark' ? 'Light' : 'Dark'; };
setTheme(dark.matches ? 'dark' : 'light');
dark.addEventListener('change', () => setTheme(dark.matches ? 'dark' : 'light'));
theme.addEventListener('click', () =>
  setTheme(document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark'));
for (const th of document.querySelectorAll('th[data-sort]')) th.addEventListener('click', () => {
  const body = th.closest('table').tBodies[0], at = th.cellIndex;
  const up = th.dataset.sort = th.dataset.sort === 'up' ? 'down' : 'up';
  const key = row => { const v = row.cells[at].dataset.v ?? row.cells[at].textContent;
                       return v === '' || isNaN(v) ? v : +v; };
  [...body.rows].sort((a, b) => { const x = key(a), y = key(b);
    const order = typeof x !== typeof y ? (typeof x === 'string' ? 1 : -1)
                                        : x < y ? -1 : x > y ? 1 : 0;
    return up === 'up' ? order : -order; }).forEach(row => body.append(row)); });
const map = document.getElementById('confusion-map');
if (map) { const data = JSON.parse(document.getElementById('confusion-data').textContent);
  const n = data.names.length, at = part => Math.min(n - 1, Math.max(0, Math.floor(part * n)));
  map.addEventListener('mousemove', e => { const box = map.getBoundingClientRect();
    const i = at((e.clientY - box.top) / box.height), j = at((e.clientX - box.left) / box.width);
    document.getElementById('hover').textContent =
      `${data.names[i]} predicted as ${data.names[j]}: ${data.counts[i + ',' + j] ?? 0} clips`;
  });
  map.addEventListener('click', e => { const box = map.getBoundingClientRect();
    const i = at((e.clientY - box.top) / box.height), j = at((e.clientX - box.left) / box.width);
    window.viewer?.openPair(data.names[i], data.names[j], data.counts[i + ',' + j] ?? 0);
  }); }
