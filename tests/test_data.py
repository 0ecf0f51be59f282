import hashlib, json, re, socket, threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log

import pytest
import torch
from hypothesis import given, strategies as st
from pydoc_data import topics

from helpers import quick, seeded
from tinylm import (TOKENIZERS, CharTokenizer, CountModel, LanguageModel, LMConfig, TextStream, TrainConfig,
                    check_tokenizer, data, get_batch, load_corpus, read_tokenizer, train, train_val_split,
                    visible)
from tinylm.cli import main

# --- the tokenizer

@quick
@given(st.data())
def test_decode_undoes_encode_for_any_text(data):
    vocabulary = data.draw(st.text(min_size=1))
    tokenizer, text = CharTokenizer(vocabulary), data.draw(st.text(vocabulary))
    ids = tokenizer.encode(text)
    assert len(ids) == len(text) and tokenizer.decode(ids) == text
    assert tokenizer.decode(torch.tensor(ids, dtype=torch.long)) == text

@quick
@given(st.text(min_size=1))
def test_ids_number_the_sorted_characters(text):
    tokenizer = CharTokenizer(text)
    assert list(tokenizer.chars) == sorted(set(text)) and tokenizer.vocab_size == len(set(text))
    assert tokenizer.encode(tokenizer.chars) == list(range(tokenizer.vocab_size))

@quick
@given(st.text('ab'), st.text())
def test_the_first_unknown_character_is_named_with_its_place(before, after):
    with pytest.raises(ValueError, match=re.escape(f"character '?' at position {len(before)} is not in the "
                                                   f"vocabulary of 2 characters")):
        CharTokenizer('ab').encode(before + '?' + after)

@pytest.mark.parametrize('bad', [-1, 2, 1.5, 1., 'a', None, [0]])
def test_decode_refuses_what_is_no_token_id(bad):
    with pytest.raises(ValueError, match=re.escape(f'{bad!r} is not a token id: expected an integer from 0 '
                                                   f'to 1')):
        CharTokenizer('ab').decode([0, bad, 1])

@pytest.mark.parametrize('ids', [torch.tensor([0., 1.]), torch.tensor([[0, 1]]), torch.tensor(1), 1])
def test_decode_refuses_what_is_no_row_of_ids(ids):
    with pytest.raises(ValueError, match='is not a (token id: expected an integer from 0 to 1|row of token '
                                         'ids: expected a list or a 1-D tensor)'):
        CharTokenizer('ab').decode(ids)

def test_decode_takes_true_for_one_as_python_does():
    assert CharTokenizer('ab').decode([True,
        False]) == 'ba' == CharTokenizer('ab').decode(torch.tensor([True, False]))

def test_an_empty_vocabulary_is_refused():
    with pytest.raises(ValueError, match='at least one character, got an empty text'): CharTokenizer('')

@quick
@given(st.lists(st.sampled_from(' \n\t\r') | st.characters()).map(''.join))
def test_visible_changes_blanks_only_and_keeps_the_length(text):
    shown = visible(text)
    assert len(shown) == len(text)
    assert all(b == {' ': '␣', '\n': '⏎', '\t': '⇥', '\r': '␍'}.get(a, a) for a, b in zip(text, shown))

# --- tokenizers of one's own

class Bytes:
    "A token for each byte: most tokens of a text that is not English are part of a character."
    vocab_size = 256
    def encode(self, text): return list(text.encode())
    def decode(self, ids): return bytes(int(i) for i in ids).decode(errors='replace')
    def to_json(self): return {'kind': 'bytes'}

@pytest.fixture
def bytes_are_known(monkeypatch): monkeypatch.setitem(TOKENIZERS, 'bytes', lambda about: Bytes())

def odd(**changes):
    return type('Odd', (Bytes,), {'to_json': lambda self: {'kind': 'chars', 'chars': ''}} | changes)()

@pytest.mark.parametrize('tokenizer, says', [
    (odd(encode=None), 'the tokenizer Odd has no method encode'), (odd(decode=3), 'no method decode'),
    (odd(to_json=None), 'no method to_json'), (object(), 'the tokenizer object has no method encode'),
    (odd(vocab_size=None), 'vocab_size of the tokenizer Odd is None: expected a whole number of at least 1'),
    (odd(vocab_size=0), 'vocab_size of the tokenizer Odd is 0'), (odd(vocab_size=2.), 'vocab_size .* is 2.0'),
    (odd(vocab_size=255), 'the tokenizer has 255 tokens and the config says vocab_size 256'),
    (odd(to_json=lambda self: 'chars'), "to_json of the tokenizer Odd gives 'chars': expected a dict with a "
                                        "kind"),
    (odd(to_json=lambda self: {}), 'to_json of the tokenizer Odd gives {}: expected a dict with a kind'),
    (Bytes(), "to_json of the tokenizer Bytes gives {'kind': 'bytes'}: expected a dict with a kind")])
def test_a_tokenizer_that_lacks_something_is_refused_when_it_is_given(tokenizer, says):
    with pytest.raises(ValueError, match=says): check_tokenizer(tokenizer, 256)
    with pytest.raises(ValueError, match=says): LanguageModel(LMConfig(vocab_size=256), tokenizer)

def test_a_tokenizer_of_ones_own_works_to_the_end_once_its_kind_is_known(tmp_path, bytes_are_known, capsys):
    "Trained, saved, loaded, resumed, and asked by the command line, whose output is whole characters."
    text, out = 'für Elise – 3 € ☃\n'*60, tmp_path/'m.safetensors'
    ids, recipe = torch.tensor(Bytes().encode(text)), TrainConfig(steps=3, batch_size=2, eval_windows=2)
    shape = LMConfig(vocab_size=256, block_size=16, n_layer=1, n_head=2, n_embd=16)
    train(LanguageModel(shape, Bytes()), ids[:900], ids[900:], recipe, out=out, callback=lambda run: None)
    model = LanguageModel.from_safetensors(out)
    assert type(model.tokenizer) is Bytes
    train(LanguageModel(shape, Bytes()), ids[:900], ids[900:], out=out, resume=True,
          callback=lambda run: None)
    capsys.readouterr()
    assert main(['generate', '--checkpoint', str(out), '--prompt', 'für', '--max-tokens', '40', '--seed',
                 '1']) == 0
    written = model.decode(torch.tensor([Bytes().encode('für')]), 40, generator=seeded(1))[0]
    signs = {c: chr(0x2400+c) for c in range(32) if c not in b'\n\t'} | dict.fromkeys(range(0x7f, 0xa0), '�')
    assert capsys.readouterr().out == Bytes().decode(written).translate(signs) + '\n'

def test_a_file_with_an_unknown_kind_of_tokenizer_names_it(tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setitem(TOKENIZERS, 'bytes', lambda about: Bytes())
        LanguageModel(LMConfig(vocab_size=256, n_layer=1, n_embd=16), Bytes()).save_safetensors(tmp_path/'m')
    with pytest.raises(ValueError, match="m does not say .*the kind of tokenizer is 'bytes'"):
        LanguageModel.from_safetensors(tmp_path/'m')

@quick
@given(st.text(min_size=1))
def test_a_tokenizer_comes_back_from_its_description(chars):
    about = json.loads(json.dumps(CharTokenizer(chars).to_json()))
    assert read_tokenizer(about).chars == CharTokenizer(chars).chars and read_tokenizer(None) is None

@pytest.mark.parametrize('about, says', [
    ({'kind': 'words'}, "the kind of tokenizer is 'words': expected one of chars"),
    ('chars', 'is no tokenizer'),
    ({'chars': 'ab'}, 'is no tokenizer'), ({'kind': ['chars']}, r"the kind of tokenizer is \['chars'\]"),
    ({'kind': 'chars', 'chars': 'ba'}, 'its characters are not sorted'), ([], 'is no tokenizer')])
def test_a_description_that_is_none_is_refused(about, says):
    with pytest.raises(ValueError, match=says): read_tokenizer(about)

# --- text, as soon as it is whole

def handed_out(stream, ids, sizes):
    "The parts that a stream gives for ids in groups of these sizes, and what is left at the end."
    parts, start = [], 0
    for size in [*sizes, len(ids)]:
        parts.append(stream.push(ids[start:start+size])); start += size
    return parts, stream.flush()

@quick
@given(st.text(), st.lists(st.integers(1, 5)))
def test_any_text_comes_out_of_its_bytes_whole_and_in_time(text, sizes):
    ids = Bytes().encode(text)
    parts, rest = handed_out(TextStream(Bytes()), ids, sizes)
    assert ''.join(parts) + rest == text
    if '\ufffd' not in text: assert rest == '' and not any('\ufffd' in part for part in parts)

@quick
@given(st.text(st.characters(exclude_characters='\ufffd', exclude_categories=['Cs'])))
def test_each_character_comes_with_its_last_byte(text):
    stream = TextStream(Bytes())
    for c in text:
        *first, last = Bytes().encode(c)
        assert [stream.push([i]) for i in first] == ['']*len(first) and stream.push([last]) == c

@quick
@given(st.lists(st.integers(0, 255)), st.lists(st.integers(1, 5)))
def test_bytes_that_are_no_text_come_out_as_decode_shows_them(ids, sizes):
    parts, rest = handed_out(TextStream(Bytes()), ids, sizes)
    assert ''.join(parts) + rest == Bytes().decode(ids)

@quick
@given(st.text('abc\ufffd'), st.data())
def test_characters_come_out_one_by_one(text, data):
    tokenizer = CharTokenizer('abc\ufffd')
    stream, ids = TextStream(tokenizer), torch.tensor(tokenizer.encode(text), dtype=torch.long)
    parts = [stream.push(ids[i:i+1]) for i in range(len(ids))]
    assert ''.join(parts) + stream.flush() == text
    if '\ufffd' not in text: assert parts == list(text)

class Spaced(Bytes):
    "Words with blanks between them: how a token looks depends on whether something stands before it."
    def decode(self, ids): return ' '.join(f'w{int(i)}' for i in ids)

@quick
@given(st.lists(st.integers(0, 255)), st.lists(st.integers(1, 5)))
def test_a_token_that_looks_different_at_the_beginning_comes_out_as_in_the_middle(ids, sizes):
    parts, rest = handed_out(TextStream(Spaced()), ids, sizes)
    assert ''.join(parts) + rest == Spaced().decode(ids)

def test_a_stream_keeps_no_more_ids_than_it_needs():
    stream = TextStream(Bytes())
    for i in range(999): stream.push([97])
    assert len(stream.ids) <= 2

# --- corpora that need no network

def test_the_python_docs_are_long_enough_to_learn_from(): assert len(load_corpus('python-docs')) > 300_000

def test_the_python_docs_are_the_default(): assert load_corpus() == load_corpus('python-docs')

def test_the_python_docs_do_not_depend_on_the_order_of_their_topics(monkeypatch):
    text = load_corpus('python-docs')
    monkeypatch.setattr(topics, 'topics', dict(reversed(topics.topics.items())))
    assert load_corpus('python-docs') == text

@pytest.mark.parametrize('kind', [str, lambda path: path])
def test_a_path_is_read_without_its_byte_order_mark(tmp_path, kind):
    path = tmp_path/'text.txt'
    path.write_bytes('\ufeffein Märchen\n\t☃ 😀'.encode())
    assert load_corpus(kind(path)) == 'ein Märchen\n\t☃ 😀'

def test_a_missing_file_is_named_with_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="no corpus '.*nowhere.txt': expected 'python-docs', "
                                                "'shakespeare' or the path of a UTF-8 text file"):
        load_corpus(tmp_path/'nowhere.txt')

def test_a_folder_is_no_corpus(tmp_path):
    with pytest.raises(ValueError, match=f'{tmp_path.name} is a folder: expected a UTF-8 text file'):
        load_corpus(tmp_path)

@pytest.mark.parametrize('content, says',
    [(b'ab\xffc', 'byte 2 is 0xff'), (b'a'*99_999 + b'\xc3', 'byte 99999 is 0xc3'),
     (b'\xef\xbb\xbfab\xff', 'byte 5 is 0xff')])
def test_a_file_that_is_not_utf8_is_refused_at_its_first_bad_byte(tmp_path, content, says):
    (tmp_path/'text.txt').write_bytes(content)
    with pytest.raises(ValueError, match=f'text.txt is not UTF-8 text: {says}'):
        load_corpus(tmp_path/'text.txt')

@pytest.mark.parametrize('content', [b'', b'\xef\xbb\xbf'])
def test_an_empty_file_is_refused(tmp_path, content):
    (tmp_path/'text.txt').write_bytes(content)
    with pytest.raises(ValueError, match='text.txt is empty'): load_corpus(tmp_path/'text.txt')

# --- the download

TEXT = 'To be, or not to be: that is the question.\n' * 4000       # longer than one read
BODY = TEXT.encode()

def response(body, says=200, **headers):
    lines = [f'HTTP/1.1 {says}', *(f'{name.replace("_", "-")}: {value}' for name, value in headers.items())]
    return '\r\n'.join([*lines, '', '']).encode() + body

class Answer(BaseHTTPRequestHandler):
    "Sends the raw bytes `server.answer`; where `server.stalls`, the connection then stays open in silence."
    def do_GET(self):
        self.server.requests += 1
        self.wfile.write(self.server.answer)
        if self.server.stalls: self.server.released.wait(10)
    def log_message(self, *args): pass

@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setenv('TINYLM_DATA', str(tmp_path/'cache'))
    monkeypatch.setattr(data, 'SHAKESPEARE_SHA256', hashlib.sha256(BODY).hexdigest())
    return tmp_path/'cache'

@pytest.fixture
def server(cache, monkeypatch):
    with ThreadingHTTPServer(('127.0.0.1', 0), Answer) as server:
        server.answer, server.requests, server.stalls, server.released = response(BODY,
            Content_Length=len(BODY)), 0, False, threading.Event()
        monkeypatch.setattr(data, 'SHAKESPEARE_URL', f'http://127.0.0.1:{server.server_port}/input.txt')
        thread = threading.Thread(target=server.serve_forever, args=(.01,))
        thread.start()
        yield server
        server.released.set(); server.shutdown(); thread.join()

def files(folder): return [path.name for path in folder.rglob('*')]

def test_a_second_call_reads_the_file_and_not_the_network(cache, server):
    assert load_corpus('shakespeare') == TEXT and server.requests == 1
    assert load_corpus('shakespeare') == TEXT and server.requests == 1
    assert files(cache) == ['shakespeare.txt']

@pytest.mark.parametrize('answer',
    [response(BODY[:-1], Content_Length=len(BODY)), response(BODY[:70_000], Content_Length=len(BODY)),
     response(BODY[:-1])])
def test_a_download_cut_short_leaves_nothing(cache, server, answer):
    server.answer = answer
    with pytest.raises(ValueError, match='/input.txt did not give the expected file .cut short'):
        load_corpus('shakespeare')
    assert files(cache) == []

def test_a_download_cut_short_within_a_chunk_leaves_nothing(cache, server):
    server.answer = response(b'fff\r\nTo be', Transfer_Encoding='chunked')
    with pytest.raises(ConnectionError, match='could not download http.*/input.txt'):
        load_corpus('shakespeare')
    assert files(cache) == []

def test_a_download_of_another_text_leaves_nothing(cache, server):
    server.answer = response(BODY.upper(), Content_Length=len(BODY))
    with pytest.raises(ValueError, match='/input.txt did not give the expected file'):
        load_corpus('shakespeare')
    assert files(cache) == []

@pytest.mark.parametrize('answer, says',
    [(response(b'', '404 Not Found'), '404'), (response(b'', '503 Later'), '503'),
     (b'', 'closed connection')])
def test_a_server_without_the_file_is_a_connection_error_that_says_where_to_put_it(cache, server, answer,
    says):
    server.answer = answer
    with pytest.raises(ConnectionError, match=f'could not download http.*/input.txt to .*shakespeare.txt '
                                              f'.*{says}.*put the file there yourself'):
        load_corpus('shakespeare')
    assert files(cache) == []

def test_an_answer_that_is_not_http_leaves_nothing(cache, server):
    server.answer = b'220 smtp ready\r\n'
    with pytest.raises(ConnectionError, match='could not download http.*/input.txt'):
        load_corpus('shakespeare')
    assert files(cache) == []

@pytest.mark.parametrize('answer', [b'', response(BODY[:70_000], Content_Length=len(BODY))])
def test_a_download_that_stands_still_is_given_up_and_leaves_nothing(cache, server, answer):
    server.answer, server.stalls = answer, True
    with pytest.raises(ConnectionError, match='timed out'): load_corpus('shakespeare', timeout=.2)
    assert files(cache) == []

def test_a_refused_connection_leaves_nothing(cache, monkeypatch):
    with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
    monkeypatch.setattr(data, 'SHAKESPEARE_URL', f'http://127.0.0.1:{port}/input.txt')
    with pytest.raises(ConnectionError, match='could not download .*refused'): load_corpus('shakespeare')
    assert files(cache) == []

def test_a_failed_download_can_be_tried_again(server):
    good, server.answer = server.answer, b''
    with pytest.raises(ConnectionError): load_corpus('shakespeare')
    server.answer = good
    assert load_corpus('shakespeare') == TEXT

def test_a_file_put_there_by_hand_is_used_without_network(cache, server):
    cache.mkdir()
    (cache/'shakespeare.txt').write_bytes(BODY)
    assert load_corpus('shakespeare') == TEXT and server.requests == 0

@pytest.mark.parametrize('content', [BODY[:-1], b''])
def test_a_wrong_file_put_there_by_hand_is_refused_and_left_as_it_is(cache, server, content):
    cache.mkdir()
    (cache/'shakespeare.txt').write_bytes(content)
    with pytest.raises(ValueError,
                       match='shakespeare.txt is not Tiny Shakespeare .*: remove it and try again'):
        load_corpus('shakespeare')
    assert (cache/'shakespeare.txt').read_bytes() == content and server.requests == 0

# --- batches

@quick
@given(st.integers(0, 300), st.floats(.001, .999))
def test_the_split_keeps_every_token_in_its_place_and_the_asked_share_for_validation(n, fraction):
    ids = torch.arange(n)
    train, val = train_val_split(ids, fraction)
    assert torch.equal(torch.cat([train, val]), ids) and abs(len(val) - n*fraction) < .51

@pytest.mark.parametrize('fraction', [0, 1, -.1, 1.1, float('nan')])
def test_a_fraction_that_leaves_one_part_empty_is_refused(fraction):
    with pytest.raises(ValueError, match=f'val_fraction is {fraction}: expected a number above 0, below 1'):
        train_val_split(torch.arange(9), fraction)

@quick
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 30), st.integers(0, 99))
def test_windows_lie_in_the_text_and_y_is_x_one_place_on(B, T, more, seed):
    ids = torch.arange(100, 100+T+more)
    x, y = get_batch(ids, B, T, seeded(seed))
    assert x.shape == y.shape == (B, T) and x.dtype == y.dtype == torch.int64
    for row, following in zip(x, y):
        start = row[0] - 100
        assert torch.equal(row, ids[start:start+T]) and torch.equal(following, ids[start+1:start+1+T])

@quick
@given(st.integers(1, 9), st.integers(1, 5))
def test_every_start_is_reached_and_the_last_token_is_a_target(T, starts):
    x, y = get_batch(torch.arange(T+starts), 500, T, seeded())
    assert set(x[:, 0].tolist()) == set(range(starts)) and y.max() == T+starts-1

def test_a_generator_makes_batches_repeatable_and_leaves_the_global_one_alone():
    before, ids = torch.get_rng_state(), torch.arange(1000)
    one, same, other = (get_batch(ids, 8, 4, seeded(n))[0] for n in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)

def test_a_text_one_token_too_short_is_refused():
    with pytest.raises(ValueError, match='a text of 4 tokens is too short: block_size 4 needs at least 5'):
        get_batch(torch.arange(4), 1, 4)
    assert get_batch(torch.arange(5), 1, 4)[1].tolist() == [[1, 2, 3, 4]]

@pytest.mark.parametrize('bad', [0, -1, 1.5])
def test_a_batch_of_nothing_is_refused(bad):
    with pytest.raises(ValueError, match=f'batch_size is {bad}: expected a whole number'):
        get_batch(torch.arange(9), bad, 4)
    with pytest.raises(ValueError, match=f'block_size is {bad}: expected a whole number'):
        get_batch(torch.arange(9), 4, bad)

# --- text that is none

@pytest.mark.parametrize('encoding', ['utf-16-le', 'utf-16-be', 'utf-32-le', 'utf-32-be'])
def test_text_of_another_width_without_a_mark_is_refused(tmp_path, encoding):
    (tmp_path/'text.txt').write_bytes('The cat sat on the mat.\n'.encode(encoding))
    with pytest.raises(ValueError, match='text.txt is not UTF-8 text: character . is NUL'):
        load_corpus(tmp_path/'text.txt')

@quick
@given(st.text(), st.characters(min_codepoint=0xd800, max_codepoint=0xdfff, whitelist_categories=['Cs']),
       st.text())
def test_half_a_character_is_no_token(before, half, after):
    with pytest.raises(ValueError, match='half a character'): CharTokenizer(before + half + after)

# --- the model that only counts

texts = st.text('abc ', min_size=1, max_size=40)

@quick
@given(texts, texts, st.integers(1, 6))
def test_what_a_count_expects_adds_up_to_one_and_is_what_it_saw_most(known, before, order):
    m = CountModel(known, order, 'abc ')
    p = {c: m.probability(before, c) for c in 'abc '}
    assert sum(p.values()) == pytest.approx(1) and min(p.values()) > 0
    end = before[max(len(before)-order+1, 0):]
    assert p == {c: m.probability(end, c) for c in 'abc '}            # more is not looked at
    followers = Counter(known[i] for i in range(len(end), len(known)) if known[i-len(end):i] == end)
    if len(before) >= order-1: assert +m.after.get(end, Counter()) == followers

@quick
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 4), st.integers(0, 99))
def test_a_count_of_ids_is_that_of_their_characters(ids, order, seed):
    text = ''.join('abcd'[i] for i in ids)
    a, b = CountModel(tuple(ids), order, range(4)), CountModel(text, order, 'abcd')
    assert a.write((0,), 9, seed) == tuple('abcd'.index(c) for c in b.write('a', 9, seed))
    if len(ids) > 2: assert a.loss(tuple(ids), 2) == b.loss(text, 2)

@quick
@given(st.text('ab', min_size=9, max_size=60), st.integers(1, 5), st.integers(1, 8))
def test_a_count_is_judged_on_the_windows_that_evaluate_reads(text, order, T):
    "As a model of this block size: nothing before the window is known."
    m, n = CountModel(text, order), (len(text)-1)//T
    by_hand = [-log(m.probability(text[w*T:w*T+t+1], text[w*T+t+1])) for w in range(n) for t in range(T)]
    assert m.loss(text, T) == pytest.approx(sum(by_hand)/len(by_hand))

def test_a_count_writes_what_it_expects():
    "Chi-square of the first drawn character, against the probabilities."
    m = CountModel('abracadabra abba', 3)
    p, n = {c: m.probability('ab', c) for c in m.tokens}, 4000
    drawn = Counter(m.write('ab', 1, seed)[-1] for seed in range(n))
    chi2 = sum((drawn[c] - n*p[c])**2/(n*p[c]) for c in p)
    assert chi2 < 30                                                  # 5 degrees of freedom: p < 1e-4
    assert m.write('ab', 20, 1) == m.write('ab', 20, 1) != m.write('ab', 20, 2)

@pytest.mark.parametrize('make, says', [
    (lambda: CountModel(''), 'the text is empty'), (lambda: CountModel('ab', 0), 'order is 0'),
    (lambda: CountModel('ab').loss('ab', 0), 'block_size is 0'),
    (lambda: CountModel('ab').loss('ab', 2), '2 tokens is too short: block_size 2 needs at least 3')])
def test_what_cannot_be_counted_is_refused(make, says):
    with pytest.raises(ValueError, match=says): make()
