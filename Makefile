# Two commands do everything: `make run` and `make test`. Both install what they need first; a second call is quick.
WORKERS ?= 2
HTTP ?= 127.0.0.1:8080
GRPC ?= 127.0.0.1:9090
MODEL ?= models/smollm2-135m-instruct
PROMPT ?= Explain in two sentences why the sky is blue.
ONCE ?=
FLAGS ?=
export PROMPT # read by the shell, so that it may hold quotes
SHELL := /bin/bash
.DELETE_ON_ERROR:

LONGSPAN := build/release/longspan

.PHONY: help run test build deps model corpus venv test-dev test-tsan test-fuzz test-release format format-check bench bench-peers clean

help:
	@echo "make run          a local cluster with the default model: an answer, then a server until Ctrl-C"
	@echo "                  (WORKERS=2 HTTP=127.0.0.1:8080 GRPC=127.0.0.1:9090 PROMPT=... ONCE=1 FLAGS=...)"
	@echo "make test         everything: sanitizers, threads, fuzzing, release"
	@echo "make build        the program, build/release/longspan, and the default model"
	@echo "make model        the default model only, into models/smollm2-135m-instruct"
	@echo "make corpus       the texts that longspan eval scores, into corpus/"
	@echo "make bench        figures (make bench-peers: what they are compared with)"

deps:
	@scripts/install.sh

model: deps
	@scripts/model.sh

corpus: deps
	@scripts/corpus.sh

$(LONGSPAN): deps
	@test -e build/release/build.ninja || cmake --preset release >/dev/null
	@ninja -C build/release --quiet longspan

build: $(LONGSPAN) model

run: build
	@exec $(LONGSPAN) up --workers $(WORKERS) --http $(HTTP) --grpc $(GRPC) --model $(MODEL) --prompt "$$PROMPT" $(if $(ONCE),--once) $(FLAGS)

venv: deps
	@scripts/venv.sh

# The release run comes last, so that its summary closes the output; any failure before it stops here.
test: deps format-check model venv test-dev test-tsan test-fuzz test-release

# $(1): preset, $(2): arguments of ctest, $(3): what to build (all, if it is not said)
define ctest
	cmake --preset $(1) >/dev/null
	ninja -C build/$(1) --quiet $(3)
	ctest --test-dir build/$(1) --output-on-failure --no-tests=error -j2 $(2)
endef

test-dev: model venv
	$(call ctest,dev,-L 'unit|kernels|sim')

test-tsan: model
	$(call ctest,tsan,-L tsan)

test-fuzz:
	$(call ctest,fuzz,-L fuzz,fuzzers)

test-release: model venv
	$(call ctest,release,)

sources = $(shell git ls-files '*.c' '*.h')
format:
	clang-format -i $(sources)

format-check: deps
	@clang-format --dry-run -Werror $(sources)

bench: build
	@bench/run.sh

bench-peers: deps
	@bench/peers.sh

clean:
	rm -rf build
