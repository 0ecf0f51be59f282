"""tinylm beside other engines, with the same weights, in one run.

    pip install transformers            # and, if you like, llama-cpp-python, ctranslate2
    python benchmarks/peers.py --size S
    python benchmarks/peers.py --size L --prompt 512 --new 32 --static

Random weights of a GPT-2 shape go into every engine that can be imported. The engines take turns, so that
a slow minute of the machine hits all of them. Printed: medians, their spread, and ratios to transformers'
`generate` with its dynamic cache. Greedy tokens are compared with those of transformers. Quote the ratios.
"""
import argparse, time
from statistics import median

import torch

from tinylm import LanguageModel
from tinylm.bench import SIZES

def to_transformers(model):
    "The same weights as a GPT-2 of transformers, which stores its linear layers transposed."
    from transformers import GPT2Config, GPT2LMHeadModel
    c = model.config
    peer = GPT2LMHeadModel(GPT2Config(vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head, activation_function='gelu_new',
                                      bos_token_id=None, eos_token_id=None, pad_token_id=0)).eval()
    names = {'attn.c_attn': 'attention.qkv', 'attn.c_proj': 'attention.proj', 'mlp.c_fc': 'mlp.up', 'mlp.c_proj': 'mlp.down', 'ln_1': 'norm1', 'ln_2': 'norm2'}
    state = {'transformer.wte.weight': model.tok_emb.weight, 'transformer.wpe.weight': model.pos_emb.weight, 'transformer.ln_f.weight': model.norm.weight,
             'transformer.ln_f.bias': model.norm.bias, 'lm_head.weight': model.tok_emb.weight}
    for i, block in enumerate(model.blocks):
        for theirs, ours in names.items():
            module = block.get_submodule(ours)
            state[f'transformer.h.{i}.{theirs}.weight'] = module.weight.T if 'c_' in theirs else module.weight
            state[f'transformer.h.{i}.{theirs}.bias'] = module.bias
    peer.load_state_dict(state, strict=False)
    x = torch.randint(c.vocab_size, (1, 8))
    with torch.no_grad(): assert torch.allclose(peer(x).logits, model(x)[0], atol=1e-3), 'the peer has other weights'
    return peer

def engines(model, compiled, static):
    "Name -> function of (prompt, n) that returns the whole text, greedily."
    yield 'tinylm', lambda idx, n: model.decode(idx, n, temperature=0)
    if compiled: yield 'tinylm compiled', lambda idx, n: model.decode(idx, n, temperature=0, compile=True)
    peer = to_transformers(model)
    plain = dict(do_sample=False, pad_token_id=0)
    def generate(idx, n, **more):
        with torch.inference_mode(): return peer.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=n, min_new_tokens=n, **plain, **more)
    yield 'transformers', generate
    if static: yield 'transformers static', lambda idx, n: generate(idx, n, cache_implementation='static')

def time_to(engine, idx, n):
    start = time.perf_counter(); out = engine(idx, n)
    return time.perf_counter() - start, out

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', choices=SIZES, default='S')
    p.add_argument('--prompt', type=int, default=16, help='tokens that are read first (%(default)s)')
    p.add_argument('--new', type=int, default=40, help='tokens that are written (%(default)s)')
    p.add_argument('--repeats', type=int, default=7, help='rounds (%(default)s)')
    p.add_argument('--static', action='store_true', help="also transformers' static cache")
    p.add_argument('--compiled', action='store_true', help='also tinylm with torch.compile')
    args = p.parse_args()
    torch.manual_seed(0)
    model = LanguageModel(SIZES[args.size]).eval()
    for q in model.parameters(): torch.nn.init.normal_(q, std=.05) if q.ndim > 1 else None      # so that greedy texts are not one token repeated
    idx = torch.randint(model.config.vocab_size, (1, args.prompt))
    ways = dict(engines(model, args.compiled, args.static))
    texts = {name: engine(idx, args.new) for name, engine in ways.items()}                      # warm-up
    first, whole = {n: [] for n in ways}, {n: [] for n in ways}
    for _ in range(args.repeats):
        for name, engine in ways.items():
            first[name].append(time_to(engine, idx, 1)[0])
            whole[name].append(time_to(engine, idx, args.new)[0])
    per_token = {n: [(w - f)/(args.new - 1) for w, f in zip(whole[n], first[n])] for n in ways}
    print(f'size {args.size}, prompt {args.prompt}, {args.new} new tokens, {torch.get_num_threads()} threads, torch {torch.__version__}; ratios to transformers, pair by pair')
    print(f'{"engine":20} {"tokens/s":>9} {"ratio":>6} {"min":>6} {"max":>6}   {"TTFT ms":>8} {"ratio":>6}   same text')
    for n in ways:
        r = [b/a for a, b in zip(per_token[n], per_token['transformers'])]
        t = [b/a for a, b in zip(first[n], first['transformers'])]
        same = (texts[n] == texts['transformers']).float().mean().item()
        print(f'{n:20} {1/median(per_token[n]):9,.0f} {median(r):6.2f} {min(r):6.2f} {max(r):6.2f}   {1e3*median(first[n]):8.1f} {median(t):6.2f}   {same:.0%}')

if __name__ == '__main__': main()
