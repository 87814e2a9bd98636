#ifndef LONGSPAN_CLIENT_INTERRUPT_H
#define LONGSPAN_CLIENT_INTERRUPT_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* From here on SIGINT and SIGTERM end nothing by themselves; they are remembered. */
void interrupt_catch(void);
/* Whether one has come. */
bool interrupted(void);
/* How many SIGINT have come; whether a SIGTERM has. */
unsigned interrupts(void);
bool terminated(void);

#ifdef __cplusplus
}
#endif
#endif
