#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/answer.h"
#include "client/cluster.h"
#include "client/commands.h"
#include "client/interrupt.h"
#include "common/file.h"

/* Serves until a signal; the parent of all other processes does nothing else. */
static enum status serve(struct cluster *c, struct error *err)
{
    enum status st = ST_OK;
    while (!interrupted() && !st) {
        st = cluster_tend(c, err);
        if (st == ST_PEER && !interrupted())
            break;
        usleep(50000);
    }
    return interrupted() ? ST_OK : st;
}

static enum status run(struct settings *s, const char *prompt, struct error *err)
{
    struct cluster *c = NULL;
    enum status st = file_mkdirs(s->state, err);
    if (!st)
        st = cluster_start(s, &c, err);
    if (!st)
        st = cluster_await(c, false, interrupted, err);
    if (!st && prompt) {
        fprintf(stderr, "\n> %s\n", prompt);
        st = answer_print(cluster_grpc(c), s, prompt, interrupted, err);
    }
    if (!st && !(prompt && s->once)) {
        fprintf(stderr, "\nserving: %s://%s/v1 (OpenAI-compatible), gRPC %s; state in %s; Ctrl-C stops\n",
                s->tls_cert[0] ? "https" : "http", cluster_http(c), cluster_grpc(c), s->state);
        st = serve(c, err);
        fprintf(stderr, "stopping\n");
    }
    cluster_stop(c);
    return st == ST_CANCELLED && interrupted() ? ST_OK : st;
}

int command_up(int argc, char **argv)
{
    struct settings s;
    struct error err = { 0 };
    const char *prompt, *positional;
    if (!settings_read(&s, SCOPE_UP, "usage: longspan up [--workers N] [--model M] [--prompt TEXT [--once]] [flags]",
                       argc, argv, &prompt, &positional))
        return 2;
    if (positional) {
        fprintf(stderr, "longspan: up takes no argument '%s'\n", positional);
        return 2;
    }
    if (answer_check(&s, &err)) {
        fprintf(stderr, "longspan: %s\n", err.text);
        return 2;
    }
    interrupt_catch();
    settings_state_default(&s);
    const enum status st = run(&s, prompt, &err);
    if (st)
        fprintf(stderr, "longspan: %s\n", err.text[0] ? err.text : status_text(st));
    return st ? 1 : 0;
}
