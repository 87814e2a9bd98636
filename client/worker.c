#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/commands.h"
#include "client/settings.h"
#include "common/log.h"
#include "worker/control.h"

/* address[:first-last] */
static bool parse_bind(const char *bind, char host[128], uint16_t *first, uint16_t *last)
{
    const char *colon = strrchr(bind, ':');
    unsigned a = 0, b = 0;
    char end;
    snprintf(host, 128, "%.*s", colon ? (int)(colon - bind) : 127, bind);
    if (colon && (sscanf(colon + 1, "%u-%u%c", &a, &b, &end) != 2 || !a || a > b || b > 65535))
        return false;
    *first = (uint16_t)a;
    *last = (uint16_t)b;
    return true;
}

/* Was it said, by a flag or by a file? What a file says that is the default anyway counts as not said. */
static bool said(const char *key, const char *value, int argc, char **argv)
{
    const size_t n = strlen(key);
    for (int i = 1; i < argc; i++)
        if (!strncmp(argv[i], "--", 2) && !strncmp(argv[i] + 2, key, n) && (!argv[i][2 + n] || argv[i][2 + n] == '='))
            return true;
    return strcmp(value, config_find(settings_fields, key)->value) != 0;
}

int command_worker(int argc, char **argv)
{
    struct settings s;
    struct error err = { 0 };
    char host[128], selector[SELECTOR_TEXT];
    uint16_t first, last;
    const char *prompt, *positional;
    if (!settings_read(&s, SCOPE_WORKER,
                       "usage: longspan worker --control HOST:PORT [--bind ADDRESS[:FIRST-LAST]] [flags]", argc, argv,
                       &prompt, &positional))
        return 2;
    if (positional || !parse_bind(s.bind, host, &first, &last)) {
        fprintf(stderr,
                positional ? "longspan: worker takes no argument '%s'\n"
                           : "longspan: --bind: '%s' is not ADDRESS[:FIRST-LAST]\n",
                positional ? positional : s.bind);
        return 2;
    }
    if (settings_selector(&s, selector, &err)) {
        fprintf(stderr, "longspan: %s\n", err.text);
        return 2;
    }
    log_set_name("worker");
    const struct worker_process_config config = {
        .control = s.control,
        .tls = { s.control_ca, s.control_cert, s.control_key },
        .bind = host[0] ? host : NULL,
        .port_first = first,
        .port_last = last,
        .device = s.device,
        .n_threads = s.threads,
        .kv_bytes = s.kv_bytes ? s.kv_bytes : (uint64_t)1 << 30,
        .disk_dir = s.kv_disk,
        .disk_bytes = s.kv_disk_bytes,
        .reads_apart = !s.share_reads,
        .calibration = s.calibration,
        .channels = settings_channels_file(&s),
        .kv_codec = said("kv-codec", s.kv_codec, argc, argv) ? s.kv_codec : NULL,
        .selector = said("selector", s.selector, argc, argv) ? selector : NULL,
        .exchange = s.exchange,
        .lanes = strcmp(s.lanes, "best") ? s.lanes : NULL,
        .drain_ms = s.drain_ms,
        .once = s.once,
    };
    return worker_process_run(&config);
}
