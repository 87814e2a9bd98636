/* What all backends do alike: where answers lie. And which backends there are. */
#include "worker/backend.h"

#include <stdlib.h>
#include <string.h>

static bool reserve(void *p, size_t *room, size_t bytes)
{
    void **at = p;
    if (bytes <= *room)
        return true;
    free(*at);
    *at = malloc(bytes + bytes / 4);
    *room = *at ? bytes + bytes / 4 : 0;
    return *at != NULL;
}

bool step_answers_reserve(struct step_answers *a, const struct step_input *input, uint32_t n_vocab)
{
    size_t n_tops = 0, n_logits = 0;
    for (uint32_t i = 0; i < input->n_asks; i++) {
        n_tops += input->asks[i].n_top;
        n_logits += input->asks[i].logits ? n_vocab : 0;
    }
    if (!reserve(&a->list, &a->list_room, input->n_asks * sizeof *a->list) ||
        !reserve(&a->tops, &a->tops_room, n_tops * sizeof *a->tops) ||
        !reserve(&a->logits, &a->logits_room, n_logits * sizeof *a->logits))
        return false;
    n_tops = n_logits = 0;
    for (uint32_t i = 0; i < input->n_asks; i++) {
        const struct step_ask *ask = &input->asks[i];
        a->list[i] = (struct step_answer){ .top = ask->n_top ? a->tops + n_tops : NULL,
                                           .logits = ask->logits ? a->logits + n_logits : NULL };
        n_tops += ask->n_top;
        n_logits += ask->logits ? n_vocab : 0;
    }
    return true;
}

void step_answers_free(struct step_answers *a)
{
    free(a->list);
    free(a->tops);
    free(a->logits);
    *a = (struct step_answers){ 0 };
}

const struct backend_ops *backend_find(const char *device)
{
#ifdef LONGSPAN_CUDA
    if (!strcmp(device, "cuda"))
        return &backend_cuda;
#endif
    return !strcmp(device, "cpu") ? &backend_cpu : NULL;
}
