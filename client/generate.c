#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/answer.h"
#include "client/cluster.h"
#include "client/commands.h"
#include "client/interrupt.h"
#include "common/file.h"

enum { PROMPT_BYTES_MAX = 1 << 28 };

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
        st = cluster_await(c, s->json, interrupted, err);
    if (!st)
        st = answer_print(cluster_grpc(c), s, prompt, interrupted, err);
    cluster_stop(c);
    struct error removal = { 0 };
    if (file_remove_tree(directory, &removal))
        fprintf(stderr, "longspan: %s\n", removal.text);
    return st;
}

int command_generate(int argc, char **argv)
{
    struct settings s;
    struct error err = { 0 };
    const char *prompt, *positional;
    char *text = NULL;
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
    interrupt_catch();
    enum status st = ST_OK;
    if (!prompt)
        st = read_prompt(&s, &text, &err);
    if (!st)
        st = s.local ? generate_local(&s, prompt ? prompt : text, &err)
                     : answer_print(s.grpc, &s, prompt ? prompt : text, interrupted, &err);
    free(text);
    if (st)
        fprintf(stderr, "longspan: %s\n", err.text[0] ? err.text : status_text(st));
    return st ? 1 : 0;
}
