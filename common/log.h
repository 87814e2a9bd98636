#ifndef LONGSPAN_COMMON_LOG_H
#define LONGSPAN_COMMON_LOG_H

#ifdef __cplusplus
extern "C" {
#endif

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG, LOG_LEVEL_TRACE };

/* Process-wide: the least severe level that is written, and the name put before each line ("worker 1"). Set before threads start. */
void log_set_level(enum log_level level);
void log_set_name(const char *name);
/*
 * Each line a JSON object: time (RFC 3339, UTC), level, process (the name), pid, message; and request, where the message begins with "request ID". Set before threads
 * start.
 */
void log_set_json(int on);
/* "error" .. "trace" -> level, or -1 */
int log_level_parse(const char *text);

/* One line on stderr, with time and name, written whole. */
void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
int log_enabled(enum log_level level);

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...)  log_write(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...)  log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)                                                                                                 \
    do {                                                                                                               \
        if (log_enabled(LOG_LEVEL_DEBUG))                                                                              \
            log_write(LOG_LEVEL_DEBUG, __VA_ARGS__);                                                                   \
    } while (0)
#define log_trace(...)                                                                                                 \
    do {                                                                                                               \
        if (log_enabled(LOG_LEVEL_TRACE))                                                                              \
            log_write(LOG_LEVEL_TRACE, __VA_ARGS__);                                                                   \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
