#ifndef LONGSPAN_CLIENT_COMMANDS_H
#define LONGSPAN_CLIENT_COMMANDS_H

/* The commands of the program; argv[0] is the command's name. Each returns the exit status: 0, 1 (it failed), 2 (used wrongly). */

#ifdef __cplusplus
extern "C" {
#endif

int command_up(int argc, char **argv);
int command_coordinator(int argc, char **argv);
int command_worker(int argc, char **argv);
int command_generate(int argc, char **argv);
int command_chat(int argc, char **argv);
int command_status(int argc, char **argv);
int command_drain(int argc, char **argv);
int command_rebalance(int argc, char **argv);
int command_top(int argc, char **argv);
int command_bench(int argc, char **argv);
int command_jobs(int argc, char **argv);
int command_batch(int argc, char **argv);
int command_model(int argc, char **argv);
int command_pack(int argc, char **argv);
int command_calibrate(int argc, char **argv);
int command_eval(int argc, char **argv);
int command_config(int argc, char **argv);

#ifdef __cplusplus
}
#endif
#endif
