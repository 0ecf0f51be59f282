// The distribution of the next token, under dials that can be moved.

KINDS.probabilities = { draw: tokenProbabilities, css: `
.bar u { position: absolute; top: -2px; bottom: -2px; width: 2px; background: var(--ink); opacity: .55; }
.scroll { max-height: 372px; overflow-y: auto; padding: 2px 8px 2px 2px; }
li.cut { color: var(--muted); }
li.cut code { text-decoration: line-through; }
li.cut .bar i { display: none; }
li.drawn { outline: 2px solid var(--decode); outline-offset: 1px; }
li.drawn .bar i { background: var(--decode); }
li .why { position: absolute; right: 0; top: -1px; font-size: 12px; line-height: 17px; white-space: nowrap; }
.wheel { position: relative; display: flex; height: 30px; border-radius: 5px; overflow: hidden;
  background: var(--soft); margin-top: 22px; }
.wheel div { border-right: 1px solid var(--surface); text-align: center; font: 13px/30px var(--mono);
  overflow: hidden; white-space: pre; color: var(--on); background: var(--prefill); }
.wheel div.hit { background: var(--decode); }
.pin { position: relative; height: 0; }
.pin i { position: absolute; top: -37px; width: 2px; height: 44px; background: var(--ink); }
.pin i::before { content: ""; position: absolute; left: -5px; top: -2px; border: 6px solid transparent;
  border-top-color: var(--ink); }
.draws { display: flex; flex-wrap: wrap; gap: 3px; margin-top: 8px; }
.draws code { border: 1px solid transparent; }
.draws code:last-child { border-color: var(--decode); font-weight: 700; }
` };

function random(seed, n) {   // the n-th number of mulberry32, in [0, 1)
  let a = seed >>> 0, out = 0;
  for (let i = 0; i < n; i++) {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    out = ((t ^ (t >>> 14)) >>> 0)/4294967296;
  }
  return out;
}

// as tinylm.decoding.probabilities, best token first, in single precision
function distribution(logits, order, temperature, topK, topP) {
  const f = Math.fround, top = logits[order[0]], one = temperature < 1e-9;
  const raw = order.map((id, i) => one ? +(i === 0) : Math.exp(f(f(logits[id] - top)/f(temperature))));
  const total = sum(raw), p = raw.map(x => f(x/total));
  const share = f(f(topP ?? 1)*f(sum(p.slice(0, topK ?? p.length))));        // of what top-k has left
  let cum = 0;
  const why = p.map((x, i) => {
    cum += x;
    if (topK != null && i >= topK) return 'top-k';
    if (topP != null && topP < 1 && f(f(cum) - x) >= share) return 'top-p';
    return one && i ? 'temperature 0' : '';
  });
  const left = sum(p.filter((_, i) => !why[i]));
  return { p: p.map((x, i) => why[i] ? 0 : f(x/left)), why };
}

function land(p, u) {   // the place on which the number u falls
  let t = 0;
  const i = p.findIndex(x => (t += x) > u);
  return i < 0 ? p.findLastIndex(x => x > 0) : i;
}

const ranked = scores => [...scores.keys()].sort((a, b) => scores[b] - scores[a] || a - b);   // best first

function candidate(id, label) {   // a token of the list
  const i = h('i', {}), u = h('u', { title: 'at temperature 1, nothing cut' });
  const out = h('output', {}), why = h('span', { class: 'why' });
  const el = h('li', { 'data-id': id },
    h('span', { class: 'name' }, h('code', { title: `token ${id}` }, label)),
    h('span', { class: 'bar' }, i, u, why), out);
  return { i, u, out, why, el };
}

function tokenProbabilities(data, state, page) {
  const { tokens } = data, logits = unpack(data.logits, Float32Array), V = logits.length;
  const ids = [...Array(V).keys()], shown = Math.min(V, 200);
  const order = ranked(logits);
  const plain = distribution(logits, order, 1, null, null).p;
  const step = k => Math.floor(8*Math.log2(k));   // large ones in steps that grow
  const ks = ids.map(i => i + 1).filter(k => k <= 64 || k === V || step(k) !== step(k - 1));
  const set = change => { Object.assign(state, change); page.changed(); };

  const temperature = slider('Temperature', [0, 3, .05],
    () => state.temperature, v => set({ temperature: v }), v => v.toFixed(2));
  const placeOfK = () => Math.max(0, ks.findLastIndex(k => k <= (state.top_k ?? V)));
  const topK = slider('Top-k', [0, ks.length - 1, 1],
    placeOfK, i => set({ top_k: ks[i] === V ? null : ks[i] }),
    () => state.top_k == null ? 'off' : count(state.top_k));
  const topP = slider('Top-p', [.01, 1, .01],
    () => state.top_p ?? 1, v => set({ top_p: v === 1 ? null : v }),
    () => state.top_p == null ? 'off' : state.top_p.toFixed(2));
  const again = h('button', { click: () => set({ draw: state.draw + 1 }) }, 'draw another token');
  const rows = order.slice(0, shown).map(id => candidate(id, tokens[id]));
  const list = h('ol', { class: 'bars', style: '--w: 4.2em', 'aria-label': 'tokens, most likely first' },
    rows.map(r => r.el));
  const wheel = h('div', { class: 'wheel', role: 'img' }), pin = h('i', {});
  const draws = h('div', { class: 'draws', 'aria-label': 'tokens drawn so far' });
  const say = h('p', { class: 'say', role: 'status' });
  const after = data.text.length ? [' after ', h('code', {}, data.text.slice(-24).join(''))] : [];
  page.add(
    h('div', { class: 'head' }, h('b', {}, 'The next token'), h('span', {}, after)),
    h('div', { class: 'two' },
      h('div', {}, temperature.el, topK.el, topP.el,
        h('p', { class: 'note', style: 'margin-bottom: 12px' },
          'The thin mark on each bar is the probability at temperature 1 with nothing cut.'),
        again, wheel, h('div', { class: 'pin' }, pin), say, draws),
      h('div', { class: 'scroll', tabindex: 0, role: 'group', 'aria-label': 'probabilities' }, list)),
    h('p', { class: 'note' },
      shown < V ? `The ${shown} best of ${count(V)} tokens. ` : `All ${count(V)} tokens. `,
      `Probabilities to 4 decimals. Draws come from seed ${data.seed}, so they repeat.`));

  function drawList(p, why, hit) {
    const most = Math.max(p[0], plain[0]);
    rows.forEach((r, i) => {
      r.el.className = why[i] ? 'cut' : i === hit ? 'drawn' : '';
      r.i.style.width = `${100*p[i]/most}%`; r.u.style.left = `${100*plain[i]/most}%`;
      r.out.textContent = p[i].toFixed(4); r.why.textContent = why[i] ? `cut by ${why[i]}` : '';
      r.el.setAttribute('aria-current', i === hit ? 'true' : 'false');
    });
  }

  function drawWheel(p, u, hit) {   // the kept probabilities side by side, the small ones as one piece
    const small = p.findIndex(x => x < .004), cut = small < 0 ? V : small, rest = sum(p.slice(cut));
    const label = (x, i) => x > .03 ? tokens[order[i]].slice(0, 4) : '';
    const piece = (isHit, style, text = '') => h('div', { class: isHit ? 'hit' : '', style }, text);
    const large = p.slice(0, cut).map((x, i) => piece(i === hit, `width: ${100*x}%`, label(x, i)));
    wheel.replaceChildren(...large);
    if (rest > 0) wheel.append(piece(hit >= cut, `width: ${100*rest}%; opacity: .5`));
    wheel.setAttribute('aria-label',
      `all kept probabilities side by side, and the drawn number ${u.toFixed(4)}`);
    pin.style.left = `calc(${100*u}% - 1px)`;
  }

  return function draw() {
    [temperature, topK, topP].forEach(c => c.refresh());
    const { p, why } = distribution(logits, order, state.temperature, state.top_k, state.top_p);
    const drawn = n => tokens[order[land(p, random(data.seed, n))]];
    const u = random(data.seed, state.draw), hit = land(p, u), kept = p.filter(x => x > 0).length;
    drawList(p, why, hit);
    drawWheel(p, u, hit);
    say.replaceChildren(`${count(kept)} of ${count(V)} tokens can come. `,
      `Draw ${state.draw}: the number ${u.toFixed(4)} lands on `,
      h('code', { class: 'hit' }, tokens[order[hit]]), '.');
    const from = Math.max(1, state.draw - 29);
    draws.replaceChildren(
      ...[...Array(state.draw - from + 1).keys()].map(i => h('code', {}, drawn(from + i))));
  };
}
