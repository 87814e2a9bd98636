#!/usr/bin/env python3
"""Writes hard_cases.jsonl: about 200 KB of short texts, one JSON string a line, aimed at the corners of pre-tokenizers and merges.

    python3 tests/golden/tokenizer/make_hard_cases.py
"""
import json
import pathlib
import random

HERE = pathlib.Path(__file__).resolve().parent

SPACES = [" ", "  ", "   ", "\t", "\n", "\r", "\r\n", "\n\n", "\v", "\f", "\x85", "\xa0", "\u1680", "\u180e", "\u2000", "\u200a", "\u200b",
          "\u2028", "\u2029", "\u202f", "\u205f", "\u2060", "\u3000", "\ufeff", "\x1c", "\x1f"]
LETTERS = ["a", "Z", "é", "ß", "ſ", "K", "Ω", "я", "א", "ب", "अ", "ก", "한", "あ", "漢", "𠀀", "𝔘", "ª", "ǅ", "ʰ", "Ⰰ", "ﬃ"]
NUMBERS = ["0", "7", "12", "123", "1234", "²", "½", "٣", "९", "Ⅷ", "①", "〇", "𝟘", "𐄇", "３", "\U00016ff4", "\U00011de1", "\U00010d40"]
OTHERS = ["'", "!", "...", "(", "_", "-", "—", "’", "“", "€", "→", "\u0301", "\u0308\u0301", "\u093e", "\u0e31", "\u200d", "\ufe0f", "👍",
          "👨\u200d👩\u200d👧", "\U0001f1e9\U0001f1ea", "\x00", "\x01", "\x04", "\x1b", "\x7f", "\ufffd", "\ue000", "\U0010ffff", "\u0378", "´", "`"]
ENDINGS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'T", "'RE", "'Ve", "'vE", "'M", "'LL", "'lL", "'D", "'ſ", "'r", "'l", "'v", "''s", "'\u0301s"]
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<reponame>", "<file_sep>", "<|im_start|", "<|im_", "<|", "|>",
            "<|im_start|><|im_end|>", "<<|im_end|>>", "<|im_end|>\n<|im_start|>assistant\n", "<|eot_id|>", "<empty_output>", "<jupyter_code>"]
WORDS = ["the", "The", "THE", "hello", "world", "don", "won", "I", "you", "tokenization", "Supercalifragilistic", "naïve", "Straße", "ζωή", "мир",
         "x", "HTTP", "iPhone", "e", "of"]

FIXED = [
    "", " ", "\n", "a", "'", "''", "'''", "' '", "'s", " 's", "s'", "'ss", "'sa", "it's", "it''s", "IT'S", "it's's", "they'll've", "'tis", "o'clock",
    "I'm don't we've you'll he'd they're", "I'M DON'T WE'VE YOU'LL HE'D THEY'RE", "' s", "'\ts", "a 's", "a  's", "1's", "!'s", "'s's's's",
    "Hello world", "Hello  world", "Hello   world", " Hello", "  Hello", "Hello ", "Hello  ", "\tHello", "\t\tHello", " \tHello", "\t Hello",
    "a\nb", "a\n\nb", "a \n b", "a\n \nb", "a\r\nb", "a\r\n\r\nb", "\r\r\n\n", "a  \n  b", " \n", "\n ", "\n  a", "!\n", "!\n\n", "!\r\n a", "! \n",
    "(a)", " (a)", "  (a)", "(\na)", "\"quoted\" text", "x=1;y=2", "a_b", "__init__", "a-b", "-a", " -a", "a.b.c", "...", " ...", "a...b", "?!", "!!!!!!!!",
    "0", "00", "000", "0000", "1234567890", "1 2 3", "1,234,567.89", "3.14", "v1.2.3", "2024-07-26", "12:34:56", "+1 (555) 010-9999", "a1b2c3", "1a",
    "x²+y²", "½ cup", "Ⅷ", "①②③", "٣٤٥", "१२३", "１２３", "1٣", " 1", "  1", "1 ", "1  ", "1  2", "\n1", "a 1", "a  1",
    "日本語のテキスト", "中文文本,标点。", "한국어 텍스트", "ภาษาไทย", "हिन्दी पाठ", "العربية ١٢٣", "עברית", "Ελληνικά", "русский текст", "ქართული",
    "e\u0301", "é", "e\u0301\u0301", "\u0301", " \u0301", "a \u0301b", "Å\u030a", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘",
    "👍", "👍🏽", "👨‍👩‍👧‍👦", "🇩🇪🇫🇷", "1️⃣", "a👍b", " 👍 ", "👍👍👍", "❤️", "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "\u200f\u200eabc\u202e", "\ufeffBOM", "a\u200bb", "a\u00adb", "zero\u200dwidth", "\x00", "a\x00b", "\x00\x00", "\x04\x06\x13\x14\x16\x1d", "a\x04b", " \x04a",
    "the\x04the", "\x7f", "\x1b[31mred\x1b[0m",
    "http://example.com/a?b=c&d=%20#e", "user.name+tag@example.co.uk", "C:\\Windows\\System32", "/usr/share/doc/", "{\"a\": [1, 2, null]}",
    "<html lang=\"en\">", "if (x) {\n    return y;\n}\n", "def f(x):\n\treturn x\n", "for i in range(10):\n        print(i)\n", "# Title\n\n* item\n* item\n",
    "a" * 100, "A" * 100, " " * 100, "\n" * 100, "\t" * 50, "-" * 80, "=" * 80, "0" * 60, "ab" * 60, "哈" * 40, "😀" * 20, "ha" * 50, " a" * 50, "a " * 50,
    "the " * 40, "\n\n\n   \n\n", "   \n   \n   ", " \n \n \n", "x" * 47, "x" * 48, "x" * 49, "x" * 50, "é" * 24, "é" * 25, "_" * 48, "_" * 49,
    "qwrtpsdfghjklzxcvbnm" * 4, "aeiou" * 20, "\u3000\u3000\u3000a", "\xa0\xa0a", "\xa0a", "a\xa0b", "a\x85b", "a\u2028b", "a \u2003 b", "a\u180eb", "\u180e",
]


def main():
    draw = random.Random(7)
    cases = list(FIXED)
    for s in SPACES:
        for x in (LETTERS[0], NUMBERS[0], OTHERS[1], OTHERS[0], ""):
            cases += [s + x, x + s, x + s + x, " " + s + x, s + " " + x, s + s + x]
    for e in ENDINGS:
        for x in ("", "a", "1", " ", "!", "x ", "\n"):
            cases += [x + e, x + e + "a", x + e + " b"]
    for kind in (LETTERS, NUMBERS, OTHERS):
        for x in kind:
            cases += [x, " " + x, "a" + x, "a " + x + "b", x + "1", x + "'s"]
    cases += SPECIALS + ["a" + s + "b" for s in SPECIALS] + [" " + s + " " for s in SPECIALS] + ["1" + s + "\n" for s in SPECIALS]
    pools = [SPACES, LETTERS, NUMBERS, OTHERS, ENDINGS, WORDS, WORDS, SPACES, SPECIALS]
    size = sum(len(json.dumps(c, ensure_ascii=False).encode()) + 1 for c in cases)
    while size < 200_000:
        if draw.random() < 0.05:
            case = draw.choice(WORDS + LETTERS + OTHERS + [" ", "\n", "0"]) * draw.randrange(2, 300)
        else:
            weights = [draw.random() ** 3 for _ in pools]
            case = "".join(draw.choice(draw.choices(pools, weights)[0]) for _ in range(draw.randrange(1, 40)))
        cases.append(case)
        size += len(json.dumps(case, ensure_ascii=False).encode()) + 1
    with open(HERE / "hard_cases.jsonl", "w", encoding="utf-8", newline="\n") as f:
        for case in cases:
            f.write(json.dumps(case, ensure_ascii=False) + "\n")
    print(len(cases), "cases,", size, "bytes")


main()
