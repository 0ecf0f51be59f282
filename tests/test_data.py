import hashlib
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from hypothesis import given, settings, strategies as st
from pydoc_data import topics

from tinylm import CharTokenizer, data, get_batch, load_corpus, train_val_split, visible, write_atomic

quick = settings(deadline=None, max_examples=50)

def seeded(n=0): return torch.Generator().manual_seed(n)

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
    with pytest.raises(ValueError, match=re.escape(f"character '?' at position {len(before)} is not in the vocabulary of 2 characters")):
        CharTokenizer('ab').encode(before + '?' + after)

@pytest.mark.parametrize('bad', [-1, 2, 1.5, 1., 'a', None, [0]])
def test_decode_refuses_what_is_no_token_id(bad):
    with pytest.raises(ValueError, match=re.escape(f'{bad!r} is not a token id: expected an integer from 0 to 1')): CharTokenizer('ab').decode([0, bad, 1])

@pytest.mark.parametrize('ids', [torch.tensor([0., 1.]), torch.tensor([[0, 1]]), torch.tensor(1), 1])
def test_decode_refuses_what_is_no_row_of_ids(ids):
    with pytest.raises(ValueError, match='is not a (token id: expected an integer from 0 to 1|row of token ids: expected a list or a 1-D tensor)'): CharTokenizer('ab').decode(ids)

def test_decode_takes_true_for_one_as_python_does():
    assert CharTokenizer('ab').decode([True, False]) == 'ba' == CharTokenizer('ab').decode(torch.tensor([True, False]))

def test_an_empty_vocabulary_is_refused():
    with pytest.raises(ValueError, match='at least one character, got an empty text'): CharTokenizer('')

@quick
@given(st.lists(st.sampled_from(' \n\t\r') | st.characters()).map(''.join))
def test_visible_changes_blanks_only_and_keeps_the_length(text):
    shown = visible(text)
    assert len(shown) == len(text)
    assert all(b == {' ': '␣', '\n': '⏎', '\t': '⇥', '\r': '␍'}.get(a, a) for a, b in zip(text, shown))

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
    with pytest.raises(FileNotFoundError, match="no corpus '.*nowhere.txt': expected 'python-docs', 'shakespeare' or the path of a UTF-8 text file"):
        load_corpus(tmp_path/'nowhere.txt')

def test_a_folder_is_no_corpus(tmp_path):
    with pytest.raises(ValueError, match=f'{tmp_path.name} is a folder: expected a UTF-8 text file'): load_corpus(tmp_path)

@pytest.mark.parametrize('content, says', [(b'ab\xffc', 'byte 2 is 0xff'), (b'a'*99_999 + b'\xc3', 'byte 99999 is 0xc3'), (b'\xef\xbb\xbfab\xff', 'byte 5 is 0xff')])
def test_a_file_that_is_not_utf8_is_refused_at_its_first_bad_byte(tmp_path, content, says):
    (tmp_path/'text.txt').write_bytes(content)
    with pytest.raises(ValueError, match=f'text.txt is not UTF-8 text: {says}'): load_corpus(tmp_path/'text.txt')

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
        server.answer, server.requests, server.stalls, server.released = response(BODY, Content_Length=len(BODY)), 0, False, threading.Event()
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

@pytest.mark.parametrize('answer', [response(BODY[:-1], Content_Length=len(BODY)), response(BODY[:70_000], Content_Length=len(BODY)), response(BODY[:-1])])
def test_a_download_cut_short_leaves_nothing(cache, server, answer):
    server.answer = answer
    with pytest.raises(ValueError, match='/input.txt did not give the expected file .cut short'): load_corpus('shakespeare')
    assert files(cache) == []

def test_a_download_cut_short_within_a_chunk_leaves_nothing(cache, server):
    server.answer = response(b'fff\r\nTo be', Transfer_Encoding='chunked')
    with pytest.raises(ConnectionError, match='could not download http.*/input.txt'): load_corpus('shakespeare')
    assert files(cache) == []

def test_a_download_of_another_text_leaves_nothing(cache, server):
    server.answer = response(BODY.upper(), Content_Length=len(BODY))
    with pytest.raises(ValueError, match='/input.txt did not give the expected file'): load_corpus('shakespeare')
    assert files(cache) == []

@pytest.mark.parametrize('answer, says', [(response(b'', '404 Not Found'), '404'), (response(b'', '503 Later'), '503'), (b'', 'closed connection')])
def test_a_server_without_the_file_is_a_connection_error_that_says_where_to_put_it(cache, server, answer, says):
    server.answer = answer
    with pytest.raises(ConnectionError, match=f'could not download http.*/input.txt to .*shakespeare.txt .*{says}.*put the file there yourself'): load_corpus('shakespeare')
    assert files(cache) == []

def test_an_answer_that_is_not_http_leaves_nothing(cache, server):
    server.answer = b'220 smtp ready\r\n'
    with pytest.raises(ConnectionError, match='could not download http.*/input.txt'): load_corpus('shakespeare')
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
    with pytest.raises(ValueError, match='shakespeare.txt is not Tiny Shakespeare .*: remove it and try again'): load_corpus('shakespeare')
    assert (cache/'shakespeare.txt').read_bytes() == content and server.requests == 0

# --- files, whole or not at all

@quick
@given(st.lists(st.binary()))
def test_a_written_file_holds_all_chunks_in_order(tmp_path_factory, chunks):
    path = tmp_path_factory.getbasetemp()/'chunks'
    write_atomic(path, iter(chunks))
    assert path.read_bytes() == b''.join(chunks)

@pytest.mark.parametrize('error', [ValueError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize('old', [None, b'old'])
def test_an_error_between_chunks_keeps_the_old_content_and_leaves_nothing_else(tmp_path, error, old):
    path = tmp_path/'file'
    if old: path.write_bytes(old)
    def chunks():
        yield b'new'
        raise error
    with pytest.raises(error): write_atomic(path, chunks())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({'file': old} if old else {})

def test_the_old_content_can_be_read_until_the_last_chunk(tmp_path):
    path = tmp_path/'file'
    path.write_bytes(b'old')
    write_atomic(path, (path.read_bytes() + b'er' for _ in range(2)))
    assert path.read_bytes() == b'older'*2 and files(tmp_path) == ['file']

def test_missing_folders_are_made(tmp_path):
    write_atomic(str(tmp_path/'a'/'b'/'file'), [b'new'])
    assert (tmp_path/'a'/'b'/'file').read_bytes() == b'new'

def test_a_link_stays_a_link(tmp_path):
    (tmp_path/'link').symlink_to(tmp_path/'target')
    write_atomic(tmp_path/'link', [b'new'])
    assert (tmp_path/'link').is_symlink() and (tmp_path/'target').read_bytes() == b'new'

# --- batches

@quick
@given(st.integers(0, 300), st.floats(.001, .999))
def test_the_split_keeps_every_token_in_its_place_and_the_asked_share_for_validation(n, fraction):
    ids = torch.arange(n)
    train, val = train_val_split(ids, fraction)
    assert torch.equal(torch.cat([train, val]), ids) and abs(len(val) - n*fraction) < .51

@pytest.mark.parametrize('fraction', [0, 1, -.1, 1.1, float('nan')])
def test_a_fraction_that_leaves_one_part_empty_is_refused(fraction):
    with pytest.raises(ValueError, match=f'val_fraction is {fraction}: expected a number between 0 and 1'): train_val_split(torch.arange(9), fraction)

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
    with pytest.raises(ValueError, match='a text of 4 tokens is too short: block_size 4 needs at least 5'): get_batch(torch.arange(4), 1, 4)
    assert get_batch(torch.arange(5), 1, 4)[1].tolist() == [[1, 2, 3, 4]]

@pytest.mark.parametrize('bad', [0, -1, 1.5])
def test_a_batch_of_nothing_is_refused(bad):
    with pytest.raises(ValueError, match=f'batch_size is {bad}: expected a whole number'): get_batch(torch.arange(9), bad, 4)
    with pytest.raises(ValueError, match=f'block_size is {bad}: expected a whole number'): get_batch(torch.arange(9), 4, bad)
