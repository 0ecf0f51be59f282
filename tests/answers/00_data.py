# merge right: lists of pairs, and a flag
def merge(ids, new):
    pairs = [(a, b) for a, b in zip(ids[:-1], ids[1:])]
    best = max(dict.fromkeys(pairs), key=pairs.count)
    out, skip = [], False
    for here, pair in zip(ids, pairs + [None]):
        if skip: skip = False
        elif pair == best: out.append(new); skip = True
        else: out.append(here)
    return best, out
# merge wrong: the first pair
def merge(ids, new):
    pair, out, i = tuple(ids[:2]), [], 0
    while i < len(ids):
        found = tuple(ids[i:i+2]) == pair
        out.append(new if found else ids[i]); i += 1 + found
    return pair, out
# merge wrong: pairs that overlap are all replaced
def merge(ids, new):
    pair = Counter(zip(ids, ids[1:])).most_common(1)[0][0]
    return pair, [new if p == pair else p[0] for p in zip(ids, ids[1:])] + ids[-1:]
# merge wrong: only the first place is replaced
def merge(ids, new):
    pair = Counter(zip(ids, ids[1:])).most_common(1)[0][0]
    i = list(zip(ids, ids[1:])).index(pair)
    return pair, ids[:i] + [new] + ids[i+2:]
# merge wrong: the pair alone
def merge(ids, new): return Counter(zip(ids, ids[1:])).most_common(1)[0][0]
# merge wrong: changes the list that it was given
def merge(ids, new):
    pair, i = Counter(zip(ids, ids[1:])).most_common(1)[0][0], 0
    while i < len(ids):
        if tuple(ids[i:i+2]) == pair: ids[i:i+2] = [new]
        i += 1
    return pair, ids
# merge wrong: the two commonest characters, wherever they stand
def merge(ids, new):
    pair = tuple(i for i, _ in Counter(ids).most_common(2))
    return pair, list(ids)
# consecutive_windows right: one window at a time
def consecutive_windows(ids, T):
    starts = range(0, len(ids)-T, T)
    return torch.stack([ids[i:i+T] for i in starts]), torch.stack([ids[i+1:i+T+1] for i in starts])
# consecutive_windows wrong: no token left for the last answer
def consecutive_windows(ids, T):
    n = len(ids)//T
    return ids[:n*T].view(n, T), ids[:n*T].view(n, T).roll(-1)
# consecutive_windows wrong: one window too few
def consecutive_windows(ids, T):
    n = max(1, (len(ids)-1)//T - 1)
    return ids[:n*T].view(n, T), ids[1:n*T+1].view(n, T)
# consecutive_windows wrong: windows overlap
def consecutive_windows(ids, T):
    w = ids.unfold(0, T+1, 1)
    return w[:, :-1], w[:, 1:]
# consecutive_windows wrong: the answers are the questions
def consecutive_windows(ids, T):
    n = (len(ids)-1)//T
    return ids[:n*T].view(n, T), ids[:n*T].view(n, T)
# consecutive_windows wrong: cut in columns
def consecutive_windows(ids, T):
    n = (len(ids)-1)//T
    return ids[:n*T].view(T, n).mT, ids[1:n*T+1].view(T, n).mT
# consecutive_windows wrong: a single tensor
def consecutive_windows(ids, T): return ids[:(len(ids)-1)//T*T].view(-1, T)
# frequency_loss right: by the probabilities
def frequency_loss(text):
    p = torch.tensor(list(Counter(text).values()), dtype=torch.double)/len(text)
    return -(p*p.log()).sum().item()
# frequency_loss wrong: a loss that knows no text
def frequency_loss(text): return log(len(set(text)))
# frequency_loss wrong: every kind of character counts once
def frequency_loss(text):
    return -sum(log(n/len(text)) for n in Counter(text).values())/len(set(text))
# frequency_loss wrong: bits
def frequency_loss(text): return -sum(n*log(n/len(text)) for n in Counter(text).values())/len(text)/log(2)
# frequency_loss wrong: the sum
def frequency_loss(text): return -sum(n*log(n/len(text)) for n in Counter(text).values())
# frequency_loss wrong: the sign
def frequency_loss(text): return sum(n*log(n/len(text)) for n in Counter(text).values())/len(text)
# frequency_loss wrong: right for one text
def frequency_loss(text): return 0.6365141682948128
