#ifndef LONGSPAN_COMMON_TLS_WATCH_H
#define LONGSPAN_COMMON_TLS_WATCH_H

/*
 * Certificates that are replaced while a process runs: what changed in the files is read and checked anew, and what does not fit together changes nothing.
 */

#include <stdbool.h>

#include "common/tls.h"

#ifdef __cplusplus
extern "C" {
#endif

struct tls_watch;
/* As tls_load: what, mutual; files: their paths are kept. Before the files are loaded, so that no change between is missed. NULL: no memory. */
struct tls_watch *tls_watch_new(const char *what, const struct tls_files *files, bool mutual);
/*
 * Whether the files changed since the last look (always: as if they had), and are good: then *tls_out is what they hold, the caller's. What is not good is logged once a change, and
 * what was loaded before stays. false also: no file is named.
 */
bool tls_watch_look(struct tls_watch *w, bool always, struct tls **tls_out);
/* Accepts NULL. */
void tls_watch_free(struct tls_watch *w);

#ifdef __cplusplus
}
#endif
#endif
