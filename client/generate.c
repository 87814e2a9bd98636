#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/answer.h"
#include "client/commands.h"
#include "client/interrupt.h"
#include "client/local.h"
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

static enum status answer_locally(const char *address, const struct settings *s, const void *prompt, struct error *err)
{
    return answer_print(address, s, prompt, interrupted, err);
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
        st = s.local ? local_run(&s, s.json, answer_locally, prompt ? prompt : text, &err)
                     : answer_print(s.grpc, &s, prompt ? prompt : text, interrupted, &err);
    free(text);
    if (st)
        fprintf(stderr, "longspan: %s\n", err.text[0] ? err.text : status_text(st));
    return st ? 1 : 0;
}
