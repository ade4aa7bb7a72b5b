"""Text to ids, ids to text as it arrives, and the text that ends a text."""

import json
import random
import shutil

import pytest
from conftest import ROOT
from fuzzed_texts import fuzzed_texts

from minilm_inf.tokenizer import StopAt, load
from minilm_inf.tokenizers.sentence_pieces import SentencePieceTokenizer, complete_bytes


@pytest.fixture(params=["tiny-llama", "tiny-mpt", "tiny-gptj"])
def any_tokenizer(request):
    return load(ROOT / "weights" / request.param)


def test_text_survives_encoding(any_tokenizer):
    """A normaliser or a missing byte would change what people write."""
    pieces = isinstance(any_tokenizer, SentencePieceTokenizer)
    for text in fuzzed_texts(1500, seed=len(type(any_tokenizer).__name__)):
        # sentencepiece's own space mark cannot be told from a space; a special leaves no trace
        expected = text.replace("▁", " ") if pieces else text.replace("<|endoftext|>", "")
        assert any_tokenizer.decode(any_tokenizer.encode(text)) == expected, repr(text)


def test_bos_only_where_it_is_asked_for(any_tokenizer):
    """With a second BOS, or none, a text is one that the model never saw."""
    tokenizer = any_tokenizer
    assert tokenizer.encode("a")[0] == tokenizer.bos_id
    assert tokenizer.encode("a")[1:] == tokenizer.encode("a", bos=False)
    assert tokenizer.encode("") == [tokenizer.bos_id]
    assert tokenizer.encode("", bos=False) == []


def test_every_digit_is_a_token(any_tokenizer):
    """Digits merged into pieces would make a pass key another task."""
    tokenizer = any_tokenizer
    assert (
        len(tokenizer.encode(" 40721", bos=False)) == len(tokenizer.encode(" ", bos=False)) + 5
    )


def test_streamed_text_is_decoded_text(tokenizer):
    """Ids decoded one by one lose spaces and tear characters apart."""
    rng = random.Random(1)
    space = tokenizer.encode(" ", bos=False)[-1]
    for text in fuzzed_texts(1500, seed=2):
        ids = tokenizer.encode(text)
        if rng.random() < 0.3:  # any ids at all, torn bytes among them
            ids = [rng.randrange(tokenizer.vocab_size) for _ in range(20)]
        if rng.random() < 0.2:
            ids = [rng.randrange(3, 259) for _ in range(12)]  # bytes in any order
        if rng.random() < 0.2:  # of the first spaces, one is dropped
            ids = [rng.choice([tokenizer.bos_id, space, space, 3 + 65]) for _ in range(6)]
        stream = tokenizer.stream()
        pieces = [stream.push(id) for id in ids] + [stream.flush()]
        assert "".join(pieces) == tokenizer.decode(ids), (text, ids)


def test_half_a_character_is_never_shown(tokenizer):
    """Printing at every id would show replacement marks inside an emoji."""
    stream = tokenizer.stream(begun=True)
    shown = [stream.push(id) for id in tokenizer.encode("漢👩", bos=False)]
    assert all("\ufffd" not in piece for piece in shown)
    assert "".join(shown).endswith("漢👩")


def test_a_continuation_keeps_its_first_space(tokenizer):
    """Decoding the reply by itself would glue its first word to the prompt."""
    ids = tokenizer.encode("the", bos=False)
    assert tokenizer.stream(begun=False).push(ids[0])[0] != " "
    assert tokenizer.stream(begun=True).push(ids[0])[0] == " "


def test_complete_bytes_waits_only_for_what_can_become_a_character():
    """Waiting for what can no longer come would hold text back to the end."""
    assert complete_bytes("aé".encode()) == 3
    assert complete_bytes("aé".encode()[:2]) == 1
    assert complete_bytes(b"\xe2\xe2\x82") == 1  # the first can no longer become anything
    assert complete_bytes(b"\xff\xfe") == 2
    assert complete_bytes(b"\xed\xa0\x80a") == 4  # a surrogate is no character
    assert complete_bytes(b"\xf0\x9f\x91") == 0


def test_ids_out_of_range_are_refused(tokenizer):
    """sentencepiece itself would end with an error of its own, or wrap -1 round."""
    for id in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match="out of range"):
            tokenizer.decode([id])


def test_text_that_is_not_unicode_is_refused(tokenizer):
    """An argument can carry half a surrogate pair, and that would be a traceback."""
    with pytest.raises(ValueError, match="not Unicode"):
        tokenizer.encode("\ud83d")


def test_a_folder_without_a_readable_tokenizer_is_refused(tmp_path):
    """A missing or damaged file would show sentencepiece's error, which names no file."""
    with pytest.raises(ValueError, match="holds no tokenizer: copy"):
        load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="not a readable sentencepiece model"):
        load(tmp_path)


def test_a_stop_text_is_found_however_it_is_cut():
    """Comparing token by token misses a stop text that arrives split."""
    rng = random.Random(3)
    for _ in range(500):
        stops = ["".join(rng.choice("ab") for _ in range(rng.randint(1, 4))) for _ in range(2)]
        text = "".join(rng.choice("abc") for _ in range(20))
        stop, shown, at = StopAt(stops), "", 0
        while at < len(text) and not stop.stopped:
            cut = rng.randint(1, 3)
            shown += stop.push(text[at : at + cut])
            at += cut
            seen = text[:at]
            assert all(s not in shown for s in stops)
            assert stop.stopped == any(s in seen for s in stops)
        found = [text.find(s) for s in stops if s in text[:at]]
        if found:
            assert shown == text[: min(found)]
        else:
            assert shown + stop.flush() == text


def test_marks_added_to_a_sentencepiece_model(tmp_path):
    """A padding token after the pieces would be out of range, or be letters in a prompt."""
    shutil.copy(ROOT / "weights" / "tiny-llama" / "tokenizer.model", tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 2048}')
    added = load(tmp_path)
    plain = load(ROOT / "weights" / "tiny-llama")
    assert added.vocab_size == 2049 and plain.vocab_size == 2048
    ids = plain.encode("The sea")
    assert added.encode("The sea") == ids
    assert added.decode([2048, *ids, 2048]) == "The sea"
    stream = added.stream()
    assert "".join(stream.push(id) for id in [2048, *ids, 2048]) + stream.flush() == "The sea"
    following = added.encode("sea", bos=False, begun=True)
    assert added.encode("The sea<pad>sea") == [*ids, 2048, *following]
    assert added.encode("The <pad> sea", special=False) == plain.encode("The <pad> sea")
    with pytest.raises(ValueError, match="out of range"):
        added.decode([2049])


def test_words_added_to_a_sentencepiece_model(tmp_path):
    """A word that was added is text, found whole; what follows it gets no space before it."""
    shutil.copy(ROOT / "weights" / "tiny-llama" / "tokenizer.model", tmp_path)
    known = {"content": "</s>", "id": 2, "special": True}
    word = {"content": "<word>", "id": 2048, "special": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [known, word]}))
    ours = load(tmp_path)
    pieces = [ours.processor.IdToPiece(id) for id in ours.encode("sea<word>the")[3:]]
    assert ours.encode("sea<word>the")[:3] == [*ours.encode("sea"), 2048][:3]
    for text in ("the sea<word>the sea", "<word> sea", "a <word><word>b"):
        ids = ours.encode(text)
        stream = ours.stream()
        assert ours.decode(ids) == text
        assert "".join(map(stream.push, ids)) + stream.flush() == text
    assert "▁" not in "".join(pieces)
