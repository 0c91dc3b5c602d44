# Paths are absolute: the kit would put the objects of `../ta` outside of O.
ta-sources := $(wildcard $(NATIVE)/ta/*.c)
srcs-y += chacha.c memory.c platform.c $(ta-sources) $(CORE_SOURCES) $(KERNEL_SOURCES)
global-incdirs-y += . ../ta ../core ../core/kernels

$(foreach source,$(CORE_SOURCES) $(KERNEL_SOURCES),\
	$(eval cflags-$(source)-y := $(KERNEL_FLAGS)))

# Loops must not become calls of what they implement.
cflags-memory.c-y := $(KERNEL_FLAGS) -fno-builtin \
	-fno-tree-loop-distribute-patterns

CIPHER_FLAGS ?= -O3 -mno-strict-align -march=$(MARCH)
ifneq ($(MBEDTLS_DIR),)
# The library's own headers and configuration, the kit's, stay in force; so what
# is compiled here takes the place of the library's objects of the same names.
cipher-sources := $(foreach name,chacha20 poly1305 chachapoly,\
	$(abspath $(MBEDTLS_DIR))/library/$(name).c)
srcs-y += $(cipher-sources)
$(foreach source,$(cipher-sources),\
	$(eval cflags-$(source)-y := $(CIPHER_FLAGS))\
	$(eval cppflags-$(source)-y := -UMBEDTLS_SELF_TEST))
endif
