#include "client/interrupt.h"

#include <signal.h>
#include <stddef.h>

static volatile sig_atomic_t n_interrupts, n_terminations;

static void on_signal(int number)
{
    if (number == SIGINT)
        n_interrupts++;
    else
        n_terminations = 1;
}

void interrupt_catch(void)
{
    const struct sigaction action = { .sa_handler = on_signal };
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool interrupted(void)
{
    return n_interrupts || n_terminations;
}

unsigned interrupts(void)
{
    return (unsigned)n_interrupts;
}

bool terminated(void)
{
    return n_terminations;
}
