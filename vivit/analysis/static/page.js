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
for (const map of document.querySelectorAll('.confusion-map')) {
  const box = map.closest('.confusion'), {head, names, counts} =
    JSON.parse(box.querySelector('script').textContent);
  const cell = event => {
    const area = map.getBoundingClientRect(), n = names.length;
    const at = part => Math.min(n - 1, Math.max(0, Math.floor(part * n)));
    const i = at((event.clientY - area.top) / area.height);
    const j = at((event.clientX - area.left) / area.width);
    return [names[i], names[j], counts[i + ',' + j] ?? 0];
  };
  map.addEventListener('mousemove', event => { const [label, predicted, clips] = cell(event);
    box.querySelector('.hover').textContent = `${label} predicted as ${predicted}: ${clips} clips`; });
  map.addEventListener('click', event => window.viewer?.openPair?.(head, ...cell(event)));
}
