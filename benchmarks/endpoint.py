"""Sixteen streams over HTTP beside the same requests given to the engine directly, in turns.

    python benchmarks/endpoint.py
    python benchmarks/endpoint.py --size S --rounds 9

Random weights. The client is a process of its own, which reads server-sent events from plain sockets; its
share of the processor is printed, since it runs on the same machine. Prompts are new in each round, so that
no page is found again. Printed: medians of tokens a second, their spread, and the paired ratio.
"""
import argparse, asyncio, json, multiprocessing, time
from statistics import median

import torch

from tinylm import CharTokenizer, LanguageModel
from tinylm.bench import SIZES
from tinylm.endpoint import Endpoint
from tinylm.serving import Engine, Request

async def stream(host, port, prompt, n):
    "How many events with a token came."
    body = json.dumps(dict(model='m', prompt=prompt, max_tokens=n, temperature=0, stream=True))
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f'POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: '
                 f'application/json'
                 f'\r\ncontent-length: {len(body)}\r\n\r\n{body}'.encode())
    text = await reader.read()
    writer.close()
    return text.count(b'"finish_reason": null')

def client(pipe, host, port):
    "Ask for what comes through the pipe; answer with counts, seconds, and seconds of the processor."
    async def crowd(prompts, n): return await asyncio.gather(*(stream(host, port, p, n) for p in prompts))
    while work := pipe.recv():
        start, cpu = time.perf_counter(), time.process_time()
        counts = asyncio.run(crowd(*work))
        pipe.send((counts, time.perf_counter() - start, time.process_time() - cpu))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', choices=SIZES, default='M')
    p.add_argument('--streams', type=int, default=16, help='at a time (%(default)s)')
    p.add_argument('--tokens', type=int, default=100, help='that each writes (%(default)s)')
    p.add_argument('--rounds', type=int, default=5, help='rounds (%(default)s)')
    args = p.parse_args()
    torch.manual_seed(0)
    V = SIZES[args.size].vocab_size
    model = LanguageModel(SIZES[args.size], CharTokenizer(''.join(chr(0x10000 + i) for i in range(V)))).eval()
    shape, rates, share = dict(slots=args.streams), {'engine': [], 'endpoint': []}, []
    prompts = lambda: torch.randint(V, (args.streams, 16)).tolist()
    with Endpoint(model, name='m', **shape).running() as url:
        ours, theirs = multiprocessing.get_context('spawn').Pipe()
        host, port = url.removeprefix('http://').split(':')
        multiprocessing.get_context('spawn').Process(target=client, args=(theirs, host, port),
                                                     daemon=True).start()
        for i in range(args.rounds + 1):                                        # the first is the warm-up
            engine, asked = Engine(model, **shape), [Request(ids, args.tokens, temperature=0)
                                                     for ids in prompts()]
            start = time.perf_counter()
            engine.generate(asked)
            alone = time.perf_counter() - start
            ours.send((prompts(), args.tokens))
            counts, seconds, cpu = ours.recv()
            assert counts == [args.tokens]*args.streams, counts
            if not i: continue
            for name, s in (('engine', alone), ('endpoint', seconds)):
                rates[name].append(args.streams*args.tokens/s)
            share.append(cpu/seconds)
        ours.send(None)
    print(f'size {args.size}: {args.streams} streams of {args.tokens} tokens, {torch.get_num_threads()} '
          f'threads, torch '
          f'{torch.__version__}')
    for name, r in rates.items():
        print(f'{name:9} {median(r):8,.0f} tokens/s  ({min(r):,.0f} to {max(r):,.0f})')
    ratio = [b/a for a, b in zip(*rates.values())]
    print(f'endpoint/engine {median(ratio):.3f} ({min(ratio):.3f} to {max(ratio):.3f}); the client used '
          f'{100*median(share):.0f} % of one core')

if __name__ == '__main__': main()
