#include "coordinator/registry/embedded_store.h"

#include <stdlib.h>
#include <string.h>

#include <sqlite3.h>

enum { BUSY_MS = 2000, FORMAT = 1 };

enum statement {
    BEGIN,
    COMMIT,
    ROLLBACK,
    NEXT,
    REVISION,
    GET,
    PUT,
    REMOVE,
    LIST,
    LEASED,
    ALL_LEASED,
    REMOVE_LEASE,
    REMOVE_LEASED,
    STATEMENTS
};

static const char *const sql[STATEMENTS] = {
    [BEGIN] = "BEGIN IMMEDIATE",
    [COMMIT] = "COMMIT",
    [ROLLBACK] = "ROLLBACK",
    [NEXT] = "UPDATE meta SET value = value + 1 WHERE name = 'revision'",
    [REVISION] = "SELECT value FROM meta WHERE name = 'revision'",
    [GET] = "SELECT key, value, revision, lease FROM kv WHERE key = ?1",
    [PUT] = "INSERT OR REPLACE INTO kv (key, value, revision, lease) VALUES (?1, ?2, ?3, ?4)",
    [REMOVE] = "DELETE FROM kv WHERE key = ?1",
    [LIST] = "SELECT key, value, revision, lease FROM kv WHERE key >= ?1 ORDER BY key",
    [LEASED] = "SELECT key FROM kv WHERE lease = ?1 ORDER BY key",
    [ALL_LEASED] = "SELECT key FROM kv WHERE lease != 0 ORDER BY key",
    [REMOVE_LEASE] = "DELETE FROM kv WHERE lease = ?1",
    [REMOVE_LEASED] = "DELETE FROM kv WHERE lease != 0",
};

/* Keys are blobs, so that they sort by their bytes. */
static const char schema[] =
    "PRAGMA journal_mode = WAL;"
    "PRAGMA synchronous = FULL;"
    "PRAGMA user_version = 1;"
    "BEGIN IMMEDIATE;"
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;"
    "INSERT OR IGNORE INTO meta VALUES ('revision', 0);"
    "CREATE TABLE IF NOT EXISTS kv (key BLOB PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL,"
    " lease INTEGER NOT NULL) STRICT, WITHOUT ROWID;"
    "CREATE INDEX IF NOT EXISTS kv_lease ON kv (lease) WHERE lease != 0;"
    "COMMIT;";

struct store {
    sqlite3 *db;
    sqlite3_stmt *statements[STATEMENTS];
    char *path;
};

static enum status store_error(const struct store *s, struct error *err)
{
    const int code = sqlite3_errcode(s->db) & 0xFF;
    const enum status st = code == SQLITE_CORRUPT || code == SQLITE_NOTADB ? ST_CORRUPT
                           : code == SQLITE_NOMEM                          ? ST_NO_MEMORY
                                                                           : ST_IO;
    return error_set(err, st, "registry %s: %s", s->path, sqlite3_errmsg(s->db));
}

static enum status check_format(struct store *s, struct error *err)
{
    sqlite3_stmt *stmt = NULL;
    enum status st = ST_OK;
    if (sqlite3_prepare_v2(s->db, "PRAGMA user_version", -1, &stmt, NULL) != SQLITE_OK ||
        sqlite3_step(stmt) != SQLITE_ROW)
        st = store_error(s, err);
    else if (sqlite3_column_int(stmt, 0) > FORMAT)
        st = error_set(err, ST_UNSUPPORTED, "registry %s: written by a newer version (format %d, known is %d)", s->path,
                       sqlite3_column_int(stmt, 0), FORMAT);
    sqlite3_finalize(stmt);
    return st;
}

enum status store_open(const char *path, struct store **store_out, struct error *err)
{
    struct store *s = calloc(1, sizeof *s);
    if (!s || !(s->path = strdup(path))) {
        free(s);
        return error_set(err, ST_NO_MEMORY, "registry: out of memory");
    }
    enum status st;
    if (sqlite3_open_v2(path, &s->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL) !=
        SQLITE_OK) {
        st = s->db ? store_error(s, err) : error_set(err, ST_NO_MEMORY, "registry: out of memory");
        goto fail;
    }
    sqlite3_busy_timeout(s->db, BUSY_MS);
    st = check_format(s, err);
    if (st)
        goto fail;
    if (sqlite3_exec(s->db, schema, NULL, NULL, NULL) != SQLITE_OK) {
        st = store_error(s, err);
        goto fail;
    }
    for (int i = 0; i < STATEMENTS; i++)
        if (sqlite3_prepare_v3(s->db, sql[i], -1, SQLITE_PREPARE_PERSISTENT, &s->statements[i], NULL) != SQLITE_OK) {
            st = store_error(s, err);
            goto fail;
        }
    *store_out = s;
    return ST_OK;
fail:
    store_close(s);
    return st;
}

void store_close(struct store *s)
{
    if (!s)
        return;
    for (int i = 0; i < STATEMENTS; i++)
        sqlite3_finalize(s->statements[i]);
    sqlite3_close(s->db);
    free(s->path);
    free(s);
}

/* ---- items ---- */

bool store_items_add(struct store_items *items, const struct registry_item *item)
{
    if (items->n == items->room) {
        const size_t room = items->room ? 2 * items->room : 8;
        struct registry_item *more = realloc(items->items, room * sizeof *more);
        if (!more)
            return false;
        items->items = more;
        items->room = room;
    }
    const size_t n_key = strlen(item->key) + 1;
    char *data = malloc(n_key + item->bytes);
    if (!data)
        return false;
    memcpy(data, item->key, n_key);
    if (item->bytes)
        memcpy(data + n_key, item->value, item->bytes);
    struct registry_item *to = &items->items[items->n++];
    *to = *item;
    to->key = data;
    to->value = (const uint8_t *)data + n_key;
    return true;
}

void store_items_free(struct store_items *items)
{
    for (size_t i = 0; i < items->n; i++)
        free((char *)(uintptr_t)items->items[i].key);
    free(items->items);
    *items = (struct store_items){ 0 };
}

/* ---- statements ---- */

/* Runs one that gives no row. */
static bool run(struct store *s, enum statement which)
{
    sqlite3_stmt *stmt = s->statements[which];
    const int rc = sqlite3_step(stmt);
    sqlite3_reset(stmt);
    sqlite3_clear_bindings(stmt);
    return rc == SQLITE_DONE;
}

static void bind_key(struct store *s, enum statement which, const char *key)
{
    sqlite3_bind_blob(s->statements[which], 1, key, (int)strlen(key), SQLITE_STATIC);
}

static bool read_revision(struct store *s, uint64_t *revision_out)
{
    sqlite3_stmt *stmt = s->statements[REVISION];
    const bool ok = sqlite3_step(stmt) == SQLITE_ROW;
    if (ok)
        *revision_out = (uint64_t)sqlite3_column_int64(stmt, 0);
    sqlite3_reset(stmt);
    return ok;
}

static bool next_revision(struct store *s, uint64_t *revision_out)
{
    return run(s, NEXT) && read_revision(s, revision_out);
}

/* key columns are not NUL-terminated */
static bool add_row(sqlite3_stmt *stmt, struct store_items *found)
{
    char key[REGISTRY_KEY_MAX + 1];
    const size_t n = (size_t)sqlite3_column_bytes(stmt, 0);
    if (n > REGISTRY_KEY_MAX)
        return false;
    if (n)
        memcpy(key, sqlite3_column_blob(stmt, 0), n);
    key[n] = 0;
    const bool whole = sqlite3_column_count(stmt) > 1;
    const struct registry_item item = { .key = key,
                                        .value = whole ? sqlite3_column_blob(stmt, 1) : NULL,
                                        .bytes = whole ? (size_t)sqlite3_column_bytes(stmt, 1) : 0,
                                        .revision = whole ? (uint64_t)sqlite3_column_int64(stmt, 2) : 0,
                                        .lease = whole ? (uint64_t)sqlite3_column_int64(stmt, 3) : 0 };
    return store_items_add(found, &item);
}

static bool begins(sqlite3_stmt *stmt, const char *prefix)
{
    const size_t n = strlen(prefix);
    return (size_t)sqlite3_column_bytes(stmt, 0) >= n && (!n || !memcmp(sqlite3_column_blob(stmt, 0), prefix, n));
}

/* All rows, or those that begin with prefix (then the first that does not is the end). */
static bool collect(struct store *s, enum statement which, const char *prefix, struct store_items *found)
{
    sqlite3_stmt *stmt = s->statements[which];
    int rc = SQLITE_DONE;
    bool ok = true;
    while (ok && (rc = sqlite3_step(stmt)) == SQLITE_ROW && (!prefix || begins(stmt, prefix)))
        ok = add_row(stmt, found);
    ok = ok && (rc == SQLITE_DONE || rc == SQLITE_ROW);
    sqlite3_reset(stmt);
    sqlite3_clear_bindings(stmt);
    return ok;
}

static bool get(struct store *s, const char *key, struct store_items *found)
{
    bind_key(s, GET, key);
    return collect(s, GET, NULL, found);
}

/* ST_OK: it may be written. */
static enum status compare(enum registry_compare how, uint64_t at, const struct store_items *found)
{
    const struct registry_item *item = found->n ? &found->items[0] : NULL;
    const bool fits = how == REGISTRY_ANY || (how == REGISTRY_ABSENT && !item) ||
                      (how == REGISTRY_AT && item && item->revision == at);
    return fits ? ST_OK : ST_STALE;
}

static enum status end(struct store *s, enum status st, bool ok, struct error *err)
{
    if (!ok)
        st = store_error(s, err);
    if (!st && !run(s, COMMIT))
        st = store_error(s, err);
    if (st && !sqlite3_get_autocommit(s->db))
        run(s, ROLLBACK);
    return st;
}

enum status store_put(struct store *s, const struct registry_put *put, uint64_t *revision_out,
                      struct store_items *found, struct error *err)
{
    uint64_t revision = 0;
    bool ok = run(s, BEGIN) && get(s, put->key, found);
    const enum status st = ok ? compare(put->compare, put->at, found) : ST_IO;
    if (ok && !st) {
        ok = next_revision(s, &revision);
        bind_key(s, PUT, put->key);
        sqlite3_bind_blob(s->statements[PUT], 2, put->bytes ? put->value : "", (int)put->bytes, SQLITE_STATIC);
        sqlite3_bind_int64(s->statements[PUT], 3, (sqlite3_int64)revision);
        sqlite3_bind_int64(s->statements[PUT], 4, (sqlite3_int64)put->lease);
        ok = run(s, PUT) && ok;
    }
    const enum status done = end(s, st, ok, err);
    if (!done)
        *revision_out = revision;
    return done;
}

enum status store_remove(struct store *s, const char *key, enum registry_compare how, uint64_t at,
                         uint64_t *revision_out, bool *removed_out, struct store_items *found, struct error *err)
{
    uint64_t revision = 0;
    bool ok = run(s, BEGIN) && get(s, key, found);
    const enum status st = ok ? compare(how, at, found) : ST_IO;
    if (ok && !st && found->n) {
        ok = next_revision(s, &revision);
        bind_key(s, REMOVE, key);
        ok = run(s, REMOVE) && ok;
    } else if (ok && !st) {
        ok = read_revision(s, &revision);
    }
    const enum status done = end(s, st, ok, err);
    if (!done) {
        *revision_out = revision;
        *removed_out = found->n > 0;
    }
    return done;
}

enum status store_remove_lease(struct store *s, uint64_t lease, struct store_items *removed, struct error *err)
{
    uint64_t revision = 0;
    bool ok = run(s, BEGIN);
    if (lease)
        sqlite3_bind_int64(s->statements[LEASED], 1, (sqlite3_int64)lease);
    ok = ok && collect(s, lease ? LEASED : ALL_LEASED, NULL, removed);
    if (ok && removed->n) {
        if (lease)
            sqlite3_bind_int64(s->statements[REMOVE_LEASE], 1, (sqlite3_int64)lease);
        ok = next_revision(s, &revision) && run(s, lease ? REMOVE_LEASE : REMOVE_LEASED);
    }
    const enum status st = end(s, ST_OK, ok, err);
    for (size_t i = 0; i < removed->n && !st; i++)
        removed->items[i].revision = revision;
    if (st)
        store_items_free(removed);
    return st;
}

enum status store_number(struct store *s, uint64_t *number_out, struct error *err)
{
    uint64_t revision = 0;
    const bool ok = run(s, BEGIN) && next_revision(s, &revision);
    const enum status st = end(s, ST_OK, ok, err);
    if (!st)
        *number_out = revision;
    return st;
}

/* One read transaction, so that the revision is that of what was read. */
enum status store_list(struct store *s, const char *prefix, bool exact, struct store_items *found,
                       uint64_t *revision_out, struct error *err)
{
    bool ok = sqlite3_exec(s->db, "BEGIN", NULL, NULL, NULL) == SQLITE_OK && read_revision(s, revision_out);
    if (ok && exact) {
        ok = get(s, prefix, found);
    } else if (ok) {
        bind_key(s, LIST, prefix);
        ok = collect(s, LIST, prefix, found);
    }
    return end(s, ST_OK, ok, err);
}
