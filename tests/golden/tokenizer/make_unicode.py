#!/usr/bin/env python3
"""Writes coordinator/tokenizer/unicode_classes.inc: the code points that the `tokenizers` package takes for letters, numbers and spaces.

The package itself is asked, character by character, because exactness against it is the aim and its parts follow different Unicode
versions: patterns (\\p{L}, \\p{N}, \\s) go to one library, the Digits step to another.

    python3 tests/golden/tokenizer/make_unicode.py        (needs: tokenizers; made with 0.23.3)
"""
import pathlib

from tokenizers import Regex, pre_tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[3]
POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def removed_by(pre_tokenizer):
    kept = set()
    for i in range(0, len(POINTS), 2048):
        part = POINTS[i : i + 2048]
        for _, (a, b) in pre_tokenizer.pre_tokenize_str("".join(map(chr, part))):
            kept.update(part[a:b])
    return set(POINTS) - kept


def main():
    letters, numbers, spaces = (
        removed_by(pre_tokenizers.Split(Regex(p), "removed")) for p in (r"\p{L}", r"\p{N}", r"\s")
    )
    digits = pre_tokenizers.Digits(individual_digits=True)
    numeric = {c for c in POINTS if len(digits.pre_tokenize_str("a" + chr(c) + "a")) == 3}
    assert numbers <= numeric and not (letters & numbers) and not (spaces & (letters | numeric))

    def name(c):
        if c in letters:
            return "LETTER"
        if c in numbers:
            return "NUMBER"
        if c in spaces:
            return "SPACE"
        return "DIGIT" if c in numeric else None

    ranges = []
    for c in range(0x80, 0x110000):
        n = name(c)
        if n is None:
            continue
        if ranges and ranges[-1][2] == n and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c, n])
    cells = [f"{{ 0x{a:x}, 0x{b:x}, TEXT_{n} }}," for a, b, n in ranges]
    lines = ["/* Made by tests/golden/tokenizer/make_unicode.py: { first, last, class }, ascending; code points from U+0080. */"]
    lines += [" ".join(cells[i : i + 4]) for i in range(0, len(cells), 4)]
    (ROOT / "coordinator/tokenizer/unicode_classes.inc").write_text("\n".join(lines) + "\n")
    print(len(ranges), "ranges")


main()
