# knnattn: the usual entry. The build itself is CMakeLists.txt; what is fetched and how is in scripts/.
#
#   make               set the machine up, build everything into build/: kna, libggml-knnattn.so, libkna.a, libkna.so
#   make demo          kNN attention inside a real model on a real document, beside llama.cpp, measured here
#   make test          every test, also under sanitizers and for arm64
#   make bench         operators and the model, beside their rivals
#   make install       PREFIX=/usr/local, DESTDIR=
#   make clean         remove the build folders; the cache outside the tree stays
#   make print-llama   the folder of llama.cpp's programs, fetched and built when missing
#   make print-model   the path of the model used by demo, tests and benches, fetched when missing
#
# LLAMA=OFF builds without llama.cpp: the library and the operators of kna. LLAMA_SOURCE_DIR=path builds with that source tree.

PREFIX ?= /usr/local
DESTDIR ?=
BUILD ?= build
LLAMA ?= ON
LLAMA_SOURCE_DIR ?=
JOBS ?= $(shell nproc)
export BUILD LLAMA LLAMA_SOURCE_DIR

generator = $(if $(wildcard $(BUILD)/CMakeCache.txt),,$(if $(shell command -v ninja),-G Ninja))
configure = cmake -S . -B $(BUILD) $(generator) --log-level=WARNING -DCMAKE_BUILD_TYPE=Release -DKNA_LLAMA=$(LLAMA) \
            -DLLAMA_SOURCE_DIR=$(LLAMA_SOURCE_DIR) -DKNA_WERROR=$(if $(CI),ON,OFF)

.PHONY: all demo test bench install clean help print-llama print-model setup

all: setup
	@$(configure)
	@cmake --build $(BUILD) --parallel $(JOBS)

setup:
	@scripts/setup.sh build

demo: all
	@scripts/demo.sh

test:
	@scripts/test.sh

bench: all
	@scripts/bench.sh

# What is built already is only copied: root need not have the cache of the user who built it.
install:
	@[ -e $(BUILD)/kna ] || $(MAKE) --no-print-directory all
	@DESTDIR="$(DESTDIR)" cmake --install $(BUILD) --prefix "$(PREFIX)"

clean:
	rm -rf build build-*

print-llama:
	@scripts/setup.sh build
	@bash -euc '. scripts/common.sh; prepare_model; echo "$$programs"'

print-model:
	@scripts/setup.sh build
	@scripts/fetch_model.sh

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile
