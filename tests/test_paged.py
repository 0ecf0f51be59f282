"Pages are a cache like any other; their books are right at any time, whatever goes wrong."
import random, sys
from functools import partial
from hashlib import sha256

import pytest
import torch
from helpers import Boom, failing, models, quick, seeded, small_model
from hypothesis import given, strategies as st

from tinylm import LMConfig, paged, phase_invariant
from tinylm.attention import ATTENTION
from tinylm.paged import PagedKVCache, Pages, Row, Undo

V = 11

roomy = partial(small_model, block_size=16)                           # a window of several pages
MODEL = roomy()
GROUPED = roomy(n_head=4, n_kv_head=2, n_embd=16)

def prompt(T, seed=0): return torch.randint(V, (T,), generator=seeded(seed)).tolist()

def digests(ids, size):
    "The chained names of the full pages of a text, written out once more."
    out = [b'']
    for end in range(size, len(ids)+1, size):
        out.append(sha256(out[-1] + b''.join(i.to_bytes(8, sys.byteorder)
                                             for i in ids[end-size:end])).digest())
    return out[1:]

def check_books(pages, rows):
    "A page is counted as often as it is in a table, or it is free; rows have room for what they hold."
    used = [p for r in rows for p in r.pages]
    assert pages.refs == [used.count(p) for p in range(len(pages.refs))]
    assert set(pages.free) == set(range(len(pages.refs))) - set(used)
    assert len(set(pages.known.values())) == len(pages.known)
    names = {page: digest for digest, page in pages.known.items()}
    for r in rows:
        assert len(r.ids) <= len(r.pages)*pages.size and r.digests == digests(r.ids, pages.size)
        for i, p in enumerate(r.pages):              # shared means full and known
            assert pages.refs[p] == 1 or names[p] == r.digests[i]
            assert p not in names or r.digests[i:i+1] == [names[p]]

@torch.no_grad()
def check_content(model, cache, texts):
    "What can be found is what a model would compute: the known pages of these texts against a fresh pool."
    checked = 0
    for ids in texts:
        ids = ids[:model.config.block_size]
        fresh, row = PagedKVCache(model.config, -(-len(ids)//cache.size), cache.size), Row()
        model.prefill(torch.tensor([ids]), cache=fresh.batch([row]))
        for i, digest in enumerate(row.digests):
            if digest in cache.known:
                checked += 1
                for mine, theirs in zip(cache.kv, fresh.kv):
                    assert torch.allclose(mine[cache.known[digest]], theirs[row.pages[i]], atol=1e-4)
    return checked

# --- the law

@quick
@given(models(4, 24), st.integers(1, 5), st.integers(1, 3), st.data())
def test_the_public_law_holds_for_every_cut(model, size, B, data):
    W = model.config.block_size
    cache = PagedKVCache(model.config, B*-(-W//size), size)
    x = torch.randint(V, (B, data.draw(st.integers(1, W))), generator=seeded(data.draw(st.integers(0, 99))))
    rows = [Row() for _ in range(B)]
    assert phase_invariant(model, x, data.draw(st.integers(1, x.shape[1])), cache=cache.batch(rows))
    check_books(cache, rows)

CHUNKS = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=4)

@quick
@given(st.sampled_from([MODEL, GROUPED]), st.integers(1, 5), CHUNKS, st.integers(0, 99))
def test_texts_of_any_lengths_share_one_pass(model, size, chunks, seed):
    "Row by row and chunk by chunk, packed into one row of idx, against a full prefill of each."
    chunks = [[n for i, n in enumerate(c) if sum(c[:i+1]) <= 16] for c in chunks]
    texts = [prompt(sum(c), seed+i) for i, c in enumerate(chunks)]
    cache = PagedKVCache(model.config, sum(-(-len(t)//size) for t in texts), size)
    rows, got = [cache.open([]) for _ in texts], [[] for _ in texts]
    for turn in range(4):
        who = [i for i, c in enumerate(chunks) if turn < len(c)]
        if not who: break
        counts = [chunks[i][turn] for i in who]
        parts = [texts[i][len(rows[i].ids):][:n] for i, n in zip(who, counts)]
        idx = torch.tensor([sum(parts, [])])
        out = model.prefill(idx, cache=cache.batch([rows[i] for i in who], counts))[0][0].split(counts)
        for i, o in zip(who, out): got[i].append(o)
        check_books(cache, rows)
    for text, logits in zip(texts, got):
        assert torch.allclose(torch.cat(logits), model(torch.tensor([text]))[0][0], atol=1e-4, rtol=1e-4)
    assert not cache.free

@quick
@given(st.integers(1, 5), st.integers(1, 16), st.integers(1, 16), st.integers(0, 16))
def test_a_shared_beginning_is_read_once_and_never_written(size, n, m, common):
    a, b = prompt(n, 1), prompt(m, 2)
    common = min(common, n, m); b[:common] = a[:common]
    cache, one = PagedKVCache(MODEL.config, 40, size), Row()
    MODEL.prefill(torch.tensor([a]), cache=cache.batch([one]))
    two = cache.open(b)
    same = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(n, m))
    assert len(two.ids) == min(same, m-1)//size*size and two.pages == one.pages[:len(two.pages)]
    before = [t[one.pages].clone() for t in cache.kv]
    got = MODEL.prefill(torch.tensor([b[len(two.ids):]]), cache=cache.batch([two]))[0][0]
    assert torch.allclose(got, MODEL(torch.tensor([b]))[0][0, len(b)-len(got):], atol=1e-4, rtol=1e-4)
    assert all(torch.equal(t[one.pages], old) for t, old in zip(cache.kv, before))
    check_books(cache, [one, two])
    cache.close(one); cache.close(two); cache.close(two)
    assert cache.refs == [0]*40 and len(cache.free) == 40

def test_attention_of_a_pass_looks_at_its_own_row_only(monkeypatch):
    "A single row has no mask, and nobody gets more keys than the longest of its group."
    seen, fused = [], ATTENTION['fused']
    def kernel(q, k, v, mask=None, dropout=0.):
        seen.append((q.shape[0], q.shape[2], k.shape[2], mask is None))
        return fused(q, k, v, mask, dropout)
    monkeypatch.setitem(ATTENTION, 'fused', kernel)
    cache, rows = PagedKVCache(MODEL.config, 40, 3), [Row() for _ in range(4)]
    MODEL.prefill(torch.tensor([prompt(10)]), cache=cache.batch(rows, [2, 1, 3, 4]))
    assert seen[:4] == [(1, 2, 2, True), (1, 1, 1, True), (1, 3, 3, True), (1, 4, 4, True)]
    del seen[:]
    MODEL.prefill(torch.tensor([prompt(8)]), cache=cache.batch(rows, [1, 1, 1, 5]))
    assert seen[:2] == [(3, 1, 4, False), (1, 5, 9, True)]
    del seen[:]
    MODEL.prefill(torch.tensor([prompt(2)]), cache=cache.batch(rows[:1] + rows[2:3], [1, 1]))
    assert seen[:1] == [(2, 1, 5, False)]

def test_a_pass_needs_no_gradient_and_keeps_nothing_in_the_cache():
    cache = PagedKVCache(MODEL.config, 8, 4)
    before = set(vars(cache))
    logits, _ = MODEL.prefill(torch.tensor([prompt(5)]), cache=cache.batch([Row()]))
    assert not any(t.requires_grad
                   for t in cache.kv) and set(vars(cache)) == before and torch.is_grad_enabled()

def test_under_autocast_the_pool_keeps_its_own_dtype():
    cache, x = PagedKVCache(MODEL.config, 8, 4), torch.tensor([prompt(9)])
    batch = cache.batch([Row()])
    with torch.autocast('cpu', torch.bfloat16):
        got = torch.cat([MODEL.prefill(part, cache=batch)[0] for part in x.split([6, 3], 1)], 1)
    assert cache.kv[0].dtype == torch.float32
    assert (got - MODEL.prefill(x)[0]).abs().max() < .1*MODEL.prefill(x)[0].abs().max()

def test_new_pages_are_clean_whatever_they_held():
    "A mask multiplies by zero, and zero times nan is nan: the ends of pages must be numbers."
    cache, texts, rows = PagedKVCache(MODEL.config, 8, 4), [prompt(6, 1), prompt(3, 2)], [Row(), Row()]
    for pool in cache.kv: pool.fill_(float('nan'))
    MODEL.prefill(torch.tensor([texts[0][:-1] + texts[1][:-1]]), cache=cache.batch(rows, [5, 2]))
    last = torch.tensor([text[-1:] for text in texts])
    got = MODEL.prefill(last, cache=cache.batch(rows))[0]
    for text, logits in zip(texts, got):
        assert torch.allclose(logits[-1], MODEL(torch.tensor([text]))[0][0, -1], atol=1e-4, rtol=1e-4)

@quick
@given(models(), st.integers(1, 9), st.integers(1, 5))
def test_bytes_of_a_pool_are_those_of_a_cache_of_as_many_positions(model, n_pages, size):
    pool = PagedKVCache(model.config, n_pages, size)
    assert pool.n_bytes == model.config.cache_bytes(1, n_pages*size)
    assert pool.n_bytes == sum(t.untyped_storage().nbytes() for t in pool.kv)

# --- the books

def test_freed_pages_are_found_again_until_somebody_needs_them():
    cache, a, row = PagedKVCache(MODEL.config, 4, 4), prompt(16), Row()
    MODEL.prefill(torch.tensor([a[:13]]), cache=cache.batch([row])); cache.close(row)
    row = cache.open(a); assert len(row.ids) == 12; cache.close(row)
    # takes two: the empty one, and the end of the text
    other = cache.open([]); assert cache.reserve(other, 8); cache.close(other)
    row = cache.open(a); assert len(row.ids) == 8; cache.close(row)

def test_each_page_is_hashed_once(monkeypatch):
    "However a text is read, and however long it is."
    hashed = []
    real = paged.page_digest
    monkeypatch.setattr(paged, 'page_digest', lambda before,
                        ids: (hashed.append(len(ids)), real(before, ids))[1])
    for parts in ([1]*640, [64]*10, [640]):
        pages, row, text = Pages(40, 16), Row(), prompt(640)
        pages.reserve(row, 640); del hashed[:]
        for n in parts: pages.extend(row, text[len(row.ids):][:n])
        assert hashed == [16]*40
        del hashed[:]
        assert len(pages.open(text).ids) == 624 and len(hashed) == 39
        del hashed[:]
        assert pages.open([V-1-text[0], *text[1:]]).pages == [] and len(hashed) == 1

def test_a_page_is_named_by_all_that_came_before_it():
    pages, row, text = Pages(9, 4), Row(), prompt(12)
    pages.reserve(row, 12); pages.extend(row, text)
    assert pages.open(text[4:] + [0]).ids == [] and pages.open(text[:4] + text[8:] + [0]).ids == text[:4]

def test_more_tokens_than_pages_are_refused():
    pages, row = Pages(4, 4), Row()
    pages.reserve(row, 4)
    with pytest.raises(ValueError, match='5 tokens do not fit into 1 pages of 4: reserve first'):
        pages.extend(row, [1]*5)
    assert row.ids == [] and not pages.known

@quick
@given(st.integers(1, 4), st.integers(2, 12), st.integers(0, 10**6))
def test_any_order_of_calls_keeps_the_books_right(size, n_pages, seed):
    rng, pages, rows, texts = random.Random(seed), Pages(n_pages, size), [], [prompt(20, s % 2)
        for s in range(3)]
    for _ in range(60):
        kind, text = rng.choice(['open', 'open', 'grow', 'grow', 'grow', 'close']), rng.choice(texts)
        row = rng.choice(rows) if rows else None
        if kind == 'open': rows.append(pages.open(text[:rng.randint(0, 20)]))
        elif row and kind == 'close': pages.close(row); rows.remove(row)
        elif row:
            n, before = rng.randint(0, 6), (list(row.pages), list(pages.refs))
            if pages.reserve(row, n): pages.extend(row, [rng.randrange(2) for _ in range(n)])
            else: assert (row.pages, pages.refs) == before
        check_books(pages, rows)

# --- what does not fit

@pytest.mark.parametrize('wrong, says', [
    (dict(shape=(3, 5)), r'idx has shape \(3, 5\): expected \(2, 5\)'),
    (dict(counts=[2, 2]), r'idx has shape \(2, 5\): expected \(1, 4\)'),
    (dict(n_pages=3), '4 pages are missing, and 3 of 3 are free'),
    (dict(dtype=torch.bfloat16), 'bfloat16 on cpu'),
    (dict(config=LMConfig()), 'was made for'), (dict(shape=(2, 17)),
                                                'a row would hold 17 tokens: block_size is 16')])
def test_a_pass_that_does_not_fit_is_refused_and_changes_nothing(wrong, says):
    config, n_pages = wrong.get('config', MODEL.config), wrong.get('n_pages', 12)
    cache = PagedKVCache(config, n_pages, 4, wrong.get('dtype', torch.float32))
    batch = cache.batch([cache.open([]), cache.open([])], wrong.get('counts'))
    with pytest.raises(ValueError, match=says):
        MODEL.prefill(torch.zeros(wrong.get('shape', (2, 5)), dtype=torch.long), cache=batch)
    assert batch.lengths == [0, 0] and not any(r.pages
                                               for r in batch.rows) and len(cache.free) == len(cache.refs)

@pytest.mark.parametrize('args, says', [
    ((0, 4), 'n_pages is 0'), ((-1, 4), 'n_pages is -1'), ((4, 0), 'size is 0'),
    ((2.5, 4), 'n_pages is 2.5')])
def test_a_pool_of_nonsense_is_refused(args, says):
    with pytest.raises(ValueError, match=says): PagedKVCache(MODEL.config, *args)

def test_a_batch_of_nonsense_is_refused():
    cache, row = PagedKVCache(MODEL.config, 4, 4), Row()
    for rows, counts, says in (([], None, '0 rows'), ([row, row], None, '2 rows: expected at least one, each '
        'once'),
                               ([row], [1, 2], r'counts are \[1, 2\]: expected 1'),
                               ([row], [0], 'a count is 0')):
        with pytest.raises(ValueError, match=says): cache.batch(rows, counts)

# --- what goes wrong

def interrupted(work, line):
    "Run something, with Ctrl-C before the n-th line; whether it came so far."
    with failing('line', line) as f: work()
    return f.hit

@pytest.mark.slow
def test_a_pass_that_is_interrupted_at_any_line_leaves_the_books_right():
    a, b, new = prompt(9, 1), prompt(6, 2), prompt(7, 3)
    for line in range(1, 10**6):
        cache, rows = PagedKVCache(MODEL.config, 12, 2), [Row(), Row()]
        MODEL.prefill(torch.tensor([a + b]), cache=cache.batch(rows, [9, 6]))
        shared = cache.open(a)
        batch = cache.batch([rows[0], shared, rows[1]], [3, 2, 2])
        held = batch.lengths
        hit = interrupted(lambda: MODEL.prefill(torch.tensor([new]), cache=batch), line)
        check_books(cache, [*rows, shared])
        assert torch.is_grad_enabled()
        assert batch.lengths in (held, [n + m for n, m in zip(held, [3, 2, 2])])
        if batch.lengths == held:                     # and it can be done again, with other tokens
            got = MODEL.prefill(torch.tensor([new[::-1]]), cache=batch)[0][0, :3]
            assert torch.allclose(got, MODEL(torch.tensor([a + new[::-1][:3]]))[0][0, 9:], atol=1e-4)
            check_books(cache, [*rows, shared]); check_content(MODEL, cache, [r.ids for r in batch.rows])
        if not hit: break
    assert line > 100

def test_a_pass_that_fails_half_way_does_not_count(monkeypatch):
    cache, x = PagedKVCache(MODEL.config, 8, 4), torch.tensor([prompt(8)])
    batch = cache.batch([cache.open([])])
    MODEL.prefill(x[:, :4], cache=batch)
    with monkeypatch.context() as m:
        m.setattr(MODEL.blocks[1], 'forward', lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError): MODEL.prefill(torch.zeros(1, 3, dtype=torch.long), cache=batch)
    assert batch.lengths == [4]
    check_books(cache, batch.rows)
    assert torch.allclose(MODEL.prefill(x[:, 4:], cache=batch)[0], MODEL.prefill(x)[0][:, 4:], atol=1e-4)

def test_undo_forgets_what_may_be_overwritten():
    pages, row = Pages(2, 2), Row()
    pages.reserve(row, 4); pages.extend(row, [1, 2, 3, 4]); pages.close(row)
    with pytest.raises(Boom):
        with Undo(pages, row): pages.reserve(row, 1); raise Boom
    assert pages.refs == [0, 0] and row.pages == [] and len(pages.known) == 1
    assert pages.open([1, 2, 3, 4, 5]).ids == [1, 2]

def test_undo_shortens_lists_that_grew_and_leaves_out_what_is_none():
    notes = [1, 2]
    with pytest.raises(Boom):
        with Undo(notes, None): notes.append(3); raise Boom
    assert notes == [1, 2]
    with Undo(notes, None): notes.append(3)
    assert notes == [1, 2, 3]
