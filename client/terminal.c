#include "client/terminal.h"

#include <stdio.h>
#include <unistd.h>

enum { BAR_WIDTH = 40 };

static int drawn = -1;

void terminal_bar(const char *what, float fraction)
{
    if (!isatty(STDERR_FILENO))
        return;
    if (!(fraction > 0))
        fraction = 0;
    if (fraction > 1)
        fraction = 1;
    const int percent = (int)(fraction * 100);
    if (percent == drawn)
        return;
    drawn = percent;
    fprintf(stderr, "\r%-10s [", what);
    for (int i = 0; i < BAR_WIDTH; i++)
        fputc(i * 100 < percent * BAR_WIDTH ? '#' : ' ', stderr);
    fprintf(stderr, "] %3d%%", percent);
    fflush(stderr);
}

void terminal_bar_end(void)
{
    if (drawn >= 0)
        fprintf(stderr, "\r\033[K");
    drawn = -1;
}
