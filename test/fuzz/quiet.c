/* quiet.c - what the command's readers of arrays and sidecars call of it, without a word: millions of inputs are refused. */
#include "store.h"

#include <time.h>

int cli_fail(const char *format, ...)
{
    (void)format;
    return CLI_FAILED;
}

int cli_refuse(const char *format, ...)
{
    (void)format;
    return CLI_REFUSED;
}

int store_status(const store_target *target, int status)
{
    (void)target;
    return status == KNA_OK ? CLI_OK : CLI_REFUSED;
}

int store_family(const store_target *target, const char *name, int *family)
{
    *family = name ? kna_store_family_named(target->store, name) : 0;
    return *family < 0 ? CLI_REFUSED : CLI_OK;
}

int cli_status(const kna_context *context, int status)
{
    (void)context;
    return status == KNA_OK ? CLI_OK : CLI_FAILED;
}

/* As the command writes it, since a time is compared with that. */
const char *store_time(char text[STORE_TIME_TEXT], int64_t time_us)
{
    const time_t seconds = (time_t)(time_us / 1000000 - (time_us % 1000000 < 0));
    struct tm parts;
    if (!gmtime_r(&seconds, &parts) || strftime(text, STORE_TIME_TEXT, "%Y-%m-%d %H:%M:%S", &parts) == 0) text[0] = '\0';
    return text;
}

const char *store_type_name(int type)
{
    return kna_type_name(type);
}
