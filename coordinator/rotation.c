#include "coordinator/rotation.h"

#include <signal.h>
#include <stdlib.h>

#include "common/log.h"
#include "common/tls_watch.h"

enum { LOOK_MS = 1000 };

struct rotation {
    struct rotation_config config;
    struct tls_watch *tls, *control_tls;
    struct gateway *gateway; /* NULL: in clear */
    struct control *control; /* likewise */
    struct loop_timer *timer;
    struct sigaction old_hup;
    bool handler;
};

static volatile sig_atomic_t asked;

static void on_hangup(int number)
{
    (void)number;
    asked = 1;
}

static void gateway_take(struct rotation *r, const struct tls *tls)
{
    struct error err = { 0 };
    if (gateway_tls(r->gateway, tls, &err))
        log_error("%s; the certificate from before stays", err.text);
    else
        log_info("certificates of HTTP and gRPC were read again: %s", r->config.tls.cert);
}

static void control_take(struct rotation *r, const struct tls *tls)
{
    if (control_tls(r->control, tls))
        log_error("control: no memory; the certificate from before stays");
    else
        log_info("certificates of the control port were read again: %s", r->config.control.cert);
}

static void on_timer(void *arg)
{
    struct rotation *r = arg;
    const bool always = asked;
    struct tls *tls;
    asked = 0;
    loop_timer_set(r->timer, LOOK_MS);
    if (r->gateway && tls_watch_look(r->tls, always, &tls)) {
        gateway_take(r, tls);
        tls_free(tls);
    }
    if (r->control && tls_watch_look(r->control_tls, always, &tls)) {
        control_take(r, tls);
        tls_free(tls);
    }
}

struct rotation *rotation_new(const struct rotation_config *config)
{
    struct rotation *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->config = *config;
    r->timer = loop_timer_new(config->loop, on_timer, r);
    r->tls = tls_watch_new("tls", &config->tls, false);
    r->control_tls = tls_watch_new("control", &config->control, true);
    if (!r->timer || !r->tls || !r->control_tls) {
        rotation_free(r);
        return NULL;
    }
    const struct sigaction action = { .sa_handler = on_hangup, .sa_flags = SA_RESTART };
    r->handler = !sigaction(SIGHUP, &action, &r->old_hup);
    return r;
}

void rotation_serve(struct rotation *r, struct gateway *gateway, struct control *control)
{
    r->gateway = gateway;
    r->control = control;
    loop_timer_set(r->timer, LOOK_MS);
}

void rotation_free(struct rotation *r)
{
    if (!r)
        return;
    if (r->handler)
        sigaction(SIGHUP, &r->old_hup, NULL);
    loop_timer_free(r->timer);
    tls_watch_free(r->tls);
    tls_watch_free(r->control_tls);
    free(r);
}
