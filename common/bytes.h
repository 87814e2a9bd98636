#ifndef LONGSPAN_COMMON_BYTES_H
#define LONGSPAN_COMMON_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Sizes that come from outside are added and multiplied here, and nowhere else. false: it overflowed, *out is unchanged.
 */
static inline bool size_mul(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

static inline bool size_add(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

/*
 * A cursor over bytes from outside, little endian. A read past the end sets `bad` and yields zeros; look at `bad` before using what was
 * read. Nothing is ever read out of bounds.
 */
struct reader {
    const uint8_t *at, *end;
    bool bad;
};

static inline struct reader reader_of(const void *data, size_t bytes)
{
    const uint8_t *p = (const uint8_t *)data;
    struct reader r = { p, p + bytes, false };
    return r;
}

static inline size_t reader_left(const struct reader *r)
{
    return (size_t)(r->end - r->at);
}

/* n bytes in place, or NULL (and bad) */
static inline const uint8_t *reader_take(struct reader *r, size_t n)
{
    if (r->bad || n > reader_left(r)) {
        r->bad = true;
        return NULL;
    }
    const uint8_t *p = r->at;
    r->at += n;
    return p;
}

#define READER_FIXED(name, type)                                                                                       \
    static inline type reader_##name(struct reader *r)                                                                 \
    {                                                                                                                  \
        type v = 0;                                                                                                    \
        const uint8_t *p = reader_take(r, sizeof v);                                                                   \
        if (p)                                                                                                         \
            memcpy(&v, p, sizeof v);                                                                                   \
        return v;                                                                                                      \
    }
READER_FIXED(u8, uint8_t)
READER_FIXED(u16, uint16_t)
READER_FIXED(u32, uint32_t)
READER_FIXED(u64, uint64_t)
READER_FIXED(f32, float)
#undef READER_FIXED

#ifdef __cplusplus
}
#endif
#endif
