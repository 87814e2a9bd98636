#include "common/tls_watch.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/log.h"

/* What tells one state of a file from another, also where a link is put to another file, as orchestrators do. All zeros: it is not there. */
struct mark {
    dev_t device;
    ino_t inode;
    off_t bytes;
    struct timespec changed, attributes_changed;
};

struct tls_watch {
    const char *what;
    struct tls_files files;
    bool mutual;
    struct mark marks[3];
};

static struct mark mark_of(const char *path)
{
    struct stat about;
    struct mark m;
    memset(&m, 0, sizeof m); /* padding too: marks are compared as bytes */
    if (!path || !*path || stat(path, &about))
        return m;
    m.device = about.st_dev;
    m.inode = about.st_ino;
    m.bytes = about.st_size;
    m.changed = about.st_mtim;
    m.attributes_changed = about.st_ctim;
    return m;
}

static bool marks_take(struct tls_watch *w)
{
    const struct mark now[3] = { mark_of(w->files.ca), mark_of(w->files.cert), mark_of(w->files.key) };
    const bool changed = memcmp(now, w->marks, sizeof now) != 0;
    memcpy(w->marks, now, sizeof now);
    return changed;
}

struct tls_watch *tls_watch_new(const char *what, const struct tls_files *files, bool mutual)
{
    struct tls_watch *w = calloc(1, sizeof *w);
    if (!w)
        return NULL;
    w->what = what;
    w->files = *files;
    w->mutual = mutual;
    marks_take(w);
    return w;
}

bool tls_watch_look(struct tls_watch *w, bool always, struct tls **tls_out)
{
    struct error err = { 0 };
    struct tls *tls;
    if (!marks_take(w) && !always)
        return false;
    if (tls_load(w->what, &w->files, w->mutual, &tls, &err)) {
        log_error("%s; the certificate from before stays", err.text);
        return false;
    }
    if (!tls)
        return false;
    *tls_out = tls;
    return true;
}

void tls_watch_free(struct tls_watch *w)
{
    free(w);
}
