import ast, errno, json, os, pickle, re
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from math import log
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import load as from_bytes, load_file, save as to_bytes, save_file
from torch.nn import functional as F

import tinylm
from helpers import SMALL, close, failing, quick, shapes, small_model, tokens
from tinylm import (CharTokenizer, KVCache, LanguageModel, LMConfig, Pass, Trainer, TrainConfig, Watched,
                    causal_attention, causal_mask, differences, tensor_chunks)

CHARS = '\n"\\aß☃😀\x00\u2028zé'

def bits(model):
    return {name: (t.dtype, t.shape, t.numpy().tobytes()) for name, t in model.state_dict().items()}

# --- the config

OPTIONAL = ('n_kv_head', 'n_inner')

@pytest.mark.parametrize('name', ['vocab_size', 'block_size', 'n_layer', 'n_head', 'n_embd', *OPTIONAL])
@pytest.mark.parametrize('bad', [0, -1, 2., True, '4', None, 2**31])
def test_a_size_that_is_no_count_is_refused(name, bad):
    if bad is None and name in OPTIONAL: return
    with pytest.raises(ValueError, match=f'{name} is {bad!r}: expected a whole number from 1 to 2147483647'):
        LMConfig(**{name: bad})

@pytest.mark.parametrize('bad', [1., -.1, 2, float('nan'), 'much', None])
def test_a_dropout_that_is_no_share_is_refused(bad):
    with pytest.raises(ValueError, match=f'dropout is {bad!r}: expected a number of at least 0, below 1'):
        LMConfig(dropout=bad)

@pytest.mark.parametrize('name', ['bias', 'tie_embeddings', 'qk_norm', 'qkv_bias'])
@pytest.mark.parametrize('bad', [2, 0, 1, 'no', None])
def test_a_switch_that_is_neither_true_nor_false_is_refused(name, bad):
    if bad is None and name == 'qkv_bias': return
    with pytest.raises(ValueError, match=f'{name} is {bad!r}: expected True or False'):
        LMConfig(**{name: bad})

@pytest.mark.parametrize('name', ['norm', 'mlp', 'positions', 'attention'])
@pytest.mark.parametrize('bad', ['magic', None, 3, ['layer']])
def test_a_part_that_nobody_knows_is_refused_with_those_there_are(name, bad):
    known = {'norm': 'layer', 'mlp': 'gelu', 'positions': 'learned', 'attention': 'reference, fused'}[name]
    with pytest.raises(ValueError, match=re.escape(f'{name} is {bad!r}: expected one of {known}')):
        LMConfig(**{name: bad})

@pytest.mark.parametrize('name', ['norm_eps', 'rope_theta'])
@pytest.mark.parametrize('bad', [0, -1., float('nan'), 'small', None, True])
def test_what_must_be_above_zero_is_refused_otherwise(name, bad):
    with pytest.raises(ValueError, match=f'{name} is {bad!r}: expected a number above 0'):
        LMConfig(**{name: bad})

@pytest.mark.parametrize('changes, says', [
    (dict(n_embd=16, n_head=3), 'n_embd 16 is not divisible by n_head 3'),
    (dict(n_head=4, n_kv_head=3), 'n_head 4 is not divisible by n_kv_head 3'),
    (dict(n_head=2, n_kv_head=4), 'n_head 2 is not divisible by n_kv_head 4')])
def test_heads_that_cannot_share_are_refused(changes, says):
    with pytest.raises(ValueError, match=says): LMConfig(**changes)

@quick
@given(shapes())
def test_a_size_that_is_not_given_follows_from_the_others(shape):
    config = LMConfig(**SMALL | shape)
    assert config.n_kv == (shape['n_kv_head']
                           or shape['n_head']) and config.head_size*shape['n_head'] == shape['n_embd']
    assert config.n_wide == (shape['n_inner'] or 4*shape['n_embd'])
    assert (config.n_kv_head, config.n_inner) == (shape['n_kv_head'], shape['n_inner'])

@quick
@given(shapes(), st.integers(1, 40), st.integers(1, 40))
def test_n_params_is_the_count_and_a_shape_has_the_parts_that_it_says(shape, V, block_size):
    model = LanguageModel(LMConfig(**shape, vocab_size=V, block_size=block_size))
    assert model.config.n_params == sum(p.numel() for p in model.parameters())
    names, (G, D, C) = dict(model.named_parameters()), (model.config.n_kv, model.config.head_size,
                                                        shape['n_embd'])
    assert names['blocks.0.attention.qkv.weight'].shape == (C + 2*G*D, C)
    assert names['blocks.0.mlp.up.weight'].shape == (shape['n_inner'] or 4*C, C)
    assert ('head.weight' in names) != shape['tie_embeddings']
    biased = {name.removesuffix('.bias') for name in names if name.endswith('bias')}
    qkv = {n for n in biased if n.endswith('qkv')}
    assert bool(qkv) == (shape['bias'] if shape['qkv_bias'] is None else shape['qkv_bias'])
    assert bool(biased - qkv) == shape['bias']

def test_counting_a_large_model_takes_no_memory_and_no_random_numbers():
    before = torch.get_rng_state()
    big = LMConfig(vocab_size=50257, block_size=1024, n_layer=48, n_head=25, n_embd=1600)
    assert big.n_params == 1_557_611_200                                      # GPT-2 XL, as published
    assert torch.equal(torch.get_rng_state(), before)

def test_matrices_below_the_limit_are_described_and_larger_ones_refused():
    C, shape = 2**29, dict(n_embd=2**29, n_inner=1)
    block = LMConfig(n_layer=2, **shape).n_params - LMConfig(n_layer=1, **shape).n_params
    assert 4*C*C < block < 4.001*C*C                            # queries, keys, values, and the way back
    for large in (dict(n_embd=C), dict(n_embd=2*C, n_inner=1)):
        with pytest.raises(ValueError, match=r'a matrix of 2\*\*60 parameters'): LMConfig(**large)

def test_a_model_without_arguments_is_the_small_one_of_the_contract():
    model = LanguageModel()
    assert sum(p.numel() for p in model.parameters()) < 2e6
    assert model(torch.zeros(2, 64, dtype=torch.long))[0].shape == (2, 64, 65)

def test_a_tokenizer_with_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match='the tokenizer has 3 tokens and the config says vocab_size 11'):
        LanguageModel(LMConfig(**SMALL), CharTokenizer('abc'))

@pytest.mark.parametrize('n_layer', [2, 8])
def test_weights_start_small_and_those_that_write_to_the_stream_smaller_with_depth(n_layer):
    torch.manual_seed(0)
    for name, p in LanguageModel(LMConfig(n_layer=n_layer)).named_parameters():
        if p.ndim == 2:
            assert p.std().item() == pytest.approx(.02/(2*n_layer)**.5
                if name.endswith(('proj.weight', 'down.weight')) else .02, rel=.05), name
        else: assert (p == (name.endswith('weight'))).all(), name

# --- prefill

@pytest.mark.parametrize('V', [27, 65, 500, 5000])
def test_an_untrained_model_guesses_evenly(V):
    torch.manual_seed(0)
    x, y = torch.randint(V, (2, 8, 32))
    assert abs(LanguageModel(LMConfig(vocab_size=V))(x, y)[1].item() - log(V)) < .15

@quick
@given(st.integers(1, 4), st.integers(1, 8), shapes())
def test_prefill_gives_logits_for_every_position_and_the_mean_loss(B, T, shape):
    model, x, y = small_model(**shape), tokens(B, T), tokens(B, T, seed=1)
    logits, loss = model.prefill(x, y)
    assert logits.shape == (B, T, 11) and loss.shape == ()
    by_hand = [-logits[b, t].log_softmax(-1)[y[b, t]] for b in range(B) for t in range(T)]
    assert loss.item() == pytest.approx(sum(by_hand).item()/(B*T), abs=1e-5)
    assert torch.equal(loss, F.cross_entropy(logits.view(-1, 11), y.view(-1)))
    assert model.prefill(x)[1] is None

def test_forward_is_prefill():
    model, x, y = small_model(), tokens(3, 8), tokens(3, 8, seed=1)
    for called, named in zip(model(x, y), model.prefill(x, y)): assert torch.equal(called, named)
    assert model(x)[1] is None

@quick
@given(shapes())
def test_prefill_is_the_network_written_out(shape):
    "Pre-norm blocks on a residual stream, GELU by tanh, a final norm, the token table or a head as output."
    model, x = small_model(**shape, norm_eps=.1), tokens(2, 8)
    group = model.config.n_head//model.config.n_kv
    norm = lambda layer, x: F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, .1)
    stream = model.tok_emb.weight[x] + model.pos_emb.weight[:8]
    for block in model.blocks:
        q, k, v = block.attention.heads(norm(block.norm1, stream))
        heard = [causal_attention(q[:, h], k[:, h//group], v[:, h//group]) for h in range(shape['n_head'])]
        stream = stream + block.attention.proj(torch.cat(heard, -1))
        stream = stream + block.mlp.down(F.gelu(block.mlp.up(norm(block.norm2, stream)), approximate='tanh'))
    table = model.tok_emb.weight if shape['tie_embeddings'] else model.head.weight
    assert close(model(x)[0], norm(model.norm, stream) @ table.T)

@quick
@given(st.integers(1, 3), st.integers(1, 8), shapes(), st.data())
def test_a_changed_token_moves_no_logits_before_it(B, T, shape, data):
    model, x = small_model(**shape), tokens(B, T)
    j = data.draw(st.integers(0, T-1))
    changed = x.clone()
    changed[:, j] = (x[:, j] + data.draw(st.integers(1, 10))) % 11
    assert torch.allclose(model(changed)[0][:, :j], model(x)[0][:, :j], atol=1e-5)

def test_the_whole_text_before_a_token_counts():
    model, x = small_model(), tokens(1, 8)
    changed = x.clone()
    changed[0, 0] = (x[0, 0] + 1) % 11
    assert ((model(changed)[0] - model(x)[0]).abs().amax(-1) > 1e-3).all()

def test_dropout_works_in_training_only():
    x, model = tokens(2, 8), small_model(dropout=.5)
    assert not torch.equal(model.train()(x)[0], model(x)[0])
    assert torch.equal(model.eval()(x)[0], small_model(dropout=0.)(x)[0])

def test_dropout_leaves_the_weights_of_attention_alone():
    model, told = small_model(dropout=.25).train(), []
    class Told(Watched):
        def attend(self, layer, q, k, v, dropout=0.):
            told.append(dropout)
            return super().attend(layer, q, k, v, dropout)
    with model.begin(tokens(1, 8)) as p: Told(p).hidden(model, tokens(1, 8))
    assert told == [0.]*model.config.n_layer

@pytest.mark.parametrize('kernel', tinylm.ATTENTION)
def test_every_kernel_trains_with_dropout(kernel):
    x, model = tokens(2, 8), small_model(dropout=.5, attention=kernel).train()
    model(x, x)[1].backward()
    assert all(p.grad is not None for p in model.parameters())

def test_dropout_works_on_the_embeddings_and_both_writes_of_a_block():
    model, rates = small_model(dropout=.5), []
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout): m.register_forward_hook(lambda m, *_: rates.append(m.p))
    model(tokens(1, 8))
    assert rates == [.5]*(1 + 2*2)

# --- bad input

@pytest.mark.parametrize('idx, says', [
    (torch.tensor([[3, -1]]), 'idx holds the token id -1: expected 0 to 10'),
    (torch.tensor([[11, 3]]), 'idx holds the token id 11: expected 0 to 10'),
    (torch.zeros(1, 3), 'idx is torch.float32: expected a tensor of integers'),
    (torch.zeros(1, 3, dtype=torch.bool), 'idx is torch.bool: expected a tensor of integers'),
    (torch.zeros(3, dtype=torch.long), 'idx has shape (3,): expected (B, T) with at least one token'),
    (torch.zeros(1, 0, dtype=torch.long), 'idx has shape (1, 0): expected (B, T)'),
    (torch.zeros(0, 3, dtype=torch.long), 'idx has shape (0, 3): expected (B, T)'),
    (torch.zeros(1, 2, 3, dtype=torch.long), 'idx has shape (1, 2, 3): expected (B, T)'),
    (torch.tensor(3), 'idx has shape (): expected (B, T)'),
    (torch.zeros(1, 9, dtype=torch.long), '9 tokens are more than block_size 8'),
    ([[1, 2]], 'idx is list: expected a tensor of integers'),
    (None, 'idx is NoneType: expected a tensor of integers')])
def test_bad_ids_are_refused(idx, says):
    with pytest.raises(ValueError, match=re.escape(says)): small_model().prefill(idx)

@pytest.mark.parametrize('targets, says', [
    (torch.zeros(2, 3, dtype=torch.long), 'targets have shape (2, 3) and idx (2, 4): expected the same'),
    (torch.zeros(8, dtype=torch.long), 'targets have shape (8,) and idx (2, 4)'),
    (torch.full((2, 4), 11), 'targets holds the token id 11: expected 0 to 10'),
    (torch.full((2, 4), -100), 'targets holds the token id -100: expected 0 to 10'),
    (torch.zeros(2, 4), 'targets is torch.float32: expected a tensor of integers'), ([[1]*4]*2, 'targets')])
def test_bad_targets_are_refused(targets, says):
    with pytest.raises(ValueError, match=re.escape(says)): small_model().prefill(tokens(2, 4), targets)

def test_ids_of_32_bits_are_as_good():
    model, x, y = small_model(), tokens(2, 4), tokens(2, 4, seed=1)
    for short, long in zip(model(x.int(), y.int()), model(x, y)): assert torch.equal(short, long)

# --- the pass

@quick
@given(st.integers(1, 3), st.integers(1, 8), shapes())
def test_a_fresh_text_stands_at_0_1_2_and_a_watched_pass_gives_the_same_numbers(B, T, shape):
    model, x = small_model(**shape).eval(), tokens(B, T)
    with model.begin(x) as p:
        watched = Watched(p)
        assert torch.equal(watched.positions, torch.arange(T)[None])
        assert torch.equal(watched.hidden(model, x), model.hidden(x))
    H, G, D = shape['n_head'], model.config.n_kv, model.config.head_size
    assert [layer for layer, *_ in watched.seen] == list(range(shape['n_layer']))
    for _, q, k, heard in watched.seen:
        assert (q.shape, k.shape, heard.shape) == ((B, H, T, D), (B, G, T, D), q.shape)
    assert torch.equal(model.logits(model.hidden(x)), model(x)[0])

def test_the_text_of_a_fresh_pass_fits_into_the_window():
    with pytest.raises(ValueError, match='9 tokens are more than block_size 8'):
        small_model().begin(tokens(1, 9))

class Behind(Pass):
    "The pass behind the tokens of a `ListCache`. It has what the protocol asks for, and nothing else."
    def __init__(self, cache, T, kernel):
        n = cache.kv[0].shape[3]
        self.kv, self.kernel, self.positions = list(cache.kv), kernel, torch.arange(n, n+T)[None]
    def attend(self, layer, q, k, v, dropout=0.):
        self.kv[layer] = torch.cat([self.kv[layer], torch.stack([k, v])], 3)
        return self.kernel(q, *self.heard(layer), self.mask(q), dropout)
    def heard(self, layer): return self.kv[layer]
    def mask(self, q): return causal_mask(q.shape[2], self.kv[0].shape[3])

class ListCache:
    "The simplest cache: one tensor a layer that grows."
    def __init__(self, config, B, makes=Behind):
        self.config, self.makes = config, makes
        self.kv = [torch.zeros(2, B, config.n_kv, 0, config.head_size) for _ in range(config.n_layer)]
    @contextmanager
    def begin(self, idx, kernel):
        with torch.no_grad(): yield (p := self.makes(self, idx.shape[1], kernel))
        self.kv = p.kv                                          # one assignment, and only if all went well

def chunked(model, x, sizes, cache):
    return torch.cat([model.prefill(chunk, cache=cache)[0] for chunk in x.split(sizes, 1)], 1)

SIZES = st.lists(st.integers(1, 8), min_size=1).filter(lambda sizes: sum(sizes) <= 8)

@quick
@given(st.integers(1, 3), shapes(), SIZES, st.integers(0, 99))
def test_the_blocks_need_nothing_else_of_a_cache_and_chunks_give_the_logits_of_one_prefill(B, shape, sizes,
    seed):
    model, x = small_model(seed, **shape), tokens(B, sum(sizes), seed=seed)
    got = chunked(model, x, sizes, ListCache(model.config, B))
    assert close(got, model(x)[0]) and not got.requires_grad

class ZeroPositions(Behind):
    def __init__(self, cache, T, kernel):
        super().__init__(cache, T, kernel)
        self.positions = torch.zeros(1, T, dtype=torch.long)

class SeesAll(Behind):
    def mask(self, q): return torch.ones_like(super().mask(q))

class Forgets(Behind):
    def heard(self, layer): return self.kv[layer][:, :, :, -self.positions.shape[1]:]
    def mask(self, q): return causal_mask(q.shape[2])

class LayerZeroForAll(Behind):
    def heard(self, layer): return self.kv[0]

class KeysAreValues(Behind):
    def heard(self, layer): return self.kv[layer][[0, 0]]

@pytest.mark.parametrize('wrong', [ZeroPositions, SeesAll, Forgets, LayerZeroForAll, KeysAreValues])
def test_positions_mask_keys_and_layers_are_those_of_the_pass(wrong):
    model, x = small_model(), tokens(2, 8)
    assert (chunked(model, x, [3, 3, 2], ListCache(model.config, 2)) - model(x)[0]).abs().max() < 1e-5
    assert (chunked(model, x, [3, 3, 2], ListCache(model.config, 2, wrong)) - model(x)[0]).abs().max() > 1e-3

def test_a_pass_may_compute_the_stream_in_its_own_way():
    "As one in compiled loops does: the model asks for `hidden`, and makes logits and loss of it."
    class Own(Pass):
        def hidden(self, model, idx): return 2*model.hidden(idx)
    class Cache(ListCache):
        def begin(self, idx, kernel): return nullcontext(Own())
    model, x, y = small_model(), tokens(2, 8), tokens(2, 8, seed=1)
    logits, loss = model.prefill(x, y, cache=Cache(model.config, 2))
    assert torch.equal(logits, model.logits(2*model.hidden(x)))
    assert loss == F.cross_entropy(logits.flatten(0, 1), y.flatten())

@quick
@given(shapes(), st.integers(1, 7), st.integers(1, 400), st.sampled_from(['operation', 'line']),
       st.sampled_from([ListCache, KVCache]))
def test_a_pass_that_fails_anywhere_changes_nothing_that_counts(shape, k, n, how, kind):
    model, x = small_model(**shape).eval(), tokens(1, 8)
    cache = kind(model.config, 1)
    want, done = model(x)[0], []
    model.prefill(x[:, :k], cache=cache)
    with failing(how, n):
        model.prefill(x[:, k:], cache=cache)
        done.append(1)
    length = cache.kv[0].shape[3] if kind is ListCache else cache.lengths[0]
    assert length in ((8,) if done else (k, 8))
    if length == k: assert close(model.prefill(x[:, k:], cache=cache)[0], want[:, k:])

def test_chunks_through_a_cache_have_the_loss_of_one_prefill():
    model, x, y = small_model(), tokens(2, 8), tokens(2, 8, seed=1)
    cache = ListCache(model.config, 2)
    with torch.no_grad(): losses = [model(a, b, cache=cache)[1] for a, b in zip(x.split(2, 1), y.split(2, 1))]
    assert torch.allclose(sum(losses)/4, model(x, y)[1], atol=1e-5)

@pytest.mark.parametrize('x, y',
                         [(torch.tensor([[1, 11]]), None), (torch.tensor([[1, 2]]), torch.tensor([[1]]))])
def test_refused_tokens_do_not_enter_the_cache(x, y):
    model = small_model()
    cache = ListCache(model.config, 1)
    with pytest.raises(ValueError): model.prefill(x, y, cache=cache)
    assert [t.shape[3] for t in cache.kv] == [0, 0]

CHANGES = [dict(vocab_size=12), dict(block_size=9), dict(n_layer=1), dict(n_head=4), dict(n_embd=8),
           dict(bias=False),
           dict(n_kv_head=1), dict(n_inner=5), dict(qkv_bias=False), dict(tie_embeddings=False),
           dict(norm_eps=.1)]

@pytest.mark.parametrize('changes', CHANGES)
@pytest.mark.parametrize('kind', [ListCache, KVCache])
def test_a_cache_of_another_shape_is_refused_with_what_differs(changes, kind):
    model, (name, value), = small_model(), *changes.items()
    cache = kind(small_model(**changes).config, 1)
    says = (f'this cache was made for a model with {name} {value}: this one has {name} '
            f'{getattr(model.config, name)}')
    with pytest.raises(ValueError, match=re.escape(says)): model.prefill(tokens(1, 2), cache=cache)
    with pytest.raises(ValueError, match=re.escape(says)): model.begin(tokens(1, 2), cache)

def test_a_cache_may_come_from_a_model_that_differs_in_nothing_that_it_holds():
    "Dropout and the kernel change no number in a cache; an equal config is as good as the same."
    model, x = small_model().eval(), tokens(1, 8)
    for changes in ({}, dict(dropout=.5), dict(attention='reference')):
        cache = ListCache(replace(model.config, **changes), 1)
        assert close(chunked(model, x, [5, 3], cache), model(x)[0])

def test_a_cache_of_another_type_is_refused():
    model = small_model()
    with pytest.raises(ValueError, match='this cache is torch.float64 on cpu, and the model torch.float32 on '
                                         'cpu'):
        model.prefill(tokens(1, 2), cache=KVCache(model.config, dtype=torch.float64))
    with pytest.raises(ValueError, match='this cache is torch.float32 on meta, and the model torch.float32 '
                                         'on cpu'):
        model.prefill(tokens(1, 2), cache=KVCache(model.config, device='meta'))

@quick
@given(shapes(), shapes())
def test_differences_name_each_field_of_the_other_that_differs(one, other):
    a, b = LMConfig(**SMALL | one), LMConfig(**SMALL | other)
    named = {part.split()[0] for part in differences(a, b).split(', ') if part}
    assert named == {k for k, v in asdict(a).items() if asdict(b)[k] != v} - {'attention', 'dropout'}

# --- files: what is saved comes back

@pytest.mark.parametrize('shape', [{}, dict(bias=False, dropout=.25, n_head=4),
    dict(n_head=4, n_kv_head=2, n_inner=5, qkv_bias=False, tie_embeddings=False, norm_eps=.1,
         attention='tiled')])
@pytest.mark.parametrize('chars', [None, CHARS])
def test_a_file_gives_back_every_bit_the_config_and_the_tokenizer(tmp_path, shape, chars):
    model = small_model(tokenizer=chars and CharTokenizer(chars), **shape)
    model.tok_emb.weight.data[0, :4] = torch.tensor([float('nan'), float('-inf'), -0., 1e-45])
    model.save_safetensors(tmp_path/'m.safetensors')
    built, loaded = LanguageModel.from_safetensors(tmp_path/'m.safetensors'), small_model(1,
        **shape).load_safetensors(str(tmp_path/'m.safetensors'))
    for other in (built, loaded):
        assert bits(other) == bits(model) and other.config == model.config
        assert (other.tokenizer and other.tokenizer.chars) == (chars and ''.join(sorted(chars)))

@quick
@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=['Cs']), min_size=1, max_size=6),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32,
                     torch.int8, torch.uint8, torch.bool]),
    st.lists(st.integers(0, 3), max_size=3)), unique_by=lambda t: t[0], max_size=6),
    st.text('aä"\n', max_size=9))
def test_a_file_tensor_by_tensor_is_the_file_of_safetensors(about, words):
    tensors = {name: (torch.randn(size)*9).to(dtype) for name, dtype, size in about}
    ours = b''.join(tensor_chunks(tensors, {'about': words}))
    got = from_bytes(ours)
    assert got.keys() == tensors.keys() and len(ours) == len(to_bytes(tensors, {'about': words}))
    for k, t in tensors.items():
        assert got[k].dtype == t.dtype and got[k].shape == t.shape
        assert got[k].view(-1).view(torch.uint8).tolist() == t.view(-1).view(torch.uint8).tolist()

def test_a_model_built_from_a_file_is_in_evaluation_mode_and_can_be_trained(tmp_path):
    small_model(dropout=.5).save_safetensors(tmp_path/'m.safetensors')
    model = LanguageModel.from_safetensors(tmp_path/'m.safetensors')
    assert not any(m.training for m in model.modules())
    model(tokens(2, 8), tokens(2, 8))[1].backward()
    assert all(p.grad is not None for p in model.parameters())

def test_a_model_can_be_saved_over_the_file_that_it_came_from(tmp_path):
    path = tmp_path/'m.safetensors'
    small_model().save_safetensors(path)
    model = LanguageModel.from_safetensors(path)
    with torch.no_grad():
        for p in model.parameters(): p += 1
    model.save_safetensors(path)
    assert bits(LanguageModel.from_safetensors(path)) == bits(model) != bits(small_model())

@pytest.mark.parametrize('load',
                         [LanguageModel.from_safetensors, lambda path: small_model(1).load_safetensors(path)])
def test_a_loaded_model_does_not_follow_later_changes_of_its_file(tmp_path, load):
    path = tmp_path/'m.safetensors'
    small_model().save_safetensors(path)
    model = load(path)
    with open(path, 'r+b') as f: f.write(b'\0'*path.stat().st_size)
    assert bits(model) == bits(small_model())

@pytest.mark.parametrize('mode', [True, False])
def test_loading_keeps_the_mode_of_every_part(tmp_path, mode):
    small_model().save_safetensors(tmp_path/'m.safetensors')
    model = small_model(1).train(mode)
    model.blocks[0].train(not mode)
    before = [m.training for m in model.modules()]
    assert model.load_safetensors(tmp_path/'m.safetensors') is model
    assert [m.training for m in model.modules()] == before

def test_a_model_that_differs_only_in_dropout_is_loaded_and_keeps_its_own(tmp_path):
    small_model(dropout=.5).save_safetensors(tmp_path/'m.safetensors')
    model = small_model(1, dropout=.1).load_safetensors(tmp_path/'m.safetensors')
    assert bits(model) == bits(small_model()) and model.config.dropout == .1

def test_a_file_without_a_tokenizer_leaves_the_one_of_the_model(tmp_path):
    small_model().save_safetensors(tmp_path/'m.safetensors')
    tokenizer = CharTokenizer(CHARS)
    assert small_model(tokenizer=tokenizer).load_safetensors(tmp_path/'m.safetensors').tokenizer is tokenizer

# --- files: anything else is refused, and the model stays as it was

def assert_load_refused(path, says, error=ValueError):
    tokenizer = CharTokenizer(CHARS)
    model = small_model(1, tokenizer).train()
    before = bits(model)
    with pytest.raises(error, match=says): model.load_safetensors(path)
    assert bits(model) == before and model.config == LMConfig(**SMALL)
    assert model.tokenizer is tokenizer and model.training

def assert_refused(path, says, error=ValueError):
    assert_load_refused(path, says, error)
    with pytest.raises(error, match=says): LanguageModel.from_safetensors(path)

def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    path = tmp_path/'m.safetensors'
    small_model().save_safetensors(path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], 'little')
    for size in {0, 1, 7, 8, 9, header-1, header, header+1, len(whole)-1,
                 *range(0, len(whole), len(whole)//30)}:
        path.write_bytes(whole[:size])
        assert_refused(path, 'm.safetensors is not a whole safetensors file')

def test_a_file_with_a_byte_too_many_is_refused(tmp_path):
    path = tmp_path/'m.safetensors'
    small_model().save_safetensors(path)
    path.write_bytes(path.read_bytes() + b'\0')
    assert_refused(path, 'm.safetensors is not a whole safetensors file')

@pytest.mark.parametrize('write',
    [lambda path: torch.save(small_model().state_dict(), path),
     lambda path: path.write_bytes(pickle.dumps(dict(a=1))), lambda path: path.write_text('some text '*20)])
def test_another_kind_of_file_under_the_name_is_refused(tmp_path, write):
    write(tmp_path/'m.safetensors')
    assert_refused(tmp_path/'m.safetensors', 'm.safetensors is not a whole safetensors file')

def test_a_missing_file_is_not_found(tmp_path):
    assert_refused(tmp_path/'m.safetensors', 'there is no file .*m.safetensors', FileNotFoundError)

def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    assert_refused(tmp_path/'pipe', 'pipe is not a whole safetensors file')

def test_a_folder_is_refused(tmp_path):
    assert_refused(tmp_path, f'{tmp_path.name} is not a whole safetensors file')

def about(chars=None, **changes):
    return {'tinylm': json.dumps({'config': {**asdict(LMConfig(**SMALL)), **changes}, 'chars': chars})}

@pytest.mark.parametrize('metadata', [
    None, {'format': 'pt'}, {'tinylm': ''}, {'tinylm': '{"config": {'}, {'tinylm': '[]'}, {'tinylm': 'null'},
    {'tinylm': '['*100_000}, {'tinylm': '{"config": {}}'},
    {'tinylm': '{"config": [], "chars": null}'}, about(n_experts=4), about(n_layer=0), about(n_layer='2'),
    about(dropout='much'), about(n_head=3), about(chars=5), about(chars=0), about(chars=''),
    about(chars='cba'), about(vocab_size=10**30), about(n_layer=10**9)], ids=lambda m: str(m)[:50])
def test_a_file_that_does_not_say_what_model_it_holds_is_refused(tmp_path, metadata):
    save_file(small_model().state_dict(), tmp_path/'m.safetensors', metadata)
    assert_refused(tmp_path/'m.safetensors', 'm.safetensors does not say what model it holds: expected a '
                                             'file that save_safetensors wrote')

def test_a_file_whose_vocabulary_is_not_that_of_its_weights_is_refused(tmp_path):
    save_file(small_model().state_dict(), tmp_path/'m.safetensors', about(chars='abc'))
    assert_refused(tmp_path/'m.safetensors', 'the tokenizer has 3 tokens and the config says vocab_size 11')

@pytest.mark.parametrize('changes', CHANGES)
def test_another_architecture_is_refused_with_what_differs(tmp_path, changes):
    small_model(**changes).save_safetensors(tmp_path/'m.safetensors')
    (name, value), mine = *changes.items(), LMConfig(**SMALL)
    assert_load_refused(tmp_path/'m.safetensors', re.escape(
        f'm.safetensors holds another model, with {name} {value}: this one has {name} {getattr(mine, name)}'))

# --- files: of other versions

OLD_FIELDS = 'vocab_size block_size n_layer n_head n_embd dropout bias attention'.split()

def old_about(config, chars):
    "What the version before format 1 wrote into a file."
    return json.dumps({'config': {k: v for k, v in asdict(config).items() if k in OLD_FIELDS},
                       'chars': chars})

@pytest.mark.parametrize('chars', [None, ''.join(sorted(CHARS))])
@pytest.mark.parametrize('changes', [{}, dict(bias=False, dropout=.25, attention='reference')])
def test_a_file_of_the_version_before_still_loads(tmp_path, chars, changes):
    model, path = small_model(**changes), tmp_path/'m.safetensors'
    save_file(model.state_dict(), path, {'tinylm': old_about(model.config, chars)})
    built, loaded = LanguageModel.from_safetensors(path), small_model(1, **changes).load_safetensors(path)
    for other in (built, loaded):
        assert bits(other) == bits(model) and other.config == model.config
        assert (other.tokenizer and other.tokenizer.chars) == chars
    built.save_safetensors(path)
    assert bits(LanguageModel.from_safetensors(path)) == bits(model)

def test_a_checkpoint_of_the_version_before_still_loads(tmp_path):
    "It has a vocabulary in place of a tokenizer, and says nothing of the optimizer or the format."
    path, ids = tmp_path/'r.safetensors', tokens(1, 200)[0]
    recipe = TrainConfig(steps=5, batch_size=2, eval_windows=2, optimizer='adamw', pace='cosine')
    begin = lambda seed: Trainer(small_model(seed, CharTokenizer(CHARS)), ids, ids, recipe)
    unbroken = begin(0)
    unbroken.update(); unbroken.record(); unbroken.save(path)
    tensors, metadata = tinylm.read_safetensors(path)
    file = json.loads(metadata['tinylm.training'])
    about = {'text': file['about']['text'], 'recipe': {k: v for k, v in file['about']['recipe'].items()
                                                       if k not in ('optimizer', 'momentum', 'pace')}}
    about['model'] = {k: v for k, v in file['about']['model'].items() if k in OLD_FIELDS}
    about['vocabulary'] = ''.join(sorted(CHARS))
    save_file(tensors, path, {'tinylm.training': json.dumps({'about': about, 'progress': file['progress']})})
    chance, resumed = torch.get_rng_state(), begin(3).load(path)
    assert resumed.step == 1 and resumed.history == unbroken.history
    torch.set_rng_state(chance)
    for run in (unbroken, resumed):
        for _ in range(4): run.update()
    assert bits(resumed.model) == bits(unbroken.model)
    about['vocabulary'] = ''.join(sorted(CHARS.replace('z', 'y')))
    save_file(tensors, path, {'tinylm.training': json.dumps({'about': about, 'progress': file['progress']})})
    with pytest.raises(ValueError, match='another vocabulary'): begin(3).load(path)

def test_the_order_of_parameters_is_that_of_the_version_before():
    "A checkpoint numbers AdamW's memories by it, and a seed gives the same first weights only in this order."
    block = ('norm1.weight norm1.bias norm2.weight norm2.bias attention.qkv.weight attention.qkv.bias '
             'attention.proj.weight attention.proj.bias mlp.up.weight mlp.up.bias mlp.down.weight '
             'mlp.down.bias')
    names = [name for name, _ in small_model(n_layer=1).named_parameters()]
    assert names == ['tok_emb.weight', 'pos_emb.weight', *(f'blocks.0.{name}' for name in block.split()),
                     'norm.weight', 'norm.bias']
    torch.manual_seed(0)
    total = LanguageModel().state_dict()['blocks.3.mlp.down.weight'].sum().item()
    assert total == pytest.approx(-1.531613, abs=1e-4)                       # as version 0.1 gives it

@pytest.mark.parametrize('version', [2, 99, 10**99, '2', 1.5, None, [1]])
def test_a_newer_format_is_refused_with_its_number(tmp_path, version):
    model = small_model()
    about = {'format': version, 'config': asdict(model.config), 'tokenizer': None, 'more': 'of the future'}
    save_file(model.state_dict(), tmp_path/'m.safetensors', {'tinylm': json.dumps(about)})
    assert_refused(tmp_path/'m.safetensors', re.escape(f'of format {tinylm.shown(version)}: this version of '
                                                       f'tinylm reads up to 1'))

@pytest.mark.parametrize('kind', ['words', None, 3, ['chars']])
def test_an_unknown_kind_of_tokenizer_is_refused_by_name(tmp_path, kind):
    model = small_model()
    about = {'format': 1, 'config': asdict(model.config), 'tokenizer': {'kind': kind}}
    save_file(model.state_dict(), tmp_path/'m.safetensors', {'tinylm': json.dumps(about)})
    assert_refused(tmp_path/'m.safetensors', re.escape(f'the kind of tokenizer is {kind!r}'))

def test_a_file_says_its_format_its_config_and_its_tokenizer(tmp_path):
    small_model(tokenizer=CharTokenizer(CHARS)).save_safetensors(tmp_path/'m.safetensors')
    about = json.loads(tinylm.read_safetensors(tmp_path/'m.safetensors')[1]['tinylm'])
    assert about == {'format': 1, 'config': asdict(LMConfig(**SMALL)),
                     'tokenizer': CharTokenizer(CHARS).to_json()}

@pytest.mark.parametrize('name, tensor, says', [
    ('norm.weight', None, r"'norm.weight' with shape None: expected \(16,\)"),
    ('extra', torch.zeros(3), r"'extra' with shape \(3,\): expected None"),
    ('pos_emb.weight', torch.zeros(16, 8), r"'pos_emb.weight' with shape \(16, 8\): expected \(8, 16\)"),
    ('norm.weight', torch.zeros(1, 16), r"'norm.weight' with shape \(1, 16\)"),
    ('norm.weight', torch.zeros(16, dtype=torch.long), 'norm.weight as torch.int64: expected floating-point '
                                                       'numbers')])
def test_a_missing_foreign_or_malformed_tensor_is_refused(tmp_path, name, tensor, says):
    tensors = {**small_model().state_dict(), name: tensor}
    save_file({k: t for k, t in tensors.items() if t is not None}, tmp_path/'m.safetensors', about())
    assert_refused(tmp_path/'m.safetensors', says)

# --- files: a save that fails loses nothing

@pytest.mark.parametrize('call', ['fsync', 'replace'])
@pytest.mark.parametrize('old', [True, False])
def test_a_save_on_a_full_disk_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch, call, old):
    path = tmp_path/'m.safetensors'
    if old: small_model().save_safetensors(path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    def full(*_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as m:
        m.setattr(os, call, full)
        with pytest.raises(OSError, match='No space left'): small_model(1).save_safetensors(path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before and len(before) == old

@pytest.mark.parametrize('below, error',
                         [('m.safetensors', FileExistsError), ('folder/m.safetensors', NotADirectoryError)])
def test_a_save_below_a_regular_file_leaves_nothing(tmp_path, below, error):
    (tmp_path/'file').write_text('text')
    with pytest.raises(error): small_model().save_safetensors(tmp_path/'file'/below)
    assert list(tmp_path.rglob('*')) == [tmp_path/'file'] and (tmp_path/'file').read_text() == 'text'

def test_a_save_over_a_folder_leaves_the_folder(tmp_path):
    (tmp_path/'folder').mkdir()
    (tmp_path/'folder'/'file').write_text('text')
    with pytest.raises(OSError): small_model().save_safetensors(tmp_path/'folder')
    assert sorted(tmp_path.rglob('*')) == [tmp_path/'folder', tmp_path/'folder'/'file']

def test_a_saved_file_is_plain_safetensors(tmp_path):
    model = small_model()
    model.save_safetensors(tmp_path/'m.safetensors')
    tensors = load_file(tmp_path/'m.safetensors')
    assert tensors.keys() == model.state_dict().keys() and all(torch.equal(tensors[k], t) for k,
        t in model.state_dict().items())

def test_no_module_can_run_code_from_a_file():
    modules = sorted(Path(tinylm.__file__).parent.glob('*.py'))
    assert 'model.py' in [path.name for path in modules]
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = [a.name for a in getattr(node, 'names', [])
                     if isinstance(a, ast.alias)] + [getattr(node, 'module', None)]
            assert not {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'marshal',
                        'shelve'} & set(names), path
            assert not (isinstance(node, ast.ImportFrom) and node.module == 'torch' and {'load', 'save'}
                        & set(names)), path
            assert not (isinstance(node, ast.Attribute) and ast.unparse(node) in ('torch.load',
                'torch.save')), path

@pytest.mark.parametrize('kinds',
    [[torch.float8_e4m3fn], [torch.float32, torch.bfloat16], [torch.float64, torch.float16, torch.float32]])
def test_a_file_of_odd_or_mixed_types_is_refused_by_name(tmp_path, kinds):
    path = tmp_path/'m.safetensors'
    small_model().save_safetensors(path)
    tensors, metadata = tinylm.read_safetensors(path)
    save_file({k: t.to(kinds[i % len(kinds)]) for i, (k, t) in enumerate(tensors.items())}, path, metadata)
    for load in (LanguageModel.from_safetensors, small_model().load_safetensors):
        with pytest.raises(ValueError, match='m.safetensors holds .*(16 to 64 bits|several types)'):
            load(path)

@pytest.mark.parametrize('shape',
    [dict(vocab_size=2**31-1, n_embd=2**31-4), dict(block_size=2**31-1, n_embd=2**30),
     dict(n_inner=2**31-1, n_embd=2**30)])
def test_sizes_that_overflow_are_refused_with_their_names(shape):
    with pytest.raises(ValueError, match='n_embd .* a matrix of .* parameters or more'):
        LMConfig(n_head=1, **shape)
