#include "common/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static atomic_int log_level = LOG_LEVEL_INFO;
static char log_name[32] = "longspan";
static int log_json;
static const char *const level_names[] = { "error", "warn", "info", "debug", "trace" };

void log_set_level(enum log_level level)
{
    atomic_store(&log_level, (int)level);
}

void log_set_name(const char *name)
{
    snprintf(log_name, sizeof log_name, "%s", name);
}

void log_set_json(int on)
{
    log_json = on;
}

int log_level_parse(const char *text)
{
    for (int i = 0; i <= LOG_LEVEL_TRACE; i++)
        if (!strcmp(text, level_names[i]))
            return i;
    return -1;
}

int log_enabled(enum log_level level)
{
    return (int)level <= atomic_load_explicit(&log_level, memory_order_relaxed);
}

/* A byte becomes six at most. */
enum { MESSAGE_BYTES = 2000, REQUEST_BYTES = 64, LINE_BYTES = 6 * (MESSAGE_BYTES + REQUEST_BYTES) + 200 };

/* The inside of a JSON string. Messages are ours but for names in them: bytes that are not ASCII stand as they are, if they are UTF-8. */
static size_t json_inside(const char *text, char *out)
{
    size_t n = 0;
    for (const char *p = text; *p; p++) {
        const unsigned char c = (unsigned char)*p;
        if (c == '"' || c == '\\')
            n += (size_t)sprintf(out + n, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            n += (size_t)sprintf(out + n, "\\u%04x", c);
        else
            out[n++] = (char)c;
    }
    return n;
}

/* A sequence that is no UTF-8 would spoil the whole line for who reads it: its bytes become '?'. */
static void utf8_mend(char *text)
{
    for (unsigned char *p = (unsigned char *)text; *p;) {
        const int more = *p < 0x80                 ? 0
                         : *p >= 0xc2 && *p < 0xe0 ? 1
                         : (*p & 0xf0) == 0xe0     ? 2
                         : *p >= 0xf0 && *p < 0xf5 ? 3
                                                   : -1;
        int have = 0;
        while (more > 0 && have < more && (p[have + 1] & 0xc0) == 0x80)
            have++;
        const bool odd = (*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] >= 0xa0) || (*p == 0xf0 && p[1] < 0x90) ||
                         (*p == 0xf4 && p[1] >= 0x90);
        if (more < 0 || have < more || odd)
            *p++ = '?';
        else
            p += more + 1;
    }
}

static size_t line_json(char *line, enum log_level level, const struct tm *tm, long ms, char *message)
{
    utf8_mend(message);
    static const char about[] = "request ";
    size_t id = 0; /* bytes of what comes behind that word */
    if (!strncmp(message, about, sizeof about - 1))
        id = strcspn(message + sizeof about - 1, " :");
    size_t n = (size_t)sprintf(line,
                               "{\"time\":\"%04d-%02d-%02dT%02d:%02d:%02d.%03ldZ\",\"level\":\"%s\",\"process\":\"%s\","
                               "\"pid\":%d,",
                               tm->tm_year + 1900, tm->tm_mon + 1, tm->tm_mday, tm->tm_hour, tm->tm_min, tm->tm_sec, ms,
                               level_names[level], log_name, (int)getpid());
    if (id && id <= REQUEST_BYTES) {
        char request[REQUEST_BYTES + 1];
        memcpy(request, message + sizeof about - 1, id);
        request[id] = 0;
        n += (size_t)sprintf(line + n, "\"request\":\"");
        n += json_inside(request, line + n);
        n += (size_t)sprintf(line + n, "\",");
    }
    n += (size_t)sprintf(line + n, "\"message\":\"");
    n += json_inside(message, line + n);
    return n + (size_t)sprintf(line + n, "\"}\n");
}

void log_write(enum log_level level, const char *format, ...)
{
    if (!log_enabled(level))
        return;
    char message[MESSAGE_BYTES], line[LINE_BYTES];
    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    va_list args;
    va_start(args, format);
    if (vsnprintf(message, sizeof message, format, args) < 0)
        message[0] = 0;
    va_end(args);
    const long ms = now.tv_nsec / 1000000;
    const size_t n = log_json ? line_json(line, level, &tm, ms, message)
                              : (size_t)snprintf(line, sizeof line, "%02d:%02d:%02d.%03ld %-5s %s: %s\n", tm.tm_hour,
                                                 tm.tm_min, tm.tm_sec, ms, level_names[level], log_name, message);
    if (write(STDERR_FILENO, line, n) < 0)
        return; /* nowhere left to say so */
}
