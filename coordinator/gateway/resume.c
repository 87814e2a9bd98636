#include "coordinator/gateway/resume.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/file.h"
#include "common/log.h"

enum { SWEEP_MS = 20000, NUMBER_MAX = 1 << 30, ID_MAX = 4096 };

/* ---- ids of events ---- */

void resume_write(const struct resume *r, const char *request, struct text *out)
{
    text_printf(out, "%s/", request);
    for (uint32_t i = 0; i < r->n; i++) {
        const struct resume_place *p = &r->places[i];
        text_str(out, i ? "," : "");
        if (p->begun)
            text_printf(out, "%u.%u", p->tokens, p->text);
        else
            text_str(out, "-");
        if (p->scores)
            text_printf(out, "s%u", p->scores);
        text_str(out, p->begun && p->ended ? "e" : "");
    }
    text_str(out, r->usage ? "u" : "");
}

static bool number(const char **at, uint32_t *out)
{
    uint32_t n = 0;
    const char *begin = *at;
    for (; **at >= '0' && **at <= '9'; (*at)++) {
        n = n * 10 + (uint32_t)(**at - '0');
        if (n > NUMBER_MAX || *at - begin > 9)
            return false;
    }
    *out = n;
    return *at != begin;
}

static bool place_read(const char **at, struct resume_place *p)
{
    *p = (struct resume_place){ .begun = **at != '-' };
    if (!p->begun)
        (*at)++;
    else if (!number(at, &p->tokens) || *(*at)++ != '.' || !number(at, &p->text))
        return false;
    if (**at == 's' && ((*at)++, !number(at, &p->scores) || !p->scores))
        return false;
    p->ended = p->begun && **at == 'e';
    *at += p->ended;
    return true;
}

enum status resume_read(const char *id, const char *request, struct resume *r_out)
{
    const size_t n = strlen(request);
    if (strlen(id) > ID_MAX || strncmp(id, request, n) != 0 || id[n] != '/')
        return ST_INVALID;
    const char *at = id + n + 1;
    memset(r_out, 0, sizeof *r_out);
    do {
        if (r_out->n == WANT_CHOICES_MAX || !place_read(&at, &r_out->places[r_out->n++]))
            return ST_INVALID;
    } while (*at == ',' && at++);
    r_out->usage = *at == 'u';
    at += r_out->usage;
    return *at ? ST_INVALID : ST_OK;
}

/* ---- names ---- */

enum status resumes_name(const char *key, const char *owner, const char *path, const void *body, size_t bytes,
                         char name_out[RESUME_NAME_BYTES + 1], uint64_t *seed_out)
{
    const size_t n = strlen(key);
    if (!n || n > RESUME_KEY_MAX)
        return ST_INVALID;
    for (size_t i = 0; i < n; i++)
        if (key[i] < 0x20 || key[i] > 0x7e)
            return ST_INVALID;
    const struct digest content = digest_of(body, bytes);
    struct hasher *h = hasher_new();
    hasher_add_text(h, "resume");
    hasher_add_text(h, key);
    hasher_add_text(h, owner ? owner : "");
    hasher_add_text(h, path);
    hasher_add(h, content.byte, sizeof content.byte);
    const struct digest name = hasher_end(h);
    h = hasher_new();
    hasher_add_text(h, "seed");
    hasher_add(h, name.byte, sizeof name.byte);
    const struct digest seed = hasher_end(h);
    digest_text(&name, name_out);
    memcpy(seed_out, seed.byte, sizeof *seed_out);
    return ST_OK;
}

/* ---- the folder ---- */

struct resumes {
    struct resumes_config config;
    char dir[KEEPER_PATH_MAX - 64];
    struct helper *helper;
    struct loop_timer *timer;
    bool sweeping;
};

struct opening {
    struct resumes *resumes;
    char name[RESUME_NAME_BYTES + 1];
    struct keeper *keeper;
    void (*done)(void *ctx, struct keeper *k);
    void *ctx;
};

static void open_work(void *arg)
{
    struct opening *o = arg;
    char path[KEEPER_PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", o->resumes->dir, o->name);
    o->keeper = keeper_open(path, &o->resumes->config.context);
}

static void open_done(void *arg)
{
    struct opening *o = arg;
    o->done(o->ctx, o->keeper);
    free(o);
}

enum status resumes_open(struct resumes *r, const char *name, void (*done)(void *ctx, struct keeper *k), void *ctx)
{
    struct opening *o = calloc(1, sizeof *o);
    if (!o)
        return ST_NO_MEMORY;
    o->resumes = r;
    o->done = done;
    o->ctx = ctx;
    snprintf(o->name, sizeof o->name, "%s", name);
    if (!helper_run(r->helper, open_work, open_done, o))
        return ST_OK;
    free(o);
    return ST_NO_MEMORY;
}

void resumes_note(struct resumes *r, struct keeper *k, const struct generation *g)
{
    keeper_note(k, r->helper, g);
}

struct file {
    char name[RESUME_NAME_BYTES + 1];
    uint64_t bytes;
    int64_t changed_s;
};

static int by_age(const void *a, const void *b)
{
    const struct file *x = a, *y = b;
    return x->changed_s < y->changed_s ? -1 : x->changed_s > y->changed_s;
}

/* All journals in the folder. -> how many; *files_out: malloc'd */
static size_t files_list(DIR *d, struct file **files_out, uint64_t *bytes_out)
{
    struct file *files = NULL;
    size_t n = 0, room = 0;
    *bytes_out = 0;
    for (const struct dirent *e; (e = readdir(d));) {
        struct stat s;
        if (strlen(e->d_name) != RESUME_NAME_BYTES || fstatat(dirfd(d), e->d_name, &s, AT_SYMLINK_NOFOLLOW) < 0 ||
            !S_ISREG(s.st_mode))
            continue;
        if (n == room) {
            room = room ? 2 * room : 64;
            struct file *more = realloc(files, room * sizeof *more);
            if (!more)
                break;
            files = more;
        }
        files[n] = (struct file){ .bytes = (uint64_t)s.st_size, .changed_s = s.st_mtime };
        memcpy(files[n].name, e->d_name, sizeof files[n].name);
        *bytes_out += files[n++].bytes;
    }
    *files_out = files;
    return n;
}

static void sweep_work(void *arg)
{
    const struct resumes *r = arg;
    const int64_t now = (int64_t)time(NULL);
    struct file *files = NULL;
    uint64_t bytes = 0;
    DIR *d = opendir(r->dir);
    const size_t n = d ? files_list(d, &files, &bytes) : 0;
    if (n)
        qsort(files, n, sizeof *files, by_age);
    for (size_t i = 0; i < n; i++) {
        if (files[i].changed_s + r->config.keep_s >= now && bytes <= r->config.bytes_max)
            break;
        if (unlinkat(dirfd(d), files[i].name, 0) == 0)
            bytes -= files[i].bytes;
    }
    if (d)
        closedir(d);
    free(files);
}

static void sweep_done(void *arg)
{
    struct resumes *r = arg;
    r->sweeping = false;
}

static void on_timer(void *arg)
{
    struct resumes *r = arg;
    loop_timer_set(r->timer, SWEEP_MS);
    if (!r->sweeping)
        r->sweeping = !helper_run(r->helper, sweep_work, sweep_done, r);
}

enum status resumes_new(const struct resumes_config *config, struct resumes **resumes_out, struct error *err)
{
    struct resumes *r = calloc(1, sizeof *r);
    if (!r)
        return error_set(err, ST_NO_MEMORY, "streams: out of memory");
    r->config = *config;
    enum status st = ST_OK;
    if (snprintf(r->dir, sizeof r->dir, "%s", config->dir) >= (int)sizeof r->dir)
        st = error_set(err, ST_TOO_LARGE, "streams: %s: path too long", config->dir);
    r->config.dir = r->dir;
    if (!st)
        st = file_mkdirs(r->dir, err);
    r->timer = loop_timer_new(config->loop, on_timer, r);
    if (!st && (!r->timer || helper_new(config->loop, &r->helper)))
        st = error_set(err, ST_NO_MEMORY, "streams: out of memory");
    if (st) {
        resumes_free(r);
        return st;
    }
    loop_timer_set(r->timer, 0);
    *resumes_out = r;
    return ST_OK;
}

uint32_t resumes_grace_ms(const struct resumes *r)
{
    return r->config.grace_ms;
}

void resumes_free(struct resumes *r)
{
    if (!r)
        return;
    loop_timer_free(r->timer);
    if (r->helper)
        helper_free(r->helper);
    free(r);
}
