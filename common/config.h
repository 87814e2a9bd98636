#ifndef LONGSPAN_COMMON_CONFIG_H
#define LONGSPAN_COMMON_CONFIG_H

/*
 * Settings: one row a setting, from which come the YAML key, the flag (--key), the help text, the check and the default. Values live in a plain
 * struct of the caller's; text fields are char arrays in it.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum config_type {
    CONFIG_TEXT,      /* char [size] */
    CONFIG_U32,       /* uint32_t, min .. max */
    CONFIG_BYTES,     /* uint64_t; 512, 64K, 300M, 2G, 1.5G; "auto" is 0 if min is 0 */
    CONFIG_BOOL,      /* bool; true, false; the bare flag is true */
    CONFIG_CHOICE,    /* char [size]; one of choices, separated by | */
    CONFIG_ADDRESS,   /* char [size]; host:port */
    CONFIG_ADDRESSES, /* char [size]; host:port,host:port... */
};

struct config_field {
    const char *key;   /* NULL ends the table */
    const char *value; /* default */
    enum config_type type;
    size_t offset, size;
    uint64_t min, max;
    const char *choices;
    uint32_t scope; /* caller's bits: which commands take it; 0: in files only */
    const char *help;
};

/* Writes all defaults. They must be valid: checked by the unit test. */
enum status config_defaults(const struct config_field *fields, void *values, struct error *err);
/* ST_INVALID: unknown key or bad value; err names it and what is allowed. where: "--key" or "file:line". */
enum status config_set(const struct config_field *fields, void *values, const char *key, const char *value,
                       const char *where, struct error *err);
/* A YAML mapping of keys to scalars. err names file, line and key. */
enum status config_file(const struct config_field *fields, void *values, const char *path, struct error *err);
/* The same from memory; name stands for the file in errors. */
enum status config_text(const struct config_field *fields, void *values, const char *text, size_t bytes,
                        const char *name, struct error *err);
/*
 * Takes --key value, --key=value and bare --bool from argv[*index] on; stops at the first argument that is no flag, or at "--". scope: flags outside it are refused.
 */
enum status config_flags(const struct config_field *fields, void *values, uint32_t scope, int argc, char *const *argv,
                         int *index, struct error *err);
/* One setting as text, as it could be set again. */
void config_value(const struct config_field *field, const void *values, char *text_out, size_t bytes);
/* Help lines for the flags of a scope. */
void config_help(const struct config_field *fields, uint32_t scope, FILE *out);
/* All settings as a YAML file. */
void config_print(const struct config_field *fields, const void *values, FILE *out);
const struct config_field *config_find(const struct config_field *fields, const char *key);

#ifdef __cplusplus
}
#endif
#endif
