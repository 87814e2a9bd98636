#ifndef LONGSPAN_COORDINATOR_TOKENIZER_INTERNAL_H
#define LONGSPAN_COORDINATOR_TOKENIZER_INTERNAL_H

/* What the files of this folder share, and how tests make a tokenizer without a model. */

#include "coordinator/tokenizer/added.h"
#include "coordinator/tokenizer/bpe.h"
#include "coordinator/tokenizer/split.h"
#include "coordinator/tokenizer/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

enum chat_kind { CHAT_NONE, CHAT_BYTES, CHAT_SMOLLM2, CHAT_LLAMA3, CHAT_LLAMA31 };

struct token_text {
    const uint8_t *bytes;
    uint32_t n;
};

struct tokenizer {
    const struct model_vocab *vocab;
    struct bpe *bpe;           /* NULL: bytes */
    struct splitter *splitter; /* NULL: bytes */
    struct added *added;
    struct token_text *texts; /* [n_tokens] what a token puts into a text; control tokens: nothing */
    uint8_t *text_bytes;
    size_t token_bytes_max;
    int32_t bos;
    /* of chats: */
    enum chat_kind chat;
    bool chat_always_prompts; /* the template ends with the generation prompt even if not asked */
    int32_t chat_open, chat_middle,
        chat_close;          /* the family's control tokens: before the role, after it, after the content */
    struct error chat_error; /* why chat is CHAT_NONE */
};

/* tokenizer_new for a vocabulary (borrowed) that comes from elsewhere. bos: -1: none. seed: of hash tables. */
enum status tokenizer_build(const struct model_vocab *v, int32_t bos, uint64_t seed, struct tokenizer **tokenizer_out,
                            struct error *err);

/* Appends the ids of text to run, as tokenizer_encode. */
enum status tokenizer_append(const struct tokenizer *t, const uint8_t *text, size_t bytes, bool specials,
                             struct bpe_run *run);

/* Finds out the chat family of t->vocab and fills in the fields of chats; a template that is not known is no error here. */
void chat_init(struct tokenizer *t);

/* The id of the control or user-defined token of this name; -1: none. */
int32_t tokenizer_find_control(const struct tokenizer *t, const char *name);

#ifdef __cplusplus
}
#endif
#endif
