#include "model/directory.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n > m && strcmp(text + n - m, end) == 0;
}

enum status model_directory_look(const char *path, struct model_directory *directory_out, struct error *err)
{
    struct model_directory d = { 0 };
    const struct dirent *entry;
    DIR *dir = opendir(path);
    if (!dir)
        return error_set(err, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: %s", path, strerror(errno));
    while ((entry = readdir(dir))) {
        const char *name = entry->d_name;
        if (name[0] == '.')
            continue;
        if (strcmp(name, "config.json") == 0)
            d.has_config = true;
        if (ends_with(name, ".safetensors"))
            d.n_safetensors++;
        if (!ends_with(name, ".gguf"))
            continue;
        if (d.n_gguf++ == 0 || strcmp(name, d.gguf) < 0)
            snprintf(d.gguf, sizeof d.gguf, "%s", name);
    }
    closedir(dir);
    *directory_out = d;
    return ST_OK;
}
