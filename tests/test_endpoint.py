"Real clients over real sockets get what `decode` writes alone, and whoever misbehaves disturbs nobody."
import asyncio, json, logging, random, re, shutil, signal, socket, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest
import torch
from hypothesis import given, strategies as st

for package in ('starlette', 'uvicorn', 'prometheus_client', 'openai', 'httpx'): pytest.importorskip(package)

import anyio
import httpx
import openai
from helpers import CHATML, quick, run, seeded, small_model, start_python
from test_serving import check_empty
from tinylm import (CharTokenizer, DecodeTimeline, Machine, Sampling, Timeline, chat_ids, crew,
                    train_subwords)
from tinylm.cli import main
from tinylm.endpoint import Endpoint, StopText

LETTERS = CharTokenizer('abcdefghijk')
MODEL = small_model(tokenizer=LETTERS, block_size=64).eval()
TALK = train_subwords('hello there, how are you today? '*20, 290, ['<|im_end|>', '<|im_start|>'],
                      chat_template=CHATML)
CHAT = small_model(tokenizer=TALK, vocab_size=TALK.vocab_size, block_size=256).eval()

def clients(url, key='none', kind=openai.OpenAI):
    return kind(base_url=f'{url}/v1', api_key=key, max_retries=0)

@contextmanager
def served(model=MODEL, **how):
    "An endpoint, its address and a client; at the end nobody holds a page."
    e = Endpoint(model, name='m', **how)
    with e.running() as url: yield e, url, clients(url)
    check_empty(e.engine)

@pytest.fixture(scope='module')
def letters():
    with served() as s: yield s

@pytest.fixture(scope='module')
def talk():
    with served(CHAT) as s: yield s

def alone(model, ids, n, seed=None, **dials):
    "The token ids that decode writes, up to an end token."
    generator = None if seed is None else seeded(seed)
    new = model.decode(torch.tensor([ids]), n, generator=generator, **dials)[0, len(ids):].tolist()
    ends = [i for i, t in enumerate(new) if t in getattr(model.tokenizer, 'end', ())]
    return new[:ends[0]] if ends else new

def in_a_thread(coroutine):
    "Its result; a browser that other tests started keeps a loop running in the main thread."
    with ThreadPoolExecutor(1) as thread: return thread.submit(asyncio.run, coroutine).result()

def text(model, ids): return model.tokenizer.decode(ids)

def ask(url, body, path='completions', **how):
    how = {'json': {'model': 'm', **body}} | how
    return httpx.post(f'{url}/v1/{path}', timeout=60, **how)

def counted(e, name, **labels):
    return int(e.meters.registry.get_sample_value(f'vllm:{name}_total', {'model_name': 'm', **labels}))

def ends(e):
    return {r: counted(e, 'request_success', finished_reason=r) for r in ('stop', 'length', 'abort', 'error')}

def idle(e, seconds=10):
    end = time.time() + seconds
    busy = lambda: e.host.choices or e.engine.busy or not e.host.inbox.empty()
    while busy() and time.time() < end: time.sleep(.01)
    check_empty(e.engine)

# --- the same text as alone

DIALS = [dict(temperature=0), dict(), dict(temperature=.7, top_p=.8), dict(temperature=1.4)]

@pytest.mark.parametrize('dials', DIALS, ids=str)
def test_a_completion_is_what_decode_writes(letters, dials):
    _, _, client = letters
    for seed, prompt in enumerate(['a', 'abcabc', 'kjihgfedcb'*3]):
        want = text(MODEL, alone(MODEL, LETTERS.encode(prompt), 20, seed, **dials))
        given = dict(model='m', prompt=prompt, max_tokens=20, seed=seed, **dials)
        whole = client.completions.create(**given)
        parts = [c.choices[0] for c in client.completions.create(stream=True, **given)]
        assert whole.choices[0].text == want == ''.join(p.text for p in parts)
        assert whole.choices[0].finish_reason == 'length' == parts[-1].finish_reason
        assert len(parts) == 21 and {p.finish_reason for p in parts[:-1]} == {None}

def test_an_asynchronous_client_gets_the_same(letters):
    async def go():
        client = clients(letters[1], kind=openai.AsyncOpenAI)
        async def one(seed):
            s = await client.completions.create(model='m', prompt='abc', max_tokens=12, seed=seed,
                                                stream=True)
            return ''.join([c.choices[0].text async for c in s])
        return await asyncio.gather(*map(one, range(24)))
    ids = LETTERS.encode('abc')
    assert in_a_thread(go()) == [text(MODEL, alone(MODEL, ids, 12, seed)) for seed in range(24)]

@pytest.mark.parametrize('seed', range(5))
def test_a_chat_is_what_decode_writes_after_the_template(talk, seed):
    _, _, client = talk
    messages = [{'role': 'system', 'content': 'hello'},
                {'role': 'user', 'content': 'how are you <|im_end|>?'}]
    want = text(CHAT, alone(CHAT, chat_ids(TALK, messages), 30, seed))
    given = dict(model='m', messages=messages, seed=seed, max_completion_tokens=30)
    whole = client.chat.completions.create(**given)
    parts = [c.choices[0].delta for c in client.chat.completions.create(stream=True, **given)]
    assert whole.choices[0].message.content == want == ''.join(p.content for p in parts)
    assert parts[0].role == 'assistant' and {p.role for p in parts[1:]} == {None}

def test_an_end_token_ends_the_text_and_is_no_part_of_it(talk):
    "Weights under which the end token always wins."
    model = small_model(tokenizer=TALK, vocab_size=TALK.vocab_size, block_size=256,
                        tie_embeddings=False).eval()
    end = next(iter(TALK.end))
    model.logits = lambda h: torch.nn.functional.one_hot(torch.full(h.shape[:-1], end),
                                                         TALK.vocab_size).float()*9
    with served(model) as (_, _, client):
        r = client.chat.completions.create(model='m', messages=[{'role': 'user', 'content': 'hi'}],
                                           temperature=0)
    assert (r.choices[0].message.content, r.choices[0].finish_reason, r.usage.completion_tokens) == ('',
        'stop', 1)

def test_several_choices_and_prompts_have_seeds_of_their_own(letters):
    _, _, client = letters
    r = client.completions.create(model='m', prompt=['abc', 'cba'], n=3, seed=5, max_tokens=9)
    want = [text(MODEL, alone(MODEL, LETTERS.encode(p), 9, 5 + i)) for p in ('abc', 'cba') for i in range(3)]
    assert [c.text for c in r.choices] == want and [c.index for c in r.choices] == list(range(6))
    assert r.usage.prompt_tokens == 6 and r.usage.completion_tokens == 54
    parts = client.completions.create(model='m', prompt=[[0, 1, 2], [2, 1, 0]], n=3, seed=5, max_tokens=9,
                                      stream=True)
    texts = ['']*6
    for c in parts: texts[c.choices[0].index] += c.choices[0].text
    assert texts == want

@pytest.mark.parametrize('every', [1, 3, 4, 50])
def test_a_stream_may_hold_several_tokens_in_an_event_and_the_first_never_waits(every):
    with served(stream_interval=every) as (_, _, client):
        r = [*client.completions.create(model='m', prompt=['abc', 'cba'], n=2, seed=5, max_tokens=10,
                                        logprobs=1, stream=True)]
    want = [text(MODEL, alone(MODEL, LETTERS.encode(p), 10, 5 + i)) for p in ('abc', 'cba') for i in range(2)]
    for k in range(4):
        parts = [c.choices[0] for c in r if c.choices[0].index == k]
        assert ''.join(p.text for p in parts) == want[k]
        assert parts[-1].finish_reason == 'length' and all(p.finish_reason is None for p in parts[:-1])
        full, rest = divmod(10 - 1, every)
        assert [len(p.text) for p in parts] == [1, *[every]*full, rest]
        assert sum((p.logprobs.text_offset for p in parts if p.logprobs), []) == [*range(10)]

def test_an_error_in_a_stream_comes_after_what_was_written_until_then(monkeypatch):
    want = text(MODEL, alone(MODEL, LETTERS.encode('abc'), 6, 1))
    with served(stream_interval=50) as (e, url, _):
        step, made = e.engine.step, []
        def breaks(): # the reading step writes a token, too
            if len(made) == 6: raise RuntimeError('no')
            made.append(1); return step()
        monkeypatch.setattr(e.engine, 'step', breaks)
        answer = ask(url, dict(prompt='abc', max_tokens=20, seed=1, stream=True)).text
    events = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith('data: {')]
    assert ''.join(c['text'] for e in events for c in e.get('choices', [])) == want
    assert all(c['finish_reason'] is None for e in events for c in e.get('choices', []))
    assert 'error' in events[-1] and answer.rstrip().endswith('data: [DONE]')

def test_threads_take_short_turns_while_anybody_serves():
    before, usual = sys.getswitchinterval(), .005
    sys.setswitchinterval(usual)                                       # others of this file may serve, too
    try:
        for stop in (0, 1):                                            # whoever began ends first, or last
            open_ = [Endpoint(MODEL).running() for _ in range(2)]
            for e in open_: e.__enter__(); assert sys.getswitchinterval() < usual/10
            open_.pop(stop).__exit__(None, None, None)
            assert sys.getswitchinterval() < usual/10
            open_.pop().__exit__(None, None, None)
            assert sys.getswitchinterval() == pytest.approx(usual)
    finally: sys.setswitchinterval(before)

def test_an_event_of_no_tokens_is_refused():
    with pytest.raises(ValueError, match='stream_interval is 0'): Endpoint(MODEL, stream_interval=0)

# --- log-probabilities, stops, usage

def logs(model, ids):
    with torch.no_grad(): return model(torch.tensor([ids]))[0][0].log_softmax(-1)

@pytest.mark.parametrize('stream', [False, True])
def test_logprobs_are_those_of_a_prefill_of_the_whole_text(letters, talk, stream):
    _, _, client = letters
    given = dict(model='m', prompt='abcab', max_tokens=7, logprobs=3, seed=1, stream=stream)
    r = client.completions.create(**given)
    parts = [c.choices[0].logprobs for c in r if c.choices[0].logprobs] if stream else [r.choices[0].logprobs]
    tokens, own, best, places = [sum((getattr(p, f) for p in parts), []) for f in
                                 ('tokens', 'token_logprobs', 'top_logprobs', 'text_offset')]
    ids = LETTERS.encode('abcab' + ''.join(tokens))
    p = logs(MODEL, ids)[4:-1]
    assert own == pytest.approx(p.gather(1, torch.tensor(ids[5:])[:, None])[:, 0].tolist(), abs=1e-4)
    assert places == list(range(7))
    for row, token, found in zip(p, tokens, best):
        top = {LETTERS.chars[i]: row[i].item()
               for i in [*row.topk(3).indices.tolist(), LETTERS.chars.index(token)]}
        assert found == pytest.approx(top, abs=1e-4)
    given = dict(model='m', prompt='abcab', max_tokens=1, logprobs=0, temperature=0)
    only = client.completions.create(**given).choices[0].logprobs
    assert [*only.top_logprobs[0]] == only.tokens
    given = dict(model='m', messages=[{'role': 'user', 'content': 'hi'}], max_tokens=5, logprobs=True,
                 top_logprobs=2, seed=1, stream=stream)
    r = talk[2].chat.completions.create(**given)
    notes = [n for c in r if c.choices[0].logprobs for n in c.choices[0].logprobs.content] if stream \
        else r.choices[0].logprobs.content
    start = chat_ids(TALK, given['messages'])
    new = alone(CHAT, start, 5, 1)
    p = logs(CHAT, start + new)[len(start)-1:-1]
    assert [n.logprob for n in notes][:len(new)] == pytest.approx([row[i].item() for row, i in zip(p, new)],
        abs=1e-4)
    assert [n.token for n in notes][:len(new)] == [TALK.decode([i]) for i in new]
    assert [len(n.top_logprobs) for n in notes] == [2]*len(notes)

@quick
@given(st.text('abc', max_size=30), st.lists(st.text('abc', min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_end_a_text_wherever_the_tokens_are_cut(words, stops, data):
    ids, heard, out = LETTERS.encode(words), StopText(LETTERS, [], stops), ''
    while ids and not heard.hit:
        n = data.draw(st.integers(1, 4))
        out += heard.push(ids[:n]); ids = ids[n:]
        assert words.startswith(out)
    out += heard.push([], last=True)
    found = [(words.index(s) + len(s), words.index(s)) for s in stops if s in words]
    assert out == words[:min(found)[1] if found else None] and heard.hit == any(s in words for s in stops)

def test_loops_are_compiled_before_anybody_asks(monkeypatch):
    asked = []
    monkeypatch.setattr(crew, '_ready', lambda: asked.append(True) or True)
    Endpoint(MODEL, compile=False)
    assert not asked
    Endpoint(MODEL)
    assert asked

def test_stop_strings_over_the_wire(letters):
    e, _, client = letters
    idle(e); before = ends(e)
    for seed in range(6):
        plain = text(MODEL, alone(MODEL, LETTERS.encode('abc'), 40, seed))
        stop = plain[13:16]
        given = dict(model='m', prompt='abc', max_tokens=40, seed=seed, stop=['zzz', stop])
        r, parts = client.completions.create(**given), client.completions.create(stream=True, **given)
        want = plain[:plain.index(stop)]
        assert r.choices[0].text == want == ''.join(c.choices[0].text for c in parts)
        assert r.choices[0].finish_reason == 'stop' and r.usage.completion_tokens == len(want) + 3
    idle(e)
    assert ends(e) == before | {'stop': before['stop'] + 12}
    plain = [text(MODEL, alone(MODEL, LETTERS.encode('abc'), 40, seed)) for seed in range(8)]
    r = client.completions.create(model='m', prompt='abc', max_tokens=40, seed=0, n=8, stop='a')
    assert [c.text for c in r.choices] == [p.split('a')[0] for p in plain]
    assert r.usage.completion_tokens == sum(len(p.split('a')[0]) + ('a' in p) for p in plain)

@quick
@given(st.text(max_size=12), st.integers(1, 3), st.integers(0, 12))
def test_a_character_of_many_tokens_comes_whole(words, step, cut):
    ids = TALK.encode(words)
    heard, new = StopText(TALK, ids[:cut], []), ids[cut:]
    out = [heard.push(new[i:i+step]) for i in range(0, len(new), step)] + [heard.push([], last=True)]
    before = TALK.decode(ids[:cut])
    assert ''.join(out) == TALK.decode(ids)[len(before):] or '\ufffd' in before

def test_usage_says_what_was_found_in_the_pages(letters):
    _, _, client = letters
    prompt = 'abcdefghijk'*3
    ask = lambda: client.completions.create(model='m', prompt=prompt, max_tokens=2).usage
    ask()
    assert ask().prompt_tokens_details.cached_tokens == 32
    *_, last = client.completions.create(model='m', prompt=prompt, max_tokens=2, stream=True,
                                         stream_options={'include_usage': True})
    assert last.choices == [] and last.usage.total_tokens == 35
    assert last.usage.prompt_tokens_details.cached_tokens == 32

# --- what can be asked

def test_models_health_and_curl(letters):
    e, url, client = letters
    assert [m.id for m in client.models.list()] == ['m'] and httpx.get(f'{url}/health').status_code == 200
    if not shutil.which('curl'): pytest.skip('needs curl')
    body = json.dumps(dict(model='m', prompt='abc', max_tokens=5, temperature=0, stream=True))
    done = run('curl', '-sN', f'{url}/v1/completions', '-H', 'content-type: application/json', '-d', body)
    lines = [line for line in done.stdout.split('\n') if line]
    assert lines[-1] == 'data: [DONE]' and all(line.startswith('data: ') for line in lines)
    said = ''.join(json.loads(line[6:])['choices'][0]['text'] for line in lines[:-1])
    assert said == text(MODEL, alone(MODEL, LETTERS.encode('abc'), 5, temperature=0))

def test_metrics_are_read_by_prometheus_and_count_what_happened():
    from prometheus_client import parser
    with served() as (e, url, client):
        for i in range(3): client.completions.create(model='m', prompt='abcdefghij'*3, max_tokens=4 + i)
        idle(e)
        families = parser.text_string_to_metric_families(httpx.get(f'{url}/metrics').text)
        found = {s.name: s.value for f in families
                 for s in f.samples if 'le' not in s.labels
                 and s.labels.get('finished_reason', 'length') == 'length'
                 and s.labels['model_name'] == 'm'}
    assert {k: found['vllm:' + k] for k in ('prompt_tokens_total', 'generation_tokens_total',
                                            'request_success_total',
            'prefix_cache_hits_total', 'num_requests_running', 'kv_cache_usage_perc')} == dict(
                prompt_tokens_total=90, generation_tokens_total=15, request_success_total=3,
                prefix_cache_hits_total=32,
                num_requests_running=0, kv_cache_usage_perc=0)
    assert found['vllm:time_to_first_token_seconds_count'] == 3
    assert found['vllm:e2e_request_latency_seconds_count'] == 3
    assert found['vllm:inter_token_latency_seconds_count'] == 12

@pytest.mark.parametrize('header',
                         [None, 'Bearer wrong', 'Bearer', 'Basic secret', 'secret', 'Bearer sécret'])
def test_without_the_key_nobody_gets_anything_of_the_model(header):
    with served(key='secret') as (_, url, _):
        headers = {'Authorization': header.encode('latin-1')} if header else {}
        for path in ('models', 'completions', 'chat/completions'):
            r = httpx.request('GET' if path == 'models' else 'POST', f'{url}/v1/{path}', headers=headers)
            assert r.status_code == 401 and r.json()['error']['code'] == 'invalid_api_key'
        with pytest.raises(openai.AuthenticationError): clients(url).models.list()
        assert len(list(clients(url,
            'secret').models.list())) == 1 and httpx.get(f'{url}/health').status_code == 200

BAD = [(dict(prompt=p), 'prompt', 400) for p in (None, 3, {}, [], '', 'xyz', [99], [-1], [True],
                                                 [[1], 'a', 3], ['a']*129,
                                                  'a'*4096, [10**30])]
BAD += [(dict(prompt='a', **{k: v}), k, 400) for k, v in [
    ('max_tokens', 0), ('max_tokens', 10**9), ('max_tokens', '5'), ('max_tokens', 1.5), ('n', 0), ('n', 129),
    ('n', True),
    ('temperature', 'hot'), ('temperature', -1), ('temperature', 1e999), ('top_p', 0), ('top_p', 2),
    ('seed', -1),
    ('seed', 2**64), ('stop', ['']), ('stop', 3), ('stop', ['a']*17), ('stream', 'yes'), ('logprobs', 21),
    ('frequency_penalty', 1), ('echo', True), ('suffix', 'x'), ('best_of', 3), ('max_tokenz', 3),
    ('x'*10**4, 1),
    ('stream_options', 5), ('logit_bias', {'3': 1}), ('user', 7)]]

@pytest.mark.parametrize('body,param,status', BAD, ids=lambda v: str(v)[:40])
def test_a_bad_field_is_named(letters, body, param, status):
    e, url, _ = letters
    r = ask(url, {}, content=json.dumps({'model': 'm', **body}), headers={'content-type': 'application/json'},
            json=None)
    about = r.json()['error']
    assert r.status_code == status and about['type'] == 'invalid_request_error'
    assert '\n' not in about['message']
    assert len(about['message']) < 400 and len(r.content) < 1000
    if param in about['message']: assert about['param'] in (param, None)
    check_empty(e.engine)

def test_other_bad_requests(letters, talk):
    _, url, _ = letters
    json_ = {'content-type': 'application/json'}
    post = lambda content, headers=json_, path='completions': httpx.post(f'{url}/v1/{path}', content=content,
        headers=headers)
    deep = b'[' * 50_000
    for r, status in [(post(b'{'), 400), (post(b'\xff'), 400), (post(deep), 400), (post(b'[]'), 400),
                      (post(b''), 400),
                      (post(b'{"model":"m","prompt":"\\ud800"}'), 400),
                      (post(b'{}', {'content-type': 'text/plain'}), 415),
                      (post(b'{"model":"gpt-4","prompt":"a"}'), 404), (post(b'{"prompt":"a"}'), 404),
                      (post(b'{"n":' + b'9'*10_000 + b'}'), 400), (post(b' '*400_000), 413),
                      (post(b'{"model":"m","messages":[]}', path='chat/completions'), 400),
                      (httpx.get(f'{url}/v1/completions'), 405), (httpx.get(f'{url}/v1/none'), 404)]:
        assert r.status_code == status and set(r.json()['error']) == {'message', 'type', 'param',
            'code'}, r.text
    for messages in (None, [], 'hi', [3], [{'role': 'user'}], [{'role': 'user', 'content': 3}],
                     [{'role': 'user', 'content': [{'type': 'image_url'}]}],
                     [{'role': 'user', 'content': 'hi '*9000}],
                     [{'role': 'user', 'content': 'hi', 'tool_calls': []}]):
        r = ask(talk[1], {'messages': messages}, 'chat/completions')
        assert r.status_code == 400 and r.json()['error']['param'] == 'messages', r.text

def test_a_chat_needs_a_template_and_text_may_come_in_parts(letters, talk):
    with pytest.raises(openai.BadRequestError, match='has no chat template'):
        letters[2].chat.completions.create(model='m', messages=[{'role': 'user', 'content': 'a'}])
    ask = lambda content: talk[2].chat.completions.create(model='m', max_tokens=4, temperature=0,
        messages=[{'role': 'user', 'content': content}]).choices[0].message.content
    assert ask('hello') == ask([{'type': 'text', 'text': 'hel'}, {'type': 'text', 'text': 'lo'}])

def test_nothing_from_a_request_is_logged(capfd, caplog):
    with served(patience=.2) as (e, url, _):
        for body in (b'{"SECRET', b'{"model":"SECRET"}', b'{"SECRET":1}', b'{"model":"m","prompt":"SECRET"}'):
            httpx.post(f'{url}/v1/completions?SECRET', content=body,
                       headers={'content-type': 'application/json',
                                                                               'x-y': 'SECRET\x1b'})
        talk_raw(url, b'SECRET\r\n\r\n')
        talk_raw(url, http(b'SECRET\r\n', CHUNKS))            # longer than its patience
        e.engine.scheduler.add = lambda r: 1/0
        assert ask(url, dict(prompt='abc')).status_code == 500
    said = capfd.readouterr()
    assert 'SECRET' not in said.out + said.err + caplog.text
    assert [r.name for r in caplog.records if r.levelno > logging.INFO] == []

# --- those who misbehave

def connect(url): return socket.create_connection(url.removeprefix('http://').split(':'), timeout=20)

def suppressed(act, *args):
    with suppress(OSError): act(*args)

def talk_raw(url, data):
    with connect(url) as s:
        suppressed(s.sendall, data)
        answer = b''
        while part := s.recv(65536): answer += part
    return answer

def http(body, more=b'', length=None):
    return (b'POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n' + more
            + b'content-length: %d\r\n\r\n' % (len(body) if length is None else length) + body)

def stream_body(most=60, **more):
    return json.dumps(dict(model='m', prompt='ab', max_tokens=most, stream=True, **more)).encode()

def test_headers_without_end_and_what_is_not_http(letters):
    e, url, client = letters
    for data, status in ((b'GET / HTTP/1.1\r\n' + b'x: ' + b'a'*10_000_000, b'431'),
                         (b'nonsense\r\n\r\n', b'400'),
                         (http(b'{}', b'x-a: ' + b'b'*200_000 + b'\r\n'), b'431')):
        head, _, body = talk_raw(url, data).partition(b'\r\n\r\n')
        assert head.startswith(b'HTTP/1.1 '
                               + status) and json.loads(body)['error']['type'] == 'invalid_request_error'
        assert client.completions.create(model='m', prompt='a', max_tokens=3).usage.completion_tokens == 3

GOOD, CHUNKS = b'{"model":"m","prompt":"abc","max_tokens":2}', b'transfer-encoding: chunked\r\n'

@pytest.mark.parametrize('data,status', [
    (http(GOOD, b'host: ['), 400), (http(GOOD).replace(b'host: a', b'host: ['), 200),
    (http(GOOD).replace(b'host: a', b'host: b/v1/models?'), 200),
    (http(GOOD).replace(b'host: a', b'x: a'), 400),
    (http(GOOD, CHUNKS).replace(GOOD, b'%x\r\n%s\r\n0\r\n\r\n' % (len(GOOD), GOOD)), 200),
    (http(b'zz\r\n', CHUNKS), 400), (http(b'7;' + b'a'*200_000, CHUNKS), 431), (http(b' '*9_000_000), 413),
    (http(GOOD, length=-1), 400), (http(GOOD, length=5), 400), (http(GOOD, b'content-length: 5\r\n'), 400),
    (http(GOOD).replace(b'POST', b'PUT'), 405), (http(GOOD).replace(b'/v1', b'/v1/../v1'), 404),
    (b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 404), (b'\x16\x03\x01' + bytes(200), 400),
    (http(stream_body()) + bytes(99_999), 200), (http(GOOD)*50, 200)], ids=lambda v: str(v)[:70])
def test_odd_requests_get_a_proper_status_and_disturb_nobody(letters, data, status):
    e, url, client = letters
    given = dict(model='m', prompt='a', max_tokens=50, stream=True)
    with connect(url) as s, client.completions.create(**given) as other:
        threading.Thread(target=lambda: suppressed(s.sendall, data), daemon=True).start()
        head, _, body = s.recv(65536).partition(b'\r\n\r\n')
        assert head.startswith(b'HTTP/1.1 %d' % status)
        while status != 200 and b'}}' not in body: body += s.recv(65536)
        if status != 200: assert b'"type"' in body and b'"invalid_request_error"' in body
        assert len([*other]) == 51
    idle(e)

@pytest.mark.parametrize('data', [b'', b'GET / HTTP/1.1\r\nx: ', http(GOOD), http(GOOD, length=10**9)],
                         ids=lambda v: str(v)[:40])
def test_who_holds_a_connection_and_does_nothing_is_cut_off(data):
    with served(patience=.2) as (e, url, client):
        many = [connect(url) for _ in range(30)]
        for s in many: s.sendall(data)
        assert client.completions.create(model='m', prompt='a', max_tokens=3).usage.completion_tokens == 3
        for s in many:
            with s: drained(s)

def drained(s):
    "Read until the other side closes, or fail when it does not."
    try:
        while s.recv(65536): pass
    except ConnectionResetError: pass

def test_a_body_that_does_not_come_or_does_not_end():
    with served(patience=.3) as (e, url, client):
        slow = connect(url); slow.sendall(http(b'{"mod', length=10**15))
        assert client.completions.create(model='m', prompt='a', max_tokens=3).usage.completion_tokens == 3
        assert slow.recv(1000).startswith(b'HTTP/1.1 408')
        half = connect(url); half.sendall(http(b'{"mod', length=100)); half.shutdown(socket.SHUT_WR)
        half.recv(1000)

def slow_down(e, seconds):
    "So that a client that leaves, or is left, does it in the middle."
    step = e.engine.step
    e.engine.step = lambda: (time.sleep(seconds), step())[1]

class Gate:
    "Lets an engine make a step only when asked, and notes who took part."
    def __init__(self, e):
        self.go, self.ran, step, engine = threading.Semaphore(0), [], e.engine.step, e.engine
        def slow():
            self.go.acquire(timeout=30); out = step()
            self.ran.append({j['request'] for j in engine.trace[-1]['jobs']})
            return out
        e.engine.step = slow

def wait_until(true, seconds=10):
    end = time.time() + seconds
    while not true(): assert time.time() < end; time.sleep(.005)

@pytest.mark.parametrize('how', ['close', 'reset', 'half'])
@pytest.mark.parametrize('stream', [True, False])
def test_a_client_that_goes_away_frees_its_pages_within_one_step(how, stream):
    with served() as (e, url, _):
        gate, s = Gate(e), connect(url)
        s.sendall(http(stream_body() if stream else stream_body().replace(b'true', b'false')))
        wait_until(lambda: e.host.choices)
        for _ in range(3): gate.go.release()
        wait_until(lambda: len(gate.ran) == 3)
        if how == 'half': s.shutdown(socket.SHUT_WR)
        else:
            if how == 'reset': s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
            s.close()
        wait_until(lambda: not e.host.inbox.empty())                  # the news of it
        gate.go.release()                                             # the step that was waiting is made
        wait_until(lambda: not e.host.choices and not e.engine.busy)
        check_empty(e.engine)
        assert len(gate.ran) == 4 and ends(e)['abort'] == 1

def test_a_slow_reader_stops_nobody_and_is_left_in_the_end():
    "It asks for much, and reads nothing."
    model = small_model(tokenizer=LETTERS, block_size=2048).eval()
    with served(model, patience=.5, slots=9) as (e, url, client):
        slow_down(e, .001)
        lazy = socket.socket(); lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        lazy.connect((lambda h, p: (h, int(p)))(*url.removeprefix('http://').split(':')))
        lazy.sendall(http(stream_body(2000, n=8, logprobs=20)))
        wait_until(lambda: e.host.choices)
        assert client.completions.create(model='m', prompt='a', max_tokens=30).usage.completion_tokens == 30
        wait_until(lambda: not e.host.choices, 60)
        assert ends(e)['abort'] > 0
        lazy.close()

def test_too_many_at_once_are_told_to_come_again():
    with served(limit=150) as (e, url, _):
        gate, s = Gate(e), connect(url)
        s.sendall(http(stream_body(n=2)))
        wait_until(lambda: e.host.choices)
        assert ask(url, dict(prompt='a', n=2)).status_code == 503 and e.writing == 2*62
        assert ask(url, dict(prompt='a', max_tokens=30, logprobs=5)).status_code == 400
        assert httpx.get(f'{url}/health').status_code == 200
        s.close()
        for _ in range(9): gate.go.release()
        idle(e)
        assert e.writing == 0

def test_a_step_that_fails_ends_the_texts_with_an_error_and_the_next_are_written():
    with served() as (e, url, client):
        step, left = e.engine.step, [3]
        def failing():
            left[0] -= 1
            if left[0] == 0: raise MemoryError('SECRET')
            return step()
        e.engine.step = failing
        with pytest.raises(openai.APIError, match='MemoryError'):
            for _ in client.completions.create(model='m', prompt='a', max_tokens=9, stream=True): pass
        assert ends(e)['error'] == 1
        assert client.completions.create(model='m', prompt='a', max_tokens=9).usage.completion_tokens == 9

# --- the timeline of any server

def test_a_timeline_has_the_pieces_and_the_work_of_each_token(letters):
    _, url, _ = letters
    prompt, machine = 'kjihgfedcba'*2, Machine(1e9, 1e9, 1e-6)
    for saved in (0, 16):                              # the second time, a page is found
        line = Timeline.from_endpoint(url + '/v1/', prompt, 20, config=MODEL.config)
        assert ''.join(line.pieces) == text(MODEL, alone(MODEL, LETTERS.encode(prompt), 20, temperature=0))
        assert (line.read, line.saved) == (22 - saved, saved) and len(line.seconds) == 20
        want = [MODEL.config.pass_cost(22 - saved, saved, last_only=True),
                *(MODEL.config.pass_cost(1, 22 + i, last_only=True) for i in range(19))]
        assert line.costs == want and [row.split()[0] for row in line.phases(machine).split('\n')] == [
            'phase', 'prefill', 'decode']
    assert line.decode([0, 1]) == ''.join(line.pieces[:2]) and DecodeTimeline(line, line)

def test_a_timeline_of_a_chat_and_of_what_does_not_answer(talk):
    _, url, _ = talk
    messages = [{'role': 'user', 'content': 'hello'}]
    line = Timeline.from_endpoint(url, messages, 9, model='m')
    new = alone(CHAT, chat_ids(TALK, messages), 9, temperature=0)
    assert ''.join(line.pieces) == text(CHAT, new)
    assert line.read + line.saved == len(chat_ids(TALK, messages))
    with pytest.raises(ValueError, match='expected config'): line.phases()
    with pytest.raises(ValueError, match='says 404: .*gpt-9'): Timeline.from_endpoint(url, 'a', model='gpt-9')
    with pytest.raises(ValueError, match='max_new_tokens is 2'): Timeline.from_endpoint(url, 'a', 2)
    with served(key='k') as (_, locked, _):
        with pytest.raises(ValueError, match='says 401'): Timeline.from_endpoint(locked, 'a')
        assert len(Timeline.from_endpoint(locked, 'a', 5, key='k').pieces) == 5
    with pytest.raises(ConnectionError, match='does not answer'): Timeline.from_endpoint(locked, 'a')

# --- two hundred at once

def explained(model, ids, a, b, dials, seed):
    "Whether two texts part where rounding decides: two tokens whose race is a draw within 0.1 %."
    t = next(i for i, (x, y) in enumerate(zip(a, b)) if x != y)
    gen = seeded(seed)
    for i in range(t + 1):
        with torch.no_grad(): row = model(torch.tensor([ids + a[:i]]))[0][0, -1]
        if dials.temperature == 0: race = row.exp()
        else:
            p = dials.probabilities(row)
            race = p/torch.empty_like(p).exponential_(1, generator=gen)
    return abs(race[a[t]]/race[b[t]] - 1) < 1e-3

@pytest.mark.slow
def test_two_hundred_streams_with_clients_that_leave_at_any_moment():
    model = small_model(tokenizer=LETTERS, block_size=128, n_layer=3, n_embd=64).eval()
    with served(model, slots=16, n_pages=48, size=8) as (e, url, _):
        slow_down(e, .003)
        heard = in_a_thread(crowd(url, 200))
        idle(e)
    over, preempted = ends(e), counted(e, 'num_preemptions')
    parted = 0
    for ids, n, seed, dials, got, left in heard:
        want = alone(model, ids, n, seed, **dials)
        assert left or len(got) == n
        if got != want[:len(got)]:
            parted += 1
            assert explained(model, ids, got, want, Sampling(**dials), seed)
    gone = sum(left for *_, left in heard)
    print(f'{gone} of {len(heard)} clients left, {over}; {preempted} times somebody made room; '
          f'{parted} texts differ by rounding')
    assert len(heard) == 200 and sum(over.values()) <= 200 and over['error'] == 0
    assert gone > 40 and over['abort'] > 30 and preempted > 0 and parted <= 2

async def crowd(url, n):
    "(ids of the prompt, longest answer, seed, dials, ids that came, whether the client left) of each client."
    shared = [random.Random(i).choices(LETTERS.chars, k=40) for i in range(3)]
    how = httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=240)
    client = openai.AsyncOpenAI(base_url=f'{url}/v1', api_key='x', max_retries=0, http_client=how)
    async def one(seed):
        rng = random.Random(seed)
        prompt = ''.join(rng.choice(shared)[:rng.randint(1, 40)]) + rng.choice('abc')
        most, got, left = rng.randint(5, 80), '', rng.random() < .4
        dials = rng.choice([dict(temperature=0.), dict(temperature=1.), dict(temperature=.8, top_p=.9)])
        tokens = rng.randrange(9) if rng.random() < .5 else 999        # leave after so many, or by the clock
        await asyncio.sleep(rng.random()/2)
        with anyio.move_on_after(rng.expovariate(1) if left else None):
            async with await client.completions.create(model='m', prompt=prompt, max_tokens=most, seed=seed,
                                                       stream=True, **dials) as stream:
                async for chunk in stream:
                    got += chunk.choices[0].text
                    if left and len(got) >= tokens: break
        return LETTERS.encode(prompt), most, seed, dials, LETTERS.encode(got), left
    async with client: return await asyncio.gather(*map(one, range(n)))

# --- the command

@contextmanager
def command(*words):
    p = start_python('-m', 'tinylm', 'serve', '--port', '0', *words, stdout=subprocess.PIPE,
                     stderr=subprocess.PIPE,
                     text=True)
    try:
        yield p, re.search(r'http://\S+?:\d+', p.stdout.readline())[0]
    finally: p.kill(); p.communicate()

@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp('served')/'abc.safetensors'
    small_model(tokenizer=LETTERS, block_size=4096).save_safetensors(path)
    return path

def test_bad_words_of_the_command_get_one_line(capsys, checkpoint, monkeypatch):
    with socket.create_server(('127.0.0.1', 0)) as busy:
        port = str(busy.getsockname()[1])
        for words, says in [(('--checkpoint', 'none'), 'there is no file none'),
                            (('--checkpoint', checkpoint, '--port', port), f'at 127.0.0.1, port {port}: '),
                            (('--checkpoint', checkpoint, '--port', '70000'), 'port is 70000'),
                            (('--checkpoint', checkpoint, '--slots', '0'), 'slots is 0'),
                            (('--checkpoint', checkpoint, '--host', '256.1.1.1'), 'listen at 256.1.1.1')]:
            code, err = main(['serve', *map(str, words)]), capsys.readouterr().err
            assert code == 2 and err.startswith('tinylm: ') and says in err and err.count('\n') == 1
    for package in ('starlette', 'uvicorn', 'prometheus_client'):
        with monkeypatch.context() as m:
            m.setitem(sys.modules, package, None)
            assert main(['serve', '--checkpoint', str(checkpoint)]) == 2
            assert f'needs the package {package}' in capsys.readouterr().err

@pytest.mark.slow
@pytest.mark.parametrize('sign', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_streams_end_and_then_ends(checkpoint, sign):
    with command('--checkpoint', checkpoint, '--grace', '20') as (p, url):
        given = dict(model='abc', prompt='a', max_tokens=300, stream=True, temperature=0)
        stream = clients(url).completions.create(**given)
        next(stream)
        p.send_signal(sign)
        assert sum(len(c.choices[0].text) for c in stream) == 299
        assert p.wait(20) == 130 and p.stderr.read() == 'tinylm: stopped\n'
        with pytest.raises(httpx.ConnectError): httpx.get(url)

@pytest.mark.slow
def test_a_stream_that_takes_longer_than_the_limit_is_cut(checkpoint):
    with command('--checkpoint', checkpoint, '--grace', '1') as (p, url):
        streams = [clients(url).completions.create(model='abc', prompt='a', max_tokens=4000, n=16,
                                                   stream=True)]
        next(streams[0])
        start = time.time()
        p.send_signal(signal.SIGTERM)
        with pytest.raises((httpx.HTTPError, openai.APIError)):
            for _ in streams[0]: pass
        assert p.wait(20) == 130 and time.time() - start < 10
