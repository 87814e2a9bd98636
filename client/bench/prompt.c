#include "client/bench/prompt.h"

#include <string.h>

#include <event2/buffer.h>

#include "common/rng.h"

enum { OF_BLOCK = 0x626c6f636b, OF_PREFIX = 0x707265666978, OF_REQUEST = 0x726571, PIECE = 4096, ITEM_MAX = 24 };

/* Common words that most tokenizers know as one token after a space; what a server's own tokenizer thinks of them is asked at start. */
const char *const prompt_words[] = {
    "the",    "of",     "and",   "to",    "in",    "is",   "that",  "for",    "was",   "on",    "are",   "with",
    "as",     "at",     "be",    "this",  "have",  "from", "or",    "one",    "had",   "by",    "but",   "not",
    "what",   "all",    "were",  "we",    "when",  "your", "can",   "said",   "there", "use",   "an",    "each",
    "which",  "she",    "do",    "how",   "their", "if",   "will",  "up",     "other", "about", "out",   "many",
    "then",   "them",   "these", "so",    "some",  "her",  "would", "make",   "like",  "him",   "into",  "time",
    "has",    "look",   "two",   "more",  "write", "go",   "see",   "number", "no",    "way",   "could", "people",
    "my",     "than",   "first", "water", "been",  "call", "who",   "its",    "now",   "find",  "long",  "down",
    "day",    "did",    "get",   "come",  "made",  "may",  "part",  "over",   "new",   "sound", "take",  "only",
    "little", "work",   "know",  "place", "year",  "live", "me",    "back",   "give",  "most",  "very",  "after",
    "thing",  "our",    "just",  "name",  "good",  "man",  "think", "say",    "great", "where", "help",  "through",
    "much",   "before", "line",  "right", "too",   "mean", "old",   "any",    "same",  "tell",  "boy",   "follow",
    NULL,
};

uint64_t prompt_at(const struct prompts *p, const struct load_request *r, uint32_t position)
{
    const uint32_t block = position / p->block_tokens;
    if (block < r->n_blocks)
        return rng_at(p->seed ^ OF_BLOCK, r->blocks[block], position % p->block_tokens);
    if (position < p->prefix_tokens)
        return rng_at(p->seed ^ OF_PREFIX, 0, position);
    return rng_at(p->seed ^ OF_REQUEST, r->index, position);
}

static uint32_t below(uint64_t bits, uint32_t n)
{
    return (uint32_t)(((bits >> 32) * n) >> 32);
}

/* Decimal digits, without a format string: prompts have tens of thousands of them, and other streams wait meanwhile. -> how many */
static size_t digits(uint32_t v, char *out)
{
    char back[10];
    size_t n = 0;
    do
        back[n++] = (char)('0' + v % 10);
    while (v /= 10);
    for (size_t i = 0; i < n; i++)
        out[i] = back[n - 1 - i];
    return n;
}

/* One token or word with what parts it from the one before. -> bytes, at most ITEM_MAX */
static size_t item(const struct prompts *p, uint64_t bits, bool first, char *out)
{
    size_t n = 0;
    if (!first)
        out[n++] = p->text ? ' ' : ',';
    if (!p->text)
        return n + digits(p->id_low + below(bits, p->id_high - p->id_low + 1), out + n);
    const char *word = p->words[below(bits, p->n_words)];
    const size_t bytes = strlen(word);
    memcpy(out + n, word, bytes);
    return n + bytes;
}

bool prompt_write(const struct prompts *p, const struct load_request *r, struct evbuffer *out)
{
    char piece[PIECE];
    size_t n = 0;
    uint32_t tokens = r->input_tokens;
    if (p->text)
        tokens = tokens > p->overhead ? tokens - p->overhead : 1;
    piece[n++] = p->text ? '"' : '[';
    for (uint32_t i = 0; i < tokens; i++) {
        if (n + ITEM_MAX > sizeof piece) {
            if (evbuffer_add(out, piece, n) < 0)
                return false;
            n = 0;
        }
        n += item(p, prompt_at(p, r, i), i == 0, piece + n);
    }
    piece[n++] = p->text ? '"' : ']';
    return evbuffer_add(out, piece, n) == 0;
}
