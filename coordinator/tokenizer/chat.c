#include "coordinator/tokenizer/tokenizer.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "coordinator/tokenizer/internal.h"
#include "coordinator/tokenizer/template.h"
#include "coordinator/tokenizer/unicode.h"

#define SMOLLM2_SYSTEM "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
#define LLAMA31_DATE   "26 Jul 2024"

/* ---- known templates: compared in normal form, without the branches for tools ---- */

struct known_template {
    const char *text;
    enum chat_kind kind;
    bool always_prompts;
};

#define LLAMA3_MESSAGES                                                                                                \
    "{% set loop_messages = messages %}{% for message in loop_messages %}"                                             \
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim " \
    "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% "     \
    "endfor %}"
#define LLAMA3_PROMPT   "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
#define IF_PROMPT(text) "{% if add_generation_prompt %}" text "{% endif %}"
#define LLAMA31_START                                                                                                  \
    "{{ bos_token }}{% if not tools_in_user_message is defined %}{% set tools_in_user_message = true %}{% endif %}"    \
    "{% if not date_string is defined %}"
#define LLAMA31_REST                                                                                                   \
    "{% endif %}{% if not tools is defined %}{% set tools = none %}{% endif %}"                                        \
    "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content']|trim %}"                   \
    "{% set messages = messages[1:] %}{% else %}{% set system_message = '' %}{% endif %}"                              \
    "{{ '<|start_header_id|>system<|end_header_id|>\\n\\n' }}"                                                         \
    "{{ 'Cutting Knowledge Date: December 2023\\n' }}{{ 'Today Date: ' + date_string + '\\n\\n' }}"                    \
    "{{ system_message }}{{ '<|eot_id|>' }}"                                                                           \
    "{% for message in messages %}"                                                                                    \
    "{% if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}"                    \
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + "             \
    "'<|eot_id|>' }}"                                                                                                  \
    "{% endif %}{% endfor %}" IF_PROMPT(LLAMA3_PROMPT)

static const struct known_template known_templates[] = {
    { "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "
      "'<|im_start|>system\\n" SMOLLM2_SYSTEM "<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' "
      "+ message['content'] + '<|im_end|>' + '\\n'}}"
      "{% endfor %}" IF_PROMPT("{{ '<|im_start|>assistant\\n' }}"),
      CHAT_SMOLLM2, false },
    { LLAMA3_MESSAGES IF_PROMPT(LLAMA3_PROMPT), CHAT_LLAMA3, false },
    { LLAMA3_MESSAGES LLAMA3_PROMPT, CHAT_LLAMA3, true },
    { LLAMA31_START "{% set date_string = '" LLAMA31_DATE "' %}" LLAMA31_REST, CHAT_LLAMA31, false },
    /* 3.2 asks for today's date where it can; a date that changes would change the first tokens every day, so it is pinned */
    { LLAMA31_START "{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% else %}"
                    "{% set date_string = '" LLAMA31_DATE "' %}{% endif %}" LLAMA31_REST,
      CHAT_LLAMA31, false },
};

static const struct known_template *find_template(const char *form)
{
    const struct known_template *found = NULL;
    for (size_t i = 0; !found && i < sizeof known_templates / sizeof known_templates[0]; i++) {
        char *known;
        if (template_normal_form(known_templates[i].text, &known))
            continue;
        if (strcmp(form, known) == 0)
            found = &known_templates[i];
        free(known);
    }
    return found;
}

/* The first characters of a template on one line, for messages. */
static void quote(const char *text, char out[61])
{
    size_t n = 0;
    for (; text[n] && n < 60; n++)
        out[n] = text[n] == '\n' || text[n] == '\r' || text[n] == '\t' ? ' ' : text[n];
    while (n > 0 && text[n] && ((unsigned char)text[n] & 0xC0) == 0x80) /* not in the middle of a character */
        n--;
    out[n] = '\0';
}

static enum status find_controls(struct tokenizer *t, enum chat_kind kind)
{
    const bool smollm2 = kind == CHAT_SMOLLM2;
    const char *const names[] = { smollm2 ? "<|im_start|>" : "<|start_header_id|>",
                                  smollm2 ? "<|im_end|>" : "<|end_header_id|>", smollm2 ? "<|im_end|>" : "<|eot_id|>" };
    int32_t *const ids[] = { &t->chat_open, &t->chat_middle, &t->chat_close };
    for (int i = 0; i < 3; i++) {
        *ids[i] = tokenizer_find_control(t, names[i]);
        if (*ids[i] < 0)
            return error_set(&t->chat_error, ST_UNSUPPORTED, "chat template: the vocabulary has no token %s", names[i]);
    }
    if (!smollm2 && t->bos < 0)
        return error_set(&t->chat_error, ST_UNSUPPORTED, "chat template: the model has no bos token");
    return ST_OK;
}

void chat_init(struct tokenizer *t)
{
    if (t->vocab->kind == MODEL_VOCAB_BYTES) {
        t->chat = CHAT_BYTES;
        return;
    }
    const char *text = t->vocab->chat_template;
    if (!text) {
        error_set(&t->chat_error, ST_UNSUPPORTED, "the model has no chat template");
        return;
    }
    char *form;
    const struct known_template *known = NULL;
    if (!template_normal_form(text, &form)) {
        known = find_template(form);
        free(form);
    }
    if (!known) {
        char start[61];
        quote(text, start);
        error_set(&t->chat_error, ST_UNSUPPORTED,
                  "chat template of no known family (smollm2, llama3); it begins \"%s\"", start);
        return;
    }
    if (find_controls(t, known->kind))
        return;
    t->chat = known->kind;
    t->chat_always_prompts = known->always_prompts;
}

const char *chat_family(const struct tokenizer *t)
{
    switch (t->chat) {
    case CHAT_BYTES:
        return "bytes";
    case CHAT_SMOLLM2:
        return "smollm2";
    case CHAT_LLAMA3:
    case CHAT_LLAMA31:
        return "llama3";
    case CHAT_NONE:
        break;
    }
    return NULL;
}

/* ---- rendering ---- */

/*
 * Ids as they come and the text since the last control token. Template words and users' words join before they are encoded, as the whole
 * rendered text would be (a piece may hold both), but control tokens come from here alone.
 */
struct chat_run {
    const struct tokenizer *t;
    struct bpe_run run;
    char *text;
    size_t n, cap;
    enum status st; /* the first failure; later calls do nothing */
};

static void add_text(struct chat_run *c, const char *text, size_t bytes)
{
    size_t want;
    if (c->st)
        return;
    if (!size_add(c->n, bytes, &want) || want > SIZE_MAX / 2) {
        c->st = ST_TOO_LARGE;
        return;
    }
    if (want > c->cap) {
        char *grown = realloc(c->text, want * 2);
        if (!grown) {
            c->st = ST_NO_MEMORY;
            return;
        }
        c->text = grown;
        c->cap = want * 2;
    }
    if (bytes > 0)
        memcpy(c->text + c->n, text, bytes);
    c->n = want;
}

static void add_words(struct chat_run *c, const char *words)
{
    add_text(c, words, strlen(words));
}

static void flush_text(struct chat_run *c)
{
    if (!c->st)
        c->st = tokenizer_append(c->t, (const uint8_t *)c->text, c->n, false, &c->run);
    c->n = 0;
}

static void add_control(struct chat_run *c, int32_t id)
{
    flush_text(c);
    if (!c->st)
        c->st = bpe_run_add(&c->run, id);
}

/* What Python's str.strip() strips. */
static bool is_stripped(uint32_t point)
{
    return text_class_of(point) == TEXT_SPACE || (point >= 0x1C && point <= 0x1F);
}

static void add_trimmed(struct chat_run *c, const char *content, size_t bytes)
{
    const uint8_t *p = (const uint8_t *)content, *end = p + bytes, *kept = NULL;
    bool begun = false;
    for (const uint8_t *at = p; at < end;) {
        uint32_t point;
        const uint32_t n = utf8_next(at, end, &point);
        if (!is_stripped(point)) {
            p = begun ? p : at;
            begun = true;
            kept = at + n;
        }
        at += n;
    }
    if (begun)
        add_text(c, (const char *)p, (size_t)(kept - p));
}

static void render_smollm2(struct chat_run *c, const struct chat_message *m, size_t n, bool prompt)
{
    const struct tokenizer *t = c->t;
    if (strcmp(m[0].role, "system") != 0) {
        add_control(c, t->chat_open);
        add_words(c, "system\n" SMOLLM2_SYSTEM);
        add_control(c, t->chat_close);
        add_words(c, "\n");
    }
    for (size_t i = 0; i < n; i++) {
        add_control(c, t->chat_open);
        add_words(c, m[i].role);
        add_words(c, "\n");
        add_text(c, m[i].content, m[i].content_bytes);
        add_control(c, t->chat_close);
        add_words(c, "\n");
    }
    if (prompt) {
        add_control(c, t->chat_open);
        add_words(c, "assistant\n");
    }
}

static void llama3_header(struct chat_run *c, const char *role)
{
    add_control(c, c->t->chat_open);
    add_words(c, role);
    add_control(c, c->t->chat_middle);
    add_words(c, "\n\n");
}

static void render_llama3(struct chat_run *c, const struct chat_message *m, size_t n, bool prompt)
{
    const struct tokenizer *t = c->t;
    add_control(c, t->bos);
    if (t->chat == CHAT_LLAMA31) {
        const bool system = strcmp(m[0].role, "system") == 0;
        llama3_header(c, "system");
        add_words(c, "Cutting Knowledge Date: December 2023\nToday Date: " LLAMA31_DATE "\n\n");
        if (system)
            add_trimmed(c, m[0].content, m[0].content_bytes);
        add_control(c, t->chat_close);
        m += system;
        n -= system;
    }
    for (size_t i = 0; i < n; i++) {
        llama3_header(c, m[i].role);
        add_trimmed(c, m[i].content, m[i].content_bytes);
        add_control(c, t->chat_close);
    }
    if (prompt || t->chat_always_prompts)
        llama3_header(c, "assistant");
}

/* Contents with a line end between two; nothing is said of roles, and there is no generation prompt. */
static void render_bytes(struct chat_run *c, const struct chat_message *m, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        add_words(c, i > 0 ? "\n" : "");
        add_text(c, m[i].content, m[i].content_bytes);
    }
}

static enum status check_messages(const struct chat_message *m, size_t n, struct error *err)
{
    static const char *const roles[] = { "system", "user", "assistant" };
    if (n == 0)
        return error_set(err, ST_INVALID, "messages: there is none");
    for (size_t i = 0; i < n; i++) {
        bool known = false;
        for (size_t r = 0; r < sizeof roles / sizeof roles[0]; r++)
            known = known || strcmp(m[i].role, roles[r]) == 0;
        if (!known)
            return error_set(err, ST_INVALID, "messages[%zu].role: \"%.40s\" is not one of system, user, assistant", i,
                             m[i].role);
    }
    return ST_OK;
}

enum status chat_encode(const struct tokenizer *t, const struct chat_message *messages, size_t n_messages,
                        bool generation_prompt, size_t ids_max, int32_t **ids_out, size_t *n_out, struct error *err)
{
    if (t->chat == CHAT_NONE)
        return error_set(err, t->chat_error.status, "%s", t->chat_error.text);
    enum status st = check_messages(messages, n_messages, err);
    if (st)
        return st;
    struct chat_run c = { .t = t, .run = { .ids_max = ids_max } };
    c.st = bpe_run_reserve(&c.run, 256);
    if (t->chat == CHAT_BYTES)
        render_bytes(&c, messages, n_messages);
    else if (t->chat == CHAT_SMOLLM2)
        render_smollm2(&c, messages, n_messages, generation_prompt);
    else
        render_llama3(&c, messages, n_messages, generation_prompt);
    flush_text(&c);
    if (!c.st)
        bpe_run_take(&c.run, ids_out, n_out);
    else if (c.st == ST_TOO_LARGE)
        error_set(err, c.st, "messages: more than %zu tokens", ids_max);
    bpe_run_deinit(&c.run);
    free(c.text);
    return c.st;
}

/* ---- chats as JSON ---- */

bool chat_reads(const struct tokenizer *t, const char *variable)
{
    return t->chat != CHAT_NONE && strcmp(variable, "messages") == 0;
}

static enum status message_of_json(const json_t *v, size_t i, struct chat_message *m, struct error *err)
{
    const json_t *role = json_object_get(v, "role"), *content = json_object_get(v, "content");
    if (!json_is_string(role) || strlen(json_string_value(role)) != json_string_length(role))
        return error_set(err, ST_INVALID, "messages[%zu].role: must be a string", i);
    if (!json_is_string(content))
        return error_set(err, ST_INVALID, "messages[%zu].content: must be a string", i);
    *m = (struct chat_message){ json_string_value(role), json_string_value(content), json_string_length(content) };
    return ST_OK;
}

enum status chat_encode_json(const struct tokenizer *t, const struct chat_input *in, size_t ids_max, int32_t **ids_out,
                             size_t *n_out, struct error *err)
{
    const size_t n = json_array_size(in->messages);
    if (json_array_size(in->tools) > 0)
        return error_set(err, ST_UNSUPPORTED, "tools: the chat template of this model takes none");
    if (n == 0)
        return error_set(err, ST_INVALID, "messages: there is none");
    struct chat_message *messages = calloc(n, sizeof *messages);
    enum status st = messages ? ST_OK : ST_NO_MEMORY;
    for (size_t i = 0; !st && i < n; i++)
        st = message_of_json(json_array_get(in->messages, i), i, &messages[i], err);
    if (!st)
        st = chat_encode(t, messages, n, in->generation_prompt, ids_max, ids_out, n_out, err);
    free(messages);
    return st;
}
