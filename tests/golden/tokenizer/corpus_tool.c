/* Writes the corpus to standard output. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/golden/tokenizer/corpus.h"

int main(void)
{
    char *text = malloc(CORPUS_BYTES);
    if (!text)
        return 1;
    const size_t n = corpus_make(CORPUS_SEED, text, CORPUS_BYTES);
    const bool ok = fwrite(text, 1, n, stdout) == n && fflush(stdout) == 0;
    free(text);
    return !ok;
}
