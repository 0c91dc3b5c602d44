# Paths are absolute: the kit would put the objects of `../ta` outside of O.
ta-sources := $(wildcard $(NATIVE)/ta/*.c)
srcs-y += platform.c chacha.c $(ta-sources) $(CORE_SOURCES) $(KERNEL_SOURCES)
global-incdirs-y += . ../ta ../core ../core/kernels

$(foreach source,$(CORE_SOURCES) $(KERNEL_SOURCES),\
	$(eval cflags-$(source)-y := $(KERNEL_FLAGS)))

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
