// A model that reads and writes in the page: its two phases, its law, its heads and its next token.

KINDS.play = {
  draw: playground,
  css: `${JOURNEY}
.say.bad { border-left: 4px solid var(--again); padding-left: 8px; font-weight: 600; }
label.ask { display: block; color: var(--muted); }
textarea { display: block; width: 100%; min-height: 3.6em; margin: 4px 0 10px; padding: 7px 9px;
  resize: vertical; font: 14px/1.5 var(--mono); color: var(--ink); background: var(--surface);
  border: 1px solid var(--muted); border-radius: 7px; }
select { font: inherit; color: var(--ink); background: var(--soft); border: 1px solid var(--muted);
  border-radius: 7px; padding: 3px 6px; max-width: 100%; }
button.main { background: var(--prefill); color: var(--on); border-color: var(--prefill); font-weight: 600; }
button:disabled { opacity: .55; cursor: default; }
.text { max-height: 16em; overflow-y: auto; padding: 2px 3px; margin-top: 10px;
  border-top: 1px solid var(--line); }
.t { background: color-mix(in srgb, var(--decode) 24%, transparent); }
.t.seen { box-shadow: inset 0 -4px var(--ink); }
svg.plot { cursor: default; margin-top: 8px; }
svg .again { fill: var(--again); }
svg .broken { fill: var(--again); stroke: var(--ink); stroke-width: .5; }
svg .whole { fill: var(--kept); }
.table { overflow-x: auto; }
.slide { grid-template-columns: 7em minmax(60px, 1fr) 5em; }
.heads { display: grid; gap: 4px; margin: 6px 0 10px; }
.layer { display: grid; gap: 4px; grid-template-columns: 3.6em repeat(var(--n), minmax(0, 1fr));
  align-items: center; }
.layer span { color: var(--muted); font-size: 12.5px; }
.heads button { padding: 2px 5px; text-align: left; font-size: 12.5px; overflow: hidden; }
.heads code { white-space: pre; }
.table table { min-width: 590px; overflow-wrap: normal; }
.bars .num { text-align: right; }
.note.axis { margin: 0 0 4px; }
.heads button[aria-pressed=true] { outline: 2px solid var(--ink); font-weight: 650; }
h3 { font-size: 14px; margin: 12px 0 6px; }
.file { color: var(--muted); font-size: 12.5px; }
.file input { font: inherit; max-width: 100%; color: var(--ink); }
.switch b { min-width: 2em; }
summary { cursor: pointer; margin-top: 10px; font-weight: 600; }
@media (prefers-reduced-motion: no-preference) { .heads button { transition: background .1s; } }
`,
};

const LAW = 1e-3,
  LARGEST_MODEL = 5e6,
  BUGS = {
    'wrong position': 'every pass counts its positions from 0',
    'current token missing': 'a single token does not hear itself',
    'one layer for all': 'all layers share the memory of the first',
    'square mask':
      'a second pass gets the mask of a first one; the prompt is read in two, or nothing would show',
    'early ring': 'the memory is used again from its start, too early',
  };

function talker(lost) {
  // asks the engine: in a worker, or here where there are none
  const waiting = new Map();
  let worker = null,
    here = null,
    last = 0;
  const answer = async (id, call, about) => {
    await new Promise(done => setTimeout(done)); // the page draws in between
    if (!waiting.has(id)) return;
    const [good, bad] = waiting.get(id);
    waiting.delete(id);
    try {
      good(here(call, about));
    } catch (e) {
      bad(e);
    }
  };
  const stay = () => {
    if (here) return;
    worker?.terminate();
    worker = null;
    here = engine();
    lost();
    for (const [id, [, , call, about]] of waiting) answer(id, call, about);
  };
  try {
    const url = URL.createObjectURL(new Blob([`(${engine})()`], { type: 'text/javascript' }));
    worker = new Worker(url);
    worker.onerror = e => {
      e.preventDefault();
      stay();
    };
    worker.onmessage = ({ data: { id, out, error } }) => {
      const [good, bad] = waiting.get(id);
      waiting.delete(id);
      error == null ? good(out) : bad(new Error(error));
    };
  } catch {
    stay();
  }
  const ask = (call, about) =>
    new Promise((good, bad) => {
      waiting.set(++last, [good, bad, call, about]);
      here ? answer(last, call, about) : worker.postMessage({ id: last, call, about });
    });
  ask.end = () => {
    worker?.terminate();
    for (const [, bad] of waiting.values()) bad(new Error('The model was put away.'));
    waiting.clear();
  };
  return ask;
}

function sign(c) {
  // a character as it is shown
  const known = { ' ': '\u2423', '\n': '\u23ce', '\t': '\u21e5', '\r': '\u240d' };
  if (known[c]) return known[c];
  if (/^\p{M}$/u.test(c)) return '\u25cc' + c;
  return /^[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{Zs}]$/u.test(c)
    ? `U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}`
    : c;
}

function known(chars, text, most) {
  // ids of what the model knows, and words about the rest
  const ids = new Map(chars.map((c, i) => [c, i])),
    all = [...text],
    out = all.filter(c => ids.has(c));
  const lost = [...new Set(all.filter(c => !ids.has(c)))],
    words = [];
  if (lost.length) {
    const some = lost.slice(0, 8).map(sign).join(' '),
      more = lost.length > 8 ? ' and others' : '';
    const them = lost.length === 1 ? 'it' : 'them';
    words.push(`Left out, since the model does not know ${them}: ${some}${more}.`);
  }
  if (out.length > most)
    words.push(`The model reads the last ${count(most)} of ${count(out.length)} characters.`);
  return { ids: out.slice(-most).map(c => ids.get(c)), words: words.join(' ') };
}

function totals(passes, phase) {
  const of = passes.filter(p => p.phase === phase),
    all = f => sum(of.map(f));
  return {
    passes: of.length,
    tokens: all(p => p.tokens),
    made: all(p => p.made),
    flops: all(p => p.cost.flops),
    ms: all(p => p.ms),
    bytes: all(p => p.cost.weight_bytes + p.cost.cache_read + p.cost.cache_written),
  };
}

function playground(data, state, page) {
  let ask = null,
    about = null,
    loading = null,
    running = false,
    stop = false,
    words = data.words ?? '',
    bad = false,
    note = '';
  let ids = [],
    passes = [],
    gap = [],
    logits = null,
    at = null,
    look = null,
    head = [0, 0],
    buffer = null,
    turn = 0,
    draws = [],
    asleep = false;
  const set = change => {
    Object.assign(state, change);
    page.changed();
  };
  const tell = (text, isBad = false) => {
    words = text;
    bad = isBad;
    page.draw();
  };

  // --- the model

  const bytes = async () => buffer ?? (data.file ? unpack(data.file, Uint8Array).buffer : data.open());
  async function load() {
    ask ??= talker(() => {
      note = 'There is no worker here: the model runs in the page itself, which may stutter.';
      page.draw();
    });
    tell('Loading the model.');
    const content = await bytes(),
      next = await ask('load', { buffer: content });
    if (!next.chars)
      throw new Error('This model has no characters of its own: expected a model with a chars tokenizer.');
    if (next.params > LARGEST_MODEL)
      throw new Error(
        `This model has ${count(next.params)} parameters: at most ${count(LARGEST_MODEL)} run in a page.`,
      );
    about = next;
    // a browser compiles what it runs often: the first passes would be slow for that reason alone
    await ask('start');
    for (let i = 0; i < 4; i++)
      await ask('read', {
        ids: Array.from(
          { length: Math.min(6, Math.floor(about.config.block_size / 5) || 1) },
          (_, k) => k % about.config.vocab_size,
        ),
      });
    words = '';
  }
  function ready() {
    if (loading) return loading;
    if (ask && about) return Promise.resolve();
    const mine = load().finally(() => {
      if (loading === mine) loading = null;
    });
    return (loading = mine);
  }

  async function awake() {
    // the worker was ended while nobody looked: the next one reads the same text
    if (!asleep) return;
    asleep = false;
    await ask('resume', { ids, cache: state.cache, fault: state.cache ? state.fault : '' });
  }
  page.end = () => {
    stop = true;
    if (!ask) return;
    ask.end();
    ask = loading = null;
    asleep = passes.length > 0;
  };

  // --- writing

  const took = (phase, made, out) => {
    passes.push({
      phase,
      made,
      ms: out.ms,
      tokens: out.tokens,
      past: out.past,
      cost: out.cost,
      again: phase === 'decode' && out.tokens > 1,
    });
    logits = out.logits;
    page.draw();
  };
  async function prefill() {
    const { ids: prompt, words: more } = known(about.chars, state.prompt, about.config.block_size);
    if (!prompt.length) throw new Error(`${more} Type at least one character that the model knows.`.trim());
    ids = [];
    passes = [];
    gap = [];
    logits = null;
    at = look = null;
    turn = 0;
    draws = [];
    asleep = false;
    await ask('start', { cache: state.cache, fault: state.cache ? state.fault : '' });
    const half =
      state.cache && state.fault === 'square mask' && prompt.length > 1
        ? Math.ceil(prompt.length / 2)
        : prompt.length;
    for (const part of [prompt.slice(0, half), prompt.slice(half)]) {
      if (!part.length) continue;
      const out = await ask('read', { ids: part });
      ids = [...ids, ...part];
      took('prefill', part.length, out);
    }
    words = more;
    bad = false;
  }
  async function write(n) {
    if (running) return;
    running = go.disabled = true;
    stop = false;
    page.draw();
    try {
      await ready();
      if (!passes.length || n > 1) await prefill();
      await awake();
      for (let i = 0; i < n && !stop; i++) {
        const draw = {
          u: random(state.seed, ++turn),
          temperature: state.temperature,
          topK: state.top_k,
        };
        const out = await ask('step', draw);
        draws[ids.length] = draw;
        ids = [...ids, out.token];
        took('decode', 1, out);
        if (state.fault && i % 4 === 3) gap = await ask('gap');
      }
      gap = await ask('gap');
      const { made, ms } = totals(passes, 'decode'),
        rate = count(Math.round((1000 * made) / ms)),
        length = some(ids.length, 'token');
      const done = `${stop ? 'Stopped. ' : ''}${length} in the text; decode made ${rate} a second.`;
      tell(`${words} ${ms ? done : ''}`.trim());
    } catch (e) {
      tell(e.message, true);
    }
    running = false;
    page.draw();
  }
  async function see(i) {
    if (!passes.length || running || i < 0 || i >= ids.length) return;
    at = i;
    try {
      await ready();
      await awake();
      look = await ask('look', { at });
    } catch (e) {
      tell(e.message, true);
    }
    page.draw();
  }
  async function open(file) {
    if (!file || running) return;
    const before = [buffer, about];
    try {
      buffer = await file.arrayBuffer();
      about = null;
      passes = [];
      ids = [];
      gap = [];
      logits = look = null;
      await ready();
      tell(`${file.name} is loaded.`);
    } catch (e) {
      [buffer, about] = [before[0], null];
      tell(e.message, true);
    }
  }

  // --- what can be moved

  const prompt = h('textarea', {
    rows: 2,
    spellcheck: 'false',
    maxlength: 200000,
    input: () => set({ prompt: prompt.value }),
    keydown: e => {
      if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) {
        e.preventDefault();
        write(state.n);
      }
    },
  });
  prompt.value = state.prompt;
  const go = h('button', { class: 'main', click: () => write(state.n) }, 'write');
  const one = h('button', { click: () => write(1) }, 'one token more');
  const halt = h(
    'button',
    {
      click: () => {
        stop = true;
      },
    },
    'stop',
  );
  const other = h(
    'button',
    {
      click: () => {
        set({ seed: (state.seed + 1) % 2 ** 32 });
        write(state.n);
      },
    },
    'other draws',
  );
  const length = slider(
    'Tokens',
    [1, 300, 1],
    () => state.n,
    n => set({ n }),
  );
  const temperature = slider(
    'Temperature',
    [0, 3, 0.05],
    () => state.temperature,
    v => set({ temperature: v }),
    v => v.toFixed(2),
  );
  const most = 60,
    off = () => state.top_k == null;
  const topK = slider(
    'Top-k',
    [1, most, 1],
    () => (off() ? most : state.top_k),
    k => set({ top_k: k === most ? null : k }),
    () => (off() ? 'off' : String(state.top_k)),
  );
  const cache = toggle(
    'cache',
    () => state.cache,
    v => set({ cache: v }),
  );
  const onOff = h('b', {});
  cache.el.append(onOff);
  const bug = h(
    'select',
    { 'aria-label': 'Break the cache', change: () => set({ fault: bug.value }) },
    h('option', { value: '' }, 'a right cache'),
    Object.keys(BUGS).map(name => h('option', { value: name }, name)),
  );
  const from = slider(
    'Look from',
    [0, 0, 1],
    () => at ?? Math.max(0, ids.length - 1),
    see,
    i => (ids.length ? `token ${i}` : 'none'),
  );
  const file = h('input', {
    type: 'file',
    accept: '.safetensors',
    'aria-label': 'a model file of yours',
    change: () =>
      open(file.files[0]).finally(() => {
        file.value = '';
      }),
  }); // so that it can be chosen again

  // --- what is shown

  const way = journey(page, see, () => ({
    ids,
    at,
    look,
    about,
    draws,
    sign: id => sign(about.chars[id]),
    dials: { temperature: state.temperature, topK: state.top_k },
  }));
  const shape = h('span', {}, 'both phases, live'),
    say = h('p', { class: 'say', role: 'status' }),
    plot = h('div', {}),
    written = h('div', {});
  const table = h('div', {
    class: 'table',
    tabindex: 0,
    role: 'group',
    'aria-label': 'work and time of the two phases',
  });
  const law = h('p', { class: 'say' }),
    next = h('ol', { class: 'bars', style: '--w: 4.2em', 'aria-label': 'tokens, most likely first' });
  const heads = h('div', { class: 'heads' }),
    weights = h('ol', { class: 'bars', style: '--w: 6em', 'aria-label': 'where this head looked' });
  const looked = h('p', { class: 'note' }),
    bugWords = h('p', { class: 'note' });
  page.add(
    h('div', { class: 'head' }, h('b', {}, data.title ?? 'A model in the page'), shape),
    h('label', { class: 'ask' }, 'Prompt', prompt),
    h('div', { class: 'row' }, go, one, halt, other, cache.el, bug),
    bugWords,
    say,
    h(
      'div',
      { class: 'row' },
      chip('prefill', 'prefill'),
      chip('decode', 'decode'),
      chip('decode that reads all again', 'again'),
    ),
    plot,
    h(
      'p',
      { class: 'note axis' },
      'Width: new tokens. Height: milliseconds for each of them. So the area of a bar is its time.',
    ),
    law,
    written,
  );
  const inside = [
    h(
      'div',
      { class: 'two' },
      h('div', {}, h('h3', {}, 'The next token'), length.el, temperature.el, topK.el, next),
      h('div', {}, h('h3', {}, 'Where the heads looked'), from.el, looked, heads, weights),
    ),
    way.el,
    h('h3', {}, 'What the phases cost'),
    table,
    h(
      'p',
      { class: 'note' },
      'FLOPs and bytes are counted, as in lesson 06; milliseconds are those of this browser, on one thread.',
    ),
    h(
      'p',
      { class: 'file' },
      h('label', {}, 'A model of yours, as ', h('code', {}, 'save_safetensors'), ' wrote it: ', file),
    ),
  ];
  const more = h('summary', {}, "Look inside: the next token, the heads, one token's journey, the costs");
  page.add(...(data.short ? [h('details', { toggle: page.draw }, more, inside)] : inside));
  page.add(data.notice ? h('p', { class: 'note' }, data.notice) : '');

  function drawPlot() {
    // width: new tokens; height: milliseconds for each of them; so the area is time
    const width = Math.max(280, Math.round(plot.clientWidth || 600)),
      height = 156,
      low = height - 24,
      left = 34;
    const total = Math.max(ids.length + (running ? 8 : 0), 24),
      slot = (width - left - 4) / total;
    const tall = passes.map(p => p.ms / p.made),
      order = [...tall].sort((a, b) => a - b);
    const top = Math.max(
      0.05,
      Math.min(order[order.length - 1] ?? 1, 3 * (order[Math.floor(0.9 * order.length)] ?? 1)),
    );
    let x = left;
    const bars = passes.map((p, i) => {
      const high = Math.min(1, tall[i] / top) * (low - 12),
        w = p.made * slot,
        kind = p.phase === 'prefill' ? 'prefill' : p.again ? 'again' : 'decode';
      const words = `${p.phase}: ${some(p.tokens, 'token')} read in ${p.ms.toFixed(2)} ms`;
      const bar = h(
        'svg:rect',
        {
          class: kind,
          x,
          y: low - high,
          width: Math.max(0.6, w - Math.min(1, w / 4)),
          height: Math.max(1, high),
        },
        h('svg:title', {}, words),
      );
      const cut =
        tall[i] > top * 1.001
          ? h('svg:text', { x: x + w / 2, y: 10, 'text-anchor': 'middle' }, '\u25b4')
          : null;
      x += w;
      return [bar, cut];
    });
    const marks = gap.map((g, t) =>
      h(
        'svg:rect',
        {
          class: g > LAW ? 'broken' : 'whole',
          x: left + t * slot,
          y: g > LAW ? low + 6 : low + 13,
          width: Math.max(0.6, slot - 0.5),
          height: g > LAW ? 12 : 3,
        },
        h('svg:title', {}, `position ${t}: gap ${g.toPrecision(2)}`),
      ),
    );
    const label = (x, y, text, anchor = 'end') => h('svg:text', { x, y, 'text-anchor': anchor }, text);
    plot.replaceChildren(
      h(
        'svg:svg',
        { class: 'plot', viewBox: `0 0 ${width} ${height}`, height, role: 'img', 'aria-label': spoken() },
        h('svg:line', { class: 'axis', x1: left, x2: width, y1: low, y2: low }),
        label(left - 4, 14, +top.toPrecision(top < 100 ? 2 : 3)),
        label(left - 4, 28, 'ms'),
        label(left - 4, low, '0'),
        label(left - 4, low + 17, 'law'),
        bars,
        marks,
      ),
    );
  }
  function spoken() {
    const p = totals(passes, 'prefill'),
      d = totals(passes, 'decode');
    if (!passes.length) return 'nothing read yet';
    const read = `${p.passes === 1 ? '1 pass' : `${p.passes} passes`} over ${some(p.tokens, 'token')}`;
    const ms = x => `${x.toFixed(1)} ms`;
    return `prefill: ${read} in ${ms(p.ms)}; decode: ${count(d.passes)} passes in ${ms(d.ms)}`;
  }

  function drawLaw() {
    const broken = gap.map((g, t) => (g > LAW ? t : -1)).filter(t => t >= 0),
      largest = gap.length ? Math.max(...gap) : 0;
    if (!gap.length)
      law.textContent =
        'The law compares each position with one prefill of the whole text, once there is one.';
    else if (!broken.length)
      law.textContent =
        `The law holds: at all ${count(gap.length)} positions the logits are those of one prefill ` +
        `(largest gap ${+largest.toPrecision(2)}).`;
    else
      law.textContent =
        `The law is broken at ${count(broken.length)} of ${count(gap.length)} positions, ` +
        `first at position ${broken[0]} (largest gap ${largest.toPrecision(3)}).`;
    law.className = broken.length ? 'say bad' : 'say';
  }

  function drawText() {
    const labels = ids.map(i => sign(about.chars[i])),
      { el, spans } = text(labels, { click: see }),
      read = totals(passes, 'prefill').made;
    spans.forEach((s, i) => {
      s.classList.toggle('prompt', i < read);
      s.classList.toggle('q', i === at);
      const w = look && i >= look.from && i <= at ? look.seen[head[0]][head[1]][i - look.from] : 0;
      if (w > 0.02) {
        s.classList.add('seen');
        const high = Math.round(2 + 12 * Math.sqrt(w)),
          grey = 'color-mix(in srgb, var(--ink) 30%, transparent)';
        s.style.boxShadow = `inset 0 -${high}px ${grey}`;
      }
    });
    el.setAttribute('tabindex', 0);
    el.setAttribute('role', 'group');
    el.setAttribute('aria-label', 'the text so far');
    const place = written.firstChild?.scrollTop ?? 0;
    written.replaceChildren(...(ids.length ? [el] : []));
    if (ids.length) el.scrollTop = running ? el.scrollHeight : place;
  }

  function row(label, out, code) {
    const i = h('i', {});
    i.style.width = `${100 * clamp(out, 0, 1)}%`;
    return h(
      'li',
      {},
      h('span', { class: 'name' }, h('code', {}, label)),
      h('span', { class: 'bar' }, i),
      h('span', { class: 'num' }, out.toFixed(4)),
    );
  }
  function drawNext() {
    if (!logits) {
      next.replaceChildren(
        h(
          'li',
          { style: 'display: block' },
          'Write something, and the distribution of the next token stands here.',
        ),
      );
      return;
    }
    const order = ranked(logits);
    const { p } = distribution(logits, order, state.temperature, state.top_k, null);
    next.replaceChildren(...order.slice(0, 10).map((id, i) => row(sign(about.chars[id]), p[i])));
  }
  function drawHeads() {
    if (!look) {
      heads.replaceChildren();
      weights.replaceChildren();
      looked.textContent =
        'Click a token of the text, or move the slider: each head shows what it took most from.';
      return;
    }
    const name = i => sign(about.chars[ids[look.from + i]]),
      best = w => w.indexOf(Math.max(...w));
    looked.replaceChildren(
      'From ',
      h('code', {}, sign(about.chars[ids[at]])),
      ` (${at}), each head of a layer took most from:`,
    );
    const focused = heads.getRootNode().activeElement?.dataset?.head;
    const button = (w, l, k) =>
      h(
        'button',
        {
          'data-head': `${l} ${k}`,
          'aria-pressed': String(head[0] === l && head[1] === k),
          'aria-label': `layer ${l}, head ${k}: ${name(best(w))} ${w[best(w)].toFixed(2)}`,
          click: () => {
            head = [l, k];
            page.draw();
          },
        },
        h('code', {}, name(best(w))),
        ` ${w[best(w)].toFixed(2)}`,
      );
    heads.replaceChildren(
      ...look.seen.map((layer, l) =>
        h(
          'div',
          { class: 'layer', style: `--n: ${Math.min(8, layer.length)}` },
          h('span', {}, `layer ${l}`),
          layer.map((w, k) => button(w, l, k)),
        ),
      ),
    );
    if (focused) heads.querySelector(`[data-head="${focused}"]`)?.focus();
    const w = [...look.seen[head[0]][head[1]]],
      order = [...w.keys()].sort((a, b) => w[b] - w[a]).slice(0, 6);
    weights.replaceChildren(...order.map(i => row(`${name(i)} (${look.from + i})`, w[i])));
  }
  function drawTable() {
    const cell = (tag, x) => h(tag, {}, x),
      line = phase => {
        const t = totals(passes, phase);
        return h(
          'tr',
          { 'data-phase': phase },
          [
            phase,
            count(t.passes),
            count(t.tokens),
            human(t.flops, 'F'),
            human(t.bytes, 'B'),
            t.bytes ? (t.flops / t.bytes).toFixed(1) : '-',
            t.ms.toFixed(1),
            t.ms ? count(Math.round((1000 * t.made) / t.ms)) : '-',
          ].map(x => cell('td', x)),
        );
      };
    table.replaceChildren(
      h(
        'table',
        {},
        h(
          'thead',
          {},
          h(
            'tr',
            {},
            [
              'phase',
              'passes',
              'tokens read',
              'FLOPs',
              'bytes',
              'FLOPs a byte',
              'ms',
              'new tokens a second',
            ].map(x => cell('th', x)),
          ),
        ),
        h('tbody', {}, line('prefill'), line('decode')),
      ),
    );
  }

  return function draw() {
    if (state.prompt !== prompt.value) prompt.value = state.prompt;
    [length, temperature, topK, cache].forEach(c => c.refresh());
    from.refresh(Math.max(0, ids.length - 1));
    onOff.textContent = state.cache ? 'on' : 'off';
    bug.value = state.fault;
    bug.disabled = !state.cache;
    bugWords.textContent = state.cache && state.fault ? `The bug: ${BUGS[state.fault]}.` : '';
    go.disabled = one.disabled = other.disabled = running;
    halt.disabled = !running;
    const { n_layer: layers, n_head: each } = about?.config ?? {};
    shape.textContent = about
      ? `${count(about.params)} parameters, ${human(about.bytes, 'B')}, ${layers} layers of ${each} heads`
      : (data.about ?? 'both phases, live');
    const said = [words, note].filter(Boolean).join(' ');
    if (say.textContent !== said) say.textContent = said; // or it would be read out again
    say.className = bad ? 'say bad' : 'say';
    drawPlot();
    drawLaw();
    drawText();
    drawNext();
    drawHeads();
    way.refresh();
    drawTable();
  };
}
