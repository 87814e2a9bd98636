#ifndef LONGSPAN_CLIENT_TERMINAL_H
#define LONGSPAN_CLIENT_TERMINAL_H

#ifdef __cplusplus
extern "C" {
#endif

/* A progress bar on standard error, if it is a terminal; else nothing. Drawn again only when it moved. */
void terminal_bar(const char *what, float fraction);
/* Takes the bar off the screen. */
void terminal_bar_end(void);

#ifdef __cplusplus
}
#endif
#endif
