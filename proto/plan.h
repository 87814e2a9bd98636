#ifndef LONGSPAN_PROTO_PLAN_H
#define LONGSPAN_PROTO_PLAN_H

/*
 * A plan: what the workers of one step group are told of one step; a result: what a worker says when its part is done. Plain data.
 * The same plan goes to every member, so that each knows which messages to expect from whom. State on workers is a function of position:
 * a plan may be repeated or abandoned anywhere and nothing changes.
 *
 * Words: row, block (KV_BLOCK = 64 positions), leaf (leaf_blocks blocks), home, reader: see docs/design.md. Worker ids are small integers
 * given by the coordinator, never reused within one epoch line.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    PLAN_BLOCK = 64, /* positions a block */
    PLAN_SLOTS = 64, /* slot = leaf mod PLAN_SLOTS */
    PLAN_WORKERS_MAX = 64,
    PLAN_ROWS_MAX = 1 << 16,
    PLAN_POSITIONS_MAX = 1 << 24,
    PLAN_TOP_MAX = 20,
    PLAN_VOCAB_MAX = 1 << 22, /* tokens that edits may name */
    PLAN_LABEL_MAX = 63,      /* bytes: printable ASCII without spaces */
    PLAN_DENSITY_ONE = 1000000,
};

/* A block's name: unique in the cluster's life, given by the coordinator. 0 is none. Its content id is the coordinator's business. */
typedef uint64_t kv_handle;

enum row_class { ROW_PROMPT, ROW_GENERATED };

enum plan_want {
    WANT_SAMPLE = 1, /* after the run's last row: a token, and its log-probability */
    WANT_SCORE = 2,  /* for each row: the log-probability of targets[i] */
    WANT_LOGITS = 4, /* for each row: the whole logit row */
};

struct plan_sampling {
    float temperature, top_p;
    uint32_t top_k;
    uint64_t seed;
    float min_p; /* 0: off */
};

struct plan_edit {
    uint32_t token;
    float add;
};
/*
 * Logit edits of the row after which a run samples: what kernels.h says of struct sample_edits. The coordinator makes them from the tokens it
 * knows, so a worker keeps no history. Not empty: adds, or a set. Sets are bitsets over the vocabulary of at most PLAN_VOCAB_MAX / 8 bytes.
 */
struct plan_edits {
    uint32_t n_adds, repeated_bytes, allowed_bytes;
    const struct plan_edit *adds;      /* tokens ascending; finite */
    float repetition;                  /* finite, above 0; 1 if nothing is repeated */
    const uint8_t *repeated, *allowed; /* NULL: none; all */
};

/*
 * A sequence that has rows in this plan. Workers remember tables between plans; a plan says what changed. fresh: forget what is known of
 * the sequence, table_from and reader_from are 0.
 */
struct plan_seq {
    uint64_t id;
    bool fresh;
    uint32_t table_from,
        n_table; /* handles of blocks table_from .. table_from + n_table - 1; covers every block that a row here may see */
    const kv_handle *table;
    uint32_t
        committed; /* positions before this are committed: the open rows of blocks that end there are needed no more */
    uint32_t density; /* millionths: what its sparse rows read; 0: everything, there is no selector */
    uint64_t
        cast; /* bit i: members[i] is home of sparse rows of it in this plan or will be, and has the sketches of its blocks */
    uint32_t reader_from, n_readers; /* worker that reads leaf reader_from + i; of a row's own leaf: its home */
    const uint16_t *readers;
    struct plan_sampling sampling;
    uint32_t label_bytes; /* what logs call its request; with a fresh one, and not again */
    const char *label;    /* not terminated */
};

/* Consecutive positions of one sequence with one home and one class. Runs of a sequence ascend; a run does not cross a leaf border. */
struct plan_run {
    uint32_t seq; /* index into plan.seqs */
    uint32_t pos, n_rows;
    const int32_t *tokens;  /* [n_rows]; tokens[0] may be -1: the token that the home sampled at pos - 1 */
    const int32_t *targets; /* [n_rows] if WANT_SCORE (-1: not this row), else NULL */
    uint16_t home;
    uint8_t cls;                    /* enum row_class */
    uint8_t want;                   /* enum plan_want */
    uint8_t n_top;                  /* alternatives wanted with each sampled or scored row, <= PLAN_TOP_MAX */
    const struct plan_edits *edits; /* of a run with WANT_SAMPLE; NULL: none */
};

struct plan {
    uint64_t epoch, number; /* of the group: number ascends by 1 within an epoch */
    uint32_t group;
    uint32_t leaf_blocks;
    uint32_t deadline_ms; /* a step that takes longer is abandoned */
    uint32_t n_members, n_seqs, n_runs, n_drops, n_forgets;
    const uint16_t *members; /* ascending worker ids */
    const struct plan_seq *seqs;
    const struct plan_run *runs;
    const kv_handle *
        drops; /* the receiver's own: copies that no plan from this one on reads here: free them first (those that are here) */
    const uint64_t *forgets; /* the receiver's own: sequences that have ended, or gone elsewhere */
};

struct result_top {
    uint32_t token;
    float logprob;
};

struct result_row {
    uint64_t seq;
    uint32_t pos;
    int32_t token;        /* sampled after this row, or -1 */
    float logprob;        /* of token: natural logarithm, before temperature */
    float target_logprob; /* of the run's target for this row (WANT_SCORE) */
    uint32_t n_top;
    const struct result_top *top; /* best first */
    uint32_t n_logits;            /* n_vocab if WANT_LOGITS, else 0 */
    const float *logits;
};

/* From each member, for each plan, in order. Rows whose home is the worker and that asked for something. */
struct result {
    uint64_t epoch, number;
    uint32_t group;
    uint32_t n_rows;
    const struct result_row *rows;
    uint64_t busy_us;                       /* from the start of the step's work to its end, waits for peers left out */
    uint64_t wait_us;                       /* waits for peers */
    uint64_t bytes_sent, bytes_received;    /* partials and queries of this step */
    uint64_t kv_bytes_read, kv_bytes_dense; /* by attention; had each job read by itself. density = read / dense */
};

/*
 * Wire form (protobuf, control.proto). A decoded plan or result is one allocation, freed by free(). Decoding checks every count, range and
 * cross-reference (members, homes, seq indices, run order, leaf borders, table coverage where fresh), so that a worker may trust it; the
 * field is named in err. ST_CORRUPT, ST_TOO_LARGE.
 */
enum status plan_encode(const struct plan *plan, uint8_t **bytes_out, size_t *n_out);
enum status plan_decode(const uint8_t *bytes, size_t n, struct plan **plan_out, struct error *err);
enum status result_encode(const struct result *result, uint8_t **bytes_out, size_t *n_out);
enum status result_decode(const uint8_t *bytes, size_t n, struct result **result_out, struct error *err);

#ifdef __cplusplus
}
#endif
#endif
