#include "kvstore/disk.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"
#include "kvstore/disk_folder.h"
#include "kvstore/disk_index.h"

enum {
    READS_MAX = 256, /* asked for at once */
    SAID_MS = 10000, /* between lines about the same trouble */
    CLOSE_MS = 4000, /* for what waits to be written when it ends */
    PAGE = 4096,
};

struct job {
    struct job *next;
    struct digest id;
    uint32_t position;
    uint64_t tag, turn; /* of a read */
    uint8_t *file;      /* of a write; NULL there: it is to go */
    size_t bytes;
};
struct jobs {
    struct job *first, **last;
};

struct pending {
    struct pending *next;
    struct kv_disk_event event;
};

struct trouble {
    const char *what;
    int64_t said_ms;
    uint64_t unsaid;
};

struct kv_disk {
    struct kv_disk_config config;
    struct kv_folder folder;
    pthread_t thread;
    bool started;
    struct trouble writing, reading; /* the thread's */

    pthread_mutex_t lock; /* of all below */
    pthread_cond_t work, room;
    struct kv_index index;
    struct jobs writes, reads;
    uint64_t write_bytes, read_bytes; /* that wait to be written; that were read and not taken */
    uint32_t n_reads;                 /* asked for and not taken */
    uint64_t turn;                    /* reads of turns before are wanted no more */
    struct pending *events, **events_end;
    struct kv_disk_stats stats; /* but for blocks and bytes */
    bool quit;
    int64_t quit_ms; /* when what waits is given up */
};

/* ---- events and jobs; under the lock ---- */

static void event_add(struct kv_disk *d, const struct kv_disk_event *event)
{
    struct pending *p = malloc(sizeof *p);
    const bool read = event->kind == KV_DISK_READ;
    if (!p) { /* who asked for it gives it up after a while */
        free(event->file);
        d->n_reads -= read;
        return;
    }
    d->read_bytes += read ? event->bytes : 0;
    *p = (struct pending){ NULL, *event };
    *d->events_end = p;
    d->events_end = &p->next;
}

/* Takes those out that are of reads, or those that are not. */
static void events_drop(struct kv_disk *d, bool reads)
{
    d->events_end = &d->events;
    for (struct pending *p = d->events, *next; p; p = next) {
        next = p->next;
        if ((p->event.kind == KV_DISK_READ) == reads) {
            d->read_bytes -= reads ? p->event.bytes : 0;
            d->n_reads -= reads;
            free(p->event.file);
            free(p);
        } else {
            *d->events_end = p;
            d->events_end = &p->next;
        }
    }
    *d->events_end = NULL;
}

static void job_push(struct jobs *q, struct job *j)
{
    *q->last = j;
    q->last = &j->next;
}

static struct job *job_pop(struct jobs *q)
{
    struct job *j = q->first;
    if (j && !(q->first = j->next))
        q->last = &q->first;
    return j;
}

static void jobs_free(struct jobs *q)
{
    for (struct job *j; (j = job_pop(q));) {
        free(j->file);
        free(j);
    }
}

/* ---- the thread ---- */

/* A disk that fails does so all the time. */
static void say(struct trouble *t, const char *text)
{
    const int64_t now = clock_ms();
    if (t->said_ms && now - t->said_ms < SAID_MS) {
        t->unsaid++;
        return;
    }
    log_warn("kv-disk: %s failed, %llu times before since it was said last; what is not there is computed: %s", t->what,
             (unsigned long long)t->unsaid, text);
    t->said_ms = now;
    t->unsaid = 0;
}

/* The oldest go until there is room for so much more. The lock is held, but for the removal of a file: only this thread makes and removes files. */
static void evict(struct kv_disk *d, uint64_t bytes)
{
    while (d->index.oldest && d->index.bytes + bytes > d->config.bytes_max) {
        const struct digest id = d->index.oldest->id;
        event_add(d, &(struct kv_disk_event){ .kind = KV_DISK_GONE, .id = id, .position = d->index.oldest->position });
        kv_index_remove(&d->index, d->index.oldest);
        d->stats.evicted++;
        pthread_mutex_unlock(&d->lock);
        kv_folder_remove(&d->folder, &id);
        pthread_mutex_lock(&d->lock);
    }
}

/* Under the lock, which is let go while the disk works. */
static void write_run(struct kv_disk *d, const struct job *j)
{
    struct error err = { 0 };
    struct kv_index_entry *e = kv_index_find(&d->index, &j->id);
    evict(d, e->bytes);
    pthread_mutex_unlock(&d->lock);
    kv_disk_file_seal(j->file, j->bytes, &d->config.fingerprint, &j->id, j->position);
    const enum status st = kv_folder_write(&d->folder, &j->id, j->file, j->bytes, &err);
    if (st)
        say(&d->writing, err.text);
    pthread_mutex_lock(&d->lock);
    e = kv_index_find(&d->index, &j->id); /* this thread alone removes entries */
    d->write_bytes -= j->bytes;
    pthread_cond_broadcast(&d->room);
    if (st) {
        d->stats.failed++;
        kv_index_remove(&d->index, e);
        return;
    }
    d->stats.written++;
    kv_index_ready(&d->index, e);
    event_add(d, &(struct kv_disk_event){ .kind = KV_DISK_STORED, .id = j->id, .position = j->position });
}

/* What was asked for and is not to be had is there no more. */
static void lose(struct kv_disk *d, const struct digest *id, enum status st)
{
    struct kv_index_entry *e = kv_index_find(&d->index, id);
    *(st == ST_CORRUPT ? &d->stats.refused : &d->stats.failed) += 1;
    if (!e || !e->ready || st == ST_NO_MEMORY)
        return;
    event_add(d, &(struct kv_disk_event){ .kind = KV_DISK_GONE, .id = *id, .position = e->position });
    kv_index_remove(&d->index, e);
    pthread_mutex_unlock(&d->lock);
    kv_folder_remove(&d->folder, id);
    pthread_mutex_lock(&d->lock);
}

static void read_run(struct kv_disk *d, const struct job *j)
{
    struct kv_disk_event event = { .kind = KV_DISK_READ, .id = j->id, .tag = j->tag };
    struct error err = { 0 };
    pthread_mutex_unlock(&d->lock);
    event.status = kv_folder_read(&d->folder, &j->id, &event.file, &event.bytes, &event.position, &err);
    if (event.status)
        say(&d->reading, err.text);
    pthread_mutex_lock(&d->lock);
    struct kv_index_entry *e = kv_index_find(&d->index, &j->id);
    if (event.status) {
        lose(d, &j->id, event.status);
    } else {
        d->stats.read++;
        if (e)
            kv_index_used(&d->index, e);
    }
    if (j->turn != d->turn) {
        free(event.file);
        return;
    }
    event_add(d, &event);
}

/* Reads come first, unless what was read is not taken. -> false: there is nothing to do now */
static bool job_run(struct kv_disk *d)
{
    struct job *j = d->read_bytes < d->config.queue_bytes_max && !d->quit ? job_pop(&d->reads) : NULL;
    if (j) {
        read_run(d, j);
    } else if ((j = job_pop(&d->writes))) {
        if (j->file)
            write_run(d, j);
        else
            lose(d, &j->id, ST_CORRUPT);
    } else {
        return false;
    }
    free(j->file);
    free(j);
    return true;
}

static void *disk_thread(void *arg)
{
    struct kv_disk *d = arg;
    pthread_mutex_lock(&d->lock);
    for (;;) {
        if (d->quit && clock_ms() >= d->quit_ms)
            break;
        if (job_run(d)) {
            pthread_mutex_unlock(&d->lock);
            if (d->config.on_event)
                d->config.on_event(d->config.ctx);
            pthread_mutex_lock(&d->lock);
        } else if (d->quit) {
            break;
        } else {
            pthread_cond_wait(&d->work, &d->lock);
        }
    }
    pthread_mutex_unlock(&d->lock);
    return NULL;
}

/* ---- life ---- */

/* Takes what is there into the index, the oldest first. */
static enum status scan(struct kv_disk *d, struct error *err)
{
    struct kv_folder_file *files;
    uint32_t n, refused;
    enum status st = kv_folder_scan(&d->folder, &files, &n, &refused, err);
    if (st)
        return st;
    for (uint32_t i = 0; !st && i < n; i++) {
        struct kv_index_entry *e = kv_index_add(&d->index, &files[i].id, files[i].position, files[i].bytes);
        if (e)
            kv_index_ready(&d->index, e);
        else
            st = error_set(err, ST_NO_MEMORY, "kv-disk %s: no memory for its index", d->folder.path);
    }
    free(files);
    d->stats.refused = refused;
    pthread_mutex_lock(&d->lock);
    evict(d, 0);
    events_drop(d, false); /* nobody knew of them */
    pthread_mutex_unlock(&d->lock);
    if (!st)
        log_info("kv-disk %s: %llu blocks, %.1f of %.1f MiB; %u files refused", d->folder.path,
                 (unsigned long long)d->index.n_ready, (double)d->index.bytes / 0x1p20,
                 (double)d->config.bytes_max / 0x1p20, refused);
    return st;
}

static void conditions_init(struct kv_disk *d)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->work, NULL);
    pthread_cond_init(&d->room, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

enum status kv_disk_open(const struct kv_disk_config *config, struct kv_disk **disk_out, struct error *err)
{
    struct kv_disk *d = calloc(1, sizeof *d);
    if (!d)
        return error_set(err, ST_NO_MEMORY, "kv-disk: no memory");
    d->config = *config;
    d->config.dir = NULL;
    if (!d->config.queue_bytes_max)
        d->config.queue_bytes_max = 64 << 20;
    d->folder.fd = d->folder.lock = -1;
    d->writes.last = &d->writes.first;
    d->reads.last = &d->reads.first;
    d->events_end = &d->events;
    d->writing.what = "writing a block";
    d->reading.what = "reading a block";
    conditions_init(d);
    enum status st = kv_index_init(&d->index) ? kv_folder_open(config, &d->folder, err) : ST_NO_MEMORY;
    if (!st)
        st = scan(d, err);
    if (!st && pthread_create(&d->thread, NULL, disk_thread, d))
        st = error_set(err, ST_NO_MEMORY, "kv-disk: no thread");
    d->started = !st;
    if (st) {
        kv_disk_close(d);
        return error_set(err, st, "kv-disk: no memory");
    }
    *disk_out = d;
    return ST_OK;
}

void kv_disk_close(struct kv_disk *d)
{
    if (!d)
        return;
    pthread_mutex_lock(&d->lock);
    d->quit = true;
    d->quit_ms = clock_ms() + CLOSE_MS;
    pthread_cond_broadcast(&d->work);
    pthread_mutex_unlock(&d->lock);
    if (d->started)
        pthread_join(d->thread, NULL);
    jobs_free(&d->writes);
    jobs_free(&d->reads);
    events_drop(d, true);
    events_drop(d, false);
    kv_index_deinit(&d->index);
    kv_folder_close(&d->folder);
    pthread_cond_destroy(&d->work);
    pthread_cond_destroy(&d->room);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

/* ---- the face ---- */

static void room_wait(struct kv_disk *d, uint32_t wait_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += wait_ms / 1000;
    until.tv_nsec += (long)(wait_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_cond_timedwait(&d->room, &d->lock, &until);
}

/* The lock is held. */
static bool has_room(const struct kv_disk *d, uint64_t bytes, bool ahead)
{
    return !d->write_bytes || d->write_bytes + bytes <= d->config.queue_bytes_max / (ahead ? 2 : 1);
}

enum status kv_disk_wants(struct kv_disk *d, const struct digest *id, size_t contents_bytes, int32_t wait_ms)
{
    const bool ahead = wait_ms == KV_DISK_AHEAD;
    const int64_t until = ahead ? 0 : clock_ms() + wait_ms;
    const uint64_t bytes = (uint64_t)contents_bytes + KV_DISK_HEADER;
    enum status st = ST_OK;
    pthread_mutex_lock(&d->lock);
    struct kv_index_entry *e = kv_index_find(&d->index, id);
    if (e) {
        if (!ahead)
            kv_index_used(&d->index, e);
        st = ST_EXISTS;
    } else if (contents_bytes > d->config.contents_bytes_max || bytes + PAGE > d->config.bytes_max) {
        st = ST_TOO_LARGE;
    } else {
        int64_t left;
        while (!has_room(d, bytes, ahead) && (left = until - clock_ms()) > 0)
            room_wait(d, (uint32_t)left);
        st = has_room(d, bytes, ahead) ? ST_OK : ST_BUSY;
    }
    d->stats.dropped += st == ST_BUSY && !ahead;
    pthread_mutex_unlock(&d->lock);
    return st;
}

void kv_disk_put(struct kv_disk *d, const struct digest *id, uint32_t position, uint8_t *file, size_t bytes)
{
    struct job *j = malloc(sizeof *j);
    pthread_mutex_lock(&d->lock);
    if (!j || kv_index_find(&d->index, id) || !kv_index_add(&d->index, id, position, bytes)) {
        d->stats.dropped += !kv_index_find(&d->index, id);
        free(file);
        free(j);
    } else {
        *j = (struct job){ .id = *id, .position = position, .file = file, .bytes = bytes };
        job_push(&d->writes, j);
        d->write_bytes += bytes;
        pthread_cond_signal(&d->work);
    }
    pthread_mutex_unlock(&d->lock);
}

enum status kv_disk_get(struct kv_disk *d, const struct digest *id, uint64_t tag)
{
    enum status st = ST_OK;
    struct job *j = malloc(sizeof *j);
    pthread_mutex_lock(&d->lock);
    const struct kv_index_entry *e = kv_index_find(&d->index, id);
    if (!e || !e->ready)
        st = ST_NOT_FOUND;
    else if (!j)
        st = ST_NO_MEMORY;
    else if (d->n_reads >= READS_MAX)
        st = ST_BUSY;
    if (st) {
        free(j);
    } else {
        *j = (struct job){ .id = *id, .tag = tag, .turn = d->turn };
        job_push(&d->reads, j);
        d->n_reads++;
        pthread_cond_signal(&d->work);
    }
    pthread_mutex_unlock(&d->lock);
    return st;
}

void kv_disk_refuse(struct kv_disk *d, const struct digest *id)
{
    struct job *j = malloc(sizeof *j);
    if (!j)
        return;
    *j = (struct job){ .id = *id };
    pthread_mutex_lock(&d->lock);
    job_push(&d->writes, j);
    pthread_cond_signal(&d->work);
    pthread_mutex_unlock(&d->lock);
}

bool kv_disk_next(struct kv_disk *d, struct kv_disk_event *event_out)
{
    pthread_mutex_lock(&d->lock);
    struct pending *p = d->events;
    if (p) {
        *event_out = p->event;
        if (!(d->events = p->next))
            d->events_end = &d->events;
        if (p->event.kind == KV_DISK_READ) {
            d->n_reads--;
            d->read_bytes -= p->event.bytes;
            pthread_cond_signal(&d->work);
        }
    }
    pthread_mutex_unlock(&d->lock);
    free(p);
    return p != NULL;
}

void kv_disk_cancel(struct kv_disk *d)
{
    pthread_mutex_lock(&d->lock);
    d->turn++;
    jobs_free(&d->reads);
    events_drop(d, true);
    d->n_reads = 0;
    d->read_bytes = 0;
    pthread_mutex_unlock(&d->lock);
}

enum status kv_disk_list(struct kv_disk *d, struct kv_disk_block **blocks_out, uint32_t *n_out)
{
    uint32_t n = 0;
    pthread_mutex_lock(&d->lock);
    struct kv_disk_block *blocks = malloc((d->index.n_ready + 1) * sizeof *blocks);
    for (const struct kv_index_entry *e = d->index.oldest; blocks && e; e = e->newer)
        blocks[n++] = (struct kv_disk_block){ e->id, e->position };
    if (blocks)
        events_drop(d, false);
    pthread_mutex_unlock(&d->lock);
    if (!blocks)
        return ST_NO_MEMORY;
    *blocks_out = blocks;
    *n_out = n;
    return ST_OK;
}

void kv_disk_stats(struct kv_disk *d, struct kv_disk_stats *stats_out)
{
    pthread_mutex_lock(&d->lock);
    *stats_out = d->stats;
    stats_out->blocks = d->index.n_ready;
    stats_out->bytes = d->index.bytes;
    pthread_mutex_unlock(&d->lock);
}

const char *kv_disk_folder(const struct kv_disk *d)
{
    return d->folder.path;
}
