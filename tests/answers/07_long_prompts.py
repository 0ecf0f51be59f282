"Other answers to the exercises of lesson 07; tests/test_notebooks.py gives them to the checks."

# merge right: scaled by log-sum-exp of the maxima
def merge(a, b):
    (ma, la, oa), (mb, lb, ob) = a, b
    m = torch.where(ma > mb, ma, mb)
    scale = torch.cat([ma - m, mb - m], -1).exp()
    return m, (scale*torch.cat([la, lb], -1)).sum(-1, keepdim=True), scale[..., :1]*oa + scale[..., 1:]*ob

# merge wrong: adds without a correction
def merge(a, b): return torch.maximum(a[0], b[0]), a[1] + b[1], a[2] + b[2]

# merge wrong: corrects one side only
def merge(a, b):
    top = torch.maximum(a[0], b[0])
    f = (a[0] - top).exp()
    return top, f*a[1] + b[1], f*a[2] + b[2]

# merge wrong: the sums are not corrected
def merge(a, b):
    top = torch.maximum(a[0], b[0])
    fa, fb = (a[0] - top).exp(), (b[0] - top).exp()
    return top, a[1] + b[1], fa*a[2] + fb*b[2]

# merge wrong: upside down
def merge(a, b):
    top = torch.maximum(a[0], b[0])
    fa, fb = (top - a[0]).exp(), (top - b[0]).exp()
    return top, fa*a[1] + fb*b[1], fa*a[2] + fb*b[2]

# merge wrong: the output and no state
def merge(a, b):
    top = torch.maximum(a[0], b[0])
    fa, fb = (a[0] - top).exp(), (b[0] - top).exp()
    return (fa*a[2] + fb*b[2])/(fa*a[1] + fb*b[1])

# merge wrong: the average of both
def merge(a, b): return [(x + y)/2 for x, y in zip(a, b)]

# merge wrong: changes what came in
def merge(a, b):
    top = torch.maximum(a[0], b[0])
    fa, fb = (a[0] - top).exp(), (b[0] - top).exp()
    return top, a[1].mul_(fa).add_(fb*b[1]), a[2].mul_(fa).add_(fb*b[2])

# strips_that_forget right: a loop over ends, and keys cut inside the checkpoint
def strips_that_forget(q, k, v, rows=128):
    from torch.utils.checkpoint import checkpoint
    T, parts = q.shape[-2], []
    for start in range(0, T, rows):
        end = min(start+rows, T)
        f = lambda q, k, v, end=end: causal_attention(q, k[..., :end, :], v[..., :end, :])
        parts.append(checkpoint(f, q[..., start:end, :], k, v, use_reentrant=False))
    return torch.cat(parts, -2)

# strips_that_forget wrong: nothing is forgotten
def strips_that_forget(q, k, v, rows=128):
    cut = [(s, min(s+rows, q.shape[-2])) for s in range(0, q.shape[-2], rows)]
    return torch.cat([causal_attention(q[..., a:b, :], k[..., :b, :], v[..., :b, :]) for a, b in cut], -2)

# strips_that_forget wrong: loses the last strip
def strips_that_forget(q, k, v, rows=128):
    from torch.utils.checkpoint import checkpoint
    ends = range(rows, q.shape[-2]+1, rows)
    return torch.cat([checkpoint(causal_attention, q[..., e-rows:e, :], k[..., :e, :], v[..., :e, :],
                                 use_reentrant=False) for e in ends], -2)

# strips_that_forget wrong: one checkpoint around all of it, which makes the square in the end
def strips_that_forget(q, k, v, rows=128):
    from torch.utils.checkpoint import checkpoint
    return checkpoint(causal_attention, q, k, v, use_reentrant=False)

# strips_that_forget wrong: each strip looks at its own keys only
def strips_that_forget(q, k, v, rows=128):
    from torch.utils.checkpoint import checkpoint
    return torch.cat([checkpoint(causal_attention, *part, use_reentrant=False)
                      for part in zip(*(t.split(rows, -2) for t in (q, k, v)))], -2)

# strips_that_forget wrong: every strip sees all keys, from the wrong corner
def strips_that_forget(q, k, v, rows=128):
    from torch.utils.checkpoint import checkpoint
    return torch.cat([checkpoint(causal_attention, part, k, v, use_reentrant=False) for part in q.split(rows, -2)],
                     -2)

# strips_that_forget wrong: no gradients
def strips_that_forget(q, k, v, rows=128):
    cut = [(s, min(s+rows, q.shape[-2])) for s in range(0, q.shape[-2], rows)]
    with torch.no_grad():
        return torch.cat([causal_attention(q[..., a:b, :], k[..., :b, :], v[..., :b, :]) for a, b in cut], -2)

# strips_that_forget wrong: a list
def strips_that_forget(q, k, v, rows=128): return [causal_attention(q, k, v)]

# seen right: cut from the mask of lesson 01
def seen(rows, cols, T, S): return causal_mask(T, S)[rows, cols]

# seen wrong: one key too few
def seen(rows, cols, T, S):
    query, key = (torch.arange(s.start, s.stop) for s in (rows, cols))
    return key < (S - T) + query[:, None]

# seen wrong: one key too many
def seen(rows, cols, T, S):
    query, key = (torch.arange(s.start, s.stop) for s in (rows, cols))
    return key <= (S - T) + query[:, None] + 1

# seen wrong: the corner on the other side
def seen(rows, cols, T, S):
    query, key = (torch.arange(s.start, s.stop) for s in (rows, cols))
    return key <= query[:, None] - (S - T)

# seen wrong: S in place of S − T
def seen(rows, cols, T, S):
    query, key = (torch.arange(s.start, s.stop) for s in (rows, cols))
    return key <= S + query[:, None]

# seen wrong: places inside the tile
def seen(rows, cols, T, S):
    query, key = (torch.arange(s.stop - s.start) for s in (rows, cols))
    return key <= (S - T) + query[:, None]

# seen wrong: right for prompts and single tokens, as the exhibit
def seen(rows, cols, T, S):
    query, key = (torch.arange(s.start, s.stop) for s in (rows, cols))
    return key <= (S - 1 if T == 1 else query[:, None])*torch.ones(len(query), 1)

# seen wrong: transposed
def seen(rows, cols, T, S):
    query, key = (torch.arange(s.start, s.stop) for s in (rows, cols))
    return (key <= (S - T) + query[:, None]).T

# seen wrong: numbers in place of truth
def seen(rows, cols, T, S): return causal_mask(T, S)[rows, cols].float()

# score_bytes right: a pair for each query and key, then heads and bytes
def score_bytes(config, T, tile=128):
    pairs = [T**2, tile**2]
    return [n*config.n_head*torch.finfo(torch.float32).bits//8 for n in pairs]

# score_bytes wrong: heads of keys
def score_bytes(config, T, tile=128): return 4*config.n_kv*T*T, 4*config.n_kv*tile*tile

# score_bytes wrong: one head
def score_bytes(config, T, tile=128): return 4*T*T, 4*tile*tile

# score_bytes wrong: all layers
def score_bytes(config, T, tile=128):
    return tuple(4*config.n_layer*config.n_head*n*n for n in (T, tile))

# score_bytes wrong: numbers, not bytes
def score_bytes(config, T, tile=128): return config.n_head*T*T, config.n_head*tile*tile

# score_bytes wrong: a strip in place of a tile
def score_bytes(config, T, tile=128): return 4*config.n_head*T*T, 4*config.n_head*tile*T

# score_bytes wrong: the channels count
def score_bytes(config, T, tile=128): return 4*config.n_embd*T*T, 4*config.n_embd*tile*tile

# score_bytes wrong: the lower half of the square
def score_bytes(config, T, tile=128): return 2*config.n_head*T*(T+1), 4*config.n_head*tile*tile

# score_bytes wrong: a tile alone
def score_bytes(config, T, tile=128): return 4*config.n_head*tile*tile
