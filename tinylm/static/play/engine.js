// The model itself, in plain JavaScript: one file of weights in, logits out. `play.js` runs this function in
// a worker made of its own text, or in the page where there are no workers. It needs nothing from outside.

function engine() {
  const FORMAT = 1,
    LARGEST = 64 * 2 ** 20; // of the file, bytes
  const fail = text => {
    throw new Error(text);
  };
  const short = x => {
    const t = JSON.stringify(x) ?? 'nothing';
    return t.length > 60 ? t.slice(0, 59) + '...' : t;
  };

  // --- the file: safetensors, each number of it checked before it is used

  const HALF = bits => {
    const e = (bits >> 10) & 31,
      m = bits & 1023,
      sign = bits & 32768 ? -1 : 1;
    return sign * (e === 0 ? m * 2 ** -24 : e === 31 ? (m ? NaN : Infinity) : (1 + m / 1024) * 2 ** (e - 15));
  };
  const KINDS_OF_NUMBER = {
    I8: [1, b => new Int8Array(b)],
    F32: [4, b => new Float32Array(b)],
    F16: [2, b => Float32Array.from(new Uint16Array(b), HALF)],
    BF16: [2, b => new Float32Array(Uint32Array.from(new Uint16Array(b), x => x << 16).buffer)],
  };

  function header(buffer) {
    if (buffer.byteLength > LARGEST)
      fail(`The model file has ${buffer.byteLength} bytes: at most ${LARGEST} fit in a page.`);
    const size = buffer.byteLength < 8 ? 0 : Number(new DataView(buffer).getBigUint64(0, true));
    if (size < 2 || 8 + size > buffer.byteLength) fail('The model file is cut short or no safetensors file.');
    let about;
    try {
      about = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(new Uint8Array(buffer, 8, size)));
    } catch {
      fail('The model file is cut short or no safetensors file.');
    }
    return [about, 8 + size];
  }

  function tensor(buffer, base, name, about) {
    const kind = KINDS_OF_NUMBER[about?.dtype],
      [from, to] = about?.data_offsets ?? [];
    const whole = n => Number.isSafeInteger(n) && n >= 0;
    const all = Object.keys(KINDS_OF_NUMBER).join(', ');
    if (!kind)
      fail(`The model file holds ${short(name)} as ${short(about?.dtype)}: this page reads ${all}.`);
    if (!(Array.isArray(about.shape) && about.shape.every(whole) && whole(from) && whole(to) && from <= to))
      fail(`The model file describes ${short(name)} wrongly.`);
    const n = about.shape.reduce((a, b) => a * b, 1);
    if (to - from !== n * kind[0]) fail(`The model file describes ${short(name)} wrongly.`);
    if (base + to > buffer.byteLength) fail(`The model file is cut short: ${short(name)} is not in it.`);
    return { shape: about.shape, data: kind[1](buffer.slice(base + from, base + to)), bytes: to - from };
  }

  function config(about) {
    let c;
    try {
      c = JSON.parse(about.__metadata__.tinylm);
    } catch {
      fail('The model file does not say which model it holds: expected one that tinylm saved.');
    }
    if (!(Number.isInteger(c?.format) && c.format <= FORMAT))
      fail(`The model file is of format ${short(c?.format)}: this page reads up to ${FORMAT}.`);
    const chars =
      c.tokenizer?.kind === 'chars' && typeof c.tokenizer.chars === 'string' ? [...c.tokenizer.chars] : null;
    const f = c.config ?? {};
    for (const name of ['vocab_size', 'block_size', 'n_layer', 'n_head', 'n_embd']) {
      if (!(Number.isInteger(f[name]) && f[name] > 0 && f[name] < 2 ** 24))
        fail(`The model file says ${name} is ${short(f[name])}: expected a whole number above 0.`);
    }
    const known = { norm: ['layer', 'rms'], mlp: ['gelu', 'swiglu'], positions: ['learned', 'rotary'] };
    for (const [name, kinds] of Object.entries(known)) {
      f[name] ??= kinds[0];
      if (!kinds.includes(f[name]))
        fail(`The model file says ${name} is ${short(f[name])}: this page knows ${kinds.join(', ')}.`);
    }
    if (chars && chars.length !== f.vocab_size)
      fail(`The model file has ${chars.length} characters for ${f.vocab_size} tokens.`);
    f.n_kv = f.n_kv_head ?? f.n_head;
    f.D = f.head_dim ?? Math.floor(f.n_embd / f.n_head);
    f.wide = f.n_inner ?? 4 * f.n_embd;
    f.norm_eps ??= 1e-5;
    f.rope_theta ??= 10000;
    f.tie_embeddings ??= true;
    if (!(f.n_kv > 0 && f.n_head % f.n_kv === 0 && f.D > 0))
      fail('The model file has heads that do not fit together.');
    return [f, chars];
  }

  function parts(buffer) {
    const [about, base] = header(buffer),
      [c, chars] = config(about),
      T = {};
    for (const name in about) if (name !== '__metadata__') T[name] = tensor(buffer, base, name, about[name]);
    const used = new Set();
    const get = (name, ...shape) => {
      const t = T[name];
      used.add(name);
      if (!t) fail(`The model file lacks ${short(name)}.`);
      if (t.shape.join() !== shape.join())
        fail(`The model file has ${short(name)} of shape ${short(t.shape)}: expected ${short(shape)}.`);
      return t.data;
    };
    const maybe = (name, ...shape) => (name in T ? get(name, ...shape) : null);
    const matrix = (name, N, K) => ({
      N,
      K,
      w: get(`${name}.weight`, N, K),
      scale: maybe(`${name}.scale`, N),
      bias: maybe(`${name}.bias`, N),
    });
    const norm = (name, n, layer) => ({
      n,
      layer,
      w: get(`${name}.weight`, n),
      b: layer ? maybe(`${name}.bias`, n) : null,
    });
    const { n_embd: C, D, n_head: H, n_kv: G, wide, vocab_size: V } = c,
      layer = c.norm === 'layer';
    const block = i => {
      const at = `blocks.${i}.`,
        meet = at + 'attention.meet.qk_norm.';
      return {
        norm1: norm(at + 'norm1', C, layer),
        norm2: norm(at + 'norm2', C, layer),
        qkv: matrix(at + 'attention.qkv', (H + 2 * G) * D, C),
        proj: matrix(at + 'attention.proj', C, H * D),
        q: c.qk_norm ? norm(meet + 'q', D, false) : null,
        k: c.qk_norm ? norm(meet + 'k', D, false) : null,
        up: matrix(at + 'mlp.up', c.mlp === 'swiglu' ? 2 * wide : wide, C),
        down: matrix(at + 'mlp.down', C, wide),
      };
    };
    const tok = matrix('tok_emb', V, C);
    const pos = c.positions === 'learned' ? get('pos_emb.weight', c.block_size, C) : null;
    const blocks = Array.from({ length: c.n_layer }, (_, i) => block(i));
    const m = {
      c,
      chars,
      tok,
      pos,
      blocks,
      norm: norm('norm', C, layer),
      head: c.tie_embeddings ? tok : matrix('head', V, C),
      sizes: sizes(T, c),
    };
    for (const name in T)
      if (!used.has(name)) fail(`The model file holds ${short(name)}, which no part of this model takes.`);
    for (const name in T)
      if (!(T[name].data instanceof Int8Array) && !T[name].data.every(Number.isFinite))
        fail(`The model file holds numbers in ${short(name)} that are none.`);
    return m;
  }

  function sizes(T, c) {
    // bytes and numbers of the model's parts, as lesson 06 counts them
    const of = part => Object.keys(T).filter(name => name.startsWith(part));
    const bytes = part =>
      of(part).reduce((a, name) => a + (T[name].data instanceof Int8Array ? 1 : 4) * T[name].data.length, 0);
    const matrices = part =>
      of(part)
        .filter(n => T[n].shape.length > 1)
        .reduce((a, n) => a + T[n].data.length, 0);
    const head = c.tie_embeddings ? 'tok_emb' : 'head';
    const params = Object.keys(T)
      .filter(n => !n.endsWith('.scale'))
      .reduce((a, n) => a + T[n].data.length, 0);
    return {
      blocks: bytes('blocks'),
      norm: bytes('norm'),
      head: bytes(head),
      tok: bytes('tok_emb'),
      pos: bytes('pos_emb'),
      inBlocks: matrices('blocks'),
      inHead: matrices(head),
      params,
    };
  }

  function cost(m, T, past) {
    // `LMConfig.pass_cost(T, past, last_only=True)` of one row
    const { c, sizes: s } = m,
      S = past + T,
      cached = n => 2 * c.n_layer * c.n_kv * n * c.D * 4;
    const rows = Math.floor((T * s.tok) / c.vocab_size) + Math.floor((T * s.pos) / c.block_size);
    return {
      flops: T * (2 * s.inBlocks + c.n_layer * 4 * S * c.n_head * c.D) + 2 * s.inHead,
      weight_bytes: s.blocks + s.norm + s.head + rows,
      cache_read: cached(S),
      cache_written: cached(T),
    };
  }

  // --- arithmetic

  function linear(m, x, T) {
    // (T, K) -> (T, N): a number of the matrix serves four tokens, where there are as many
    const { N, K, w, scale, bias } = m,
      y = new Float32Array(T * N),
      fours = T - (T % 4);
    for (let n = 0; n < N; n++) {
      const at = n * K,
        s = scale ? scale[n] : 1,
        b = bias ? bias[n] : 0;
      for (let t = 0; t < fours; t += 4) {
        const x0 = t * K,
          x1 = x0 + K,
          x2 = x1 + K,
          x3 = x2 + K;
        let a0 = 0,
          a1 = 0,
          a2 = 0,
          a3 = 0;
        for (let k = 0; k < K; k++) {
          const v = w[at + k];
          a0 += v * x[x0 + k];
          a1 += v * x[x1 + k];
          a2 += v * x[x2 + k];
          a3 += v * x[x3 + k];
        }
        y[t * N + n] = a0 * s + b;
        y[(t + 1) * N + n] = a1 * s + b;
        y[(t + 2) * N + n] = a2 * s + b;
        y[(t + 3) * N + n] = a3 * s + b;
      }
      for (let t = fours; t < T; t++) y[t * N + n] = product(w, at, x, t * K, K) * s + b;
    }
    return y;
  }

  function product(w, at, x, from, K) {
    // of one row and one token, in four sums
    const end = K - (K % 4);
    let a0 = 0,
      a1 = 0,
      a2 = 0,
      a3 = 0,
      k = 0;
    for (; k < end; k += 4) {
      a0 += w[at + k] * x[from + k];
      a1 += w[at + k + 1] * x[from + k + 1];
      a2 += w[at + k + 2] * x[from + k + 2];
      a3 += w[at + k + 3] * x[from + k + 3];
    }
    for (; k < K; k++) a0 += w[at + k] * x[from + k];
    return a0 + a1 + a2 + a3;
  }

  function normed(p, x, y, at, eps) {
    // n numbers of x from `at` on, into y
    const { n, layer, w, b } = p;
    let mean = 0,
      square = 0;
    if (layer) {
      for (let i = 0; i < n; i++) mean += x[at + i];
      mean /= n;
    }
    for (let i = 0; i < n; i++) {
      const d = x[at + i] - mean;
      square += d * d;
    }
    const r = 1 / Math.sqrt(square / n + eps);
    for (let i = 0; i < n; i++) y[at + i] = (x[at + i] - mean) * r * w[i] + (b ? b[i] : 0);
  }
  function normRows(p, x, T, eps) {
    const y = new Float32Array(x.length);
    for (let t = 0; t < T; t++) normed(p, x, y, t * p.n, eps);
    return y;
  }

  function speeds(c, end) {
    // `rope_speeds` of lesson 11
    const f = Math.fround,
      s = c.rope_scaling ?? { rope_type: 'default' },
      D = c.D;
    const plain = theta =>
      Float32Array.from({ length: D / 2 }, (_, i) => f(1 / f(Math.pow(theta, f((2 * i) / D)))));
    if (s.rope_type === 'default') return plain(c.rope_theta);
    if (s.rope_type === 'linear') return plain(c.rope_theta).map(v => v / s.factor);
    if (s.rope_type === 'dynamic') {
      const longer = Math.max(1, end / s.original_max_position_embeddings);
      return plain(c.rope_theta * (s.factor * longer - s.factor + 1) ** (D / Math.max(D - 2, 1)));
    }
    if (s.rope_type !== 'llama3')
      fail(
        `The model file says rope_type is ${short(s.rope_type)}: ` +
          'this page knows default, linear, dynamic, llama3.',
      );
    return plain(c.rope_theta).map(v => {
      const rounds = (v * s.original_max_position_embeddings) / (2 * Math.PI);
      const kept = Math.min(
        1,
        Math.max(0, (rounds - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)),
      );
      return v * (kept + (1 - kept) / s.factor);
    });
  }

  function turn(x, at, position, speed) {
    // one head: channel i makes a pair with channel i + D/2
    const half = speed.length;
    for (let i = 0; i < half; i++) {
      const angle = Math.fround(position * speed[i]),
        cos = Math.cos(angle),
        sin = Math.sin(angle);
      const a = x[at + i],
        b = x[at + half + i];
      x[at + i] = a * cos - b * sin;
      x[at + half + i] = b * cos + a * sin;
    }
  }

  // --- the pass: T new tokens behind those of a memory. One for both phases; a fresh text has an empty one.

  function memory(m, length) {
    const { n_layer: L, n_kv: G, D } = m.c,
      room = () => new Float32Array(G * length * D);
    return {
      length,
      held: 0,
      keys: Array.from({ length: L }, room),
      values: Array.from({ length: L }, room),
    };
  }

  // the museum of lesson 05: ways to get a cache almost right
  const FAULTS = [
    'wrong position',
    'current token missing',
    'one layer for all',
    'square mask',
    'early ring',
  ];

  function pass(m, ids, mem, { fault = '', watch = null, tell = null } = {}) {
    // the stream (T, C) after the last norm
    const { c } = m,
      { n_embd: C, n_head: H, n_kv: G, D } = c,
      T = ids.length,
      start = mem.held,
      end = start + T;
    const first = fault === 'wrong position' ? 0 : start,
      x = new Float32Array(T * C),
      speed = m.pos ? null : speeds(c, first + T);
    const part = y => {
      // what is added to the stream; of the last token it is told
      add(x, y);
      tell?.(y.slice(-C));
    };
    part(embedded(m, ids));
    if (m.pos) part(m.pos.slice(first * C, (first + T) * C));
    m.blocks.forEach((block, layer) => {
      const qkv = linear(block.qkv, normRows(block.norm1, x, T, c.norm_eps), T),
        N = (H + 2 * G) * D;
      for (let t = 0; t < T; t++)
        for (let h = 0; h < H + G; h++) {
          const at = t * N + h * D,
            norm = h < H ? block.q : block.k;
          if (norm) normed(norm, qkv, qkv, at, c.norm_eps);
          if (speed) turn(qkv, at, first + t, speed);
        }
      const place = fault === 'one layer for all' && start ? 0 : layer;
      const heard = attend(m, qkv, T, mem, place, start, fault, watch?.(layer));
      if (fault === 'early ring' && end > 24) ring(mem, place, end, G, D);
      part(linear(block.proj, heard, T));
      const up = linear(block.up, normRows(block.norm2, x, T, c.norm_eps), T);
      part(linear(block.down, bend(c, up, T), T));
    });
    mem.held = end;
    return normRows(m.norm, x, T, c.norm_eps);
  }

  function embedded(m, ids) {
    const C = m.c.n_embd,
      { w, scale } = m.tok,
      x = new Float32Array(ids.length * C);
    ids.forEach((id, t) => {
      for (let i = 0; i < C; i++) x[t * C + i] = w[id * C + i] * (scale ? scale[id] : 1);
    });
    return x;
  }

  function add(x, y) {
    for (let i = 0; i < x.length; i++) x[i] += y[i];
  }

  function ring(mem, layer, end, G, D) {
    for (const t of [mem.keys[layer], mem.values[layer]])
      for (let g = 0; g < G; g++) {
        const at = g * mem.length * D;
        t.copyWithin(at, at + (end - 1) * D, at + end * D);
      }
  }

  function attend(m, qkv, T, mem, layer, start, fault, seen) {
    const { n_head: H, n_kv: G, D } = m.c,
      N = (H + 2 * G) * D,
      out = new Float32Array(T * H * D),
      root = 1 / Math.sqrt(D);
    const keys = mem.keys[layer],
      values = mem.values[layer],
      score = new Float64Array(start + T);
    for (let t = 0; t < T; t++)
      for (let g = 0; g < G; g++) {
        const to = (g * mem.length + start + t) * D,
          k = t * N + (H + g) * D,
          v = k + G * D;
        keys.set(qkv.subarray(k, k + D), to);
        values.set(qkv.subarray(v, v + D), to);
      }
    const square = fault === 'square mask' && start && T > 1,
      missing = fault === 'current token missing' && start && T === 1;
    for (let t = 0; t < T; t++)
      for (let h = 0; h < H; h++) {
        const S = square ? t + 1 : start + t + (missing ? 0 : 1),
          base = Math.floor((h * G) / H) * mem.length * D,
          q = t * N + h * D;
        let most = -Infinity,
          total = 0;
        for (let s = 0; s < S; s++) {
          let a = 0;
          for (let i = 0; i < D; i++) a += qkv[q + i] * keys[base + s * D + i];
          score[s] = a * root;
          if (score[s] > most) most = score[s];
        }
        for (let s = 0; s < S; s++) {
          score[s] = Math.exp(score[s] - most);
          total += score[s];
        }
        const o = (t * H + h) * D;
        for (let s = 0; s < S; s++) {
          const weight = score[s] / total;
          if (seen && t === T - 1) seen[h][s] = weight;
          for (let i = 0; i < D; i++) out[o + i] += weight * values[base + s * D + i];
        }
      }
    return out;
  }

  function bend(c, up, T) {
    const wide = c.wide,
      out = new Float32Array(T * wide);
    if (c.mlp === 'gelu') {
      for (let i = 0; i < out.length; i++) {
        const x = up[i];
        out[i] = 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x)));
      }
      return out;
    }
    for (let t = 0; t < T; t++)
      for (let i = 0; i < wide; i++) {
        const gate = up[2 * t * wide + i];
        out[t * wide + i] = (gate / (1 + Math.exp(-gate))) * up[(2 * t + 1) * wide + i];
      }
    return out;
  }

  // --- drawing: `Sampling.probabilities`, and the inverse of the distribution

  function probabilities(logits, temperature = 1, topK = null) {
    const V = logits.length,
      p = new Float64Array(V);
    let best = 0,
      total = 0;
    for (let i = 1; i < V; i++) if (logits[i] > logits[best]) best = i;
    if (!Number.isFinite(logits[best])) fail('The logits are no numbers.');
    if (temperature < 1e-9) {
      p[best] = 1;
      return p;
    }
    const order =
      topK != null && topK < V
        ? [...p.keys()].sort((a, b) => logits[b] - logits[a] || a - b).slice(0, topK)
        : p.keys();
    for (const i of order) {
      p[i] = Math.exp((logits[i] - logits[best]) / temperature);
      total += p[i];
    }
    for (let i = 0; i < V; i++) p[i] /= total;
    return p;
  }

  function land(p, u) {
    // the token on which the number u falls, tokens in the order of their ids
    let t = 0,
      last = 0;
    for (let i = 0; i < p.length; i++) {
      t += p[i];
      if (p[i] > 0) last = i;
      if (t > u) return i;
    }
    return last;
  }

  // --- what can be asked

  let m = null,
    s = null;
  const now = () => performance.now();
  const needs = ids => {
    if (!m) fail('No model is loaded.');
    const V = m.c.vocab_size;
    if (!ids.length || !Array.prototype.every.call(ids, i => Number.isInteger(i) && i >= 0 && i < V))
      fail(`${short([...ids])} are no token ids: expected at least one from 0 to ${V - 1}.`);
  };
  const fresh = (ids, how) => pass(m, ids, memory(m, ids.length), how);

  function book(ids, hidden, from) {
    // logits of these positions, kept for the law
    const C = m.c.n_embd,
      V = m.c.vocab_size,
      all = linear(m.head, hidden, ids.length);
    for (let t = from; t < ids.length; t++) s.rows.push(all.slice(t * V, (t + 1) * V));
  }

  function read(ids) {
    // one pass over what the cache has not seen; without a cache over the whole window
    const window = m.c.block_size,
      length = s.text.length + ids.length;
    const fits = s.cache && length <= window,
      began = now();
    s.text.push(...ids);
    const tokens = fits ? ids : s.text.slice(-window),
      past = fits ? s.mem.held : 0;
    const hidden = fits ? pass(m, tokens, s.mem, { fault: s.fault }) : fresh(tokens);
    book(tokens, hidden, Math.max(0, tokens.length - ids.length));
    const logits = s.rows[s.rows.length - 1];
    return {
      ms: now() - began,
      tokens: tokens.length,
      past,
      cost: cost(m, tokens.length, past),
      logits,
      length,
    };
  }

  const calls = {
    load({ buffer }) {
      m = s = null;
      m = parts(buffer);
      const { chars, c, sizes: z } = m;
      return { chars, config: c, params: z.params, bytes: buffer.byteLength, faults: FAULTS };
    },
    start({ cache = true, fault = '' } = {}) {
      if (!m) fail('No model is loaded.');
      if (fault && !FAULTS.includes(fault))
        fail(`${short(fault)} is no bug of the museum: expected one of ${FAULTS.join(', ')}.`);
      s = { text: [], rows: [], mem: memory(m, m.c.block_size), cache, fault };
    },
    resume({ ids, ...how }) {
      // as if this text had been written by this worker
      const window = m.c.block_size;
      calls.start(how);
      read(ids.slice(0, window));
      if (ids.length <= window) return;
      s.text = [...ids];
      s.rows.length = ids.length - 1;
      const text = ids.slice(-window);
      book(text, fresh(text), window - 1);
    },
    read({ ids }) {
      needs(ids);
      return read([...ids].slice(-m.c.block_size));
    },
    probabilities({ temperature, topK }) {
      return probabilities(s.rows[s.rows.length - 1], temperature, topK);
    },
    step({ u, temperature, topK }) {
      // DECODE: draw from what the last pass said, then read that one token
      const token = land(probabilities(s.rows[s.rows.length - 1], temperature, topK), u);
      return { token, ...read([token]) };
    },
    rows() {
      const V = m.c.vocab_size,
        out = new Float32Array(s.rows.length * V);
      s.rows.forEach((row, t) => out.set(row, t * V));
      return out;
    },
    gap() {
      // the law: how far the passes are from one prefill, at each position that fits into one
      const ids = s.text.slice(0, m.c.block_size),
        V = m.c.vocab_size,
        all = linear(m.head, fresh(ids), ids.length);
      return ids.map((_, t) => {
        let g = 0;
        for (let i = 0; i < V; i++) g = Math.max(g, Math.abs(all[t * V + i] - s.rows[t][i]));
        return g;
      });
    },
    look({ at }) {
      // one token's way through a prefill up to it: where each head of each layer looked, what each part
      // added to the stream, what the stream is after the norm, and the scores of the next token
      const ids = s.text.slice(0, at + 1).slice(-m.c.block_size),
        { n_layer: L, n_head: H } = m.c;
      const seen = Array.from({ length: L }, () =>
        Array.from({ length: H }, () => new Float32Array(ids.length)),
      );
      const parts = [],
        hidden = fresh(ids, { watch: layer => seen[layer], tell: y => parts.push(y) });
      const normed = hidden.slice(-m.c.n_embd);
      return { from: at + 1 - ids.length, seen, parts, normed, logits: linear(m.head, normed, 1) };
    },
    cost({ T, past }) {
      return cost(m, T, past);
    },
  };
  const ask = (call, about) => (calls[call] ?? fail(`${short(call)} cannot be asked.`))(about ?? {});
  if (typeof WorkerGlobalScope !== 'undefined' && self instanceof WorkerGlobalScope) {
    self.onmessage = ({ data: { id, call, about } }) => {
      try {
        self.postMessage({ id, out: ask(call, about) });
      } catch (e) {
        self.postMessage({ id, error: e.message });
      }
    };
  }
  return ask;
}
