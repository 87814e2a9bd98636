#include "proto/token.h"

struct digest token_of(const uint8_t secret[TOKEN_SECRET_BYTES], uint16_t sender, uint64_t roster)
{
    struct hasher *h = hasher_new();
    hasher_add_text(h, "longspan exchange token");
    hasher_add(h, secret,
               TOKEN_SECRET_BYTES); /* all is of fixed length, so a sum that is cut short cannot be gone on with */
    hasher_add_u64(h, sender);
    hasher_add_u64(h, roster);
    return hasher_end(h);
}
