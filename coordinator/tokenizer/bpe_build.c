/* From a vocabulary to the tables that encode: merges by pair, bytes and characters by id, pieces that are one token. */
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"
#include "coordinator/tokenizer/bpe_internal.h"
#include "coordinator/tokenizer/unicode.h"

/* ---- the byte-level alphabet ---- */

/* Bytes that stand for themselves; the others, in order, are U+0100 and up. */
static bool shows_itself(uint32_t byte)
{
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

static uint32_t alphabet_point(uint32_t byte)
{
    if (shows_itself(byte))
        return byte;
    return byte <= 32 ? 256 + byte : byte <= 160 ? 256 + 33 + (byte - 127) : 256 + 67;
}

/* -1: not of the alphabet */
static int alphabet_byte(uint32_t point)
{
    if (point < 256)
        return shows_itself(point) ? (int)point : -1;
    if (point < 256 + 33)
        return (int)(point - 256);
    if (point < 256 + 67)
        return (int)(point - 256 - 33 + 127);
    return point == 256 + 67 ? 173 : -1;
}

static bool alphabet_decode(const char *text, size_t bytes, uint8_t *out, size_t *n_out)
{
    const uint8_t *p = (const uint8_t *)text, *end = p + bytes;
    size_t n = 0;
    while (p < end) {
        uint32_t point;
        p += utf8_next(p, end, &point);
        const int byte = point == UTF8_BAD ? -1 : alphabet_byte(point);
        if (byte < 0)
            return false;
        out[n++] = (uint8_t)byte;
    }
    *n_out = n;
    return true;
}

size_t bpe_token_bytes(const char *text, size_t bytes, uint8_t *out)
{
    size_t n;
    if (alphabet_decode(text, bytes, out, &n))
        return n;
    memcpy(out, text, bytes);
    return bytes;
}

int bpe_byte_of_name(const char *text, size_t bytes)
{
    static const char digits[] = "0123456789ABCDEF";
    const char *high, *low;
    if (bytes != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>' || !text[3] || !text[4])
        return -1;
    high = strchr(digits, text[3] >= 'a' && text[3] <= 'f' ? text[3] - 32 : text[3]);
    low = strchr(digits, text[4] >= 'a' && text[4] <= 'f' ? text[4] - 32 : text[4]);
    return high && low ? (int)(high - digits) << 4 | (int)(low - digits) : -1;
}

/* ---- building ---- */

static bool is_word(const struct model_token *token)
{
    return token->type == MODEL_TOKEN_NORMAL || token->type == MODEL_TOKEN_USER;
}

static enum status check_tokens(struct bpe *b, const struct model_vocab *v, struct error *err)
{
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        if (v->tokens[i].bytes > BPE_TOKEN_BYTES_MAX)
            return error_set(err, ST_CORRUPT, "vocabulary: token %u has %u bytes; the most is %d", i,
                             v->tokens[i].bytes, BPE_TOKEN_BYTES_MAX);
        if (v->tokens[i].bytes > b->token_bytes_max)
            b->token_bytes_max = v->tokens[i].bytes;
    }
    return ST_OK;
}

/* Texts to ids; where a text is there twice a normal token wins, and then the later one. */
static enum status names_init(struct text_map *names, const struct model_vocab *v, uint64_t seed)
{
    const enum status st = text_map_init(names, v->n_tokens, seed);
    if (st)
        return st;
    for (int normal = 0; normal < 2; normal++) {
        for (uint32_t i = 0; i < v->n_tokens; i++) {
            if ((v->tokens[i].type == MODEL_TOKEN_NORMAL) == normal)
                text_map_put(names, v->tokens[i].text, v->tokens[i].bytes, (int32_t)i);
        }
    }
    return ST_OK;
}

static void bytes_init(struct bpe *b, const struct model_vocab *v, const struct text_map *names)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint8_t text[4];
        const int32_t id = text_map_get(names, text, utf8_put(alphabet_point(byte), text));
        b->byte_id[byte] = id >= 0 && is_word(&v->tokens[id]) ? id : -1;
    }
}

static enum status merges_alloc(struct bpe *b, uint32_t n)
{
    size_t cap = 16;
    while (cap / 2 < n)
        cap *= 2;
    b->merges = malloc(cap * sizeof *b->merges);
    if (!b->merges)
        return ST_NO_MEMORY;
    b->merges_mask = cap - 1;
    for (size_t i = 0; i < cap; i++)
        b->merges[i].rank = BPE_NO_RANK;
    return ST_OK;
}

static enum status merge_add(struct bpe *b, const struct model_vocab *v, const struct text_map *names, uint32_t rank,
                             uint8_t *joined, struct error *err)
{
    const struct model_merge *m = &v->merges[rank];
    const size_t bytes = (size_t)m->left_bytes + m->right_bytes;
    if (bytes > BPE_TOKEN_BYTES_MAX)
        return error_set(err, ST_CORRUPT, "merges: merge %u makes a token of %zu bytes; the most is %d", rank, bytes,
                         BPE_TOKEN_BYTES_MAX);
    memcpy(joined, m->left, m->left_bytes);
    memcpy(joined + m->left_bytes, m->right, m->right_bytes);
    const int32_t left = text_map_get(names, joined, m->left_bytes);
    const int32_t right = text_map_get(names, joined + m->left_bytes, m->right_bytes);
    const int32_t made = text_map_get(names, joined, bytes);
    if (left < 0 || right < 0 || made < 0)
        return error_set(err, ST_CORRUPT, "merges: merge %u (\"%.*s\" and \"%.*s\"): %s is not in the vocabulary", rank,
                         (int)(m->left_bytes < 60 ? m->left_bytes : 60), m->left,
                         (int)(m->right_bytes < 60 ? m->right_bytes : 60), m->right,
                         left < 0    ? "the left"
                         : right < 0 ? "the right"
                                     : "what it makes");
    if (!is_word(&v->tokens[made]))
        return ST_OK;
    *merge_slot_of(b, (uint32_t)left, (uint32_t)right) =
        (struct merge_slot){ .left = (uint32_t)left, .right = (uint32_t)right, .rank = rank, .made = (uint32_t)made };
    return ST_OK;
}

static enum status merges_init(struct bpe *b, const struct model_vocab *v, const struct text_map *names,
                               struct error *err)
{
    enum status st = merges_alloc(b, v->n_merges);
    uint8_t *joined = malloc(BPE_TOKEN_BYTES_MAX);
    if (!joined)
        st = ST_NO_MEMORY;
    for (uint32_t i = 0; !st && i < v->n_merges; i++)
        st = merge_add(b, v, names, i, joined, err);
    free(joined);
    return st;
}

/*
 * Most pieces of a text are one token in the end. Which token is a function of the piece alone, so it is worked out once for every token's
 * bytes, and encoding mostly looks up.
 */
static enum status whole_add(struct bpe *b, struct bpe_run *run, const struct model_vocab *v, int32_t id,
                             const uint8_t *bytes, size_t n)
{
    if (v->ignore_merges) {
        text_map_put(&b->whole, bytes, (uint32_t)n, id);
        return ST_OK;
    }
    run->n_ids = 0;
    const enum status st = bpe_encode(b, run, bytes, n);
    if (!st && run->n_ids == 1)
        text_map_put(&b->whole, bytes, (uint32_t)n, run->ids[0]);
    return st;
}

static enum status whole_init(struct bpe *b, const struct model_vocab *v)
{
    size_t total = 1;
    for (uint32_t i = 0; i < v->n_tokens; i++)
        total += v->tokens[i].bytes;
    b->whole_bytes = malloc(total);
    if (!b->whole_bytes)
        return ST_NO_MEMORY;
    enum status st = text_map_init(&b->whole, v->n_tokens, b->seed);
    struct bpe_run run = { 0 };
    uint8_t *at = b->whole_bytes;
    for (uint32_t i = 0; !st && i < v->n_tokens; i++) {
        const struct model_token *token = &v->tokens[i];
        size_t n;
        if (token->type != MODEL_TOKEN_NORMAL || !alphabet_decode(token->text, token->bytes, at, &n) || n == 0)
            continue;
        st = whole_add(b, &run, v, (int32_t)i, at, n);
        at += n;
    }
    bpe_run_deinit(&run);
    return st;
}

/* ---- of characters ---- */

static enum status characters_init(struct bpe *b, const struct model_vocab *v, struct error *err)
{
    size_t n = 0, total = 1;
    for (uint32_t byte = 0; byte < 256; byte++)
        b->byte_id[byte] = -1;
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        const int byte =
            v->tokens[i].type == MODEL_TOKEN_BYTE ? bpe_byte_of_name(v->tokens[i].text, v->tokens[i].bytes) : -1;
        if (byte >= 0)
            b->byte_id[byte] = (int32_t)i;
        n += v->tokens[i].bytes <= 4;
        total += v->tokens[i].bytes <= 4 ? v->tokens[i].bytes : 0;
    }
    if (bpe_missing_bytes(b) > 0)
        return error_set(err, ST_UNSUPPORTED, "vocabulary: %u bytes have no token (<0x00> to <0xFF>)",
                         bpe_missing_bytes(b));
    b->whole_bytes = malloc(total);
    if (!b->whole_bytes)
        return ST_NO_MEMORY;
    const enum status st = text_map_init(&b->chars, n, b->seed);
    uint8_t *at = b->whole_bytes;
    for (uint32_t i = 0; !st && i < v->n_tokens; i++) {
        const struct model_token *token = &v->tokens[i];
        const uint8_t *text = (const uint8_t *)token->text;
        uint32_t point;
        if (!is_word(token) || token->bytes == 0 || token->bytes > 4 ||
            utf8_next(text, text + token->bytes, &point) != token->bytes || point == UTF8_BAD)
            continue;
        memcpy(at, text, token->bytes);
        text_map_put(&b->chars, at, token->bytes, (int32_t)i);
        at += token->bytes;
    }
    return st;
}

struct scored {
    float score;
    uint32_t id;
};

static int by_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    return x->score != y->score ? (x->score < y->score ? 1 : -1) : (x->id > y->id) - (x->id < y->id);
}

/* All ways to cut a token in two tokens; with `rank` they are entered, without they are counted. */
static uint32_t splits_of(struct bpe *b, const struct model_vocab *v, const struct text_map *names, uint32_t id,
                          const uint32_t *rank)
{
    const uint8_t *text = (const uint8_t *)v->tokens[id].text;
    const uint32_t bytes = v->tokens[id].bytes;
    uint32_t n = 0;
    for (uint32_t at = 1; at < bytes; at++) {
        if ((text[at] & 0xC0) == 0x80)
            continue;
        const int32_t left = text_map_get(names, text, at), right = text_map_get(names, text + at, bytes - at);
        if (left < 0 || right < 0 || !is_word(&v->tokens[left]) || !is_word(&v->tokens[right]))
            continue;
        n++;
        if (rank)
            *merge_slot_of(b, (uint32_t)left, (uint32_t)right) =
                (struct merge_slot){ .left = (uint32_t)left, .right = (uint32_t)right, .rank = *rank, .made = id };
    }
    return n;
}

/* Tokens of one score have one rank, so that of their places the leftmost comes first. */
static enum status scores_init(struct bpe *b, const struct model_vocab *v, const struct text_map *names,
                               struct error *err)
{
    struct scored *order = malloc((v->n_tokens + 1) * sizeof *order);
    uint32_t n = 0, rank = 0;
    uint64_t n_splits = 0;
    enum status st = order ? ST_OK : ST_NO_MEMORY;
    for (uint32_t i = 0; !st && i < v->n_tokens; i++) {
        const struct model_token *token = &v->tokens[i];
        if (!is_word(token) || text_map_get(names, (const uint8_t *)token->text, token->bytes) != (int32_t)i)
            continue;
        if (token->bytes > BPE_SCORED_BYTES_MAX)
            st = error_set(err, ST_UNSUPPORTED, "vocabulary: token %u has %u bytes; with scores the most is %d", i,
                           token->bytes, BPE_SCORED_BYTES_MAX);
        else if (v->scores[i] != v->scores[i])
            st = error_set(err, ST_CORRUPT, "vocabulary: the score of token %u is not a number", i);
        else
            order[n++] = (struct scored){ v->scores[i], i };
        n_splits += st ? 0 : splits_of(b, v, names, i, NULL);
    }
    if (!st)
        st = n_splits < UINT32_MAX / 4 ? merges_alloc(b, (uint32_t)n_splits) : ST_TOO_LARGE;
    if (!st)
        qsort(order, n, sizeof *order, by_score);
    for (uint32_t i = 0; !st && i < n; i++) {
        rank += i > 0 && order[i].score != order[i - 1].score;
        splits_of(b, v, names, order[i].id, &rank);
    }
    free(order);
    return st;
}

static enum status symbols_init(struct bpe *b, const struct model_vocab *v, const struct text_map *names,
                                struct error *err)
{
    enum status st;
    if (b->characters) {
        st = characters_init(b, v, err);
        if (!st)
            st = v->scores ? scores_init(b, v, names, err) : merges_init(b, v, names, err);
        return st;
    }
    bytes_init(b, v, names);
    st = merges_init(b, v, names, err);
    return st ? st : whole_init(b, v);
}

enum status bpe_new(const struct model_vocab *v, uint64_t seed, struct bpe **bpe_out, struct error *err)
{
    struct text_map names = { 0 };
    struct bpe *b = calloc(1, sizeof *b);
    if (!b)
        return ST_NO_MEMORY;
    b->seed = mix64(seed);
    b->token_bytes_max = 1;
    b->characters = v->kind == MODEL_VOCAB_SENTENCEPIECE;
    enum status st = check_tokens(b, v, err);
    if (!st)
        st = names_init(&names, v, b->seed);
    if (!st)
        st = symbols_init(b, v, &names, err);
    text_map_deinit(&names);
    if (st) {
        bpe_free(b);
        return st;
    }
    *bpe_out = b;
    return ST_OK;
}

void bpe_free(struct bpe *b)
{
    if (!b)
        return;
    free(b->merges);
    text_map_deinit(&b->chars);
    text_map_deinit(&b->whole);
    free(b->whole_bytes);
    free(b);
}

uint32_t bpe_missing_bytes(const struct bpe *b)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < 256; i++)
        n += b->byte_id[i] < 0;
    return n;
}
