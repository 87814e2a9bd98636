#include <stdio.h>

#include "client/commands.h"
#include "client/settings.h"

int command_config(int argc, char **argv)
{
    struct settings s;
    const char *prompt, *positional;
    if (!settings_read(&s, SCOPE_CONFIG,
                       "usage: longspan config [--config FILE]: checks a file and prints every setting, as a file",
                       argc, argv, &prompt, &positional))
        return 2;
    if (positional) {
        fprintf(stderr, "longspan: config takes no argument '%s'\n", positional);
        return 2;
    }
    s.config[0] = 0; /* where it came from is no part of it */
    config_print(settings_fields, &s, stdout);
    return 0;
}
