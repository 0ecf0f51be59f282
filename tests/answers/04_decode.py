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
# keep_best right: a sorted list of all extensions
def keep_best(ids, totals, width):
    longer = [(total, i, token) for i, row in enumerate(totals.tolist()) for token, total in enumerate(row)]
    best = sorted(longer, reverse=True)[:width]
    return torch.stack([torch.cat([ids[i], torch.tensor([t])]) for _, i, t in best]), torch.tensor([b[0] for b in best])

# keep_best wrong: greedy
def keep_best(ids, totals, width):
    best, token = totals[0].max(0)
    return torch.cat([ids[:1], token.view(1, 1)], 1), best[None]

# keep_best wrong: the totals are forgotten
def keep_best(ids, totals, width):
    best, flat = totals.flatten().topk(min(width, totals.numel()))
    row, token = flat // totals.shape[1], flat % totals.shape[1]
    return torch.cat([ids[row], token[:, None]], 1), torch.zeros(len(best))

# keep_best wrong: the best of each text, not of all
def keep_best(ids, totals, width):
    best, token = totals.topk(min(width, totals.shape[1]))
    longer = torch.cat([ids.repeat_interleave(best.shape[1], 0), token.flatten()[:, None]], 1)
    return longer[:width], best.flatten()[:width]

# keep_best wrong: the worst first
def keep_best(ids, totals, width):
    best, flat = totals.flatten().topk(min(width, totals.numel()))
    row, token = flat // totals.shape[1], flat % totals.shape[1]
    return torch.cat([ids[row], token[:, None]], 1).flip(0), best.flip(0)

# keep_best wrong: row and token changed places
def keep_best(ids, totals, width):
    best, flat = totals.flatten().topk(min(width, totals.numel()))
    row, token = flat % len(totals), flat // len(totals)
    return torch.cat([ids[row], token[:, None]], 1), best

# keep_best wrong: the ln p are missing
def keep_best(ids, totals, width):
    flat = totals.flatten().topk(min(width, totals.numel())).indices
    return torch.cat([ids[flat // totals.shape[1]], (flat % totals.shape[1])[:, None]], 1)

# keep_best wrong: one text too few
def keep_best(ids, totals, width):
    best, flat = totals.flatten().topk(max(1, min(width, totals.numel()) - 1))
    row, token = flat // totals.shape[1], flat % totals.shape[1]
    return torch.cat([ids[row], token[:, None]], 1), best

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
