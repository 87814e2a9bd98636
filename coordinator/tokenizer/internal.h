#ifndef LONGSPAN_COORDINATOR_TOKENIZER_INTERNAL_H
#define LONGSPAN_COORDINATOR_TOKENIZER_INTERNAL_H

/* What the files of this folder share, and how tests make a tokenizer without a model. */

#include <time.h>

#include "coordinator/tokenizer/added.h"
#include "coordinator/tokenizer/bpe.h"
#include "coordinator/tokenizer/jinja/jinja.h"
#include "coordinator/tokenizer/rules.h"
#include "coordinator/tokenizer/split.h"
#include "coordinator/tokenizer/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

struct token_text {
    const uint8_t *bytes;
    uint32_t n;
};

struct tokenizer {
    const struct model_vocab *vocab;
    struct bpe *bpe;           /* NULL: bytes */
    struct splitter *splitter; /* NULL: bytes, SentencePiece */
    struct token_rules rules;  /* but its splitter */
    struct added *added;
    struct token_text *texts; /* [n_tokens] what a token puts into a text; control tokens: nothing */
    uint8_t *text_bytes;
    size_t token_bytes_max;
    int32_t bos;
    /* of chats: */
    struct jinja_template *chat; /* NULL: bytes, or chat_error */
    char *own_template;          /* instead of the vocabulary's; NULL: none */
    struct error chat_error;
    char *bos_text, *eos_text; /* the template's bos_token and eos_token, or NULL */
    struct tm now;
    bool has_now;
};

/* tokenizer_new for a vocabulary (borrowed) that comes from elsewhere. bos: -1: none. seed: of hash tables. */
enum status tokenizer_build(const struct model_vocab *v, int32_t bos, uint64_t seed, struct tokenizer **tokenizer_out,
                            struct error *err);

/* Appends the ids of text to run, as tokenizer_encode. first: it is the start of the whole text. */
enum status tokenizer_append(const struct tokenizer *t, const uint8_t *text, size_t bytes, bool specials, bool first,
                             struct bpe_run *run);

/* Parses the template of t->vocab and fills in the fields of chats; a template that is not supported is no error here. ST_NO_MEMORY. */
enum status chat_init(struct tokenizer *t);
void chat_deinit(struct tokenizer *t);

#ifdef __cplusplus
}
#endif
#endif
