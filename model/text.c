#include "model/text.h"

#include <stdint.h>
#include <string.h>

bool text_is_utf8(const char *text, size_t bytes)
{
    const uint8_t *p = (const uint8_t *)text, *end = p + bytes;
    while (p < end) {
        const uint8_t a = *p++;
        if (a < 0x80)
            continue;
        const int more = a >= 0xC2 && a <= 0xDF ? 1 : a >= 0xE0 && a <= 0xEF ? 2 : a >= 0xF0 && a <= 0xF4 ? 3 : 0;
        if (!more || end - p < more)
            return false;
        if ((a == 0xE0 && *p < 0xA0) || (a == 0xED && *p > 0x9F) || (a == 0xF0 && *p < 0x90) ||
            (a == 0xF4 && *p > 0x8F))
            return false;
        for (int i = 0; i < more; i++)
            if ((*p++ & 0xC0) != 0x80)
                return false;
    }
    return true;
}

bool text_split_merge(const char *text, size_t bytes, struct model_merge *merge_out)
{
    const char *space = bytes > 2 ? memchr(text + 1, ' ', bytes - 1) : NULL;
    if (!space || space + 1 == text + bytes)
        return false;
    *merge_out =
        (struct model_merge){ text, space + 1, (uint32_t)(space - text), (uint32_t)(text + bytes - space - 1) };
    return true;
}
