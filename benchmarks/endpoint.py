"""Sixteen streams over HTTP beside the same work given to the engine directly, in turns.

    python benchmarks/endpoint.py
    python benchmarks/endpoint.py --size S --rounds 9

Random weights. The client is a process of its own on the same machine, which reads server-sent events from
plain sockets; its share of a core is printed. Prompts are new in each round, so that no page is found again.
Printed: medians of tokens a second, from the least to the most, and the ratio within each round.
"""
import argparse, asyncio, json, time
from multiprocessing import get_context
from statistics import median

import torch

from tinylm import CharTokenizer, LanguageModel
from tinylm.bench import SIZES
from tinylm.endpoint import Endpoint
from tinylm.serving import Engine, Request

HEAD = ('POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n'
        'content-length: {}\r\n\r\n')

async def stream(where, prompt, n):
    "How many events with a token came."
    body = json.dumps(dict(model='m', prompt=prompt, max_tokens=n, temperature=0, stream=True))
    reader, writer = await asyncio.open_connection(*where)
    writer.write((HEAD.format(len(body)) + body).encode())
    text = await reader.read()
    writer.close()
    return text.count(b'"finish_reason": null')

def client(pipe, where):
    "Ask for what comes through the pipe; answer with counts, seconds, and seconds of the processor."
    async def crowd(prompts, n): return await asyncio.gather(*(stream(where, p, n) for p in prompts))
    while work := pipe.recv():
        start, cpu = time.perf_counter(), time.process_time()
        pipe.send((asyncio.run(crowd(*work)), time.perf_counter() - start, time.process_time() - cpu))

def alone(model, prompts, n):
    "Seconds of an engine that nobody listens to."
    engine, start = Engine(model, slots=len(prompts)), time.perf_counter()
    engine.generate([Request(ids, n, temperature=0) for ids in prompts])
    return time.perf_counter() - start

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', choices=SIZES, default='M')
    p.add_argument('--streams', type=int, default=16, help='at a time (%(default)s)')
    p.add_argument('--tokens', type=int, default=200, help='that each writes (%(default)s)')
    p.add_argument('--rounds', type=int, default=5, help='rounds (%(default)s)')
    args = p.parse_args()
    torch.manual_seed(0)
    V = SIZES[args.size].vocab_size
    model = LanguageModel(SIZES[args.size], CharTokenizer(''.join(chr(0x10000 + i) for i in range(V)))).eval()
    prompts = lambda: torch.randint(V, (args.streams, 16)).tolist()
    ours, theirs = get_context('spawn').Pipe()
    rows = []
    with Endpoint(model, name='m', slots=args.streams).running() as url:
        where = url.removeprefix('http://').split(':')
        get_context('spawn').Process(target=client, args=(theirs, where), daemon=True).start()
        theirs.close()
        for _ in range(args.rounds + 1):
            seconds = alone(model, prompts(), args.tokens)
            ours.send((prompts(), args.tokens))
            counts, heard, cpu = ours.recv()
            assert counts == [args.tokens]*args.streams, counts
            rows.append((seconds, heard, cpu))
        ours.send(None)
    engine, endpoint, client_cpu = zip(*rows[1:])                      # the first was the warm-up
    print(f'size {args.size}: {args.streams} streams of {args.tokens} tokens, {torch.get_num_threads()} '
          f'threads, torch {torch.__version__}')
    for name, times in (('engine', engine), ('endpoint', endpoint)):
        r = [args.streams*args.tokens/t for t in times]
        print(f'{name:9} {median(r):8,.0f} tokens/s  ({min(r):,.0f} to {max(r):,.0f})')
    ratio = [a/b for a, b in zip(engine, endpoint)]
    share = median(c/t for c, t in zip(client_cpu, endpoint))
    print(f'endpoint/engine {median(ratio):.3f} ({min(ratio):.3f} to {max(ratio):.3f}); the client used '
          f'{100*share:.0f} % of one core')

if __name__ == '__main__': main()
