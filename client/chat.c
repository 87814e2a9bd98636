#include <histedit.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/answer.h"
#include "client/commands.h"
#include "client/conversation.h"
#include "client/interrupt.h"
#include "client/local.h"
#include "client/remote.h"
#include "client/terminal.h"

enum { HISTORY_LINES = 1000, LINE_BYTES_MAX = 16 << 20 };

static const char usage[] = "usage: longspan chat [--grpc HOST:PORT | --local] [--system TEXT] [flags]";
static const char commands_help[] =
    "/reset         forget the conversation (the system message stays)\n"
    "/system TEXT   set the system message (without TEXT: none) and forget the conversation\n"
    "/save FILE     write the conversation as JSON\n"
    "/help          this\n"
    "/quit          leave, as Ctrl-D does; Ctrl-C cancels an answer, and leaves when there is none\n"
    "//...          a message that begins with a slash\n";

struct chat {
    const struct settings *settings;
    struct remote *remote;
    struct conversation conversation;
    FILE *answer; /* what has come of it, into text */
    char *text;
    size_t text_bytes;
    bool terminal; /* standard input is one */
    bool quit;
    unsigned interrupts; /* seen when the answer began */
    EditLine *edit;
    History *history;
    char *line; /* without a terminal: getline's */
    size_t line_room;
};

/* ---- one answer ---- */

static bool on_response(void *ctx, const Longspan__V1__GenerateResponse *r)
{
    struct chat *c = ctx;
    if (r->progress && r->progress->total > 2048)
        terminal_bar("prefill", (float)r->progress->done / (float)r->progress->total);
    if (r->text && r->text[0]) {
        terminal_bar_end();
        fputs(r->text, stdout);
        fflush(stdout);
        fputs(r->text, c->answer);
    }
    return !ferror(c->answer);
}

static bool stopped(void *ctx)
{
    const struct chat *c = ctx;
    return interrupts() > c->interrupts;
}

static enum status ask(struct chat *c, struct error *err)
{
    const struct remote_events events = { on_response, stopped, c };
    Longspan__V1__GenerateRequest q = LONGSPAN__V1__GENERATE_REQUEST__INIT;
    Longspan__V1__Chat chat = LONGSPAN__V1__CHAT__INIT;
    enum status st = answer_sampling(c->settings, &q, err);
    if (st)
        return st;
    if (!c->settings->max_tokens) /* as many as there is room for */
        q.max_tokens_set_case = LONGSPAN__V1__GENERATE_REQUEST__MAX_TOKENS_SET__NOT_SET;
    st = conversation_messages(&c->conversation, &chat);
    if (st)
        return error_set(err, st, "no memory");
    q.prompt_case = LONGSPAN__V1__GENERATE_REQUEST__PROMPT_CHAT;
    q.chat = &chat;
    c->interrupts = interrupts();
    st = remote_generate(c->remote, &q, &events, err);
    conversation_messages_free(&chat);
    terminal_bar_end();
    return st;
}

/*
 * The message, and what was said to it. An answer that was cancelled stays in the conversation as far as it came; a message that could not be
 * answered is taken back.
 */
static void turn(struct chat *c, const char *message)
{
    struct error err = { 0 };
    c->answer = open_memstream(&c->text, &c->text_bytes);
    enum status st = c->answer ? conversation_add(&c->conversation, "user", message) : ST_NO_MEMORY;
    const bool added = !st;
    if (!st)
        st = ask(c, &err);
    if (c->answer && fclose(c->answer) && !st)
        st = ST_NO_MEMORY;
    if (c->text_bytes)
        fputc('\n', stdout);
    fflush(stdout);
    const bool cancelled = st == ST_CANCELLED && interrupts() > c->interrupts;
    if (!st || (cancelled && c->text_bytes))
        st = conversation_add(&c->conversation, "assistant", c->text);
    else if (added)
        conversation_drop_last(&c->conversation);
    if (cancelled)
        fprintf(stderr, "(cancelled)\n");
    else if (st)
        fprintf(stderr, "longspan: %s\n", err.text[0] ? err.text : status_text(st));
    free(c->text);
    c->text = NULL;
    c->text_bytes = 0;
}

/* ---- commands ---- */

static void save(const struct chat *c, const char *path)
{
    struct error err = { 0 };
    if (!path[0])
        fprintf(stderr, "longspan: /save: a file is missing\n");
    else if (conversation_save(&c->conversation, path, &err))
        fprintf(stderr, "longspan: /save: %s\n", err.text);
    else
        fprintf(stderr, "(saved)\n");
}

static bool is(const char *line, size_t n, const char *name)
{
    return strlen(name) == n && !strncmp(line, name, n);
}

static void command(struct chat *c, const char *line)
{
    const size_t n = strcspn(line, " \t");
    const char *rest = line + n + strspn(line + n, " \t");
    if (is(line, n, "/quit") || is(line, n, "/exit")) {
        c->quit = true;
    } else if (is(line, n, "/reset")) {
        conversation_reset(&c->conversation);
        fprintf(stderr, "(forgotten)\n");
    } else if (is(line, n, "/system")) {
        if (conversation_system(&c->conversation, rest))
            fprintf(stderr, "longspan: no memory\n");
        else
            fprintf(stderr,
                    rest[0] ? "(set; the conversation starts again)\n" : "(none; the conversation starts again)\n");
    } else if (is(line, n, "/save")) {
        save(c, rest);
    } else {
        if (!is(line, n, "/help"))
            fprintf(stderr, "longspan: no command '%.*s'\n", (int)n, line);
        fputs(commands_help, stderr);
    }
}

static void take(struct chat *c, char *line)
{
    size_t n = strlen(line);
    while (n && (line[n - 1] == '\n' || line[n - 1] == '\r'))
        line[--n] = 0;
    if (!line[strspn(line, " \t")])
        return;
    if (n > LINE_BYTES_MAX)
        fprintf(stderr, "longspan: a message of over %d bytes\n", LINE_BYTES_MAX);
    else if (line[0] == '/' && line[1] != '/')
        command(c, line);
    else
        turn(c, line + (line[0] == '/'));
}

/* ---- lines ---- */

static char *prompt(EditLine *edit)
{
    static char text[] = "> ";
    (void)edit;
    return text;
}

static bool edit_open(struct chat *c)
{
    HistEvent event;
    c->edit = el_init("longspan", stdin, stdout, stderr);
    c->history = history_init();
    if (!c->edit || !c->history)
        return false;
    history(c->history, &event, H_SETSIZE, HISTORY_LINES);
    el_set(c->edit, EL_PROMPT, prompt);
    el_set(c->edit, EL_EDITOR, "emacs");
    el_set(c->edit, EL_HIST, history, c->history);
    el_set(c->edit, EL_SIGNAL, 0); /* Ctrl-C is ours */
    return true;
}

/* The next line; NULL: there is none. Valid until the next call; the caller may write into it up to its end. */
static char *next_line(struct chat *c)
{
    HistEvent event;
    int n;
    if (!c->terminal)
        return getline(&c->line, &c->line_room, stdin) > 0 ? c->line : NULL;
    const char *got = el_gets(c->edit, &n);
    if (!got || n <= 0)
        return NULL;
    if (got[strspn(got, " \t\r\n")])
        history(c->history, &event, H_ENTER, got);
    free(c->line);
    return c->line = strdup(got);
}

static enum status converse(struct chat *c, struct error *err)
{
    if (c->terminal && !edit_open(c))
        return error_set(err, ST_NO_MEMORY, "the line editor cannot be started");
    if (c->terminal)
        fprintf(stderr, "/help shows the commands\n");
    while (!c->quit && !terminated()) {
        c->interrupts = interrupts();
        char *line = next_line(c);
        if (!line || interrupts() > c->interrupts) /* Ctrl-C where there is no answer to cancel */
            break;
        take(c, line);
    }
    if (c->terminal)
        fputc('\n', stdout);
    return ST_OK;
}

static enum status chat_at(const struct settings *s, const char *address, struct error *err)
{
    struct chat c = { .settings = s, .terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) };
    enum status st = conversation_system(&c.conversation, s->system);
    if (!st)
        st = remote_open(address, s, &c.remote, err);
    if (!st)
        st = converse(&c, err);
    remote_close(c.remote);
    conversation_free(&c.conversation);
    free(c.line);
    if (c.edit)
        el_end(c.edit);
    if (c.history)
        history_end(c.history);
    return st;
}

static enum status chat_locally(const char *address, const struct settings *s, const void *arg, struct error *err)
{
    (void)arg;
    return chat_at(s, address, err);
}

int command_chat(int argc, char **argv)
{
    struct settings s;
    struct error err = { 0 };
    const char *given, *positional;
    if (!settings_read(&s, SCOPE_CHAT, usage, argc, argv, &given, &positional))
        return 2;
    if (positional) {
        fprintf(stderr, "longspan: chat takes no argument '%s'\n", positional);
        return 2;
    }
    if (answer_check(&s, &err)) {
        fprintf(stderr, "longspan: %s\n", err.text);
        return 2;
    }
    interrupt_catch();
    const enum status st = s.local ? local_run(&s, false, chat_locally, NULL, &err) : chat_at(&s, s.grpc, &err);
    if (st && !interrupted())
        fprintf(stderr, "longspan: %s\n", err.text[0] ? err.text : status_text(st));
    return st && !interrupted() ? 1 : 0;
}
