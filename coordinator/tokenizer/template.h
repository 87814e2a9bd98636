#ifndef LONGSPAN_COORDINATOR_TOKENIZER_TEMPLATE_H
#define LONGSPAN_COORDINATOR_TOKENIZER_TEMPLATE_H

/*
 * Jinja chat templates in a normal form, so that a known one is recognised however it is laid out. Templates are never run.
 */

#include <stddef.h>

#include "common/error.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * The normal form: one tag a line, its words separated by single spaces, strings in double quotes; comments and dashes are gone. Text
 * between tags, where the environment of chat templates (trim_blocks, lstrip_blocks) would print any, is a line TEXT "...".
 *
 * Left out are branches that only run when tools are given or a message has a role other than system, user and assistant, as Llama 3's
 * template has them: their conditions are known by their text.
 *
 * *form_out: malloc'd, ends with NUL. ST_INVALID: not Jinja.
 */
enum status template_normal_form(const char *text, char **form_out);

#ifdef __cplusplus
}
#endif
#endif
