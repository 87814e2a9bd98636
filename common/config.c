#include "common/config.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "common/file.h"

enum { FILE_BYTES_MAX = 1 << 20 };

const struct config_field *config_find(const struct config_field *fields, const char *key)
{
    for (const struct config_field *f = fields; f->key; f++)
        if (!strcmp(f->key, key))
            return f;
    return NULL;
}

/* ---- values ---- */

static bool parse_u64(const char *text, uint64_t *out)
{
    char *end;
    if (!isdigit((unsigned char)text[0]))
        return false;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return !errno && !*end;
}

static bool parse_bytes(const char *text, uint64_t *out)
{
    static const char units[] = "KMGT";
    char *end;
    if (!isdigit((unsigned char)text[0]))
        return false;
    double v = strtod(text, &end);
    if (*end) {
        const char *unit = strchr(units, toupper((unsigned char)*end));
        if (!unit)
            return false;
        v *= (double)(1ull << (10 * (unit - units + 1)));
        end++;
        if (*end == 'i')
            end++;
        if (*end == 'B' || *end == 'b')
            end++;
        if (*end)
            return false;
    }
    if (!isfinite(v) || v >= 0x1p63)
        return false;
    *out = (uint64_t)v;
    return true;
}

static bool is_choice(const char *choices, const char *value)
{
    const size_t n = strlen(value);
    for (const char *c = choices; c; c = strchr(c, '|') ? strchr(c, '|') + 1 : NULL)
        if (n && !strncmp(c, value, n) && (c[n] == '|' || !c[n]))
            return true;
    return false;
}

static bool is_address(const char *value)
{
    const char *colon = strrchr(value, ':');
    uint64_t port;
    return colon && colon != value && parse_u64(colon + 1, &port) && port <= 65535;
}

/* Each between commas is one. */
static bool are_addresses(const char *text)
{
    char one[256];
    for (const char *at = text;; at++) {
        const size_t n = strcspn(at, ",");
        if (n >= sizeof one)
            return false;
        memcpy(one, at, n);
        one[n] = 0;
        if (!is_address(one))
            return false;
        at += n;
        if (!*at)
            return true;
    }
}

enum status config_set(const struct config_field *fields, void *values, const char *key, const char *value,
                       const char *where, struct error *err)
{
    const struct config_field *f = config_find(fields, key);
    if (!f)
        return error_set(err, ST_INVALID, "%s: unknown key '%s'", where, key);
    char *at = (char *)values + f->offset;
    uint64_t n = 0;
    switch (f->type) {
    case CONFIG_TEXT:
    case CONFIG_CHOICE:
    case CONFIG_ADDRESS:
    case CONFIG_ADDRESSES:
        if (f->type == CONFIG_CHOICE && !is_choice(f->choices, value))
            return error_set(err, ST_INVALID, "%s: %s: '%s' is none of %s", where, key, value, f->choices);
        if (f->type == CONFIG_ADDRESS && value[0] && !is_address(value))
            return error_set(err, ST_INVALID, "%s: %s: '%s' is not HOST:PORT", where, key, value);
        if (f->type == CONFIG_ADDRESSES && value[0] && !are_addresses(value))
            return error_set(err, ST_INVALID, "%s: %s: '%s' is not HOST:PORT[,HOST:PORT...]", where, key, value);
        if (strlen(value) >= f->size)
            return error_set(err, ST_INVALID, "%s: %s: longer than %zu characters", where, key, f->size - 1);
        memmove(at, value, strlen(value) + 1);
        return ST_OK;
    case CONFIG_U32:
        if (!parse_u64(value, &n) || n < f->min || n > f->max)
            return error_set(err, ST_INVALID, "%s: %s: '%s' is not a whole number from %llu to %llu", where, key, value,
                             (unsigned long long)f->min, (unsigned long long)f->max);
        *(uint32_t *)(void *)at = (uint32_t)n;
        return ST_OK;
    case CONFIG_BYTES:
        if (!(f->min == 0 && !strcmp(value, "auto")) && (!parse_bytes(value, &n) || n < f->min || n > f->max))
            return error_set(err, ST_INVALID, "%s: %s: '%s' is not a size such as 512M or 2G%s", where, key, value,
                             f->min ? "" : ", or auto");
        *(uint64_t *)(void *)at = n;
        return ST_OK;
    case CONFIG_BOOL:
        if (strcmp(value, "true") && strcmp(value, "false"))
            return error_set(err, ST_INVALID, "%s: %s: '%s' is neither true nor false", where, key, value);
        *(bool *)(void *)at = value[0] == 't';
        return ST_OK;
    }
    return error_set(err, ST_INTERNAL, "%s: %s: field of unknown type", where, key);
}

void config_value(const struct config_field *f, const void *values, char *text_out, size_t bytes)
{
    const char *at = (const char *)values + f->offset;
    switch (f->type) {
    case CONFIG_TEXT:
    case CONFIG_CHOICE:
    case CONFIG_ADDRESS:
    case CONFIG_ADDRESSES:
        snprintf(text_out, bytes, "%s", at);
        break;
    case CONFIG_U32:
        snprintf(text_out, bytes, "%u", *(const uint32_t *)(const void *)at);
        break;
    case CONFIG_BYTES:
        if (f->min == 0 && !*(const uint64_t *)(const void *)at)
            snprintf(text_out, bytes, "auto");
        else
            snprintf(text_out, bytes, "%llu", (unsigned long long)*(const uint64_t *)(const void *)at);
        break;
    case CONFIG_BOOL:
        snprintf(text_out, bytes, "%s", *(const bool *)(const void *)at ? "true" : "false");
        break;
    }
}

enum status config_defaults(const struct config_field *fields, void *values, struct error *err)
{
    for (const struct config_field *f = fields; f->key; f++) {
        const enum status st = config_set(fields, values, f->key, f->value, "default", err);
        if (st)
            return st;
    }
    return ST_OK;
}

/* ---- files ---- */

static enum status refuse(const yaml_event_t *event, const char *name, const char *why, struct error *err)
{
    return error_set(err, ST_INVALID, "%s:%zu: %s", name, event->start_mark.line + 1, why);
}

/* Reads the mapping event by event: anything but "key: scalar" is refused where it stands. */
static enum status read_events(const struct config_field *fields, void *values, yaml_parser_t *parser, const char *name,
                               struct error *err)
{
    bool seen[256] = { false }, in_map = false;
    char key[128] = "", where[512];
    bool have_key = false;
    for (;;) {
        yaml_event_t e;
        enum status st = ST_OK;
        if (!yaml_parser_parse(parser, &e))
            return error_set(err, ST_INVALID, "%s:%zu: %s", name, parser->problem_mark.line + 1,
                             parser->problem ? parser->problem : "not YAML");
        const yaml_event_type_t type = e.type;
        if (type == YAML_MAPPING_START_EVENT && !in_map) {
            in_map = true;
        } else if (type == YAML_SCALAR_EVENT && !in_map) {
            st = e.data.scalar.length ? refuse(&e, name, "keys and values are expected", err) : ST_OK;
        } else if (type == YAML_SCALAR_EVENT && strlen((const char *)e.data.scalar.value) != e.data.scalar.length) {
            st = refuse(&e, name, "a NUL character", err);
        } else if (type == YAML_SCALAR_EVENT && !have_key) {
            snprintf(key, sizeof key, "%s", (const char *)e.data.scalar.value);
            const struct config_field *f = config_find(fields, key);
            const size_t i = f ? (size_t)(f - fields) : 0;
            if (f && i < sizeof seen && seen[i])
                st = error_set(err, ST_INVALID, "%s:%zu: '%s' is set twice", name, e.start_mark.line + 1, key);
            else if (f && i < sizeof seen)
                seen[i] = true;
            have_key = true;
        } else if (type == YAML_SCALAR_EVENT) {
            snprintf(where, sizeof where, "%.400s:%zu", name, e.start_mark.line + 1);
            st = config_set(fields, values, key, (const char *)e.data.scalar.value, where, err);
            have_key = false;
        } else if (type == YAML_SEQUENCE_START_EVENT || type == YAML_ALIAS_EVENT || type == YAML_MAPPING_START_EVENT) {
            st = have_key ? error_set(err, ST_INVALID, "%s:%zu: %s: a plain value is expected", name,
                                      e.start_mark.line + 1, key)
                          : refuse(&e, name, "a key is expected", err);
        }
        yaml_event_delete(&e);
        if (st || type == YAML_STREAM_END_EVENT)
            return st;
    }
}

enum status config_text(const struct config_field *fields, void *values, const char *text, size_t bytes,
                        const char *name, struct error *err)
{
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser))
        return error_set(err, ST_NO_MEMORY, "%s: no memory", name);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, bytes);
    const enum status st = read_events(fields, values, &parser, name, err);
    yaml_parser_delete(&parser);
    return st;
}

enum status config_file(const struct config_field *fields, void *values, const char *path, struct error *err)
{
    char *text;
    size_t bytes;
    enum status st = file_read(path, FILE_BYTES_MAX, &text, &bytes, err);
    if (st)
        return st;
    st = config_text(fields, values, text, bytes, path, err);
    free(text);
    return st;
}

/* ---- flags ---- */

enum status config_flags(const struct config_field *fields, void *values, uint32_t scope, int argc, char *const *argv,
                         int *index, struct error *err)
{
    for (; *index < argc && argv[*index][0] == '-' && argv[*index][1] == '-'; (*index)++) {
        const char *arg = argv[*index] + 2;
        const size_t n = strcspn(arg, "=");
        char key[128], where[160];
        if (!*arg) {
            (*index)++;
            return ST_OK;
        }
        snprintf(key, sizeof key, "%.*s", (int)(n < sizeof key ? n : sizeof key - 1), arg);
        snprintf(where, sizeof where, "--%s", key);
        const struct config_field *f = config_find(fields, key);
        if (!f || !(f->scope & scope))
            return error_set(err, ST_INVALID, "--%s: no such flag here", key);
        const char *value = arg[n] == '=' ? arg + n + 1 : NULL;
        if (!value && f->type == CONFIG_BOOL)
            value = "true";
        if (!value && *index + 1 < argc)
            value = argv[++*index];
        if (!value)
            return error_set(err, ST_INVALID, "--%s: a value is missing", key);
        const enum status st = config_set(fields, values, key, value, where, err);
        if (st)
            return st;
    }
    return ST_OK;
}

/* ---- printing ---- */

static const char *value_kind(const struct config_field *f)
{
    switch (f->type) {
    case CONFIG_TEXT:
        return "TEXT";
    case CONFIG_U32:
        return "N";
    case CONFIG_BYTES:
        return "SIZE";
    case CONFIG_BOOL:
        return "";
    case CONFIG_CHOICE:
        return f->choices;
    case CONFIG_ADDRESS:
        return "HOST:PORT";
    case CONFIG_ADDRESSES:
        return "HOST:PORT,...";
    }
    return "";
}

void config_help(const struct config_field *fields, uint32_t scope, FILE *out)
{
    for (const struct config_field *f = fields; f->key; f++) {
        if (!(f->scope & scope))
            continue;
        char left[128];
        snprintf(left, sizeof left, "--%s %s", f->key, value_kind(f));
        fprintf(out, "  %-34s %s", left, f->help);
        if (f->value[0] && f->type != CONFIG_BOOL)
            fprintf(out, " (%s)", f->value);
        fputc('\n', out);
    }
}

void config_print(const struct config_field *fields, const void *values, FILE *out)
{
    for (const struct config_field *f = fields; f->key; f++) {
        char value[4096];
        config_value(f, values, value, sizeof value);
        fprintf(out, "# %s\n%s: ", f->help, f->key);
        if (f->type == CONFIG_TEXT || f->type == CONFIG_ADDRESS || f->type == CONFIG_ADDRESSES) {
            fputc('\'', out);
            for (const char *c = value; *c; c++) {
                if (*c == '\'')
                    fputc('\'', out);
                fputc(*c, out);
            }
            fputs("'\n", out);
        } else {
            fprintf(out, "%s\n", value);
        }
    }
}
