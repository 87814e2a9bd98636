#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "client/commands.h"

static const struct command {
    const char *name, *help;
    int (*run)(int argc, char **argv);
} commands[] = {
    { "up", "a cluster on this machine: a coordinator and some workers", command_up },
    { "coordinator", "the coordinator of a cluster", command_coordinator },
    { "worker", "a worker of a cluster", command_worker },
    { "generate", "an answer to a prompt, from a cluster or from one made for it", command_generate },
    { "chat", "a conversation at the terminal", command_chat },
    { "status", "what a cluster is doing", command_status },
    { "drain", "a worker gives what runs there to the others", command_drain },
    { "rebalance", "leaves go from workers that have most to those that have least", command_rebalance },
    { "top", "a cluster, live", command_top },
    { "bench", "a load on an OpenAI-compatible server, this one or another, and what it measures", command_bench },
    { "jobs", "durable jobs: submit, list, get, watch, cancel", command_jobs },
    { "batch", "a file of requests (OpenAI's batch format) as jobs, and their answers as a file", command_batch },
    { "model", "what a model is: shape, sizes, memory", command_model },
    { "pack", "a model as a directory that is read in place, its weights coded", command_pack },
    { "calibrate", "what KV codecs learn from a model over a text", command_calibrate },
    { "eval", "what KV codecs, selectors and weights do to a model's predictions", command_eval },
    { "config", "all settings with their values, as a file", command_config },
};

static void help(FILE *out)
{
    fprintf(out, "longspan: long-context language models over a cluster\n\nusage: longspan COMMAND [flags]\n\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(out, "  %-12s %s\n", commands[i].name, commands[i].help);
    fprintf(out, "\nlongspan COMMAND --help shows a command's flags.\n");
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc >= 2 && (!strcmp(argv[1], "help") || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        help(stdout);
        return 0;
    }
    if (argc >= 2 && !strcmp(argv[1], "--version")) {
        printf("longspan %s\n", LONGSPAN_VERSION);
        return 0;
    }
    for (size_t i = 0; argc >= 2 && i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i].name))
            return commands[i].run(argc - 1, argv + 1);
    if (argc >= 2)
        fprintf(stderr, "longspan: no command '%s'\n\n", argv[1]);
    help(stderr);
    return 2;
}
