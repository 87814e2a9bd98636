/*
 * Room for a request that comes before some that run: those of a lower class, and, if it has waited too long, younger ones of its own. They give up what they
 * hold, wait again, and are computed again up to where they were; nothing that a client was told is told twice. Sealed blocks stay as prefix cache as
 * long as there is room, and are then found again.
 */
#include "coordinator/sched/state.h"

#include <string.h>

#include "common/log.h"

static bool outranks(const struct sched_request *r, const struct sched_request *victim)
{
    /* Who has waited too long would come first again, and neither would get anywhere. */
    if (victim->state != REQUEST_RUNNING || victim->preempting || victim->urgent)
        return false;
    if (r->priority != victim->priority)
        return r->priority < victim->priority;
    return r->urgent && r->arrival < victim->arrival;
}

/* Who goes first: the lowest class, then the youngest. NULL: nobody that is not chosen yet. */
static struct sched_request *victim_next(const struct sched *s, const struct sched_request *r)
{
    struct sched_request *victim = NULL;
    for (uint32_t i = 0; i < s->n_running; i++) {
        struct sched_request *v = s->running[i];
        if (v->chosen || !outranks(r, v))
            continue;
        if (!victim || v->priority > victim->priority ||
            (v->priority == victim->priority && v->arrival > victim->arrival))
            victim = v;
    }
    return victim;
}

/* What nobody else holds of it. */
static void room_of(const struct sched_request *v, int64_t room[SCHED_SLOTS])
{
    for (uint32_t i = 0; i < v->n_blocks; i++) {
        if (v->copies[i])
            room[v->copies[i]->slot] += v->copies[i]->refs == 1;
    }
    SCHED_EACH(slot, v->ties)
    {
        room[slot] += v->promise[slot];
    }
}

static void stop(struct sched *s, struct sched_request *v)
{
    log_debug("request %s sequence %llu gives way after %u of %u positions", v->label, (unsigned long long)v->id,
              v->done, v->n_rows);
    v->preempting = true;
    s->n_preempting++;
    s->stats.preemptions++;
    request_settle(s, v);
}

bool preempt_for(struct sched *s, struct sched_request *r, bool (*fits)(struct sched *s, struct sched_request *r))
{
    bool ok = false;
    for (struct sched_request *v; !ok && (v = victim_next(s, r));) {
        v->chosen = true;
        room_of(v, s->extra_room);
        SCHED_EACH(slot, v->ties)
        {
            s->extra_ties[slot]++;
        }
        ok = fits(s, r);
    }
    memset(s->extra_room, 0, sizeof s->extra_room);
    memset(s->extra_ties, 0, sizeof s->extra_ties);
    for (uint32_t i = 0; i < s->n_running;) {
        struct sched_request *v = s->running[i];
        const bool chosen = v->chosen;
        v->chosen = false;
        if (chosen && ok)
            stop(s, v);
        if (i < s->n_running && s->running[i] == v)
            i++;
    }
    return ok;
}

void preempt_settle(struct sched *s, struct sched_request *r)
{
    r->preempting = false;
    s->n_preempting--;
    request_again(s, r);
}
