"""Texts that tear tokenizers apart: for tests, and for the comparison with other libraries."""

from __future__ import annotations

import random

WORDS = """the number of Clara is it's they'll I'VE we'D don't naïve coöperate Straße ﬁne
İstanbul ǅungla ſtrange x² ½ Ⅷ ٣٤ ४२ 日本語 漢字かな交じり 한국어 ภาษาไทย हिन्दी עברית العربيّة
Ελληνικά кириллица ˈfəʊnɛtɪk $100 3.14159 1,000,000 0x1F user@example.org a/b?c=d#e snake_case
camelCase CONSTANT --flag #include <html> &amp; {"key": [1, null]} \\n \\t ''' \"\"\" --- ... ==
!= => -> := ≠ ∑∫ €£¥ “quoted” ‘single’ – — … • © ™""".split()
PIECES = (
    " ", "  ", "   ", "        ", "\t", "\t\t", "\n", "\n\n", "\r\n", "\r", " \n ", "\u00a0",
    "\u3000", "\u2009", "\u200b", "\u200d", "\ufeff", "\u2028", "\x85", "\x0b", "\x1c", "\x1f",
    "\x00", "\x7f", "'", "'s", "'S", "’s", "'ll", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪🇫🇷", "e\u0301",
    "o\u0308\u0323", "A\u030a", "\u0301", "\u1100\u1161\u11a8", "ﷺ", "שָׁלוֹם", "\u202eabc\u202c",
    "क्षि", "ก็", "0", "7", "42", "40721", "٣", "²", "½", "Ⅻ", "𝟘", "一",
    "def f(x):\n    return x\n", "    if a:\n\t\tpass", "for (;;) { }", "//",
    "/* */", "▁", "Ġ", "<0x41>",
)  # fmt: skip
SPECIALS = """<s> </s> <unk> [INST] <|endoftext|> <|padding|> <|begin_of_text|> <|eot_id|>
<|im_start|> <|im_end|>""".split()
PLANES = (
    (0x20, 0x7F), (0x80, 0x24F), (0x250, 0x7FF), (0x800, 0x1FFF), (0x2000, 0x2BFF),
    (0x3000, 0x9FFF), (0xA000, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x1FFFF),
    (0x20000, 0x2FFFF), (0x30000, 0x3FFFF), (0xE0000, 0xE0FFF), (0xF0000, 0x10FFFF),
)  # fmt: skip


def fuzzed_texts(count: int, seed: int = 0, specials=SPECIALS) -> list[str]:
    """`count` texts, the same for the same seed: the empty one, words of many scripts, runs of
    spaces, characters of all planes, and `specials` written out."""
    source = random.Random(seed)
    texts = ["", " ", "  ", "a", " a", "a ", "\n", "\n a", "a\n", *specials]
    while len(texts) < count:
        texts.append("".join(_piece(source, specials) for _ in range(source.randint(1, 12))))
    return texts[:count]


def _piece(source: random.Random, specials) -> str:
    kind = source.random()
    if kind < 0.4:
        return source.choice(("", " ", " ", "  ")) + source.choice(WORDS)
    if kind < 0.7:
        return source.choice(PIECES)
    if kind < 0.78:
        return source.choice((" ", "\n", "\t", "a", "ab", "!", "0", "é")) * source.randint(
            1, 40
        )
    if kind < 0.85 and specials:
        return source.choice(list(specials))
    low, high = source.choice(PLANES)
    return "".join(chr(source.randint(low, high)) for _ in range(source.randint(1, 4)))
