#include "kernels/selector.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* [0, 1] with at most six digits behind the point -> millionths; 0 and what is no such number: false */
bool selector_density_parse(const char *text, size_t n, uint32_t *density_out)
{
    uint32_t value = 0, scale = SELECTOR_DENSITY_ONE;
    size_t i = 0;
    if (n == 0 || (text[0] != '0' && text[0] != '1'))
        return false;
    value = text[i++] == '1' ? SELECTOR_DENSITY_ONE : 0;
    if (i < n && text[i++] != '.')
        return false;
    for (; i < n; i++) {
        if (text[i] < '0' || text[i] > '9' || (scale /= 10) == 0)
            return false;
        value += (uint32_t)(text[i] - '0') * scale;
    }
    if (text[n - 1] == '.' || value == 0 || value > SELECTOR_DENSITY_ONE)
        return false;
    *density_out = value;
    return true;
}

bool selector_density_of(double density, uint32_t *density_out)
{
    if (!(density > 0) || density > 1)
        return false;
    const uint32_t value = (uint32_t)(density * SELECTOR_DENSITY_ONE + 0.5);
    *density_out = value ? value : 1;
    return true;
}

const char *selector_names(void)
{
    return "dense, quest, socket, double-sparsity, sketch-walk and streaming";
}

/* Whole blocks, one at least. */
static bool window_parse(const char *text, size_t n, uint32_t *window_out)
{
    uint64_t value = 0;
    for (size_t i = 0; i < n && value <= SELECTOR_WINDOW_MAX; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        value = value * 10 + (uint64_t)(text[i] - '0');
    }
    *window_out = (uint32_t)value;
    return value && value <= SELECTOR_WINDOW_MAX && value % KV_BLOCK == 0;
}

enum { OPTION_TEXT = 40, CHANNELS_DIGITS = 32 };

static bool option(const char **at, const char *name, char value_out[OPTION_TEXT])
{
    const size_t n = strlen(name);
    if (strncmp(*at, name, n) != 0 || (*at)[n] != '=')
        return false;
    const char *value = *at + n + 1;
    const size_t length = strcspn(value, ",");
    if (length == 0 || length >= OPTION_TEXT)
        return false;
    memcpy(value_out, value, length);
    value_out[length] = 0;
    *at = value + length;
    return true;
}

static enum status option_read(const char *text, const char **at, struct selector_spec *spec, struct error *err)
{
    char value[OPTION_TEXT], *end;
    if (option(at, "layers", value)) {
        const unsigned long layers = strtoul(value, &end, 10);
        if (*end || value[0] == '-' || layers > 4096)
            return error_set(err, ST_INVALID, "selector %s: layers=%s, a number up to 4096 is wanted", text, value);
        spec->dense_layers = (uint32_t)layers;
    } else if (option(at, "scope", value)) {
        spec->by_slot = !strcmp(value, "local");
        if (!spec->by_slot && strcmp(value, "global") != 0)
            return error_set(err, ST_INVALID, "selector %s: scope=%s, there are global and local", text, value);
    } else if (option(at, "prompt", value)) {
        spec->prompt = !strcmp(value, "sparse");
        if (!spec->prompt && strcmp(value, "dense") != 0)
            return error_set(err, ST_INVALID, "selector %s: prompt=%s, there are dense and sparse", text, value);
    } else if (option(at, "channels", value)) {
        if (strlen(value) != CHANNELS_DIGITS || strspn(value, "0123456789abcdef") != CHANNELS_DIGITS)
            return error_set(err, ST_INVALID, "selector %s: channels=%s, the %d digits of a calibration are wanted",
                             text, value, CHANNELS_DIGITS);
        memcpy(spec->channels, value, CHANNELS_DIGITS + 1);
    } else {
        return error_set(err, ST_INVALID, "selector %s: what follows NAME[@DENSITY] is layers=N, scope=S or prompt=P",
                         text);
    }
    return ST_OK;
}

/* What stands behind @: a density, or streaming's window. */
static enum status amount_read(const char *text, const char *at, size_t n, bool windowed, struct selector_spec *spec,
                               struct error *err)
{
    if (windowed && !window_parse(at, n, &spec->window))
        return error_set(err, ST_INVALID,
                         "selector %s: the window after @ is a number of positions, a multiple of %d up to %d", text,
                         KV_BLOCK, SELECTOR_WINDOW_MAX);
    if (!windowed && !selector_density_parse(at, n, &spec->density))
        return error_set(err, ST_INVALID,
                         "selector %s: the density after @ is above 0 and at most 1, with at most six decimals", text);
    return ST_OK;
}

enum status selector_parse(const char *text, struct selector_spec *spec_out, struct error *err)
{
    struct selector_spec spec = { .density = SELECTOR_DENSITY_DEFAULT, .dense_layers = SELECTOR_DENSE_LAYERS };
    const size_t name = strcspn(text, "@,");
    const char *at = text + name;
    if (name >= sizeof spec.name)
        return error_set(err, ST_INVALID, "selector %s: there are %s", text, selector_names());
    memcpy(spec.name, text, name);
    const struct selector_impl *impl = selector_find(spec.name, 0);
    const bool dense = !strcmp(spec.name, "dense");
    if (!impl && !dense)
        return error_set(err, ST_INVALID, "selector %s: there are %s", text, selector_names());
    if (dense && *at)
        return error_set(err, ST_INVALID, "selector %s: dense reads everything, it takes no density or options", text);
    const bool windowed = impl && impl->windowed;
    spec.prompt = impl && !impl->prompt_dense;
    if (windowed) {
        spec.density = 1;
        spec.window = SELECTOR_WINDOW_DEFAULT;
        spec.dense_layers = 0;
    }
    if (*at == '@') {
        const size_t n = strcspn(++at, ",");
        const enum status st = amount_read(text, at, n, windowed, &spec, err);
        if (st)
            return st;
        at += n;
    }
    while (*at) {
        at++;
        const enum status st = option_read(text, &at, &spec, err);
        if (st)
            return st;
    }
    if (windowed && spec.by_slot)
        return error_set(err, ST_INVALID, "selector %s: scope=local deals a budget, streaming has a window", text);
    if (spec.channels[0] && !impl->calibrated)
        return error_set(err, ST_INVALID, "selector %s: channels= is double-sparsity's", text);
    if (impl && impl->at_owners && spec.by_slot)
        return error_set(err, ST_INVALID, "selector %s: scope=local is none of %s's, whose owners find one threshold",
                         text, impl->name);
    *spec_out = spec;
    return ST_OK;
}

void selector_text(const struct selector_spec *spec, char text_out[SELECTOR_TEXT])
{
    char amount[16];
    if (!strcmp(spec->name, "dense")) {
        snprintf(text_out, SELECTOR_TEXT, "dense");
        return;
    }
    if (spec->window) {
        snprintf(amount, sizeof amount, "%u", spec->window);
    } else {
        snprintf(amount, sizeof amount, "%u.%06u", spec->density / SELECTOR_DENSITY_ONE,
                 spec->density % SELECTOR_DENSITY_ONE);
        for (size_t n = strlen(amount); n && (amount[n - 1] == '0' || amount[n - 1] == '.'); n--) {
            const bool point = amount[n - 1] == '.';
            amount[n - 1] = 0;
            if (point)
                break;
        }
    }
    snprintf(text_out, SELECTOR_TEXT, "%.15s@%s,layers=%u,scope=%s,prompt=%s%s%s", spec->name, amount,
             spec->dense_layers, spec->by_slot ? "local" : "global", spec->prompt ? "sparse" : "dense",
             spec->channels[0] ? ",channels=" : "", spec->channels);
}
