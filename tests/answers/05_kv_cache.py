"Other answers to the exercises of lesson 05; tests/test_notebooks.py gives them to the checks."

# positions_that_fit right: the sizes written out, with whole numbers
def positions_that_fit(n_bytes, config):
    per_layer = 2*config.n_kv*config.head_size*2
    return int(n_bytes)//(config.n_layer*per_layer)

# positions_that_fit wrong: float32
def positions_that_fit(n_bytes, config): return n_bytes//config.cache_bytes(1, 1)

# positions_that_fit wrong: a float
def positions_that_fit(n_bytes, config): return n_bytes/config.cache_bytes(1, 1, 2)

# positions_that_fit wrong: keys without values
def positions_that_fit(n_bytes, config): return n_bytes//(config.cache_bytes(1, 1, 2)//2)

# positions_that_fit wrong: one layer
def positions_that_fit(n_bytes, config): return n_bytes//(config.cache_bytes(1, 1, 2)//config.n_layer)

# positions_that_fit wrong: as if every head had keys of its own
def positions_that_fit(n_bytes, config): return n_bytes//(2*config.n_layer*config.n_embd*2)

# positions_that_fit wrong: off by one
def positions_that_fit(n_bytes, config): return n_bytes//config.cache_bytes(1, 1, 2) - 1

# positions_that_fit wrong: a constant
def positions_that_fit(n_bytes, config): return 16384

# follow right: counts the equal tokens one by one, and rewinds by what is left
def follow(model, cache, old, new):
    keep = 0
    while keep < min(len(old), len(new)-1) and old[keep] == new[keep]: keep += 1
    while cache.lengths[0] > keep: cache.rewind(1)
    with torch.no_grad(): hidden = model.hidden(torch.tensor([new[keep:]]), cache)
    return model.logits(hidden[:, -1:])[0, 0].detach()

# follow wrong: reads everything again
def follow(model, cache, old, new):
    cache.reset()
    return model.prefill(torch.tensor([new]), cache=cache)[0][0, -1]

# follow wrong: no cache at all
def follow(model, cache, old, new): return model.prefill(torch.tensor([new]))[0][0, -1].detach()

# follow wrong: fails where new is a piece of old, since nothing is left to read
def follow(model, cache, old, new):
    same = next((i for i, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new)))
    cache.rewind(len(old) - same)
    return model.prefill(torch.tensor([new[same:]]), cache=cache)[0][0, -1]

# follow wrong: does not rewind
def follow(model, cache, old, new):
    same = next((i for i, (a, b) in enumerate(zip(old, new[:-1])) if a != b), min(len(old), len(new)-1))
    return model.prefill(torch.tensor([new[same:]]), cache=cache)[0][0, -1]

# follow wrong: rewinds one too few
def follow(model, cache, old, new):
    same = next((i for i, (a, b) in enumerate(zip(old, new[:-1])) if a != b), min(len(old), len(new)-1))
    cache.rewind(max(len(old) - same - 1, 0))
    return model.prefill(torch.tensor([new[same:]]), cache=cache)[0][0, -1]

# follow wrong: one position more than needed
def follow(model, cache, old, new):
    same = next((i for i, (a, b) in enumerate(zip(old, new[:-1])) if a != b), min(len(old), len(new)-1))
    same = max(same-1, 0)
    cache.rewind(len(old) - same)
    return model.prefill(torch.tensor([new[same:]]), cache=cache)[0][0, -1]

# follow wrong: logits of all positions
def follow(model, cache, old, new):
    same = next((i for i, (a, b) in enumerate(zip(old, new[:-1])) if a != b), min(len(old), len(new)-1))
    cache.rewind(len(old) - same)
    return model.prefill(torch.tensor([new[same:]]), cache=cache)[0][0]

# positions_with_half_windows right: in closed form
def positions_with_half_windows(n, W):
    rounds, rest = divmod(n, W//2 + 1)
    return rounds*W + (W//2 + rest - 1 if rest else 0)

# positions_with_half_windows wrong: forgets that the cut reads the half again
def positions_with_half_windows(n, W): return n

# positions_with_half_windows wrong: the naive loop
def positions_with_half_windows(n, W): return n*W

# positions_with_half_windows wrong: a cut every W/2 tokens
def positions_with_half_windows(n, W): return sum(W//2 if t % (W//2) == 0 else 1 for t in range(n))

# positions_with_half_windows wrong: the cut costs the half and one more
def positions_with_half_windows(n, W): return sum(W//2 + 1 if t % (W//2 + 1) == 0 else 1 for t in range(n))

# positions_with_half_windows wrong: for one window only
def positions_with_half_windows(n, W): return sum(32 if t % 33 == 0 else 1 for t in range(n))

# positions_with_half_windows wrong: begins with an empty cache
def positions_with_half_windows(n, W): return sum(W//2 if t and t % (W//2) == 0 else 1 for t in range(n))

# diagnosis right: made from pairs
diagnosis = dict(zip('ABCDE', ('wrong position', 'current token missing', 'one layer for all', 'square mask',
                               'early ring')))

# diagnosis wrong: two swapped
diagnosis = dict(A='wrong position', B='square mask', C='one layer for all', D='current token missing',
                 E='early ring')

# diagnosis wrong: one bug for all
diagnosis = dict.fromkeys('ABCDE', 'wrong position')

# diagnosis wrong: in the order of the list, one place further
diagnosis = dict(A='early ring', B='wrong position', C='current token missing', D='one layer for all',
                 E='square mask')

# diagnosis wrong: only four
diagnosis = dict(A='wrong position', B='current token missing', C='one layer for all', D='square mask')

# diagnosis wrong: not a dict
diagnosis = ['wrong position', 'current token missing', 'one layer for all', 'square mask', 'early ring']

# attend right: as the library does it, and the kernel makes its mask by itself
def attend(self, layer, q, k, v, dropout=0.):
    kv = self.cache.kv[layer]
    kv[:, :, :, self.start:self.end] = torch.stack([k, v])
    return self.kernel(q, *kv[:, :, :, :self.end], None, dropout)

# attend wrong: only the memory is mended
def attend(self, layer, q, k, v, dropout=0.):
    T, memory = q.shape[2], self.cache.kv[layer]
    memory[0, :, :, :T], memory[1, :, :, :T] = k, v
    seen = torch.ones(T, self.end, dtype=torch.bool).tril()
    keys, values = memory[:, :, :, :self.end]
    return self.kernel(q, keys, values, seen, dropout)

# attend wrong: the corner of the mask is left
def attend(self, layer, q, k, v, dropout=0.):
    T, memory = q.shape[2], self.cache.kv[layer]
    memory[0, :, :, self.start:self.end], memory[1, :, :, self.start:self.end] = k, v
    seen = torch.ones(T, self.end, dtype=torch.bool).tril()
    keys, values = memory[:, :, :, :self.end]
    return self.kernel(q, keys, values, seen, dropout)

# attend wrong: the place is left
def attend(self, layer, q, k, v, dropout=0.):
    T, memory = q.shape[2], self.cache.kv[layer]
    memory[0, :, :, :T], memory[1, :, :, :T] = k, v
    seen = torch.ones(T, self.end, dtype=torch.bool).tril(self.start)
    keys, values = memory[:, :, :, :self.end]
    return self.kernel(q, keys, values, seen, dropout)

# attend wrong: all may look at all, so a prompt sees its future
def attend(self, layer, q, k, v, dropout=0.):
    memory = self.cache.kv[layer]
    memory[0, :, :, self.start:self.end], memory[1, :, :, self.start:self.end] = k, v
    seen = torch.ones(q.shape[2], self.end, dtype=torch.bool)
    return self.kernel(q, *memory[:, :, :, :self.end], seen, dropout)

# attend wrong: the corner is one too far
def attend(self, layer, q, k, v, dropout=0.):
    memory = self.cache.kv[layer]
    memory[0, :, :, self.start:self.end], memory[1, :, :, self.start:self.end] = k, v
    seen = torch.ones(q.shape[2], self.end, dtype=torch.bool).tril(self.start - 1)
    return self.kernel(q, *memory[:, :, :, :self.end], seen, dropout)

# attend wrong: reads the whole memory, with no row of it filled behind the end
def attend(self, layer, q, k, v, dropout=0.):
    memory = self.cache.kv[layer]
    memory[0, :, :, self.start:self.end], memory[1, :, :, self.start:self.end] = k, v
    return self.kernel(q, *memory, None, dropout)

# attend wrong: hears only the new tokens
def attend(self, layer, q, k, v, dropout=0.): return self.kernel(q, k, v, None, dropout)
