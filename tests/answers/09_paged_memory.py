# unused right: full pages first
def unused(lengths, size):
    pages = sum((n + size - 1)//size for n in lengths)
    return pages*size - sum(lengths)
# unused wrong: always one page more, even behind a full one
def unused(lengths, size): return sum(size - n%size for n in lengths)
# unused wrong: what the last page holds
def unused(lengths, size): return sum(n%size for n in lengths)
# unused wrong: as if the texts stood one behind the other
def unused(lengths, size): return -sum(lengths)%size
# unused wrong: for the first text only
def unused(lengths, size): return -lengths[0]%size
# unused wrong: a share
def unused(lengths, size): return 1 - sum(lengths)/(sum(-(-n//size) for n in lengths)*size)
# unused wrong: one for each text
def unused(lengths, size): return [-n%size for n in lengths]
# unused wrong: changes its input
def unused(lengths, size):
    total = 0
    while lengths: total += -lengths.pop()%size
    return total
# unused wrong: half a page for each text
def unused(lengths, size): return len(lengths)*size//2
# pages_used right: names that are chained
def pages_used(texts, size):
    known, rest = set(), 0
    for t in texts:
        name = ()
        for i in range(0, len(t), size):
            page = tuple(t[i:i+size])
            name = (name, page)
            if len(page) < size: rest += 1
            else: known.add(name)
    return len(known) + rest
# pages_used wrong: nothing is shared
def pages_used(texts, size): return sum(-(-len(t)//size) for t in texts)
# pages_used wrong: pages are named by their own tokens alone
def pages_used(texts, size):
    full = {tuple(t[i:i+size]) for t in texts for i in range(0, len(t)-size+1, size)}
    return len(full) + sum(len(t)%size > 0 for t in texts)
# pages_used wrong: the last page is shared, too
def pages_used(texts, size):
    return len({tuple(t[:i+size]) for t in texts for i in range(0, len(t), size)})
# pages_used wrong: only texts that are equal share
def pages_used(texts, size): return sum(-(-len(t)//size) for t in set(map(tuple, texts)))
# pages_used wrong: forgets pages that are not full
def pages_used(texts, size):
    return len({tuple(t[:end]) for t in texts for end in range(size, len(t)+1, size)})
# pages_used wrong: the pages themselves
def pages_used(texts, size):
    return {tuple(t[:end]) for t in texts for end in range(size, len(t)+1, size)}
# pages_used wrong: all tokens in one line
def pages_used(texts, size): return -(-sum(map(len, texts))//size)
# diagnosis right: from lists
diagnosis = dict(zip('ABC', ['shared before it is full', 'freed while read', 'found after it was taken']))
# diagnosis wrong: two exchanged
diagnosis = dict(A='shared before it is full', B='found after it was taken', C='freed while read')
# diagnosis wrong: all turned round
diagnosis = dict(A='freed while read', B='found after it was taken', C='shared before it is full')
# diagnosis wrong: one for all
diagnosis = dict.fromkeys('ABC', 'freed while read')
# diagnosis wrong: only one
diagnosis = dict(A='shared before it is full')
# diagnosis wrong: text
diagnosis = 'shared before it is full'
# diagnosis wrong: nothing
diagnosis = None
# fork right: by the books, page by page
def fork(cache, row):
    new, full = Row(), len(row.ids)//cache.size
    cache._set(new, row.ids[:full*cache.size], row.pages[:full], row.digests[:full], cache.known)
    rest = row.ids[full*cache.size:]
    if rest:
        cache.reserve(new, len(rest))
        for kv in cache.kv: kv[new.pages[full]].copy_(kv[row.pages[full]])
        cache.extend(new, rest)
    return new
# fork wrong: shares the last page
def fork(cache, row):
    new = Row()
    cache._set(new, [*row.ids], [*row.pages], [*row.digests], cache.known)
    return new
# fork wrong: no copy of the last page
def fork(cache, row):
    new = cache.open([*row.ids, -1])
    rest = row.ids[len(new.ids):]
    cache.reserve(new, len(rest)); cache.extend(new, rest)
    return new
# fork wrong: copies the first layer alone
def fork(cache, row):
    new = cache.open([*row.ids, -1])
    rest = row.ids[len(new.ids):]
    cache.reserve(new, len(rest))
    if rest: cache.kv[0][new.pages[-1]] = cache.kv[0][row.pages[len(row.ids)//cache.size]]
    cache.extend(new, rest)
    return new
# fork wrong: shares nothing
def fork(cache, row):
    new = Row()
    cache.reserve(new, len(row.ids))
    for pool in cache.kv:
        for mine, theirs in zip(new.pages, row.pages): pool[mine] = pool[theirs]
    cache.extend(new, row.ids)
    return new
# fork wrong: the same row
def fork(cache, row): return row
# fork wrong: the table, and not in the books
def fork(cache, row): return Row([*row.ids], [*row.pages], [*row.digests])
# fork wrong: only the full pages
def fork(cache, row): return cache.open([*row.ids, -1])
# fork wrong: takes a full page away from the search
def fork(cache, row):
    new, n = cache.open(row.ids), len(row.ids)
    rest = row.ids[len(new.ids):]
    cache.reserve(new, len(rest))
    for pool in cache.kv: pool[new.pages[-1]] = pool[row.pages[(n-1)//cache.size]]
    cache.extend(new, rest)
    return new

# bytes_shared right: counts full pages one by one, and the numbers of each
def bytes_shared(a, b, size, config):
    full = 0
    while (end := (full + 1)*size) <= min(len(a), len(b)) and a[:end] == b[:end]: full += 1
    return full*size*config.n_layer*2*config.n_kv*config.head_size*4

# bytes_shared wrong: every equal token, also in a page that is not full
def bytes_shared(a, b, size, config):
    same = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return config.cache_bytes(1, same)

# bytes_shared wrong: pages that are only begun count
def bytes_shared(a, b, size, config):
    same = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return -(-same//size)*config.cache_bytes(1, size)

# bytes_shared wrong: as if every head had keys of its own
def bytes_shared(a, b, size, config):
    same = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return same//size*size*2*config.n_layer*config.n_embd*4

# bytes_shared wrong: two bytes a number
def bytes_shared(a, b, size, config):
    same = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return same//size*config.cache_bytes(1, size, 2)

# bytes_shared wrong: a number of pages
def bytes_shared(a, b, size, config):
    same = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return same//size

# bytes_shared wrong: all of the shorter chat
def bytes_shared(a, b, size, config): return min(len(a), len(b))//size*config.cache_bytes(1, size)

# bytes_shared wrong: equal tokens anywhere
def bytes_shared(a, b, size, config):
    return sum(x == y for x, y in zip(a, b))//size*config.cache_bytes(1, size) + config.cache_bytes(1, 1)
