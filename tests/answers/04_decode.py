# min_p_probabilities right: by logits
def min_p_probabilities(logits, min_p):
    logits = logits.masked_fill(logits.softmax(-1) < min_p*logits.softmax(-1).amax(), float('-inf'))
    return logits.softmax(-1)
# min_p_probabilities wrong: not rescaled
def min_p_probabilities(logits, min_p):
    p = logits.softmax(-1)
    return p*(p >= min_p*p.max())
# min_p_probabilities wrong: an absolute limit
def min_p_probabilities(logits, min_p):
    p = logits.softmax(-1)
    p = p*(p >= min(min_p, p.max().item()))
    return p/p.sum()
# min_p_probabilities wrong: top-p
def min_p_probabilities(logits, min_p): return Sampling(top_p=min_p).probabilities(logits)
# min_p_probabilities wrong: all kept tokens are alike
def min_p_probabilities(logits, min_p):
    p = logits.softmax(-1)
    p = (p >= min_p*p.max()).float()
    return p/p.sum()
# min_p_probabilities wrong: nothing is cut
def min_p_probabilities(logits, min_p): return logits.softmax(-1)
# min_p_probabilities wrong: only the best is left
def min_p_probabilities(logits, min_p): return F.one_hot(logits.argmax(), len(logits)).float()
# beam right: lists of texts
def beam(model, ids, n, width):
    texts = [(0., ids)]
    for _ in range(n):
        longer = []
        for total, text in texts:
            logp = model.prefill(text)[0][0, -1].log_softmax(-1).tolist()
            longer += [(total + p, torch.cat([text, torch.tensor([[i]])], 1)) for i, p in enumerate(logp)]
        texts = sorted(longer, key=lambda t: -t[0])[:width]
    return texts[0][1]
# beam wrong: greedy
def beam(model, ids, n, width): return model.decode(ids, n, temperature=0)
# beam wrong: the totals are forgotten
def beam(model, ids, n, width):
    for _ in range(n):
        logp = model.prefill(ids)[0][:, -1].log_softmax(-1)
        _, flat = logp.flatten().topk(min(width, logp.numel()))
        ids = torch.cat([ids[flat // logp.shape[1]], (flat % logp.shape[1])[:, None]], 1)
    return ids[:1]
# beam wrong: all beams are returned
def beam(model, ids, n, width):
    scores = torch.zeros(1)
    for _ in range(n):
        logp = model.prefill(ids)[0][:, -1].log_softmax(-1) + scores[:, None]
        scores, flat = logp.flatten().topk(min(width, logp.numel()))
        ids = torch.cat([ids[flat // logp.shape[1]], (flat % logp.shape[1])[:, None]], 1)
    return ids
# beam wrong: the worst of the best
def beam(model, ids, n, width):
    scores = torch.zeros(1)
    for _ in range(n):
        logp = model.prefill(ids)[0][:, -1].log_softmax(-1) + scores[:, None]
        scores, flat = logp.flatten().topk(min(width, logp.numel()))
        ids = torch.cat([ids[flat // logp.shape[1]], (flat % logp.shape[1])[:, None]], 1)
    return ids[-1:]
# beam wrong: logits in place of ln p
def beam(model, ids, n, width):
    scores = torch.zeros(1)
    for _ in range(n):
        logp = model.prefill(ids)[0][:, -1] + scores[:, None]
        scores, flat = logp.flatten().topk(min(width, logp.numel()))
        ids = torch.cat([ids[flat // logp.shape[1]], (flat % logp.shape[1])[:, None]], 1)
    return ids[:1]
# beam wrong: drawn at random
def beam(model, ids, n, width): return model.decode(ids, n)
# positions right: the sum of a row
def positions(T0, n, W): return sum(range(T0, T0+n)) - sum(range(1, max(0, T0+n-1-W)+1)) + sum(range(1, max(0, T0-1-W)+1))
# positions wrong: the window is forgotten
def positions(T0, n, W): return n*T0 + n*(n-1)//2
# positions wrong: always the whole window
def positions(T0, n, W): return n*W
# positions wrong: one pass too many
def positions(T0, n, W):
    growing = max(0, min(n, W - T0 + 1))
    return growing*(2*T0 + growing - 1)//2 + (n - growing)*W + T0
# positions wrong: the window is full from the start
def positions(T0, n, W): return n*min(T0, W)
# positions wrong: a context longer than the window
def positions(T0, n, W):
    growing = min(n, W - T0)
    return growing*(2*T0 + growing - 1)//2 + (n - growing)*W
# positions wrong: the count of the lesson
def positions(T0, n, W): return 6176
# score right: by cross entropy
def score(model, ids, k):
    logits = model.prefill(ids)[0]
    return -F.cross_entropy(logits[0, k-1:-1], ids[0, k:], reduction='sum').item()
# score wrong: token by token
def score(model, ids, k):
    return sum(model.prefill(ids[:, :t])[0][0, -1].log_softmax(-1)[ids[0, t]].item() for t in range(k, ids.shape[1]))
# score wrong: the shift is forgotten
def score(model, ids, k):
    return model.prefill(ids)[0].log_softmax(-1).gather(-1, ids[..., None])[:, k:].sum().item()
# score wrong: the whole text
def score(model, ids, k):
    return model.prefill(ids[:, :-1])[0].log_softmax(-1).gather(-1, ids[:, 1:, None]).sum().item()
# score wrong: the mean
def score(model, ids, k):
    return model.prefill(ids[:, :-1])[0].log_softmax(-1).gather(-1, ids[:, 1:, None])[:, k-1:].mean().item()
# score wrong: logits in place of ln p
def score(model, ids, k):
    return model.prefill(ids[:, :-1])[0].gather(-1, ids[:, 1:, None])[:, k-1:].sum().item()
# score wrong: one token too few
def score(model, ids, k):
    return model.prefill(ids[:, :-1])[0].log_softmax(-1).gather(-1, ids[:, 1:, None])[:, k:].sum().item()
# score wrong: a tensor
def score(model, ids, k):
    return model.prefill(ids[:, :-1])[0].log_softmax(-1).gather(-1, ids[:, 1:, None])[:, k-1:].sum()
