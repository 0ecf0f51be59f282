# diagnosis right: from lists
diagnosis = dict(zip('ABCD', ['keeps a wrong guess', 'keeps what comes behind', 'corrects at the wrong place',
                              'refuses nothing']))
# diagnosis wrong: two exchanged
diagnosis = dict(A='keeps a wrong guess', B='corrects at the wrong place', C='keeps what comes behind',
                 D='refuses nothing')
# diagnosis wrong: one for all
diagnosis = dict.fromkeys('ABCD', 'refuses nothing')
# diagnosis wrong: only three
diagnosis = dict(A='keeps a wrong guess', B='keeps what comes behind', C='corrects at the wrong place')
# diagnosis wrong: a list
diagnosis = ['keeps a wrong guess', 'keeps what comes behind', 'corrects at the wrong place', 'refuses nothing']
# diagnosis wrong: nothing
diagnosis = None
# diagnosis wrong: first and last exchanged
diagnosis = dict(A='refuses nothing', B='keeps what comes behind', C='corrects at the wrong place',
                 D='keeps a wrong guess')
# kept_share right: as one minus half of the distance
def kept_share(p, q): return float(1 - (p - q).abs().sum()/2)
# kept_share wrong: the overlap of equal draws
def kept_share(p, q): return (p*q).sum().item()
# kept_share wrong: the mean of the ratios
def kept_share(p, q): return (p/q).clamp(max=1).mean().item()
# kept_share wrong: the residual
def kept_share(p, q): return (p - q).clamp(min=0).sum().item()
# kept_share wrong: one for each token
def kept_share(p, q): return torch.minimum(p, q).tolist()
# kept_share wrong: only the drafter's best token
def kept_share(p, q): return min(1., (p[q.argmax()]/q.argmax().clamp(min=1)).item())
# kept_share wrong: the larger of the two
def kept_share(p, q): return torch.maximum(p, q).sum().item()
# kept_share wrong: the lesson's example
def kept_share(p, q): return .6
# best_k right: step by step
def best_k(a, price):
    best, most, tokens = 0, 0, 0
    for k in range(17):
        tokens += a**k
        if tokens/price(k) > most: best, most = k, tokens/price(k)
    return best
# best_k wrong: the most tokens, whatever they cost
def best_k(a, price): return max(range(17), key=lambda k: sum(a**i for i in range(k+1)))
# best_k wrong: forgets the model's own token
def best_k(a, price): return max(range(17), key=lambda k: sum(a**i for i in range(1, k+1))/price(k))
# best_k wrong: as if all guesses were right
def best_k(a, price): return max(range(17), key=lambda k: (k+1)/price(k))
# best_k wrong: a difference in place of a ratio
def best_k(a, price): return max(range(17), key=lambda k: sum(a**i for i in range(k+1)) - price(k))
# best_k wrong: the rate, not the k
def best_k(a, price): return max(sum(a**i for i in range(k+1))/price(k) for k in range(17))
# best_k wrong: never no guess
def best_k(a, price): return max(range(1, 17), key=lambda k: sum(a**i for i in range(k+1))/price(k))
# best_k wrong: never 16
def best_k(a, price): return max(range(16), key=lambda k: sum(a**i for i in range(k+1))/price(k))
# best_k wrong: the closed form alone, which fails at a = 1
def best_k(a, price): return max(range(17), key=lambda k: (1 - a**(k+1))/(1 - a)/price(k))
# best_k wrong: always seven
def best_k(a, price): return 7
# ReferenceDrafter right: searches anew each time
class ReferenceDrafter:
    vocab_size = None
    def __init__(self, reference, n=6, k=8): self.reference, self.n, self.k = list(reference), n, k
    def draft(self, text, most, **dials):
        n, tail = self.n, list(text[-self.n:])
        for i in range(len(self.reference) - n + 1):
            if self.reference[i:i+n] == tail: return self.reference[i+n:i+n+min(self.k, most)], None
        return [], None
# ReferenceDrafter wrong: takes the last place
class ReferenceDrafter:
    def __init__(self, reference, n=6, k=8):
        self.reference, self.n, self.k = reference, n, k
        self.place = {tuple(reference[i:i+n]): i+n for i in range(len(reference)-n+1)}
    def draft(self, text, most, **dials):
        i = self.place.get(tuple(text[-self.n:]))
        return ([], None) if i is None else (self.reference[i:i+min(self.k, most)], None)
# ReferenceDrafter wrong: ignores the limit
class ReferenceDrafter:
    def __init__(self, reference, n=6, k=8):
        self.reference, self.n, self.k, self.place = reference, n, k, {}
        for i in range(len(reference)-n+1): self.place.setdefault(tuple(reference[i:i+n]), i+n)
    def draft(self, text, most, **dials):
        i = self.place.get(tuple(text[-self.n:]))
        return ([], None) if i is None else (self.reference[i:i+self.k], None)
# ReferenceDrafter wrong: copies what matched, too
class ReferenceDrafter:
    def __init__(self, reference, n=6, k=8):
        self.reference, self.n, self.k, self.place = reference, n, k, {}
        for i in range(len(reference)-n+1): self.place.setdefault(tuple(reference[i:i+n]), i)
    def draft(self, text, most, **dials):
        i = self.place.get(tuple(text[-self.n:]))
        return ([], None) if i is None else (self.reference[i:i+min(self.k, most)], None)
# ReferenceDrafter wrong: forgets the second value
class ReferenceDrafter:
    def __init__(self, reference, n=6, k=8):
        self.reference, self.n, self.k, self.place = reference, n, k, {}
        for i in range(len(reference)-n+1): self.place.setdefault(tuple(reference[i:i+n]), i+n)
    def draft(self, text, most, **dials):
        i = self.place.get(tuple(text[-self.n:]))
        return [] if i is None else self.reference[i:i+min(self.k, most)]
# ReferenceDrafter wrong: looks in the text
class ReferenceDrafter:
    def __init__(self, reference, n=6, k=8): self.other = NGramDrafter(n, k)
    def draft(self, text, most, **dials): return self.other.draft(text, most, **dials)
# ReferenceDrafter wrong: one token has to match
class ReferenceDrafter:
    def __init__(self, reference, n=6, k=8): self.reference, self.k = reference, k
    def draft(self, text, most, **dials):
        if text[-1] not in self.reference: return [], None
        i = self.reference.index(text[-1]) + 1
        return self.reference[i:i+min(self.k, most)], None
# ReferenceDrafter wrong: misses the end of the reference
class ReferenceDrafter:
    def __init__(self, reference, n=6, k=8):
        self.reference, self.n, self.k, self.place = reference, n, k, {}
        for i in range(len(reference)-n+1): self.place.setdefault(tuple(reference[i:i+n]), i+n)
    def draft(self, text, most, **dials):
        i = self.place.get(tuple(text[-self.n:]))
        return ([], None) if i is None else (self.reference[i:i+min(self.k, most)][:-1], None)
# ReferenceDrafter wrong: fails where nothing matches
class ReferenceDrafter:
    def __init__(self, reference, n=6, k=8):
        self.reference, self.n, self.k = reference, n, k
        self.place = {tuple(reference[i:i+n]): i+n for i in reversed(range(len(reference)-n+1))}
    def draft(self, text, most, **dials):
        i = self.place[tuple(text[-self.n:])]
        return self.reference[i:i+min(self.k, most)], None
