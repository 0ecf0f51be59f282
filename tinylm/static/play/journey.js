// One token's journey: from its character to the draw of the next one, a small picture for each step.

const JOURNEY = `
.journey { border-top: 1px solid var(--line); margin-top: 14px; padding-bottom: 4px; border-radius: 4px; }
.journey .row { margin: 0 0 4px; }
.journey .row .slide { flex: 1 1 14em; margin: 0; grid-template-columns: auto minmax(60px, 1fr) 5em; }
.journey h4 { font-size: 15px; margin: 8px 0 2px; }
.journey p { margin: 2px 0 8px; max-width: 46em; }
.step { min-height: 13em; }
.journey [hidden] { display: none; }
.vector { display: grid; grid-template-columns: 9.5em minmax(0, 1fr) 5em; gap: 2px 10px; align-items: center;
  margin: 6px 0; }
.vector .num, .brought .num { text-align: right; }
.vector.whole { border-top: 1px solid var(--muted); padding-top: 6px; font-weight: 600; }
.squares { display: grid; grid-template-columns: repeat(var(--n), minmax(0, 1fr)); gap: 1px; }
.squares i { aspect-ratio: 1; cursor: pointer; border-radius: 1px;
  background: color-mix(in srgb, var(--c) var(--v), var(--soft)); }
.squares .high { --c: var(--kept); }
.squares .low { --c: var(--again); border-radius: 50%; }
.squares .now { outline: 2px solid var(--ink); }
.letters { display: flex; flex-wrap: wrap; gap: 2px; }
.letters code { min-width: 1.7em; text-align: center; }
.letters .now { background: var(--prefill); color: var(--on); outline: 2px solid var(--ink); }
.looks { display: grid; grid-template-columns: 4.5em minmax(0, 1fr); gap: 3px 8px; align-items: end; }
.columns { display: grid; grid-template-columns: repeat(var(--n), minmax(0, 1fr)); gap: 1px; }
.columns i { align-self: end; background: var(--prefill); border-radius: 2px 2px 0 0; min-height: 1px; }
.columns.high { height: 40px; border-bottom: 1px solid var(--line); }
.columns code { text-align: center; padding: 0; white-space: pre; font-size: 12px; overflow: hidden; }
.columns code:last-child { background: var(--prefill); color: var(--on); }
.brought { --w: 9.5em; }
.brought li { grid-template-columns: var(--w) 1fr 5em; }
.num, .slide > span { white-space: nowrap; }
.brought .bar { background: linear-gradient(var(--line), var(--line)) var(--zero) / 1px 100% no-repeat; }
.brought .bar i { inset: 0 auto 0 var(--from); }
.brought .high { --c: var(--kept); }
.brought .low { --c: var(--again); border-radius: 7px; }
.share { display: flex; height: 34px; margin-top: 26px; border-radius: 5px; overflow: hidden; }
.share b { font: 13px/34px var(--mono); text-align: center; overflow: hidden; white-space: pre; min-width: 0;
  background: var(--soft); box-shadow: inset -1px 0 var(--surface); }
.share b:nth-child(even) { background: color-mix(in srgb, var(--prefill) 22%, var(--soft)); }
.share b.hit { background: var(--decode); color: var(--on); font-weight: 700; }
.fall { position: relative; height: 0; }
.fall i { position: absolute; top: -58px; width: 2px; height: 60px; margin-left: -1px;
  background: var(--ink); }
.fall i::before { content: ""; position: absolute; left: -5px; top: 0; border: 6px solid transparent;
  border-top-color: var(--ink); }
@media (prefers-reduced-motion: no-preference) {
  .step.on > * { animation: on .28s ease-out both; }
  .step.back > * { animation: back .28s ease-out both; }
  .step.on .fall i { animation: fall .5s cubic-bezier(.5, 0, 1, .6) both; }
  @keyframes on { from { opacity: 0; transform: translateX(14px); } }
  @keyframes back { from { opacity: 0; transform: translateX(-14px); } }
  @keyframes fall { from { opacity: 0; transform: translateY(-24px); } }
}
@container (max-width: 640px) {
  .vector { grid-template-columns: 1fr auto; }
  .vector .squares { grid-row: 2; grid-column: 1 / -1; }
}
`;

const added = parts => parts.reduce((a, b) => a.map((x, i) => x + b[i]));
const largest = values => values.reduce((best, v, i) => (v > values[best] ? i : best), 0);
const spread = vectors => Math.max(1e-9, ...vectors.map(v => Math.max(...v.map(Math.abs))));

// --- the pictures

function squares(label, values, t, most, kind = '') {   // a vector; what is below 0 is round
  const shown = values[t.channel].toFixed(4);
  const cell = (v, i) => h('i', {
    class: (v < 0 ? 'low' : 'high') + (i === t.channel ? ' now' : ''), 'data-i': i,
    style: `--v: ${Math.round(100*Math.sqrt(Math.abs(v)/most))}%`, title: `channel ${i}: ${v.toFixed(4)}`,
  });
  const range = `from ${Math.min(...values).toFixed(2)} to ${Math.max(...values).toFixed(2)}`;
  const spoken = `${label}: ${values.length} numbers ${range}, channel ${t.channel} is ${shown}`;
  const room = t.width > 610 ? t.width - 225 : t.width;
  const n = Math.ceil(values.length/Math.ceil(9*values.length/room));
  const pick = e => { if (e.target.dataset.i) t.pick(+e.target.dataset.i); };
  return h('div', { class: `vector ${kind}` }, h('span', {}, label),
    h('div', { class: 'squares', role: 'img', 'aria-label': spoken, click: pick, style: `--n: ${n}` },
      [...values].map(cell)),
    h('span', { class: 'num' }, shown));
}

function sums(rows, t) {   // [name, vector]: each is added to the first, the last line is the sum
  const total = added(rows.map(([, v]) => v)), most = spread([...rows.map(([, v]) => v), total]);
  const line = ([label, v], i) => squares((i ? '+ ' : '') + label, v, t, most);
  return [rows.map(line), squares('= the stream', total, t, most, 'whole')];
}

function weighed(weights, t) {   // a head's weights as columns above the characters; the oldest in one
  const room = Math.max(4, Math.floor((t.width - 90)/13)), cut = Math.max(0, weights[0].length - room);
  const names = [...weights[0].keys()].map(i => t.name(t.look.from + i)), cuts = cut ? ['\u2026'] : [];
  const columns = (w, k) => {
    const old = cut ? [sum([...w.slice(0, cut)])] : [], best = largest(w);
    const whose = i => i < 0 ? 'all before' : `${names[cut + i]} (${t.look.from + cut + i})`;
    const bar = (v, i) => h('i', { style: `height: ${100*v}%`,
      title: `${whose(i - old.length)}: ${v.toFixed(4)}` });
    const spoken = `head ${k}, most from ${names[best]}, ${w[best].toFixed(2)}`;
    return [h('span', {}, `head ${k}`), h('div', { class: 'columns high', role: 'img', 'aria-label': spoken },
      [...old, ...w.slice(cut)].map(bar))];
  };
  const letters = [...cuts, ...names.slice(cut)].map(c => h('code', {}, c));
  return h('div', { class: 'looks', style: `--n: ${letters.length}` }, weights.map(columns),
    h('span', {}), h('div', { class: 'columns', 'aria-hidden': 'true' }, letters));
}

function brought(rows, t) {   // what each part did to one channel: bars that begin where the last one ended
  const ends = rows.reduce((all, [, v]) => [...all, all[all.length - 1] + v[t.channel]], [0]);
  const low = Math.min(...ends), wide = Math.max(1e-9, Math.max(...ends) - low), at = x => 100*(x - low)/wide;
  const bar = ([label, v], i) => h('li', {}, h('span', { class: 'name' }, label),
    h('span', { class: 'bar' }, h('i', { class: v[t.channel] < 0 ? 'low' : 'high', style:
      `--from: ${at(Math.min(ends[i], ends[i + 1]))}%; width: ${100*Math.abs(v[t.channel])/wide}%` })),
    h('span', { class: 'num' }, (v[t.channel] < 0 ? '\u2212' : '+') + Math.abs(v[t.channel]).toFixed(4)));
  return h('ol', { class: 'bars brought', style: `--zero: ${at(0)}%` }, rows.map(bar));
}

function scores(logits, t) {
  const order = ranked(logits), low = logits[order.at(-1)];
  const width = id => 100*(logits[id] - low)/Math.max(1e-9, logits[order[0]] - low);
  const bar = id => h('li', {}, h('span', { class: 'name' }, h('code', {}, t.sign(id))),
    h('span', { class: 'bar' }, h('i', { style: `width: ${width(id)}%` })),
    h('span', { class: 'num' }, logits[id].toFixed(4)));
  return h('ol', { class: 'bars', style: '--w: 4.2em', 'aria-label': 'the highest scores' },
    order.slice(0, 8).map(bar));
}

function drawn(t) {   // all shares in a line, in the order of the ids; a number falls on one of them
  const { logits } = t.look, order = ranked(logits);
  const { p } = distribution(logits, order, t.temperature, t.topK, null), share = [];
  order.forEach((id, i) => { share[id] = p[i]; });
  const hit = land(share, t.number), start = sum(share.slice(0, hit)), f = x => x.toFixed(4);
  const part = (x, id) => x > 0 ? h('b', { class: id === hit ? 'hit' : '', style: `flex: ${x} 0 0`,
    title: `${t.sign(id)}: ${f(x)}` }, x*t.width > 16 ? t.sign(id) : '') : null;
  const words = `${f(t.number)} falls on ${t.sign(hit)}, from ${f(start)} to ${f(start + share[hit])}`;
  const next = t.ids[t.at + 1], shown = next == null ? '' : h('code', {}, t.sign(next));
  const then = next == null ? ['Nothing is drawn here yet: move the number.']
    : t.given ? ['The prompt goes on with ', shown, `, and nobody draws. Its share is ${f(share[next])}.`]
    : t.number !== t.draw.u ? ['In the text, the number was ', f(t.draw.u), '.']
    : hit === next ? ['So the text goes on with ', shown, '.']
    : ['The text goes on with ', shown, ': it was drawn from other logits.'];
  return [h('div', { class: 'share', role: 'img', 'aria-label': words }, share.map(part)),
    h('div', { class: 'fall' }, h('i', { style: `left: ${100*t.number}%` })),
    h('p', { class: 'landed' }, `${words}. `, then)];
}

// --- the steps: [name, words, picture]

function steps(t) {
  const { look, about: { config: c, chars } } = t, id = t.ids[t.at], code = h('code', {}, t.sign(id));
  const learned = c.positions === 'learned', first = learned ? 2 : 1, { parts } = look;
  const layers = [...Array(c.n_layer).keys()], heads = l => first + 2*l, mlp = l => first + 2*l + 1;
  const before = k => ['the stream', added(parts.slice(0, k))];
  const names = [`token ${id}`, ...(learned ? [`place ${t.at - look.from}`] : []),
    ...layers.flatMap(l => [`heads of layer ${l}`, `MLP of layer ${l}`])];
  const rows = parts.map((v, i) => [names[i], v]), two = x => x.toFixed(2);
  const block = l => {
    const from = heads(l), then = mlp(l), best = look.seen[l].map(w => w[largest(w)]), k = largest(best);
    const at = look.from + largest(look.seen[l][k]);
    return [[`Layer ${l}: the heads look back`, ['Each head weighs the characters up to this one. ',
      `Head ${k} takes ${two(best[k])} from `, h('code', {}, t.name(at)),
      '. What they bring is added to the stream.'],
      () => [weighed(look.seen[l], t), sums([before(from), rows[from]], t)]],
    [`Layer ${l}: the MLP adds its part`, ['It looks at no other token: only at this vector.'],
      () => sums([before(then), rows[then]], t)]];
  };
  const top = t.topK == null ? '' : ` and top-k ${t.topK}`;
  const place = learned ? 'The vector of its place is added. '
    : 'No vector says where it stands: the heads will turn by the place. ';
  return [
    ['A character becomes a number', ['The model knows ', `${chars.length} characters, and `, code,
      ` is number ${id} of them. The number is all that it sees.`],
      () => h('div', { class: 'letters', role: 'img', 'aria-label': `number ${id} of all is marked` },
        chars.map((x, i) => h('code', { class: i === id ? 'now' : '' }, sign(x))))],
    ['The number becomes a vector', [`Row ${id} of the embedding has ${c.n_embd} numbers. ${place}`,
      'So begins the residual stream.'], () => sums(rows.slice(0, first), t)],
    ...layers.flatMap(block),
    ['The stream is a sum', ['Nothing was written over. ', `In channel ${t.channel}, this is what each part `,
      `added, up to ${added(parts)[t.channel].toFixed(4)}:`],
      () => [brought(rows, t), squares('= the stream', added(parts), t, spread([added(parts)]), 'whole')]],
    ['The vector becomes scores', ['A last norm, then the head: ', `one logit for each of ${chars.length} `,
      'characters. These are the highest:'],
      () => [squares('after the norm', look.normed, t, spread([look.normed])), scores(look.logits, t)]],
    ['A number is drawn', [`At temperature ${two(t.temperature)}${top}, `,
      'the softmax makes shares of the scores. Where the number falls, there is the next character.'],
      () => drawn(t)],
  ];
}

// --- what can be moved

function journey(page, see, now) {   // `now()` says what there is to follow
  let step = 0, channel = null, number = null, last = '', token = null, total = 0, turned = 'on';
  const to = i => {
    const { ids, at, look } = now();
    if (!look) { if (ids.length) { step = 0; see(at ?? ids.length - 1); } return; }
    if (i >= total && at + 1 < ids.length) { step = 0; turned = 'on'; see(at + 1); return; }
    turned = i < step ? 'back' : 'on'; step = clamp(i, 0, total - 1); page.draw();
  };
  const back = h('button', { click: () => to(step - 1) }, '\u2039 back');
  const next = h('button', { click: () => to(step + 1) });
  const place = slider('Step', [0, 0, 1], () => step, to, i => total ? `${i + 1} of ${total}` : 'none');
  const pick = i => { channel = i; page.draw(); };
  const follow = slider('Channel', [0, 0, 1], () => channel ?? 0, pick);
  const dial = slider('Number', [0, .9999, .0001], () => number ?? .5, u => { number = u; page.draw(); },
    u => u.toFixed(4));
  const heading = h('h4', {}), words = h('p', { 'aria-live': 'polite' });
  const picture = h('div', { class: 'step' });
  const legend = h('p', { class: 'note' }, 'A square is above 0, a circle below; the stronger, the larger. ',
    'Click one to follow its channel: its number stands at the right.');
  const keys = e => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
    if (way && e.target.type !== 'range') { e.preventDefault(); to(step + way); }
  };
  const el = h('div', { class: 'journey', role: 'group', tabindex: 0, keydown: keys,
    'aria-label': "One token's journey: arrow keys go on and back" }, h('h3', {}, "One token's journey"),
  h('div', { class: 'row' }, back, next, place.el, follow.el), heading, words, dial.el, picture, legend);

  return { el, refresh() {
    const all = now(), { ids, at, look, draws, dials, sign } = all;
    follow.el.hidden = place.el.hidden = !look;
    if (!look) legend.hidden = dial.el.hidden = true;
    next.textContent = look ? step + 1 < total || !(at + 1 < ids.length) ? 'next \u203a'
      : `follow ${sign(ids[at + 1])} \u203a` : 'begin \u203a';
    if (!look) {
      last = ''; total = 0; heading.textContent = ''; picture.replaceChildren();
      const said = ids.length ? 'Click a token of the text, or begin with the newest one.'
        : 'Write something first: then follow one of its tokens through the model.';
      if (words.textContent !== said) words.textContent = said;
      return;
    }
    if (look !== token) { token = look; number = null; }
    channel ??= largest(look.parts[0].map(Math.abs));
    channel = Math.min(channel, look.parts[0].length - 1);
    const draw = draws[at + 1], { temperature, topK } = draw ?? dials;
    number ??= draw?.u ?? .5;
    const width = Math.max(240, el.clientWidth || 600), name = i => sign(ids[i]);
    const way = steps({ ...all, draw, given: !draw, temperature, topK, number, channel, pick, width, name });
    total = way.length; step = Math.min(step, total - 1); dial.el.hidden = step < total - 1;
    const key = [at, step, channel, number, width, temperature, topK, ids[at + 1]].join();
    place.refresh(total - 1); follow.refresh(look.parts[0].length - 1); dial.refresh();
    back.setAttribute('aria-disabled', step === 0);
    next.setAttribute('aria-disabled', step === total - 1 && !(at + 1 < ids.length));
    if (key === last) return;
    const moved = last.split(',', 2).join() !== key.split(',', 2).join(), [title, said, show] = way[step];
    last = key; heading.textContent = title; words.replaceChildren(...said);
    picture.className = `step ${moved ? turned : ''}`;
    picture.replaceChildren(...[show()].flat(Infinity));
    legend.hidden = !picture.querySelector('.squares');
  } };
}
