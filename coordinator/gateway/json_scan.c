#include "coordinator/gateway/json_scan.h"

#include <string.h>

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_hex(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static bool go(struct json_scan *s, enum json_scan_at at)
{
    s->at = at;
    return true;
}

static bool in_list(const struct json_scan *s)
{
    return s->depth && s->lists[(s->depth - 1) / 8] >> ((s->depth - 1) % 8) & 1;
}

static bool enter(struct json_scan *s, bool list)
{
    if (s->depth == JSON_SCAN_DEPTH_MAX)
        return false;
    const uint8_t bit = (uint8_t)(1u << (s->depth % 8));
    s->lists[s->depth / 8] = list ? s->lists[s->depth / 8] | bit : s->lists[s->depth / 8] & (uint8_t)~bit;
    s->depth++;
    return go(s, list ? JSON_AT_FIRST_ITEM : JSON_AT_FIRST_KEY);
}

static bool leave(struct json_scan *s)
{
    s->depth--;
    return go(s, s->depth ? JSON_AT_COMMA : JSON_AT_END);
}

static bool value(struct json_scan *s, char c)
{
    static const char *const words[] = { "true", "false", "null" };
    if (c == '{' || c == '[')
        return enter(s, c == '[');
    if (c == '"')
        return go(s, JSON_AT_STRING);
    if (c == '-')
        return go(s, JSON_AT_MINUS);
    if (is_digit(c))
        return go(s, c == '0' ? JSON_AT_ZERO : JSON_AT_INTEGER);
    for (int i = 0; i < 3; i++)
        if (c == words[i][0]) {
            s->word = words[i] + 1;
            return go(s, JSON_AT_WORD);
        }
    return false;
}

static bool string(struct json_scan *s, char c)
{
    if (s->escape > 1) {
        s->escape = (uint8_t)(is_hex(c) && s->escape == 2 ? 0 : s->escape - is_hex(c));
        return is_hex(c);
    }
    if (s->escape) {
        if (!c || !strchr("\"\\/bfnrtu", c))
            return false;
        s->escape = c == 'u' ? 5 : 0;
        return true;
    }
    if ((unsigned char)c < ' ')
        return false;
    if (c == '\\')
        s->escape = 1;
    else if (c == '"')
        s->at = s->at == JSON_AT_NAME ? JSON_AT_COLON : JSON_AT_COMMA;
    return true;
}

static bool comma(struct json_scan *s, char c)
{
    if (c == ',')
        return go(s, in_list(s) ? JSON_AT_VALUE : JSON_AT_KEY);
    return c == (in_list(s) ? ']' : '}') && leave(s);
}

/* After part of a number: what goes on with it, or with what is around it. */
static bool number(struct json_scan *s, char c)
{
    const enum json_scan_at at = s->at;
    if (at == JSON_AT_MINUS)
        return is_digit(c) && go(s, c == '0' ? JSON_AT_ZERO : JSON_AT_INTEGER);
    if (at == JSON_AT_POINT)
        return is_digit(c) && go(s, JSON_AT_FRACTION);
    if (at == JSON_AT_E && (c == '+' || c == '-'))
        return go(s, JSON_AT_SIGN);
    if (at == JSON_AT_E || at == JSON_AT_SIGN)
        return is_digit(c) && go(s, JSON_AT_EXPONENT);
    if (is_digit(c))
        return at != JSON_AT_ZERO;
    if (c == '.' && (at == JSON_AT_ZERO || at == JSON_AT_INTEGER))
        return go(s, JSON_AT_POINT);
    if ((c == 'e' || c == 'E') && at != JSON_AT_EXPONENT)
        return go(s, JSON_AT_E);
    return is_space(c) ? go(s, JSON_AT_COMMA) : comma(s, c);
}

bool json_scan_push(struct json_scan *s, char c)
{
    if (s->at <= JSON_AT_COMMA && is_space(c))
        return s->at != JSON_AT_START;
    switch (s->at) {
    case JSON_AT_START:
        return c == '{' && enter(s, false);
    case JSON_AT_FIRST_KEY:
        return c == '"' ? go(s, JSON_AT_NAME) : c == '}' && leave(s);
    case JSON_AT_KEY:
        return c == '"' && go(s, JSON_AT_NAME);
    case JSON_AT_COLON:
        return c == ':' && go(s, JSON_AT_VALUE);
    case JSON_AT_VALUE:
        return value(s, c);
    case JSON_AT_FIRST_ITEM:
        return c == ']' ? leave(s) : value(s, c);
    case JSON_AT_COMMA:
        return comma(s, c);
    case JSON_AT_NAME:
    case JSON_AT_STRING:
        return string(s, c);
    case JSON_AT_WORD:
        if (c != *s->word)
            return false;
        return *++s->word ? true : go(s, JSON_AT_COMMA);
    case JSON_AT_END:
        return false;
    default:
        return number(s, c);
    }
}
