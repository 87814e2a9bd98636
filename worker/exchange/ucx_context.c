/* UCX's context and worker: which lanes, which interface, which settings; and what peers need to reach it. */
#define _GNU_SOURCE /* NI_MAXHOST, open_memstream */

#include "worker/exchange/ucx.h"

#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <ucs/debug/log_def.h>
#include <unistd.h>

#include "common/log.h"

/* UCX's own words go where ours go. What it calls an error is a peer that died: the exchange copes and says so itself. */
static ucs_log_func_rc_t on_log(const char *file, unsigned line, const char *function, ucs_log_level_t level,
                                const ucs_log_component_config_t *component, const char *format, va_list ap)
{
    char text[512];
    (void)file;
    (void)line;
    (void)component;
    if (level > UCS_LOG_LEVEL_TRACE)
        return UCS_LOG_FUNC_RC_CONTINUE;
    vsnprintf(text, sizeof text, format, ap);
    if (level == UCS_LOG_LEVEL_FATAL)
        log_error("ucx: %s: %s", function, text);
    else if (level <= UCS_LOG_LEVEL_WARN)
        log_warn("ucx: %s: %s", function, text);
    else
        log_debug("ucx: %s: %s", function, text);
    return UCS_LOG_FUNC_RC_STOP;
}

static void log_begin(void)
{
    ucs_log_push_handler(on_log);
}

/*
 * A setting of UCX, named as in its environment (less UCX_), and as ucp_config_modify of 1.13 wants it where that differs: there a lane's own settings
 * go without the lane's prefix. UCX warns of settings for lanes that are not in use.
 */
struct setting {
    const char *name, *name_1_13, *value;
    const char *lanes; /* NULL: of any */
};

/* What the user says in the environment goes before these. */
static const struct setting settings[] = {
    /* without it, endpoints that report dead peers silently use tcp on one host */
    { "POSIX_ERROR_HANDLING", "MM_ERROR_HANDLING", "y", "shm" },
    /* everything goes by copies: a peer that dies while tcp sends from where the bytes are (in a rendezvous) trips an assertion here, in 1.13 */
    { "RNDV_THRESH", NULL, "inf", NULL },
    { "ZCOPY_THRESH", NULL, "inf", NULL },
    { "KEEPALIVE_INTERVAL", NULL, "1s", NULL }, /* 20 s: how long a killed peer on shared memory goes unnoticed */
    { "TCP_TX_SEG_SIZE", "TX_SEG_SIZE", "32K", "tcp" }, /* copies by 8 KB take twice as long */
    { "TCP_KEEPIDLE", "KEEPIDLE", "1s", "tcp" },
    { "TCP_KEEPINTVL", "KEEPINTVL", "1s", "tcp" },
    { "TCP_KEEPCNT", "KEEPCNT", "3", "tcp" },
    { "TCP_CONN_NB", "CONN_NB", "y", "tcp" }, /* connecting to a host that is cut off must not hold up a step */
};

static bool user_set(const char *name)
{
    char full[64];
    snprintf(full, sizeof full, "UCX_%s", name);
    return getenv(full) != NULL;
}

static enum status set(ucp_config_t *ucp, const char *name, const char *name_1_13, const char *value, struct error *err)
{
    unsigned major, minor, release;
    ucp_get_version(&major, &minor, &release);
    const bool short_names = major == 1 && minor <= 13;
    const ucs_status_t st = ucp_config_modify(ucp, short_names && name_1_13 ? name_1_13 : name, value);
    if (st)
        return error_set(err, ST_INVALID, "exchange ucx: %s=%s: %s", name, value, ucs_status_string(st));
    return ST_OK;
}

static enum status lanes_set(ucp_config_t *ucp, const char *lanes, struct error *err)
{
    if (!lanes) /* sysv would leave segments behind, and cma does not work with error handling */
        return user_set("TLS") ? ST_OK : set(ucp, "TLS", NULL, "^sysv,cma", err);
    if (!strcmp(lanes, "shm"))
        return set(ucp, "TLS", NULL, "posix,self", err);
    if (!strcmp(lanes, "tcp"))
        return set(ucp, "TLS", NULL, "tcp,self", err);
    return error_set(err, ST_INVALID, "exchange ucx: lanes '%s' (shm, tcp)", lanes);
}

static bool same_address(const struct sockaddr *a, const struct sockaddr *b)
{
    if (a->sa_family != b->sa_family)
        return false;
    if (a->sa_family == AF_INET)
        return ((const struct sockaddr_in *)a)->sin_addr.s_addr == ((const struct sockaddr_in *)b)->sin_addr.s_addr;
    if (a->sa_family == AF_INET6)
        return !memcmp(&((const struct sockaddr_in6 *)a)->sin6_addr, &((const struct sockaddr_in6 *)b)->sin6_addr, 16);
    return false;
}

static bool any_address(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET)
        return ((const struct sockaddr_in *)a)->sin_addr.s_addr == htonl(INADDR_ANY);
    return a->sa_family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)a)->sin6_addr);
}

/* The interface that has the address (127.0.0.2 is lo's too) and its flags; ST_NOT_FOUND. */
static enum status interface_with(const struct sockaddr *address, char name_out[IF_NAMESIZE], unsigned *flags_out)
{
    struct ifaddrs *all = NULL;
    enum status st = ST_NOT_FOUND;
    if (getifaddrs(&all))
        return ST_IO;
    const bool loopback = address->sa_family == AF_INET &&
                          ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
    for (const struct ifaddrs *i = all; i && st; i = i->ifa_next) {
        if (!i->ifa_addr || (!same_address(i->ifa_addr, address) && !(loopback && i->ifa_flags & IFF_LOOPBACK)))
            continue;
        snprintf(name_out, IF_NAMESIZE, "%s", i->ifa_name);
        *flags_out = i->ifa_flags;
        st = ST_OK;
    }
    freeifaddrs(all);
    return st;
}

/* "" for any. UCX passes over interfaces that are down or that it cannot see, without a word: said here. One that comes up just now is waited for. */
static enum status interface_of(const char *bind, char name_out[IF_NAMESIZE], struct error *err)
{
    const struct timespec pause = { 0, 100 * 1000000 };
    struct addrinfo *want = NULL, hints = { .ai_socktype = SOCK_STREAM };
    const int rc = getaddrinfo(bind, NULL, &hints, &want);
    if (rc)
        return error_set(err, ST_INVALID, "exchange ucx: bind address '%s': %s", bind, gai_strerror(rc));
    enum status st = ST_OK;
    unsigned flags = IFF_UP | IFF_RUNNING;
    name_out[0] = 0;
    if (!any_address(want->ai_addr))
        st = interface_with(want->ai_addr, name_out, &flags);
    for (int i = 0; i < 20 && !st && (flags & (IFF_UP | IFF_RUNNING)) != (IFF_UP | IFF_RUNNING); i++) {
        nanosleep(&pause, NULL);
        st = interface_with(want->ai_addr, name_out, &flags);
    }
    freeaddrinfo(want);
    if (st)
        return error_set(err, ST_INVALID, "exchange ucx: bind address '%s' is on no interface of this host", bind);
    if ((flags & (IFF_UP | IFF_RUNNING)) != (IFF_UP | IFF_RUNNING))
        return error_set(err, ST_IO, "exchange ucx: bind address '%s': interface %s is down", bind, name_out);
    char path[64];
    snprintf(path, sizeof path, "/sys/class/net/%s", name_out);
    if (access(path, F_OK))
        return error_set(err, ST_IO,
                         "exchange ucx: bind address '%s': no %s, where UCX looks for interfaces (/sys is that of "
                         "another network namespace)",
                         bind, path);
    return ST_OK;
}

static enum status network_set(ucp_config_t *ucp, const struct exchange_config *config, struct error *err)
{
    char name[IF_NAMESIZE] = "", range[32];
    if (config->lanes && !strcmp(config->lanes, "shm"))
        return ST_OK;
    if (config->bind && config->bind[0]) {
        const enum status st = interface_of(config->bind, name, err);
        if (st)
            return st;
    }
    if (name[0]) { /* or addresses carry every interface */
        const enum status st = set(ucp, "NET_DEVICES", NULL, name, err);
        if (st)
            return st;
    }
    if (!config->port_first && !config->port_last)
        return ST_OK;
    if (config->port_first > config->port_last || !config->port_first)
        return error_set(err, ST_INVALID, "exchange ucx: ports %u-%u", config->port_first, config->port_last);
    snprintf(range, sizeof range, "%u-%u", config->port_first, config->port_last);
    return set(ucp, "TCP_PORT_RANGE", "PORT_RANGE", range, err);
}

static enum status config_make(const struct exchange_config *config, ucp_config_t **ucp_out, struct error *err)
{
    ucp_config_t *ucp = NULL;
    const ucs_status_t ucs = ucp_config_read(NULL, NULL, &ucp);
    if (ucs)
        return error_set(err, ST_INTERNAL, "exchange ucx: configuration: %s", ucs_status_string(ucs));
    enum status st = lanes_set(ucp, config->lanes, err);
    if (!st)
        st = network_set(ucp, config, err);
    for (size_t i = 0; !st && i < sizeof settings / sizeof *settings; i++) {
        const struct setting *s = &settings[i];
        if (user_set(s->name) || (s->lanes && config->lanes && strcmp(s->lanes, config->lanes)))
            continue;
        st = set(ucp, s->name, s->name_1_13, s->value, err);
    }
    if (st) {
        ucp_config_release(ucp);
        return st;
    }
    *ucp_out = ucp;
    return ST_OK;
}

/*
 * Workers with equal identities can map each other's memory: one boot of one kernel, the same user, IPC, PID and network namespaces. (A network
 * namespace of its own does not hinder that, but whoever makes one means another host.)
 */
static struct digest host_identity(void)
{
    static const char *const namespaces[] = { "/proc/self/ns/ipc", "/proc/self/ns/pid", "/proc/self/ns/net" };
    struct hasher *h = hasher_new();
    char text[64] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (f) {
        if (!fgets(text, sizeof text, f))
            text[0] = 0;
        fclose(f);
    }
    hasher_add_text(h, text);
    for (size_t i = 0; i < sizeof namespaces / sizeof *namespaces; i++) {
        struct stat st = { 0 };
        hasher_add_u64(h, stat(namespaces[i], &st) ? 0 : (uint64_t)st.st_ino);
    }
    hasher_add_u64(h, geteuid());
    if (!text[0]) /* unknown: alone on its host, so that tcp is used */
        hasher_add_u64(h, (uint64_t)getpid() << 32 ^ (uint64_t)(uintptr_t)h);
    return hasher_end(h);
}

static enum status address_make(struct ucx *u, struct error *err)
{
    ucp_worker_attr_t full = { .field_mask = UCP_WORKER_ATTR_FIELD_ADDRESS };
    ucp_worker_attr_t net = { .field_mask = UCP_WORKER_ATTR_FIELD_ADDRESS | UCP_WORKER_ATTR_FIELD_ADDRESS_FLAGS,
                              .address_flags = UCP_WORKER_ADDRESS_FLAG_NET_ONLY };
    ucs_status_t ucs = ucp_worker_query(u->worker, &full);
    if (ucs)
        return error_set(err, ST_INTERNAL, "exchange ucx: address: %s", ucs_status_string(ucs));
    ucs = ucp_worker_query(u->worker, &net);
    const bool has_net = !ucs && !(u->x.config.lanes && !strcmp(u->x.config.lanes, "shm"));
    const struct peer_address a = { .id = u->x.config.self,
                                    .instance = u->x.instance,
                                    .host = u->host,
                                    .full = (const uint8_t *)full.address,
                                    .full_bytes = full.address_length,
                                    .net = has_net ? (const uint8_t *)net.address : NULL,
                                    .net_bytes = has_net ? net.address_length : 0 };
    u->address_bytes = peer_address_write(&a, u->address);
    const size_t bytes = a.full_bytes + a.net_bytes;
    ucp_worker_release_address(u->worker, full.address);
    if (!ucs)
        ucp_worker_release_address(u->worker, net.address);
    if (!u->address_bytes)
        return error_set(err, ST_TOO_LARGE,
                         "exchange ucx: the address takes %zu bytes: choose an interface by its address", bytes);
    return ST_OK;
}

enum status ucx_context_open(struct ucx *u, const struct exchange_config *config, struct error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    ucp_config_t *ucp;
    pthread_once(&once, log_begin);
    enum status st = config_make(config, &ucp, err);
    if (st)
        return st;
    const ucp_params_t params = { .field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME,
                                  .features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP,
                                  .name = "longspan" };
    ucs_status_t ucs = ucp_init(&params, ucp, &u->context);
    ucp_config_release(ucp);
    if (ucs)
        return error_set(err, ST_IO, "exchange ucx: no lane works here (lanes %s): %s",
                         config->lanes ? config->lanes : "any", ucs_status_string(ucs));
    /* serialized, not single: the thread that opens the exchange may hand it to the step thread; the cost is the same */
    const ucp_worker_params_t worker = { .field_mask =
                                             UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_EVENTS,
                                         .events = UCP_WAKEUP_RX,
                                         .thread_mode = UCS_THREAD_MODE_SERIALIZED };
    ucs = ucp_worker_create(u->context, &worker, &u->worker);
    if (ucs)
        return error_set(err, ST_IO, "exchange ucx: worker: %s (ports %u-%u)", ucs_status_string(ucs),
                         config->port_first, config->port_last);
    ucs = ucp_worker_get_efd(u->worker, &u->x.transport.fd);
    if (ucs)
        return error_set(err, ST_IO, "exchange ucx: wake-up: %s", ucs_status_string(ucs));
    u->host = host_identity();
    return address_make(u, err);
}

void ucx_context_close(struct ucx *u)
{
    if (u->worker)
        ucp_worker_destroy(u->worker);
    if (u->context)
        ucp_cleanup(u->context);
}

/* The lane of active messages in what UCX prints: "#  lane[0]: 4:tcp/lo.0 md[0] ... am ...". There is no call for it in 1.13. */
void ucx_lane_name(ucp_ep_h ep, char *name_out, size_t bytes)
{
    char *text = NULL, *save = NULL;
    size_t n = 0;
    name_out[0] = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        return;
    ucp_ep_print_info(ep, f);
    if (fclose(f)) {
        free(text);
        return;
    }
    for (const char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        const char *lane = strstr(line, "lane["), *colon = lane ? strchr(lane, ':') : NULL,
                   *name = colon ? strchr(colon + 1, ':') : NULL;
        const char *slash = name ? strchr(name, '/') : NULL;
        if (!slash || !strstr(slash, " am ") || (size_t)(slash - name) > bytes)
            continue;
        snprintf(name_out, bytes, "%.*s", (int)(slash - name - 1), name + 1);
        break;
    }
    free(text);
}
