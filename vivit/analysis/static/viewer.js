// The viewer of clips, attention and attributions. It reads the JSON in #viewer-data and draws into
// #viewer. `window.viewer` is what tests read: the state, and the values that are on the screen.
'use strict';
(() => {
const data = JSON.parse(document.getElementById('viewer-data').textContent);
const root = document.getElementById('viewer');
const LIMIT = 4;      // times the uniform map: what gets the full colour, as in overlay.py
const OPACITY = 0.75;
const state = {clip: 0, frame: 0, playing: false, statistic: 0, grid: 'maps', pair: null,
               panels: [{run: 0}]};
const blobs = new Map();  // "clip/run" -> arrays, or a promise of them

// ---- what the page holds

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, '');
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter(child => child != null));
  return made;
}

async function unpack(text, arrays) {
  const packed = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
  const buffer = await new Response(stream).arrayBuffer();
  const found = {};
  let at = 0;
  for (const {name, type, shape} of arrays) {
    const bytes = count(shape) * (type === 'f4' ? 4 : 1);
    const part = buffer.slice(at, at + bytes);
    found[name] = type === 'f4' ? new Float32Array(part) : new Uint8Array(part);
    at += bytes;
  }
  return found;
}

function arraysOf(clip, run) {
  const key = `${clip}/${run}`;
  if (!blobs.has(key)) {
    blobs.set(key, unpack(data.clips[clip].runs[run].arrays, data.runs[run].arrays)
      .then(found => { blobs.set(key, found); draw(); return found; }));
  }
  const found = blobs.get(key);
  return found instanceof Promise ? null : found;
}

const images = new Map();
function imageOf(clip, run) {
  const key = `${clip}/${run}`;
  if (!images.has(key)) {
    const image = new Image();
    image.onload = () => draw();
    image.src = data.clips[clip].runs[run].frames;
    images.set(key, image);
  }
  return images.get(key);
}

// Weights are kept as bytes: the square root of a weight, as a part of that of the head's largest.
const decoded = (byte, largest) => largest * (byte / 255) ** 2;
const sourceOf = panel => data.runs[panel.run].attentions[panel.source];
const isMethod = panel => typeof panel.source === 'string';
const boxOf = (place, grid, boxes) => Math.floor(place * boxes / grid);
const count = shape => shape.reduce((a, b) => a * b, 1);

// Returns a function of a query's and a key's box: the weight, of a head or the mean of all.
function weightsOf(panel, kind, queries, keys, layer, head) {
  const found = arraysOf(state.clip, panel.run);
  if (!found) return null;
  const bytes = found[`${panel.source}/${kind}`];
  const largest = found[`${panel.source}/${kind}/largest`];
  const all = kind === 'mean' ? 1 : sourceOf(panel).heads;
  const heads = head >= 0 ? [head] : [...Array(all).keys()];
  return (q, k) => heads.reduce((total, h) => {
    const at = layer * all + h;
    return total + decoded(bytes[(at * queries + q) * keys + k], largest[at]);
  }, 0) / heads.length;
}

// The mean of the heads has smaller boxes than each of them.
const boxesOf = (attention, head) => head < 0 ? attention.fine : attention.boxes;

// How many tokens each box has, and the box of each token: `boxes_of` of summaries.py.
const sizes = new Map();
function boxesOfTokens(grid, boxes) {
  const key = `${grid}/${boxes}`;
  if (!sizes.has(key)) {
    const of = [], tokens = new Float32Array(count(boxes));
    for (let t = 0; t < grid[0]; t++) for (let y = 0; y < grid[1]; y++) {
      for (let x = 0; x < grid[2]; x++) {
        const [a, b, c] = [t, y, x].map((place, i) => boxOf(place, grid[i], boxes[i]));
        const box = (a * boxes[1] + b) * boxes[2] + c;
        of.push(box);
        tokens[box] += 1;
      }
    }
    sizes.set(key, {of, tokens});
  }
  return sizes.get(key);
}

// Returns the map of a panel at all time steps: {grid: [t, y, x], values, uniform}. A token has its
// part of the weight of its box.
function mapOf(panel, layer = panel.layer, head = panel.head) {
  const run = data.runs[panel.run];
  if (isMethod(panel)) {
    const found = arraysOf(state.clip, panel.run);
    if (!found) return null;
    const size = count(run.grid), at = run.methods.indexOf(panel.source) * size;
    const values = found.methods.subarray(at, at + size);
    const positive = values.reduce((total, v) => total + Math.max(v, 0), 0);
    return {grid: run.grid, values, uniform: positive / size};
  }
  const attention = sourceOf(panel), ofExtra = panel.extra != null;
  const boxes = ofExtra ? attention.boxes : boxesOf(attention, head), n = count(boxes);
  const {of, tokens} = boxesOfTokens(attention.grid, boxes), inBoxes = new Float32Array(n);
  if (ofExtra) {
    const weight = weightsOf(panel, 'extra', attention.extra.length, n, layer, head);
    if (!weight) return null;
    for (let k = 0; k < n; k++) inBoxes[k] = weight(panel.extra, k);
  } else {
    const weight = weightsOf(panel, head < 0 ? 'mean' : 'between', n, n, layer, head);
    if (!weight) return null;
    if (panel.token) {
      const q = queryBox(panel, boxes);
      // What a token gets of another box, or gives to it, is the mean over that box's tokens.
      for (let k = 0; k < n; k++) {
        inBoxes[k] = panel.back ? weight(k, q) * tokens[k] / tokens[q] : weight(q, k);
      }
    } else {
      for (let q = 0; q < n; q++) {
        for (let k = 0; k < n; k++) inBoxes[k] += weight(q, k) * tokens[q] / of.length;
      }
    }
  }
  const values = Float32Array.from(of, box => inBoxes[box] / tokens[box]);
  let total = 0, some = 0;
  for (const v of values) { total += v; some += v > 0; }
  return {grid: attention.grid, values, uniform: total / Math.max(some, 1)};
}

function queryBox(panel, boxes) {
  const {grid} = sourceOf(panel), full = data.runs[panel.run].grid;
  const [t, y, x] = panel.token.map((place, i) => {
    const onStage = grid[i] === 1 ? 0 : Math.floor(place * grid[i] / full[i]);
    return boxOf(onStage, grid[i], boxes[i]);
  });
  return (t * boxes[1] + y) * boxes[2] + x;
}

// ---- drawing

// Colours of a value against the uniform map: as `vivit.analysis.overlay.overlay` has them.
function colour(value, uniform, out, at) {
  const ratio = Math.max(value / Math.max(uniform, 1e-12), 1e-6);
  const strength = Math.log(ratio) / Math.log(LIMIT);
  const more = Math.min(Math.max(strength, 0), 1), less = Math.min(Math.max(-strength, 0), 1);
  out[at] = more ? 255 : 0;
  out[at + 1] = more ? Math.round(255 * more) : 0;
  out[at + 2] = 0;
  out[at + 3] = Math.round(255 * OPACITY * (more || less));
}

// Draws an array of rows and columns over a whole canvas. paint(value's number, bytes, place in them)
// sets the colour of a value.
function drawArray(canvas, rows, columns, paint, smooth = false) {
  const small = element('canvas', {width: columns, height: rows}), context = canvas.getContext('2d');
  const picture = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) paint(i, picture.data, 4 * i);
  small.getContext('2d').putImageData(picture, 0, 0);
  context.imageSmoothingEnabled = smooth;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

function drawMap(canvas, map, smooth) {
  const [t, rows, columns] = map.grid, from = stepNow(t) * rows * columns;
  const paint = (i, out, at) => colour(map.values[from + i], map.uniform, out, at);
  drawArray(canvas, rows, columns, paint, smooth);
}

// The time step of so many, and the frame of so many, that is on the screen.
const FRAMES = data.runs[0].clip[0];
const stepNow = steps => Math.min(Math.floor(state.frame * steps / FRAMES), steps - 1);

function drawFrame(context, panel, width, height) {
  const run = data.runs[panel.run], image = imageOf(state.clip, panel.run);
  const [frames, h, w] = run.clip, across = run.across;
  if (!image.complete || !image.naturalWidth) return;
  const frame = stepNow(frames);
  context.imageSmoothingEnabled = h >= 64;
  context.drawImage(image, (frame % across) * w, Math.floor(frame / across) * h, w, h,
                    0, 0, width, height);
}

function drawPanel(panel) {
  const run = data.runs[panel.run], canvas = panel.canvas, context = canvas.getContext('2d');
  const {width, height} = canvas;
  context.clearRect(0, 0, width, height);
  drawFrame(context, panel, width, height);
  const map = mapOf(panel);
  panel.map = map;
  if (map && panel.overlay) drawMap(canvas, map, panel.smooth);
  if (panel.token && !isMethod(panel)) {
    const [, rows, columns] = run.grid, [t, y, x] = panel.token;
    const now = stepNow(run.grid[0]) === t;
    context.setLineDash(now ? [] : [6, 5]);
    context.lineWidth = 3;
    context.strokeStyle = '#4dabf7';
    context.strokeRect(x * width / columns + 1.5, y * height / rows + 1.5,
                       width / columns - 3, height / rows - 3);
    context.setLineDash([]);
  }
  drawTimes(panel);
  drawHeads(panel);
  panel.said.textContent = sentence(panel);
}

function percent(x) { return x >= 0.0995 ? `${(100 * x).toFixed(0)} %` : `${(100 * x).toFixed(1)} %`; }

function sentence(panel) {
  if (!panel.map) return 'reading…';
  if (isMethod(panel)) {
    const {explained} = data.clips[state.clip].runs[panel.run];
    return `${panel.source} for ${explained}, against a map that is the same everywhere`;
  }
  const who = panel.head < 0 ? 'mean of heads' : `head ${panel.head}`;
  const of = `layer ${panel.layer}, ${who}`;
  if (panel.extra != null) return `${of}: where the ${sourceOf(panel).extra[panel.extra]} looks`;
  if (!panel.token) return `${of}: what tokens get, averaged over all that look. Click a patch.`;
  const [t, y, x] = panel.token, {values, grid} = panel.map;
  const best = values.indexOf(Math.max(...values));
  const bt = Math.floor(best / (grid[1] * grid[2])), inStep = best % (grid[1] * grid[2]);
  const place = `step ${bt}, row ${Math.floor(inStep / grid[2])}, column ${inStep % grid[2]}`;
  const does = panel.back ? 'is seen most by' : 'looks most at';
  const attention = sourceOf(panel), coarse = boxesOf(attention, panel.head).join();
  const box = coarse === attention.grid.join() ? '' : ` (means in ${coarse.replaceAll(',', ' x ')} boxes)`;
  return `${of}: step ${t}, row ${y}, column ${x} ${does} ${place}: ${percent(values[best])}${box}`;
}

// T x T: rows look at columns. The current time step is marked; a click goes to a time step.
function timesOf(panel, layer = panel.layer, head = panel.head) {
  const t = sourceOf(panel).grid[0];
  const weight = weightsOf(panel, 'over_time', t, t, layer, head);
  if (!weight) return null;
  return Float32Array.from({length: t * t}, (_, i) => weight(Math.floor(i / t), i % t));
}

function drawSquare(canvas, values, t) {
  const largest = Math.max(...values, 1e-12);
  drawArray(canvas, t, t, (i, out, at) => ramp(values[i] / largest, out, at));
}

function ramp(part, out, at) {  // dark blue to yellow
  const stops = [[22, 25, 60], [90, 40, 130], [200, 60, 90], [245, 150, 50], [250, 240, 150]];
  const place = Math.min(Math.max(part, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2), rest = place - low;
  for (let c = 0; c < 3; c++) out[at + c] = stops[low][c] * (1 - rest) + stops[low + 1][c] * rest;
  out[at + 3] = 255;
}

function drawTimes(panel) {
  const shown = !isMethod(panel) && sourceOf(panel).grid[0] > 1;
  panel.times.hidden = !shown;
  if (!shown) return;
  const values = timesOf(panel), t = sourceOf(panel).grid[0], canvas = panel.square;
  if (!values) return;
  drawSquare(canvas, values, t);
  const context = canvas.getContext('2d'), size = canvas.width / t;
  const step = stepNow(t);
  context.strokeStyle = '#4dabf7';
  context.lineWidth = 2;
  context.strokeRect(1, step * size + 1, canvas.width - 2, size - 2);
}

// All heads at once: a map or a T x T of each; a click chooses one.
function drawHeads(panel) {
  const shown = !isMethod(panel);
  panel.heads.hidden = !shown;
  if (!shown) return;
  const attention = sourceOf(panel);
  const key = `${panel.run}/${panel.source}`;
  if (panel.headsOf !== key) {
    panel.headsOf = key;
    panel.small = [];
    const body = element('div', {class: 'v-heads', style: `--heads:${attention.heads}`});
    for (let layer = 0; layer < attention.layers; layer++) {
      for (let head = 0; head < attention.heads; head++) {
        const canvas = element('canvas', {width: 48, height: 48, tabindex: -1,
          title: `layer ${layer}, head ${head}`,
          onclick: () => choose(panel, {layer, head})});
        panel.small.push({canvas, layer, head});
        body.append(canvas);
      }
    }
    panel.headsBody.replaceChildren(body);
    panel.smallKey = null;
  }
  const smallKey = JSON.stringify([state.clip, state.grid, panel.token, panel.back, panel.extra,
                                   state.grid === 'maps' && stepNow(attention.grid[0]),
                                   !!arraysOf(state.clip, panel.run)]);
  for (const {canvas, layer, head} of panel.small) {
    canvas.classList.toggle('v-now', layer === panel.layer && head === panel.head);
  }
  if (panel.smallKey === smallKey) return;
  panel.smallKey = smallKey;
  for (const {canvas, layer, head} of panel.small) {
    const context = canvas.getContext('2d');
    context.fillStyle = '#555';
    context.fillRect(0, 0, 48, 48);
    if (state.grid === 'maps') {
      const map = mapOf(panel, layer, head);
      if (map) drawMap(canvas, map, false);
    } else {
      const values = timesOf(panel, layer, head);
      if (values) drawSquare(canvas, values, attention.grid[0]);
    }
  }
}

function drawStatistics() {
  const panel = state.panels[0];
  if (isMethod(panel)) { parts.statistics.hidden = true; return; }
  const attention = sourceOf(panel), names = Object.keys(attention.statistics);
  parts.statistics.hidden = !names.length;
  if (!names.length) return;
  state.statistic = Math.min(state.statistic, names.length - 1);
  const key = `${panel.run}/${panel.source}/${state.statistic}`;
  if (parts.statisticsOf !== key) {
    parts.statisticsOf = key;
    const select = element('select', {'aria-label': 'statistic', onchange: event => {
      state.statistic = event.target.selectedIndex; draw(); }},
      ...names.map((name, i) => element('option', {selected: i === state.statistic}, name)));
    const values = attention.statistics[names[state.statistic]], all = values.flat();
    const low = Math.min(...all), span = Math.max(...all) - low || 1;
    const head = element('tr', {}, element('th', {}, 'layer'),
      ...values[0].map((_, i) => element('th', {class: 'n'}, `head ${i}`)));
    const rows = values.map((row, layer) => element('tr', {}, element('td', {}, `${layer}`),
      ...row.map((value, index) => element('td', {class: 'n v-cell', tabindex: 0,
        style: `--part:${((value - low) / span).toFixed(3)}`,
        onclick: () => choose(panel, {layer, head: index}),
        onkeydown: event => event.key === 'Enter' && choose(panel, {layer, head: index})},
        value.toPrecision(3)))));
    parts.statistics.replaceChildren(element('h3', {}, 'Heads'),
      element('p', {class: 'quiet'}, `Means over the clips of this page. ${attention.name}: `, select),
      element('div', {class: 'scroll'}, element('table', {}, element('thead', {}, head),
                                                element('tbody', {}, ...rows))));
  }
}

function draw() {
  if (!parts.strip) return;
  parts.time.value = state.frame;
  parts.clock.textContent = `frame ${state.frame + 1} / ${FRAMES}`;
  parts.play.textContent = state.playing ? 'Pause' : 'Play';
  for (const panel of state.panels) drawPanel(panel);
  drawStatistics();
  parts.thumbs.forEach(({button, index}) => {
    button.setAttribute('aria-current', index === state.clip);
    button.hidden = !inPair(index);
  });
}

// ---- controls

function choose(panel, changes) {
  Object.assign(panel, changes);
  fill(panel);
  draw();
}

function option(value, label, current) {
  return element('option', {value, selected: String(value) === String(current)}, label);
}

// Rewrites the controls of a panel so that they offer what its run and attention have.
function fill(panel) {
  const run = data.runs[panel.run];
  if (isMethod(panel) ? !run.methods.includes(panel.source) : panel.source >= run.attentions.length) {
    panel.source = run.methods[0];
  }
  panel.runs.replaceChildren(...data.runs.map((r, i) => option(i, r.name, panel.run)));
  panel.runs.hidden = data.runs.length < 2;
  panel.sources.replaceChildren(
    element('optgroup', {label: 'attribution'}, ...run.methods.map(m => option(m, m, panel.source))),
    element('optgroup', {label: 'attention'},
            ...run.attentions.map((a, i) => option(i, a.name, panel.source))));
  const attention = isMethod(panel) ? null : sourceOf(panel);
  panel.ofAttention.hidden = !attention;
  if (attention) {
    panel.layer = Math.min(panel.layer, attention.layers - 1);
    panel.head = Math.min(panel.head, attention.heads - 1);
    if (panel.extra != null && panel.extra >= attention.extra.length) panel.extra = null;
    const numbers = n => [...Array(n).keys()];
    panel.layers.replaceChildren(...numbers(attention.layers).map(
      i => option(i, `layer ${i}`, panel.layer)));
    panel.headsChoice.replaceChildren(option(-1, 'mean of heads', panel.head),
      ...numbers(attention.heads).map(i => option(i, `head ${i}`, panel.head)));
    panel.extras.replaceChildren(option('', 'patches', panel.extra ?? ''),
      ...attention.extra.map((name, i) => option(i, name, panel.extra ?? '')));
    panel.extras.hidden = !attention.extra.length;
    panel.direction.textContent = panel.back ? 'who looks at it' : 'where it looks';
    panel.direction.hidden = !panel.token || panel.extra != null;
    panel.clear.hidden = !panel.token;
  }
  const guesses = data.clips[state.clip].runs[panel.run].guesses;
  panel.guesses.replaceChildren(...guesses.map(({name, p, right}) => element('li',
    {class: right ? 'correct' : ''}, element('span', {class: 'v-bar', style: `--part:${p}`}),
    `${name} ${percent(p)}`)));
}

function makePanel(panel) {
  const run = data.runs[panel.run], [, h, w] = run.clip;
  const scale = Math.max(1, Math.round(448 / Math.max(h, w)));
  Object.assign(panel, {source: panel.source ?? run.methods[0], layer: 0, head: -1, token: null,
                        extra: null, back: false, overlay: true, smooth: true});
  const select = (label, change) => element('select', {'aria-label': label,
    onchange: event => { change(event.target.value); fill(panel); draw(); event.target.blur(); }});
  panel.runs = select('run', value => { panel.run = +value; panel.token = null; });
  panel.sources = select('map', value => {
    panel.source = isNaN(value) ? value : +value; });
  panel.layers = select('layer', value => { panel.layer = +value; });
  panel.headsChoice = select('head', value => { panel.head = +value; });
  panel.extras = select('who looks', value => { panel.extra = value === '' ? null : +value; });
  panel.direction = element('button', {type: 'button',
    onclick: () => choose(panel, {back: !panel.back})});
  panel.clear = element('button', {type: 'button', onclick: () => choose(panel, {token: null})},
                        'no patch');
  panel.ofAttention = element('span', {class: 'v-controls'}, panel.layers, panel.headsChoice,
                              panel.extras, panel.direction, panel.clear);
  panel.canvas = element('canvas', {class: 'v-clip', width: w * scale, height: h * scale,
    role: 'img', 'aria-label': 'the clip with a map', onclick: event => click(panel, event)});
  panel.said = element('p', {class: 'quiet v-said', 'aria-live': 'polite'});
  panel.guesses = element('ol', {class: 'v-guesses'});
  panel.square = element('canvas', {width: 192, height: 192, class: 'v-square',
    'aria-label': 'weights between time steps', onclick: event => clickTimes(panel, event)});
  panel.times = element('div', {class: 'v-times'}, panel.square,
    element('p', {class: 'quiet'}, 'Time steps that look (rows) at time steps (columns).'));
  panel.headsBody = element('div', {});
  panel.heads = element('div', {}, element('p', {class: 'quiet'},
    'All heads (columns) of all layers (rows); click one.'), panel.headsBody);
  panel.box = element('section', {class: 'v-panel'},
    element('div', {class: 'v-controls'}, panel.runs, panel.sources, panel.ofAttention),
    panel.canvas, panel.said, panel.guesses, panel.times, panel.heads);
  fill(panel);
  return panel.box;
}

function click(panel, event) {
  const box = panel.canvas.getBoundingClientRect(), [t, rows, columns] = data.runs[panel.run].grid;
  const at = (offset, length, all) => Math.min(Math.max(Math.floor(offset / length * all), 0), all - 1);
  const y = at(event.clientY - box.top, box.height, rows);
  const x = at(event.clientX - box.left, box.width, columns);
  const token = [stepNow(t), y, x];
  if (isMethod(panel)) {  // on to the last attention of all tokens
    const {attentions, grid} = data.runs[panel.run];
    const all = attentions.findLastIndex(a => a.grid.join() === grid.join());
    panel.source = Math.max(all, 0);
  }
  choose(panel, {token, extra: null});
}

function clickTimes(panel, event) {
  const box = panel.square.getBoundingClientRect(), t = sourceOf(panel).grid[0];
  const step = Math.min(Math.floor((event.clientY - box.top) / box.height * t), t - 1);
  state.frame = Math.ceil(step * FRAMES / t);
  draw();
}

function setClip(index) {
  state.clip = (index + data.clips.length) % data.clips.length;
  for (const panel of state.panels) { panel.smallKey = null; fill(panel); }
  draw();
}

function compare() {
  if (state.panels.length === 2) {
    state.panels.pop().box.remove();
  } else {
    const first = state.panels[0], run = Math.min(1, data.runs.length - 1);
    const methods = data.runs[run].methods;
    const source = run ? undefined : methods.find(m => m !== first.source);
    const panel = {run, source};
    state.panels.push(panel);
    parts.panels.append(makePanel(panel));
  }
  parts.compare.setAttribute('aria-pressed', state.panels.length === 2);
  draw();
}

function inPair(index) {
  if (!state.pair) return true;
  const clip = data.clips[index], [head, label, predicted] = state.pair;
  return clip.label[head].includes(label) && clip.runs[0].top[head] === predicted;
}

// Shows only the clips of a label of a head that are predicted as a class; null for all of them.
function openPair(head, label, predicted, all) {
  state.pair = head == null ? null : [head, label, predicted];
  const found = data.clips.map((_, i) => i).filter(inPair);
  parts.pair.replaceChildren();
  if (state.pair) {
    parts.pair.append(`${found.length} of ${all} clips of ${label} that are predicted as ${predicted} `
      + 'are on this page. ',
      element('button', {type: 'button', onclick: () => openPair(null)}, 'all clips'));
  }
  if (found.length && !found.includes(state.clip)) setClip(found[0]);
  draw();
  if (state.pair) root.scrollIntoView();
}

let timer = null;
function play() {
  state.playing = !state.playing;
  clearInterval(timer);
  if (state.playing) timer = setInterval(() => seek(1), 1000 / 8);
  draw();
}

const cycle = (panel, change) => {
  if (isMethod(panel)) return;
  choose(panel, {layer: (panel.layer + change + sourceOf(panel).layers) % sourceOf(panel).layers});
};
const cycleHead = (panel, change) => {
  if (isMethod(panel)) return;
  const n = sourceOf(panel).heads + 1;
  choose(panel, {head: (panel.head + 1 + change + n) % n - 1});
};
const cycleSource = panel => {
  const run = data.runs[panel.run];
  const all = [...run.methods, ...run.attentions.keys()];
  choose(panel, {source: all[(all.indexOf(panel.source) + 1) % all.length]});
};
const seek = change => {
  state.frame = (state.frame + change + FRAMES) % FRAMES;
  draw();
};
const first = () => state.panels[0];
const KEYS = {
  ' ': ['play, pause', play],
  ArrowLeft: ['frame before', () => seek(-1)],
  ArrowRight: ['next frame', () => seek(1)],
  ArrowUp: ['layer before', () => cycle(first(), -1)],
  ArrowDown: ['next layer', () => cycle(first(), 1)],
  '[': ['head before', () => cycleHead(first(), -1)],
  ']': ['next head', () => cycleHead(first(), 1)],
  m: ['next map', () => cycleSource(first())],
  d: ['where it looks, who looks at it', () => choose(first(), {back: !first().back})],
  o: ['map on, off', () => choose(first(), {overlay: !first().overlay})],
  s: ['smooth, or patches', () => choose(first(), {smooth: !first().smooth})],
  n: ['next clip', () => setClip(state.clip + 1)],
  p: ['clip before', () => setClip(state.clip - 1)],
  c: ['compare', compare],
  Escape: ['no patch, all clips', () => { openPair(null); choose(first(), {token: null}); }],
};
document.addEventListener('keydown', event => {
  const used = {SELECT: Object.keys(KEYS), BUTTON: [' '], SUMMARY: [' '],
                INPUT: ['ArrowLeft', 'ArrowRight', 'ArrowUp', 'ArrowDown']}[event.target.tagName] ?? [];
  if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
  if (used.includes(event.key) && event.key !== 'Escape') return;
  event.preventDefault();
  KEYS[event.key][1]();
});

// ---- the page

const parts = {};
function build() {
  parts.thumbs = data.clips.map((clip, index) => {
    const button = element('button', {type: 'button', class: 'v-thumb', onclick: () => setClip(index)},
      element('img', {src: clip.thumb, alt: '', class: data.runs[0].clip[1] < 64 ? 'pixels' : ''}),
      element('span', {class: clip.runs[0].right == null ? '' : clip.runs[0].right ? 'correct' : 'wrong'},
              clip.title));
    return {button, index};
  });
  parts.strip = element('div', {class: 'v-strip', role: 'group', 'aria-label': 'clips'},
                        ...parts.thumbs.map(({button}) => button));
  parts.pair = element('p', {class: 'v-pair'});
  parts.time = element('input', {type: 'range', min: 0, max: FRAMES - 1, value: 0,
    'aria-label': 'frame', oninput: event => { state.frame = +event.target.value; draw(); }});
  parts.clock = element('span', {class: 'quiet v-clock'});
  parts.play = element('button', {type: 'button', onclick: play}, 'Play');
  parts.compare = element('button', {type: 'button', onclick: compare, 'aria-pressed': 'false'},
                          'Compare');
  const gridChoice = element('select', {'aria-label': 'what all heads show', onchange: event => {
    state.grid = event.target.value; draw(); event.target.blur(); }},
    option('maps', 'heads: maps', state.grid), option('times', 'heads: time steps', state.grid));
  const help = element('details', {class: 'v-help'}, element('summary', {}, 'Keys'),
    element('dl', {}, ...Object.entries(KEYS).flatMap(([key, [does]]) => [
      element('dt', {}, element('kbd', {}, key === ' ' ? 'Space' : key)), element('dd', {}, does)])));
  parts.panels = element('div', {class: 'v-panels'}, makePanel(state.panels[0]));
  parts.statistics = element('div', {class: 'v-statistics'});
  root.replaceChildren(parts.strip, parts.pair,
    element('div', {class: 'v-controls v-bar-of-time'}, parts.play, parts.time, parts.clock,
            parts.compare, gridChoice),
    parts.panels, parts.statistics, help);
  for (const cell of document.querySelectorAll('[data-label][data-predicted]')) {
    const {head, label, predicted} = cell.dataset;
    cell.addEventListener('click', () => openPair(head, label, predicted, cell.textContent));
  }
  if (data.runs.length > 1) compare();
  draw();
}

window.viewer = {data, state, parts, openPair, setClip, choose,
  ready: () => state.panels.every(panel => panel.map) };
build();
})();
