# SPDX-License-Identifier: Apache-2.0
#
# What the builds of the trusted application (optee/) and of its client (host/)
# share. MARCH: instruction set of the kernels, as gcc's -march takes it.
NATIVE := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
MARCH ?= armv8-a

# The version of Cloister.
VERSION ?= $(shell sed -n 's/^project.cloister VERSION \([^ ]*\).*/\1/p' \
	$(NATIVE)/../CMakeLists.txt 2>/dev/null)
ifeq ($(strip $(VERSION)),)
$(error VERSION must be given here: that of Cloister (`cloister --version`))
endif

CORE_SOURCES := $(NATIVE)/core/machine.c $(NATIVE)/core/program.c
KERNEL_SOURCES := $(wildcard $(NATIVE)/core/kernels/*.c)

# Both worlds must compute the same bits in as many instructions: float32 is
# fused only where the code says it, and with -mstrict-align (as the dev kit compiles) gcc would take
# vector loads apart into bytes.
KERNEL_FLAGS := -std=c11 -O3 -mno-strict-align -march=$(MARCH) -ffp-contract=off
