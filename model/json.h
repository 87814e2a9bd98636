#ifndef LONGSPAN_MODEL_JSON_H
#define LONGSPAN_MODEL_JSON_H

/* Reading JSON files of a model directory: typed values, refused by name. A null counts as absent. */

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

/* An object with its place, for errors: "config.json", "rope_scaling." */
struct json_in {
    const json_t *object;
    const char *where;  /* file */
    const char *prefix; /* of key names; "" at the top */
};

/* Parses text whose top is an object; duplicate keys, bad UTF-8 and trailing text are refused. The result is json_decref's. */
enum status json_parse_object(const char *text, size_t bytes, const char *where, json_t **root_out, struct error *err);

/* NULL: absent or null. */
const json_t *json_find(const struct json_in *in, const char *key);

/*
 * Absent: the output is left alone, *found_out (may be NULL) is false. With found_out NULL an absent key is refused.
 * json_read_f64 takes integers too.
 */
enum status json_read_u32(const struct json_in *in, const char *key, uint32_t *value_out, bool *found_out,
                          struct error *err);
enum status json_read_f64(const struct json_in *in, const char *key, double *value_out, bool *found_out,
                          struct error *err);
enum status json_read_bool(const struct json_in *in, const char *key, bool *value_out, bool *found_out,
                           struct error *err);
/* Borrowed from the object. */
enum status json_read_text(const struct json_in *in, const char *key, const char **text_out, bool *found_out,
                           struct error *err);
/* Copied, what cannot be printed replaced; out [room]. ST_CORRUPT: it is longer than room - 1 bytes. */
enum status json_read_printable(const struct json_in *in, const char *key, char *out, size_t room, struct error *err);

/* A short printable rendering of a value, for errors. Returns buffer. */
const char *json_show(char *buffer, size_t room, const json_t *value);

#ifdef __cplusplus
}
#endif
#endif
