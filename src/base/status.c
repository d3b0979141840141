/* status.c - names and sentences of the one status list, and the message of a failed call. */
#include "base.h"

#include <stdarg.h>
#include <stdio.h>

const char *kna_version(void)
{
    return KNA_VERSION_STRING;
}

const char *kna_status_name(int status)
{
    switch (status) {
#define KNA_CASE(name, number, text) \
    case number:                     \
        return #name;
        KNA_STATUS_LIST(KNA_CASE)
#undef KNA_CASE
    default:
        return "KNA_E?";
    }
}

const char *kna_status_text(int status)
{
    switch (status) {
#define KNA_CASE(name, number, text) \
    case number:                     \
        return text;
        KNA_STATUS_LIST(KNA_CASE)
#undef KNA_CASE
    default:
        return "unknown status";
    }
}

int kna__fail(char message[KNA_MESSAGE_BYTES], int status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, KNA_MESSAGE_BYTES, format, arguments);
    va_end(arguments);
    return status;
}
