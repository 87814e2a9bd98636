#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/answer.h"
#include "client/cluster.h"
#include "client/commands.h"
#include "common/file.h"

enum { PROMPT_BYTES_MAX = 1 << 28 };

static volatile sig_atomic_t stopping;

static void on_signal(int number)
{
    (void)number;
    stopping = 1;
}

static bool stop(void)
{
    return stopping;
}

static enum status read_prompt(const struct settings *s, char **text_out, struct error *err)
{
    size_t bytes;
    const enum status st =
        file_read(strcmp(s->prompt_file, "-") ? s->prompt_file : "/dev/stdin", PROMPT_BYTES_MAX, text_out, &bytes, err);
    if (!st && strlen(*text_out) != bytes) {
        free(*text_out);
        return error_set(err, ST_INVALID, "%s: a NUL character", s->prompt_file);
    }
    return st;
}

static void remove_tree(const char *path)
{
    char command[1100];
    snprintf(command, sizeof command, "rm -rf -- '%s'", path); /* a name that mkdtemp made */
    if (system(command))
        fprintf(stderr, "longspan: %s could not be removed\n", path);
}

/* A cluster of its own on free ports, with its state in a temporary directory. */
static enum status generate_local(struct settings *s, const char *prompt, struct error *err)
{
    struct cluster *c = NULL;
    char directory[] = "/tmp/longspan-XXXXXX";
    if (!mkdtemp(directory))
        return error_set(err, ST_IO, "%s cannot be made", directory);
    snprintf(s->state, sizeof s->state, "%s", directory);
    snprintf(s->http, sizeof s->http, "127.0.0.1:0");
    snprintf(s->grpc, sizeof s->grpc, "127.0.0.1:0");
    enum status st = cluster_start(s, &c, err);
    if (!st)
        st = cluster_await(c, s->json, stop, err);
    if (!st)
        st = answer_print(cluster_grpc(c), s, prompt, stop, err);
    cluster_stop(c);
    remove_tree(directory);
    return st;
}

int command_generate(int argc, char **argv)
{
    struct settings s;
    struct error err = { 0 };
    const char *prompt, *positional;
    char *text = NULL;
    const struct sigaction action = { .sa_handler = on_signal };
    if (!settings_read(&s, SCOPE_GENERATE,
                       "usage: longspan generate (--prompt TEXT | --prompt-file FILE) [--local] [flags]", argc, argv,
                       &prompt, &positional))
        return 2;
    if (positional || (!prompt && !s.prompt_file[0]) || (prompt && s.prompt_file[0])) {
        fprintf(stderr, "longspan: generate takes --prompt TEXT or --prompt-file FILE\n");
        return 2;
    }
    if (answer_check(&s, &err)) {
        fprintf(stderr, "longspan: %s\n", err.text);
        return 2;
    }
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    enum status st = ST_OK;
    if (!prompt)
        st = read_prompt(&s, &text, &err);
    if (!st)
        st = s.local ? generate_local(&s, prompt ? prompt : text, &err)
                     : answer_print(s.grpc, &s, prompt ? prompt : text, stop, &err);
    free(text);
    if (st)
        fprintf(stderr, "longspan: %s\n", err.text[0] ? err.text : status_text(st));
    return st ? 1 : 0;
}
