#ifndef LONGSPAN_TESTS_GOLDEN_TOKENIZER_CORPUS_H
#define LONGSPAN_TESTS_GOLDEN_TOKENIZER_CORPUS_H

/*
 * Mixed text from a seed, the same on every machine: prose, code, numbers, many scripts, combining marks, emoji, white space, addresses,
 * repetitions, arbitrary code points. Shared by the test and by corpus_tool.c, which hands it to make_digests.py.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/rng.h"

enum { CORPUS_BYTES = 5 * 1000 * 1000, CORPUS_CHUNK = 4096, CORPUS_SEED = 20240917 };

struct corpus {
    struct rng rng;
    char *out;
    size_t n, cap;
};

static inline void corpus_put(struct corpus *c, const char *text, size_t bytes)
{
    if (bytes <= c->cap - c->n) { /* what does not fit whole is left out, so that no character is cut */
        memcpy(c->out + c->n, text, bytes);
        c->n += bytes;
    }
}

static inline void corpus_text(struct corpus *c, const char *text)
{
    corpus_put(c, text, strlen(text));
}

static inline void corpus_char(struct corpus *c, uint32_t point)
{
    char s[4];
    if (point < 0x80) {
        s[0] = (char)point;
        corpus_put(c, s, 1);
    } else if (point < 0x800) {
        s[0] = (char)(0xC0 | point >> 6);
        s[1] = (char)(0x80 | (point & 63));
        corpus_put(c, s, 2);
    } else if (point < 0x10000) {
        s[0] = (char)(0xE0 | point >> 12);
        s[1] = (char)(0x80 | (point >> 6 & 63));
        s[2] = (char)(0x80 | (point & 63));
        corpus_put(c, s, 3);
    } else {
        s[0] = (char)(0xF0 | point >> 18);
        s[1] = (char)(0x80 | (point >> 12 & 63));
        s[2] = (char)(0x80 | (point >> 6 & 63));
        s[3] = (char)(0x80 | (point & 63));
        corpus_put(c, s, 4);
    }
}

#define CORPUS_PICK(c, list) (list)[rng_below(&(c)->rng, (uint32_t)(sizeof(list) / sizeof((list)[0])))]

static inline uint32_t corpus_below(struct corpus *c, uint32_t n)
{
    return rng_below(&c->rng, n);
}

static inline void corpus_word(struct corpus *c)
{
    static const char *const words[] = {
        "the",
        "of",
        "and",
        "to",
        "in",
        "a",
        "is",
        "that",
        "for",
        "it",
        "as",
        "was",
        "with",
        "be",
        "by",
        "on",
        "not",
        "he",
        "his",
        "but",
        "at",
        "are",
        "this",
        "have",
        "from",
        "or",
        "had",
        "an",
        "they",
        "which",
        "one",
        "you",
        "were",
        "all",
        "her",
        "she",
        "there",
        "would",
        "their",
        "we",
        "him",
        "been",
        "has",
        "when",
        "who",
        "will",
        "no",
        "more",
        "if",
        "out",
        "so",
        "up",
        "said",
        "what",
        "its",
        "about",
        "than",
        "into",
        "them",
        "can",
        "only",
        "other",
        "time",
        "new",
        "some",
        "could",
        "these",
        "two",
        "may",
        "first",
        "then",
        "do",
        "any",
        "like",
        "my",
        "now",
        "over",
        "such",
        "our",
        "man",
        "me",
        "even",
        "most",
        "made",
        "after",
        "also",
        "well",
        "must",
        "before",
        "back",
        "through",
        "years",
        "where",
        "much",
        "your",
        "way",
        "down",
        "should",
        "because",
        "long",
        "each",
        "just",
        "state",
        "those",
        "people",
        "too",
        "mr",
        "how",
        "little",
        "world",
        "good",
        "make",
        "very",
        "year",
        "still",
        "see",
        "own",
        "work",
        "men",
        "day",
        "get",
        "here",
        "old",
        "between",
        "both",
        "life",
        "being",
        "under",
        "three",
        "never",
        "know",
        "same",
        "last",
        "another",
        "while",
        "us",
        "off",
        "might",
        "great",
        "go",
        "come",
        "since",
        "against",
        "right",
        "came",
        "take",
        "used",
        "himself",
        "few",
        "house",
        "use",
        "place",
        "during",
        "high",
        "without",
        "again",
        "home",
        "around",
        "small",
        "however",
        "found",
        "part",
        "government",
        "information",
        "development",
        "international",
        "characteristics",
        "responsibility",
        "understanding",
        "photosynthesis",
        "electromagnetic",
        "constitutional",
        "mathematics",
        "neighbourhood",
        "incomprehensible",
        "antidisestablishmentarianism",
        "river",
        "mountain",
        "winter",
        "language",
        "memory",
        "attention",
        "transformer",
        "sequence",
        "cluster",
        "worker",
        "coordinator",
        "license",
        "software",
        "warranty",
        "copyright",
        "distribution",
        "machine",
        "learning",
        "quantum",
        "protein",
        "molecule",
        "history",
    };
    static const char *const endings[] = { "'s", "'t",  "'re", "'ve",           "'m", "'ll", "'d",
                                           "'S", "'LL", "n't", "\xE2\x80\x99s", "'" };
    char word[32];
    const char *w = CORPUS_PICK(c, words);
    const size_t n = strlen(w);
    const uint32_t how = corpus_below(c, 24);
    memcpy(word, w, n);
    for (size_t i = 0; i < n; i++) {
        if (how == 0 || (how <= 3 && i == 0))
            word[i] = (char)(word[i] - 32);
    }
    corpus_put(c, word, n);
    if (how == 4)
        corpus_text(c, CORPUS_PICK(c, endings));
}

static inline void corpus_prose(struct corpus *c)
{
    static const char *const marks[] = { ".",    ",",  ", ", ". ",  "; ",  ": ",  "! ",  "? ", " - ", "\xE2\x80\x94",
                                         "... ", " (", ") ", "\" ", " \"", ".\n", "\n\n" };
    for (uint32_t n = 10 + corpus_below(c, 80); n > 0; n--) {
        corpus_word(c);
        if (corpus_below(c, 8) == 0)
            corpus_text(c, CORPUS_PICK(c, marks));
        else
            corpus_text(c, " ");
    }
}

static inline void corpus_syllables(struct corpus *c)
{
    static const char consonants[] = "bcdfghjklmnpqrstvwxz", vowels[] = "aeiouy";
    for (uint32_t n = 5 + corpus_below(c, 30); n > 0; n--) {
        for (uint32_t k = 1 + corpus_below(c, 6); k > 0; k--) {
            const uint32_t upper = corpus_below(c, 10) == 0 ? 32 : 0;
            corpus_char(c, (uint32_t)consonants[corpus_below(c, 20)] - upper);
            corpus_char(c, (uint32_t)vowels[corpus_below(c, 6)]);
            if (corpus_below(c, 3) == 0)
                corpus_char(c, (uint32_t)consonants[corpus_below(c, 20)]);
        }
        corpus_text(c, corpus_below(c, 9) == 0 ? "\n" : " ");
    }
}

static inline void corpus_digits(struct corpus *c, uint32_t n)
{
    while (n-- > 0)
        corpus_char(c, '0' + corpus_below(c, 10));
}

static inline void corpus_code(struct corpus *c)
{
    static const char *const parts[] = {
        "if (",
        ") {\n",
        "}\n",
        "for (int i = 0; i < n; i++)",
        "return ",
        ";\n",
        " = ",
        " == ",
        " != ",
        " += ",
        "->",
        "::",
        "()",
        "[i]",
        "[0]",
        "#include <",
        ">\n",
        "def ",
        "self.",
        "lambda x: ",
        "import ",
        "const ",
        "static inline ",
        "struct ",
        "uint32_t ",
        "std::vector<",
        "&&",
        "||",
        "!",
        "~",
        "<<",
        ">>=",
        "/* ",
        " */",
        "// ",
        "# ",
        "\"",
        "'",
        "\\n",
        "\\",
        "${",
        "}",
        "{",
        "<div class=\"",
        "</div>",
        "SELECT * FROM ",
        " WHERE ",
        "0x",
        "NULL",
        "None",
        "nullptr",
        "@",
        "...",
        "?:",
        " % ",
        "**",
        "`",
        "\t",
        ";;",
        "$(",
        ")",
    };
    for (uint32_t lines = 3 + corpus_below(c, 10); lines > 0; lines--) {
        const uint32_t depth = corpus_below(c, 6);
        for (uint32_t k = 0; k < depth; k++)
            corpus_text(c, corpus_below(c, 4) == 0 ? "\t" : "    ");
        for (uint32_t k = 1 + corpus_below(c, 7); k > 0; k--) {
            corpus_text(c, CORPUS_PICK(c, parts));
            corpus_word(c);
            if (corpus_below(c, 3) == 0)
                corpus_text(c, "_");
            if (corpus_below(c, 5) == 0)
                corpus_digits(c, 1 + corpus_below(c, 5));
        }
        corpus_text(c, corpus_below(c, 5) == 0 ? "\r\n" : "\n");
    }
}

static inline void corpus_numbers(struct corpus *c)
{
    static const uint32_t zeros[] = { 0x660, 0x6F0, 0x966, 0x9E6, 0xE50, 0xFF10, 0x1D7CE, 0x1D7F6, 0x11066, 0x1E950 };
    static const uint32_t others[] = { 0xB2,   0xB3,   0xB9,   0xBC,   0xBD,    0x2160,  0x216B,
                                       0x2460, 0x2474, 0x3007, 0x3021, 0x10107, 0x1F100, 0x3248 };
    static const char *const joins[] = { " ", ".",        ",",   "-",  "/",  ":", " + ", "e-",
                                         "%", "\xC2\xB0", "km ", "\n", "  ", "$", "x",   "" };
    for (uint32_t n = 5 + corpus_below(c, 30); n > 0; n--) {
        const uint32_t how = corpus_below(c, 12);
        if (how == 0) {
            const uint32_t zero = CORPUS_PICK(c, zeros);
            for (uint32_t k = 1 + corpus_below(c, 6); k > 0; k--)
                corpus_char(c, zero + corpus_below(c, 10));
        } else if (how == 1) {
            corpus_char(c, CORPUS_PICK(c, others));
        } else {
            corpus_digits(c, 1 + corpus_below(c, how == 2 ? 30 : 5));
        }
        corpus_text(c, CORPUS_PICK(c, joins));
    }
}

static inline void corpus_scripts(struct corpus *c)
{
    static const uint32_t ranges[][2] = {
        { 0xC0, 0x17F },    { 0x180, 0x24F },   { 0x391, 0x3C9 },     { 0x410, 0x44F },     { 0x531, 0x586 },
        { 0x5D0, 0x5EA },   { 0x620, 0x64A },   { 0x905, 0x939 },     { 0x985, 0x9B9 },     { 0xA05, 0xA39 },
        { 0xB85, 0xBB9 },   { 0xE01, 0xE30 },   { 0xE40, 0xE4E },     { 0x1000, 0x1049 },   { 0x10D0, 0x10FA },
        { 0x1200, 0x1248 }, { 0x13A0, 0x13EF }, { 0x1780, 0x17B3 },   { 0x1820, 0x1877 },   { 0x1E00, 0x1EFF },
        { 0x1F00, 0x1F15 }, { 0x3041, 0x3096 }, { 0x30A1, 0x30FA },   { 0x4E00, 0x9FEF },   { 0x4E00, 0x62FF },
        { 0xAC00, 0xD7A3 }, { 0xFF21, 0xFF5A }, { 0x10330, 0x1034A }, { 0x1D400, 0x1D454 }, { 0x20000, 0x2A6D6 },
    };
    static const char *const joins[] = { " ",
                                         " ",
                                         " ",
                                         "",
                                         ", ",
                                         ". ",
                                         "\xE3\x80\x82",
                                         "\xE3\x80\x81",
                                         "\xD8\x8C ",
                                         "\xE0\xA5\xA4",
                                         "\n",
                                         "-",
                                         "\xC2\xBF",
                                         "\xE2\x80\xA6" };
    const uint32_t *range = ranges[corpus_below(c, sizeof ranges / sizeof ranges[0])];
    for (uint32_t n = 4 + corpus_below(c, 25); n > 0; n--) {
        for (uint32_t k = 1 + corpus_below(c, 9); k > 0; k--)
            corpus_char(c, range[0] + corpus_below(c, range[1] - range[0] + 1));
        corpus_text(c, CORPUS_PICK(c, joins));
        if (corpus_below(c, 12) == 0)
            range = ranges[corpus_below(c, sizeof ranges / sizeof ranges[0])];
    }
}

static inline void corpus_marks(struct corpus *c)
{
    static const uint32_t marks[] = { 0x300, 0x301, 0x302, 0x303, 0x308, 0x30A, 0x327, 0x328,  0x338, 0x36F,
                                      0x591, 0x5B0, 0x64B, 0x651, 0x93C, 0x94D, 0xE31, 0x20D0, 0xFE0F };
    for (uint32_t n = 5 + corpus_below(c, 30); n > 0; n--) {
        corpus_char(c, 'a' + corpus_below(c, 26));
        for (uint32_t k = corpus_below(c, 4); k > 0; k--)
            corpus_char(c, CORPUS_PICK(c, marks));
        if (corpus_below(c, 5) == 0)
            corpus_text(c, " ");
    }
}

static inline void corpus_emoji(struct corpus *c)
{
    static const uint32_t people[] = { 0x1F468, 0x1F469, 0x1F467, 0x1F466, 0x1F9D1 };
    static const uint32_t things[] = { 0x2764, 0x1F680, 0x1F4BB, 0x1F52C, 0x1F3A8, 0x1F692, 0x2695, 0x2708 };
    for (uint32_t n = 2 + corpus_below(c, 15); n > 0; n--) {
        const uint32_t how = corpus_below(c, 6);
        if (how == 0) { /* a family */
            for (uint32_t k = 1 + corpus_below(c, 4); k > 0; k--) {
                corpus_char(c, CORPUS_PICK(c, people));
                corpus_char(c, 0x200D);
            }
            corpus_char(c, CORPUS_PICK(c, people));
        } else if (how == 1) { /* skin, trade */
            corpus_char(c, CORPUS_PICK(c, people));
            corpus_char(c, 0x1F3FB + corpus_below(c, 5));
            corpus_char(c, 0x200D);
            corpus_char(c, CORPUS_PICK(c, things));
            corpus_char(c, 0xFE0F);
        } else if (how == 2) { /* a flag */
            corpus_char(c, 0x1F1E6 + corpus_below(c, 26));
            corpus_char(c, 0x1F1E6 + corpus_below(c, 26));
        } else if (how == 3) { /* a keycap */
            corpus_char(c, '0' + corpus_below(c, 10));
            corpus_char(c, 0xFE0F);
            corpus_char(c, 0x20E3);
        } else {
            corpus_char(c, 0x1F600 + corpus_below(c, 0x50));
        }
        if (corpus_below(c, 3) == 0)
            corpus_word(c);
        if (corpus_below(c, 3) == 0)
            corpus_text(c, " ");
    }
}

static inline void corpus_spaces(struct corpus *c)
{
    static const uint32_t spaces[] = { ' ',    ' ',    ' ',    ' ',    '\t',   '\n',   '\n',   '\r',
                                       0xB,    0xC,    0x85,   0xA0,   0x1680, 0x180E, 0x2003, 0x200B,
                                       0x2028, 0x2029, 0x202F, 0x205F, 0x3000, 0xFEFF, 0x1C };
    for (uint32_t n = 3 + corpus_below(c, 12); n > 0; n--) {
        const uint32_t space = CORPUS_PICK(c, spaces);
        for (uint32_t k = 1 + corpus_below(c, corpus_below(c, 8) == 0 ? 120 : 6); k > 0; k--)
            corpus_char(c, corpus_below(c, 6) == 0 ? CORPUS_PICK(c, spaces) : space);
        if (corpus_below(c, 4) != 0)
            corpus_word(c);
        if (corpus_below(c, 6) == 0)
            corpus_text(c, "\r\n\r\n");
    }
}

static inline void corpus_addresses(struct corpus *c)
{
    static const char *const parts[] = {
        "https://", "http://www.", "ftp://",  ".com/",     ".org",        "/",    "?q=",   "&page=", "#",
        "%20",      "@",           "mailto:", ".html",     "/usr/share/", "C:\\", "\\",    "{\"",    "\": ",
        "\", \"",   "[",           "]}",      "<a href='", "'>",          "~/",   ":8080", "::1",    "192.168."
    };
    for (uint32_t n = 5 + corpus_below(c, 30); n > 0; n--) {
        corpus_text(c, CORPUS_PICK(c, parts));
        if (corpus_below(c, 2) == 0)
            corpus_word(c);
        if (corpus_below(c, 4) == 0)
            corpus_digits(c, 1 + corpus_below(c, 4));
        if (corpus_below(c, 8) == 0)
            corpus_text(c, " ");
    }
}

static inline void corpus_punctuation(struct corpus *c)
{
    static const char ascii[] = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";
    static const uint32_t wide[] = { 0xAB,   0xBB,   0x2018, 0x2019, 0x201C, 0x201D, 0x2013, 0x2026,
                                     0x20AC, 0x2192, 0x2264, 0x2500, 0x25A0, 0x3001, 0x300C, 0xFF01 };
    for (uint32_t n = 10 + corpus_below(c, 60); n > 0; n--) {
        const uint32_t how = corpus_below(c, 12);
        if (how == 0)
            corpus_text(c, " ");
        else if (how == 1)
            corpus_char(c, CORPUS_PICK(c, wide));
        else if (how == 2)
            corpus_word(c);
        else if (how == 3)
            corpus_text(c, "\n");
        else
            corpus_char(c, (uint32_t)ascii[corpus_below(c, sizeof ascii - 1)]);
    }
}

static inline void corpus_repeats(struct corpus *c)
{
    static const char *const units[] = { "a",   "ha",       "-",    "=",    "=-",           ".",
                                         "0",   "abc",      "the ", " the", "\xE5\x93\x88", "\xF0\x9F\x98\x80",
                                         "\n",  "\t",       "xX",   "'s",   "1,",           "_",
                                         "lol", "\xD0\xB0", "<|",   "A" };
    const char *unit = CORPUS_PICK(c, units);
    for (uint32_t n = 3 + corpus_below(c, corpus_below(c, 4) == 0 ? 400 : 30); n > 0; n--)
        corpus_text(c, unit);
    corpus_text(c, " ");
}

static inline void corpus_any(struct corpus *c)
{
    for (uint32_t n = 5 + corpus_below(c, 30); n > 0; n--) {
        const uint32_t top = CORPUS_PICK(c, ((const uint32_t[]){ 0x80, 0x800, 0x3000, 0x10000, 0x20000, 0x110000 }));
        const uint32_t point = corpus_below(c, top);
        if (point < 0xD800 || point > 0xDFFF)
            corpus_char(c, point);
    }
}

static inline void corpus_specials(struct corpus *c)
{
    static const char *const names[] = { "<|im_start|>", "<|im_end|>", "<|endoftext|>",  "<repo_name>", "<filename>",
                                         "<|im_",        "|>",         "<empty_output>", "<jupyter_",   "<|im_start|",
                                         " <|im_end|> " };
    for (uint32_t n = 1 + corpus_below(c, 6); n > 0; n--) {
        corpus_text(c, CORPUS_PICK(c, names));
        if (corpus_below(c, 2) == 0)
            corpus_word(c);
    }
}

/* Fills out with up to `bytes` bytes of valid UTF-8; returns how many. */
static inline size_t corpus_make(uint64_t seed, char *out, size_t bytes)
{
    static const struct {
        void (*add)(struct corpus *c);
        uint32_t below; /* of 64 */
    } kinds[] = {
        { corpus_any, 1 },      { corpus_specials, 2 },   { corpus_syllables, 6 },    { corpus_code, 13 },
        { corpus_numbers, 16 }, { corpus_scripts, 22 },   { corpus_marks, 24 },       { corpus_emoji, 27 },
        { corpus_spaces, 31 },  { corpus_addresses, 34 }, { corpus_punctuation, 37 }, { corpus_repeats, 39 },
        { corpus_prose, 64 },
    };
    struct corpus c = { .rng = { .seed = seed }, .out = out, .cap = bytes };
    while (c.cap - c.n > 64) {
        const uint32_t draw = corpus_below(&c, 64);
        size_t kind = 0;
        while (draw >= kinds[kind].below)
            kind++;
        kinds[kind].add(&c);
    }
    return c.n;
}

/* Where the chunk that begins at `from` ends: CORPUS_CHUNK bytes on, or up to three less so as not to cut a character. */
static inline size_t corpus_chunk_end(const char *text, size_t n, size_t from)
{
    if (n - from <= CORPUS_CHUNK)
        return n;
    size_t end = from + CORPUS_CHUNK;
    while (((unsigned char)text[end] & 0xC0) == 0x80)
        end--;
    return end;
}

#endif
